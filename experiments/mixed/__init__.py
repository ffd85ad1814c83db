"""SmolLM2-135M on instructions of four collections: methods at 5% of a pool, and few rows towards held-out families."""

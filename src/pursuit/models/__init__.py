"""Models: finding and loading them, and which of their parameters give gradients."""

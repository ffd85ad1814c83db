"""A demonstration on a real model and a real pool; `make demo` runs it."""

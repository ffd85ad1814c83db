"""The feature store: unit rows of numbers on disk, how they are written down, and copies of them elsewhere."""

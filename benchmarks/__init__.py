"""Measurements against other ways of doing the same work, always as ratios within one run."""

"""Experiments that compare methods on real data; each is one command, run from the repository root."""

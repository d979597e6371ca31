"""One seed, from which the randomness of every step follows.

A random state that lives on from step to step would have to be in the checkpoint, for every process
and every library, and would tie a run to its number of processes and its torch version. Here nothing
lives on: the generators of torch (CPU and CUDA), NumPy and Python are seeded anew before every
forward pass, from (seed, step, pass, rank). A run that resumes at step t draws what the uninterrupted
run drew at step t. The samples of a step come from the data loader, which draws from (seed, sample
number) and from no global generator.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets

import numpy as np
import torch
from detectron2.utils import comm


def resolve_seed(seed: int) -> int:
    """Returns ``seed``, or where it is negative one that is drawn and shared by all processes."""
    if seed < 0:
        seed = comm.all_gather(secrets.randbelow(2**31))[0]
    return seed


def seed_everything(seed: int) -> None:
    """Seeds torch (CPU and CUDA), NumPy and Python with one number, any size."""
    torch.manual_seed(seed % 2**63)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_pass(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Seeds the forward pass ``micro_step`` of optimizer step ``step`` on process ``rank``."""
    digest = hashlib.blake2b(f"{seed}/{step}/{micro_step}/{rank}".encode(), digest_size=8).digest()
    seed_everything(int.from_bytes(digest, "big"))


def make_deterministic() -> None:
    """Chooses kernels that give the same bits from run to run; slower on a GPU.

    An operation that has no such kernel raises torch's own RuntimeError, which names it.
    """
    # cuBLAS reads it when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False

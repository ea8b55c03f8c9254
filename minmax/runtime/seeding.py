"""Randomness as a function of what is being done, so that nothing about it has to be saved or handed to workers."""

import hashlib
import random

import numpy as np
import torch


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from any sequence of numbers and words; equal keys give equal seeds on every machine."""
    return int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:8], "little") >> 1


def generator_for(*keys: int | str) -> torch.Generator:
    """A CPU generator seeded by `keys`; drawing on the CPU makes draws equal on every device."""
    return torch.Generator().manual_seed(derive_seed(*keys))


def seed_globally(*keys: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices) by `keys`.

    Called before the network is built and again before every training step, so a resumed run draws what the
    uninterrupted one would have drawn without any generator state in its checkpoint.
    """
    seed = derive_seed(*keys)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)

"""Randomness of a training step, as a pure function of (seed, step, row).

Nothing random survives from one step to the next, so a checkpoint needs no generator states, and a row meets the same
noise whatever process, micro-batch or resumed run it falls into.
"""

from __future__ import annotations

import random

import numpy as np
import torch


class Dice:
    """Random tensors for the rows of one micro-batch.

    Args:
        seed, step: of the training.
        positions: places of the rows in the global batch.
        device: of the tensors returned.
    """

    def __init__(self, seed: int, step: int, positions: range, device: torch.device | str = "cpu") -> None:
        self._rows = [np.random.default_rng([seed, step, p]) for p in positions]
        self._device = device

    def normal(self, *shape: int) -> torch.Tensor:
        """(B, *shape) float32, standard normal."""
        return self._stack([r.standard_normal(shape, dtype=np.float32) for r in self._rows])

    def uniform(self, *shape: int) -> torch.Tensor:
        """(B, *shape) float32 in [0, 1)."""
        return self._stack([r.random(shape, dtype=np.float32) for r in self._rows])

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """(B, *shape) int64 from 0 to high - 1."""
        return self._stack([r.integers(high, size=shape) for r in self._rows])

    def _stack(self, rows: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(rows)).to(self._device)


def seed_everything(*key: int) -> None:
    """Seeds Python's, numpy's and torch's global generators (dropout uses them) from a key such as (seed, step)."""
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 (libraries still draw from the global one)
    torch.manual_seed(int(words[2]))

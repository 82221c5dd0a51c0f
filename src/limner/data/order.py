"""Which rows a training step sees: a pure function of seed and step.

Because nothing else goes in, a resumed run, another number of loader workers and another number of processes all see
the same batches.
"""

from __future__ import annotations

import numpy as np

from limner.errors import ConfigError


class Order:
    """Epochs of shuffled rows, cut into global batches.

    Rows of different groups (picture sizes, say) never share a batch. Every epoch holds every row at least once: the
    last batch of a group is filled up with rows from the beginning of its shuffled list.

    Args:
        count: number of rows.
        batch: rows of one global batch, over all processes and accumulation steps.
        seed: of the shuffling.
        groups: (count,) integers, or None for one group.
    """

    def __init__(self, count: int, batch: int, seed: int, groups: np.ndarray | None = None) -> None:
        if count < 1 or batch < 1:
            raise ConfigError(f"Training needs at least one row and a batch of at least one; got {count} and {batch}.")
        if groups is not None and groups.shape != (count,):
            raise ConfigError(f"Groups have shape {groups.shape}; ({count},) is expected.")
        self.count, self.batch, self.seed = count, batch, seed
        self._members = [np.arange(count)]
        if groups is not None:
            self._members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
        self.batches_per_epoch = sum(-(-len(m) // batch) for m in self._members)
        self._epoch = -1
        self._batches = np.empty((0, batch), np.int64)

    def rows(self, step: int) -> np.ndarray:
        """The rows of a global batch: (batch,) int64."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._shuffle(epoch), epoch
        return self._batches[place]

    def _shuffle(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, epoch])
        parts = []
        for members in self._members:
            rows = random.permutation(members)
            size = -(-len(rows) // self.batch) * self.batch
            parts.append(np.resize(rows, size).reshape(-1, self.batch))
        return random.permutation(np.concatenate(parts))

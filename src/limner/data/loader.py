"""From rows to batches: what a training's data must offer, and the loader that feeds one process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from limner.data.order import Order
from limner.errors import ConfigError

Batch = dict[str, torch.Tensor]


class Source(ABC):
    """Rows that can be fetched by number, always the same for the same number.

    Attributes:
        groups: (len,) integers, rows of different groups never share a batch; None for one group.
    """

    groups: np.ndarray | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, rows: np.ndarray, step: int) -> Batch:
        """The rows (B,) as named tensors whose first dimension is B.

        A row may bring others along (another picture of the same person); which ones may depend on row and step, and
        on nothing else.
        """


@dataclass(frozen=True)
class Share:
    """The part of every global batch that one process gets.

    Attributes:
        rank, world: this process and how many there are.
        accumulation: micro-batches per step.
    """

    rank: int = 0
    world: int = 1
    accumulation: int = 1

    def positions(self, batch: int, part: int) -> slice:
        """Places in a global batch of `batch` rows that this process takes in micro-batch `part`.

        Raises:
            ConfigError: the batch cannot be divided evenly.
        """
        pieces = self.world * self.accumulation
        if batch % pieces:
            raise ConfigError(
                f"A global batch of {batch} cannot be divided among {self.world} processes with "
                f"{self.accumulation} accumulation steps.",
                f"Choose a batch_size that is a multiple of {pieces}.",
            )
        size = batch // pieces
        start = (part * self.world + self.rank) * size
        return slice(start, start + size)


def batches(source: Source, order: Order, share: Share, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
    """Micro-batches of this process from step `start` to before `stop`, `share.accumulation` of them a step.

    Worker processes only fetch ahead: the sequence is the same for any number of them.
    """
    share.positions(order.batch, 0)
    loader = DataLoader(
        _MicroBatches(source, order, share),
        batch_size=None,
        sampler=range(start * share.accumulation, stop * share.accumulation),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    yield from loader


class _MicroBatches(Dataset):
    """Micro-batch number i of this process belongs to step i // accumulation."""

    def __init__(self, source: Source, order: Order, share: Share) -> None:
        self.source, self.order, self.share = source, order, share

    def __getitem__(self, index: int) -> Batch:
        step, part = divmod(index, self.share.accumulation)
        return self.source.batch(self.order.rows(step)[self.share.positions(self.order.batch, part)], step)

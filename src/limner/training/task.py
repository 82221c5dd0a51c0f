"""The contract between what is trained and the loop that trains it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from PIL import Image
from torch import nn

from limner.config import Config
from limner.data.loader import Batch, Source
from limner.training.dice import Dice

C = TypeVar("C", bound=Config)

Report = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress bar (description, total) and yields the function that advances it."""


@dataclass(frozen=True)
class Losses:
    """What a step is told by its task.

    Attributes:
        total: scalar to minimise, the mean over the rows of the micro-batch.
        parts: named scalars for the log, detached.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class Task(ABC, Generic[C]):
    """Owns the model, its loss, its data, and how it is judged. Everything else belongs to the loop.

    The loop calls, in this order: the constructor (with the global generators seeded), `prepare`, `source`, then `loss`
    for every micro-batch, and `validate`, `sheet` and `export` without gradients, in evaluation mode, with the averaged
    weights in place.

    Attributes:
        name: key of the task in recipes.
        settings_class: config class of the recipe's `settings`.
        model: all trainable parameters, on the CPU after construction; the loop moves and wraps it. Its state dict is
            what checkpoints hold, so frozen parts should stand beside it, not inside.
        contrasts_rows: the loss compares rows with each other, so that accumulation would change it; refused then.
        shards: classes of the model's blocks that processes can share among them (`run.shard`); none where it is not
            worth while.
    """

    name: ClassVar[str]
    settings_class: ClassVar[type[Config]]
    contrasts_rows: ClassVar[bool] = False
    shards: ClassVar[tuple[str, ...]] = ()
    model: nn.Module

    def __init__(self, settings: C) -> None:
        self.settings = settings
        self.device = torch.device("cpu")

    def prepare(self, report: Report) -> None:
        """Builds what must lie on disk before training (caches); resumable. Called on the first process first."""

    @abstractmethod
    def source(self) -> Source:
        """The training rows; after `prepare`."""

    @abstractmethod
    def example(self, rows: int) -> Batch:
        """A made-up batch in the form of `source().batch`, without any data; for measuring time and memory."""

    def tokens(self) -> int:
        """What the model reads of one row (patches, latent places, words), for saying how much a training sees; 0 where
        a task does not say."""
        return 0

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        """The loss of one micro-batch.

        Args:
            model: `self.model` as wrapped for this device and these processes; call it, not `self.model`.
            batch: from `source()`, on the device.
            dice: the only source of randomness outside the model.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics of `self.model` on held-out data, with `n`; runs on every process and gives the same on each."""

    def sheet(self) -> Image.Image | None:
        """A picture by which a person can judge the training, or None."""
        return None

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Writes `self.model` into an empty folder, in the form that the rest of Limner loads."""

    def frozen(self) -> list[nn.Module]:
        """Modules that the loss uses but does not train; the loop moves them to the device."""
        return []

    def beside(self) -> list[nn.Module]:
        """Modules that the model uses though they are no part of it, and which may hold some of its weights."""
        return []

    def compile(self) -> None:
        """Has what the loss uses beside the model run compiled while it trains, where a task has such a thing."""

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """AdamW's groups: matrices and kernels decay; gains, biases, scales and other vectors do not.

        A group may have a `factor`, by which it learns faster than the recipe's rate.
        """
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return [g for g in groups if g["params"]]


def channels_last(model: Any) -> Any:
    """The model with its convolutions' weights laid out as convolutions like them best."""
    return model.to(memory_format=torch.channels_last)

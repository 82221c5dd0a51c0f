"""Sizes of tiny models for the training tests, and what is asked of every task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from limner.training.dice import Dice
from limner.training.task import Task

FACE = {"image_size": 28, "patch_size": 7, "width": 16, "depth": 1, "heads": 2, "output": 8, "mask_ratio": 0.0}
TEXT = {"width": 16, "depth": 1, "heads": 2, "context": 20, "projection": 12}
FUSER = {"depth": 2, "heads": 2, "points": 2, "feedforward": 16, "gain": 0.1}
UNET = {"channels": [16, 32], "attention": [0, 1], "head": 8, "time_channels": 8, "groups": 4}

Make = Callable[..., Task[Any]]


def learn(task: Task[Any], steps: int = 3, rate: float = 3e-3) -> list[float]:
    """Losses of steps on one batch with always the same noise."""
    source = task.source()
    batch = source.batch(np.arange(8), 0)
    optimizer = torch.optim.AdamW(task.parameter_groups(0.0), lr=rate)
    task.model.train()
    losses = []
    for _ in range(steps + 1):
        losses.append(task.loss(task.model, batch, Dice(0, 0, range(8))).total)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    task.model.eval()
    return [float(x.detach()) for x in losses]


def assert_learns(task: Task[Any], **how: Any) -> None:
    losses = learn(task, **how)
    assert losses[-1] < losses[0], losses
    unused = [n for n, p in task.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, f"parameters without gradient would stop data-parallel training: {unused}"


@torch.no_grad()
def metrics_of(task: Task[Any]) -> dict[str, float]:
    return task.validate()

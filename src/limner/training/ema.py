"""Exponential moving average of weights: what is validated, sampled from and exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from limner.training.shard import local, part_of, whole


class Ema:
    """Averages the trainable parameters of a model; buffers and frozen parameters are taken as they are.

    The decay rises as (1 + n) / (10 + n) until it reaches `decay`, so that the first, poor weights are soon forgotten.

    Args:
        model: whose weights to follow.
        decay: in [0, 1).
        device: where the average is kept; None means beside the weights. "cpu" frees accelerator memory.

    Of a sharded model every process averages its own part.
    """

    def __init__(self, model: nn.Module, decay: float, device: str | None = None) -> None:
        self.decay, self.updates = decay, 0
        self._live = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.average = {n: local(p.detach()).to(device or p.device, copy=True) for n, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the current weights; once per optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = list(self.average.values())
        parts = [local(p.detach()) for p in self._live.values()]
        live = [p.to(a.device, non_blocking=True) for a, p in zip(averages, parts, strict=True)]
        torch._foreach_lerp_(averages, live, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the average; afterwards its own weights again, bit for bit."""
        kept = {n: local(p.detach()).clone() for n, p in self._live.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(kept)

    def gather(self, keep: bool = True) -> dict[str, torch.Tensor]:
        """The whole average, in main memory where it had to be put together; every process must call it. Without `keep`
        the parts are sent but the result is empty."""
        found = {}
        for name, parameter in self._live.items():
            value = whole(self.average[name], parameter)
            if keep:
                found[name] = value if value is self.average[name] else value.cpu()
        return found

    def fill(self, values: dict[str, torch.Tensor]) -> None:
        """Takes over a whole average that `gather` gave."""
        for name, parameter in self._live.items():
            self.average[name].copy_(part_of(values[name], parameter))

    @torch.no_grad()
    def _write(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._live.items():
            local(parameter.detach()).copy_(values[name])

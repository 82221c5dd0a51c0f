"""The exchanges between processes that tasks need; without other processes all return what they were given."""

from __future__ import annotations

import torch
from torch import distributed


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows (B, …) of every process, in order of rank: (world · B, …); gradients flow back to their owners.

    A loss over the gathered rows is the same on every process, and the average of the processes' gradients, which is
    what data-parallel training takes, is its gradient.
    """
    if not _several():
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows))


def gather_labels(labels: torch.Tensor) -> torch.Tensor:
    """Like `gather_rows`, for tensors without gradients."""
    if not _several():
        return labels
    parts = [torch.empty_like(labels) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, labels.contiguous())
    return torch.cat(parts)


def average(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes."""
    if not _several():
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _several() else 1


def company_lost(error: RuntimeError) -> bool:
    """Whether an error means that another process cannot be reached; gloo's errors have no class of their own."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error) or "by peer" in str(error)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1

"""Sharding a model among processes (FSDP2), so that each holds a part of weights, gradients and moments.

torch's `fully_shard` itself, rather than through accelerate, because it then works, and is tested, on CPUs too. Weights
stay float32 and sums are autocast as everywhere else, so that sharded training equals unsharded training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def shard(model: nn.Module, blocks: Sequence[str]) -> None:
    """Divides the parameters of a model, in place, among all processes; blocks are gathered one by one when needed.

    Args:
        model: on its device, the same in every process.
        blocks: names of the classes that are gathered by themselves; the rest is gathered as one.
    """
    from torch.distributed.fsdp import fully_shard

    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in model.modules():
        if type(module).__name__ in blocks:
            fully_shard(module)
    fully_shard(model)


def release(model: nn.Module) -> None:
    """Forgets what a forward pass without a backward pass left gathered, so that new weights are seen by the next."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a sharded tensor that this process holds (it shares the memory); other tensors as they are."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """All parts, shaped as `like` and divided as it is, put together; on every process, which all must call it."""
    from torch.distributed.tensor import DTensor

    if not isinstance(like, DTensor):
        return part
    spread: Any = DTensor.from_local(
        part.to(like.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return spread.full_tensor()


def part_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, divided as `like` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements).to_local()


def whole_value(value: torch.Tensor) -> torch.Tensor:
    """A figure over all parts, as a plain tensor; every process must call it."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value

"""What a recipe would need of many GPUs, counted from sizes alone: nothing but one batch is allocated, and no
weights or data are there.

Memory of one GPU, float32 unless said otherwise, P trained values and F frozen ones, N GPUs:

| | DDP | FSDP (`run.shard`) |
| --- | --- | --- |
| weights, gradients | 4 P each | 4 P / N each |
| AdamW's moments (Muon's) | 8 P (4 P) | 8 P / N (cannot be sharded) |
| average (`loop.ema`; none with `ema_on_cpu`) | 4 P | 4 P / N |
| gathered | 4 P (buckets of gradients) | 8 bytes a value of the two largest blocks (weights, gradients) |
| frozen | 4 F | 4 F |
| activations | what the forward pass keeps for the backward pass, half-precision weights among it | the same |

Not counted: what a checkpointed block recomputes, workspaces, fragmentation, the allocator's cache. Leave a fifth free.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limner.errors import ConfigError
from limner.training.estimate import FLOAT, MOMENTS, activations, autocast, loss_of
from limner.training.parts import sizes_only
from limner.training.recipe import Recipe
from limner.training.task import Task


def plan(
    recipe: Recipe, build: Callable[[], Task[Any]], recipes: Path, gpus: int, hours: float | None = None
) -> dict[str, Any]:
    """Counts what a training needs of each of `gpus` GPUs, and how fast they must be to be done in `hours`.

    Args:
        recipe: complete.
        build: makes the task; parts that are not there need not be (see `limner.training.parts`).
        recipes: folder of the recipe.
        hours: None leaves the rates out.

    Returns:
        parameters; gigabytes per GPU by purpose under DDP and, where the task can be sharded, under FSDP; gigabytes of
        main memory; tokens and floating-point operations of a step and of all; rates in hours.

    Raises:
        ConfigError: the batch cannot be divided among the GPUs; a part whose size is not known.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    loop = recipe.loop
    if gpus < 1 or loop.batch_size % (gpus * loop.accumulation):
        raise ConfigError(
            f"Loop.batch_size is {loop.batch_size}, which {gpus} GPUs cannot share in {loop.accumulation} parts each.",
            "Choose another --gpus, or loop.batch_size.",
        )
    rows = loop.batch_size // (gpus * loop.accumulation)
    with torch.device("meta"), sizes_only(recipes), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")  # only sizes are wanted of it
        task = build()
    with sizes_only(recipes):
        batch = task.example(rows)  # true tensors: where a person's words stand decides the shapes of what follows
    # From here on as if on a CPU, whose autocast and fused attention keep what a GPU's keep; meta tensors have neither.
    with FakeTensorMode(allow_non_fake_inputs=True), sizes_only(recipes):
        _imagine([task.model, *task.frozen(), *task.beside()])
        for module in task.frozen():
            module.eval().requires_grad_(False)
        task.model.train()
        autocast(task, recipe)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            kept = activations(task, batch)
            with FlopCounterMode(display=False) as forward:
                loss_of(task, batch, task.model)
    trained = _values(p for p in task.model.parameters() if p.requires_grad)
    modules = (task.model, *task.frozen(), *task.beside())
    frozen = _values(p for m in modules for p in m.parameters() if not p.requires_grad)
    passes = 4 if getattr(task.settings, "checkpointing", False) else 3
    step = forward.get_total_flops() * passes * gpus * loop.accumulation
    tokens = task.tokens() * loop.batch_size
    shardable = task.shards and loop.optimizer == "adamw"
    found = {
        "name": recipe.name, "task": recipe.task, "gpus": gpus, "rows_at_once": rows,
        "trained_parameters": trained, "frozen_parameters": frozen,
        "ddp_gb_per_gpu": _memory(recipe, trained, frozen, kept, 1, trained),
        "fsdp_gb_per_gpu": _memory(recipe, trained, frozen, kept, gpus, _largest(task)) if shardable else None,
        "main_memory_gb": _gb(trained * FLOAT) if loop.ema and loop.ema_on_cpu else 0.0,
        "steps": loop.steps, "batch_size": loop.batch_size, "images": loop.steps * loop.batch_size,
        "tokens_per_step": tokens, "tokens": tokens * loop.steps,
        "tflop_per_step": round(step / 1e12, 3), "exaflop": round(step * loop.steps / 1e18, 3),
    }  # fmt: skip
    if hours is None:
        return found
    seconds = hours * 3600
    return found | {
        "hours": hours,
        "steps_per_second": round(loop.steps / seconds, 4),
        "images_per_second": round(found["images"] / seconds, 2),
        "tokens_per_second": round(found["tokens"] / seconds),
        "tflops_per_gpu": round(step * loop.steps / seconds / gpus / 1e12, 1),
    }


def _memory(recipe: Recipe, trained: int, frozen: int, kept: int, shards: int, gathered: int) -> dict[str, float]:
    """Gigabytes of one GPU, of which `shards` share what is trained."""
    loop = recipe.loop
    own = trained * FLOAT / shards
    copies = 0 if gathered == 0 else 1 if shards == 1 else 2
    needs = {
        "weights": own,
        "gradients": own,
        "optimizer": own * MOMENTS[loop.optimizer],
        "ema": own if loop.ema and not loop.ema_on_cpu else 0,
        "gathered": gathered * FLOAT * copies,
        "frozen": frozen * FLOAT,
        "activations": kept,
    }
    return {k: _gb(v) for k, v in needs.items()} | {"total": _gb(sum(needs.values()))}


def _largest(task: Task[Any]) -> int:
    """Values of the two largest blocks that are gathered at once, or of what lies in no block if that is more."""
    blocks = [m for m in task.model.modules() if type(m).__name__ in task.shards]
    sizes = sorted((_values(b.parameters()) for b in blocks), reverse=True)
    return max(sum(sizes[:2]), _values(task.model.parameters()) - sum(sizes))


def _imagine(modules: list[nn.Module]) -> None:
    """Puts tensors of the mode at work in the place of meta tensors; what was shared stays shared.

    Counters (buffers of one whole number) get a value, since modules ask for it.
    """
    made: dict[int, Any] = {}

    def new(tensor: torch.Tensor) -> Any:
        if tensor.ndim == 0 and not tensor.is_floating_point():
            return torch.tensor(0)
        empty = torch.empty_like(tensor, device="cpu")
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

    for part in dict.fromkeys(p for module in modules for p in module.modules()):
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in made:
                    made[id(tensor)] = (new(tensor), tensor)  # the old one too: its id must not be given to another
                tensors[name] = made[id(tensor)][0] if tensor is not None else None


def _values(parameters: Any) -> int:
    return sum({id(p): p.numel() for p in parameters}.values())


def _gb(size: float) -> float:
    return round(size / 1e9, 2)

"""What a recipe would need: parameters, memory and time, measured by a few steps on a made-up batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from limner.data.loader import Batch
from limner.precision import affordable
from limner.training.compiling import compiled
from limner.training.dice import Dice, seed_everything
from limner.training.optimizer import build_optimizer
from limner.training.parts import counting_sizes
from limner.training.recipe import Recipe
from limner.training.task import Task

TIMED_STEPS = 3
FLOAT = 4
"""Bytes of a number; master weights, gradients and moments are float32 in every precision."""

MOMENTS = {"adamw": 2, "muon": 1}
"""Numbers that an optimizer keeps for each weight (of Muon's vectors, less than 1 %, the second is left out)."""


def estimate(recipe: Recipe, build: Callable[[], Task[Any]], processes: int = 1) -> dict[str, Any]:
    """Builds the task without its data, takes a few steps on zeros, and says what the whole would cost.

    Args:
        recipe: complete.
        build: makes the task.
        processes: among which the global batch is divided.

    Returns:
        parameters, memory in MB by purpose, pictures seen, the measured rate of one process and the hours that follow
        from it (data preparation, validation and sheets not included).
    """
    loop = recipe.loop
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    seed_everything(loop.seed)
    task = build()
    task.device = device
    for module in task.frozen():
        module.to(device).eval().requires_grad_(False)
    task.model.to(device).train()
    autocast(task, recipe)
    rows = max(1, loop.batch_size // loop.accumulation // processes)
    batch = {k: v.to(device) for k, v in task.example(rows).items()}
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for m in (task.model, *task.frozen()) for p in m.parameters() if not p.requires_grad)
    copies = 2 + MOMENTS[loop.optimizer] + (1 if loop.ema and not loop.ema_on_cpu else 0)
    kept = activations(task, batch)
    seconds = _seconds(task, batch, recipe)
    images = loop.steps * loop.batch_size
    rate = rows / seconds
    return {
        "name": recipe.name,
        "task": recipe.task,
        "trained_parameters": trained,
        "frozen_parameters": frozen,
        "weights_and_optimizer_mb": round(trained * copies * FLOAT / 1e6, 1),
        "frozen_mb": round(frozen * FLOAT / 1e6, 1),
        "activations_mb": round(kept / 1e6, 1),
        "steps": loop.steps,
        "batch_size": loop.batch_size,
        "rows_at_once": rows,
        "images": images,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "images_per_second": round(rate, 2),
        "hours": round(images / (rate * processes) / 3600, 2),
    }


def autocast(task: Task[Any], recipe: Recipe) -> None:
    """Has the task's model compute in the recipe's precision, as accelerate has it in a training: its forward pass, and
    nothing else of the loss; what it returns is float32."""
    from accelerate.utils import convert_outputs_to_fp32

    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.loop.precision)
    if precision is not None and not counting_sizes():
        precision = affordable(precision, task.device)
    if precision not in (None, torch.float32):
        model: Any = task.model
        model.forward = convert_outputs_to_fp32(torch.autocast(task.device.type, precision)(model.forward))


def activations(task: Task[Any], batch: Batch) -> int:
    """Bytes that the forward pass keeps for the backward pass; each storage counted once, parameters left out."""
    known = {p.untyped_storage()._cdata for m in (task.model, *task.frozen()) for p in m.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage  # alive, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        total = loss_of(task, batch, task.model)
    del total
    return sum(storage.nbytes() for storage in kept.values())


def _seconds(task: Task[Any], batch: Batch, recipe: Recipe) -> float:
    """The quickest of a few micro-batch steps, forward, backward and update."""
    optimizer = build_optimizer(recipe.loop, task)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    model = compiled(task.model) if recipe.run.compile else task.model
    best = float("inf")
    for _ in range(1 + TIMED_STEPS):
        began = time.perf_counter()
        loss_of(task, batch, model).backward()
        nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if task.device.type != "cpu":
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def loss_of(task: Task[Any], batch: Batch, model: Any) -> torch.Tensor:
    """The loss of a batch by the task's model, compiled or not."""
    dice = Dice(0, 0, range(len(next(iter(batch.values())))), task.device)
    return task.loss(model, batch, dice).total

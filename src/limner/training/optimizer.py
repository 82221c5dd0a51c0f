"""The optimizers of the training loop: AdamW, or Muon for matrices and AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from limner.precision import affordable
from limner.training.recipe import Loop
from limner.training.task import Task

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration (Jordan et al., "Muon", 2024)."""

ITERATIONS = 5
RMS = 0.2
"""Root mean square of an update over the rate, as AdamW's usually is (arXiv 2502.16982, Section 2.2)."""

WIDE = 4
"""Matrices this many times as wide as high are iterated upon through their Gram matrix, which is then quicker."""


def build_optimizer(loop: Loop, task: Task[Any]) -> torch.optim.Optimizer:
    """The optimizer that a recipe names, over what a task trains."""
    groups = task.parameter_groups(loop.weight_decay)
    adamw: dict[str, Any] = {"lr": loop.lr, "betas": loop.betas, "eps": loop.eps}
    if loop.optimizer == "adamw":
        return torch.optim.AdamW(groups, **adamw)
    tables = {id(m.weight) for m in task.model.modules() if isinstance(m, nn.Embedding)}
    parts = [
        {**g, "orthogonal": orthogonal, "params": [p for p in g["params"] if _is_matrix(p, tables) == orthogonal]}
        for g in groups
        for orthogonal in (True, False)
    ]
    return Muon([g for g in parts if g["params"]], **adamw)


def _is_matrix(p: nn.Parameter, tables: set[int]) -> bool:
    return p.ndim >= 2 and id(p) not in tables


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (N, rows, columns) with the same singular vectors and values near 1 (0.7 to 1.2), in bfloat16 where
    the machine has it.

    Directions weaker than about a thousandth of the matrix's norm stay weak (Jordan et al., 2024).
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    half = affordable(torch.bfloat16, matrices.device)
    x = (matrices.mT if tall else matrices).to(half)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if WIDE * x.shape[1] > x.shape[2]:
        for _ in range(ITERATIONS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    else:
        x = _through_gram(x).to(half) @ x
    return x.mT if tall else x


def _through_gram(x: torch.Tensor) -> torch.Tensor:
    """What the iterations multiply matrices by. In float32: rounding makes small eigenvalues negative, and they grow by
    the square of `a` in each iteration."""
    a, b, c = COEFFICIENTS
    gram = x.float() @ x.float().mT
    eye = torch.eye(gram.shape[1], device=x.device).expand_as(gram)
    whole = eye
    for _ in range(ITERATIONS):
        factor = torch.baddbmm(a * eye + b * gram, gram, gram, alpha=c)
        whole, gram = factor @ whole, factor @ gram @ factor
    return whole


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al., 2024; scaled as in arXiv 2502.16982, Equation 4) for groups that are `orthogonal`, AdamW for
    the others (vectors, embeddings).

    A matrix's momentum is made orthogonal before it is added, so that all of its directions learn at one pace. A
    convolution's kernel counts as a matrix of channels out by all the rest.

    Args:
        groups: parameter groups, each with `orthogonal`; where true, of tensors with two dimensions or more.
        momentum: of Muon, with Nesterov's correction.
        adamw: lr, betas, eps and weight_decay of AdamW; Muon shares rate and decay.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95, **adamw: Any) -> None:
        self.momentum = momentum
        super().__init__(groups, **adamw)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; `closure` as in every optimizer of torch."""
        groups = self.param_groups
        try:
            self.param_groups = [g for g in groups if not g["orthogonal"]]
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._update_matrices(group)
        return loss

    def _update_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[torch.Size, list[tuple[nn.Parameter, torch.Tensor]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(p)
            state["step"] += 1  # AdamW wants every state to have it
            state["momentum"].lerp_(p.grad, 1 - self.momentum)
            update = _matrix(p.grad.lerp(state["momentum"], self.momentum), like=p)
            alike.setdefault(update.shape, []).append((p, update))
        for shape, pairs in alike.items():
            rate = group["lr"] * RMS * math.sqrt(max(shape))
            for (p, _), update in zip(pairs, orthogonalised(torch.stack([u for _, u in pairs])), strict=True):
                _matrix(p, like=p).mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


def _matrix(kernel: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A kernel as a matrix with columns in the order in which `like` lies in memory, so that of `like` it is a view."""
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return (kernel.movedim(1, -1) if last else kernel).flatten(1)

"""A UNet that is to read another encoder than the one it was trained under: what it reads with, solved anew."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-4
"""Keeps the maps small where the new encoder says nothing, in shares of the mean square of what it says."""


class Said(NamedTuple):
    """Conditioning of the same N rows by one encoder: tokens (N, T, C) and pooled vectors (N, P)."""

    tokens: Tensor
    pooled: Tensor


class Reread(NamedTuple):
    """How well a linear map of the new encoder says what the old one did: shares of the variance, at most 1."""

    tokens: float
    pooled: float


@torch.no_grad()
def reread(unet: Any, now: Said, was: Said) -> Reread:
    """Has a UNet read `now` as nearly as a linear map can as it read `was`, in place: keys and values of its
    cross-attentions, and the first map of SDXL's pooled vector. The sizes must be the same.

    Args:
        unet: UNet2DConditionModel.
        now, was: what the new and the old encoder say of the same rows, drawn as training draws them.
    """
    tokens, token_share = _solve(now.tokens.flatten(0, 1), was.tokens.flatten(0, 1))
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.weight.copy_(module.weight.double() @ tokens.T)
    pooled, pooled_share = _solve(_with_one(now.pooled), was.pooled)
    first, width = unet.add_embedding.linear_1, now.pooled.shape[1]
    weight = first.weight[:, :width].double()
    first.bias.add_(weight @ pooled[-1])
    first.weight[:, :width] = weight @ pooled[:-1].T
    return Reread(token_share, pooled_share)


def _solve(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """The matrix m with y ≈ x m, and the share of the variance of y that it explains."""
    x, y = x.double(), y.double()
    square = x.T @ x
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
    found = torch.linalg.solve(square + ridge, x.T @ y)
    left = (x @ found - y).square().sum() / (y - y.mean(0)).square().sum().clamp(min=1e-12)
    return found, 1 - float(left)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)

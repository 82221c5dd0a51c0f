"""E4T's weight offsets: every matrix of attention is multiplied by 1 plus one of rank one (arXiv 2302.12228,
section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
ROWS, COLUMNS = ".rows", ".columns"


def new_offsets(unet: Any) -> dict[str, Tensor]:
    """Untrained offsets, which change nothing yet: for the weight `name` (m, n) `name.rows` (m) zeros and
    `name.columns` (n) drawn from the global generator."""
    weights = dict(unet.named_parameters())
    found: dict[str, Tensor] = {}
    for processor in unet.attn_processors:
        for layer in LAYERS:
            name = f"{processor.removesuffix('.processor')}.{layer}.weight"
            rows, columns = weights[name].shape
            found |= {name + ROWS: torch.zeros(rows), name + COLUMNS: torch.randn(columns)}
    return found


def offset_changes(unet: Any, offsets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight → what the offsets add to it, W ⊙ (rows · columnsᵀ), float32; gradients reach the offsets.

    Raises:
        KeyError: offsets of another UNet.
    """
    weights = dict(unet.named_parameters())
    found = {}
    for key, rows in offsets.items():
        if key.endswith(ROWS):
            name = key.removesuffix(ROWS)
            weight = weights[name].detach().float()
            columns = offsets[name + COLUMNS].to(weight)
            found[name] = weight * (rows.to(weight)[:, None] * columns)
    return found


def call_with(unet: Any, changes: Mapping[str, Tensor], *given: Any, **named: Any) -> Any:
    """The UNet called with `changes` added to its weights; gradients reach them, and the UNet stays as it was."""
    weights = dict(unet.named_parameters())
    own = {name: (weights[name].detach().float() + change).to(weights[name].dtype) for name, change in changes.items()}
    return torch.func.functional_call(unet, own, given, named)

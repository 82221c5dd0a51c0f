"""Multi-head attention with packed projections, laid out as in published CLIP checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads·D) → (B, heads, N, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, D) → (B, N, heads·D)."""
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, *, training: bool, causal: bool = False) -> Tensor:
    """softmax(qkᵀ/√D)v of (B, heads, N, D).

    In training on a CPU it is written out, as the backward pass of `scaled_dot_product_attention` is slow there.
    """
    if not training or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


class PackedAttention(nn.Module):
    """Self-attention whose query, key and value projections lie in one matrix (keys as in `nn.MultiheadAttention`).

    Args:
        width: channels.
        heads: of equal size.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, positions: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Attends within `x` (B, N, C).

        Args:
            positions: (N, C) added to what makes queries and keys, not to what makes values.
            causal: token i sees tokens up to i.
        """
        width = x.shape[-1]
        if positions is None:
            q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            weight, bias = self.in_proj_weight, self.in_proj_bias
            q, k = F.linear(x + positions, weight[: 2 * width], bias[: 2 * width]).chunk(2, dim=-1)
            v = F.linear(x, weight[2 * width :], bias[2 * width :])
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        return self.out_proj(merge_heads(attend(q, k, v, training=self.training, causal=causal)))

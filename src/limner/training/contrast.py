"""Contrastive losses between two sets of unit features."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def pairwise_sigmoid(
    a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, match: torch.Tensor | None = None
) -> torch.Tensor:
    """Every pair judged by itself: -log sigmoid(z (exp(scale) a·b + bias)), z = 1 for matches and -1 for others.

    SigLIP (Zhai et al., arXiv 2303.15343, Equation 2).

    Args:
        a, b: (B,D), of unit length.
        scale, bias: learned scalars; the scale as a logarithm.
        match: (B,B) bool; None means the diagonal.

    Returns:
        the sum over pairs divided by B.
    """
    logits = scale.exp() * a @ b.T + bias
    match = torch.eye(len(a), dtype=torch.bool, device=a.device) if match is None else match
    return -F.logsigmoid(torch.where(match, logits, -logits)).sum() / len(a)


def softmax_pairs(
    a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, same: torch.Tensor | None = None
) -> torch.Tensor:
    """Every row of one against all of the other, both ways: CLIP (Radford et al., arXiv 2103.00020, Figure 3).

    Args:
        a, b: (B,D), of unit length.
        scale: scalar, as a logarithm.
        same: (B,B) bool; pairs off the diagonal that match too and are left out.
    """
    logits = scale.exp() * a @ b.T
    own = torch.arange(len(a), device=a.device)
    if same is not None:
        logits = logits.masked_fill(same & (own[:, None] != own), -torch.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

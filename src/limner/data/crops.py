"""Aligned face crops from pictures with known landmarks, for whole batches and with small random errors."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from limner.faces.align import template


def align_faces(
    images: torch.Tensor, landmarks: torch.Tensor, size: int, jitter: torch.Tensor | None = None
) -> torch.Tensor:
    """ArcFace-aligned crops: (B,3,H,W) pictures and (B,5,2) landmarks in their pixels → (B,3,size,size).

    The least-squares similarity of `limner.faces.align.similarity`, for a batch; beyond the picture lies black.

    Args:
        jitter: (B,4), errors of the crop as a real aligner makes them: shift right and down in shares of the side, log
            scale, rotation in radians. None crops exactly.
    """
    target = torch.as_tensor(template(size), dtype=torch.float32, device=images.device)
    t = torch.complex(target[:, 0], target[:, 1])[None]
    s = torch.complex(landmarks[..., 0].float(), landmarks[..., 1].float())
    s0, t0 = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    turn = (s0.conj() * t0).sum(1) / s0.abs().square().sum(1).clamp(min=1e-6)
    move = t.mean(1) - turn * s.mean(1)
    if jitter is not None:
        change = torch.polar(jitter[:, 2].exp(), jitter[:, 3])
        center = torch.complex(torch.tensor(size / 2), torch.tensor(size / 2)).to(turn.device)
        move = change * (move - center) + center + torch.complex(jitter[:, 0], jitter[:, 1]) * size
        turn = change * turn
    return _sample(images, 1 / turn, -move / turn, size)


def _sample(images: torch.Tensor, turn: torch.Tensor, move: torch.Tensor, size: int) -> torch.Tensor:
    """Reads `images` at source = turn · target + move, in complex pixel coordinates."""
    height, width = images.shape[2:]
    place = torch.arange(size, device=images.device) + 0.5
    grid = torch.complex(place[None, :].expand(size, size), place[:, None].expand(size, size))
    source = turn[:, None, None] * grid + move[:, None, None]
    where = torch.stack([source.real * 2 / width - 1, source.imag * 2 / height - 1], -1)
    return F.grid_sample(images, where.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)

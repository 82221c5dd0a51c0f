"""Where a picture matters more: weights of its errors in the face and around the eyes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

EYE_RADIUS, FACE_RADIUS = 0.32, 1.5
"""Of the discs around each eye, in distances between the eyes, and around the face, in those from eyes to mouth."""
HEAD_RADIUS = 2.0
"""Of the disc around the face that `outside` leaves as it is."""


def face_weights(landmarks: torch.Tensor, shape: torch.Size, face: float, eyes: float) -> torch.Tensor:
    """1 everywhere, `face` more in the face and `eyes` more around the eyes: (B,5,2) landmarks → (B,1,H,W)."""
    return 1 + face * face_mask(landmarks, shape).float() + eyes * eye_mask(landmarks, shape).float()


def place_weights(
    landmarks: torch.Tensor, places: torch.Size, factor: int, face: float, eyes: float, outside: float = 1.0
) -> torch.Tensor:
    """The mean of `face_weights` in each of the latent places (h,w), `factor` pixels a side: (B,1,h,w).

    Args:
        outside: times which places away from the head weigh; where landmarks are not known (NaN), none is away from it.
    """
    shape = torch.Size(factor * side for side in places)
    weights = F.avg_pool2d(face_weights(landmarks, shape, face, eyes), factor)
    if outside == 1:
        return weights
    known = ~landmarks.isnan().flatten(1).any(1)[:, None, None, None]
    return torch.where(known & ~face_mask(landmarks / factor, places, HEAD_RADIUS), outside * weights, weights)


def eye_mask(landmarks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Pixels near an eye: (B,5,2) landmarks → (B,1,H,W) bool; nowhere for unknown (NaN) landmarks."""
    apart = (landmarks[:, 0] - landmarks[:, 1]).norm(dim=-1)
    return _disc(landmarks[:, 0], apart * EYE_RADIUS, shape) | _disc(landmarks[:, 1], apart * EYE_RADIUS, shape)


def face_mask(landmarks: torch.Tensor, shape: torch.Size, radius: float = FACE_RADIUS) -> torch.Tensor:
    """Pixels of the face, roughly: (B,5,2) landmarks → (B,1,H,W) bool; nowhere for unknown (NaN) landmarks."""
    spread = (landmarks[:, :2].mean(1) - landmarks[:, 3:].mean(1)).norm(dim=-1)
    return _disc(landmarks.mean(1), spread * radius, shape)


def _disc(center: torch.Tensor, radius: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    y = torch.arange(shape[0], device=center.device).view(1, 1, -1, 1) + 0.5
    x = torch.arange(shape[1], device=center.device).view(1, 1, 1, -1) + 0.5
    cx, cy = (center[:, i].view(-1, 1, 1, 1) for i in (0, 1))
    return (x - cx).square() + (y - cy).square() < radius.view(-1, 1, 1, 1).square()

"""Where a picture matters more: weights of its errors in the face and around the eyes."""

from __future__ import annotations

import torch

EYE_RADIUS, FACE_RADIUS = 0.32, 1.5
"""Of the discs around each eye, in distances between the eyes, and around the face, in those from eyes to mouth."""


def face_weights(landmarks: torch.Tensor, shape: torch.Size, face: float, eyes: float) -> torch.Tensor:
    """1 everywhere, `face` more in the face and `eyes` more around the eyes: (B,5,2) landmarks → (B,1,H,W)."""
    return 1 + face * face_mask(landmarks, shape).float() + eyes * eye_mask(landmarks, shape).float()


def eye_mask(landmarks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Pixels near an eye: (B,5,2) landmarks → (B,1,H,W) bool; nowhere for unknown (NaN) landmarks."""
    apart = (landmarks[:, 0] - landmarks[:, 1]).norm(dim=-1)
    return _disc(landmarks[:, 0], apart * EYE_RADIUS, shape) | _disc(landmarks[:, 1], apart * EYE_RADIUS, shape)


def face_mask(landmarks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Pixels of the face, roughly: (B,5,2) landmarks → (B,1,H,W) bool."""
    spread = (landmarks[:, :2].mean(1) - landmarks[:, 3:].mean(1)).norm(dim=-1)
    return _disc(landmarks.mean(1), spread * FACE_RADIUS, shape)


def _disc(center: torch.Tensor, radius: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    y = torch.arange(shape[0], device=center.device).view(1, 1, -1, 1) + 0.5
    x = torch.arange(shape[1], device=center.device).view(1, 1, 1, -1) + 0.5
    cx, cy = (center[:, i].view(-1, 1, 1, 1) for i in (0, 1))
    return (x - cx).square() + (y - cy).square() < radius.view(-1, 1, 1, 1).square()

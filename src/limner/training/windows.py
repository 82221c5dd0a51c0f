"""Windows of latent pictures: a denoiser that is shown the face alone learns of it in a quarter of the time.

Training on patches and telling the denoiser where they lie is Patch Diffusion's idea (arXiv 2304.12526); how they are
told, six numbers of size, corner and target, is SDXL's (arXiv 2307.01952, Section 2.2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

AWAY = 0.1
"""How far, in shares of the picture's side, the middle of a window may lie from the middle of the face."""


class Windows(NamedTuple):
    """A window of half the sides in each latent picture of a batch.

    Attributes:
        corners: (B,2) int64, top and left in places.
        places: (H,W) of the whole.
    """

    corners: torch.Tensor
    places: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(h,w) in places."""
        return self.places[0] // 2, self.places[1] // 2

    @classmethod
    def at_faces(cls, landmarks: torch.Tensor, places: tuple[int, int], factor: int, uniform: torch.Tensor) -> Windows:
        """Windows about the faces; anywhere, where there is none.

        Args:
            landmarks: (B,5,2) in pixels, NaN where they are not known.
            places: (H,W) of the latents, `factor` pixels a side each.
            uniform: (B,2) in [0, 1): how far the window is from where the face is.
        """
        whole = torch.tensor(places, device=landmarks.device)
        room = whole - whole // 2
        middle = landmarks.mean(1).flip(1) / factor + (2 * uniform - 1) * AWAY * whole
        near = (middle - whole / 4).round().clamp(torch.zeros_like(room), room)
        return cls(torch.where(near.isnan(), (uniform * (room + 1)).floor(), near).long(), places)

    def cut(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B,C,H,W) → (B,C,h,w)."""
        h, w = self.size
        corners = self.corners.tolist()
        return torch.stack([p[:, y : y + h, x : x + w] for p, (y, x) in zip(pictures, corners, strict=True)])

    def lay(self, windows: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """`pictures` (B,C,H,W) with `windows` (B,C,h,w) in their places."""
        (height, width), (h, w) = self.places, self.size
        laid = []
        for own, picture, (y, x) in zip(windows, pictures, self.corners.tolist(), strict=True):
            border = (x, width - w - x, y, height - h - y)
            inside = F.pad(torch.ones_like(own[:1], dtype=torch.bool), border)
            laid.append(torch.where(inside, F.pad(own, border), picture))
        return torch.stack(laid)

    def told(self, time_ids: torch.Tensor, factor: int) -> torch.Tensor:
        """SDXL's size numbers (B,6) of the windows, from those of the whole pictures: the corner counts in pixels from
        that of the whole, and the target is what is seen."""
        size = factor * torch.tensor(self.size, device=time_ids.device).expand(len(time_ids), 2)
        corner = time_ids[:, 2:4] + factor * self.corners.to(time_ids.dtype)
        return torch.cat([time_ids[:, :2], corner, size.to(time_ids.dtype)], 1)

    def rows(self, chosen: torch.Tensor) -> Windows:
        """Those of some rows."""
        return Windows(self.corners[chosen], self.places)

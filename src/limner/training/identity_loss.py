"""Whether a recogniser sees the same person in the picture that a denoiser has in mind."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from limner.data.crops import align_faces
from limner.data.loader import Batch
from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.face_vit import FaceViT
from limner.training.parts import counting_sizes


class IdentityLoss:
    """1 - cosine between the identity vectors of the predicted clean picture and of the real one.

    As in PuLID (arXiv 2404.16022, Equation 6), but against the very picture, so that a perfect prediction costs
    nothing, and from the one step of denoising that is trained anyway. The recogniser is the one that conditions; those
    that score must not be used here.

    Args:
        schedule: of the noise.
        decode: latents (B,C,h,w) → pictures (B,3,H,W) in [0, 1], differentiable.
        face: the recogniser, frozen.
        share: of the rows on which it is computed, since decoding and recognising cost more than denoising.
        noise: largest ratio of noise to signal at which a prediction shows a face at all.
        dtype: in which decoder and recogniser compute where that is harmless (autocast).
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        decode: Callable[[torch.Tensor], torch.Tensor],
        face: FaceViT,
        share: float,
        noise: float,
        dtype: torch.dtype,
    ) -> None:
        self.schedule, self.decode, self.face = schedule, decode, face
        self.share, self.noise, self.dtype = share, noise, dtype

    def __call__(
        self, noisy: torch.Tensor, prediction: torch.Tensor, t: torch.Tensor, batch: Batch, uniform: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of every row, 0 where it is not computed, and where it is: (B,) each.

        Args:
            noisy, prediction, t: what the denoiser read and said.
            batch: with `landmarks`, `own_class_token` and `recognisable`.
            uniform: (B,) in [0, 1), which choose the rows.
        """
        clear = self.schedule.snr(t) > self.noise**-2
        known = ~batch["landmarks"].isnan().flatten(1).any(1)
        chosen = clear & known & batch["recognisable"] & (uniform < self.share)
        loss = torch.zeros(len(t), device=t.device)
        rows = torch.arange(math.ceil(self.share * len(t))) if counting_sizes() else chosen.nonzero()[:, 0]
        if len(rows):
            latents = self.schedule.clean(noisy[rows], prediction[rows].float(), t[rows])
            with torch.autocast(t.device.type, self.dtype, enabled=self.dtype != torch.float32):
                faces = align_faces(self.decode(latents), batch["landmarks"][rows], self.face.config.image_size)
                seen = self.face(faces.clamp(0, 1)).class_token
            loss = loss.index_put((rows,), 1 - (seen.float() * batch["own_class_token"][rows]).sum(1))
        return loss, chosen

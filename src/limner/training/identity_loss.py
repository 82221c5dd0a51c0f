"""Whether a recogniser sees the same person in the picture that a denoiser has in mind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from limner.config import Config
from limner.data.crops import align_faces
from limner.data.loader import Batch
from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.face_vit import FaceViT
from limner.training.metrics import mean_interval
from limner.training.parts import counting_sizes
from limner.training.task import Losses


@dataclass(frozen=True, kw_only=True)
class IdentityLossSettings(Config):
    """Settings of trainings that can have this loss.

    Attributes:
        identity_weight: of `IdentityLoss`; 0 leaves it out.
        identity_share, identity_noise: its `share` and `noise`.
        judge: folder of the recogniser that looks at the pictures (what the recogniser task wrote). It may be the one
            that conditions, never one that scores.
    """

    identity_weight: float = 0.0
    identity_share: float = 0.25
    identity_noise: float = 3.0
    judge: str = ""

    def validate(self) -> None:
        self.check(self.identity_weight >= 0, "identity_weight", "0 or more")
        self.check(0 < self.identity_share <= 1, "identity_share", "above 0 to 1")
        self.check(self.identity_noise > 0, "identity_noise", "above 0")


class RowLosses(NamedTuple):
    """What the rows of a batch cost.

    Attributes:
        noise: the denoising loss (B,).
        unlike: the identity loss (B,), 0 where it was not computed, or None.
        judged: where it was (B,), or None.
    """

    noise: torch.Tensor
    unlike: torch.Tensor | None = None
    judged: torch.Tensor | None = None

    def losses(self, settings: IdentityLossSettings) -> Losses:
        """The mean of both, weighted."""
        noise = self.noise.mean()
        if self.unlike is None or self.judged is None:
            return Losses(noise, {})
        total = noise + settings.identity_weight / settings.identity_share * self.unlike.mean()
        unlike = self.unlike.sum() / self.judged.sum().clamp(min=1)
        return Losses(total, {"noise": noise.detach(), "unlike": unlike.detach()})

    @staticmethod
    def metrics(batches: list[RowLosses]) -> dict[str, float]:
        """`loss`, that of noise alone, with its interval; `unlike` where the identity loss was computed."""
        found = mean_interval("loss", torch.cat([b.noise for b in batches]).float().cpu().numpy())
        unlike = [b.unlike[b.judged].cpu().numpy() for b in batches if b.unlike is not None and b.judged is not None]
        values = np.concatenate(unlike) if unlike else np.empty(0)
        return {**found, "unlike": float(values.mean())} if len(values) else found


class IdentityLoss:
    """1 - cosine between the identity vectors of the predicted clean picture and of the real one.

    As in PuLID (arXiv 2404.16022, Equation 6), but against the very picture, so that a perfect prediction costs
    nothing, and from the one step of denoising that is trained anyway. The recogniser is the one that conditions; those
    that score must not be used here.

    Args:
        schedule: of the noise.
        decode: latents (B,C,h,w) → pictures (B,3,H,W) in [0, 1], differentiable.
        face: the recogniser, frozen, in evaluation mode.
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

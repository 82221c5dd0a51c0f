"""InstructPix2Pix: the photo itself is edited, its latents stand beside the noisy ones (arXiv 2211.09800)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from limner.encoders.rivals import RivalEncoder
from limner.methods.base import demand_faces, face_images, quality_weights
from limner.methods.rival import Rival, probe_unet
from limner.methods.steering import Steering
from limner.methods.tuning import TuningSettings, place_faces
from limner.types import Face, Identity

PHOTO_GUIDANCE = 1.5
"""s_I of section 3.2.1 at full strength."""
ALONE = TuningSettings(placements=1, framing=(0.6, 0.6))
"""How a face without its photo is placed."""


class InstructPix2Pix(Rival):
    """What is kept of the person is the photo, so that pose, frame and surroundings are kept with them. The prompt is
    the base's own: `S*` is read as "person".

    Identity: `photo` (C, h, w), the photo's latents. **It is the photo**: whoever has it can see it.

    Args:
        encoder, zero_empty, model: see `Rival`.
        unet: reads noisy and photo latents.
        vae: the base's.
        size: side of the square pictures in pixels.
    """

    name: ClassVar[str] = "instruct-pix2pix"
    version: ClassVar[int] = 1
    names_person: ClassVar[bool] = False
    keeps_photo: ClassVar[bool] = True

    def __init__(
        self, encoder: RivalEncoder, unet: Any, vae: Any, size: int, *, zero_empty: bool = False, model: str = ""
    ) -> None:
        super().__init__(encoder, zero_empty=zero_empty, model=model)
        self.unet, self.vae, self.size = unet, vae, size

    @torch.no_grad()
    def enroll(self, faces: Sequence[Face]) -> Identity:
        """See `Method.enroll`; of several pictures the best is taken. Of a face whose photo is not at hand, the aligned
        face is put onto a grey picture."""
        weights = quality_weights(demand_faces(faces))
        best = int(np.argmax(weights))
        photo = self._photo(faces[best])
        like, config = next(self.vae.parameters()), self.vae.config
        latents = self.vae.encode(photo.to(like) * 2 - 1).latent_dist.mode().float()
        latents = (latents - (getattr(config, "shift_factor", None) or 0)) * config.scaling_factor
        return self.made({"photo": latents[0]}, faces, taken=best)

    def probe(self) -> Tensor:
        return probe_unet(self.unet, self.encoder.towers)

    def words(self, person: Mapping[str, Tensor]) -> None:
        return None

    def steer(self, person: Mapping[str, Tensor] | None, strength: float) -> Steering:
        if person is None:
            return Steering()
        return Steering(photo=person["photo"][None].float(), photo_guidance=PHOTO_GUIDANCE * strength)

    def _photo(self, face: Face) -> Tensor:
        """(1, 3, size, size) in [0, 1]: the largest square of the photo around the face."""
        if face.photo is None:
            return place_faces(face_images([face]), self.size, ALONE)[0]
        height, width = face.photo.shape[:2]
        side = min(height, width)
        x0, y0, x1, y1 = face.box
        left = int(min(max((x0 + x1) / 2 - side / 2, 0), width - side))
        top = int(min(max((y0 + y1) / 2 - side / 2, 0), height - side))
        square = torch.from_numpy(np.ascontiguousarray(face.photo[top : top + side, left : left + side]))
        pixels = square.permute(2, 0, 1)[None].float() / 255
        return F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True).clamp(0, 1)

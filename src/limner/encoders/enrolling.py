"""What every encoder with frozen face encoders shares: seeing faces, enrolling a person, recalling an identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from limner.encoders.face_vit import FaceTokens, FaceViT, check_images, fuse_faces, mix_faces
from limner.encoders.published import demand_layout
from limner.errors import ConfigError


class EnrollingEncoder(nn.Module):
    """Base of FaceCLIP's and FaceT5's encoders: a face is *enrolled* once, then painted with any number of prompts.

    The face encoders stay in evaluation mode whatever `train` says: they are frozen in every training of the whole.
    """

    _null: tuple[Any, list[FaceTokens]] | None = None

    @property
    def faces(self) -> list[FaceViT]:
        """The face encoders."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.faces[0].pos_embed.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.faces[0].pos_embed.device

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for face in self.faces:
            face.eval()
        return self

    @torch.no_grad()
    @apply_forward_hook
    def enroll(self, images: Tensor, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
        """What is kept of one person: for face encoder i, `class_token.i` (D) and `patch_tokens.i` (N, W).

        Args:
            images: (R, 3, H, W) in [0, 1]: aligned faces of the same person.
            weights: of the R pictures; equal if None. How they are fused: `fuse_faces`.
        """
        kept = {}
        for i, tokens in enumerate(self._see(check_images(images))):
            fused = fuse_faces(tokens, weights)
            kept[f"class_token.{i}"], kept[f"patch_tokens.{i}"] = fused.class_token[0], fused.patch_tokens[0]
        return kept

    @torch.no_grad()
    def null_faces(self) -> list[FaceTokens]:
        """The all-zero picture as every face encoder sees it, batch 1; kept until their weights change or move."""
        state = tuple(
            (t.data_ptr(), t._version, t.device, t.dtype) for f in self.faces for t in (*f.parameters(), *f.buffers())
        )
        if self._null is None or self._null[0] != state:
            size = self.faces[0].config.image_size
            self._null = (state, self._see(torch.zeros(1, 3, size, size)))
        return self._null[1]

    def free(self) -> None:
        """Gives up the memory of the weights for good; sizes stay known, but nothing can be encoded any more."""
        self._null = None
        self.to("meta")

    def _person(self, identity: Mapping[str, Tensor] | None, strength: float) -> list[FaceTokens]:
        """What each face encoder says of an enrolled person at a strength: 0 (or None) is the null face."""
        if not 0 <= strength <= 1:
            raise ConfigError(f"strength is {strength!r}; allowed: 0 to 1.")
        if identity is None or strength == 0:
            return self.null_faces()
        person = self._recall(identity)
        if strength == 1:
            return person
        return [mix_faces(n, p, strength) for n, p in zip(self.null_faces(), person, strict=True)]

    def _see(self, images: Tensor) -> list[FaceTokens]:
        if self.device.type == "meta":
            raise ConfigError("This encoder has no weights: its memory was freed.", "Load the model again.")
        return [face(images.to(self.device)) for face in self.faces]

    def _recall(self, identity: Mapping[str, Tensor]) -> list[FaceTokens]:
        expected: dict[str, tuple[int, ...]] = {}
        for i, face in enumerate(self.faces):
            expected[f"class_token.{i}"] = (face.config.output,)
            expected[f"patch_tokens.{i}"] = (face.config.grid**2, face.config.width)
        demand_layout(expected, {k: tuple(identity[k].shape) for k in identity if k in expected}, "Identity")
        ready = {k: identity[k][None].to(self.device, self.dtype) for k in expected}
        return [FaceTokens(ready[f"class_token.{i}"], ready[f"patch_tokens.{i}"]) for i in range(len(self.faces))]

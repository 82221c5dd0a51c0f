"""One branch of FaceCLIP: a CLIP text tower, a face encoder, and the fusion module that joins what they say."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limner.encoders.config import BranchConfig, FaceViTConfig, FuserConfig
from limner.encoders.face_vit import FaceTokens, FaceViT
from limner.encoders.fuser import Fuser
from limner.encoders.text_tower import TextTower


class Encoded(NamedTuple):
    """What FaceCLIP says of B pairs of face and prompt.

    Attributes:
        tokens: (B, T, C), the fused text stream: what the denoiser attends to.
        pooled: (B, P), the text tower's end-of-text row after the final LayerNorm, before any projection.
        text_feature: (B, F), that row projected, of unit length.
        face_feature: (B, D), the face encoder's class token, of unit length.
    """

    tokens: Tensor
    pooled: Tensor
    text_feature: Tensor
    face_feature: Tensor


class FusingModule(nn.Module):
    """What reads a face into text, whatever the text tower: projections and fuser, under their published keys.

    Attributes:
        face_encoder: built by the subclass before `_build_fusion`.
    """

    face_encoder: FaceViT

    def _build_fusion(self, width: int, face: FaceViTConfig, fuser: FuserConfig, *, project_text: bool = True) -> None:
        """Adds the parts; `width` is the text tower's. Without `project_text` its tokens and positions enter the fuser
        as they are, which leaves no keys."""
        self.face_patch_proj = nn.Linear(face.width, width)
        self.face_pos_proj = nn.Linear(face.width, width)
        self.text_embed_proj = nn.Linear(width, width) if project_text else nn.Identity()
        self.text_pos_proj = nn.Linear(width, width) if project_text else nn.Identity()
        self.fuser = Fuser(width, fuser)

    def fuse(self, text: Tensor, positions: Tensor, faces: FaceTokens) -> Tensor:
        """The fused text stream (B, T, C) of text tokens (B, T, C) with positions (T, C), and faces (batch B or 1)."""
        return self.fuser(
            self.face_patch_proj(faces.patch_tokens),
            self.text_embed_proj(text),
            self.face_pos_proj(self.face_encoder.pos_embed[0]),
            self.text_pos_proj(positions),
        )


class FaceCLIPBranch(FusingModule, TextTower):
    """A text tower that reads a face (arXiv 2504.14202, section 3); attribute names are the published keys.

    It *is* a text tower, with additions, because that is how the published keys are laid out.
    """

    def __init__(self, config: BranchConfig) -> None:
        super().__init__(config.text)
        width, face = config.text.width, config.face
        self.config = config
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))
        self.face_encoder = FaceViT(face)
        self.proj1 = nn.Linear(face.output, width)
        self._build_fusion(width, face, config.fuser)

    def freeze_towers(self) -> None:
        """Leaves only projections, fuser, scale and bias to be trained, as in multi-modal alignment."""
        self.requires_grad_(False)
        parts = (self.proj1, self.face_patch_proj, self.face_pos_proj, self.text_embed_proj, self.text_pos_proj)
        for part in (*parts, self.fuser.encoder, self.logit_scale, self.logit_bias):
            part.requires_grad_(True)

    def forward(self, ids: Tensor, faces: FaceTokens, amount: Tensor, position: int) -> Encoded:  # type: ignore[override]
        """Encodes B pairs.

        Args:
            ids: (B, T) token ids.
            faces: batch B, or 1 for the same face with all prompts.
            amount: (B,) in [0, 1]: how much of the embedding at `position` the projected class token replaces.
            position: of the identity word.
        """
        text = self.encode_text(ids, self.proj1(faces.class_token), position, amount)
        fused = self.fuse(text.tokens, self.positional_embedding[: ids.shape[1]], faces)
        return Encoded(fused, text.pooled, text.feature, faces.class_token.expand(len(ids), -1))

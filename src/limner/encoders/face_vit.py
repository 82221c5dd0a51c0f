"""The face encoder: a vision transformer for recognition that also hands out its patch tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.encoders.attention import attend, merge_heads, split_heads
from limner.encoders.config import FaceViTConfig
from limner.errors import ConfigError, ImageError

RANGE_SLACK = 1e-4
"""How far resampling in float32 may carry a value out of [0, 1]."""


class FaceTokens(NamedTuple):
    """What the face encoder says of B faces.

    Attributes:
        class_token: (B, D), of unit length: who it is.
        patch_tokens: (B, N, W): what is seen where, row by row.
    """

    class_token: Tensor
    patch_tokens: Tensor


def fuse_faces(faces: FaceTokens, weights: Sequence[float] | None = None) -> FaceTokens:
    """Several pictures of one person as one face, batch 1: the weighted mean of every token, at its usual length.

    A mean of vectors that disagree is shorter than they are. Each mean is therefore scaled to the weighted mean of
    their lengths: 1 for the class token.

    Args:
        faces: batch R.
        weights: of the R pictures, not negative, not all zero; equal if None.
    """
    count = len(faces.class_token)
    share = torch.ones(count) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    if share.shape != (count,) or not (share >= 0).all() or not 0 < share.sum() < float("inf"):
        raise ConfigError(f"weights must be {count} numbers, none negative and not all zero; got {weights!r}.")
    if count == 1:
        return faces
    share = share / share.sum()

    def fuse(x: Tensor) -> Tensor:
        w = share.to(x.device).view(-1, *[1] * (x.ndim - 1))
        mean = (w * x.float()).sum(0, keepdim=True)
        length = (w * x.float().norm(dim=-1, keepdim=True)).sum(0, keepdim=True)
        return (F.normalize(mean, dim=-1) * length).to(x.dtype)

    return FaceTokens(fuse(faces.class_token), fuse(faces.patch_tokens))


def mix_faces(null: FaceTokens, person: FaceTokens, strength: float) -> FaceTokens:
    """The person's class token with patch tokens on the line from the null face (0) to the person (1)."""
    patches = strength * person.patch_tokens + (1 - strength) * null.patch_tokens
    return FaceTokens(person.class_token, patches)


def place_faces(null: FaceTokens, faces: FaceTokens, rows: Tensor) -> FaceTokens:
    """Batch B with `faces` in the `rows` (B booleans) that are true, and the null face in the others."""
    placed = []
    for empty, own in zip(null, faces, strict=True):
        full = empty.expand(len(rows), *empty.shape[1:]).clone()
        full[rows.to(full.device)] = own
        placed.append(full)
    return FaceTokens(*placed)


def check_images(images: Tensor) -> Tensor:
    """`images`, if they are (B, 3, H, W) floating point in [0, 1].

    Raises:
        ImageError: another shape or type, values outside [0, 1] or not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ImageError(f"Faces are expected as (B, 3, H, W); got {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise ImageError(
            f"Faces are expected as floating point in [0, 1]; got {images.dtype}.", "Convert, and divide by 255."
        )
    low, high = images.min().item(), images.max().item()
    if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):
        raise ImageError(
            f"Faces are expected with values in [0, 1]; got {low:.4g} to {high:.4g}.",
            "Give plain RGB: no mean and deviation, no [-1, 1], no 0 to 255.",
        )
    return images


class FaceViT(nn.Module):
    """Aligned faces → `FaceTokens`. Pre-norm transformer without a class token of its own; the identity vector is
    computed from all patch tokens: Linear, BatchNorm, Linear, BatchNorm.

    Keys are those of the published recognisers of the ArcFace family.
    """

    def __init__(self, config: FaceViTConfig) -> None:
        super().__init__()
        self.config = config
        tokens, width = config.grid**2, config.width
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = _Patches(width, config.patch_size)
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(tokens * width, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, config.output, bias=False),
            nn.BatchNorm1d(config.output, eps=2e-5),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> FaceTokens:
        """Encodes (B, 3, H, W) in [0, 1] of any size; resized bilinearly to `image_size`, no mean or deviation."""
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False)
        x = self.patch_embed(images.to(self.pos_embed)) + self.pos_embed
        if self.training and self.config.mask_ratio > 0:
            hidden = torch.rand(x.shape[:2], device=x.device) < self.config.mask_ratio
            x = torch.where(hidden[..., None], self.mask_token.to(x.dtype), x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return FaceTokens(F.normalize(self.feature(x.flatten(1)), dim=-1), x)


class _Patches(nn.Module):
    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, size, size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width, bias=False), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(t, self.heads) for t in self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1))
        x = x + self.attn["proj"](merge_heads(attend(q, k, v, training=self.training)))
        return x + self.mlp["fc2"](F.relu6(self.mlp["fc1"](self.norm2(x))))

"""Frozen towers put together: trained parts → a FaceCLIP encoder, and the features that trainings read from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from limner.data.cache import Column, Columns, Table, cache_root
from limner.data.crops import align_faces
from limner.data.tables import Report, captions_of, to_images
from limner.encoders.branch import FaceCLIPBranch
from limner.encoders.config import BranchConfig, FaceCLIPConfig, FuserConfig
from limner.encoders.face_vit import FaceViT
from limner.encoders.faceclip import FaceCLIPEncoder
from limner.errors import ConfigError, WeightsUnavailable
from limner.training.parts import face_of, text_of
from limner.training.words import caption_ids

BRANCHES = ("face_clip_l", "face_clip_g")
"""Names of the branches of an encoder of two, as published; an encoder of one has no name."""


def assemble(face: Path, clips: tuple[Path, ...], fuser: FuserConfig) -> FaceCLIPEncoder:
    """A FaceCLIP encoder over one trained face encoder and one trained CLIP per branch; what joins them is untrained.

    Args:
        face: folder that the recogniser task wrote.
        clips: folders that the clip task wrote, in order of the branches; their tokenizers must agree.

    Raises:
        ConfigError: tokenizers that differ, or sizes that do not fit each other.
        WeightsUnavailable, CorruptData, WeightsMismatch: see `limner.encoders.parts`.
    """
    vit = face_of(face)
    loaded = [text_of(c) for c in clips]
    tokenizer = loaded[0][1]
    if any(t.get_vocab() != tokenizer.get_vocab() for _, t in loaded[1:]):
        raise ConfigError(f"The CLIPs {', '.join(map(str, clips))} have different tokenizers.", "Train them alike.")
    config = FaceCLIPConfig(
        branches=tuple(BranchConfig(vit.config, tower.text_config, fuser) for tower, _ in loaded),
        names=BRANCHES[: len(clips)] if len(clips) > 1 else ("",),
        shared_face=True,
    )
    encoder = FaceCLIPEncoder(config, tokenizer)
    encoder.faces[0].load_state_dict(vit.state_dict())
    for branch, (tower, _) in zip(branches_of(encoder), loaded, strict=True):
        branch.load_state_dict({**branch.state_dict(), **tower.state_dict()})  # a tower is a part of a branch
    return encoder


def load_image_tower(clip: Path) -> nn.Module:
    """The picture tower of a folder that the clip task wrote; pictures in [-1, 1], features not normalised."""
    from transformers import CLIPVisionModelWithProjection
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading a file in milliseconds
    folder = clip / "image"
    if not (folder / "config.json").is_file():
        raise WeightsUnavailable(f"{folder} does not exist.", "Train the CLIP first (recipes/mini-clip.yaml).")
    return CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True).eval()


def branches_of(encoder: FaceCLIPEncoder) -> list[FaceCLIPBranch]:
    """The branches, as what they are."""
    return [cast(FaceCLIPBranch, branch) for branch in encoder.branches]


def fingerprint(module: nn.Module) -> str:
    """sha256 (hex) of a module's weights; names the features that it computes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def feature_table(
    name: str,
    pictures: Table,
    module: nn.Module,
    columns: dict[str, Column],
    compute: Callable[[range], dict[str, torch.Tensor]],
    report: Report,
    spec: dict[str, Any] | None = None,
) -> Table:
    """What a frozen module says of every picture of a table, computed once.

    Args:
        name: of the cache.
        module: whose weights decide the content.
        columns: of the features.
        compute: a block of rows → the features, on any device.
        spec: what else decides the content.
    """
    facts = {"pictures": pictures.digest, "weights": fingerprint(module), **(spec or {})}
    table = Table(cache_root(), name, facts, len(pictures), columns)
    missing = table.missing()

    def numbers(block: range) -> Columns:
        found = compute(block)
        return {k: v.float().cpu().numpy().astype(columns[k].dtype) for k, v in found.items()}

    if missing:
        with report(name, sum(map(len, missing))) as advance:
            table.fill(numbers, advance)
    return table


def face_features(vit: FaceViT, pictures: Table, device: torch.device, report: Report) -> Table:
    """Columns `class_token` (D) float32 and `patch_tokens` (N,W) float16 of the aligned face of every picture, for
    what it is worth where landmarks are not known."""
    vit = vit.to(device).eval()
    sizes = vit.config
    columns = {
        "class_token": Column("f4", (sizes.output,)),
        "patch_tokens": Column("f2", (sizes.grid**2, sizes.width)),
    }

    def compute(block: range) -> dict[str, torch.Tensor]:
        rows = slice(block.start, block.stop)
        images = to_images(torch.from_numpy(pictures["image"][rows])).to(device)
        landmarks = torch.from_numpy(pictures["landmarks"][rows]).to(device)
        return vit(align_faces(images, landmarks, sizes.image_size))._asdict()

    return feature_table("faces", pictures, vit, columns, compute, report)


def clip_features(clip: Path, pictures: Table, device: torch.device, report: Report) -> Table:
    """Columns `image`, `caption` and `prompt` (P) float32, of unit length, by the CLIP in a folder."""
    tower, tokenizer = text_of(clip)
    towers = nn.ModuleDict({"text": tower, "image": load_image_tower(clip)}).to(device)
    text = tower.text_config
    columns = {k: Column("f4", (text.projection,)) for k in ("image", "caption", "prompt")}
    ids = {
        k: torch.from_numpy(caption_ids(tokenizer, captions_of(pictures, k), text.context))
        for k in ("caption", "prompt")
    }

    def compute(block: range) -> dict[str, torch.Tensor]:
        rows = slice(block.start, block.stop)
        images = to_images(torch.from_numpy(pictures["image"][rows])).to(device) * 2 - 1
        found = {k: towers["text"](v[rows].to(device)).feature for k, v in ids.items()}
        return {**found, "image": F.normalize(towers["image"](pixel_values=images).image_embeds, dim=-1)}

    return feature_table("clip", pictures, towers, columns, compute, report)


def both_ids(encoder: FaceCLIPEncoder, pictures: Table, column: str) -> list[np.ndarray]:
    """Token ids of a column of sentences, plain and behind the identity prefix."""
    context, sentences = encoder.config.context, captions_of(pictures, column)
    return [caption_ids(encoder.tokenizer, sentences, context, prefixed=p) for p in (False, True)]

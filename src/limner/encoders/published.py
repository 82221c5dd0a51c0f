"""The published FaceCLIP files: what they are called, and what must be in them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from limner.encoders.config import PRESETS, BranchConfig, FaceCLIPConfig, FaceViTConfig
from limner.errors import CorruptData, WeightsMismatch
from limner.registry import WeightFile, register_weights

Shapes = Mapping[str, tuple[int, ...]]

MERGES = register_weights(
    WeightFile(
        name="clip-merges",
        repo="openai/clip-vit-large-patch14",
        filename="merges.txt",
        license="MIT",
        size=525_000,
        variable="LIMNER_CLIP_MERGES",
    )
)
FACECLIP_ENCODER = register_weights(
    WeightFile(
        name="faceclip-encoder",
        repo="ByteDance/FaceCLIP",
        filename="model/face_clip_encoder.pt",
        license="CC-BY-NC-4.0",
        commercial=False,
        size=6_300_000_000,
        variable="LIMNER_FACECLIP_ENCODER",
    )
)
FACECLIP_UNET = register_weights(
    WeightFile(
        name="faceclip-unet",
        repo="ByteDance/FaceCLIP",
        filename="model/unet.pt",
        license="CC-BY-NC-4.0",
        commercial=False,
        size=5_100_000_000,
        variable="LIMNER_FACECLIP_UNET",
    )
)
FACET5_ENCODER = register_weights(
    WeightFile(
        name="facet5-encoder",
        repo="ByteDance/FaceCLIP",
        filename="model/face_t5_encoder.pt",
        license="CC-BY-NC-4.0",
        commercial=False,
        size=12_500_000_000,
        variable="LIMNER_FACET5_ENCODER",
    )
)
FACET5_TRANSFORMER = register_weights(
    WeightFile(
        name="facet5-transformer",
        repo="ByteDance/FaceCLIP",
        filename="model/dit.pt",
        license="CC-BY-NC-4.0",
        commercial=False,
        size=23_800_000_000,
        variable="LIMNER_FACET5_TRANSFORMER",
    )
)
T5_TOKENIZER = register_weights(
    WeightFile(
        name="t5-tokenizer",
        repo="black-forest-labs/FLUX.1-dev",
        filename="tokenizer_2/tokenizer.json",
        license="Apache-2.0",
        size=2_420_000,
        variable="LIMNER_T5_TOKENIZER",
    )
)

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""What sets the UNet of stable-diffusion-xl-base-1.0 apart from the defaults of diffusers' UNet2DConditionModel."""

_ROOTS = {
    "positional_embedding", "text_projection", "logit_scale", "logit_bias", "transformer", "token_embedding",
    "ln_final", "face_encoder", "proj1", "face_patch_proj", "face_pos_proj", "text_embed_proj", "text_pos_proj",
    "fuser",
}  # fmt: skip


def strip_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` without the `model.` that a file may carry in front of every key."""
    prefixed = bool(state) and all(key.startswith("model.") for key in state)
    return {key.removeprefix("model.") if prefixed else key: value for key, value in state.items()}


def infer_config(shapes: Shapes) -> FaceCLIPConfig:
    """The sizes of the branches that `shapes` (keys without `model.`) describe.

    Numbers of heads and activations leave no trace in shapes; they are taken from the preset of the same width.

    Raises:
        WeightsMismatch: no branch at all, or one of a width that no preset has.
    """
    names = dict.fromkeys(name for key in shapes if (name := _branch_name(key)) is not None)
    if not names:
        raise WeightsMismatch(
            f"Keys of a FaceCLIP encoder are expected (token_embedding.weight, …); got {_listing(shapes)}.",
            "Is this the encoder's file, and not the UNet's?",
        )
    branches = {
        name: _infer_branch({k.removeprefix(f"{name}."): s for k, s in shapes.items() if _branch_name(k) == name})
        for name in names
    }
    order = sorted(branches, key=lambda name: branches[name].text.width)
    return FaceCLIPConfig(tuple(branches[name] for name in order), tuple(order))


def layout_differences(expected: Shapes, given: Shapes) -> list[str]:
    """One line for each key that is missing, unexpected, or of another shape."""
    lines = [f"missing: {k} {list(expected[k])}" for k in expected if k not in given]
    lines += [f"unexpected: {k} {list(given[k])}" for k in given if k not in expected]
    lines += [
        f"wrong shape: {k}: expected {list(expected[k])}, got {list(given[k])}"
        for k in expected
        if k in given and tuple(expected[k]) != tuple(given[k])
    ]
    return lines


def demand_layout(expected: Shapes, given: Shapes, what: str) -> None:
    """Raises WeightsMismatch naming every differing key, unless the layouts are equal."""
    lines = layout_differences(expected, given)
    if lines:
        raise WeightsMismatch(
            f"{what}: {len(lines)} differences from the {len(expected)} keys expected. Nothing was loaded.\n  "
            + "\n  ".join(lines),
            "Is the file complete, and of this model?",
        )


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key → shape; WeightsMismatch where a value is no tensor."""
    strangers = [key for key, value in state.items() if not hasattr(value, "shape")]
    if strangers:
        raise WeightsMismatch(f"Tensors are expected under all keys; these are none: {_listing(strangers)}.")
    return {key: tuple(value.shape) for key, value in state.items()}


def read_key_list(path: str | Path) -> dict[str, tuple[int, ...]]:
    """A JSON object key → shape, without the `model.` prefix.

    Raises:
        CorruptData: not such a file.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        return {str(k): tuple(int(n) for n in shape) for k, shape in strip_prefix(values).items()}
    except (OSError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as e:
        raise CorruptData(f"{path} is no JSON object of keys and shapes ({e}).") from e


def _branch_name(key: str) -> str | None:
    """What stands in front of a branch's own key; None for a key that belongs to no branch."""
    first, _, rest = key.partition(".")
    if first in _ROOTS:
        return ""
    return first if rest.partition(".")[0] in _ROOTS else None


def _infer_branch(shapes: Shapes) -> BranchConfig:
    known = [branch for config in PRESETS.values() for branch in config.branches]

    def size(key: str, axis: int, default: int) -> int:
        shape = shapes.get(key, ())
        return shape[axis] if len(shape) > axis else default

    def count(pattern: str, default: int) -> int:
        found = [int(m[1]) for key in shapes if (m := re.match(pattern, key))]
        return max(found) + 1 if found else default

    width = size("ln_final.weight", 0, size("token_embedding.weight", 1, 0))
    base = next((b for b in known if b.text.width == width), None)
    if base is None:
        raise WeightsMismatch(
            f"A text width of {', '.join(str(w) for w in sorted({b.text.width for b in known}))} is expected; "
            f"got {width}.",
            "Pass the encoder's configuration: heads and activations cannot be told from shapes.",
        )
    face_width = size("face_encoder.norm.weight", 0, base.face.width)
    face = next((b.face for b in known if b.face.width == face_width), base.face)
    text = base.text
    return BranchConfig(
        face=_infer_face(face, size, count),
        text=dataclasses.replace(
            text,
            depth=count(r"transformer\.resblocks\.(\d+)\.", text.depth),
            context=size("positional_embedding", 0, text.context),
            vocabulary=size("token_embedding.weight", 0, text.vocabulary),
            projection=size("text_projection", 1, text.projection),
        ),
        fuser=dataclasses.replace(
            base.fuser,
            depth=count(r"fuser\.encoder\.fusion_layers\.(\d+)\.", base.fuser.depth),
            feedforward=size("fuser.encoder.layers.0.linear1.weight", 0, base.fuser.feedforward),
        ),
    )


def _infer_face(base: FaceViTConfig, size: Any, count: Any) -> FaceViTConfig:
    patch = size("face_encoder.patch_embed.proj.weight", 2, base.patch_size)
    grid = math.isqrt(size("face_encoder.pos_embed", 1, base.grid**2))
    return dataclasses.replace(
        base,
        patch_size=patch,
        image_size=base.image_size if base.image_size // patch == grid else grid * patch,
        depth=count(r"face_encoder\.blocks\.(\d+)\.", base.depth),
        output=size("face_encoder.feature.2.weight", 0, base.output),
    )


def _listing(keys: Iterable[str]) -> str:
    return ", ".join(keys) or "nothing"

"""The published layout of FaceT5's encoder, and ours: which key is which (arXiv 2504.14202, its released code).

A published file holds two encoders. `encoder_1` is the text model of FLUX's CLIP-L as transformers names its keys;
`encoder_2` has the face encoder, the fuser, the table of text positions, and a T5 (`t5_encoder`) with names of its own.
Ours keeps the CLIP as a `TextTower`, whose attention has one matrix for queries, keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limner.errors import WeightsMismatch

CLIP, REST = "encoder_1.text_model.", "encoder_2."
PROJECTION = "clip.text_projection"
"""What CLIP's text model has not, and ours needs for a text feature: the identity matrix stands for it."""
STALE = (f"{CLIP}embeddings.position_ids",)
"""Counters that older versions of transformers wrote; they say nothing."""

_T5 = (
    (r"layer\.0\.SelfAttention\.relative_attention_bias", "self_attention_layer.self_attention.pe_encoding."
     "relative_attention_bias"),
    (r"layer\.0\.SelfAttention\.([qkv])\.", r"self_attention_layer.self_attention.W\1."),
    (r"layer\.0\.SelfAttention\.o\.", "self_attention_layer.self_attention.o."),
    (r"layer\.0\.layer_norm", "self_attention_layer.layer_norm"),
    (r"layer\.1\.DenseReluDense\.(wi_[01])", r"ff_layer.act.\1"),
    (r"layer\.1\.DenseReluDense\.wo", "ff_layer.wo"),
    (r"layer\.1\.layer_norm", "ff_layer.layer_norm"),
)  # fmt: skip
"""Within a block of the T5: transformers' name → published name."""

_CLIP = (
    (r"^token_embedding", "embeddings.token_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final", "final_layer_norm"),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.out_proj", ".self_attn.out_proj"),
    (r"\.mlp\.c_fc", ".mlp.fc1"),
    (r"\.mlp\.c_proj", ".mlp.fc2"),
)
"""OpenCLIP's name → transformers' name, but for the packed projections."""

_PACKED = re.compile(r"^(.*)\.attn\.in_proj_(weight|bias)$")


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under published keys. Nothing is copied; parts of packed matrices are views of them."""
    published: dict[str, Tensor] = {}
    for key, value in state.items():
        if key != PROJECTION:
            names = published_names(key)
            published |= dict(
                zip(names, value.chunk(len(names)), strict=True) if len(names) > 1 else [(names[0], value)]
            )
    return published


def from_published(published: Mapping[str, Tensor], ours: Mapping[str, Any]) -> dict[str, Tensor]:
    """A published state dict under our keys. Nothing is copied, but CLIP's projections, which are packed.

    Args:
        published: with every key of `to_published(ours)`.
        ours: our state dict, for its keys and shapes; it may be on the meta device.

    Raises:
        WeightsMismatch: projections that do not belong together.
    """
    state: dict[str, Tensor] = {}
    for key in ours:
        if key == PROJECTION:
            continue
        parts = [published[name] for name in published_names(key)]
        if len({part.dtype for part in parts}) > 1:
            raise WeightsMismatch(f"{', '.join(published_names(key))} are of different types of numbers.")
        state[key] = parts[0] if len(parts) == 1 else torch.cat(parts)
    like = ours[PROJECTION]
    state[PROJECTION] = torch.eye(*like.shape, dtype=state["clip.ln_final.weight"].dtype)
    return state


def published_names(key: str) -> list[str]:
    """The published key of one of ours; three of them, in order, for packed projections of queries, keys and values."""
    first, _, rest = key.partition(".")
    if first == "clip":
        packed = _PACKED.match(rest)
        if packed is None:
            return [CLIP + _renamed(rest, _CLIP)]
        layer = _renamed(f"{packed[1]}.", _CLIP)
        return [f"{CLIP}{layer}self_attn.{which}_proj.{packed[2]}" for which in "qkv"]
    return [f"{REST}t5_encoder.{_renamed(rest, _T5)}" if first == "t5" else REST + key]


def without_stale(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The items of a published file that mean something."""
    return ((key, value) for key, value in state.items() if key not in STALE)


def _renamed(key: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in table:
        key = re.sub(pattern, name, key)
    return key

"""Published checkpoints → safetensors: checked against the layout that the code expects, never held twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.encoders.checkpoint import read_checkpoint, write_safetensors
from limner.encoders.config import preset
from limner.encoders.faceclip import FILE, FaceCLIPEncoder, clip_tokenizer, from_published
from limner.encoders.published import (
    SDXL_UNET,
    Shapes,
    demand_layout,
    read_key_list,
    shapes_of,
    strip_prefix,
)
from limner.errors import OutputConflict, WeightsUnavailable
from limner.types import write_atomic

UNET_FOLDER, UNET_FILE = "unet", "diffusion_pytorch_model.safetensors"


def published_layout() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the published encoder (L and bigG), without allocating it."""
    with torch.device("meta"):
        return shapes_of(FaceCLIPEncoder(preset("sdxl")).to_published())


def check_keys(path: str | Path) -> dict[str, Any]:
    """Compares a JSON list of keys and shapes with `published_layout`; returns counts.

    Raises:
        CorruptData: no such list.
        WeightsMismatch: names every key that is missing, unexpected or of another shape.
    """
    expected = published_layout()
    demand_layout(expected, read_key_list(path), str(path))
    return {"keys": len(expected), "values": count_values(expected), "equal": True}


def import_encoder(file: str | Path, out: str | Path, merges: str | Path | None = None) -> dict[str, Any]:
    """Converts a published encoder to what `FaceCLIPEncoder.from_pretrained(out)` reads; returns a summary.

    Tensors go from the mapped source straight to the new file, in their own type.

    Args:
        file: `face_clip_encoder.pt`.
        out: folder; must not hold a model yet.
        merges: CLIP's byte-pair merges; None takes them from the Hugging Face cache or hub if it can.

    Raises:
        OutputConflict, StorageError: the folder is taken or cannot be written.
        UnsafeCheckpoint, WeightsMismatch: see `read_checkpoint` and `from_published`.
    """
    target = _vacant(Path(out) / FILE)
    try:
        tokenizer = clip_tokenizer(merges)
    except WeightsUnavailable:
        if merges is not None:
            raise
        tokenizer = None
    encoder = from_published(read_checkpoint(file), tokenizer)
    encoder.save_pretrained(out)
    summary = _summary(target, encoder.to_published())
    return summary | {"shared_face": encoder.config.shared_face, "tokenizer": tokenizer is not None}


def import_unet(file: str | Path, out: str | Path) -> dict[str, Any]:
    """Converts a published SDXL UNet to diffusers' layout in `out/unet`; returns a summary. Errors as above."""
    from diffusers import UNet2DConditionModel

    target = _vacant(Path(out) / UNET_FOLDER / UNET_FILE)
    state: dict[str, Tensor] = strip_prefix(read_checkpoint(file))
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**SDXL_UNET)
    demand_layout(shapes_of(unet.state_dict()), shapes_of(state), "SDXL UNet")
    write_safetensors(target, state, {"format": "pt"})
    write_atomic(target.with_name("config.json"), unet.to_json_string().encode())
    return _summary(target, state)


def count_values(shapes: Shapes) -> int:
    """Numbers in all tensors of these shapes."""
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def _vacant(path: Path) -> Path:
    if path.exists():
        raise OutputConflict(f"{path} is already there; nothing was overwritten.", "Choose another folder for --out.")
    return path


def _summary(path: Path, state: dict[str, Tensor]) -> dict[str, Any]:
    kinds = sorted({str(v.dtype).removeprefix("torch.") for v in state.values() if v.is_floating_point()})
    return {
        "file": str(path),
        "keys": len(state),
        "values": count_values(shapes_of(state)),
        "types": kinds,
        "bytes": path.stat().st_size,
    }


def describe(summary: dict[str, Any]) -> str:
    """One line for people."""
    size = f"{summary['bytes'] / 1e9:.2f} GB" if summary["bytes"] > 1e8 else f"{summary['bytes'] / 1e6:.1f} MB"
    kinds = ", ".join(summary["types"])
    return f"{summary['file']}: {summary['keys']} keys, {summary['values']:,} values, {kinds}, {size}"

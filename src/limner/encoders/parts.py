"""A face encoder or a text tower by itself, as training leaves it: safetensors with the config inside, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limner.encoders.checkpoint import write_safetensors
from limner.encoders.config import FaceViTConfig, TextTowerConfig
from limner.encoders.face_vit import FaceViT
from limner.encoders.text_tower import TextTower
from limner.encoders.tokenizer import PromptTokenizer
from limner.errors import CorruptData, WeightsMismatch, WeightsUnavailable

FACE, TEXT, TOKENIZER = "face.safetensors", "text.safetensors", "tokenizer"
METADATA = "limner.part"


def save_face(folder: Path, face: FaceViT) -> None:
    """Writes face.safetensors into a folder."""
    save_part(folder / FACE, face, face.config.to_dict())


def load_face(folder: Path) -> FaceViT:
    """The face encoder that `save_face` wrote, in evaluation mode.

    Raises:
        WeightsUnavailable: not there.
        CorruptData, WeightsMismatch: damaged, or of another shape than its config says.
    """
    values, state = load_part(folder / FACE)
    return fill_part(FaceViT(FaceViTConfig.from_dict(values)), state, folder / FACE)


def save_text(folder: Path, tower: TextTower, tokenizer: Any) -> None:
    """Writes text.safetensors and tokenizer/ into a folder."""
    save_part(folder / TEXT, tower, tower.text_config.to_dict())
    tokenizer.save_pretrained(folder / TOKENIZER)


def load_text(folder: Path) -> tuple[TextTower, PromptTokenizer]:
    """The text tower that `save_text` wrote, in evaluation mode, and its tokenizer.

    Raises:
        WeightsUnavailable, CorruptData, WeightsMismatch: as `load_face`.
    """
    values, state = load_part(folder / TEXT)
    tower = fill_part(TextTower(TextTowerConfig.from_dict(values)), state, folder / TEXT)
    return tower, PromptTokenizer.from_pretrained(folder / TOKENIZER)


def save_part(path: Path, module: nn.Module, values: dict[str, Any]) -> None:
    """Writes a module's weights, with the values of its config inside."""
    write_safetensors(path, module.state_dict(), {METADATA: json.dumps(values)})


def load_part(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The values and the weights that `save_part` wrote.

    Raises:
        WeightsUnavailable: not there.
        CorruptData: damaged, or written by something else.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsUnavailable(f"{path} does not exist.", "Train it first; recipes/ has a recipe for it.")
    try:
        with safe_open(str(path), framework="pt") as f:
            values = json.loads((f.metadata() or {})[METADATA])
        return values, load_file(path)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as e:
        raise CorruptData(f"{path} is damaged or was not written by Limner ({e!r}).", "Train it again.") from e


def fill_part(module: Any, state: dict[str, torch.Tensor], path: Path) -> Any:
    """The module with these weights, in evaluation mode.

    Raises:
        WeightsMismatch: they are another module's.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as e:
        raise WeightsMismatch(f"{path} does not fit its own config: {e}.") from e
    return module.eval()

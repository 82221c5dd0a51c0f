"""A face encoder or a text tower by itself, as training leaves it: safetensors with the config inside, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limner.encoders.checkpoint import fill_part, load_part, save_part
from limner.encoders.config import FaceViTConfig, TextTowerConfig
from limner.encoders.face_vit import FaceViT
from limner.encoders.faceclip import FILE, FaceCLIPEncoder
from limner.encoders.text_tower import TextTower
from limner.encoders.tokenizer import PromptTokenizer

FACE, TEXT, TOKENIZER = "face.safetensors", "text.safetensors", "tokenizer"


def save_face(folder: Path, face: FaceViT) -> None:
    """Writes face.safetensors into a folder."""
    save_part(folder / FACE, face, face.config.to_dict())


def load_face(folder: Path) -> FaceViT:
    """The face encoder that `save_face` wrote, or that of a FaceCLIP encoder of Limner's, in evaluation mode.

    Raises:
        WeightsUnavailable: neither is there.
        CorruptData, WeightsMismatch: damaged, or of another shape than its config says.
    """
    if (folder / FILE).is_file() and not (folder / FACE).is_file():
        return FaceCLIPEncoder.from_pretrained(folder).faces[0]
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

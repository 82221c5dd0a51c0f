"""Scorers with random weights: real classes at tiny size, as the trainings would export them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from limner.encoders.config import TextTowerConfig
from limner.encoders.parts import save_text
from limner.encoders.scorer import ConvFace, ConvFaceConfig, Reader, ReaderConfig, save_reader, save_recogniser
from limner.training.tasks.attributes import ATTRIBUTES
from limner.training.tasks.clip import Clip, ImageTowerConfig
from limner.training.words import make_tokenizer


def write_scorers(folder: Path) -> dict[str, str]:
    """Writes a recogniser, a CLIP and a reader; the folders of each."""
    places = {name: folder / name for name in ("recogniser", "clip", "attributes")}
    for place in places.values():
        place.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_recogniser(places["recogniser"], ConvFace(ConvFaceConfig(32, (8, 12), 1, 16)).eval())
        words = tuple(tuple(w) for w in ATTRIBUTES.values())
        save_reader(places["attributes"], Reader(ReaderConfig(32, (8, 12), 1, tuple(ATTRIBUTES), words)).eval())
        tokenizer = make_tokenizer("world", 24)
        text = TextTowerConfig(width=16, depth=1, heads=2, context=24, projection=8, vocabulary=49408)
        text = dataclasses.replace(text, vocabulary=len(tokenizer))
        clip = Clip(text, ImageTowerConfig(patch_size=16, width=16, depth=1, heads=2), 32, "softmax").eval()
        save_text(places["clip"], clip.text, tokenizer)
        clip.image.save_pretrained(places["clip"] / "image")
    return {name: str(place) for name, place in places.items()}

"""What the training of gaze locations reads: pictures, sentences about them, and where the eyes are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from limner.data.cache import Table
from limner.data.loader import Batch, Source
from limner.data.tables import Report, captions_of, demand
from limner.encoders.pseudo_words import NEUTRAL, PLACEHOLDER, Layout
from limner.encoders.tokenizer import encode_prompts
from limner.encoders.word_towers import WordTowers
from limner.errors import ConfigError
from limner.training.denoising import Conditioner, Targets


class TowersConditioner(Conditioner):
    """The text towers of any base; a person called S* is "person".

    Args:
        towers: of the base.
        zero_empty: the base paints with zeros where nothing is said, not with the embeddings of an empty prompt.
    """

    def __init__(self, towers: WordTowers, zero_empty: bool = False) -> None:
        self.towers, self.zero_empty = towers, zero_empty
        self.context, self.width, self.pooled = towers.context, towers.width, towers.pooled
        self.modules = [towers]

    def prepare(self, pictures: list[Table], device: torch.device, report: Report) -> list[Any]:
        for table in pictures:
            demand(table, captions=True)
        return [{k: self._ids(captions_of(t, k)) for k in ("caption", "prompt")} for t in pictures]

    def columns(self, prepared: Any, rows: np.ndarray, step: int) -> dict[str, np.ndarray]:
        return {f"{k}_{i}": ids[rows] for k, towers in prepared.items() for i, ids in enumerate(towers)}

    def example(self, rows: int) -> Batch:
        empty = self._ids([""] * rows)
        return {f"{k}_{i}": torch.from_numpy(ids) for k in ("caption", "prompt") for i, ids in enumerate(empty)}

    def encode(self, batch: Batch, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = [
            torch.where(prompt[:, None], batch[f"prompt_{i}"], batch[f"caption_{i}"])
            for i in range(len(self.towers.widths))
        ]
        return self._encode(chosen)

    def _encode_null(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, pooled = self._encode([torch.from_numpy(ids).to(device) for ids in self._ids([""])])
        return (torch.zeros_like(embeds), torch.zeros_like(pooled)) if self.zero_empty else (embeds, pooled)

    def export(self, folder: Path) -> dict[str, Any]:
        return {"words": self.towers}

    def _ids(self, sentences: list[str]) -> list[np.ndarray]:
        said = [s.replace(PLACEHOLDER, NEUTRAL) for s in sentences]
        return [encode_prompts(tokenizer, said, self.context).numpy() for tokenizer in self.towers.tokenizers]

    def _encode(self, ids: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        said = self.towers([Layout(one, {}) for one in ids], {})
        none = said.tokens.new_zeros(len(said.tokens), 0)
        return said.tokens, none if said.pooled is None else said.pooled


class GazeRows(Source):
    """Pictures whose eyes are known and lie in the picture: latents, size conditioning, eyes (2, 2) in shares of the
    picture, and what the conditioner needs.

    Raises:
        ConfigError: there are none.
    """

    def __init__(self, targets: Targets, conditioner: Conditioner, prepared: Any) -> None:
        self.targets, self.conditioner, self.prepared = targets, conditioner, prepared
        self.pictures = pictures = targets.pictures
        height, width = pictures["image"].shape[1:3]
        self.eyes = np.asarray(pictures["landmarks"][:, :2], np.float32) / np.array([width, height], np.float32)
        inside = ((self.eyes > 0) & (self.eyes < 1)).all((1, 2))  # comparisons with NaN are false
        apart = np.linalg.norm(self.eyes[:, 0] - self.eyes[:, 1], axis=-1) > 0.01
        self.rows = np.flatnonzero(inside & apart)
        if not len(self.rows):
            raise ConfigError("No picture has landmarks, by which its eyes are known.", "See docs/training.md.")

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        own = self.rows[rows]
        found = {**self.targets.columns(own), "eyes": self.eyes[own]}
        found |= self.conditioner.columns(self.prepared, own, step)
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}

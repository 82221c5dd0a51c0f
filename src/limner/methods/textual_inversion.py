"""Textual Inversion: a person is a word whose embedding is learnt, and nothing else (arXiv 2208.01618, section 3)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from limner.methods.tuned import Tuned
from limner.methods.tuning import Lesson, TuningSettings, tune


class TextualInversion(Tuned):
    """v* = argmin of the diffusion loss over the word's embedding (Equation 2), begun at "person".

    Identity: `words.i` (k, width) for tower i.
    """

    name: ClassVar[str] = "textual-inversion"
    version: ClassVar[int] = 1
    defaults: ClassVar[TuningSettings] = TuningSettings(steps=600, batch_size=8, lr=5e-3, weight_decay=0.0)

    def learn(self, lesson: Lesson, images: Tensor, checkpoint: Path | None) -> dict[str, Tensor]:
        words = [w.requires_grad_() for w in self.neutral(self.settings.words)]
        named = {f"words.{i}": w for i, w in enumerate(words)}
        tune(
            named, lambda step: lesson.loss(step, words, self.studio.unet), self.settings, self.studio.report,
            checkpoint,
        )  # fmt: skip
        return named

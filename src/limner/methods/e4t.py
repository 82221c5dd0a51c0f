"""E4T: an encoder's word near "person" and weight offsets, learnt for all faces, then tuned for a few steps on one
(arXiv 2302.12228)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from limner.diffusion.offsets import call_with, offset_changes
from limner.encoders.rivals import RivalEncoder
from limner.errors import ConfigError, WeightsMismatch
from limner.methods.steering import Steering
from limner.methods.tuned import Tuned
from limner.methods.tuning import Lesson, Studio, TuningSettings, tune

WORD_SCALE = 0.1
"""s in: word = "person" + s·E(face); keeps the word near the domain's."""


def near_person(neutral: Sequence[Tensor], offsets: Sequence[Tensor]) -> list[Tensor]:
    """The words of an encoder that says how they differ from "person", for each tower."""
    return [n.to(o) + WORD_SCALE * o for n, o in zip(neutral, offsets, strict=True)]


class E4T(Tuned):
    """Enrolling encodes the face into a word, then tunes that word and the offsets together for some ten steps.
    Nobody in particular is painted by the base as it is.

    Identity: `words.i` (1, width) for tower i; `offset.<weight>.rows`, `.columns` (see `limner.diffusion.offsets`).

    Args:
        encoder: with words and offsets, as its training exports it.
    """

    name: ClassVar[str] = "e4t"
    version: ClassVar[int] = 1
    defaults: ClassVar[TuningSettings] = TuningSettings(
        steps=15, batch_size=16, lr=5e-3, weight_decay=0.0, regularisation=3e-4, checkpoint_every=5
    )

    def __init__(
        self, encoder: RivalEncoder, studio: Studio, settings: TuningSettings | None = None, **options: Any
    ) -> None:
        if encoder.words is None or not encoder.offsets:
            raise ConfigError("E4T needs its trained encoder and weight offsets.", "Train it: recipes/rivals/e4t.yaml.")
        super().__init__(encoder, studio, settings, **options)

    def learn(self, lesson: Lesson, images: Tensor, checkpoint: Path | None) -> dict[str, Tensor]:
        encoder, unet = self.encoder, self.studio.unet
        assert encoder.words is not None
        neutral = self.neutral(1)
        seen = encoder.words.enroll(images)
        first = [seen[f"words.{i}"].float() for i in range(len(neutral))]
        words = [w.detach().clone().requires_grad_() for w in near_person(neutral, first)]
        own = {
            f"offset.{k}": v.to(unet.device, torch.float32).clone().requires_grad_() for k, v in encoder.offsets.items()
        }
        named = {**{f"words.{i}": w for i, w in enumerate(words)}, **own}

        def loss(step: int) -> Tensor:
            changes = offset_changes(unet, {k.removeprefix("offset."): v for k, v in own.items()})
            value = lesson.loss(step, words, lambda *given, **rest: call_with(unet, changes, *given, **rest))
            away = sum(((w - n) / WORD_SCALE).square().sum() for w, n in zip(words, neutral, strict=True))
            return value + self.settings.regularisation * away

        tune(named, loss, self.settings, self.studio.report, checkpoint)
        return named

    def probe(self) -> Tensor:
        """Also what the encoder says of an all-zero picture."""
        assert self.encoder.words is not None
        said = [w[0].float().cpu() for w in self.encoder.words.null_words()]
        return torch.cat([super().probe(), *(w / w.norm().clamp(min=1e-6) for w in said)])

    def steer(self, person: Mapping[str, Tensor] | None, strength: float) -> Steering:
        if person is None:
            return Steering()
        offsets = {k.removeprefix("offset."): v for k, v in person.items() if k.startswith("offset.")}
        try:
            changes = offset_changes(self.unet, offsets)
        except (KeyError, RuntimeError) as e:
            raise WeightsMismatch(f"The identity's offsets do not fit this UNet ({e}).", "Enrol the face again.") from e
        return Steering(change={k: strength * v for k, v in changes.items()})

"""A base by itself: prompts, and nobody in particular. The control of every comparison, and the painter of named people
in self-augmented data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from limner.encoders.word_towers import Said, WordTowers, zero_empty
from limner.errors import ConfigError
from limner.methods.base import Method, demand_prompts, demand_strength, each_once
from limner.types import Conditioning, Face, Identity


class PlainText(Method):
    """The conditioning that the base was trained with.

    Args:
        towers: the base's text towers.
        zero_empty: the embeddings of an empty negative prompt are zeros, as SDXL was trained.
    """

    name: ClassVar[str] = "text"
    version: ClassVar[int] = 1

    def __init__(self, towers: WordTowers, *, zero_empty: bool = False) -> None:
        self.towers, self.zero_empty = towers, zero_empty

    def enroll(self, faces: Sequence[Face]) -> Identity:
        """Raises ConfigError: text knows no faces."""
        raise ConfigError("A base by itself cannot enrol a face.", "Take a model of a method; see `limner models`.")

    @torch.no_grad()
    def condition(
        self,
        identity: Identity | None,
        prompts: Sequence[str],
        *,
        negative_prompts: Sequence[str] | None = None,
        strength: float = 1.0,
    ) -> Conditioning:
        """See `Method.condition`; ConfigError for an identity."""
        if identity is not None:
            raise ConfigError("A base by itself paints nobody in particular; an identity was given.")
        positive, negative = demand_prompts(prompts, negative_prompts)
        demand_strength(strength)
        given, without = each_once(positive, self._say), each_once(negative, self._say)
        if self.zero_empty:
            without = zero_empty(without, negative)
        return Conditioning(
            prompt_embeds=given.tokens,
            pooled=given.pooled,
            negative_prompt_embeds=without.tokens,
            negative_pooled=without.pooled,
        )

    def _say(self, prompts: list[str]) -> Said:
        return self.towers(self.towers.lay_out(prompts, {}), {})

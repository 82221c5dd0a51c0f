"""A base by itself, as one more pipeline: what it paints for a prompt without anybody's face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from limner.encoders.word_towers import WordTowers as Towers
from limner.methods.plain_text import PlainText
from limner.pipelines.dreamidentity import base_parts, zeros_for_empty
from limner.pipelines.slim import base_towers
from limner.pipelines.words import WordsPipeline


class TextPipeline(WordsPipeline):
    """Prompt → picture.

    Args:
        vae, unet, scheduler, words: of the base; `words` are its text towers.
        default_steps, default_guidance, world, force_zeros_for_empty_prompt: as in `DreamIdentityPipeline`.
    """

    def __init__(
        self,
        vae: Any,
        unet: Any,
        scheduler: Any,
        words: Towers,
        default_steps: int = 30,
        default_guidance: float = 7.5,
        world: str = "",
        force_zeros_for_empty_prompt: bool = False,
    ) -> None:
        super().__init__(
            components={"vae": vae, "unet": unet, "scheduler": scheduler, "words": words},
            facts={
                "default_steps": default_steps, "default_guidance": default_guidance, "world": world,
                "force_zeros_for_empty_prompt": force_zeros_for_empty_prompt,
            },
        )  # fmt: skip
        self._demand_width()

    @property
    def towers(self) -> Towers:
        return self.words

    @property
    def method(self) -> PlainText:
        """The base's own conditioning."""
        return PlainText(self.towers, zero_empty=bool(self.config.force_zeros_for_empty_prompt))


def open_base(base: str | Path, dtype: torch.dtype = torch.float32) -> TextPipeline:
    """The base in a folder (SD 2.1-base, SDXL in diffusers' layout, one that `limner train` made, or that of a model
    over one), on the CPU, sampled by DDIM.

    Raises:
        WeightsUnavailable, CorruptData, WeightsMismatch: something is not there, or damaged.
    """
    base = Path(base)
    towers = base_towers(base, dtype)
    vae, unet, scheduler = base_parts(base, dtype)
    pipe = TextPipeline(vae, unet, scheduler, towers, force_zeros_for_empty_prompt=zeros_for_empty(base, towers))
    pipe.set_progress_bar_config(disable=True)
    return pipe

"""What all pipelines share that speak a base's own language, with or without words for people."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from limner.encoders.pseudo_words import plain_text
from limner.encoders.word_towers import WordTowers
from limner.errors import WeightsMismatch
from limner.pipelines.portrait import PortraitPipeline
from limner.types import Conditioning


class WordsPipeline(PortraitPipeline):
    """A base of diffusers' SD 2.1 or SDXL shape under its own text towers (`towers`)."""

    @property
    def towers(self) -> WordTowers:
        """The base's text towers."""
        raise NotImplementedError

    @property
    def tokenizer(self) -> Any:
        """Of the prompts: that of the first tower."""
        return self.towers.tokenizers[0]

    def plain_prompt(self, prompt: str) -> str:
        """The prompt without weights and placeholders: the words that the tokenizer has to know."""
        return plain_text(prompt)

    def condition(self, *args: Any, **kwargs: Any) -> Conditioning:
        """See `PortraitPipeline.condition`. For bases without pooled conditioning (SD 2.1) the pooled embeddings have
        no channels: SDXL's sampling code wants a tensor, and such a UNet does not read it."""
        made = super().condition(*args, **kwargs)
        if made.pooled is not None:
            return made
        none = made.prompt_embeds.new_zeros(len(made.prompt_embeds), 0)
        return dataclasses.replace(made, pooled=none, negative_pooled=none)

    def _get_add_time_ids(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """SDXL's size conditioning; zeros, which nobody reads, for a UNet without it."""
        if self.unet.config.addition_embed_type is None:
            return torch.zeros(1, 6)
        return super()._get_add_time_ids(*args, **kwargs)

    def _demand_width(self) -> None:
        reads = self.unet.config.cross_attention_dim
        if reads != self.towers.width:
            raise WeightsMismatch(
                f"The UNet reads embeddings of {reads} channels; the text towers give {self.towers.width}.",
                "Take the text towers of the same base.",
            )

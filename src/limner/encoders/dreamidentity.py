"""DreamIdentity's whole conditioning: the M² ID encoder and the base's own text towers (arXiv 2307.00300)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from limner.encoders.m2id import M2IDEncoder
from limner.encoders.pseudo_words import PLACEHOLDER
from limner.encoders.word_towers import Said, WordTowers
from limner.errors import ConfigError


class FaceWordsEncoder(ModelMixin):
    """A face becomes words once (`enroll`); prompts that use them are encoded any number of times (`encode`).

    A diffusers model as far as pipelines need one: they save, load, move and offload it. The towers are frozen.

    Args:
        m2id: face → words.
        towers: of the base; their word embeddings must have the widths of the words.

    Raises:
        WeightsMismatch: they have not.
    """

    def __init__(self, m2id: M2IDEncoder, towers: WordTowers) -> None:
        super().__init__()
        towers.demand_widths(m2id.config.widths)
        self.m2id, self.towers = m2id, towers
        towers.requires_grad_(False)
        self.train(False)

    @property
    def tokenizer(self) -> Any:
        """Of the first tower."""
        return self.towers.tokenizers[0]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.towers.train(False)
        return self

    @torch.no_grad()
    @apply_forward_hook
    def enroll(self, images: Tensor, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
        """See `M2IDEncoder.enroll`."""
        self._demand_weights()
        return self.m2id.enroll(images, weights)

    @torch.no_grad()
    @apply_forward_hook
    def null_words(self) -> list[Tensor]:
        """See `M2IDEncoder.null_words`."""
        self._demand_weights()
        return self.m2id.null_words()

    @torch.no_grad()
    @apply_forward_hook
    def encode(
        self,
        prompts: Sequence[str],
        people: Mapping[str, Sequence[Tensor]],
        *,
        strength: float = 1.0,
        demanded: bool = False,
    ) -> Said:
        """Encodes B prompts in which placeholders stand for people.

        Args:
            prompts: B sentences.
            people: placeholder → the person's words for each tower, (k, width). Empty: `S*` is nobody in particular.
            strength: s in [0, 1]: every word is s·person + (1 − s)·the embedding of "person".
            demanded: every prompt must name one of the people.

        Raises:
            PromptError: see `limner.encoders.pseudo_words.lay_out`.
            WeightsMismatch: words of other widths than the towers'.
        """
        self._demand_weights()
        counts = {p: len(words[0]) for p, words in people.items()} or {PLACEHOLDER: self.m2id.config.words}
        layouts = self.towers.lay_out(prompts, counts, demanded=demanded)
        return self.towers(layouts, {p: self._mixed(words, strength) for p, words in people.items()})

    def free(self) -> None:
        """Gives up the memory of the weights for good; sizes stay known, but nothing can be encoded any more."""
        nn.Module.to(self, "meta")

    def save_pretrained(self, path: str | Path) -> None:  # type: ignore[override]
        """Writes the M² ID encoder (model.safetensors) and towers/ into a folder."""
        self.m2id.save_pretrained(path)
        self.towers.save(Path(path) / "towers")

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, *, torch_dtype: torch.dtype | None = None, **_: Any
    ) -> FaceWordsEncoder:
        """Reads what `save_pretrained` wrote.

        Raises:
            WeightsUnavailable, CorruptData, WeightsMismatch: see `M2IDEncoder.from_pretrained`, `WordTowers.load`.
        """
        dtype = torch_dtype or torch.float32
        m2id = M2IDEncoder.from_pretrained(path, torch_dtype=dtype)
        return cls(m2id, WordTowers.load(Path(path) / "towers", dtype))

    def _mixed(self, words: Sequence[Tensor], strength: float) -> list[Tensor]:
        self.towers.demand_widths([w.shape[-1] for w in words])
        neutral = self.towers.neutral_words(len(words[0]))
        return [strength * w.to(n) + (1 - strength) * n for w, n in zip(words, neutral, strict=True)]

    def _demand_weights(self) -> None:
        if next(self.parameters()).device.type == "meta":
            raise ConfigError("This encoder has no weights: its memory was freed.", "Load the model again.")

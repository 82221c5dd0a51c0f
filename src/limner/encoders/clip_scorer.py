"""How well a picture fits a sentence, by a CLIP: Limner's own or one of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.encoders.parts import TEXT, load_text
from limner.encoders.scales import ClipBackbone, load_backbone
from limner.encoders.tokenizer import encode_prompts
from limner.errors import ConfigError, WeightsUnavailable


class ClipScorer(nn.Module):
    """Cosines between pictures and sentences.

    Args:
        image: picture tower with its preprocessing.
        text: a `TextTower`, or a CLIPTextModelWithProjection of transformers.
        tokenizer: of the text tower.
    """

    def __init__(self, image: ClipBackbone, text: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.image, self.text, self.tokenizer = image, text, tokenizer
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, sentences: Sequence[str]) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of any size and B sentences → cosines (B,) float32."""
        seen = F.normalize(self.image(images, ())[-1].float(), dim=-1)
        distinct = list(dict.fromkeys(sentences))
        said = self._features(distinct)
        return (seen * said[[distinct.index(s) for s in sentences]]).sum(-1)

    def _features(self, sentences: list[str]) -> Tensor:
        text: Any = self.text
        own = hasattr(text, "text_config")
        context = text.text_config.context if own else text.config.max_position_embeddings
        ids = encode_prompts(self.tokenizer, sentences, context).to(next(text.parameters()).device)
        features = text(ids).feature if own else text(input_ids=ids).text_embeds
        return F.normalize(features.float(), dim=-1)

    @classmethod
    def load(cls, folder: str | Path) -> ClipScorer:
        """What the clip task wrote, or a CLIP of transformers with tokenizer and preprocessor_config.json.

        Raises:
            WeightsUnavailable: neither is there.
            ConfigError: a folder with something else.
            CorruptData, WeightsMismatch: damaged.
        """
        folder = Path(folder)
        if not (folder / TEXT).is_file() and not (folder / "config.json").is_file():
            raise WeightsUnavailable(f"{folder} holds no CLIP.", "Train one (recipes/mini-clip.yaml), or copy one.")
        image = load_backbone(folder)
        if not isinstance(image, ClipBackbone):
            raise ConfigError(f"{folder} holds a face recogniser; a CLIP is expected.")
        if (folder / TEXT).is_file():
            return cls(image, *load_text(folder))
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        text = CLIPTextModelWithProjection.from_pretrained(folder, local_files_only=True)
        return cls(image, text, CLIPTokenizer.from_pretrained(folder, local_files_only=True))

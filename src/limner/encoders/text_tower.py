"""The CLIP text transformer, with a way to put a vector of one's own in the place of a token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.encoders.attention import PackedAttention
from limner.encoders.config import TextTowerConfig


class TextOutput(NamedTuple):
    """What a text tower says of B prompts.

    Attributes:
        tokens: (B, T, C) after the final LayerNorm.
        pooled: (B, C), the row of `tokens` at the end-of-text token.
        feature: (B, P), `pooled` projected and of unit length; comparable with picture features.
    """

    tokens: Tensor
    pooled: Tensor
    feature: Tensor


class TextTower(nn.Module):
    """CLIP's text transformer: pre-norm, causal; keys as in published CLIP checkpoints of the OpenCLIP layout.

    The end-of-text token is the one with the highest id in a row.
    """

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.text_config = config
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context, width))
        self.transformer = _Transformer(config)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.projection))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def encode_text(
        self, ids: Tensor, replacement: Tensor | None = None, position: int = 0, amount: Tensor | None = None
    ) -> TextOutput:
        """Encodes token ids (B, T).

        Args:
            replacement: (B, C) takes the place of the embedding at `position`, before positions are added.
            position: index into the T tokens.
            amount: (B,) in [0, 1]: how much of the embedding is replaced; None means all.
        """
        x = self.token_embedding(ids)
        if replacement is not None:
            share = 1.0 if amount is None else amount.to(x.dtype)[:, None]
            mixed = share * replacement + (1 - share) * x[:, position]
            x = torch.cat([x[:, :position], mixed[:, None].to(x.dtype), x[:, position + 1 :]], dim=1)
        x = x + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x))
        pooled = x[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)]
        return TextOutput(x, pooled, F.normalize(pooled @ self.text_projection, dim=-1))

    def forward(self, ids: Tensor) -> TextOutput:
        """Plain CLIP: ids (B, T) → `TextOutput`."""
        return self.encode_text(ids)


class _Transformer(nn.Module):
    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(config) for _ in range(config.depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class _Block(nn.Module):
    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.ln_1 = nn.LayerNorm(width)
        self.attn = PackedAttention(width, config.heads)
        self.ln_2 = nn.LayerNorm(width)
        widen, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.ModuleDict({"c_fc": widen, "c_proj": narrow})
        self.activation = quick_gelu if config.activation == "quick_gelu" else F.gelu
        # Radford et al. 2021, section 2.5: what adds to the residual stream starts smaller in deeper towers.
        residual = width**-0.5 * (2 * config.depth) ** -0.5
        nn.init.normal_(self.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.attn.out_proj.weight, std=residual)
        nn.init.normal_(widen.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(narrow.weight, std=residual)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), causal=True)
        return x + self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))


def quick_gelu(x: Tensor) -> Tensor:
    """x·sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)

"""A critic that tells painted latents from real ones by what a frozen denoiser sees in them under noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Features:
    """What a frozen UNet sees at all its levels, and what it says, in one pass.

    The features of a denoiser know style, person and sentence, and come with noise of every strength (Sauer et al.,
    arXiv 2403.12015, Section 3): nothing has to be trained in order to see.

    Args:
        unet: SDXL-shaped, frozen; it keeps hooks.

    Attributes:
        channels: of each feature map, from the coarse ones to the fine ones.
    """

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        widths = list(unet.config.block_out_channels)
        ups = [f"up_blocks.{i}" for i in range(len(widths))]
        self.names = [f"down_blocks.{len(widths) - 2}", "mid_block", *ups]
        self.channels = [widths[-2], widths[-1], *reversed(widths)]
        self._seen: dict[str, torch.Tensor] = {}
        for name in self.names:
            unet.get_submodule(name).register_forward_hook(self._keep(name))

    def __call__(
        self, noisy: torch.Tensor, t: torch.Tensor, embeds: torch.Tensor, pooled: torch.Tensor, time_ids: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The prediction (B,C,h,w) for noisy latents, and the features: (B,channels,h',w') each."""
        said = self.unet(noisy, t, embeds, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}).sample
        return said, [self._seen[name] for name in self.names]

    def _keep(self, name: str) -> Any:
        def hook(_module: Any, _given: Any, output: Any) -> None:
            self._seen[name] = output[0] if isinstance(output, tuple) else output

        return hook


class Critic(nn.Module):
    """Verdicts on every place of every feature map: above 0 for real, below for painted.

    Features are standardised by fixed numbers, not by their own: a picture that is too dark must look so.

    Args:
        channels: of the feature maps.
        pooled: channels of the sentence's pooled embedding, which each verdict knows.
        width: channels inside.
    """

    def __init__(self, channels: list[int], pooled: int, width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_Head(c, pooled, width) for c in channels)

    def forward(self, features: list[torch.Tensor], pooled: torch.Tensor) -> list[torch.Tensor]:
        """Features (B,channels,h,w) each and pooled (B,P) → verdicts (B,1,h,w) each."""
        return [head(f, pooled) for head, f in zip(self.heads, features, strict=True)]

    @torch.no_grad()
    def standardise(self, features: list[torch.Tensor]) -> None:
        """Takes mean and deviation of every channel from features of real pictures."""
        for head, f in zip(self.heads, features, strict=True):
            head.load_state_dict(
                {"mean": f.mean((0, 2, 3)), "deviation": f.std((0, 2, 3)).clamp(min=1e-3)}, strict=False
            )


class _Head(nn.Module):
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, channels: int, pooled: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.place = nn.Conv2d(channels, width, 1)
        self.around = nn.Conv2d(width, width, 3, padding=1)
        self.sentence = nn.Linear(pooled, width)
        self.verdict = nn.Conv2d(width, 1, 1)

    def forward(self, features: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        mean, deviation = (x[:, None, None] for x in (self.mean, self.deviation))
        h = F.leaky_relu(self.place((features - mean) / deviation), 0.2)
        h = F.leaky_relu(self.around(h) + self.sentence(pooled)[:, :, None, None], 0.2)
        return self.verdict(h)


def over_places(maps: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """The mean of all maps (B,1,h,w), each weighted by `weights` (B,1,H,W), whose ratios alone matter: (B,)."""
    means = []
    for m in maps:
        own = F.adaptive_avg_pool2d(weights, (m.shape[-2], m.shape[-1]))
        means.append((m * own / own.mean((2, 3), keepdim=True)).mean((1, 2, 3)))
    return torch.stack(means).mean(0)

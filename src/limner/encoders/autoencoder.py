"""The autoencoder of the mini base: pictures ↔ latents of an eighth of their size.

Small pictures leave little room: eyes are a few pixels wide. So the transform starts from one that is already good,
the low frequencies of a blockwise cosine transform, and convolutions learn what it misses. All of them run at a quarter
of the picture's size or less, which is what makes training on a CPU possible.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from torch.nn import functional as F

from limner.errors import ConfigError

PATCH = 8
LOG_VARIANCE = -30.0
"""Of the latent distribution: none to speak of. diffusers wants a distribution; this autoencoder is deterministic."""


class PatchAutoencoder(ModelMixin, AutoencoderMixin, ConfigMixin):  # type: ignore[misc]
    """What a Stable Diffusion pipeline calls its `vae`. Pictures are (B,3,H,W) in [-1, 1], H and W multiples of 8.

    Latents are normalised inside, each channel to mean 0 and deviation 1 (or another, see `rescale`) over the training
    pictures, so that `scaling_factor` is 1 (SDXL's pipeline has the four channels of its own autoencoder written into
    its handling of `latents_mean`).

    Args:
        block_out_channels: channels at full, half, quarter and eighth size. The first two are 3 and 12: pixels are only
            rearranged there. Pipelines take the reduction from the length of this list.
        latent_channels: of the latents.
        encoder_layers, decoder_layers: residual blocks at quarter and at eighth size, each.
        scaling_factor, shift_factor, force_upcast: fixed; pipelines look for them.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, int, int, int] = (3, 12, 64, 128),
        latent_channels: int = 16,
        encoder_layers: int = 1,
        decoder_layers: int = 3,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        if tuple(block_out_channels[:2]) != (3, 12) or len(block_out_channels) != 4:
            raise ConfigError(
                f"block_out_channels is {block_out_channels}; allowed: four numbers beginning with 3, 12."
            )
        middle, deep = block_out_channels[2:]
        basis = cosine_basis(latent_channels)
        self.use_slicing = False
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, middle, 3, padding=1),
            *(_Residual(middle) for _ in range(encoder_layers)),
            nn.Conv2d(middle, deep, 2, stride=2),
            *(_Residual(deep) for _ in range(encoder_layers)),
            _zero(nn.Conv2d(deep, latent_channels, 3, padding=1)),
        )
        self.to_frequencies = nn.Conv2d(3, latent_channels, PATCH, stride=PATCH, bias=False)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, deep, 3, padding=1),
            *(_Residual(deep) for _ in range(decoder_layers)),
            nn.Conv2d(deep, 4 * middle, 1),
            nn.PixelShuffle(2),
            *(_Residual(middle) for _ in range(decoder_layers)),
            _zero(nn.Conv2d(middle, 48, 3, padding=1)),
            nn.PixelShuffle(4),
        )
        self.from_frequencies = nn.ConvTranspose2d(latent_channels, 3, PATCH, stride=PATCH, bias=False)
        with torch.no_grad():
            self.to_frequencies.weight.copy_(basis)
            self.from_frequencies.weight.copy_(basis)
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    def raw_latents(self, images: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) in [-1, 1] → (B,C,H/8,W/8), not yet normalised."""
        return self.to_frequencies(images) + self.encoder(images)

    def normalise(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents → latents of mean 0 and deviation 1 per channel."""
        return (raw - self.latent_mean.view(1, -1, 1, 1)) / self.latent_std.view(1, -1, 1, 1)

    @torch.no_grad()
    def rescale(self, factors: torch.Tensor) -> None:
        """Has each channel of the latents multiplied by its factor (C,); what they decode to stays the same."""
        self.latent_std.div_(factors)
        first: Any = self.decoder[0]
        first.weight.div_(factors.view(1, -1, 1, 1))

    def reconstruct(self, latents: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) → (B,3,8h,8w), about [-1, 1]."""
        raw = latents * self.latent_std.view(1, -1, 1, 1) + self.latent_mean.view(1, -1, 1, 1)
        return self.from_frequencies(raw) + self.decoder(latents)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures → (reconstruction, latents); training adds its noise in between by calling the parts."""
        latents = self.normalise(self.raw_latents(images))
        return self.reconstruct(latents), latents

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """diffusers' form: (B,3,H,W) in [-1, 1] → `latent_dist`, whose mode and samples are the latents."""
        mean = self.normalise(self.raw_latents(x))
        moments = torch.cat((mean, torch.full_like(mean, LOG_VARIANCE)), 1)
        distribution = DiagonalGaussianDistribution(moments, deterministic=True)
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    @apply_forward_hook
    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple:
        """diffusers' form: latents (B,C,h,w) → `sample` (B,3,8h,8w). `generator` is there for its callers' sake."""
        parts = z.split(1) if self.use_slicing else [z]
        sample = torch.cat([self.reconstruct(part) for part in parts])
        return DecoderOutput(sample=sample) if return_dict else (sample,)


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))); starts as the identity, which is why no normalisation is needed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = _zero(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def cosine_basis(count: int) -> torch.Tensor:
    """The `count` best functions of the 8×8 cosine transform for colour pictures: (count,3,8,8), orthonormal.

    About five of eight go to luminance and the rest to the two opponent colours, each lowest frequencies first, as in
    JPEG (ITU-T T.81, Figure 5 for the order).
    """
    place = torch.arange(PATCH, dtype=torch.float64) + 0.5
    waves = torch.stack([torch.cos(math.pi / PATCH * place * k) for k in range(PATCH)]) * math.sqrt(2 / PATCH)
    waves[0] /= math.sqrt(2)
    order = sorted(((v, u) for v in range(PATCH) for u in range(PATCH)), key=lambda f: (sum(f), f))
    flat = torch.stack([torch.outer(waves[v], waves[u]) for v, u in order])
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    opponent = count * 3 // 16
    shares = (count - 2 * opponent, opponent, opponent)
    parts = [torch.einsum("c,nij->ncij", colours[k], flat[:n]) for k, n in enumerate(shares)]
    return torch.cat(parts).float()


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

"""Training the autoencoder: reconstruction that cares for edges and eyes, latents that stand a little noise.

The squared error leads, not the absolute one: at equal work it gave 0.4 dB more over all and 0.5 dB more at the eyes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from limner.config import Config
from limner.data.loader import Batch, Source
from limner.data.tables import DataConfig, TableSource, example_pictures, open_pictures, picture_table, to_images
from limner.encoders.autoencoder import PatchAutoencoder
from limner.errors import ConfigError
from limner.training.dice import Dice
from limner.training.distributed import average
from limner.training.face_weights import eye_mask, face_weights
from limner.training.metrics import mean_interval
from limner.training.parts import autoencoder_of
from limner.training.sheets import contact_sheet
from limner.training.task import Losses, Report, Task, channels_last

MOMENTUM = 0.02
IMPORTANCE_FROM = 64
"""Pictures from which the channels' importance is measured."""


@dataclass(frozen=True)
class AutoencoderSettings(Config):
    """Settings of the task.

    Attributes:
        data, held_out: pictures to train on and to judge by.
        widths: channels at a quarter and at an eighth of the size.
        latent_channels, encoder_layers, decoder_layers: see `PatchAutoencoder`.
        edge_weight: of the loss on differences between neighbouring pixels, at full and half size.
        face_weight, eye_weight: how much more an error counts in the face and at the eyes; need landmarks.
        init: folder of an autoencoder to start from; its sizes replace the four above.
        decoder_only: leaves the encoder as it is, and with it the latents that a denoiser may already know.
        importance: power of the channels' importance by which the latents of `init` are scaled: 0 leaves them, 1 would
            have noise on any channel disturb the picture alike. Important ones are then still seen under much noise, so
            that a denoiser learns the coarse before the fine, as it would on pixels.
        noise: largest deviation of the noise added to the latents, so that errors of a denoiser do not show; each
            picture has its own, uniform from 0 (noise-augmented decoding, arXiv 2510.11690).
        balance: pictures under noise of this deviation count half, under more of it less; 0 counts all alike.
        validation: held-out pictures used.
    """

    data: DataConfig
    held_out: DataConfig
    widths: tuple[int, int] = (64, 128)
    latent_channels: int = 16
    encoder_layers: int = 1
    decoder_layers: int = 3
    edge_weight: float = 0.02
    face_weight: float = 1.0
    eye_weight: float = 3.0
    init: str = ""
    decoder_only: bool = False
    importance: float = 0.0
    noise: float = 0.03
    balance: float = 0.0
    validation: int = 512

    def validate(self) -> None:
        self.check(min(self.widths) >= 8 and self.widths[1] % 4 == 0, "widths", "8 or more")
        self.check(self.latent_channels >= 4, "latent_channels", "4 or more")
        for name in ("edge_weight", "face_weight", "eye_weight", "noise", "balance", "importance"):
            self.check(getattr(self, name) >= 0, name, "0 or more")
        self.check(bool(self.init) or not self.decoder_only, "init", "an autoencoder, with decoder_only")
        self.check(self.decoder_only or not self.importance, "importance", "0 without decoder_only")
        self.check(self.validation >= 2, "validation", "2 or more")
        self.check(self.data.size == self.held_out.size, "held_out", "the size of data")


class AutoencoderTask(Task[AutoencoderSettings]):
    """See `AutoencoderSettings`; metrics are PSNR in dB on held-out pictures, over all pixels and around the eyes."""

    name = "autoencoder"
    settings_class: ClassVar = AutoencoderSettings

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__(settings)
        self.autoencoder = self._autoencoder()
        self.channels = len(self.autoencoder.latent_std)
        self.model = channels_last(_Training(self.autoencoder, settings.decoder_only))

    def prepare(self, report: Report) -> None:
        tables = []
        for config in (self.settings.data, self.settings.held_out):
            tables.append(picture_table(open_pictures(config), config.size, config.size, report, config.workers))
        self.table, self.held_out = tables
        if self.settings.importance:
            images = self._images(self.table, self._some_rows(IMPORTANCE_FROM))
            found = importance(nn.Module.to(self.autoencoder, self.device), images)
            self.autoencoder.rescale(found.pow(self.settings.importance))

    def source(self) -> Source:
        return TableSource(self.table, ("image", "landmarks"))

    def example(self, rows: int) -> Batch:
        return example_pictures(rows, self.settings.data.size, landmarks=True)

    def tokens(self) -> int:
        """Places of the latent picture."""
        return (self.settings.data.size // 8) ** 2

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        images = to_images(batch["image"]) * 2 - 1
        height, width = images.shape[2] // 8, images.shape[3] // 8
        deviation = dice.uniform() * self.settings.noise
        noise = dice.normal(self.channels, height, width) * deviation[:, None, None, None]
        output = model(images.contiguous(memory_format=torch.channels_last), noise)
        error = output.float() - images
        settings = self.settings
        weight = face_weights(batch["landmarks"], images.shape[2:], settings.face_weight, settings.eye_weight)
        plain = (error.square() * weight).mean((1, 2, 3)) / weight.mean((1, 2, 3))
        edges = _gradients(error, weight) + _gradients(F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2))
        counts = self._counts(deviation)
        plain, edges = (plain * counts).mean(), (edges * counts).mean()
        parts = {"squares": plain.detach(), "edges": edges.detach()}
        return Losses(plain + settings.edge_weight * edges, parts)

    def validate(self) -> dict[str, float]:
        rows = np.arange(min(self.settings.validation, len(self.held_out)))
        whole, eyes = [], []
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            images, output = self._reconstruct(part)
            error = ((output - images) / 2).square().mean(1, keepdim=True)
            whole.append(psnr(error.mean((1, 2, 3))))
            landmarks = torch.from_numpy(self.held_out["landmarks"][part]).to(self.device)
            mask = eye_mask(landmarks, images.shape[2:]).float()
            seen = mask.sum((1, 2, 3)) > 0
            eyes.append(psnr(((error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1))[seen]))
        values = mean_interval("psnr", np.concatenate(whole))
        around = np.concatenate(eyes)
        if len(around) > 1:
            values |= mean_interval("psnr_eyes", around)
        return {**values, "n": len(rows)}

    def sheet(self) -> Image.Image:
        """Held-out pictures above their reconstructions, enlarged."""
        rows = np.linspace(0, len(self.held_out) - 1, min(8, len(self.held_out))).astype(int)
        images, output = self._reconstruct(rows)
        pictures = [*((x + 1) / 2 for x in images), *((x.clamp(-1, 1) + 1) / 2 for x in output)]
        return contact_sheet(pictures, columns=len(rows), scale=2)

    def export(self, folder: Path) -> None:
        """diffusers' form; the latents' mean and deviation are measured once more, on training pictures."""
        if self.settings.decoder_only:
            self.autoencoder.save_pretrained(folder)
            return
        rows = self._some_rows(1024)
        raw = torch.cat([self.autoencoder.raw_latents(self._images(self.table, r)) for r in np.array_split(rows, 16)])
        self.autoencoder.latent_mean.copy_(raw.mean((0, 2, 3)))
        self.autoencoder.latent_std.copy_(raw.std((0, 2, 3)))
        self.autoencoder.save_pretrained(folder)

    def _autoencoder(self) -> PatchAutoencoder:
        settings = self.settings
        if settings.init:
            found = autoencoder_of(Path(settings.init)).train()
            if isinstance(found, PatchAutoencoder):
                return found
            raise ConfigError(f"{settings.init} holds a {type(found).__name__}, not a PatchAutoencoder.")
        return PatchAutoencoder(
            block_out_channels=(3, 12, *settings.widths),
            latent_channels=settings.latent_channels,
            encoder_layers=settings.encoder_layers,
            decoder_layers=settings.decoder_layers,
        )

    def _counts(self, deviation: torch.Tensor) -> torch.Tensor:
        """How much pictures under noise of these deviations (B,) count: (B,), of which the expectation is 1."""
        balance, noise = self.settings.balance, self.settings.noise
        if not balance or not noise:
            return torch.ones_like(deviation)
        expected = math.atan(noise / balance) * balance / noise
        return 1 / (1 + (deviation / balance).square()) / expected

    def _some_rows(self, count: int) -> np.ndarray:
        return np.linspace(0, len(self.table) - 1, min(count, len(self.table))).astype(int)

    def _images(self, table: object, rows: np.ndarray) -> torch.Tensor:
        return (to_images(torch.from_numpy(table["image"][rows])) * 2 - 1).to(self.device)  # type: ignore[index]

    def _reconstruct(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        images = self._images(self.held_out, rows)
        return images, self.autoencoder(images)[0].float().clamp(-1, 1)


class _Training(nn.Module):
    """The autoencoder with noise on its latents and, if its encoder learns, a running estimate of their mean and
    deviation."""

    def __init__(self, autoencoder: PatchAutoencoder, decoder_only: bool) -> None:
        super().__init__()
        self.autoencoder, self.decoder_only = autoencoder, decoder_only
        if decoder_only:
            autoencoder.encoder.requires_grad_(False)
            autoencoder.to_frequencies.requires_grad_(False)
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        if self.decoder_only:
            return self.autoencoder.reconstruct(
                self.autoencoder.normalise(self.autoencoder.raw_latents(images)) + noise
            )
        raw = self.autoencoder.raw_latents(images)
        with torch.no_grad():
            share = max(MOMENTUM, 1 / (1 + int(self.seen)))
            mean, square = average(torch.stack([raw.float().mean((0, 2, 3)), raw.float().square().mean((0, 2, 3))]))
            self.autoencoder.latent_mean.lerp_(mean, share)
            self.autoencoder.latent_std.lerp_((square - mean.square()).clamp(min=1e-12).sqrt(), share)
            self.seen += 1
        return self.autoencoder.reconstruct(self.autoencoder.normalise(raw) + noise)


@torch.no_grad()
def importance(autoencoder: PatchAutoencoder, images: torch.Tensor) -> torch.Tensor:
    """How far a little noise on each channel of the latents carries the picture, relative to the worst channel: (C,).

    Args:
        images: (B,3,H,W) in [-1, 1].
    """
    latents = autoencoder.normalise(autoencoder.raw_latents(images))
    noise = 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    before, moved = autoencoder.reconstruct(latents), []
    for c in range(latents.shape[1]):
        only = torch.zeros_like(noise)
        only[:, c] = noise[:, c]
        moved.append((autoencoder.reconstruct(latents + only) - before).square().mean().sqrt())
    found = torch.stack(moved)
    return found / found.max()


def _gradients(error: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbouring pixels of each error (B,3,H,W), weighted by (B,1,H,W): (B,)."""
    across = (error.diff(dim=3).abs() * weight[..., 1:]).mean((1, 2, 3)) / weight[..., 1:].mean((1, 2, 3))
    down = (error.diff(dim=2).abs() * weight[:, :, 1:]).mean((1, 2, 3)) / weight[:, :, 1:].mean((1, 2, 3))
    return across + down


def psnr(error: torch.Tensor) -> np.ndarray:
    """Mean squared errors of pictures in [0, 1] → dB."""
    return (-10 * torch.log10(error.clamp(min=1e-10))).cpu().numpy()

"""A UNet that grows keeps what it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tasks import UNET, Make, assert_learns

from limner.errors import ConfigError
from limner.training.growing import grow
from limner.training.tasks.diffusion import UNetConfig

CHANNELS, LAYERS = (16, 32, 48), (1, 1, 1)


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    config = UNetConfig(channels=CHANNELS, attention=(0, 0, 1), head=8, time_channels=8, groups=4)
    return config.build(4, 8, width=12, pooled=6).eval()


@torch.no_grad()
def said(unet: Any, seed: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    noisy, embeds, pooled = (torch.randn(4, *s, generator=draw) for s in ((4, 8, 8), (5, 12), (6,)))
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 4)}
    return unet(noisy, torch.tensor([3, 200, 600, 990]), embeds, added_cond_kwargs=added).sample


def test_more_blocks_change_nothing(unet: Any) -> None:
    larger = grow(unet, CHANNELS, (3, 2, 1)).unet
    assert sum(p.numel() for p in larger.parameters()) > sum(p.numel() for p in unet.parameters())
    torch.testing.assert_close(said(larger), said(unet), atol=1e-5, rtol=1e-4)


def error(unet: Any, other: Any) -> float:
    """Of predictions for other examples than those of settling, by their variance."""
    before = said(unet, seed=2)
    return float((said(other, seed=2) - before).square().mean() / before.var())


def test_wider_levels_change_little(unet: Any) -> None:
    """Groups that hold other channels than before are normalised anew, hence not exactly nothing."""
    grown = grow(unet, (24, 40, 48), LAYERS, spread=0.0)
    at_first = error(unet, grown.unet)
    grown.settle(said)
    assert error(unet, grown.unet) < min(0.03, at_first / 2)
    assert error(unet, grow(unet, (24, 40, 48), LAYERS, spread=0.1).unet) != at_first, "copies would learn alike"


def test_growing_survives_half_precision(unet: Any) -> None:
    """Sinusoids of other frequencies can be told by large weights that cancel each other, but not in bfloat16."""
    grown = grow(unet, (24, 40, 48), (2, 1, 1))
    grown.settle(said)
    assert error(unet, lambda *a, **k: half(grown.unet, *a, **k)) < 0.1


def half(unet: Any, *given: Any, **named: Any) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return unet(*given, **named)


@pytest.mark.parametrize(
    ("channels", "layers", "says"),
    [
        ((8, 32, 48), LAYERS, "cannot grow"),
        ((16, 32), (1, 1), "cannot grow"),
        ((16, 32, 64), LAYERS, "attention"),
        ((32, 32, 48), LAYERS, "unequal"),
    ],
)
def test_what_cannot_grow_is_said(unet: Any, channels: tuple[int, ...], layers: tuple[int, ...], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grow(unet, channels, layers)
    assert says in f"{caught.value} {caught.value.hint}"


def test_a_training_grows_what_it_starts_from(make: Make, vae: Path, encoder: Path, tmp_path: Path) -> None:
    parts = {"autoencoder": str(vae), "encoder": str(encoder)}
    make("diffusion", **parts, unet=UNET).export(tmp_path)
    task = make("diffusion", **parts, init=str(tmp_path / "unet"), grow_channels=[24, 32], grow_layers=[2, 1])
    assert tuple(task.unet.config.block_out_channels) == (24, 32)
    assert_learns(task)
    with pytest.raises(ConfigError, match="grow_channels"):
        make("diffusion", **parts, unet=UNET, grow_channels=[24, 32], grow_layers=[2, 1])

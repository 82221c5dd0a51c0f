"""A UNet that learns to read another encoder by least squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tasks import UNET, Make, assert_learns

from limner.encoders.faceclip import FaceCLIPEncoder
from limner.errors import ConfigError
from limner.training.rereading import Said, reread
from limner.training.tasks.diffusion import UNetConfig


def test_what_is_said_in_another_basis_is_read_alike() -> None:
    torch.manual_seed(0)
    unet: Any = UNetConfig(channels=(16, 32), attention=(0, 1), head=8, time_channels=8, groups=4).build(4, 8, 12, 6)
    was = Said(torch.randn(40, 5, 12), torch.randn(40, 6))
    now = Said(was.tokens @ torch.randn(12, 12), was.pooled @ torch.randn(6, 6) + 3)

    @torch.no_grad()
    def painted(said: Said) -> torch.Tensor:
        noisy = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        added = {"text_embeds": said.pooled[:4], "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 4)}
        return unet(noisy, torch.tensor([3, 200, 600, 990]), said.tokens[:4], added_cond_kwargs=added).sample

    wanted, at_first = painted(was), painted(now)
    found = reread(unet, now, was)
    assert found.tokens == pytest.approx(1, abs=0.02)
    assert found.pooled == pytest.approx(1, abs=0.02)
    assert (painted(now) - wanted).square().mean() < (at_first - wanted).square().mean() / 50


def test_a_training_reads_another_encoder(make: Make, vae: Path, encoder: Path, tmp_path: Path) -> None:
    parts = {"autoencoder": str(vae), "encoder": str(encoder)}
    make("diffusion", **parts, unet=UNET).export(tmp_path)
    other = FaceCLIPEncoder.from_pretrained(encoder)
    with torch.no_grad():
        for name, value in other.named_parameters():
            if "fuser" in name and value.requires_grad:
                value.add_(torch.randn_like(value), alpha=0.02)
    other.save_pretrained(tmp_path / "other")
    given: dict[str, Any] = {**parts, "encoder": str(tmp_path / "other"), "init": str(tmp_path / "unet")}
    plain, task = make("diffusion", **given), make("diffusion", **given, formerly=str(encoder))
    name = next(n for n, _ in task.unet.named_parameters() if n.endswith("attn2.to_k.weight"))
    before, after = plain.unet.get_parameter(name), task.unet.get_parameter(name)
    assert not torch.equal(before, after)
    torch.testing.assert_close(before, after, atol=0.2, rtol=0)
    assert_learns(task)
    with pytest.raises(ConfigError, match="formerly"):
        make("diffusion", **parts, unet=UNET, formerly=str(encoder))

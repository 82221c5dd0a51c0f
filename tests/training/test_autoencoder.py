"""The mini autoencoder: a good start, and a `vae` as diffusers' pipelines want it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.autoencoder import PatchAutoencoder, cosine_basis
from limner.errors import ConfigError
from limner.training.dice import seed_everything
from limner.training.loop import Trainer
from limner.training.tasks import load_training
from limner.training.tasks.autoencoder import importance
from limner.training.tasks.diffusion import UNetConfig


@pytest.fixture
def vae() -> PatchAutoencoder:
    seed_everything(0)
    model = PatchAutoencoder(block_out_channels=(3, 12, 8, 16), decoder_layers=1)
    for parameter in model.parameters():  # the zero-initialised layers would hide mistakes
        parameter.data += 0.01 * torch.randn_like(parameter)
    return model.eval()


def smooth_pictures() -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    waves = [torch.sin(x / a + y / b + c) for a, b, c in ((9, 20, 0), (14, 11, 1), (30, 8, 2))]
    return torch.stack(waves)[None] * 0.8


@pytest.mark.parametrize("count", [4, 16, 24, 32])
def test_the_basis_is_orthonormal(count: int) -> None:
    flat = cosine_basis(count).flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(count), atol=1e-5)


def test_untrained_it_is_a_cosine_transform() -> None:
    """The learned parts begin at zero, so that training begins at a usable reconstruction."""
    images = smooth_pictures()
    model = PatchAutoencoder()
    error = (model(images)[0] - images).square().mean() / 4
    assert -10 * torch.log10(error) > 30
    assert torch.equal(model.encoder(images), torch.zeros(1, 16, 8, 8))


def test_save_load_slicing_and_batches_change_nothing(vae: PatchAutoencoder, tmp_path: Path) -> None:
    images = smooth_pictures().repeat(3, 1, 1, 1) * torch.tensor([1, 0.5, -1]).view(3, 1, 1, 1)
    vae.latent_mean.normal_()
    vae.latent_std.uniform_(0.5, 2)
    latents = vae.encode(images).latent_dist.sample()
    assert torch.equal(latents, vae.encode(images, return_dict=False)[0].mode())
    output = vae.decode(latents).sample
    vae.save_pretrained(tmp_path)
    again = PatchAutoencoder.from_pretrained(tmp_path)
    assert torch.equal(again.decode(latents, return_dict=False)[0], output)
    again.enable_slicing()
    assert torch.allclose(again.decode(latents).sample, output, atol=1e-5)


def test_channels_must_fit() -> None:
    with pytest.raises(ConfigError, match="beginning with 3, 12"):
        PatchAutoencoder(block_out_channels=(16, 16, 32, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_diffusers_own_pipelines_paint_with_it(vae: PatchAutoencoder, dtype: torch.dtype) -> None:
    unet = UNetConfig(channels=(16, 32), attention=(0, 1), head=8, time_channels=8, groups=4).build(16, 4, 24, 16)
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=NoiseSchedule().scheduler(), **parts).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae_scale_factor == 8
    embeds = {
        "prompt_embeds": torch.randn(2, 6, 24, dtype=dtype),
        "pooled_prompt_embeds": torch.randn(2, 16, dtype=dtype),
        "negative_prompt_embeds": torch.zeros(2, 6, 24, dtype=dtype),
        "negative_pooled_prompt_embeds": torch.zeros(2, 16, dtype=dtype),
    }
    images = pipe(**embeds, num_inference_steps=2, height=48, width=32, output_type="np").images
    assert images.shape == (2, 48, 32, 3)
    assert np.isfinite(images).all()
    edit = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe, vae=vae)
    edit.set_progress_bar_config(disable=True)
    start = torch.rand(2, 3, 48, 32)
    edited = edit(image=start, strength=0.5, num_inference_steps=4, **embeds, output_type="np").images
    assert edited.shape == (2, 48, 32, 3)


def test_rescaled_latents_decode_to_the_same(vae: PatchAutoencoder) -> None:
    images = smooth_pictures()
    before, latents = vae(images)
    factors = torch.linspace(0.2, 1, vae.config.latent_channels)
    vae.rescale(factors)
    after, scaled = vae(images)
    torch.testing.assert_close(scaled, latents * factors.view(1, -1, 1, 1))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


def test_importance_is_what_noise_does_to_the_picture(vae: PatchAutoencoder) -> None:
    """Of channels that are only a cosine transform, it is their deviation."""
    vae.decoder[-2].weight.data.zero_()
    vae.decoder[-2].bias.data.zero_()
    with torch.no_grad():
        vae.from_frequencies.weight.copy_(cosine_basis(16))
        vae.latent_std.copy_(torch.linspace(1, 4, 16))
    found = importance(vae, smooth_pictures().repeat(64, 1, 1, 1))
    torch.testing.assert_close(found, torch.linspace(1, 4, 16) / 4, atol=0.03, rtol=0)


def test_a_decoder_alone_learns_to_see_through_noise(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    Trainer(*load_training(write_recipe()), tmp_path / "whole").run()
    start = tmp_path / "whole" / "weights"
    changes = [
        f"settings.init={start}", "settings.decoder_only=true", "settings.noise=1", "settings.importance=0.5",
        "loop.steps=60", "loop.lr=5e-3",
    ]  # fmt: skip
    Trainer(*load_training(write_recipe(), changes), tmp_path / "decoder").run()
    before, after = (PatchAutoencoder.from_pretrained(p) for p in (start, tmp_path / "decoder" / "weights"))
    fixed = [k for k in before.state_dict() if k.startswith(("encoder.", "to_frequencies."))]
    assert fixed
    assert all(torch.equal(before.state_dict()[k], after.state_dict()[k]) for k in fixed)
    factors = before.latent_std / after.latent_std
    assert factors.max() == pytest.approx(1)
    assert factors.min() < 0.9
    images = smooth_pictures()
    noise = 0.7 * torch.randn(before(images)[1].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rescaled = before.reconstruct((after(images)[1] + noise) / factors.view(1, -1, 1, 1))
        errors = [(x - images).square().mean() for x in (rescaled, after.reconstruct(after(images)[1] + noise))]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("change", ["settings.decoder_only=true", "settings.importance=0.5"])
def test_what_needs_a_start_says_so(write_recipe: Callable[..., Path], change: str) -> None:
    with pytest.raises(ConfigError, match=r"init|importance"):
        load_training(write_recipe(), [change])

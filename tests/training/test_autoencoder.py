"""The mini autoencoder: a good start, and a `vae` as diffusers' pipelines want it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.autoencoder import PatchAutoencoder, cosine_basis
from limner.errors import ConfigError
from limner.training.dice import seed_everything
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

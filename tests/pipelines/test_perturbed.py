"""Perturbed-attention guidance is diffusers' own, works beside everything else, and leaves no trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLPAGPipeline
from tiny_model import noise_face, tiny_pipeline

from limner.errors import ConfigError
from limner.pipelines.faceclip import FaceCLIPPipeline
from limner.pipelines.perturbed import default_layers, perturbed, self_attentions

PROMPT = "a wizard in the snow"


@pytest.fixture(scope="module")
def kl() -> FaceCLIPPipeline:
    return tiny_pipeline("kl")


def painted(pipe: FaceCLIPPipeline, *args: Any, **options: Any) -> torch.Tensor:
    told = {"generator": torch.Generator().manual_seed(0), "output_type": "pt", "num_inference_steps": 3, **options}
    return pipe(*args, **told).images


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_it_paints_what_diffusers_paints(kl: FaceCLIPPipeline, guidance: float, scale: float) -> None:
    told = kl.condition([PROMPT, "a chef"], kl.enroll(noise_face(0)))
    other = StableDiffusionXLPAGPipeline(
        vae=kl.vae, unet=kl.unet, scheduler=kl.scheduler, text_encoder=None, text_encoder_2=None, tokenizer=None,
        tokenizer_2=None, add_watermarker=False, pag_applied_layers=list(default_layers(kl.unet)),
    )  # fmt: skip
    other.set_progress_bar_config(disable=True)
    before = dict(kl.unet.attn_processors)
    theirs: Any = other(
        prompt_embeds=told.prompt_embeds,
        pooled_prompt_embeds=told.pooled,
        negative_prompt_embeds=told.negative_prompt_embeds,
        negative_pooled_prompt_embeds=told.negative_pooled,
        generator=torch.Generator().manual_seed(0),
        guidance_scale=guidance,
        pag_scale=scale,
        num_inference_steps=3,
        output_type="pt",
    )
    kl.unet.set_attn_processor(before)
    ours = painted(kl, conditioning=told, guidance_scale=guidance, pag_scale=scale)
    assert torch.allclose(ours, theirs.images, atol=1e-4)
    plain = painted(kl, conditioning=told, guidance_scale=guidance)
    assert torch.equal(ours, plain) == (scale == 0)


def test_the_unet_is_afterwards_as_it_was(kl: FaceCLIPPipeline) -> None:
    before = dict(kl.unet.attn_processors)
    with perturbed(kl.unet, 1.0, 3.0):
        assert kl.unet.attn_processors != before
    assert kl.unet.attn_processors == before
    assert not kl.unet._forward_hooks
    assert not kl.unet._forward_pre_hooks


def test_a_ControlNet_and_several_people_work_beside_it(kl: FaceCLIPPipeline) -> None:
    from limner.pipelines.gaze import stages
    from limner.pipelines.regions import group

    pipe = FaceCLIPPipeline(**kl.components)
    pipe.set_progress_bar_config(disable=True)
    pipe.controlnet = ControlNetModel.from_unet(
        kl.unet, conditioning_embedding_out_channels=stages(pipe.vae_scale_factor)
    )
    last: Any = pipe.controlnet.controlnet_mid_block
    torch.nn.init.normal_(last.weight, std=0.5)
    seen = [painted(pipe, PROMPT, gaze="0.5,0.5", pag_scale=s, num_images_per_prompt=2) for s in (0.0, 2.0)]
    assert not torch.equal(*seen)
    both = group([kl.enroll(noise_face(i)) for i in range(2)], [(0, 0, 0.5, 1), (0.5, 0, 1, 1)])
    pipe.controlnet = None
    seen = [painted(pipe, PROMPT, identity=both, pag_scale=s) for s in (0.0, 2.0)]
    assert torch.isfinite(seen[1]).all()
    assert not torch.equal(*seen)


def test_a_model_can_recommend_it(kl: FaceCLIPPipeline) -> None:
    parts = {**kl.components, "default_steps": 2}
    pipe = FaceCLIPPipeline(**parts, default_pag=1.5)
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(painted(pipe, PROMPT), painted(pipe, PROMPT, pag_scale=1.5))
    assert not torch.equal(painted(pipe, PROMPT), painted(pipe, PROMPT, pag_scale=0))


def test_where_it_cannot_be(kl: FaceCLIPPipeline) -> None:
    with pytest.raises(ConfigError, match="no self-attention in 'conv_in'"):
        self_attentions(kl.unet, ["mid", "conv_in"])
    handle = kl.unet.register_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ConfigError, match="guidance of its own"):
            painted(kl, PROMPT, pag_scale=1)
    finally:
        handle.remove()
    assert np.isfinite(painted(kl, PROMPT, pag_scale=1).numpy()).all()

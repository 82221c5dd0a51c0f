"""FaceT5: what sets it apart from FaceCLIP, and that diffusers' own FluxPipeline paints by it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tiny_model import noise_face

from limner.encoders.attention import PackedAttention
from limner.encoders.config import FuserConfig
from limner.encoders.facet5 import FACET5_PRESETS, FaceT5Encoder, T5Sizes, sinusoidal_positions
from limner.encoders.fuser import DeformableAttention, Fuser
from limner.encoders.tokenizer import build_word_tokenizer
from limner.errors import ConfigError, PromptError, WeightsMismatch
from limner.methods.facet5 import FaceT5, flux_arguments

PROMPTS = ["portrait of a wizard in snow", "photo on a beach"]


@pytest.fixture(scope="module")
def encoder() -> FaceT5Encoder:
    tokenizer = build_word_tokenizer(["portrait of a wizard in snow photo on beach"], context=24)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return FaceT5Encoder(FACET5_PRESETS["tiny"], tokenizer, tokenizer).eval()


@pytest.fixture(scope="module")
def method(encoder: FaceT5Encoder) -> FaceT5:
    return FaceT5(encoder)


def test_face_attention_is_ordinary_and_the_rest_of_the_fuser_is_faceclips() -> None:
    ordinary, deformable = (Fuser(32, FuserConfig(depth=2, heads=4, points=p, feedforward=32)) for p in (0, 4))
    assert isinstance(ordinary.encoder.layers[0].self_attn, PackedAttention)
    assert isinstance(deformable.encoder.layers[0].self_attn, DeformableAttention)

    def rest(fuser: Fuser) -> set[str]:
        return {k for k in fuser.state_dict() if not k.startswith("encoder.layers.") or ".self_attn." not in k}

    assert rest(ordinary) == rest(deformable)


def test_ordinary_face_attention_agrees_with_torchs_own_layer() -> None:
    layer = Fuser(32, FuserConfig(depth=1, heads=4, points=0, feedforward=32)).encoder.layers[0]
    theirs = torch.nn.TransformerEncoderLayer(32, 4, 32, dropout=0.0, batch_first=True)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 10, 32)  # 10: no square of tokens is needed
    torch.testing.assert_close(layer(x, torch.zeros(10, 32)), theirs(x), atol=1e-5, rtol=1e-5)


def test_positions_are_those_of_the_transformer_paper() -> None:
    table = sinusoidal_positions(5, 8)
    for position in range(5):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert table[position, 2 * i].item() == pytest.approx(np.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(np.cos(angle), abs=1e-6)


def test_the_face_enters_through_the_fuser_alone(encoder: FaceT5Encoder) -> None:
    a, b = (encoder.enroll(torch.from_numpy(noise_face(i).image)[None]) for i in (1, 2))
    nobody, one, other = (encoder.encode_identity(i, PROMPTS) for i in (None, a, b))
    assert one.tokens.shape == (2, 24, 32)
    assert one.pooled.shape == (2, 16)
    assert (one.tokens - other.tokens).abs().max() > 1e-4
    assert (one.tokens[0] - one.tokens[1]).abs().max() > 1e-2
    torch.testing.assert_close(one.pooled, nobody.pooled, atol=0, rtol=0)
    torch.testing.assert_close(encoder.encode_identity(a, PROMPTS, 0.0).tokens, nobody.tokens, atol=0, rtol=0)
    half = encoder.encode_identity(a, PROMPTS, 0.5).tokens
    assert 0 < (half - nobody.tokens).norm() < (one.tokens - nobody.tokens).norm()


def test_what_cannot_be_encoded_is_refused(encoder: FaceT5Encoder, method: FaceT5) -> None:
    with pytest.raises(ConfigError, match="strength"):
        encoder.encode_identity(None, PROMPTS, 1.5)
    with pytest.raises(PromptError):
        encoder.encode_identity(None, "a wizard")
    with pytest.raises(ConfigError, match="tokenizers"):
        FaceT5Encoder(FACET5_PRESETS["tiny"]).encode_identity(None, PROMPTS)
    with pytest.raises(ConfigError, match="heads"):
        dataclasses.replace(FACET5_PRESETS["tiny"], t5=T5Sizes(width=34))
    foreign = method.enroll([noise_face(1)])
    foreign.tensors["null.0"] = -foreign.tensors["null.0"]
    with pytest.raises(WeightsMismatch, match="other weights"):
        method.condition(foreign, PROMPTS)


def flux(pooled: int, width: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=width, pooled_projection_dim=pooled, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(16, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, latent_channels=4,
            use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.36,
        )  # fmt: skip
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae.eval(), transformer=transformer.eval(),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_diffusers_flux_pipeline_paints_by_it(method: FaceT5) -> None:
    pipe = flux(pooled=16, width=32)

    def paint(seed: int, scale: float) -> np.ndarray:
        conditioning = method.condition(method.enroll([noise_face(seed)]), PROMPTS, negative_prompts=["a beach"])
        return pipe(
            **flux_arguments(conditioning), true_cfg_scale=scale, height=32, width=32, num_inference_steps=2,
            generator=torch.Generator().manual_seed(0), output_type="np",
        ).images  # fmt: skip

    guided = paint(1, 3.5)
    assert guided.shape == (2, 32, 32, 3)
    assert np.isfinite(guided).all()
    np.testing.assert_array_equal(guided, paint(1, 3.5))
    assert np.abs(guided - paint(1, 1.0)).max() > 1e-4
    assert np.abs(guided - paint(2, 3.5)).max() > 1e-6

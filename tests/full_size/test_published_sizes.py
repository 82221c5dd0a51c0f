"""Every full-size model builds without memory, and has the numbers of values and the shapes that were published."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from limner.encoders.face_vit import FaceTokens
from limner.encoders.facet5 import FACET5_PRESETS
from limner.errors import ConfigError
from limner.pipelines.bases import BASES, build, count

KEYS = Path(__file__).parents[1] / "data" / "parity" / "faceclip_published_keys.json.gz"

# Of checkpoints in diffusers' layout; each is set by a choice that the number of values alone would not pin down.
SHAPES = {
    "sdxl-unet": {
        "conv_in.weight": (320, 4, 3, 3),
        "add_embedding.linear_1.weight": (1280, 2816),
        "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
        "mid_block.attentions.0.proj_in.weight": (1280, 1280),
        "up_blocks.0.attentions.2.transformer_blocks.9.attn1.to_out.0.weight": (1280, 1280),
        "conv_out.weight": (4, 320, 3, 3),
    },
    "sdxl-vae": {"encoder.conv_out.weight": (8, 512, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)},
    "sd21-base-unet": {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        "down_blocks.0.attentions.0.proj_in.weight": (320, 320),
        "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v.weight": (320, 1024),
    },
    "flux-vae": {"encoder.conv_out.weight": (32, 512, 3, 3), "decoder.conv_in.weight": (512, 16, 3, 3)},
    "flux-transformer": {
        "x_embedder.weight": (3072, 64),
        "context_embedder.weight": (3072, 4096),
        "time_text_embed.guidance_embedder.linear_1.weight": (3072, 256),
        "time_text_embed.text_embedder.linear_1.weight": (3072, 768),
        "transformer_blocks.18.norm1.linear.weight": (18432, 3072),
        "single_transformer_blocks.37.proj_out.weight": (3072, 15360),
    },
}

# As the code that was released with the weights names its modules; the weights themselves were not at hand.
T5 = "encoder_2.t5_encoder"
FACET5_KEYS = {
    "encoder_1.text_model.embeddings.token_embedding.weight": (49408, 768),
    "encoder_1.text_model.embeddings.position_embedding.weight": (77, 768),
    "encoder_1.text_model.encoder.layers.11.self_attn.q_proj.weight": (768, 768),
    "encoder_1.text_model.encoder.layers.11.self_attn.out_proj.bias": (768,),
    "encoder_1.text_model.encoder.layers.11.layer_norm2.weight": (768,),
    "encoder_1.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
    "encoder_1.text_model.final_layer_norm.bias": (768,),
    "encoder_2.face_encoder.blocks.23.attn.qkv.weight": (2304, 768),
    "encoder_2.face_patch_proj.weight": (4096, 768),
    "encoder_2.face_pos_proj.bias": (4096,),
    "encoder_2.positional_embedding": (1, 512, 4096),
    f"{T5}.embed_tokens.weight": (32128, 4096),
    f"{T5}.block.0.self_attention_layer.self_attention.pe_encoding.relative_attention_bias.weight": (32, 64),
    f"{T5}.block.23.self_attention_layer.self_attention.Wq.weight": (4096, 4096),
    f"{T5}.block.23.self_attention_layer.self_attention.o.weight": (4096, 4096),
    f"{T5}.block.23.self_attention_layer.layer_norm.weight": (4096,),
    f"{T5}.block.23.ff_layer.act.wi_1.weight": (10240, 4096),
    f"{T5}.block.23.ff_layer.wo.weight": (4096, 10240),
    f"{T5}.block.23.ff_layer.layer_norm.weight": (4096,),
    f"{T5}.final_layer_norm.weight": (4096,),
    "encoder_2.fuser.encoder.layers.5.self_attn.in_proj_weight": (12288, 4096),
    "encoder_2.fuser.encoder.layers.5.linear1.weight": (2048, 4096),
    "encoder_2.fuser.encoder.text_layers.5.linear1.weight": (1024, 4096),
    "encoder_2.fuser.encoder.fusion_layers.5.attn.values_l_proj.weight": (1024, 4096),
    "encoder_2.fuser.encoder.fusion_layers.5.gamma_v": (4096,),
    "encoder_2.fuser.enc_output_norm.weight": (4096,),
}  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_bases_are_the_published_ones(name: str) -> None:
    model = build(name)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert count(model) == BASES[name].parameters
    state = model.state_dict()
    assert {k: tuple(state[k].shape) for k in SHAPES[name]} == SHAPES[name]


@pytest.mark.parametrize(("name", "prefix"), [("L", "face_clip_l"), ("bigG", "face_clip_g")])
def test_faceclip_branches_have_the_published_keys(name: str, prefix: str) -> None:
    published = {k.removeprefix("model."): tuple(s) for k, s in json.loads(gzip.decompress(KEYS.read_bytes())).items()}
    ours = {k: tuple(v.shape) for k, v in build(name).to_published().items()}
    assert ours == {k: s for k, s in published.items() if k.startswith(f"{prefix}.")}


def test_facet5_conditions_flux() -> None:
    config, encoder, flux = FACET5_PRESETS["flux"], build("flux"), build("flux-transformer")
    # T5 v1.1 XXL's encoder: 4.762 billion values, as its published weights.
    assert count(encoder.t5) == 4_762_310_656
    assert not any("sampling_offsets" in k for k in encoder.state_dict())
    assert encoder.fuser.encoder.layers[0].self_attn.in_proj_weight.shape == (3 * 4096, 4096)
    published = {k: tuple(v.shape) for k, v in encoder.to_published().items()}
    assert len(published) == 958
    assert {k: published[k] for k in FACET5_KEYS} == FACET5_KEYS
    assert not any("text_embed_proj" in k or "text_pos_proj" in k or "text_projection" in k for k in published)
    with torch.device("meta"):
        faces = FaceTokens(torch.empty(1, 512), torch.empty(1, 144, 768))
        ids = torch.empty(2, config.t5.context, dtype=torch.long)
        out = encoder(ids, ids[:, : config.clip.context], faces)
    assert out.tokens.shape == (2, 512, flux.config.joint_attention_dim)
    assert out.pooled.shape == (2, flux.config.pooled_projection_dim)


def test_faceclip_conditions_sdxl() -> None:
    unet, encoder = build("sdxl-unet"), build("sdxl")
    assert sum(b.text.width for b in encoder.config.branches) == unet.config.cross_attention_dim
    pooled = encoder.config.branches[-1].text.width
    assert pooled + 6 * unet.config.addition_time_embed_dim == unet.config.projection_class_embeddings_input_dim


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="sdxl-unet"):
        build("sd3")

"""The parts, each against something that was written by others or spelled out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from limner.encoders.config import FaceViTConfig, FuserConfig, TextTowerConfig
from limner.encoders.face_vit import FaceTokens, FaceViT, check_images, fuse_faces, mix_faces
from limner.encoders.fuser import DeformableAttention, Fuser
from limner.encoders.text_tower import TextTower
from limner.errors import ConfigError, ImageError


def as_transformers(tower: TextTower, config: TextTowerConfig) -> CLIPTextModelWithProjection:
    """The same tower as transformers has it."""
    theirs = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=config.vocabulary, hidden_size=config.width, intermediate_size=4 * config.width,
            num_hidden_layers=config.depth, num_attention_heads=config.heads, hidden_act=config.activation,
            max_position_embeddings=config.context, projection_dim=config.projection,
            eos_token_id=config.vocabulary - 1,
        )
    ).eval()  # fmt: skip
    ours, state = tower.state_dict(), {}
    for key in theirs.state_dict():
        name = key.split("text_model.")[-1]
        for old, new in (
            ("embeddings.token_embedding", "token_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("encoder.layers", "transformer.resblocks"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("self_attn", "attn"),
            ("final_layer_norm", "ln_final"),
            ("text_projection.weight", "text_projection"),
        ):
            name = name.replace(old, new)
        part = next((i for i, p in enumerate("qkv") if f".{p}_proj." in name), None)
        if part is not None:
            name = name.replace(f".{'qkv'[part]}_proj.", ".in_proj_")
            state[key] = ours[name].chunk(3)[part]
        else:
            state[key] = ours[name].T if name == "text_projection" else ours[name]
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_text_tower_is_transformers_clip(activation: str) -> None:
    torch.manual_seed(0)
    config = TextTowerConfig(48, 3, 4, activation=activation, context=16, vocabulary=99, projection=24)
    tower = TextTower(config).eval()
    for value in tower.parameters():
        value.add_(0.2 * torch.randn_like(value))
    ids = torch.randint(1, 98, (5, 16))
    for row, end in enumerate((3, 15, 7, 1, 9)):
        ids[row, end], ids[row, end + 1 :] = 98, 0
    out, theirs = tower(ids), as_transformers(tower, config)(input_ids=ids)
    torch.testing.assert_close(out.tokens, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.feature, torch.nn.functional.normalize(theirs.text_embeds), atol=1e-5, rtol=1e-5)
    assert torch.equal(out.pooled[0], out.tokens[0, 3])


@torch.no_grad()
def test_a_replaced_token_changes_what_follows_and_nothing_before() -> None:
    torch.manual_seed(0)
    tower = TextTower(TextTowerConfig(32, 2, 4, context=12, vocabulary=50, projection=8)).eval()
    ids, new = torch.randint(1, 49, (2, 12)), torch.randn(2, 32)
    plain, full = tower(ids).tokens, tower.encode_text(ids, new, 4).tokens
    assert torch.equal(plain[:, :4], full[:, :4])
    assert (plain[:, 4:] - full[:, 4:]).abs().amax(-1).min() > 1e-4
    some = tower.encode_text(ids, new, 4, torch.tensor([0.0, 1.0])).tokens
    assert torch.equal(some[0], plain[0])
    torch.testing.assert_close(some[1], full[1])


def read_by_hand(values: Tensor, x: float, y: float) -> Tensor:
    """Bilinear reading of (side, side, C) at pixel coordinates, zeros outside."""
    side, total = len(values), torch.zeros(values.shape[-1])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < side and 0 <= column < side:
                total += values[row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


@torch.no_grad()
def test_deformable_attention_reads_what_the_equation_says() -> None:
    torch.manual_seed(0)
    side, width, heads, points = 4, 16, 2, 3
    layer = DeformableAttention(width, heads, points)
    layer.sampling_offsets.weight.normal_(std=0.6)  # some points fall outside
    layer.attention_weights.weight.normal_(std=0.5)
    x, positions = torch.randn(2, side * side, width), torch.randn(side * side, width)
    offsets = layer.sampling_offsets(x + positions).view(2, -1, heads, points, 2)
    weights = layer.attention_weights(x + positions).view(2, -1, heads, points).softmax(-1)
    values = layer.value_proj(x).view(2, side, side, heads, -1)
    expected = torch.zeros(2, side * side, heads, width // heads)
    for b in range(2):
        for q in range(side * side):
            for h in range(heads):
                for p in range(points):
                    dx, dy = offsets[b, q, h, p].tolist()
                    read = read_by_hand(values[b, :, :, h], q % side + dx, q // side + dy)
                    expected[b, q, h] += weights[b, q, h, p] * read
    torch.testing.assert_close(layer(x, positions), layer.output_proj(expected.flatten(2)), atol=1e-5, rtol=1e-5)


def test_fuser_reads_the_face_and_learns_through_every_used_part() -> None:
    torch.manual_seed(0)
    fuser = Fuser(32, FuserConfig(depth=2, heads=4, points=2, feedforward=64, gain=0.1))
    face, text = torch.randn(2, 9, 32), torch.randn(2, 7, 32)
    out = fuser(face, text, torch.randn(9, 32), torch.randn(7, 32))
    assert out.shape == (2, 7, 32)
    out.square().sum().backward()
    idle = {k for k, p in fuser.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    last_face = ("layers.1.", "fusion_layers.1.gamma_v", "fusion_layers.1.attn.values_l", "fusion_layers.1.attn.out_v")
    assert all(k.startswith(tuple(f"encoder.{p}" for p in last_face)) or k.endswith("l_proj.bias") for k in idle)


@torch.no_grad()
def test_one_face_for_all_prompts_is_the_same_as_a_copy_for_each() -> None:
    torch.manual_seed(0)
    fuser = Fuser(32, FuserConfig(depth=2, heads=4, points=2, feedforward=64, gain=0.1)).eval()
    face, text, face_at, text_at = (torch.randn(s) for s in ((1, 9, 32), (3, 7, 32), (9, 32), (7, 32)))
    once = fuser(face, text, face_at, text_at)
    torch.testing.assert_close(once, fuser(face.expand(3, -1, -1), text, face_at, text_at))


@pytest.fixture
def vit() -> FaceViT:
    torch.manual_seed(0)
    return FaceViT(FaceViTConfig(image_size=40, patch_size=9, width=32, depth=2, heads=4, output=16, mask_ratio=0.5))


@torch.no_grad()
def test_face_encoder_resizes_and_normalises(vit: FaceViT) -> None:
    vit.eval()
    images = torch.rand(2, 3, 60, 55)
    out = vit(images)
    assert out.patch_tokens.shape == (2, 16, 32)
    torch.testing.assert_close(out.class_token.norm(dim=-1), torch.ones(2))
    by_hand = torch.nn.functional.interpolate(images, (40, 40), mode="bilinear")
    torch.testing.assert_close(vit(by_hand).patch_tokens, out.patch_tokens)


@torch.no_grad()
def test_patches_are_masked_in_training_only(vit: FaceViT) -> None:
    images = torch.rand(4, 3, 40, 40)
    vit.train()
    assert not torch.equal(vit(images).patch_tokens, vit(images).patch_tokens)
    vit.eval()
    assert torch.equal(vit(images).patch_tokens, vit(images).patch_tokens)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full((1, 3, 8, 8), 1.2), "[0, 1]"),
        (torch.full((1, 3, 8, 8), -0.5), "[0, 1]"),
        (torch.full((1, 3, 8, 8), float("nan")), "nan"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 8, 8), "(3, 8, 8)"),
        (torch.zeros(1, 4, 8, 8), "(1, 4, 8, 8)"),
        (torch.zeros(0, 3, 8, 8), "(0, 3, 8, 8)"),
    ],
)
def test_pictures_that_are_none_are_refused(images: Tensor, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        check_images(images)
    assert words in str(caught.value)


def test_photos_fuse_by_weighted_direction() -> None:
    a, b = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    faces = FaceTokens(torch.stack([a, b]), torch.stack([4 * a, 2 * b])[:, None])
    fused = fuse_faces(faces, [3, 1])
    torch.testing.assert_close(fused.class_token, torch.tensor([[3.0, 1, 0]]) / 10**0.5)
    torch.testing.assert_close(fused.patch_tokens.norm(), torch.tensor(3.5))
    same = fuse_faces(FaceTokens(a.expand(3, 3), a.expand(3, 1, 3)))
    torch.testing.assert_close(same.class_token[0], a)
    for wrong in ([1.0], [0, 0], [1, -1], [1, math.nan]):
        with pytest.raises(ConfigError):
            fuse_faces(faces, wrong)


def test_mixing_ends_exactly_at_the_null_face_and_at_the_person() -> None:
    null, person = (FaceTokens(torch.randn(1, 4), torch.randn(1, 6, 8)) for _ in range(2))
    assert torch.equal(mix_faces(null, person, 1.0).patch_tokens, person.patch_tokens)
    assert torch.equal(mix_faces(null, person, 0.0).patch_tokens, null.patch_tokens)
    half = mix_faces(null, person, 0.5).patch_tokens
    torch.testing.assert_close(half, (null.patch_tokens + person.patch_tokens) / 2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: FaceViTConfig(width=100, heads=8),
        lambda: FaceViTConfig(patch_size=200),
        lambda: TextTowerConfig(activation="relu"),
        lambda: TextTowerConfig(context=5),
        lambda: FuserConfig(heads=3),
    ],
)
def test_impossible_sizes_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        wrong()

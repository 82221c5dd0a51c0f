"""The M² ID encoder: which parts of the recogniser it reads, how many words it makes, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limner.encoders.config import FaceViTConfig
from limner.encoders.face_vit import FaceViT
from limner.encoders.m2id import PRESETS, M2IDConfig, M2IDEncoder, preset, word_norm
from limner.encoders.parts import save_face
from limner.encoders.scales import ClipVisionConfig, FaceBackbone, load_backbone, quarters
from limner.errors import ConfigError, CorruptData, ImageError, WeightsMismatch, WeightsUnavailable

FACE = FaceViTConfig(image_size=28, patch_size=7, width=16, depth=4, heads=2, output=8)
CLIP = ClipVisionConfig(image_size=28, patch_size=7, width=16, depth=4, heads=2, feedforward=32, output=12)


def config(**changes: Any) -> M2IDConfig:
    values = {"widths": (6, 10), "layers": (1, 3, 4), "hidden": 16, "face": FACE, **changes}
    return M2IDConfig(**values)


@pytest.fixture
def faces() -> torch.Tensor:
    return torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["face", "clip"])
@pytest.mark.parametrize("words", [1, 2, 4, 8])
def test_k_words_for_every_tower(kind: str, words: int, faces: torch.Tensor) -> None:
    encoder = M2IDEncoder(
        config(words=words, face=FACE if kind == "face" else None, clip=CLIP if kind == "clip" else None)
    )
    assert [tuple(w.shape) for w in encoder(faces)] == [(3, words, 6), (3, words, 10)]
    first = encoder(faces)[0][0]
    assert len(torch.unique(first, dim=0)) == words  # an MLP of its own for every word


def test_without_multi_scale_only_the_identity_vector_is_read(faces: torch.Tensor) -> None:
    encoder = M2IDEncoder(config(multi_scale=False))
    assert [tuple(v.shape) for v in encoder.scales(faces)] == [(3, 8)]
    with_all = M2IDEncoder(config())
    assert [tuple(v.shape) for v in with_all.scales(faces)] == [(3, 16)] * 3 + [(3, 8)]


def test_scales_are_what_the_layers_say(faces: torch.Tensor) -> None:
    vit = FaceViT(FACE).eval()
    v1, v4, final = FaceBackbone(vit)(faces, (1, 4))
    tokens = vit.blocks[0](vit.patch_embed(faces) + vit.pos_embed)
    assert torch.allclose(v1, tokens.mean(1), atol=1e-6)
    for block in vit.blocks[1:]:
        tokens = block(tokens)
    assert torch.allclose(v4, tokens.mean(1), atol=1e-6)
    assert torch.equal(final, vit(faces).class_token)
    assert not any(block._forward_hooks for block in vit.blocks)


def test_clip_reads_class_tokens_of_normalised_pictures(faces: torch.Tensor) -> None:
    encoder = M2IDEncoder(config(face=None, clip=CLIP))
    tower: Any = encoder.backbone.tower
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (CLIP.mean, CLIP.std))
    said = tower(pixel_values=(faces - mean) / std, output_hidden_states=True)
    v1, _, v4, final = encoder.scales(faces)
    assert torch.allclose(v1, said.hidden_states[1][:, 0], atol=1e-6)
    assert torch.allclose(v4, said.last_hidden_state[:, 0], atol=1e-6)
    assert torch.allclose(final, said.image_embeds, atol=1e-6)


def test_the_backbone_never_leaves_evaluation_mode(faces: torch.Tensor) -> None:
    encoder = M2IDEncoder(config()).train()
    before = encoder.state_dict()["backbone.vit.feature.1.running_mean"].clone()
    assert torch.equal(encoder(faces)[0], encoder(faces)[0])
    assert torch.equal(before, encoder.state_dict()["backbone.vit.feature.1.running_mean"])


def test_untrained_words_have_the_size_of_word_embeddings(faces: torch.Tensor) -> None:
    for words in M2IDEncoder(M2IDConfig(widths=(768, 1280), layers=(1, 3), hidden=256, face=FACE))(faces):
        assert 0.01 < float(words.detach().std()) < 0.04


def test_regulariser() -> None:
    words = [torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]), torch.tensor([[[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]]])]
    assert word_norm(words).tolist() == [5 + 2 + 1 + 2]


def test_several_pictures_of_one_person(faces: torch.Tensor) -> None:
    encoder = M2IDEncoder(config())
    alone = encoder.enroll(faces[:1])
    assert alone["words.0"].shape == (2, 6)
    assert torch.allclose(alone["class_token.0"].norm(), torch.tensor(1.0))
    assert torch.allclose(encoder.enroll(faces[[0, 0]])["words.1"], alone["words.1"], atol=1e-5)
    assert torch.allclose(encoder.enroll(faces[:2], [1.0, 0.0])["words.0"], alone["words.0"], atol=1e-5)
    assert not torch.allclose(encoder.enroll(faces[:2])["words.0"], alone["words.0"], atol=1e-4)
    with pytest.raises(ConfigError, match="weights"):
        encoder.enroll(faces, [1.0])
    with pytest.raises(ImageError, match=r"\[0, 1\]"):
        encoder.enroll(faces * 255)


@pytest.mark.parametrize("kind", ["face", "clip"])
def test_saved_and_loaded(kind: str, faces: torch.Tensor, tmp_path: Path) -> None:
    encoder = M2IDEncoder(config(face=FACE if kind == "face" else None, clip=CLIP if kind == "clip" else None)).eval()
    encoder.save_pretrained(tmp_path)
    again = M2IDEncoder.from_pretrained(tmp_path)
    assert again.config == encoder.config
    assert all(torch.equal(a, b) for a, b in zip(encoder(faces), again(faces), strict=True))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"model\.safetensors does not exist"):
        M2IDEncoder.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(CorruptData, match="no M² ID encoder"):
        M2IDEncoder.from_pretrained(tmp_path)
    with pytest.raises(WeightsUnavailable, match="holds no recogniser"):
        load_backbone(tmp_path / "absent")


def test_backbones_from_folders(faces: torch.Tensor, tmp_path: Path) -> None:
    vit = FaceViT(FACE).eval()
    save_face(tmp_path, vit)
    backbone = load_backbone(tmp_path)
    assert backbone.config == FACE
    assert torch.equal(backbone(faces, ())[0], vit(faces).class_token)
    clip: Any = M2IDEncoder(config(face=None, clip=CLIP)).backbone
    clip.tower.save_pretrained(tmp_path / "clip")
    with pytest.raises(ConfigError, match="preprocessor_config"):
        load_backbone(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    assert load_backbone(tmp_path / "clip").config.std == (1, 1, 1)
    clip.tower.save_pretrained(tmp_path / "task" / "image")  # as the clip task exports it
    assert load_backbone(tmp_path / "task").config.mean == (0.5, 0.5, 0.5)
    with pytest.raises(WeightsMismatch, match="backbone's sizes"):
        M2IDEncoder(config(), load_backbone(tmp_path / "task"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (3, 1)}, r"layers is \(3, 1\); allowed: rising numbers from 1 to 4"),
        ({"layers": (5,)}, "rising numbers from 1 to 4"),
        ({"words": 0}, "words is 0"),
        ({"widths": ()}, "widths"),
        ({"clip": CLIP}, "either face or clip"),
        ({"face": None}, "either face or clip"),
    ],
)
def test_wrong_sizes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_presets() -> None:
    assert quarters(12) == (3, 6, 9, 12)
    assert {n: c.widths for n, c in PRESETS.items()} == {"sd21": (1024,), "sdxl": (768, 1280), "mini": (128, 192)}
    assert all(c.words == 2 for c in PRESETS.values())
    with torch.device("meta"):
        head = M2IDEncoder(preset("sd21")).head
    channels, hidden = 4 * 768 + 512, 1024
    word = (channels + 1) * hidden + (hidden + 1) * 1024
    assert sum(p.numel() for p in head.parameters()) == 2 * word + 2 * channels
    with pytest.raises(ConfigError, match="known: sd21, sdxl, mini"):
        preset("sd3")


def test_null_words_follow_the_weights() -> None:
    encoder = M2IDEncoder(config()).eval()
    first = encoder.null_words()
    assert all(a is b for a, b in zip(first, encoder.null_words(), strict=True))
    with torch.no_grad():
        encoder.head.towers[0][0][0].weight.mul_(2)  # type: ignore[index]
    assert not torch.equal(first[0], encoder.null_words()[0])
    assert encoder.to(torch.bfloat16).null_words()[0].dtype == torch.bfloat16

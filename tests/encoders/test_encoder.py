"""The whole encoder: enrolment apart from prompting, strength, null face, files, bad input."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from limner.encoders.faceclip import FaceCLIPEncoder, from_published, preset
from limner.encoders.tokenizer import PromptTokenizer, PromptTruncated, build_word_tokenizer
from limner.errors import ConfigError, CorruptData, ImageError, PromptError, WeightsMismatch, WeightsUnavailable

PROMPTS = ["a smiling chef", "portrait of the wizard with hat"]


def assert_same(a, b, atol: float = 1e-5) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=1e-4)


def test_shapes_are_those_of_a_two_tower_base(mini: FaceCLIPEncoder, photos: torch.Tensor) -> None:
    out = mini.encode(photos[:2], PROMPTS, [True, False])
    assert out.tokens.shape == (2, 40, 128 + 192)
    assert out.pooled.shape == (2, 192)
    assert out.text_feature.shape == (2, 192)
    assert out.face_feature.shape == (2, 128)
    assert not out.tokens.requires_grad


def test_an_enrolled_face_is_painted_as_if_seen_again(mini: FaceCLIPEncoder, photos: torch.Tensor) -> None:
    person = mini.enroll(photos[:1])
    assert {k: tuple(v.shape) for k, v in person.items()} == {"class_token.0": (128,), "patch_tokens.0": (64, 192)}
    assert_same(mini.encode_identity(person, PROMPTS), mini.encode(photos[:1].expand(2, -1, -1, -1), PROMPTS))


def test_faces_and_prompts_both_matter(mini: FaceCLIPEncoder, photos: torch.Tensor) -> None:
    a, b = (mini.encode(photos[i : i + 1], PROMPTS[:1]).tokens for i in range(2))
    other_prompt = mini.encode(photos[:1], PROMPTS[1:]).tokens
    nobody = mini.encode(None, PROMPTS[:1]).tokens
    for other in (b, other_prompt, nobody):
        assert (a - other).abs().max() > 1e-3


def test_rows_without_a_face_ignore_their_picture(mini: FaceCLIPEncoder, photos: torch.Tensor) -> None:
    mixed = mini.encode(photos[:2], PROMPTS, [True, False])
    assert_same([v[1:] for v in mixed], mini.encode(None, PROMPTS[1:]))
    zeros = mini.encode(torch.zeros_like(photos[:1]), PROMPTS[1:], [False])
    assert_same([v[1:] for v in mixed], zeros)
    assert_same([v[:1] for v in mixed], mini.encode(photos[:1], PROMPTS[:1]))


def test_strength_runs_from_nobody_to_the_person(mini: FaceCLIPEncoder, photos: torch.Tensor) -> None:
    person = mini.enroll(photos[:1])
    nobody, full = mini.encode_identity(None, PROMPTS), mini.encode_identity(person, PROMPTS)
    assert_same(mini.encode_identity(person, PROMPTS, 0.0), nobody, atol=0)
    assert_same(mini.encode_identity(person, PROMPTS, 1.0), full, atol=0)
    steps = [(mini.encode_identity(person, PROMPTS, s).tokens - full.tokens).norm() for s in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert steps == sorted(steps, reverse=True)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="strength"):
            mini.encode_identity(person, PROMPTS, wrong)


def test_several_photos_make_one_person(mini: FaceCLIPEncoder, photos: torch.Tensor) -> None:
    one, all_three = mini.enroll(photos[:1]), mini.enroll(photos)
    assert_same(mini.enroll(photos[:1].expand(3, -1, -1, -1)).values(), one.values())
    assert_same(mini.enroll(photos, [1, 0, 0]).values(), one.values())
    torch.testing.assert_close(all_three["class_token.0"].norm(), torch.tensor(1.0))
    assert not torch.allclose(all_three["class_token.0"], one["class_token.0"])


def test_the_null_face_follows_the_weights(mini: FaceCLIPEncoder) -> None:
    before = mini.null_faces()
    assert mini.null_faces() is before
    with torch.no_grad():
        mini.faces[0].norm.bias.add_(1)
    assert not torch.equal(mini.null_faces()[0].patch_tokens, before[0].patch_tokens)
    assert mini.to(torch.float64).null_faces()[0].class_token.dtype == torch.float64


def test_face_encoders_stay_frozen_while_the_rest_trains(mini: FaceCLIPEncoder) -> None:
    mini.train()
    assert mini.branches[0].training
    assert not any(m.training for m in mini.faces[0].modules())
    mini.branches[0].freeze_towers()
    trained = {k.split(".")[0] for k, p in mini.branches[0].named_parameters() if p.requires_grad}
    assert trained == {
        "proj1", "face_patch_proj", "face_pos_proj", "text_embed_proj", "text_pos_proj", "fuser", "logit_scale",
        "logit_bias",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_agree(mini: FaceCLIPEncoder, photos: torch.Tensor, dtype: torch.dtype) -> None:
    exact = mini.encode(photos[:2], PROMPTS, [True, False])
    other = mini.to(dtype).encode(photos[:2], PROMPTS, [True, False])
    assert other.tokens.dtype == dtype
    tolerance = 0.15 if dtype == torch.bfloat16 else 1e-4
    assert (other.tokens.float() - exact.tokens).abs().max() < tolerance


def test_saved_models_come_back_and_shared_faces_are_written_once(
    mini: FaceCLIPEncoder, photos: torch.Tensor, tmp_path
) -> None:
    mini.save_pretrained(tmp_path / "m")
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as f:
        assert json.loads(f.metadata()["limner.faceclip"]) == mini.config.to_dict()
        assert not any(k.startswith("face_clip_g.face_encoder") for k in f.keys())  # noqa: SIM118
    again = FaceCLIPEncoder.from_pretrained(tmp_path / "m")
    assert again.config == mini.config
    assert len(again.faces) == 1
    kept = mini.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in again.state_dict().items())
    assert_same(again.encode(photos[:1], PROMPTS[:1]), mini.encode(photos[:1], PROMPTS[:1]))
    half = FaceCLIPEncoder.from_pretrained(tmp_path / "m", torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_folders_that_are_no_models_are_refused(mini: FaceCLIPEncoder, tmp_path) -> None:
    with pytest.raises(WeightsUnavailable):
        FaceCLIPEncoder.from_pretrained(tmp_path)
    mini.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptData):
        FaceCLIPEncoder.from_pretrained(tmp_path)


def test_without_a_tokenizer_prompts_are_refused(mini: FaceCLIPEncoder, tmp_path) -> None:
    encoder = from_published(mini.to_published(), None, mini.config)
    with pytest.raises(ConfigError, match="tokenizer"):
        encoder.encode(None, ["a chef"])
    encoder.tokenizer = mini.tokenizer
    assert_same(encoder.encode(None, ["a chef"]), mini.encode(None, ["a chef"]))


def test_tokenizers_that_do_not_fit_are_refused(words: PromptTokenizer) -> None:
    config = preset("mini").with_text(vocabulary=len(words))
    with pytest.raises(WeightsMismatch, match="at most"):
        FaceCLIPEncoder(config, build_word_tokenizer([f"w{i}" for i in range(len(words))]))
    longer = build_word_tokenizer(["a"])
    longer.add_tokens(["b"])
    with pytest.raises(WeightsMismatch, match="highest id"):
        FaceCLIPEncoder(config, longer)


def test_bad_input_is_refused_by_type(mini: FaceCLIPEncoder, photos: torch.Tensor) -> None:
    with pytest.raises(ImageError, match=r"\[0, 1\]"):
        mini.encode(photos[:1] * 255, PROMPTS[:1])
    with pytest.raises(ImageError, match="2 prompts"):
        mini.encode(photos, PROMPTS)
    with pytest.raises(ImageError, match="got none"):
        mini.encode(None, PROMPTS, [True, False])
    with pytest.raises(PromptError, match="has_face"):
        mini.encode(photos[:2], PROMPTS, [True])
    for wrong in ([], "a chef"):
        with pytest.raises(PromptError):
            mini.encode(None, wrong)
    with pytest.raises(WeightsMismatch, match=r"class_token\.0"):
        mini.encode_identity({"class_token.0": torch.zeros(3), "patch_tokens.0": torch.zeros(64, 192)}, PROMPTS)
    with pytest.warns(PromptTruncated, match="chef chef"):
        mini.encode(photos[:1], ["chef " * 50])


def test_unknown_presets_and_widths_ask_for_a_config(mini: FaceCLIPEncoder) -> None:
    with pytest.raises(ConfigError, match="bigG"):
        preset("medium")
    state = {k: v[..., :100] if k.endswith("ln_final.weight") else v for k, v in mini.to_published().items()}
    with pytest.raises(WeightsMismatch, match=r"128, 192, 768, 1280 is expected; got 100"):
        from_published(state, None)

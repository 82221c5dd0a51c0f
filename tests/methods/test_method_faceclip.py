"""FaceCLIP as a method: what the denoiser is told, and which identities are accepted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from limner.encoders.faceclip import FaceCLIPEncoder, preset
from limner.encoders.tokenizer import build_word_tokenizer
from limner.errors import FaceError, WeightsMismatch
from limner.methods.faceclip import FaceCLIP
from limner.types import Face, Identity, Quality

PROMPTS = ["a smiling chef", "portrait of the wizard", "a smiling chef"]


def make_method(seed: int) -> FaceCLIP:
    torch.manual_seed(seed)
    words = build_word_tokenizer([*PROMPTS, "blurry"], context=40)
    encoder = FaceCLIPEncoder(preset("mini").with_text(vocabulary=len(words)), words).eval()
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if "gamma_" in name or "proj1" in name:
                value.normal_()
    return FaceCLIP(encoder)


@pytest.fixture(scope="module")
def method() -> FaceCLIP:
    return make_method(0)


def make_face(seed: int, score: float | None = None) -> Face:
    image = np.random.default_rng(seed).random((3, 448, 448), dtype=np.float32)
    quality = None if score is None else Quality(size=300, sharpness=1, score=score)
    return Face(image=image, box=(0, 0, 9, 9), score=0.9, matrix=np.eye(3)[:2], quality=quality)


@pytest.fixture(scope="module")
def identity(method: FaceCLIP) -> Identity:
    return method.enroll([make_face(1)])


def test_conditioning_is_the_encoders_with_the_null_face_as_negative(method: FaceCLIP, identity: Identity) -> None:
    got = method.condition(identity, PROMPTS, negative_prompts=["blurry"])
    face = torch.from_numpy(make_face(1).image)[None].expand(3, -1, -1, -1)
    positive = method.encoder.encode(face, PROMPTS)
    negative = method.encoder.encode(torch.zeros_like(face), ["blurry"] * 3, [False] * 3)
    assert got.prompt_embeds.shape == (3, 40, 320)
    for a, b in (
        (got.prompt_embeds, positive.tokens),
        (got.pooled, positive.pooled),
        (got.negative_prompt_embeds, negative.tokens),
        (got.negative_pooled, negative.pooled),
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_no_identity_paints_the_prompt_alone(method: FaceCLIP, identity: Identity) -> None:
    nobody = method.condition(None, PROMPTS)
    assert torch.equal(method.condition(identity, PROMPTS, strength=0).prompt_embeds, nobody.prompt_embeds)
    torch.testing.assert_close(nobody.prompt_embeds, method.encoder.encode(None, PROMPTS).tokens, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(method.condition(identity, PROMPTS).prompt_embeds, nobody.prompt_embeds, atol=1e-3)


def test_identities_survive_a_file_and_hold_no_picture(method: FaceCLIP, identity: Identity, tmp_path) -> None:
    identity.save(tmp_path / "a.safetensors")
    again = Identity.load(tmp_path / "a.safetensors")
    assert again.digest() == identity.digest()
    assert again.info["references"] == 1
    assert torch.equal(
        method.condition(again, PROMPTS).prompt_embeds, method.condition(identity, PROMPTS).prompt_embeds
    )
    assert {tuple(v.shape) for v in again.tensors.values()} == {(128,), (64, 192)}


def test_better_photos_weigh_more(method: FaceCLIP) -> None:
    alone = method.enroll([make_face(1)]).tensors["patch_tokens.0"]

    def distance(score: float) -> float:
        both = method.enroll([make_face(1, score), make_face(2, 0.5)]).tensors["patch_tokens.0"]
        return (both - alone).norm().item()

    assert distance(1.0) < distance(0.5) < distance(0.1)


def test_identities_of_other_weights_methods_and_versions_are_refused(method: FaceCLIP, identity: Identity) -> None:
    foreign = make_method(1).enroll([make_face(1)])
    bare = dataclasses.replace(identity, tensors={k: v for k, v in identity.tensors.items() if "null" not in k})
    for wrong in (
        foreign,
        bare,
        dataclasses.replace(identity, method="dreamidentity"),
        dataclasses.replace(identity, version=99),
    ):
        with pytest.raises(WeightsMismatch, match=r"[Ee]nrol"):
            method.condition(wrong, PROMPTS)


def test_identities_move_between_precisions(method: FaceCLIP, identity: Identity) -> None:
    half = make_method(0)
    half.encoder.to(torch.bfloat16)
    exact = method.condition(identity, PROMPTS).prompt_embeds
    for person in (identity, half.enroll([make_face(1)])):
        rough = half.condition(person, PROMPTS).prompt_embeds
        assert rough.dtype == torch.bfloat16
        assert (rough.float() - exact).abs().mean() < 0.05


def test_a_tokenizer_given_replaces_the_encoders_own(method: FaceCLIP) -> None:
    words = build_word_tokenizer(["a"], context=40)
    bare = FaceCLIPEncoder(method.encoder.config).eval()
    assert FaceCLIP(bare, words).encoder.tokenizer is words


def test_enrolling_nobody_is_refused(method: FaceCLIP) -> None:
    with pytest.raises(FaceError):
        method.enroll([])

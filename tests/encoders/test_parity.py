"""The published numbers: layout, token ids and outputs."""

from __future__ import annotations

import gzip
import json

import faceclip_reference
import pytest
import torch
from synthetic_weights import PARITY, PROMPTS

from limner.encoders.faceclip import Encoded, FaceCLIPEncoder, from_published
from limner.encoders.importing import check_keys, published_layout
from limner.encoders.tokenizer import IDENTITY_PREFIX, PromptTokenizer, encode_prompts
from limner.errors import WeightsMismatch

FACES = [True, True, False]
State = dict[str, torch.Tensor]


def assert_stored(out: Encoded, stored: State, tolerance: float = 1e-4) -> None:
    for name, key in zip(Encoded._fields, ("fused", "pooled", "text_feature", "face_feature"), strict=True):
        torch.testing.assert_close(getattr(out, name), stored[key], atol=tolerance, rtol=0)


@torch.no_grad()
def test_stored_ids_give_the_stored_outputs(tiny: FaceCLIPEncoder, stored: State) -> None:
    faces = [tiny.faces[0](stored["image"])]
    assert_stored(tiny(stored["input_ids"], faces, torch.tensor([1.0, 1.0, 0.0])), stored)


def test_prompts_and_pictures_give_the_stored_ids_and_outputs(
    tiny_state: State, stored: State, merges: PromptTokenizer
) -> None:
    encoder = from_published({f"model.{k}": v for k, v in tiny_state.items()}, merges)
    assert torch.equal(encoder.tokenize(PROMPTS, torch.tensor(FACES)), stored["input_ids"])
    assert_stored(encoder.encode(stored["image"], PROMPTS, FACES), stored)


def test_a_picture_that_is_no_face_changes_nothing(tiny_state: State, stored: State, merges: PromptTokenizer) -> None:
    encoder = from_published(tiny_state, merges)
    images = stored["image"].clone()
    images[2] = 0.7
    assert_stored(encoder.encode(images, PROMPTS, torch.tensor(FACES)), stored)


def test_the_tokenizer_itself_pads_with_zero(stored: State, merges: PromptTokenizer) -> None:
    texts = [IDENTITY_PREFIX + PROMPTS[0], IDENTITY_PREFIX + PROMPTS[1], PROMPTS[2]]
    own = merges(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")["input_ids"]
    assert torch.equal(own, stored["input_ids"])
    assert torch.equal(encode_prompts(merges, texts, 77), own)


@torch.no_grad()
def test_an_independent_reading_of_the_paper_agrees(tiny_state: State, stored: State) -> None:
    out = faceclip_reference.run_branch(
        tiny_state, stored["input_ids"], stored["image"], torch.tensor(FACES), text_heads=4, face_heads=4, quick=True
    )
    for key, value in out.items():
        torch.testing.assert_close(value, stored[key], atol=1e-4, rtol=0)


def test_the_full_size_layout_is_the_published_one(tmp_path) -> None:
    text = gzip.decompress((PARITY / "faceclip_published_keys.json.gz").read_bytes()).decode()
    assert published_layout() == {k: tuple(v) for k, v in json.loads(text).items()}
    prefixed = tmp_path / "keys.json"
    prefixed.write_text(json.dumps({f"model.{k}": v for k, v in json.loads(text).items()}))
    assert check_keys(prefixed) == {"keys": 1686, "values": 1_573_352_072, "equal": True}


def test_published_keys_come_back_unchanged(tiny_state: State) -> None:
    back = from_published(dict(tiny_state), None).to_published()
    assert back.keys() == tiny_state.keys()
    assert all(torch.equal(back[k], tiny_state[k]) and back[k].dtype == tiny_state[k].dtype for k in back)


def test_several_branches_are_joined(tiny_state: State, stored: State, merges: PromptTokenizer) -> None:
    two = {f"face_clip_{n}.{k}": v.clone() for n in "lg" for k, v in tiny_state.items()}
    two["face_clip_g.face_encoder.norm.bias"] += 0.5
    encoder = from_published(two, merges)
    assert not encoder.config.shared_face
    assert len(encoder.enroll(stored["image"][:1])) == 4
    out = encoder.encode(stored["image"], PROMPTS, FACES)
    assert out.tokens.shape == (3, 77, 128)
    torch.testing.assert_close(out.tokens[..., :64], stored["fused"], atol=1e-4, rtol=0)
    assert (out.tokens[..., 64:] - stored["fused"]).abs().max() > 0.01
    assert out.pooled.shape == (3, 64)
    assert encoder.to_published().keys() == two.keys()


def test_equal_face_encoders_are_kept_once(tiny_state: State, stored: State, merges: PromptTokenizer) -> None:
    two = {f"face_clip_{n}.{k}": v.clone() for n in "lg" for k, v in tiny_state.items()}
    encoder = from_published(two, merges)
    assert encoder.config.shared_face
    assert len(encoder.faces) == 1
    assert encoder.to_published().keys() == two.keys()
    out = encoder.encode(stored["image"], PROMPTS, FACES)
    torch.testing.assert_close(out.tokens, stored["fused"].repeat(1, 1, 2), atol=1e-4, rtol=0)


def strict_error(state: State) -> str:
    with pytest.raises(WeightsMismatch) as caught:
        from_published(state, None)
    return str(caught.value)


def test_every_key_that_does_not_fit_is_named(tiny_state: State) -> None:
    missing = ("fuser.encoder.layers.3.norm2.bias", "token_embedding.weight", "logit_scale")
    state = {k: v for k, v in tiny_state.items() if k not in missing}
    state |= {"fuser.more": torch.zeros(2), "foreign": torch.zeros(1), "lora.up": torch.zeros(1)}
    state["proj1.weight"] = torch.zeros(64, 40)
    message = strict_error(state)
    for key in missing:
        assert f"missing: {key} " in message
    for key in ("fuser.more", "foreign", "lora.up"):
        assert f"unexpected: {key} " in message
    assert "wrong shape: proj1.weight: expected [64, 48], got [64, 40]" in message
    assert "7 differences" in message


def test_wrong_widths_and_foreign_files_are_refused(tiny_state: State) -> None:
    assert "32" in strict_error({k: v[:32] if k.startswith("ln_final") else v for k, v in tiny_state.items()})
    assert "conv_in.weight" in strict_error({"conv_in.weight": torch.zeros(4)})
    assert "epoch" in strict_error({**tiny_state, "epoch": 3})
    assert "nothing" in strict_error({})

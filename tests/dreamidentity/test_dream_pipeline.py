"""DreamIdentity from face to picture on all three shapes of base, and its identities on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dream_models import BASES, CONTEXT, WIDTHS, encoder, save_base, towers, unet, vae
from tiny_model import noise_face

from limner.encoders.dreamidentity import FaceWordsEncoder
from limner.errors import ConfigError, FaceError, PromptError, WeightsMismatch, WeightsUnavailable
from limner.methods.dreamidentity import DreamIdentity
from limner.pipelines.dreamidentity import DreamIdentityPipeline, assemble
from limner.pipelines.loading import load_model
from limner.provenance import compact
from limner.types import Face, Identity


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def base_folder(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(base, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pipe(base: str, base_folder: Path) -> DreamIdentityPipeline:
    made = assemble(base_folder, encoder(base), default_steps=2)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def face() -> Face:
    return noise_face(0)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def method(base: str = "mini", seed: int = 2, **options: Any) -> DreamIdentity:
    return DreamIdentity(FaceWordsEncoder(encoder(base, seed=seed), towers(base)), **options)


# --- the method ---------------------------------------------------------------------------------------------------


def test_conditioning(base: str, pipe: DreamIdentityPipeline, face: Face) -> None:
    dream = pipe.method
    person = dream.enroll([face])
    prompts = ["S* as a wizard", "a photo of S*", "S* as a wizard"]
    made = dream.condition(person, prompts, negative_prompts=["hat"])
    assert made.prompt_embeds.shape == (3, CONTEXT, sum(WIDTHS[base]))
    assert torch.equal(made.prompt_embeds[0], made.prompt_embeds[2])
    assert (made.pooled is None) == (base == "sd21")
    nobody = dream.condition(None, prompts, negative_prompts=["hat"])
    assert torch.equal(made.negative_prompt_embeds, nobody.negative_prompt_embeds)
    assert not torch.allclose(made.prompt_embeds, nobody.prompt_embeds, atol=1e-3)
    assert torch.allclose(dream.condition(person, prompts, strength=0.0).prompt_embeds, nobody.prompt_embeds, atol=1e-6)
    half = dream.condition(person, prompts, strength=0.5).prompt_embeds
    assert not torch.allclose(half, nobody.prompt_embeds, atol=1e-4)
    assert not torch.allclose(half, made.prompt_embeds, atol=1e-4)


def test_the_person_in_a_negative_prompt(face: Face) -> None:
    dream = method()
    person = dream.enroll([face])
    with_person, without = (
        dream.condition(person, ["S* in snow"], negative_prompts=[n]).negative_prompt_embeds
        for n in ("a photo of S*", "a photo of person person")
    )
    assert not torch.allclose(with_person, without, atol=1e-3)


def test_empty_negative_prompts_as_sdxl_was_trained(face: Face) -> None:
    dream = method("sdxl", zero_empty=True)
    made = dream.condition(None, ["a hat", "a hat"], negative_prompts=["", "snow"])
    assert made.negative_prompt_embeds is not None
    assert made.negative_pooled is not None
    assert not made.negative_prompt_embeds[0].any()
    assert not made.negative_pooled[0].any()
    assert made.negative_prompt_embeds[1].any()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a wizard in snow", r"does not say where the person is.*Write S\* for them, as in \"S\* as a wizard\""),
        ("T* as a wizard", r"T\*, which stands for nobody"),
        ("hat " * 14 + "S*", "too many words"),
    ],
)
def test_prompts_that_cannot_be_used(base: str, face: Face, prompt: str, message: str) -> None:
    dream = method(base)
    with pytest.raises(PromptError, match=message):
        dream.condition(dream.enroll([face]), [prompt])


def test_a_placeholder_of_ones_own(face: Face) -> None:
    dream, anna = method(), method(placeholder="<anna>")
    person = dream.enroll([face])
    a, b = dream.condition(person, ["S* in snow"]), anna.condition(person, ["<anna> in snow"])
    assert torch.equal(a.prompt_embeds, b.prompt_embeds)
    with pytest.raises(PromptError, match="cannot stand for a person"):
        method(placeholder="anna")


def test_two_people(face: Face) -> None:
    dream = method()
    a, b = dream.enroll([face]), dream.enroll([noise_face(1)])
    both = dream.together({"A*": a, "B*": b})
    made = dream.condition(both, ["A* and B* in snow"]).prompt_embeds
    swapped = dream.condition(dream.together({"A*": b, "B*": a}), ["B* and A* in snow"]).prompt_embeds
    assert torch.equal(made, swapped)
    alone = dream.condition(a, ["S* in snow"]).prompt_embeds
    assert torch.equal(dream.condition(both, ["A* in snow"]).prompt_embeds, alone)
    with pytest.raises(PromptError, match=r"S\*, which stands for nobody\. Known: A\*, B\*"):
        dream.condition(both, ["S* in snow"])
    with pytest.raises(ConfigError, match="already holds several"):
        dream.together({"C*": both})
    with pytest.raises(ConfigError, match="at least one"):
        dream.together({})


def test_identities_on_disk(face: Face, tmp_path: Path) -> None:
    dream = method()
    person = dream.enroll([face, noise_face(1)])
    assert person.info["references"] == 2
    compact(person).save(tmp_path / "me.safetensors")
    again = Identity.load(tmp_path / "me.safetensors")
    assert again.method == "dreamidentity"
    first, second = (dream.condition(i, ["S* in snow"]).prompt_embeds for i in (person, again))
    assert torch.allclose(first, second, atol=2e-2)  # half precision
    both = dream.together({"A*": person, "B*": dream.enroll([face])})
    both.save(tmp_path / "us.safetensors")
    us = Identity.load(tmp_path / "us.safetensors")
    assert torch.equal(dream.condition(both, ["A* B*"]).prompt_embeds, dream.condition(us, ["A* B*"]).prompt_embeds)


def test_identities_of_others_are_refused(face: Face) -> None:
    dream = method()
    with pytest.raises(WeightsMismatch, match="enrolled with other weights"):
        dream.condition(method(seed=9).enroll([face]), ["S* in snow"])
    with pytest.raises(WeightsMismatch, match="enrolled with other weights"):
        dream.condition(method("sd21").enroll([face]), ["S* in snow"])
    stranger = Identity({"class_token.0": torch.ones(8)}, "faceclip", 1, "x")
    with pytest.raises(WeightsMismatch, match="enrolled by faceclip v1"):
        dream.condition(stranger, ["S* in snow"])
    with pytest.raises(FaceError, match="at least one face"):
        dream.enroll([])


def test_a_base_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsMismatch, match="word embeddings of width 24; words of width 16 and 24"):
        FaceWordsEncoder(encoder("mini"), towers("sd21"))
    folder = save_base("sd21", tmp_path)
    with pytest.raises(WeightsMismatch, match="Take an encoder that was trained for this base"):
        assemble(folder, encoder("sdxl"))
    with pytest.raises(WeightsUnavailable, match="holds no text towers"):
        assemble(tmp_path / "absent", encoder("sdxl"))
    words = FaceWordsEncoder(encoder("sd21"), towers("sd21"))
    with pytest.raises(WeightsMismatch, match="reads embeddings of 40 channels; the text towers give 24"):
        DreamIdentityPipeline(vae(), unet("mini"), ddim(), words)


# --- the pipeline -------------------------------------------------------------------------------------------------


def test_without_a_person_the_base_paints_what_it_always_painted(base: str, pipe: DreamIdentityPipeline) -> None:
    """Bit for bit what diffusers' own pipeline of the base paints: nothing of it was changed."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if base == "mini":
        pytest.skip("diffusers has no pipeline for Limner's own text towers")
    model: Any = pipe.encoder.towers
    parts = {"vae": pipe.vae, "unet": pipe.unet, "scheduler": pipe.scheduler}
    parts |= {"text_encoder": model.towers[0], "tokenizer": model.tokenizers[0]}
    if base == "sdxl":
        parts |= {"text_encoder_2": model.towers[1], "tokenizer_2": model.tokenizers[1]}
        theirs: Any = StableDiffusionXLPipeline(**parts)
    else:
        theirs = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    theirs.set_progress_bar_config(disable=True)
    dials = {"num_inference_steps": 3, "guidance_scale": 7.5, "output_type": "np"}
    for negative in (None, "a hat"):
        ours = pipe("a wizard in snow", negative_prompt=negative, generator=noise(), **dials).images
        same = theirs("a wizard in snow", negative_prompt=negative, generator=noise(), **dials).images
        assert np.array_equal(ours, same)


def test_a_person_saved_and_loaded(pipe: DreamIdentityPipeline, face: Face, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "dream")
    model = load_model(str(tmp_path / "dream"), device="cpu")
    assert model.pipe.config.default_guidance == 7.5
    assert model.pipe.default_size == (32, 32)
    dials = {"output_type": "np", "num_images_per_prompt": 2}
    first = pipe(["S* as a chef"], face, generator=noise(), **dials).images
    again = model.pipe(["S* as a chef"], face, generator=noise(), **dials).images
    assert first.shape == (2, 32, 32, 3)
    assert np.allclose(first, again, atol=1e-5)  # load_model lays convolutions out in another order
    other = pipe(["S* as a chef"], noise_face(1), generator=noise(), **dials).images
    assert not np.allclose(first, other, atol=1e-4)
    assert model.weights.keys() == {"encoder", "unet", "vae"}


def test_references_are_told_apart_by_the_backbone(pipe: DreamIdentityPipeline, face: Face) -> None:
    embedding = pipe.embedder.embed(face)
    assert embedding.shape == (pipe.embedder.dim,)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)


def test_freed_encoders(base: str, face: Face) -> None:
    from limner.pipelines.memory import encode_then_free

    made = DreamIdentityPipeline(
        vae(), unet(base), ddim(), FaceWordsEncoder(encoder(base), towers(base)), default_steps=1
    )
    made.set_progress_bar_config(disable=True)
    ready = encode_then_free(made, made.enroll(face), ["S* in snow"])
    assert made(conditioning=ready["S* in snow"], output_type="np").images.shape == (1, 32, 32, 3)
    with pytest.raises(ConfigError, match="memory was freed"):
        made.condition("a hat")


def ddim() -> Any:
    from limner.diffusion.schedule import NoiseSchedule

    return NoiseSchedule().scheduler("DDIMScheduler")

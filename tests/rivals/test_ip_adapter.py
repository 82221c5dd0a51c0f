"""IP-Adapter-FaceID: trained beside an untouched base, painted by diffusers' own machinery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dream_models import BASES, CONTEXT, WIDTHS, save_base
from rival_models import MARKS, assert_prompts_apart, data, digest, learns
from tiny_model import noise_face

from limner.diffusion.adapter import has_adapter, install, read_adapter
from limner.errors import ConfigError, FaceError, WeightsMismatch
from limner.pipelines.dreamidentity import base_parts
from limner.pipelines.loading import load_model
from limner.pipelines.regions import group
from limner.pipelines.rivals import IPAdapterPipeline
from limner.provenance import compact
from limner.training.dice import Dice, seed_everything
from limner.training.progress import silent
from limner.training.tasks.adapter import AdapterSettings, AdapterTask
from limner.types import Conditioning, Identity

Make = Callable[..., AdapterTask]


def settings(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": data(root), "held_out": data(root), "base": str(root / "base"), "recogniser": str(root / "face"),
        "steps": 2, **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def make(parts: Path, rival_cache: Path) -> Make:
    def build(**changes: Any) -> AdapterTask:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LIMNER_CACHE", str(rival_cache))
            seed_everything(0)
            task = AdapterTask(AdapterSettings.from_dict(settings(parts, **changes)))
            task.prepare(silent)
            return task

    return build


@pytest.fixture(scope="module")
def trained(make: Make) -> AdapterTask:
    task = make()
    learns(task, steps=3)
    task.model.eval()
    return task


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paint(pipe: Any, identity: Identity | None, **options: Any) -> np.ndarray:
    options = {"num_inference_steps": 2, "output_type": "np", "generator": noise(), **options}
    return pipe("a photo of S* in snow", identity=identity, **options).images


def test_it_learns_and_the_base_stays_as_it_was(make: Make) -> None:
    task = make()
    before = digest(task.vae, task.unet, task.encoder)
    losses = learns(task)
    assert losses[-1] < losses[0], losses
    assert digest(task.vae, task.unet, task.encoder) == before
    unused = [n for n, p in task.model.named_parameters() if p.grad is None]
    assert not unused, f"parameters without gradient would stop data-parallel training: {unused}"
    assert all(n.startswith("adapter.") for n in task.model.state_dict())


def test_errors_at_the_eyes_count_more_where_they_are_asked_to(make: Make) -> None:
    found = []
    for weight in (0.0, 8.0):
        task = make(eye_weight=weight, shift=4.0)
        assert task.schedule.shift == 4
        batch = task.source().batch(np.arange(4), 0)
        assert torch.equal(batch["landmarks"][0], torch.tensor(MARKS, dtype=torch.float32))
        found.append(task.each(task.model.eval(), batch, Dice(0, 0, range(4))).noise.detach())
    assert not torch.allclose(*found)


def test_face_and_text_are_dropped_as_often_as_asked(make: Make) -> None:
    task = make(drop_text=0.2, drop_face=0.3, drop_both=0.1)
    text, face = task.dropped(task.model.train(), Dice(0, 0, range(2000)))
    assert abs(float(text.float().mean()) - 0.3) < 0.04
    assert abs(float(face.float().mean()) - 0.4) < 0.04
    assert abs(float((text & face).float().mean()) - 0.1) < 0.03
    assert not any(bool(d.any()) for d in task.dropped(task.model.eval(), Dice(0, 0, range(2000))))


def test_the_face_is_another_picture_of_the_person(make: Make) -> None:
    source: Any = make().source()
    rows = np.arange(len(source))
    faces = source.faces["face"]
    for own, face in zip(rows, source.batch(rows, 0)["face"].numpy(), strict=True):
        found = {int(i) for i in np.flatnonzero((faces == face).all(1))}
        assert found
        assert own not in found
        assert all(source.pictures["identity"][i] == source.pictures["identity"][own] for i in found)
        assert all(source.pictures["reference"][i] for i in found)


def test_validation_and_sheet(trained: AdapterTask) -> None:
    with torch.no_grad():
        found = trained.validate()
        again = trained.validate()
    assert found == again
    assert found["n"] == 12
    assert found["loss"] != found["nobody"]
    assert trained.sheet().size[0] > 0


def test_a_dry_batch_goes_through(make: Make) -> None:
    task = make()
    task.loss(task.model, task.example(2), Dice(0, 0, range(2))).total.backward()


def test_strength_goes_from_text_alone_to_the_person(trained: AdapterTask, parts: Path) -> None:
    pipe: Any = trained.pipeline
    person = pipe.enroll(noise_face(0))
    nobody = paint(pipe, None)
    assert np.array_equal(paint(pipe, person, strength=0.0), nobody)
    full, half = paint(pipe, person), paint(pipe, person, strength=0.5)
    assert np.abs(full - nobody).max() > 1e-3
    assert np.abs(half - nobody).max() > 1e-4
    assert np.abs(half - full).max() > 1e-4
    assert np.array_equal(paint(pipe, person), full)
    # Nobody is the base itself, without any adapter.
    plain: Any = IPAdapterPipeline(*base_parts(parts / "base"), pipe.encoder, default_guidance=3.0)
    plain.set_progress_bar_config(disable=True)
    told = plain.method.condition(None, ["a photo of S* in snow"])
    bare = Conditioning(told.prompt_embeds, told.pooled, told.negative_prompt_embeds, told.negative_pooled)
    painted = plain(conditioning=bare, num_inference_steps=2, output_type="np", generator=noise()).images
    assert np.abs(painted - nobody).max() < 1e-5  # attention is computed in another order
    assert np.isfinite(paint(pipe, person, guidance_scale=1.0)).all()


def test_save_load_enrol_paint(trained: AdapterTask, tmp_path: Path) -> None:
    pipe: Any = trained.pipeline
    before = read_adapter(pipe.unet)
    pipe.save_pretrained(tmp_path / "model")
    assert has_adapter(pipe.unet)
    assert all(torch.equal(v, before[k]) for k, v in read_adapter(pipe.unet).items())
    person = compact(pipe.enroll([noise_face(0), noise_face(1)]))
    person.save(tmp_path / "me.safetensors")
    loaded = load_model(str(tmp_path / "model"), device="cpu")
    assert loaded.weights.keys() == {"unet", "vae", "encoder"}
    again: Any = loaded.pipe
    me = Identity.load(tmp_path / "me.safetensors")
    assert np.abs(paint(again, me) - paint(pipe, me)).max() < 1e-4
    assert again.embedder.embed(noise_face(0)).shape == (8,)


@pytest.mark.parametrize("dials", [{"pag_scale": 0.7}, {}, {"guidance_scale": 1.0}])
def test_several_prompts_at_once(trained: AdapterTask, dials: dict[str, Any]) -> None:
    """Each is painted as by itself: diffusers repeats what the adapter is shown for the whole batch."""
    assert_prompts_apart(trained.pipeline, trained.pipeline.enroll(noise_face(0)), **dials)


def test_diffusers_own_pipeline_reads_the_adapter(trained: AdapterTask, tmp_path: Path) -> None:
    """The exported file is one that `load_ip_adapter` takes, and it says the same there."""
    from diffusers import StableDiffusionXLPipeline

    pipe: Any = trained.pipeline
    pipe.save_pretrained(tmp_path)
    vae, unet, scheduler = base_parts(tmp_path)
    absent: dict[str, Any] = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    theirs: Any = StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=scheduler, add_watermarker=False, **absent)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_ip_adapter(
        str(tmp_path), subfolder="encoder", weight_name="ip_adapter.safetensors", image_encoder_folder=None
    )
    theirs.set_ip_adapter_scale(0.7)
    person = pipe.enroll(noise_face(0))
    told = pipe.condition("a photo of S* in snow", person)
    images = theirs(
        prompt_embeds=told.prompt_embeds, pooled_prompt_embeds=told.pooled,
        negative_prompt_embeds=told.negative_prompt_embeds, negative_pooled_prompt_embeds=told.negative_pooled,
        ip_adapter_image_embeds=told.ip_adapter_image_embeds, num_inference_steps=2, guidance_scale=3.0,
        output_type="np", generator=noise(), height=32, width=32,
    ).images  # fmt: skip
    assert np.abs(images - paint(pipe, person, strength=0.7, guidance_scale=3.0)).max() < 1e-4


@pytest.mark.parametrize("base", [b for b in BASES if b != "mini"])
def test_full_size_shapes(base: str, parts: Path, tmp_path: Path, make: Make) -> None:
    task = make(base=str(save_base(base, tmp_path / "base")))
    losses = learns(task, steps=4)
    assert losses[-1] < losses[0]
    task.model.eval()
    person = task.pipeline.enroll(noise_face(0))
    told = task.pipeline.condition(["a photo of S*", "a wizard"], person)
    assert told.prompt_embeds.shape == (2, CONTEXT, sum(WIDTHS[base]))
    assert paint(task.pipeline, person, num_images_per_prompt=2).shape == (2, 32, 32, 3)


def test_what_does_not_fit(trained: AdapterTask, make: Make, parts: Path, tmp_path: Path) -> None:
    pipe: Any = trained.pipeline
    with pytest.raises(FaceError, match="at least one face"):
        pipe.method.enroll([])
    person = pipe.enroll(noise_face(0))
    other = Identity({**person.tensors, "probe": -person.tensors["probe"]}, "ip-adapter", 1, "x")
    with pytest.raises(WeightsMismatch, match="enrolled with other weights"):
        pipe("a photo", identity=other)
    with pytest.raises(WeightsMismatch, match="enrolled by faceclip"):
        pipe("a photo", identity=Identity({}, "faceclip", 1, "x"))
    with pytest.raises(ConfigError, match="strength is 2"):
        pipe("a photo", identity=person, strength=2.0)
    two = group([person, person], [(0, 0, 0.5, 1), (0.5, 0, 1, 1)])
    with pytest.raises(ConfigError, match="cannot be told apart in image tokens"):
        pipe("a photo", identity=two)
    adapter = read_adapter(pipe.unet)
    unet = base_parts(parts / "base")[1]
    with pytest.raises(WeightsMismatch, match="not one for this UNet"):
        install(unet, {k: v for k, v in adapter.items() if not k.startswith("ip_adapter.3")})
    narrow = {k: v[:, :5] if k.startswith("ip_adapter") else v for k, v in adapter.items()}
    with pytest.raises(WeightsMismatch, match="does not fit"):
        install(unet, narrow)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recogniser": ""}, "either recogniser or words"),
        ({"kind": "face"}, "identity, patches"),
        ({"kind": "patches"}, "a folder with kind patches"),
        ({"drop_text": 0.9, "drop_face": 0.2}, "all three together"),
        ({"base_dtype": "half"}, "float32, bfloat16, float16"),
        ({"held_out": {"kind": "folder", "path": "x", "size": 64}}, "one size"),
    ],
)
def test_settings_that_cannot_be_used(parts: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdapterSettings.from_dict(settings(parts, **changes))

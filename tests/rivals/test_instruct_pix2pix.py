"""InstructPix2Pix: pairs that keep the layout, a UNet that reads a photo, guidance by photo and text."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rival_models import assert_prompts_apart, data, digest, learns
from tiny_model import noise_face

from limner.cli.main import main
from limner.data.edit_pairs import LAYOUT, WorldEdits
from limner.errors import ConfigError, FaceError
from limner.methods.instruct_pix2pix import PHOTO_GUIDANCE
from limner.pipelines.dreamidentity import base_parts
from limner.pipelines.instruct import beside
from limner.pipelines.loading import load_model
from limner.pipelines.regions import group
from limner.provenance import IDENTITY_KEY, compact
from limner.training.dice import Dice, seed_everything
from limner.training.progress import silent
from limner.training.tasks.instruct_pix2pix import InstructPix2PixSettings, InstructPix2PixTask, widen
from limner.types import Face, Identity
from limner.world.dataset import WorldConfig

PROMPT = "a wizard in snow"


def settings(root: Path, **changes: Any) -> dict[str, Any]:
    return {"data": data(root), "held_out": data(root), "base": str(root / "base"), "steps": 2, **changes}


@pytest.fixture(scope="module")
def task(parts: Path, rival_cache: Path) -> InstructPix2PixTask:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_CACHE", str(rival_cache))
        seed_everything(0)
        made = InstructPix2PixTask(InstructPix2PixSettings.from_dict(settings(parts)))
        made.prepare(silent)
    return made


@pytest.fixture(scope="module")
def pipe(task: InstructPix2PixTask) -> Any:
    learns(task, steps=3, lr=1e-3)
    task.model.eval()
    return task.pipeline


def paint(pipe: Any, identity: Identity | None, **options: Any) -> np.ndarray:
    noise = torch.Generator().manual_seed(0)
    return pipe(PROMPT, identity=identity, output_type="np", generator=noise, **options).images


def photo_of(seed: int) -> Face:
    image = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return dataclasses.replace(noise_face(seed), photo=image, box=(40.0, 5.0, 58.0, 30.0))


def test_several_prompts_at_once(task: InstructPix2PixTask) -> None:
    assert_prompts_apart(task.pipeline, task.pipeline.enroll(photo_of(0)))


def test_it_learns_all_of_the_unet_and_nothing_else(task: InstructPix2PixTask) -> None:
    before, unet = digest(task.vae, task.encoder), digest(task.unet)
    losses = learns(task, lr=1e-3)
    assert losses[-1] < losses[0], losses
    assert digest(task.vae, task.encoder) == before
    assert digest(task.unet) != unet
    unused = [n for n, p in task.model.named_parameters() if p.grad is None]
    assert not unused, f"parameters without gradient would stop data-parallel training: {unused}"


def test_a_widened_unet_says_what_it_said(parts: Path) -> None:
    unet, again = (base_parts(parts / "base")[1] for _ in range(2))
    widen(again)
    noisy, photo = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    told = {
        "encoder_hidden_states": torch.zeros(1, 16, 40),
        "added_cond_kwargs": {"text_embeds": torch.zeros(1, 24), "time_ids": torch.zeros(1, 6)},
    }
    with torch.no_grad():
        plain = unet(noisy, 5, **told).sample
        assert torch.allclose(again(torch.cat([noisy, photo], 1), 5, **told).sample, plain, atol=1e-6)


def test_each_edit_stands_beside_its_own_photo(task: InstructPix2PixTask) -> None:
    source: Any = task.source()
    assert len(source) == 4  # the one picture of every person that is no reference
    batch = source.batch(np.arange(4), 0)
    table = source.targets.latents["latents"]
    for row, (edit, photo) in enumerate(zip(batch["latents"].numpy(), batch["photo"].numpy(), strict=True)):
        assert np.array_equal(edit, table[3 * row + 2])
        assert any(np.array_equal(photo, table[3 * row + k]) for k in range(2))


def test_guidance_by_photo_and_text(pipe: Any) -> None:
    """What comes out of the hooks is, after the caller's guidance by text, the sum of section 3.2.1."""
    unet, s_photo, s_text = pipe.unet, 1.3, 4.0
    dice = torch.Generator().manual_seed(0)
    noisy, photo = torch.randn(1, 4, 8, 8, generator=dice), torch.randn(1, 4, 8, 8, generator=dice)
    tokens = torch.randn(2, 16, 40, generator=dice)
    added = {"text_embeds": torch.randn(2, 24, generator=dice), "time_ids": torch.zeros(2, 6)}

    def said(image: torch.Tensor, row: int) -> torch.Tensor:
        own = {k: v[row : row + 1] for k, v in added.items()}
        return unet(torch.cat([noisy, image], 1), 7, tokens[row : row + 1], added_cond_kwargs=own).sample

    with torch.no_grad():
        nothing, seen, told = said(torch.zeros_like(photo), 0), said(photo, 0), said(photo, 1)
        wanted = nothing + s_photo * (seen - nothing) + s_text * (told - seen)
        with beside(unet, photo, s_photo, guided=True):
            given = torch.cat([noisy, noisy])
            made = unet(given, 7, encoder_hidden_states=tokens, added_cond_kwargs=added, return_dict=False)[0]
        without, conditional = made.chunk(2)
        assert torch.allclose(without + s_text * (conditional - without), wanted, atol=1e-5)
        with beside(unet, photo, s_photo, guided=False):
            alone = {k: v[1:] for k, v in added.items()}
            one = unet(noisy, 7, encoder_hidden_states=tokens[1:], added_cond_kwargs=alone, return_dict=False)[0]
        assert torch.allclose(one, told, atol=1e-5)
    assert not unet._forward_hooks
    assert not unet._forward_pre_hooks


def test_the_square_around_the_face_is_kept(pipe: Any) -> None:
    method = pipe.method
    face = photo_of(0)
    assert face.photo is not None
    square = method._photo(face)
    assert square.shape == (1, 3, 32, 32)
    right = dataclasses.replace(face, photo=face.photo[:, 20:], box=(20.0, 5.0, 38.0, 30.0))
    assert torch.equal(square, method._photo(right))  # the face is at the right, and so is the square
    alone = method._photo(noise_face(0))
    assert alone.shape == (1, 3, 32, 32)
    assert float((alone == 0.5).float().mean()) > 0.3  # grey around a face whose photo is not at hand


def test_save_load_enrol_paint(pipe: Any, tmp_path: Path) -> None:
    person = compact(pipe.method.enroll([photo_of(0), photo_of(1)]))
    assert person.tensors["photo"].shape == (4, 8, 8)
    nobody, full = paint(pipe, None), paint(pipe, person)
    assert np.array_equal(paint(pipe, person, strength=0.0), nobody)
    assert np.abs(full - nobody).max() > 1e-3
    assert np.abs(paint(pipe, person, strength=0.5) - full).max() > 1e-5
    assert np.isfinite(paint(pipe, person, guidance_scale=1.0, num_images_per_prompt=2)).all()
    pipe.save_pretrained(tmp_path / "model")
    person.save(tmp_path / "me.safetensors")
    again: Any = load_model(str(tmp_path / "model"), device="cpu").pipe
    assert again.unet.config.in_channels == 8
    assert np.abs(paint(again, Identity.load(tmp_path / "me.safetensors")) - full).max() < 1e-4
    assert again.method.steer(person.tensors, 0.5).photo_guidance == PHOTO_GUIDANCE / 2


def test_pngs_hold_the_photo_only_where_that_is_asked_for(pipe: Any, tmp_path: Path, capsys: Any) -> None:
    pipe.save_pretrained(tmp_path / "model")
    compact(pipe.method.enroll([photo_of(0)])).save(tmp_path / "me.safetensors")
    what = ["--model", str(tmp_path / "model"), "--identity", str(tmp_path / "me.safetensors"), "-p", PROMPT]
    for asked, held in (("", False), ("--embed-identity", True), ("--no-embed-identity", False)):
        capsys.readouterr()
        options = [*what, "--steps", "1", "--device", "cpu", "--out", str(tmp_path), "--json", *filter(None, [asked])]
        with pytest.raises(SystemExit) as end:
            sys.exit(main(["generate", *options]))
        assert not end.value.code
        report = json.loads(capsys.readouterr().out)
        assert (IDENTITY_KEY in Image.open(report["pictures"][0]["path"]).text) is held
        assert any("is the photo itself" in remark for remark in report["remarks"]) is (not asked)


def test_validation_sheet_and_a_dry_batch(task: InstructPix2PixTask, pipe: Any) -> None:
    with torch.no_grad():
        found = task.validate()
        assert found["loss"] != found["nobody"]
        assert task.sheet().size[0] > 0
    task.loss(task.model, task.example(2), Dice(0, 0, range(2))).total.backward()


def test_edits_of_sitters_keep_the_layout() -> None:
    pairs = WorldEdits((WorldConfig(identities=8, views=4, size=64),))
    assert len(pairs) == 32
    assert pairs.persons == 16
    changed = set()
    for pair in range(16):
        own = pairs.sets[0]
        edited = own.view(2 * pair + 1)
        before = pairs._before(edited, own, 2 * pair)
        assert before.style == "photo"
        assert before.headwear == "none"
        for name in LAYOUT:
            assert getattr(before, name) == getattr(edited, name) or name == "eyewear"
        changed |= {n for n in ("scene", "clothing", "style", "headwear") if getattr(before, n) != getattr(edited, n)}
    assert {"scene", "clothing"} <= changed
    photo, edit = pairs.sample(4), pairs.sample(5)
    assert photo.reference
    assert not edit.reference
    assert photo.identity == edit.identity == 2
    assert np.abs(photo.landmarks - edit.landmarks).max() < 1.0
    assert "S*" in edit.prompt
    assert np.array_equal(pairs.sample(4).image, photo.image)
    with pytest.raises(ConfigError, match="need an even number"):
        WorldEdits((WorldConfig(identities=1, views=3, size=64),))


def test_what_cannot_be_used(pipe: Any, parts: Path) -> None:
    with pytest.raises(FaceError, match="at least one face"):
        pipe.method.enroll([])
    person = pipe.method.enroll([photo_of(0)])
    with pytest.raises(ConfigError, match="cannot paint several people"):
        pipe(PROMPT, identity=group([person, person], [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]))
    with pytest.raises(ConfigError, match=r"8 × 8 latents.*16 × 8"):
        paint(pipe, person, width=64)
    assert paint(pipe, None, width=64).shape == (1, 32, 64, 3)
    with pytest.raises(ConfigError, match="float32: all of it is trained"):
        InstructPix2PixSettings.from_dict(settings(parts, base_dtype="bfloat16"))

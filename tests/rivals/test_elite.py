"""ELITE in its two stages, and the plain CLIP-image-to-word encoder: trainings that others' tasks already offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rival_models import assert_prompts_apart, data, digest, learns
from tiny_model import noise_face

from limner.errors import PromptError, WeightsMismatch
from limner.pipelines.loading import load_model
from limner.training.dice import seed_everything
from limner.training.dreamidentity import DreamIdentitySettings, DreamIdentityTask
from limner.training.progress import silent
from limner.training.tasks import load_training
from limner.training.tasks.adapter import AdapterSettings, AdapterTask
from limner.types import Identity

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("**/rivals/*.yaml"))


@pytest.fixture(scope="module")
def words(parts: Path, rival_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first stage, as its training exports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_CACHE", str(rival_cache))
        seed_everything(0)
        values = {
            "data": data(parts), "held_out": data(parts), "base": str(parts / "base"), "steps": 2,
            "recogniser": str(parts / "clip"), "encoder": {"words": 3, "hidden": 16}, "edit_share": 0.0,
        }  # fmt: skip
        task = DreamIdentityTask(DreamIdentitySettings.from_dict(values))
        task.prepare(silent)
        losses = learns(task)
        assert losses[-1] < losses[0]
    folder = tmp_path_factory.mktemp("elite") / "global"
    task.export(folder)
    return folder


@pytest.fixture(scope="module")
def elite(parts: Path, words: Path, rival_cache: Path) -> AdapterTask:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_CACHE", str(rival_cache))
        values = {
            "data": data(parts), "held_out": data(parts), "base": str(parts / "base"), "kind": "patches",
            "words": str(words / "encoder"), "templates": ["a photo of S*", "S* face"], "partner": False, "steps": 2,
        }  # fmt: skip
        seed_everything(0)
        task = AdapterTask(AdapterSettings.from_dict(values))
        task.prepare(silent)
    return task


def paint(pipe: Any, identity: Identity | None, **options: Any) -> np.ndarray:
    noise = torch.Generator().manual_seed(0)
    return pipe(
        "a photo of S* in snow", identity=identity, num_inference_steps=2, output_type="np", generator=noise, **options
    ).images


def test_several_prompts_at_once(elite: AdapterTask) -> None:
    assert_prompts_apart(elite.pipeline, elite.pipeline.enroll(noise_face(0)))


def test_the_local_mapping_learns_and_nothing_else_changes(elite: AdapterTask) -> None:
    before = digest(elite.vae, elite.unet, elite.encoder)
    losses = learns(elite)
    assert losses[-1] < losses[0], losses
    assert digest(elite.vae, elite.unet, elite.encoder) == before


def test_the_face_is_the_picture_itself_and_templates_are_read(elite: AdapterTask) -> None:
    source: Any = elite.source()
    assert len(source) == 8  # pictures that are no reference are left out
    batch = source.batch(np.arange(8), 0)
    assert np.array_equal(batch["face"].numpy(), source.faces["face"][source.rows])
    assert (batch["slots_0"] >= 0).sum(1).tolist() == [1] * 8
    first, again = (source.batch(np.arange(8), 3) for _ in range(2))
    assert all(torch.equal(v, again[k]) for k, v in first.items())


def test_save_load_enrol_paint(elite: AdapterTask, tmp_path: Path) -> None:
    elite.model.eval()
    pipe: Any = elite.pipeline
    person = pipe.enroll([noise_face(0), noise_face(1)])
    assert person.tensors["words.0"].shape == (1, 16)
    assert person.tensors["patch_tokens.0"].shape == (16, 16)
    nobody, full = paint(pipe, None), paint(pipe, person)
    assert np.array_equal(paint(pipe, person, strength=0.0), nobody)
    assert np.abs(full - nobody).max() > 1e-3
    pipe.save_pretrained(tmp_path / "model")
    person.save(tmp_path / "me.safetensors")
    again: Any = load_model(str(tmp_path / "model"), device="cpu").pipe
    assert again.method.name == "elite"
    assert np.abs(paint(again, Identity.load(tmp_path / "me.safetensors")) - full).max() < 1e-4


def test_what_cannot_be_painted(elite: AdapterTask) -> None:
    pipe: Any = elite.pipeline
    person = pipe.enroll(noise_face(0))
    with pytest.raises(PromptError, match="does not say where the person is"):
        pipe("a wizard", identity=person)
    lacking = {k: v for k, v in person.tensors.items() if k != "words.1"}
    with pytest.raises(WeightsMismatch, match=r"lacks 'words.1'"):
        pipe("S* in snow", identity=Identity(lacking, "elite", 1, "x"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.parent.name}/{p.stem}")
def test_recipes_are_complete(path: Path) -> None:
    header = path.read_text().split("name:")[0]
    for word in ("Trains", "Command", "Cost", "Result"):
        assert f"# {word}" in header, f"the header of {path.name} does not say: {word}"
    recipe, _ = load_training(path)
    assert recipe.name == path.stem

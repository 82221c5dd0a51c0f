"""E4T: an encoder and weight offsets trained beside an untouched base, then a short tuning for one person."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rival_models import data, digest, learns
from tiny_model import noise_face

from limner.errors import ConfigError, WeightsMismatch
from limner.methods.tuning import TuningSettings
from limner.pipelines.loading import load_model
from limner.provenance import compact
from limner.training.dice import Dice, seed_everything
from limner.training.dreamidentity import WordsConfig
from limner.training.parts import backbone_of
from limner.training.progress import silent
from limner.training.rival_data import rival_features
from limner.training.tasks.e4t import E4TSettings, E4TTask
from limner.types import Identity

TINY = TuningSettings(
    steps=4, batch_size=2, lr=1e-2, placements=2, regularisation=0.01, checkpoint_every=0, prior_weight=0.0
)


def settings(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": data(root), "held_out": data(root), "base": str(root / "base"), "recogniser": str(root / "clip"),
        "encoder": {"words": 1, "hidden": 16}, "steps": 2, **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def task(parts: Path, rival_cache: Path) -> E4TTask:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_CACHE", str(rival_cache))
        seed_everything(0)
        made = E4TTask(E4TSettings.from_dict(settings(parts, tuning_steps=1)))
        made.prepare(silent)
    return made


@pytest.fixture(scope="module")
def folder(task: E4TTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained a little and exported."""
    learns(task, steps=4)
    task.model.eval()
    where = tmp_path_factory.mktemp("e4t") / "model"
    with torch.no_grad():
        task.export(where)
    return where


def pipeline(folder: Path) -> Any:
    pipe: Any = load_model(str(folder), device="cpu").pipe
    pipe.tuning, pipe.cache = TINY, folder
    return pipe


def paint(pipe: Any, identity: Identity | None, **options: Any) -> np.ndarray:
    noise = torch.Generator().manual_seed(0)
    return pipe("a photo of S*", identity=identity, output_type="np", generator=noise, **options).images


def test_encoder_and_offsets_learn_and_the_base_stays_as_it_was(task: E4TTask) -> None:
    assert task.encoder.words is not None
    base = (task.vae, task.unet, task.encoder.towers, task.encoder.words.backbone)
    before, offsets = digest(*base), task.model.offsets()  # type: ignore[operator]
    for module in task.frozen():
        module.eval().requires_grad_(False)
    losses = learns(task, steps=10)
    assert losses[-1] < losses[0], losses
    assert digest(*base) == before
    unused = [n for n, p in task.model.named_parameters() if p.grad is None]
    assert not unused, f"parameters without gradient would stop data-parallel training: {unused}"
    now = task.model.offsets()  # type: ignore[operator]
    assert all(not torch.equal(offsets[k], now[k]) for k in now if k.endswith(".rows"))
    assert set(task.model.state_dict()) == {n for n, _ in task.model.named_parameters()}


def test_untrained_offsets_change_nothing(parts: Path) -> None:
    fresh = E4TTask(E4TSettings.from_dict(settings(parts)))
    batch = fresh.example(2)
    with torch.no_grad():
        model: Any = fresh.model
        for p in model.head.parameters():
            p.zero_()
        with_person, nobody = (
            fresh.each(fresh.model, batch, Dice(0, 0, range(2)), baseline=baseline).noise for baseline in (False, True)
        )
    assert torch.allclose(with_person, nobody, atol=1e-6)


def test_the_cache_of_faces_knows_the_layers_and_how_pictures_are_normalised(task: E4TTask, parts: Path) -> None:
    backbone = backbone_of(parts / "clip")
    places = set()
    for layers, mean in (((1, 2), 0.5), ((1, 3), 0.5), ((1, 2), 0.4)):
        backbone.config = dataclasses.replace(backbone.config, mean=(mean,) * 3)
        words = WordsConfig(words=1, layers=layers, hidden=16).build(backbone, (16, 24))
        encoder: Any = SimpleNamespace(backbone=backbone, words=words)
        device = torch.device("cpu")
        places.add(rival_features(encoder, task.sources[0].pictures, "scales", device, silent).folder)
    assert len(places) == 3


def test_validation_and_sheet(task: E4TTask, folder: Path) -> None:
    with torch.no_grad():
        found = task.validate()
        assert found["loss"] != found["nobody"]
        assert task.sheet().size[0] > 0


def test_save_load_enrol_paint(folder: Path, tmp_path: Path) -> None:
    pipe = pipeline(folder)
    before = digest(pipe.unet, pipe.vae, pipe.encoder)
    person = compact(pipe.enroll([noise_face(0), noise_face(1)]))
    assert digest(pipe.unet, pipe.vae, pipe.encoder) == before
    nobody, full = paint(pipe, None), paint(pipe, person)
    assert np.abs(full - nobody).max() > 1e-3
    assert np.array_equal(paint(pipe, person, strength=0.0), nobody)
    assert digest(pipe.unet, pipe.vae, pipe.encoder) == before
    person.save(tmp_path / "me.safetensors")
    assert np.abs(paint(pipeline(folder), Identity.load(tmp_path / "me.safetensors")) - full).max() < 1e-5
    other = pipe.enroll(noise_face(2))
    assert not torch.equal(other.tensors["words.0"], person.tensors["words.0"].float())


def test_tuning_moves_what_the_encoder_said(folder: Path) -> None:
    pipe = pipeline(folder)
    person = pipe.enroll(noise_face(0))
    rows = [k for k in person.tensors if k.endswith(".rows")]
    assert rows
    assert all(not torch.equal(person.tensors[k], pipe.encoder.offsets[k.removeprefix("offset.")]) for k in rows)


def test_what_does_not_fit(folder: Path, parts: Path) -> None:
    pipe = pipeline(folder)
    person = pipe.enroll(noise_face(0))
    stranger = {**person.tensors, "offset.nothing.rows": torch.zeros(1), "offset.nothing.columns": torch.zeros(1)}
    with pytest.raises(WeightsMismatch, match="offsets do not fit"):
        paint(pipe, Identity(stranger, "e4t", 1, "x"))
    pipe.encoder.offsets = {}
    with pytest.raises(ConfigError, match="needs its trained encoder"):
        paint(pipe, person)
    for changes, message in (
        ({"recogniser": ""}, "the folder of a backbone"),
        ({"templates": ["a photo"]}, r"sentences with S\*"),
        ({"encoder": {"words": 2}}, "one word"),
    ):
        with pytest.raises(ConfigError, match=message):
            E4TSettings.from_dict(settings(parts, **changes))

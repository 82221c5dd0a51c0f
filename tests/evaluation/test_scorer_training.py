"""The networks that judge pictures learn, and what they export judges alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from limner.data.sitters import WorldPictures
from limner.encoders.scorer import (
    NUMBERS,
    ConvFace,
    ConvFaceConfig,
    load_reader,
    load_recogniser,
    save_recogniser,
)
from limner.errors import ConfigError
from limner.training.dice import Dice, seed_everything
from limner.training.progress import silent
from limner.training.tasks.attributes import ATTRIBUTES, AttributesSettings, AttributesTask, truth_table
from limner.world.dataset import WorldConfig

DATA = {"sitters": [{"split": "validation", "identities": 4, "views": 4, "size": 64}], "size": 64, "workers": 1}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path_factory.getbasetemp() / "scorer-cache"))


def test_the_reader_knows_every_word_of_the_world() -> None:
    pictures = WorldPictures(
        (WorldConfig(split="train", identities=40, views=8), WorldConfig(split="test", slice="small", identities=2))
    )
    truth = truth_table(pictures, silent, workers=1)
    assert truth["words"].shape == (336, len(ATTRIBUTES))
    seen = {name: len(np.unique(truth["words"][:, k])) for k, name in enumerate(ATTRIBUTES)}
    assert all(len(ATTRIBUTES[name]) - n <= 1 for name, n in seen.items()), seen
    sitter, view = pictures.view(320)
    assert truth["numbers"][320, NUMBERS.index("yaw")] == pytest.approx(view.yaw / 45)
    assert ATTRIBUTES["style"][truth["words"][320, list(ATTRIBUTES).index("style")]] == view.style
    assert sitter.seed == 4_000_000


def test_the_reader_learns_and_its_export_reads_alike(tmp_path: Path) -> None:
    seed_everything(0)
    settings = {"data": DATA, "held_out": DATA, "image_size": 64, "widths": [8, 16], "blocks": 1, "validation": 8}
    task = AttributesTask(AttributesSettings.from_dict(settings))
    task.prepare(silent)
    batch = task.source().batch(np.arange(8), 0)
    optimizer = torch.optim.AdamW(task.parameter_groups(0.0), lr=1e-2)
    task.model.train()
    losses = []
    for _ in range(4):
        losses.append(task.loss(task.model, batch, Dice(0, 0, range(8))).total)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    task.model.eval()
    with torch.no_grad():
        assert 0 <= task.validate()["accuracy"] <= 1
        task.export(tmp_path)
        picture = torch.rand(1, 3, 64, 64)
        again = load_reader(tmp_path)
        torch.testing.assert_close(again(picture)[2], task.reader(picture)[2])
    assert again.config.attributes == tuple(ATTRIBUTES)


def test_attributes_need_the_world() -> None:
    with pytest.raises(ConfigError, match="world"):
        AttributesSettings.from_dict({"data": {"kind": "folder", "path": "photos"}, "held_out": DATA})


def test_a_recogniser_survives_half_precision(tmp_path: Path) -> None:
    seed_everything(0)
    network = ConvFace(ConvFaceConfig(32, (8, 12), 1, 16)).eval()
    faces = torch.rand(3, 3, 32, 32)
    vectors = network(faces).class_token
    assert vectors.shape == (3, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    save_recogniser(tmp_path, network.half())
    torch.testing.assert_close(load_recogniser(tmp_path)(faces).class_token, vectors, atol=5e-3, rtol=0)


def test_a_crop_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 16"):
        ConvFaceConfig(image_size=100)

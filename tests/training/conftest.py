"""Tiny pictures and recipes for the training tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_tasks import FACE, FUSER, TEXT, Make

from limner.training.dice import seed_everything
from limner.training.progress import silent
from limner.training.task import Task
from limner.training.tasks import task_class


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 coloured pictures of 32 pixels: 6 persons, 4 views, captions and landmarks."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    rows = []
    y, x = np.mgrid[:32, :32] / 32
    for person in range(6):
        colour = random.random(3)
        for view in range(4):
            wave = 0.5 + 0.5 * np.sin(6 * (x * random.random() + y * random.random()) + view)
            image = (wave[..., None] * colour + 0.2 * random.random((32, 32, 3))).clip(0, 1)
            name = f"{person}-{view}.png"
            Image.fromarray((image * 255).astype(np.uint8)).save(folder / name)
            landmarks = [[11, 13], [21, 13], [16, 18], [12, 22], [20, 22]]
            text = f"person {person} in scene {view}"
            rows.append({"file_name": name, "identity": person, "text": text, "landmarks": landmarks})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for caches, shared by the tests of a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from a second thread, and lose much of it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(cache))


@pytest.fixture
def write_recipe(pictures: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the recipe of a tiny autoencoder training; keywords change its `loop` and `run`."""

    def write(name: str = "tiny", loop: dict[str, Any] | None = None, run: dict[str, Any] | None = None) -> Path:
        data = {"kind": "folder", "path": str(pictures), "size": 32, "workers": 1}
        values = {
            "name": name,
            "task": "autoencoder",
            "settings": {"data": data, "held_out": data, "widths": [8, 8], "decoder_layers": 1, "validation": 4},
            "loop": {"steps": 12, "batch_size": 8, "warmup": 2, "ema": 0.9, **(loop or {})},
            "run": {"log_every": 4, "checkpoint_every": 4, "validate_every": 0, "sheet_every": 0, **(run or {})},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture(scope="module")
def data(pictures: Path) -> dict[str, Any]:
    return {"kind": "folder", "path": str(pictures), "size": 32, "workers": 1}


@pytest.fixture(scope="module")
def make(data: dict[str, Any], cache: Path) -> Iterator[Make]:
    """Builds and prepares a task on the tiny pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_CACHE", str(cache))

        def build(name: str, **settings: Any) -> Task[Any]:
            seed_everything(0)
            kind = task_class(name)
            task = kind(kind.settings_class.from_dict({"data": data, "held_out": data, **settings}))
            task.prepare(silent)
            return task

        yield build


@pytest.fixture(scope="module")
def face(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("face")
    make("recogniser", face=FACE).export(folder)
    return folder


@pytest.fixture(scope="module")
def clips(make: Make, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folders = []
    for width in (16, 24):
        folder = tmp_path_factory.mktemp(f"clip{width}")
        image = {"patch_size": 8, "width": 16, "depth": 1, "heads": 2}
        make("clip", text={**TEXT, "width": width}, image=image).export(folder)
        folders.append(str(folder))
    return folders


@pytest.fixture(scope="module")
def vae(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    with torch.no_grad():
        make("autoencoder", widths=[8, 8], decoder_layers=1).export(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(make: Make, face: Path, clips: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    make("alignment", face=str(face), clips=clips, fuser=FUSER).export(folder)
    return folder

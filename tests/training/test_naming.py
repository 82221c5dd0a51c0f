"""Teaching names: the towers learn to say of a name what FaceCLIP says of the face, and a base comes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limner.errors import ConfigError
from limner.pipelines.text import open_base
from limner.training.dice import Dice, seed_everything
from limner.training.progress import silent
from limner.training.tasks import task_class
from limner.training.tasks.naming import NamingTask, behind, holds_name
from limner.world.names import names

FACE = {"image_size": 28, "patch_size": 7, "width": 16, "depth": 1, "heads": 2, "output": 8, "mask_ratio": 0.0}
TEXT = {"width": 16, "depth": 1, "heads": 2, "context": 20, "projection": 12}
FUSER = {"depth": 2, "heads": 2, "points": 2, "feedforward": 16, "gain": 1.0}
UNET = {"channels": [16, 32], "attention": [0, 1], "head": 8, "time_channels": 8, "groups": 4}


@pytest.fixture(scope="module")
def parts(pictures: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of the task over a tiny teacher; captions call the first three people by names of the world."""
    folder = tmp_path_factory.mktemp("naming")
    shutil.copytree(pictures, folder / "pictures")
    rows = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        name = names()[row["identity"]] if row["identity"] < 3 else "a woman"
        row["text"] = f"{name} on a beach, smiling"
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"kind": "folder", "path": str(folder / "pictures"), "size": 32, "workers": 1}
    both = {"data": data, "held_out": data}

    def export(name: str, kind: str, **settings: Any) -> str:
        seed_everything(0)
        task: Any = task_class(kind)(task_class(kind).settings_class.from_dict({**both, **settings}))
        with torch.no_grad():
            if kind == "recogniser":  # untrained, it sees no difference between faces
                for value in task.face.parameters():
                    value.normal_(0, 0.5)
            task.prepare(silent)
            task.export(folder / name)
        return str(folder / name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_CACHE", str(cache))
        image = {"patch_size": 8, "width": 16, "depth": 1, "heads": 2}
        clips = [export(f"clip{w}", "clip", text={**TEXT, "width": w}, image=image) for w in (16, 24)]
        encoder = export("encoder", "alignment", face=export("face", "recogniser", face=FACE), clips=clips, fuser=FUSER)
        vae = export("vae", "autoencoder", widths=[8, 8], decoder_layers=1)
        teacher = export("teacher", "diffusion", autoencoder=vae, encoder=encoder, unet=UNET)
    return {**both, "teacher": teacher, "clips": clips, "validation": 12}


@pytest.fixture
def task(parts: dict[str, Any]) -> NamingTask:
    seed_everything(0)
    made = NamingTask(NamingTask.settings_class.from_dict(parts))
    made.prepare(silent)
    return made


def test_towers_learn_whom_a_name_means(task: NamingTask) -> None:
    rows = np.arange(24)
    optimizer = torch.optim.AdamW(task.parameter_groups(0.0), lr=1e-2)
    with torch.no_grad():
        before = task.validate()
    for step in range(60):
        batch = task.source().batch(rows, step)
        optimizer.zero_grad()
        task.loss(task.model, batch, Dice(0, step, range(24))).total.backward()
        optimizer.step()
    with torch.no_grad():
        after = task.validate()
    assert after["named"] < 0.3 * before["named"]
    assert after["plain"] < 0.5 * before["plain"]
    assert after["named"] < after["stranger"]
    unused = [n for n, p in task.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused


def test_the_share_of_names_is_as_asked(task: NamingTask, parts: dict[str, Any]) -> None:
    assert task.source().batch(np.arange(24), 0)["named"].sum() == round(0.6 * 24)
    every = NamingTask(NamingTask.settings_class.from_dict({**parts, "named": 1.0}))
    every.prepare(silent)
    assert every.source().batch(np.arange(24), 0)["named"].all()


def test_a_base_comes_out_with_the_denoiser_of_the_teacher(task: NamingTask, tmp_path: Path) -> None:
    task.export(tmp_path / "base")
    pipe = open_base(tmp_path / "base")
    theirs = Path(task.settings.teacher) / "unet" / "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "base" / "unet" / theirs.name).read_bytes() == theirs.read_bytes()
    picture = pipe(f"{names()[1]} on a beach", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (32, 32, 3)


def test_tokens_of_the_prefix_go_behind() -> None:
    tokens = torch.arange(7)[None, :, None]
    assert behind(tokens, 2).flatten().tolist() == [0, 3, 4, 5, 6, 1, 2]


def test_names_are_whole_and_case_does_not_matter() -> None:
    captions = ["a photo of zora quill, smiling", "Zora Quill", "zora on a beach", "somebody"]
    assert holds_name(captions, ["Zora Quill"]).tolist() == [True, True, False, False]


def test_what_cannot_teach_is_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Ada Vale\nBo Finch\n")
    task = NamingTask(NamingTask.settings_class.from_dict({**parts, "names": str(tmp_path / "names.txt")}))
    with pytest.raises(ConfigError, match="0 of 24 captions hold a name"):
        task.prepare(silent)
    with pytest.raises(ConfigError, match=r"widths \[16, 24\]"):
        NamingTask(NamingTask.settings_class.from_dict({**parts, "clips": parts["clips"][:1]}))


def test_towers_are_called_as_one(task: NamingTask) -> None:
    """What the loop wraps (half precision, several processes) can be called and nothing else."""
    batch = task.source().batch(np.arange(8), 0)

    def wrapped(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return task.model(ids)

    losses = [task.loss(model, batch, Dice(0, 0, range(8))).total for model in (wrapped, task.model)]
    assert torch.equal(*losses)

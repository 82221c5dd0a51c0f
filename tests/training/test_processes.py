"""Two processes train what one would, at equal global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

TEXT = {"width": 16, "depth": 1, "heads": 2, "context": 20, "projection": 12}
IMAGE = {"patch_size": 8, "width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def trained(pictures: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each recipe trained on one process and on two."""
    folder = tmp_path_factory.mktemp("pair")
    data = {"kind": "folder", "path": str(pictures), "size": 32, "workers": 1}
    run = {"log_every": 1, "checkpoint_every": 0, "validate_every": 0, "sheet_every": 0}
    loop = {"steps": 5, "batch_size": 8, "warmup": 2, "ema": 0.9}
    recipes = {
        "autoencoder": ({"widths": [8, 8], "decoder_layers": 1, "validation": 4}, {**loop, "accumulation": 2}),
        "clip": ({"text": TEXT, "image": IMAGE}, loop),
    }
    names = []
    for task, (settings, how) in recipes.items():
        path = folder / f"{task}.yaml"
        both = {"data": data, "held_out": data, **settings}
        path.write_text(yaml.safe_dump({"name": task, "task": task, "settings": both, "loop": how, "run": run}))
        names.append(str(path))
    drive("pair_driver.py", cache, str(folder), *names)
    return folder


def drive(name: str, cache: Path, *arguments: str) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LIMNER_CACHE": str(cache)}
    command = [sys.executable, str(Path(__file__).with_name(name)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("task", ["autoencoder", "clip"])
def test_two_processes_equal_one(trained: Path, task: str) -> None:
    one, two = trained / f"{task}-1", trained / f"{task}-2"
    assert json.loads((two / "results.json").read_text())["processes"] == 2
    losses = []
    for out in (one, two):
        lines = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
        losses.append([x["train/loss"] for x in lines if "train/loss" in x])
    assert len(losses[0]) == 5
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    a, b = (load_file(out / "checkpoints" / "step-00000005" / "ema.safetensors") for out in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).abs().max() < 2e-4, name


def test_a_killed_process_ends_the_others_and_costs_no_more_than_the_last_checkpoint(
    trained: Path, cache: Path, tmp_path: Path
) -> None:
    drive("lost_driver.py", cache, str(trained / "autoencoder.yaml"), str(tmp_path))
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["code"] == "process_lost"
    assert "one of them is gone" in said["message"]
    assert "The checkpoint of step 2" in said["hint"]
    whole, resumed = (
        load_file(out / "checkpoints" / "step-00000005" / "ema.safetensors")
        for out in (trained / "autoencoder-2", tmp_path)
    )
    assert all((whole[name] - resumed[name]).abs().max() < 1e-6 for name in whole)

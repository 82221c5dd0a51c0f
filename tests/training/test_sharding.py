"""A model divided among processes trains as one that is not, resumes, and exports whole weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from limner.errors import ConfigError
from limner.training.loop import Trainer
from limner.training.tasks import load_training


@pytest.fixture(scope="module")
def trained(pictures: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    driver = Path(__file__).with_name("shard_driver.py")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LIMNER_CACHE": str(cache)}
    command = [sys.executable, str(driver), str(folder), str(pictures)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def losses(out: Path) -> list[float]:
    lines = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    return [x["train/loss"] for x in lines if "train/loss" in x]


@pytest.mark.parametrize("name", ["two-again", "sharded-again"])
def test_processes_train_what_one_would_also_after_resuming(trained: Path, name: str) -> None:
    one, other = trained / "one", trained / name
    assert len(losses(one)) == 4
    assert losses(one) == pytest.approx(losses(other), rel=1e-4)
    for file in ("model", "ema"):
        a, b = (load_file(out / "checkpoints" / "step-00000004" / f"{file}.safetensors") for out in (one, other))
        assert a.keys() == b.keys()
        assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
        assert max((a[k] - b[k]).abs().max() for k in a) < 5e-4
    results = [json.loads((out / "results.json").read_text())["metrics"]["loss"] for out in (one, other)]
    assert results[0] == pytest.approx(results[1], rel=1e-3)
    weights = [load_file(next((out / "weights" / "unet").glob("*.safetensors"))) for out in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert max((weights[0][k] - weights[1][k]).abs().max() for k in weights[0]) < 5e-4


def test_tasks_that_cannot_be_sharded_say_so(write_recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be sharded"):
        Trainer(*load_training(write_recipe(), ["run.shard=true"]), tmp_path / "a")

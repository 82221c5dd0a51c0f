"""A training that is stopped, in whatever way, ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limner.encoders.checkpoint import halve
from limner.errors import ConfigError, CorruptData, OutputConflict, StorageError
from limner.training import loop
from limner.training.checkpoint import Checkpoints
from limner.training.folder import locked
from limner.training.loop import Trainer
from limner.training.results import is_finished
from limner.training.tasks import load_training

Write = Callable[..., Path]


def train(recipe: Path, out: Path, *overrides: str, **how: object) -> object:
    return Trainer(*load_training(recipe, list(overrides)), out).run(**how)  # type: ignore[arg-type]


def state(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Everything a checkpoint holds."""
    folder = out / "checkpoints" / f"step-{step:08d}"
    return {f"{p.stem}/{k}": v for p in sorted(folder.glob("*.safetensors")) for k, v in load_file(p).items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert len(a) > 20
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_muon_resumes_with_the_same_bits(write_recipe: Write, tmp_path: Path) -> None:
    recipe = write_recipe()
    train(recipe, tmp_path / "a", "loop.optimizer=muon")
    train(recipe, tmp_path / "b", "loop.optimizer=muon", minutes=0)
    assert train(recipe, tmp_path / "b", "loop.optimizer=muon").finished
    assert_equal(state(tmp_path / "a", 12), state(tmp_path / "b", 12))


def test_a_checkpoint_can_be_exported_before_the_end(write_recipe: Write, tmp_path: Path) -> None:
    recipe, out, weights = write_recipe(loop={"ema": 0.5}), tmp_path / "a", tmp_path / "weights"
    trainer = Trainer(*load_training(recipe), out)
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        trainer.export(weights)
    train(recipe, out, minutes=0)
    assert Trainer(*load_training(recipe), out).export(weights) == 1
    exported = load_file(next(weights.glob("*.safetensors")))
    average = {k.partition("/autoencoder.")[2]: v for k, v in state(out, 1).items() if k.startswith("ema/")}
    assert len(average) > 10
    for name, value in average.items():
        if name and not name.startswith("latent_"):  # measured anew at the export
            assert torch.equal(exported[name], value), name
    with pytest.raises(OutputConflict):
        Trainer(*load_training(recipe), out).export(weights)
    halve(weights)
    halved = load_file(next(weights.glob("*.safetensors")))
    for name, value in exported.items():
        kept = torch.float32 if value.ndim < 2 else torch.float16
        assert halved[name].dtype == kept, name
        assert torch.equal(halved[name], value.to(kept)), name
    assert train(recipe, out).finished, "exporting must not keep the training from going on"


def test_killed_five_times_gives_the_same_bits(write_recipe: Write, tmp_path: Path) -> None:
    recipe = write_recipe(loop={"steps": 36}, run={"checkpoint_every": 4, "log_every": 1})
    driver = Path(__file__).with_name("kill_driver.py")
    command = [sys.executable, str(driver), str(recipe), str(tmp_path / "smooth"), str(tmp_path / "broken")]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert len(told["checkpoints"]) == 5
    assert max(told["checkpoints"]) > 0, "no kill fell after a checkpoint, so nothing was resumed"
    assert_equal(state(tmp_path / "smooth", 36), state(tmp_path / "broken", 36))
    weights = [load_file(next((tmp_path / n / "weights").glob("*.safetensors"))) for n in ("smooth", "broken")]
    assert_equal(*weights)
    lines = [json.loads(x) for x in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    steps = [x["step"] for x in lines if "train/loss" in x]
    assert steps == sorted(set(steps)), "resuming repeated lines of the log"


def test_time_limit_stops_with_a_checkpoint_and_resumes(write_recipe: Write, tmp_path: Path) -> None:
    recipe = write_recipe()
    train(recipe, tmp_path / "a")
    first = train(recipe, tmp_path / "b", minutes=0)
    assert (first.step, first.stopped, first.finished) == (1, "time limit", False)
    assert json.loads((tmp_path / "b" / "results.json").read_text())["finished"] is False
    assert train(recipe, tmp_path / "b").finished
    assert_equal(state(tmp_path / "a", 12), state(tmp_path / "b", 12))


def test_loader_workers_change_nothing(write_recipe: Write, tmp_path: Path) -> None:
    recipe = write_recipe(loop={"accumulation": 2})
    train(recipe, tmp_path / "a")
    train(recipe, tmp_path / "b", "run.workers=2")
    assert_equal(state(tmp_path / "a", 12), state(tmp_path / "b", 12))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_then_leave(write_recipe: Write, tmp_path: Path, number: int) -> None:
    recipe = write_recipe(loop={"steps": 100_000}, run={"checkpoint_every": 0})
    handler = signal.getsignal(number)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
    timer.start()
    outcome = train(recipe, tmp_path / "a")
    timer.join()
    assert outcome.stopped == f"signal {signal.Signals(number).name}"
    assert [p.name for p in (tmp_path / "a" / "checkpoints").iterdir()] == [f"step-{outcome.step:08d}"]
    assert signal.getsignal(number) is handler


def test_the_command_line_stops_on_a_signal(write_recipe: Write, tmp_path: Path) -> None:
    recipe, out = write_recipe(loop={"steps": 100_000}, run={"checkpoint_every": 0, "log_every": 1}), tmp_path / "a"
    command = [sys.executable, "-m", "limner.cli.main", "train", str(recipe), "--out", str(out)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 90
        while not (out / "log.jsonl").exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.1)
        child.terminate()
        _, told = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 143, told
    assert "The same command goes on from there" in told
    assert len(list((out / "checkpoints").iterdir())) == 1


def test_a_finished_training_is_left_alone(write_recipe: Write, tmp_path: Path) -> None:
    recipe = write_recipe(loop={"steps": 2})
    first = train(recipe, tmp_path / "a")
    written = (tmp_path / "a" / "results.json").stat().st_mtime_ns
    again = train(recipe, tmp_path / "a")
    assert again == first
    assert (tmp_path / "a" / "results.json").stat().st_mtime_ns == written


def test_two_trainings_do_not_share_a_folder(write_recipe: Write, tmp_path: Path) -> None:
    recipe = write_recipe(loop={"steps": 2})
    trainer = Trainer(*load_training(recipe), tmp_path / "a")
    with locked(tmp_path / "a"), pytest.raises(OutputConflict, match="Another process"):
        trainer.run()
    assert trainer.run().finished


def test_bf16_trains_and_keeps_float32_weights(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = train(write_recipe(), tmp_path / "a")
    monkeypatch.setattr("limner.precision.native_bfloat16", lambda: True)  # emulated, it rounds the same
    half = train(write_recipe(loop={"precision": "bf16"}), tmp_path / "b")
    assert half.metrics["psnr"] == pytest.approx(full.metrics["psnr"], abs=0.5)
    state_half = state(tmp_path / "b", 12)
    assert all(v.dtype == torch.float32 for v in state_half.values() if v.is_floating_point())
    assert any(not torch.equal(v, state_half[k]) for k, v in state(tmp_path / "a", 12).items())


def test_bf16_is_float32_where_it_would_be_emulated(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limner.precision.native_bfloat16", lambda: False)
    train(write_recipe(), tmp_path / "a")
    train(write_recipe(loop={"precision": "bf16"}), tmp_path / "b")
    assert_equal(state(tmp_path / "a", 12), state(tmp_path / "b", 12))


def test_only_the_last_checkpoints_stay(write_recipe: Write, tmp_path: Path) -> None:
    train(write_recipe(run={"checkpoint_every": 2, "keep": 2}), tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a" / "checkpoints").iterdir()) == ["step-00000010", "step-00000012"]


def test_going_back_to_an_earlier_checkpoint(write_recipe: Write, tmp_path: Path) -> None:
    recipe = write_recipe(run={"keep": 3})
    train(recipe, tmp_path / "a")
    before = state(tmp_path / "a", 12)
    with pytest.raises(ConfigError, match=r"no checkpoint of step 5.*4, 8, 12"):
        train(recipe, tmp_path / "a", resume=5)
    train(recipe, tmp_path / "a", resume=4)
    assert_equal(before, state(tmp_path / "a", 12))


def test_going_back_is_for_good(write_recipe: Write, tmp_path: Path) -> None:
    recipe, out = write_recipe(run={"keep": 3}), tmp_path / "a"
    train(recipe, out)
    Trainer(*load_training(recipe), out).export(tmp_path / "weights", resume=8)
    assert Checkpoints(out / "checkpoints", 3).steps() == [4, 8, 12], "an export throws nothing away"
    assert train(recipe, out, minutes=0, resume=4).step == 5
    assert Checkpoints(out / "checkpoints", 3).steps() == [4, 5]
    assert train(recipe, out).finished


def test_finished_is_what_has_made_all_steps(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "results.json").write_text('{"finished": true, "step": 12}')
    assert is_finished(tmp_path, 12)
    assert not is_finished(tmp_path, 16), "it was lengthened since"


def test_processes_that_see_different_checkpoints_do_not_train(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on machines without a shared disk, of which only the first has checkpoints."""
    recipe = write_recipe()
    train(recipe, tmp_path / "a", minutes=0)
    monkeypatch.setattr(loop, "gather_labels", lambda own: torch.cat([own, torch.zeros_like(own)]))
    with pytest.raises(ConfigError, match="do not see the same checkpoints"):
        train(recipe, tmp_path / "a")


def test_a_validation_that_fails_costs_no_steps(write_recipe: Write, tmp_path: Path) -> None:
    trainer = Trainer(*load_training(write_recipe(run={"validate_every": 4})), tmp_path / "a")
    trainer.task.validate = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert trainer.checkpoints.steps() == [4]


def test_a_checkpoint_has_the_metrics_of_its_step(write_recipe: Write, tmp_path: Path) -> None:
    train(write_recipe(loop={"steps": 6}, run={"validate_every": 4, "keep": 3}), tmp_path / "a")
    texts = [(tmp_path / "a" / "checkpoints" / f"step-0000000{n}" / "state.json").read_text() for n in (4, 6)]
    metrics = [json.loads(text)["metrics"]["psnr"] for text in texts]
    assert metrics[0] != metrics[1]
    assert json.loads((tmp_path / "a" / "results.json").read_text())["metrics"]["psnr"] == metrics[1]


def test_another_config_in_the_folder_is_refused(write_recipe: Write, tmp_path: Path) -> None:
    recipe = write_recipe(loop={"steps": 2})
    train(recipe, tmp_path / "a")
    with pytest.raises(OutputConflict, match=r"loop\.lr is 0\.001; this one has 0\.5"):
        train(recipe, tmp_path / "a", "loop.lr=0.5")
    with pytest.raises(OutputConflict, match=r"settings\.widths"):
        train(recipe, tmp_path / "a", "settings.widths=[8,16]")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("mine")
    with pytest.raises(OutputConflict, match="not empty"):
        train(recipe, tmp_path / "b")


def test_a_training_is_lengthened_while_its_rate_is_at_the_peak(write_recipe: Write, tmp_path: Path) -> None:
    recipe = write_recipe(loop={"decay": 0.25, "warmup": 2})
    train(recipe, tmp_path / "straight", "loop.steps=16")
    train(recipe, tmp_path / "a", minutes=0)
    train(recipe, tmp_path / "a", "loop.steps=16")
    assert_equal(state(tmp_path / "straight", 16), state(tmp_path / "a", 16))
    with pytest.raises(OutputConflict, match=r"loop\.steps is 16; this one has 20"):
        train(recipe, tmp_path / "a", "loop.steps=20")
    with pytest.raises(OutputConflict, match=r"loop\.steps is 16; this one has 4"):
        train(recipe, tmp_path / "a", "loop.steps=4")


def test_a_damaged_checkpoint_is_named(write_recipe: Write, tmp_path: Path) -> None:
    recipe = write_recipe()
    train(recipe, tmp_path / "a")
    path = tmp_path / "a" / "checkpoints" / "step-00000012" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptData, match="step-00000012"):
        train(recipe, tmp_path / "a")


def test_full_disk_keeps_the_previous_checkpoint(write_recipe: Write, tmp_path: Path) -> None:
    recipe, out = write_recipe(), tmp_path / "a"
    train(recipe, out, minutes=0)
    before = state(out, 1)
    size = (out / "checkpoints" / "step-00000001" / "optimizer.safetensors").stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, old[1]))
    try:
        with pytest.raises(StorageError, match=r"step-00000004"):
            train(recipe, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000001"]
    assert_equal(before, state(out, 1))
    assert train(recipe, out).finished

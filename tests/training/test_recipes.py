"""Recipes: what is wrong with one is said, those that ship are complete, and a dry run tells what one would cost."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from limner.cli.main import main
from limner.errors import ConfigError, TrainingDiverged
from limner.training.loop import Trainer
from limner.training.recipe import Loop, read_recipe
from limner.training.tasks import load_training, task_class

Write = Callable[..., Path]
RECIPES = sorted(p for p in (Path(__file__).parents[2] / "recipes").glob("*.yaml") if "\ntask:" in p.read_text())

OVER_BASES = [
    p for p in (Path(__file__).parents[2] / "recipes").rglob("*.yaml")
    if any(f"\ntask: {task}\n" in p.read_text() for task in ("dreamidentity", "gaze"))
]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.stesp=3", "Loop has no field 'stesp'"),
        ("loop.steps=0", r"Loop\.steps is 0; allowed: 1 or more"),
        ("loop.steps=many", r"Loop\.steps is 'many'; a value of type int"),
        ("loop.accumulation=3", "a divisor of batch_size"),
        ("loop.precision=half", "no, bf16, fp16"),
        ("task=autoencodre", "Unknown task 'autoencodre'; known: autoencoder, recogniser"),
        ("settings.width=3", "AutoencoderSettings has no field 'width'"),
        ("settings.widths=[4, 4]", r"AutoencoderSettings\.widths is \(4, 4\)"),
        ("settings.data.kind=web", r"DataConfig\.kind is 'web'; allowed: world, folder, shards"),
        ("settings.data.path=", r"DataConfig\.path is None"),
        ("run.keep=0", r"Run\.keep is 0"),
        ("loop.steps", "has no '='"),
        ("name.first=a", "'name' has no fields"),
    ],
)
def test_wrong_fields_are_named(write_recipe: Write, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_training(write_recipe(), [override])


@pytest.mark.parametrize("field", ["name", "task", "loop"])
def test_missing_fields_are_named(write_recipe: Write, field: str, tmp_path: Path) -> None:
    values = yaml.safe_load(write_recipe().read_text())
    del values[field]
    (tmp_path / "cut.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=f"lacks the field '{field}'"):
        read_recipe(tmp_path / "cut.yaml")


def test_an_unreadable_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="Cannot read a recipe"):
        read_recipe(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="Cannot read a recipe"):
        read_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_are_complete(path: Path) -> None:
    recipe, _ = load_training(path)
    assert recipe.name == path.stem
    header = path.read_text().split("name:")[0]
    for word in ("Trains", "Cost", "Result"):
        assert f"# {word}" in header, f"the header of {path.name} does not say: {word}"
    assert recipe.settings == task_class(recipe.task).settings_class.from_dict(recipe.settings).to_dict()


@pytest.mark.parametrize("path", OVER_BASES, ids=lambda p: p.stem)
def test_a_base_beside_the_model_has_the_precision_of_the_training(path: Path) -> None:
    """Autocast does not reach it."""
    recipe, _ = load_training(path)
    assert recipe.loop.precision == "bf16"
    assert recipe.settings["base_dtype"] == "bfloat16"


def test_learning_rate_rises_and_falls() -> None:
    loop = Loop(steps=100, batch_size=1, lr=1.0, warmup=10, final_lr=0.1)
    rates = [loop.rate(s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0.1 < rates[-1] < 0.11


def test_learning_rate_stays_at_its_peak_until_the_decay() -> None:
    loop = Loop(steps=100, batch_size=1, lr=1.0, warmup=10, decay=0.3)
    rates = [loop.rate(s) for s in range(100)]
    assert rates[9:71] == [1.0] * 62
    assert all(a > b for a, b in itertools.pairwise(rates[70:]))
    assert 0 < rates[-1] < 0.01


def test_a_loss_that_is_not_finite_stops_before_the_weights(write_recipe: Write, tmp_path: Path) -> None:
    recipe, out = write_recipe(loop={"steps": 40, "clip": 0.0, "ema": 0.0}), tmp_path / "a"
    with pytest.raises(TrainingDiverged, match=r"At step \d+ the loss is .*finite") as caught:
        Trainer(*load_training(recipe, ["loop.lr=1e6", "loop.warmup=8", "run.checkpoint_every=1"]), out).run()
    kept = sorted((out / "checkpoints").iterdir())
    assert f"The checkpoint of step {int(kept[-1].name[5:])}" in caught.value.hint
    for path in kept:
        state = load_file(path / "model.safetensors")
        assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


def test_numbers_in_scientific_notation_are_numbers(write_recipe: Write) -> None:
    recipe = read_recipe(write_recipe(), ["loop.lr=1e-4", "loop.betas=[9e-1, 0.5]"])
    assert recipe.loop.lr == 1e-4
    assert recipe.loop.betas == (0.9, 0.5)


def test_dry_run_tells_and_trains_nothing(
    write_recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["train", str(write_recipe()), "--dry-run", "--json"])
    assert not left.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 12 * 8
    assert told["trained_parameters"] > 1000
    assert told["weights_and_optimizer_mb"] == pytest.approx(told["trained_parameters"] * 20 / 1e6, abs=0.1)
    assert told["activations_mb"] > 0
    assert told["images_per_second"] > 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "frozen"),  # the second less than is frozen: of the base, its UNet alone has 11.5 million
    [
        ("mini-dreamidentity", 11.5e6),
        ("rivals/elite", 11.5e6),
        ("mini-clip-people", 5e5),
        ("mini-faceclip-alignment", 5e6),
    ],
)
def test_what_stands_on_untrained_parts_can_be_counted(
    name: str, frozen: float, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to the autoencoder, through recipes alone: nothing has been trained where this runs."""
    monkeypatch.chdir(tmp_path)
    recipe = Path(__file__).parents[2] / "recipes" / f"{name}.yaml"
    with pytest.raises(SystemExit) as left:
        main(["train", str(recipe), "--dry-run", "--json", "--gpus", "1"])
    assert not left.value.code, capsys.readouterr().err
    told = json.loads(capsys.readouterr().out)
    assert told["trained_parameters"] > 5e5
    assert told["frozen_parameters"] > frozen


def test_contrastive_tasks_refuse_accumulation(pictures: Path, tmp_path: Path) -> None:
    data = {"kind": "folder", "path": str(pictures), "size": 32}
    text = {"width": 16, "depth": 1, "heads": 2, "context": 20, "projection": 12}
    values = {
        "name": "a",
        "task": "clip",
        "settings": {"data": data, "held_out": data, "text": text},
        "loop": {"steps": 1, "batch_size": 4, "accumulation": 2},
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="contrasts the rows"):
        Trainer(*load_training(tmp_path / "a.yaml"), tmp_path / "out")

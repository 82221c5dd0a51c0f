"""The full-size recipes fit the trainer, and are counted without weights, data or memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from limner.cli.main import main
from limner.encoders.config import FaceViTConfig
from limner.encoders.face_vit import FaceViT
from limner.errors import ConfigError
from limner.pipelines.bases import BASES, build, build_towers, count
from limner.training.plan import plan
from limner.training.tasks import load_training

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "full"
NAMES = [path.stem for path in sorted(FOLDER.glob("full-*.yaml"))]


@pytest.fixture(scope="module")
def plans() -> dict[str, dict[str, Any]]:
    """What 64 GPUs would need for each recipe, to be done in 72 hours."""
    found = {}
    for name in NAMES:
        recipe, build_task = load_training(FOLDER / f"{name}.yaml")
        found[name] = plan(recipe, build_task, FOLDER, gpus=64, hours=72)
    return found


TOWERS = {"sd21-base": [340_387_840], "sdxl-base": [123_060_480, 694_659_840]}
"""Values in the published text towers, by the sizes of their files."""
OVER_BASES = {
    "dreamidentity-sd21": "sd21-base",
    "gaze-sd21": "sd21-base",
    "rivals/e4t-sd21": "sd21-base",
    "rivals/ip-adapter-sdxl": "sdxl-base",
}


@pytest.mark.parametrize("base", TOWERS)
def test_text_towers_of_bases_have_the_published_sizes(base: str) -> None:
    towers = build_towers(base)
    assert [count(tower) for tower in towers.towers] == TOWERS[base]


@pytest.mark.parametrize("name", OVER_BASES)
def test_trainings_over_a_base_are_counted_without_it(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    recipe, build_task = load_training(path)
    found = plan(recipe, build_task, path.parent, gpus=8)
    unet = BASES["sdxl-unet" if OVER_BASES[name] == "sdxl-base" else "sd21-base-unet"].parameters
    base = unet + BASES["sdxl-vae"].parameters + sum(TOWERS[OVER_BASES[name]])
    assert base <= found["frozen_parameters"] < base + 400e6  # a recogniser besides
    assert 0 < found["trained_parameters"] < 400e6
    assert found["tflop_per_step"] > 10


def full_face() -> FaceViT:
    with torch.device("meta"):
        return FaceViT(FaceViTConfig())


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_complete_and_counted(name: str, plans: dict[str, dict[str, Any]]) -> None:
    recipe, _ = load_training(FOLDER / f"{name}.yaml")
    header = (FOLDER / f"{name}.yaml").read_text().split("name:")[0]
    assert recipe.name == name
    assert all(f"# {word}" in header for word in ("Trains", "Command", "Needs", "Cost", "Result"))
    assert (recipe.loop.precision, recipe.loop.ema_on_cpu) == ("bf16", True)
    found = plans[name]
    ddp, trained = found["ddp_gb_per_gpu"], found["trained_parameters"]
    assert ddp["weights"] == pytest.approx(trained * 4 / 1e9, abs=0.01)
    assert ddp["optimizer"] == pytest.approx(2 * ddp["weights"], abs=0.02)
    assert ddp["ema"] == 0
    assert found["main_memory_gb"] == ddp["weights"]
    assert ddp["total"] == pytest.approx(sum(v for k, v in ddp.items() if k != "total"), abs=0.05)
    assert 0 < ddp["activations"] < 60
    assert found["images"] == recipe.loop.steps * recipe.loop.batch_size
    assert found["tokens"] == found["tokens_per_step"] * recipe.loop.steps
    assert found["steps_per_second"] == pytest.approx(recipe.loop.steps / 72 / 3600, abs=1e-4)
    assert found["tflops_per_gpu"] * 64 * 72 * 3600 == pytest.approx(found["exaflop"] * 1e6, rel=0.05)


def test_the_models_are_the_full_size_ones(plans: dict[str, dict[str, Any]]) -> None:
    unet = plans["full-faceclip-sdxl"]
    assert unet["trained_parameters"] == BASES["sdxl-unet"].parameters
    encoder = count(build("sdxl")) - count(
        FaceViT(FaceViTConfig()).to("meta")
    )  # the branches share a face encoder here
    assert unet["frozen_parameters"] == encoder + BASES["sdxl-vae"].parameters
    face = plans["full-recogniser"]["trained_parameters"]
    assert face == count(full_face()) + 85742 * 512
    heads = sum(77 * width * (512 + width) + 512 + width for width in (768, 1280))
    alignment = plans["full-alignment"]
    assert alignment["trained_parameters"] + alignment["frozen_parameters"] == encoder + heads


def test_sharding_divides_what_is_trained(plans: dict[str, dict[str, Any]]) -> None:
    ddp, fsdp = (plans["full-faceclip-sdxl"][f"{kind}_gb_per_gpu"] for kind in ("ddp", "fsdp"))
    for part in ("weights", "gradients", "optimizer"):
        assert fsdp[part] == pytest.approx(ddp[part] / 64, abs=0.01)
    assert fsdp["frozen"] == ddp["frozen"]
    assert 0 < fsdp["gathered"] < 2
    assert plans["full-recogniser"]["fsdp_gb_per_gpu"] is None


def test_the_command_line_counts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = {"kind": "folder", "path": "nowhere", "size": 32}
    face = {"image_size": 28, "patch_size": 7, "width": 16, "depth": 1, "heads": 2, "output": 8}
    values = {
        "name": "tiny", "task": "recogniser", "loop": {"steps": 100, "batch_size": 8},
        "settings": {"data": data, "held_out": data, "face": face, "persons": 6},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            sys.exit(main(["train", str(tmp_path / "tiny.yaml"), *arguments]))
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out + err

    status, out = run("--dry-run", "--gpus", "2", "--hours", "1", "--json")
    assert status == 0, out
    assert json.loads(out)["tokens_per_step"] == 8 * 2 * 17
    assert "27,200" in run("--dry-run", "--gpus", "2")[1]
    for wrong, what in ((("--dry-run", "--gpus", "3"), "cannot share"), (("--gpus", "2"), "--dry-run")):
        status, out = run(*wrong)
        assert status == 2
        assert what in out


def test_a_part_of_unknown_size_is_named(tmp_path: Path) -> None:
    text = (FOLDER / "full-faceclip-sdxl.yaml").read_text().replace("weights/sdxl-unet", "weights/my-unet")
    (tmp_path / "a.yaml").write_text(text)
    recipe, build_task = load_training(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="full-alignment/weights is not there") as caught:
        plan(recipe, build_task, tmp_path, gpus=1)
    assert "full-alignment.yaml" in caught.value.hint


def test_accelerate_reads_its_config() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(FOLDER / "accelerate" / "ddp.yaml"))
    assert (config.distributed_type, config.num_processes) == ("MULTI_GPU", 8)
    assert config.mixed_precision == "no"

"""The shipped smoke benchmark through the command line, with tiny random models in the place of the trained ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_scorers import write_scorers

from limner.cli.main import main
from limner.evaluation.recipe import ScorerSpec
from limner.evaluation.scorers import HubClip, MiniClip, load_judges

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recipe(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    values = yaml.safe_load((ROOT / "recipes" / "smoke-benchmark.yaml").read_text())
    places = write_scorers(folder)
    values["scorers"] |= {"recognisers": [places["recogniser"]], "clip": places["clip"]}
    values["scorers"] |= {"attributes": places["attributes"], "optional": ["mobilefacenet"], "detector": "cascade"}
    for method in values["methods"]:
        method["model"] = str(tiny_folder)
    values["pictures"], values["people"]["gallery"] = 1, 5
    values["slices"]["names"], values["curve"]["prompts"] = ["yaw_30_45"], 1
    path = folder / "smoke.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def out(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke-out") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LIMNER_MOBILEFACENET", raising=False)
        run(str(recipe), "--out", str(folder), "--device", "cpu")
    return folder


def run(*arguments: str) -> None:
    """The command, which must end well."""
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *arguments])
    assert end.value.code == 0


@pytest.fixture(autouse=True)
def _without_the_optional_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `out`, so that all runs of this module are scored by the same judges, whatever the machine has."""
    monkeypatch.delenv("LIMNER_MOBILEFACENET", raising=False)


def test_the_smoke_benchmark_fills_every_part_of_the_report(out: Path) -> None:
    report = json.loads((out / "report.json").read_text())
    assert list(report["methods"]) == ["real", "stranger", "copy", "faceclip", "text_only"]
    assert report["methods"]["faceclip"]["pictures"] == 8
    enrolled = report["methods"]["faceclip"]["estimates"]["encoding_seconds"]
    assert 0 < enrolled["value"] < 60
    assert enrolled["people"] == 4
    assert "encoding_seconds" not in report["methods"]["text_only"]["estimates"]
    assert report["methods"]["text_only"]["estimates"]["memory_mb"]["value"] > 50
    assert [(c["strength"], c["guidance"]) for c in report["curve"]] == [(0.5, 3.0), (1.0, 3.0)]
    assert set(report["slices"]["faceclip"]["values"]) == {"yaw_30_45"}
    assert "mobilefacenet" in report["left_out"][0]
    assert {c["metric"] for c in report["comparisons"]} >= {"text_alignment", "attributes"}
    assert len(report["judges"]) == 3
    assert all(len(j["sha256"]) == 64 for j in report["judges"])
    weights = report["methods"]["faceclip"]["weights"]
    assert set(weights) == {"dials", "encoder", "unet", "vae"}
    assert report["methods"]["real"]["weights"] == {}
    text = (out / "report.md").read_text()
    for title in ("Table 1", "FaceCLIP's comparison", "Prompt by prompt", "who is painted", "hard about", "the dials"):
        assert title in text
    assert f"unet {weights['unet'][:12]}" in text
    for name in ("methods", "dials", "cost", "slices", "sheet-1"):
        assert (out / f"{name}.png").stat().st_size > 1000


def test_the_same_command_paints_nothing_again(out: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = {p: p.stat().st_mtime_ns for p in (out / "pictures").rglob("*.png")}
    before = json.loads((out / "report.json").read_text())
    run(str(recipe), "--out", str(out), "--device", "cpu", "--resume", "--json")
    after = json.loads(capsys.readouterr().out)
    assert {p: p.stat().st_mtime_ns for p in (out / "pictures").rglob("*.png")} == pictures
    assert {k: v for k, v in after.items() if k != "command"} == {k: v for k, v in before.items() if k != "command"}


@pytest.mark.parametrize("part", ["unet", "dials"])
def test_pictures_by_other_weights_are_not_reported(
    part: str, out: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = Path(shutil.copytree(out, tmp_path / "out"))
    file = next((begun / "pictures" / "main" / "faceclip").rglob("00.json"))
    facts = json.loads(file.read_text())
    assert facts["weights"][part] != "0" * 64
    facts["weights"][part] = "0" * 64
    file.write_text(json.dumps(facts))
    assert main(["evaluate", str(recipe), "--out", str(begun), "--device", "cpu"]) == 2
    assert f"other weights than it has now ({part})" in capsys.readouterr().err.replace("\n", " ")


def test_a_judge_who_paints_is_refused(
    recipe: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(recipe.read_text())
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    shutil.copy(Path(values["scorers"]["recognisers"][0]) / "recogniser.safetensors", model / "encoder")
    values["methods"][0]["model"] = str(model)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert main(["evaluate", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "would judge what it painted" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out" / "pictures").exists()


def test_pictures_of_another_system_are_scored_beside_one_method(out: Path, recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "theirs"
    other.mkdir()
    rows = []
    for person in sorted((out / "pictures" / "main" / "real").iterdir()):
        for k in range(2):
            name = f"{person.name}-{k}.png"
            (other / name).write_bytes((person / f"{k:02d}-0.png").read_bytes())
            rows.append({"file_name": name, "person": person.name, "prompt": k})
    (other / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(str(recipe), "--out", str(out), "--device", "cpu", "--methods", "text_only", "--images", str(other))
    report = json.loads((out / "report.json").read_text())
    assert list(report["methods"]) == ["real", "stranger", "copy", "text_only", "theirs"]
    assert report["methods"]["theirs"]["pictures"] == 8


def test_a_report_is_printed_again_elsewhere(out: Path, tmp_path: Path) -> None:
    run("--reprint", str(out / "report.json"), "--out", str(tmp_path / "docs"))
    assert (tmp_path / "docs" / "report.json").read_bytes() == (out / "report.json").read_bytes()
    assert "Prompt by prompt" in (tmp_path / "docs" / "report.md").read_text()
    assert (tmp_path / "docs" / "methods.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "A recipe is expected"),
        (["RECIPE", "--part", "3/2"], "--part is '3/2'"),
        (["RECIPE", "--methods", "nobody"], "Unknown method 'nobody'"),
        (["RECIPE", "--resume", "--out", "nowhere"], "nothing was begun"),
        (["RECIPE", "--reprint", "report.json"], "finished report"),
        (["--reprint", "RECIPE"], "no report of"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], said: str, recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [str(recipe) if a == "RECIPE" else a for a in arguments]
    assert main(["evaluate", *words]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_judge_that_is_not_here_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from limner.errors import WeightsUnavailable

    monkeypatch.delenv("LIMNER_MOBILEFACENET", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cpu = torch.device("cpu")
    with pytest.raises(WeightsUnavailable, match="LIMNER_MOBILEFACENET"):
        load_judges(ScorerSpec(("mobilefacenet",), "x"), cpu)
    with pytest.raises(WeightsUnavailable, match="hf download openai/clip"):
        HubClip("openai/clip-not-cached", cpu)
    with pytest.raises(WeightsUnavailable, match=r"scorer-clip\.yaml"):
        HubClip(str(tmp_path / "nothing"), cpu)
    with pytest.raises(WeightsUnavailable):
        MiniClip(tmp_path, cpu)


def test_a_published_clip_scores_alike_in_transformers_form(tmp_path: Path) -> None:
    """A random CLIP in the hub's form, with a tokenizer of its kind: unit vectors, and text depends on the words."""
    import numpy as np
    import torch

    model, cpu = _random_hub_clip(tmp_path), torch.device("cpu")
    clip = HubClip.__new__(HubClip)
    clip.model, clip.tokenizer, clip.device = model[0], model[1], cpu
    images = [np.random.default_rng(k).integers(0, 256, (40, 50, 3), dtype=np.uint8) for k in range(2)]
    pictures, texts = clip.pictures(images), clip.texts(["S* as a cat", "a person as a cat", "a dog"])
    np.testing.assert_allclose(np.linalg.norm(pictures, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(texts[0], texts[1], rtol=1e-5)
    assert abs(texts[0] - texts[2]).max() > 1e-3


def _random_hub_clip(folder: Path) -> tuple[Any, Any]:
    from transformers import CLIPConfig, CLIPModel

    from limner.training.words import make_tokenizer

    tokenizer = make_tokenizer("world", 16)
    inner: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {**inner, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config={**inner, "image_size": 32, "patch_size": 16}, projection_dim=8)
    return CLIPModel(config).eval(), tokenizer

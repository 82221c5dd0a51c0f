"""`limner generate` and `limner enroll` from end to end: a tiny model in a folder, a rendered face, real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner.cli.main import main
from limner.errors import PromptError
from limner.pipelines.faceclip import FaceCLIPPipeline
from limner.provenance import IDENTITY_KEY, read_provenance
from limner.types import Identity
from limner.world.sheet import SheetConfig, sheet


def run(*arguments: str | Path) -> int:
    """The exit status, wherever it comes from."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sitter as `limner world sample` writes it, and the same pixels as a camera would: without a mark."""
    folder = tmp_path_factory.mktemp("faces")
    assert run("world", "sample", "--identities", "1", "--views", "1", "--seed", "7", "--size", "320",
               "--out", folder / "sitter.png") == 0  # fmt: skip
    Image.open(folder / "sitter.png").save(folder / "camera.jpg", quality=95)
    other, _ = sheet(SheetConfig(identities=1, views=1, seed=11, size=320))
    other.save(folder / "other.png")
    Image.new("RGB", (64, 64), "gray").save(folder / "wall.png")
    return {p.stem: p for p in folder.iterdir()}


class Studio:
    """The command, with the options that every call here shares."""

    def __init__(self, model: Path, face: Path, out: Path, capsys: Any) -> None:
        self.model, self.face, self.out, self.capsys = model, face, out, capsys

    def paint(self, *arguments: str | Path) -> dict[str, Any]:
        """What a successful run prints for programs."""
        self.capsys.readouterr()
        assert run("generate", "--model", self.model, "--out", self.out, "--json", *arguments) == 0
        return json.loads(self.capsys.readouterr().out)

    def refuse(self, *arguments: str | Path) -> dict[str, str]:
        """The error of a run that must fail."""
        self.capsys.readouterr()
        assert run(*arguments, "--json") == 2
        captured = self.capsys.readouterr()
        assert captured.out == ""
        assert "━" not in captured.err  # no bar before the document
        return json.loads(captured.err.strip().splitlines()[-1])["error"]


@pytest.fixture
def studio(tiny_folder: Path, faces: dict[str, Path], tmp_path: Path, capsys: Any) -> Studio:
    return Studio(tiny_folder, faces["sitter"], tmp_path / "out", capsys)


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_portraits_with_their_provenance_and_a_sheet(studio: Studio) -> None:
    report = studio.paint(
        "--face", studio.face, "-p", "a wizard in the snow", "-p", "a chef", "-n", "2", "--seed", "5",
        "--negative", "hat", "--steps", "2", "--guidance", "2.5", "--strength", "0.8", "--size", "64x48",
    )  # fmt: skip
    assert [p["seed"] for p in report["pictures"]] == [5, 6, 5, 6]
    assert report["remarks"] == [] or "landmarks" in report["remarks"][0]
    assert Path(report["sheet"]).is_file()
    stems = [f"{words}-{seed}" for words in ("a-chef", "a-wizard-in-the-snow") for seed in (5, 6)]
    assert sorted(p.stem for p in studio.out.iterdir()) == [*stems, "sheet"]
    record = read_provenance(report["pictures"][0]["path"])
    portrait = record.portrait
    assert record.intact
    assert portrait.image.size == (64, 48)
    assert (portrait.prompt, portrait.negative_prompt, portrait.model) == ("a wizard in the snow", "hat", "tiny")
    assert set(portrait.weights) == {"unet", "vae", "encoder"}
    assert {k: portrait.settings[k] for k in ("steps", "guidance_scale", "strength", "scheduler", "world")} == {
        "steps": 2, "guidance_scale": 2.5, "strength": 0.8, "scheduler": "ddim", "world": "sitters",
    }  # fmt: skip
    assert record.identity is not None
    assert record.identity.digest() == portrait.identity == report["pictures"][0]["identity"]


def test_a_picture_is_painted_again_from_its_file_alone(studio: Studio, tmp_path: Path) -> None:
    report = studio.paint("--face", studio.face, "-p", "a chef", "-n", "3", "--seed", "9", "--scheduler", "euler-a")
    again = studio.paint("--from", report["pictures"][1]["path"])
    assert again["identical"] is True
    assert "pixel for pixel" in again["summary"]
    assert again["pictures"][0]["seed"] == 10
    assert np.array_equal(pixels(again["pictures"][0]["path"]), pixels(report["pictures"][1]["path"]))
    assert again["pictures"][0]["path"] != report["pictures"][1]["path"]


def test_without_the_embedded_identity_it_must_be_given(studio: Studio, tmp_path: Path) -> None:
    me = tmp_path / "me.safetensors"
    assert run("enroll", "--face", studio.face, "--model", studio.model, "--out", me) == 0
    report = studio.paint("--identity", me, "-p", "a chef", "--seed", "1", "--no-embed-identity")
    path = report["pictures"][0]["path"]
    assert IDENTITY_KEY not in Image.open(path).text
    assert studio.refuse("generate", "--from", path, "--model", studio.model)["code"] == "weights_mismatch"
    again = studio.paint("--from", path, "--identity", me)
    assert again["identical"] is True
    assert IDENTITY_KEY not in Image.open(again["pictures"][0]["path"]).text


def test_an_enrolled_person_paints_what_their_photo_paints(studio: Studio, tmp_path: Path) -> None:
    me = tmp_path / "me.safetensors"
    studio.capsys.readouterr()
    assert run("enroll", "--face", studio.face, "--model", studio.model, "--out", me, "--json") == 0
    facts = json.loads(studio.capsys.readouterr().out)
    assert facts["digest"] == Identity.load(me).digest()
    by_file = studio.paint("--identity", me, "-p", "a chef", "--seed", "3")["pictures"][0]
    by_face = studio.paint("--face", studio.face, "-p", "a chef", "--seed", "3")["pictures"][0]
    assert by_file["identity"] == by_face["identity"]
    assert np.array_equal(pixels(by_file["path"]), pixels(by_face["path"]))
    error = studio.refuse("enroll", "--face", studio.face, "--model", studio.model, "--out", me)
    assert error["code"] == "output_conflict"
    assert run("enroll", "--face", studio.face, "--model", studio.model, "--out", me, "--force") == 0


def test_best_of_paints_more_and_keeps_few(studio: Studio) -> None:
    what = ("--face", studio.face, "-p", "a chef", "--seed", "20", "--batch", "3", "--best-of", "4")
    every = studio.paint(*what, "-n", "4")["pictures"]
    scores = [p["scores"]["likeness"] for p in every]
    assert scores == sorted(scores, reverse=True)
    assert {p["seed"] for p in every} == {20, 21, 22, 23}
    (best,) = studio.paint(*what)["pictures"]
    assert (best["seed"], best["scores"]) == (every[0]["seed"], every[0]["scores"])
    assert len(list(studio.out.glob("a-chef-*.png"))) == 5
    assert read_provenance(best["path"]).portrait.scores == best["scores"]
    assert studio.paint("--from", best["path"])["identical"] is True


def test_prompts_from_a_file(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# ideas\na chef\n\n  a wizard in the snow  \n", encoding="utf-8")
    what = ("--face", studio.face, "-p", "# a man", "--prompts-file", tmp_path / "p.txt", "--seed", "0")
    report = studio.paint(*what, "--guidance-rescale", "0.5", "--detector", "cascade")
    assert [p["prompt"] for p in report["pictures"]] == ["# a man", "a chef", "a wizard in the snow"]
    assert report["pictures"][0]["settings"]["guidance_rescale"] == 0.5


def test_what_the_model_does_not_know_is_said(studio: Studio, faces: dict[str, Path], tmp_path: Path) -> None:
    report = studio.paint(
        "--face", faces["camera"], "-p", "a chef with a zeppelin and a lute " + "hat " * 30, "--seed", "0"
    )
    said = "\n".join(report["remarks"])
    assert "zeppelin" in said
    assert "lute" in said
    assert "outside its world" in said
    assert "cut off" in said
    me = tmp_path / "me.safetensors"
    assert run("enroll", "--face", faces["camera"], "--model", studio.model, "--out", me) == 0
    assert "outside its world" in studio.capsys.readouterr().err
    report = studio.paint("--identity", me, "-p", "a chef", "--seed", "0")
    assert "outside its world" in "\n".join(report["remarks"])
    painted = report["pictures"][0]["path"]
    assert read_provenance(painted).portrait.settings["world"] == "sitters"


def test_a_bad_prompt_is_told_before_anything_is_painted(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    condition = FaceCLIPPipeline.condition

    def picky(self: Any, prompt: Any, *given: Any) -> Any:
        if prompt == "bad":
            raise PromptError("A bad prompt.")
        return condition(self, prompt, *given)

    monkeypatch.setattr(FaceCLIPPipeline, "condition", picky)
    what = ("--model", studio.model, "--face", studio.face, "-p", "a chef", "-p", "bad", "--out", studio.out)
    assert studio.refuse("generate", *what)["code"] == "prompt"
    assert not list(studio.out.glob("*"))


def test_a_device_without_memory_is_a_typed_error(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, *given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(FaceCLIPPipeline, "__call__", full)
    what = ("--model", studio.model, "--face", studio.face, "-p", "a chef", "--out", studio.out)
    error = studio.refuse("generate", *what)
    assert error["code"] == "out_of_memory"
    assert "--batch 1" in error["hint"]


def test_what_is_too_large_for_a_png_is_written_beside_it(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.provenance.MAX_IDENTITY_BYTES", 5000)
    for who in (("--face", studio.face), ("--person", f"{studio.face}@left")):
        report = studio.paint(*who, "-p", "a chef", "--seed", "1", "--detector", "cascade")
        (said,) = [remark for remark in report["remarks"] if "too large" in remark]
        beside = said.split("--identity ")[1].rstrip(".")
        assert Path(beside).parent == studio.out
        path = report["pictures"][0]["path"]
        assert IDENTITY_KEY not in Image.open(path).text
        assert studio.paint("--from", path, "--identity", beside)["identical"] is True
    again = studio.paint("--identity", beside, "-p", "a chef", "--seed", "1")
    assert f"--identity {beside}" in "".join(again["remarks"])
    assert len(list(studio.out.glob("identity*.safetensors"))) == 2


def test_nothing_is_overwritten(studio: Studio) -> None:
    first = studio.paint("--face", studio.face, "-p", "a chef", "--seed", "1")["pictures"][0]["path"]
    second = studio.paint("--face", studio.face, "-p", "a chef", "--seed", "1", "--steps", "1")["pictures"][0]["path"]
    assert Path(first).name == "a-chef-1.png"
    assert Path(second).name == "a-chef-1-2.png"
    assert not np.array_equal(pixels(first), pixels(second))


def test_random_seeds_differ_and_are_recorded(studio: Studio) -> None:
    seeds = {studio.paint("--face", studio.face, "-p", "a chef", "--steps", "1")["pictures"][0]["seed"] for _ in "ab"}
    assert len(seeds) == 2


def test_people_read_sentences(studio: Studio) -> None:
    studio.capsys.readouterr()
    what = ("--face", studio.face, "-p", "a chef", "-n", "2", "--seed", "1")
    assert run("generate", *what, "--model", studio.model, "--out", studio.out) == 0
    captured = studio.capsys.readouterr()
    assert captured.out.splitlines()[0].endswith("a-chef-1.png")
    assert "2 portraits" in captured.out
    assert str(studio.out / "sheet.png") in captured.out.replace("\n", "")
    assert "Painting" in captured.err


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("config", ("-p", "a")),
        ("config", ("--face", "FACE", "--identity", "FACE", "-p", "a")),
        ("prompt", ("--face", "FACE")),
        ("prompt", ("--face", "FACE", "-p", "  ")),
        ("config", ("--face", "FACE", "-p", "a", "--prompts-file", "absent.txt")),
        ("config", ("--face", "FACE", "-p", "a", "--size", "big")),
        ("config", ("--face", "FACE", "-p", "a", "--size", "60x60")),
        ("config", ("--face", "FACE", "-p", "a", "--steps", "0")),
        ("config", ("--face", "FACE", "-p", "a", "-n", "0")),
        ("config", ("--face", "FACE", "-p", "a", "-n", "4", "--best-of", "2")),
        ("config", ("--face", "FACE", "-p", "a", "--ranker", "sface")),
        ("config", ("--face", "FACE", "-p", "a", "--strength", "2")),
        ("config", ("--face", "FACE", "-p", "a", "--seed", "-1")),
        ("config", ("--face", "FACE", "-p", "a", "--scheduler", "fastest")),
        ("config", ("--face", "FACE", "-p", "a", "--device", "warp")),
        ("config", ("--face", "FACE", "-p", "a", "--dtype", "int8")),
        ("config", ("--face", "FACE", "-p", "a", "--choose", "prettiest")),
        ("several_faces", ("--face", "FACE", "-p", "a", "--choose", "3")),
        ("no_face", ("--face", "WALL", "-p", "a")),
        ("unreadable_image", ("--face", "absent.png", "-p", "a")),
        ("corrupt_data", ("--identity", "FACE", "-p", "a")),
        ("config", ("--from", "FACE", "-p", "a")),
        ("config", ("--from", "FACE", "--method", "faceclip")),
        ("config", ("--from", "FACE", "--detector", "cascade")),
        ("config", ("--identity", "FACE", "-p", "a", "--choose", "largest")),
        ("config", ("--identity", "FACE", "-p", "a", "--detector", "cascade")),
        ("config", ("--face", "FACE", "-p", "a", "--detector", "eyes")),
        ("config", ("--face", "FACE", "-p", "a", "--gaze-weights", "runs")),
        ("config", ("--face", "FACE", "-p", "a", "--rescue-strength", "0.4")),
        ("config", ("--face", "FACE", "-p", "a", "--guidance-rescale", "2")),
        ("config", ("--face", "FACE", "-p", "a", "--negative", "hat", "--guidance", "1")),
        ("no_provenance", ("--from", "FACE")),
        ("unreadable_image", ("--from", "absent.png")),
    ],
    ids=str,
)
def test_errors_are_typed(studio: Studio, faces: dict[str, Path], code: str, arguments: tuple[str, ...]) -> None:
    names = {"FACE": str(faces["sitter"]), "WALL": str(faces["wall"])}
    error = studio.refuse(
        "generate", "--model", studio.model, "--out", studio.out, *(names.get(a, a) for a in arguments)
    )
    assert error["code"] == code
    assert not list(studio.out.glob("*"))


def test_an_unwritable_folder_is_typed(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = studio.refuse(
        "generate", "--model", studio.model, "--face", studio.face, "-p", "a", "--out", tmp_path / "file"
    )
    assert error["code"] == "storage"


def test_another_models_picture_needs_that_model(studio: Studio, tmp_path: Path) -> None:
    from tiny_model import tiny_pipeline

    path = studio.paint("--face", studio.face, "-p", "a chef", "--seed", "1")["pictures"][0]["path"]
    assert studio.refuse("generate", "--from", path)["code"] == "weights_unavailable"
    tiny_pipeline("kl").save_pretrained(tmp_path / "other")
    error = studio.refuse("generate", "--from", path, "--model", tmp_path / "other")
    assert error["code"] == "weights_mismatch"

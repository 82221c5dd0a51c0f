"""Self-augmented data from a tiny base: every step as a user runs it, killed and gone on with, up to the training."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dream_models import CONTEXT, FACE, WORDS, save_base
from PIL import Image

from limner.cli.main import main
from limner.data.cleaning import clean_shards
from limner.data.pictures import ShardPictures
from limner.data.self_augment import EditsPlan, FacesPlan, demand_other_scorer, in_words, read_people
from limner.data.shards import ShardIndex
from limner.encoders.clip_scorer import ClipScorer
from limner.encoders.config import TextTowerConfig
from limner.encoders.face_vit import FaceViT
from limner.encoders.parts import save_face, save_text
from limner.encoders.text_tower import TextTower
from limner.encoders.tokenizer import build_word_tokenizer
from limner.errors import ConfigError, CorruptData, WeightsUnavailable
from limner.faces import DetectedFace, FaceDetector, make_detector

NAMES = ("person", "man", "woman")
"""The tiny base has no invented names; words that it knows will do."""
PROMPTS = ("oil painting style, S* face", "S* as a wizard")


class BrightHalf(FaceDetector):
    """A detector for pictures of noise: a face of 12 × 16 pixels where the left half is the brighter one."""

    name = "bright"
    license = "none"
    levels = (32,)
    last_level = 32

    def scan(self, image: np.ndarray) -> list[DetectedFace]:
        return self.detect(image)

    def detect(self, image: np.ndarray) -> list[DetectedFace]:
        if image[:, :16].mean() < image[:, 16:].mean():
            return []
        marks = np.array([[12.0, 13], [20, 13], [16, 18], [13, 22], [19, 22]])
        return [DetectedFace((10, 8, 22, 24), 0.9, marks)]


def run(*arguments: str | Path) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


def save_clip(folder: Path) -> Path:
    """A tiny CLIP in the form of the clip task."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    tokenizer = build_word_tokenizer(WORDS.split(), context=CONTEXT)
    sizes = {"depth": 1, "heads": 2, "context": CONTEXT, "vocabulary": len(tokenizer)}
    with torch.random.fork_rng():
        torch.manual_seed(6)
        save_text(folder, TextTower(TextTowerConfig(width=16, projection=8, **sizes)), tokenizer)
        config = CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32,
            patch_size=8, projection_dim=8,
        )  # fmt: skip
        CLIPVisionModelWithProjection(config).save_pretrained(folder / "image")
    return folder


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """base/, face/, clip/, names.jsonl, and what the two painting commands make: faces/, edits/."""
    root = tmp_path_factory.mktemp("augment")
    save_base("mini", root / "base")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        save_face(root / "face", FaceViT(FACE))
    save_clip(root / "clip")
    (root / "names.jsonl").write_text("".join(json.dumps({"name": n}) + "\n" for n in (*NAMES, "Ada Lovelace")))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limner.pipelines.self_augment.make_detector", lambda name: BrightHalf())
        assert run(*faces_command(root, root / "faces")) == 0
        assert run(*edits_command(root, root / "edits")) == 0
        yield root
    torch.set_num_threads(threads)


def faces_command(root: Path, out: Path, *more: str) -> list[Any]:
    return ["data", "faces", root / "names.jsonl", "--base", root / "base", "--out", out, *COMMON, "-n", "6",
            "--min-side", "12", *more]  # fmt: skip


def edits_command(root: Path, out: Path, *more: str) -> list[Any]:
    scorers = ["--recogniser", root / "face", "--clip", root / "clip"]
    edits = [x for p in PROMPTS for x in ("-p", p)]
    return ["data", "edits", root / "faces", "--base", root / "base", *scorers, "--out", out, *COMMON, "-n", "4",
            *edits, *more]  # fmt: skip


COMMON = ("--steps", "2", "--guidance", "3", "--threads", "1", "--device", "cpu", "--dtype", "float32")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_faces_are_kept_or_rejected_with_a_reason(where: Path) -> None:
    rows = ShardIndex(where / "faces").rows()
    assert [r["identity"] for r in rows] == [n for n in NAMES for _ in range(6)] + ["Ada Lovelace"]
    rejected = [json.loads(line) for line in (where / "faces" / "rejected.jsonl").read_text().splitlines()]
    kept = [r for r in rows if "rejected" not in r]
    assert len(kept) + len(rejected) == 19
    assert kept
    assert {r["rejected"] for r in rejected} == {"no face", "unknown name"}
    assert rejected[-1]["identity"] == "Ada Lovelace"
    assert ShardPictures(where / "faces").persons == len({r["identity"] for r in kept})
    assert len({r["seed"] for r in rows[:-1]}) == 18


def test_a_picture_depends_on_person_and_seed_alone(where: Path, tmp_path: Path) -> None:
    assert run(*faces_command(where, tmp_path / "two", "--limit", "2")) == 0
    one, two = ShardIndex(where / "faces"), ShardIndex(tmp_path / "two")
    assert all(two.files(key) == one.files(key) for key in two)
    assert run(*faces_command(where, tmp_path / "other", "--limit", "2", "--seed", "1")) == 0
    assert all(r["seed"] != s["seed"] for r, s in zip(two.rows(), ShardIndex(tmp_path / "other").rows(), strict=True))


def test_edits_are_scored(where: Path) -> None:
    index = ShardIndex(where / "edits")
    rows = index.rows()
    faces = [r for r in rows if r["reference"]]
    kept = [r for r in ShardIndex(where / "faces").rows() if "rejected" not in r]
    assert [r["landmarks"] for r in faces] == [r["landmarks"] for r in kept]
    edits = [r for r in rows if not r["reference"]]
    people = list(dict.fromkeys(r["identity"] for r in kept))
    assert [(r["identity"], r["prompt"]) for r in edits] == [(n, p) for n in people for p in PROMPTS for _ in range(4)]
    assert all(("landmarks" in r) == (r["identity_score"] is not None) for r in edits)
    assert {r["identity_score"] is None for r in edits} == {True, False}
    clip = ClipScorer.load(where / "clip")
    image = np.asarray(Image.open(io.BytesIO(index.files(edits[0]["key"])["png"])))
    picture = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255
    assert edits[0]["text_score"] == pytest.approx(clip(picture, ["oil painting style, person face"]).item(), abs=1e-4)


def test_killed_half_way_it_goes_on_and_makes_the_same(where: Path, tmp_path: Path) -> None:
    """As a kill leaves it: shards that are complete, a manifest of some of them."""
    whole = contents(where / "edits")
    out = tmp_path / "edits"
    out.mkdir()
    manifest = json.loads(whole["manifest.json"])
    manifest |= {"complete": False, "shards": manifest["shards"][:1]}
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "edits-000000.tar").write_bytes(whole["edits-000000.tar"])
    before = (out / "edits-000000.tar").stat().st_mtime_ns
    with pytest.raises(CorruptData, match="not finished"):
        clean_shards(out, tmp_path / "none")
    assert run(*edits_command(where, out)) == 0
    assert contents(out) == whole
    assert (out / "edits-000000.tar").stat().st_mtime_ns == before
    assert run(*edits_command(where, out, "--seed", "3")) == 2


def test_the_best_quarter_becomes_shards_that_trainings_read(where: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert run("data", "clean", where / "edits", "--out", out) == 0
    index = ShardIndex(out)
    rows, source = index.rows(), ShardIndex(where / "edits")
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    edits = [r for r in rows if not r["reference"]]
    assert len(edits) + len(rejected) == sum(not r["reference"] for r in source.rows())
    assert all({"why", "place", "of", "identity_score", "text_score"} <= r.keys() for r in rejected)
    people = len({r["identity"] for r in source.rows()})
    assert len(edits) <= 2 * max(1, people * 4 // 4)
    assert {r["identity"] for r in rows if r["reference"]} == {r["identity"] for r in edits}
    assert all(index.files(r["key"]) == source.files(r["key"]) for r in rows)
    pictures = ShardPictures(out)
    assert sorted(pictures.rows.references) == sorted(r["reference"] for r in rows)
    before = contents(out)
    assert run("data", "clean", where / "edits", "--out", out) == 0
    assert contents(out) == before
    assert run("data", "clean", where / "edits") == 2  # shards need --out


def test_bad_input(where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with pytest.raises(ConfigError, match="scores pictures in the benchmark"):
        demand_other_scorer("benchmarks/weights/scorer-clip")
    with pytest.raises(ConfigError, match=r"allowed: sentences with S\*"):
        EditsPlan(prompts=("a wizard",))
    with pytest.raises(ConfigError, match=r"a sentence with \{name\}"):
        FacesPlan(prompt="a face")
    with pytest.raises(ConfigError, match="Cannot read names"):
        read_people(tmp_path / "none")
    (tmp_path / "names").write_text("Ann\n")
    with pytest.raises(CorruptData, match="line 1"):
        read_people(tmp_path / "names")
    with pytest.raises(WeightsUnavailable, match="holds no CLIP"):
        ClipScorer.load(where / "face")
    assert in_words("S* as a chef", "Ann Lee") == "Ann Lee as a chef"
    monkeypatch.setattr("limner.pipelines.self_augment.make_detector", make_detector)  # the true one again
    assert run(*faces_command(where, tmp_path / "c", "--detector", "cascade")) == 2
    assert "without landmarks" in capsys.readouterr().err

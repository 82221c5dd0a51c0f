"""Which edits are kept, and that every rejection is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limner.cli.main import main
from limner.data.cleaning import clean, judge
from limner.errors import ConfigError, CorruptData, OutputConflict


def run(*arguments: str | Path) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


def edit(name: str, identity: float | None, text: float, prompt: str = "S* as a chef", person: int = 0) -> dict:
    return {
        "file_name": name, "identity": person, "prompt": prompt, "identity_score": identity, "text_score": text,
    }  # fmt: skip


def write(folder: Path, rows: list[Any]) -> Path:
    (folder / "candidates.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_both_scores_count() -> None:
    edits = [
        edit("like-but-no-chef", 0.9, 0.10), edit("good", 0.8, 0.28), edit("chef-but-a-stranger", 0.1, 0.30),
        edit("poor", 0.2, 0.15),
    ]  # fmt: skip
    verdicts = judge(edits)
    assert [v.kept for v in verdicts] == [False, True, False, False]
    assert [v.place for v in verdicts] == [2, 1, 3, 4]
    assert {v.of for v in verdicts} == {4}
    assert [v.why for v in verdicts] == ["rank", "", "rank", "rank"]


def test_every_prompt_keeps_its_own_best() -> None:
    easy = [edit(f"easy-{i}", 0.8 + i / 100, 0.3, "S* face") for i in range(8)]
    hard = [edit(f"hard-{i}", 0.1 + i / 100, 0.1, "S* as a nurse") for i in range(8)]
    kept = [v.row["file_name"] for v in judge([*easy, *hard]) if v.kept]
    assert kept == ["easy-6", "easy-7", "hard-6", "hard-7"]


@pytest.mark.parametrize(
    ("count", "share", "kept"), [(1, 0.25, 1), (3, 0.25, 1), (7, 0.25, 1), (8, 0.25, 2), (5, 1, 5)]
)
def test_a_quarter_rounded_down_but_at_least_one(count: int, share: float, kept: int) -> None:
    edits = [edit(str(i), i / 10, i / 10) for i in range(count)]
    assert sum(v.kept for v in judge(edits, share)) == kept


def test_edits_without_a_face_are_never_kept_but_counted() -> None:
    edits = [edit("a", None, 0.9), edit("b", 0.1, 0.1), edit("c", None, 0.8), edit("d", None, 0.9)]
    assert [v.why for v in judge(edits, 1.0)] == ["no face", "", "no face", "no face"]
    assert judge([edit("a", None, 0.9)])[0].kept is False


def test_ties_are_broken_alike_in_any_order() -> None:
    edits = [edit(n, 0.5, 0.5) for n in "dbca"]
    assert {v.row["file_name"] for v in judge(edits) if v.kept} == {"a"}
    assert {v.row["file_name"] for v in judge(edits[::-1]) if v.kept} == {"a"}
    crossed = [edit("x", 0.4, 0.6), edit("y", 0.6, 0.4)]
    assert [v.kept for v in judge(crossed, 0.5)] == [False, True]  # likeness decides


def test_a_folder(tmp_path: Path, capsys: Any) -> None:
    faces = [{"file_name": f"face-{p}.png", "identity": p, "reference": True, "landmarks": []} for p in range(2)]
    edits = [edit(f"{i}.png", i / 10, 0.2, person=0) for i in range(1, 5)] + [edit("lost.png", None, 0.2, person=1)]
    write(tmp_path, [*faces, *edits])
    assert run("data", "clean", tmp_path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["candidates"], told["kept"], told["people"]) == (5, 1, 1)
    assert told["rejected"] == {"no face": 1, "rank": 3}
    assert told["prompts"] == {"S* as a chef": 1}
    kept = read(tmp_path / "metadata.jsonl")
    assert [(r["file_name"], r["reference"]) for r in kept] == [("face-0.png", True), ("4.png", False)]
    rejected = read(tmp_path / "rejected.jsonl")
    assert {r["file_name"]: (r["why"], r["place"], r["of"]) for r in rejected} == {
        "1.png": ("rank", 4, 5), "2.png": ("rank", 3, 5), "3.png": ("rank", 2, 5), "lost.png": ("no face", 5, 5),
    }  # fmt: skip
    assert rejected[0]["identity_score"] == 0.1
    first = (tmp_path / "metadata.jsonl").read_bytes()
    (tmp_path / "rejected.jsonl").unlink()  # as if killed in between
    clean(tmp_path)
    assert (tmp_path / "metadata.jsonl").read_bytes() == first
    assert len(read(tmp_path / "rejected.jsonl")) == 4
    with pytest.raises(OutputConflict, match="something else"):
        clean(tmp_path, 0.5)
    assert run("data", "clean", tmp_path, "--keep", "0.5", "--force") == 0
    assert "2 of 5 edits of 1 people are kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"identity": 0}, "line 2: file_name and identity"),
        ([], "line 2: file_name and identity"),
        ({**edit("a", 0.1, 0.1), "prompt": None}, "needs its prompt"),
        ({**edit("a", 0.1, 0.1), "text_score": None}, "text_score is None; a number"),
        ({**edit("a", 0.1, 0.1), "identity_score": "0.1"}, "identity_score is '0.1'"),
        ({**edit("a", 0.1, 0.1), "text_score": float("nan")}, "text_score is nan"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, row: Any, message: str) -> None:
    write(tmp_path, [edit("ok", 0.1, 0.1), row])
    with pytest.raises(CorruptData, match=message):
        clean(tmp_path)
    assert not (tmp_path / "metadata.jsonl").exists()


def test_folders_that_cannot_be_cleaned(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no candidates\.jsonl"):
        clean(tmp_path)
    write(tmp_path, [{"file_name": "a.png", "identity": 0, "reference": True}])
    with pytest.raises(ConfigError, match="holds no edits"):
        clean(tmp_path)
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match="share to keep"):
            judge([edit("a", 0.1, 0.1)], share)
    (tmp_path / "candidates.jsonl").write_text("{\n")
    with pytest.raises(CorruptData, match="line 1"):
        clean(tmp_path)

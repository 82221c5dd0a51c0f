"""Cleaning the self-augmented edits of DreamIdentity (arXiv 2307.00300): per prompt, the best quarter is kept.

A folder holds the candidates' pictures and candidates.jsonl, a line for each: `file_name`, `identity` (the person), and
either `reference: true` for an identity face, or, for an edit, `prompt`, `identity_score` (similarity to the identity
face; null where no face was found) and `text_score` (similarity to the prompt). Cleaning writes metadata.jsonl, by
which trainings read the folder, and rejected.jsonl, which says of every other edit why it is not there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from limner.data.self_augment import EDITS
from limner.data.shards import Samples, ShardIndex, build_shards, lines, read_manifest
from limner.errors import ConfigError, CorruptData, OutputConflict
from limner.types import write_atomic

CANDIDATES, KEPT, REJECTED = "candidates.jsonl", "metadata.jsonl", "rejected.jsonl"


@dataclass(frozen=True)
class Verdict:
    """What became of one edit.

    Attributes:
        row: the candidate as it was read.
        kept: whether it is in the set.
        place: among the edits of its prompt, 1 is the best.
        of: how many those are.
        why: `no face`, `rank`, or empty where it is kept.
    """

    row: dict[str, Any]
    kept: bool
    place: int
    of: int
    why: str = ""


def judge(edits: Sequence[dict[str, Any]], share: float = 0.25) -> list[Verdict]:
    """The verdict on every edit, in the order given.

    The edits of one prompt are ranked by either score; the sum of both ranks decides, then the identity score, then the
    file's name. The best `share` of them, rounded down but at least one, is kept; an edit without a face is last and
    never kept.

    Args:
        edits: candidates with prompt, scores and file_name.
        share: of each prompt's edits, in (0, 1].

    Raises:
        ConfigError: share out of range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"The share to keep is {share!r}; allowed: more than 0, up to 1.")
    verdicts: dict[int, Verdict] = {}
    prompts: dict[str, list[int]] = {}
    for i, edit in enumerate(edits):
        prompts.setdefault(edit["prompt"], []).append(i)
    for members in prompts.values():
        faces = [i for i in members if edits[i]["identity_score"] is not None]
        by_identity = _ranks([edits[i]["identity_score"] for i in faces])
        by_text = _ranks([edits[i]["text_score"] for i in faces])
        total = {i: a + b for i, a, b in zip(faces, by_identity, by_text, strict=True)}
        order = sorted(faces, key=lambda i: (total[i], -edits[i]["identity_score"], edits[i]["file_name"]))
        order += sorted((i for i in members if i not in total), key=lambda i: edits[i]["file_name"])
        keep = max(1, math.floor(share * len(members)))
        for place, i in enumerate(order, 1):
            why = "no face" if i not in total else "rank" if place > keep else ""
            verdicts[i] = Verdict(edits[i], not why, place, len(members), why)
    return [verdicts[i] for i in range(len(edits))]


def clean(folder: str | Path, share: float = 0.25, force: bool = False) -> dict[str, Any]:
    """Cleans a folder of candidates; the same candidates always make the same files.

    Identity faces stay where an edit of their person stays.

    Args:
        force: replace a metadata.jsonl of other content.

    Returns:
        Counts: candidates, kept, rejected (by reason), people; and kept by prompt.

    Raises:
        ConfigError: no candidates.jsonl, or nothing in it; share out of range.
        CorruptData: a damaged line; names it.
        OutputConflict: metadata.jsonl is there and holds something else.
    """
    folder = Path(folder)
    rows = _read(folder)
    verdicts = judge([row for row in rows if not row.get("reference")], share)
    people = {v.row["identity"] for v in verdicts if v.kept}
    kept = [row for row in rows if row.get("reference") and row["identity"] in people]
    kept += [{**v.row, "reference": False} for v in verdicts if v.kept]
    rejected = [{**v.row, "why": v.why, "place": v.place, "of": v.of} for v in verdicts if not v.kept]
    text = lines(kept).decode()
    path = folder / KEPT
    if path.exists() and path.read_text(encoding="utf-8") != text and not force:
        raise OutputConflict(f"{path} is there and says something else.", "Replace it with --force.")
    write_atomic(folder / REJECTED, lines(rejected))
    write_atomic(path, text.encode())
    return _counts(verdicts, people)


def clean_shards(folder: str | Path, out: str | Path, share: float = 0.25) -> dict[str, Any]:
    """Cleans a build of edits (`limner data edits`) into shards of kind `self-augmented`, and rejected.jsonl.

    What is kept keeps its bytes. The same build always makes the same shards; interrupted, the same call goes on.

    Returns:
        Counts, as `clean`.

    Raises:
        ConfigError: share out of range.
        CorruptData: `folder` is no finished build of edits.
        OutputConflict, StorageError: see `limner.data.shards.build_shards`.
    """
    candidates = read_manifest(folder, EDITS)
    rows = [{**row, "file_name": f"{row['key']}.png"} for row in ShardIndex(folder).rows()]
    verdicts = judge([row for row in rows if not row["reference"]], share)
    chosen = {v.row["key"] for v in verdicts if v.kept}
    people = {v.row["identity"] for v in verdicts if v.kept}
    units: dict[str, list[str]] = {}
    for row in rows:
        if row["key"] in chosen or (row["reference"] and row["identity"] in people):
            units.setdefault(row["identity"], []).append(row["key"])
    config = {"share": share, "edits": {k: candidates[k] for k in ("config", "shards")}}
    build_shards(out, "self-augmented", config, list(units.values()), partial(_Picker, folder), per_shard=64)
    rejected = [{**v.row, "why": v.why, "place": v.place, "of": v.of} for v in verdicts if not v.kept]
    write_atomic(Path(out) / REJECTED, lines(rejected))
    return _counts(verdicts, people)


class _Picker:
    """Keys → their samples as they are."""

    def __init__(self, folder: str | Path) -> None:
        self._index = ShardIndex(folder)

    def __call__(self, keys: list[str]) -> Samples:
        return [(key, self._index.files(key)) for key in keys]


def _counts(verdicts: Sequence[Verdict], people: set[Any]) -> dict[str, Any]:
    rejected = [v.why for v in verdicts if not v.kept]
    prompts = {v.row["prompt"]: 0 for v in verdicts}
    for v in verdicts:
        prompts[v.row["prompt"]] += v.kept
    return {
        "candidates": len(verdicts),
        "kept": len(verdicts) - len(rejected),
        "rejected": {why: rejected.count(why) for why in ("no face", "rank")},
        "people": len(people),
        "prompts": prompts,
    }


def _ranks(scores: Sequence[float]) -> list[float]:
    """1 for the highest; equal scores share the mean of their ranks."""
    above = [sum(other > s for other in scores) for s in scores]
    same = [sum(other == s for other in scores) for s in scores]
    return [a + (n + 1) / 2 for a, n in zip(above, same, strict=True)]


def _read(folder: Path) -> list[dict[str, Any]]:
    path = folder / CANDIDATES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as e:
        raise ConfigError(f"{folder} has no {CANDIDATES}.", "See docs/dreamidentity.md for what it holds.") from e
    except (OSError, UnicodeDecodeError) as e:
        raise CorruptData(f"{path} cannot be read ({e}).") from e
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            fault = _fault(row)
        except json.JSONDecodeError as e:
            fault = str(e)
        if fault:
            raise CorruptData(f"{path}, line {number}: {fault}.", "Write it again, or remove the line.")
        rows.append(row)
    if all(row.get("reference") for row in rows):
        raise ConfigError(f"{path} holds no edits.", "See docs/dreamidentity.md for what it holds.")
    return rows


def _fault(row: Any) -> str:
    """What is wrong with a candidate, or nothing."""
    if not isinstance(row, dict) or not {"file_name", "identity"} <= row.keys():
        return "file_name and identity are expected"
    if row.get("reference"):
        return ""
    if not isinstance(row.get("prompt"), str):
        return "an edit needs its prompt"
    for name in ("identity_score", "text_score"):
        value = row.get(name, "missing")
        if value is None and name == "identity_score":
            continue
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            return f"{name} is {value!r}; a number is expected"
    return ""

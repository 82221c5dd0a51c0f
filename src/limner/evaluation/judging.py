"""The second half of a benchmark: what the judges say of every picture, kept until picture or judge changes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from limner.errors import CorruptData
from limner.evaluation.painting import Job, cells_of
from limner.evaluation.people import Person, find_face
from limner.evaluation.scorers import Judges
from limner.evaluation.store import Store, make_folder, picture_sha256, read_picture
from limner.types import Face, write_atomic

CHUNK = 64
FORMAT = 1


@dataclass(frozen=True)
class Shot:
    """One picture that is judged.

    Attributes:
        person: key.
        prompt: place in the recipe.
        path: of the picture; None for one that failed.
    """

    person: str
    prompt: int
    path: Path | None


@dataclass(frozen=True)
class Verdicts:
    """What the judges say of N pictures of one method.

    Attributes:
        persons: (N,) whose picture it is to be.
        prompts: (N,) int.
        painted, found: (N,) bool: there is a picture; there is a face in it.
        faces: recogniser → (N, D), unit rows, zeros without a face.
        clip: (N, D), unit rows, zeros without a picture.
        text: (N,) cosine of picture and prompt by the CLIP; 0 without a picture.
        words: of every picture, attribute → word; empty without a reader or picture.
        numbers: (N, 8), NaN without a reader or picture.
        features: (N, F), zeros without a reader or picture.
    """

    persons: np.ndarray
    prompts: np.ndarray
    painted: np.ndarray
    found: np.ndarray
    faces: dict[str, np.ndarray]
    clip: np.ndarray
    text: np.ndarray
    words: list[dict[str, str]] = field(default_factory=list)
    numbers: np.ndarray = field(default_factory=lambda: np.zeros((0, 8)))
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 1)))

    def rows(self, chosen: np.ndarray) -> Verdicts:
        """Some of the pictures."""
        arrays = ("persons", "prompts", "painted", "found", "clip", "text", "numbers", "features")
        return dataclasses.replace(
            self,
            **{k: getattr(self, k)[chosen] for k in arrays},
            faces={k: v[chosen] for k, v in self.faces.items()},
            words=[self.words[i] for i in np.arange(len(self.words))[chosen]],
        )

    def __len__(self) -> int:
        return len(self.persons)


def shots_of(store: Store, job: Job, people: Sequence[Person]) -> list[Shot]:
    """The pictures that a job has painted so far; what it failed to paint counts, what is still to be painted not."""
    shots = []
    for _, cell in cells_of(job, people):
        facts = store.facts(cell)
        if facts is None:
            continue
        for k in range(min(int(facts["wanted"]), job.pictures)):
            path = store.picture(cell, k) if k < int(facts["pictures"]) else None
            shots.append(Shot(cell.person, cell.prompt, path))
    return shots


def judge(
    judges: Judges, shots: Sequence[Shot], prompts: Sequence[str], keep: Path, advance: Callable[[int], None]
) -> Verdicts:
    """What the judges say of the pictures, in an order that depends on their content alone.

    Args:
        prompts: of the recipe.
        keep: .npz in which the verdicts are kept; read again if the same judges judge the same pictures.

    Raises:
        UnreadableImage: a damaged picture, or one that is gone.
        StorageError: no space.
    """
    digests = [picture_sha256(s.path) if s.path else "" for s in shots]
    order = sorted(range(len(shots)), key=lambda i: (shots[i].person, shots[i].prompt, digests[i]))
    shots, digests = [shots[i] for i in order], [digests[i] for i in order]
    key = _digest(judges, shots, digests, prompts)
    kept = _read(keep, key)
    if kept is None:
        parts = []
        for at in range(0, len(shots), CHUNK):
            parts.append(_judge(judges, shots[at : at + CHUNK], prompts))
            advance(len(parts[-1]))
        kept = _joined(parts)
        make_folder(keep.parent)
        write_atomic(keep, _packed(kept, key))
    else:
        advance(len(shots))
    return kept


def gallery(judges: Judges, faces: Sequence[Sequence[Face]]) -> dict[str, np.ndarray]:
    """Recogniser → (G, D): of everybody the mean vector of their faces, of unit length; zeros without one."""
    found = {}
    for recogniser in judges.recognisers:
        rows = []
        vectors = recogniser.embed([face for own in faces for face in own])
        at = 0
        for own in faces:
            mine = vectors[at : at + len(own)]
            at += len(own)
            total = mine.sum(0) if len(mine) else np.zeros(vectors.shape[1], np.float32)
            rows.append(total / max(float(np.linalg.norm(total)), 1e-12))
        found[recogniser.about.name] = np.stack(rows)
    return found


def manifest_shots(folder: Path, prompts: Sequence[str], people: Sequence[Person], pictures: int) -> list[Shot]:
    """The pictures of another system: `manifest.jsonl` has one object a picture, with `file_name` (relative; null for a
    failure), `person` (key), `prompt` (the sentence, or its place in the recipe).

    What it leaves out counts as failed, so that every person and prompt has as many pictures as were asked for.

    Args:
        pictures: of each person for each prompt.

    Raises:
        CorruptData: no manifest, a line that does not fit, or more pictures than were asked for; names the line.
    """
    path = folder / "manifest.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise CorruptData(f"{path} cannot be read ({e}).", "See docs/evaluation.md for its form.") from e
    shots: dict[tuple[str, int], list[Shot]] = {(p.key, k): [] for p in people for k in range(len(prompts))}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt = row["prompt"] if isinstance(row["prompt"], int) else list(prompts).index(row["prompt"])
            picture = None if row["file_name"] is None else folder / row["file_name"]
            own = shots.get((row["person"], prompt))
            if own is None:
                raise ValueError(f"person {row['person']!r} or prompt {row['prompt']!r} is not in the benchmark")
            if picture is not None and not picture.is_file():
                raise ValueError(f"{picture} does not exist")
            if len(own) == pictures:
                raise ValueError(f"person {row['person']!r} has more than {pictures} pictures for that prompt")
        except (ValueError, KeyError, TypeError) as e:
            raise CorruptData(f"{path}, line {number}: {e}.", "See docs/evaluation.md for its form.") from e
        own.append(Shot(row["person"], prompt, picture))
    for (person, prompt), own in shots.items():
        own += [Shot(person, prompt, None)] * (pictures - len(own))
    return [shot for own in shots.values() for shot in own]


def _judge(judges: Judges, shots: Sequence[Shot], prompts: Sequence[str]) -> Verdicts:
    images = [read_picture(s.path) if s.path else None for s in shots]
    there = [i for i, image in enumerate(images) if image is not None]
    seen = [image for image in images if image is not None]
    faces: list[Face | None] = [find_face(judges.finder, image) if image is not None else None for image in images]
    having = [i for i, face in enumerate(faces) if face is not None]
    count = len(shots)

    def spread(rows: np.ndarray, places: list[int], empty: float = 0.0) -> np.ndarray:
        full = np.full((count, rows.shape[1]), empty, np.float32)
        full[places] = rows[: len(places)]
        return full

    vectors = {
        r.about.name: spread(r.embed([f for f in faces if f is not None]), having) if having else None
        for r in judges.recognisers
    }
    said = judges.clip.texts(list(prompts))
    clip = spread(judges.clip.pictures(seen), there) if there else np.zeros((count, said.shape[1]), np.float32)
    places = np.array([s.prompt for s in shots])
    words: list[dict[str, str]] = [{} for _ in shots]
    numbers, features = np.full((count, 8), np.nan, np.float32), np.zeros((count, 1), np.float32)
    if judges.reader is not None and there:
        read = judges.reader.read(seen)
        for i, row in zip(there, read.words, strict=True):
            words[i] = row
        numbers, features = spread(read.numbers, there, np.nan), spread(read.features, there)
    return Verdicts(
        persons=np.array([s.person for s in shots]),
        prompts=places,
        painted=np.isin(np.arange(count), there),
        found=np.isin(np.arange(count), having),
        faces={k: np.zeros((count, 1), np.float32) if v is None else v for k, v in vectors.items()},
        clip=clip,
        text=(clip * said[places]).sum(1),
        words=words,
        numbers=numbers,
        features=features,
    )


def _joined(parts: Sequence[Verdicts]) -> Verdicts:
    def stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Rows under each other; a part in which nothing was found may be narrower."""
        if arrays[0].ndim == 1:
            return np.concatenate(arrays)
        width = max(a.shape[1] for a in arrays)
        return np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays])

    arrays = ("persons", "prompts", "painted", "found", "clip", "text", "numbers", "features")
    return Verdicts(
        **{k: stack([getattr(p, k) for p in parts]) for k in arrays},
        faces={k: stack([p.faces[k] for p in parts]) for k in parts[0].faces},
        words=[w for p in parts for w in p.words],
    )


def _digest(judges: Judges, shots: Sequence[Shot], digests: Sequence[str], prompts: Sequence[str]) -> str:
    facts = {
        "format": FORMAT,
        "judges": [[a.kind, a.name, a.sha256] for a in judges.abouts],
        "detector": judges.detector,
        "prompts": list(prompts),
        "shots": [[s.person, s.prompt, d] for s, d in zip(shots, digests, strict=True)],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _packed(verdicts: Verdicts, key: str) -> bytes:
    data = io.BytesIO()
    names = ("persons", "prompts", "painted", "found", "clip", "text", "numbers", "features")
    arrays: dict[str, Any] = {k: getattr(verdicts, k) for k in names}
    arrays |= {f"face/{k}": v for k, v in verdicts.faces.items()}
    np.savez(data, key=np.array(key), words=np.array(json.dumps(verdicts.words)), **arrays)
    return data.getvalue()


def _read(path: Path, key: str) -> Verdicts | None:
    """The verdicts kept under this key; None for others, or none, or damaged ones."""
    import zipfile

    try:
        with np.load(path) as file:
            if str(file["key"]) != key:
                return None
            names = ("persons", "prompts", "painted", "found", "clip", "text", "numbers", "features")
            return Verdicts(
                **{k: file[k] for k in names},
                faces={k.removeprefix("face/"): file[k] for k in file.files if k.startswith("face/")},
                words=json.loads(str(file["words"])),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None

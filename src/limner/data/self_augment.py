"""Self-augmented data of DreamIdentity (arXiv 2307.00300, section 3.3): who is painted, as what, and how it is stored.

Names → identity faces → edits → the best quarter; `limner.pipelines.self_augment` paints. Every step is a build of
`limner.data.shards`; samples are a picture (png) and facts (json) in the form that trainings read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.config import Config
from limner.data.shards import ShardIndex, read_manifest
from limner.encoders.pseudo_words import NEUTRAL, PLACEHOLDER, split_prompt
from limner.errors import ConfigError, CorruptData
from limner.world.words import EDIT_PROMPTS, NAME_PROMPT

FACES, EDITS = "faces", "edits"
PER_SHARD = {FACES: 16, EDITS: 2}
"""People in a shard: what a kill can cost is less than that."""
SCORER = "scorer-"
"""How the folders of the benchmark's own scorers begin. What is chosen by them cannot be judged by them."""


@dataclass(frozen=True)
class Brush(Config):
    """How pictures are painted, and where.

    Attributes:
        steps, guidance, scheduler: of sampling, the last a name of `limner.pipelines.schedulers`; the paper's
            evaluation has 30, 7.5 and DDIM, and it says nothing of this set.
        size: side in pixels; 0 is the base's own.
        seed: of everything; another one makes another set.
        detector: a name of `limner.faces.detect.DETECTORS`, whose faces have landmarks.
        dtype: of the painting model, a name of `limner.pipelines.loading.DTYPES`.
        device: likewise; `auto` takes an accelerator where there is one.
        threads: CPU threads of one painter; part of the build, since the last bits of pictures depend on it.
        batch: pictures painted at once; likewise.
        pag: weight of perturbed-attention guidance (`limner.pipelines.perturbed`); 0 is none.
    """

    steps: int = 30
    guidance: float = 7.5
    size: int = 0
    seed: int = 0
    detector: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 1
    scheduler: str = "ddim"
    batch: int = 4
    pag: float = 0.0

    def validate(self) -> None:
        self.check(1 <= self.steps <= 1000, "steps", "1 to 1000")
        self.check(0 <= self.guidance <= 100, "guidance", "0 to 100")
        self.check(0 <= self.pag <= 10, "pag", "0 to 10")
        self.check(self.size >= 0 and self.size % 8 == 0, "size", "multiples of 8, or 0")
        self.check(1 <= self.threads <= 256, "threads", "1 to 256")
        self.check(1 <= self.batch <= 256, "batch", "1 to 256")


@dataclass(frozen=True)
class FacesPlan(Config):
    """The identity faces.

    Attributes:
        prompt: with `{name}`.
        number: pictures painted of each person.
        min_side: shortest side in pixels of a face that is kept; the paper's is 128 at 512.
    """

    prompt: str = NAME_PROMPT
    number: int = 4
    min_side: int = 128

    def validate(self) -> None:
        self.check("{name}" in self.prompt, "prompt", "a sentence with {name}")
        self.check(1 <= self.number <= 64, "number", "1 to 64")
        self.check(self.min_side >= 1, "min_side", "1 or more")


@dataclass(frozen=True)
class EditsPlan(Config):
    """The edits.

    Attributes:
        prompts: each calls the person S*.
        number: pictures painted of each person for each prompt.
    """

    prompts: tuple[str, ...] = EDIT_PROMPTS
    number: int = 4

    def validate(self) -> None:
        self.check(bool(self.prompts), "prompts", "one or more")
        self.check(len(set(self.prompts)) == len(self.prompts), "prompts", "different ones")
        self.check(1 <= self.number <= 64, "number", "1 to 64")
        for prompt in self.prompts:
            named = [p for p in split_prompt(prompt, [PLACEHOLDER]) if not isinstance(p, str)]
            self.check(bool(named), "prompts", f"sentences with {PLACEHOLDER}")


def read_people(path: str | Path, limit: int | None = None) -> list[str]:
    """Names of people from what `limner data names` wrote, the first `limit` of them.

    Raises:
        ConfigError: unreadable, or fewer than two names.
        CorruptData: a line that is not as that command writes it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"Cannot read names from {path}: {e}.", "Make them: limner data names.") from e
    names = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            names.append(str(json.loads(line)["name"]))
        except (ValueError, KeyError, TypeError) as e:
            raise CorruptData(f"{path}, line {number}: {e!r}.", "Make it with limner data names.") from e
    if len(names) < 2 or (limit is not None and limit < 1):
        raise ConfigError(f"{path} holds {len(names)} names, and limit is {limit}; at least 2 and 1 are expected.")
    return names[:limit]


def read_faces(folder: str | Path) -> list[dict[str, Any]]:
    """The people of a finished build of faces who have a face: `index`, `name` and `faces` (png, landmarks).

    Raises:
        CorruptData: no such build, or unfinished.
        ConfigError: nobody has a face.
    """
    read_manifest(folder, FACES)
    index = ShardIndex(folder)
    people: dict[str, dict[str, Any]] = {}
    for row in index.rows():
        if "rejected" in row:
            continue
        person = people.setdefault(row["identity"], {"index": row["person"], "name": row["identity"], "faces": []})
        person["faces"].append({"png": index.files(row["key"])["png"], "landmarks": row["landmarks"]})
    if not people:
        raise ConfigError(f"No face in {folder} was kept; {folder}/rejected.jsonl says why.", "Lower --min-side?")
    return list(people.values())


def in_words(prompt: str, person: str = NEUTRAL) -> str:
    """An edit prompt with a person's name (or the word for nobody in particular) for S*."""
    return "".join(p if isinstance(p, str) else person for p in split_prompt(prompt, [PLACEHOLDER])).strip()


def demand_other_scorer(folder: str | Path) -> None:
    """ConfigError for a scorer of the benchmark: what it chose it could not judge."""
    parts = Path(folder).resolve().parts
    if any(part.startswith(SCORER) for part in parts):
        raise ConfigError(
            f"{folder} scores pictures in the benchmark; what is selected by it cannot be judged by it.",
            "Select with what conditions, for instance runs/mini-recogniser/weights and runs/mini-clip/weights.",
        )


def digest_of(values: Sequence[str]) -> str:
    """sha256 of a list of strings."""
    return hashlib.sha256("\n".join(values).encode()).hexdigest()

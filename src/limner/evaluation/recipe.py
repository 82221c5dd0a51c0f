"""What a benchmark is: people, prompts, methods and judges, as a recipe that says everything."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from limner.config import Config
from limner.errors import ConfigError
from limner.faces import EMBEDDERS
from limner.pipelines.schedulers import SCHEDULERS
from limner.world.slices import SLICES
from limner.world.splits import SPLITS

REAL, STRANGER, COPY = "real", "stranger", "copy"
BOUNDS = (REAL, STRANGER, COPY)
"""Built in: another picture of the same person (ceiling), of somebody else (floor), and the reference itself."""
SUBJECT = "S*"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class PeopleSpec(Config):
    """Who is painted.

    Attributes:
        kind: `world` (sitters) or `folder` (photos; see `limner.data.pictures.FolderPictures`, sub-folders are people).
        path: of the folder.
        split: of the world.
        count: people who are painted, the first ones.
        gallery: people among whom the right one is to be found; those painted, and further ones.
        size: side of the reference photos and of the real pictures, in pixels (world).
        references: photos of each person that a method is given.
        known: further real photos of each person by which the scorers know them, so that copying the reference earns
            nothing beyond likeness; 0 lets them know people by the reference photos.
        align: `truth` places reference faces by the world's landmarks, `detector` by the detector that also scores.
        seed: of the reference photos and of all noise.
    """

    kind: str = "world"
    path: str = ""
    split: str = "test"
    count: int = 50
    gallery: int = 100
    size: int = 128
    references: int = 1
    known: int = 0
    align: str = "truth"
    seed: int = 0

    def validate(self) -> None:
        self.check(self.kind in ("world", "folder"), "kind", "world, folder")
        self.check(bool(self.path) == (self.kind == "folder"), "path", "a path for folder, else nothing")
        self.check(self.split in SPLITS, "split", ", ".join(SPLITS))
        self.check(self.count >= 2, "count", "2 or more (somebody must be the stranger)")
        self.check(self.gallery >= self.count, "gallery", f"{self.count} (count) or more")
        if self.kind == "world":
            self.check(self.gallery <= SPLITS[self.split].count, "gallery", f"up to {SPLITS[self.split].count}")
        self.check(64 <= self.size <= 512, "size", "64 to 512 pixels")
        self.check(self.references >= 1, "references", "1 or more")
        self.check(self.known >= 0, "known", "0 or more")
        self.check(self.align in ("truth", "detector"), "align", "truth, detector")
        self.check(self.align == "detector" or self.kind == "world", "align", "detector, for photos")
        self.check(self.seed >= 0, "seed", "0 or more")


@dataclass(frozen=True)
class MethodSpec(Config):
    """A way to put a person into a picture.

    Attributes:
        name: in tables and folders.
        model: a name that `limner models` lists, or a folder.
        method: a method that tunes, to paint by over the model's base; empty for the model's own.
        tuning: YAML file with its settings.
        teacher: base over which such a method learns, where the model's own was distilled from it.
        subject: what prompts call the person.
        identity: false paints the prompt alone.
        strength, guidance, pag, face_guidance, face_detail, steps, scheduler: dials; None is the model's own.
        people: only so many, the first ones; 0 for all.
        images: folder with pictures made elsewhere and a manifest.jsonl, instead of a model.
    """

    name: str
    model: str = ""
    method: str = ""
    tuning: str = ""
    teacher: str = ""
    subject: str = SUBJECT
    identity: bool = True
    strength: float = 1.0
    guidance: float | None = None
    pag: float | None = None
    face_guidance: float | None = None
    face_detail: float | None = None
    steps: int | None = None
    scheduler: str | None = None
    people: int = 0
    images: str = ""

    def validate(self) -> None:
        self.check(bool(_NAME.fullmatch(self.name)), "name", "letters, digits and _ . + -")
        self.check(self.name not in BOUNDS, "name", f"anything but {', '.join(BOUNDS)}, which are built in")
        self.check(bool(self.model) != bool(self.images), "model", "a model, or else images")
        self.check(bool(self.subject.strip()), "subject", "words, as in S* or a person")
        self.check(0 <= self.strength <= 1, "strength", "0 to 1")
        self.check(self.guidance is None or self.guidance >= 0, "guidance", "0 or more")
        self.check(self.pag is None or self.pag >= 0, "pag", "0 or more")
        self.check(self.face_guidance is None or self.face_guidance >= 0, "face_guidance", "0 or more")
        self.check(self.face_detail is None or 0 <= self.face_detail <= 1, "face_detail", "0 to 1")
        self.check(self.steps is None or self.steps >= 1, "steps", "1 or more")
        known = self.scheduler is None or self.scheduler in SCHEDULERS
        self.check(known, "scheduler", ", ".join(SCHEDULERS))
        self.check(self.people == 0 or self.people >= 2, "people", "0 (all), or 2 or more")


@dataclass(frozen=True)
class ScorerSpec(Config):
    """Who judges. None of them may have conditioned or selected a picture.

    Attributes:
        recognisers: folders written by the recogniser task with `network`, or names of `limner.faces.EMBEDDERS`; the
            first is the main one.
        optional: further ones, left out (and named in the report) where their weights are not there.
        clip: folder written by the clip task, or a CLIP of the Hugging Face hub (`openai/clip-vit-large-patch14`).
        attributes: folder written by the attributes task; empty where no truth exists.
        detector: finds faces in the pictures: a name of `limner.faces.DETECTORS`.
        features: whose features FID, KID and diversity compare: `attributes` or `clip`.
    """

    recognisers: tuple[str, ...]
    clip: str
    optional: tuple[str, ...] = ()
    attributes: str = ""
    detector: str = "auto"
    features: str = "clip"

    def validate(self) -> None:
        self.check(bool(self.recognisers), "recognisers", f"a folder, or one of {', '.join(EMBEDDERS)}")
        self.check(self.features in ("attributes", "clip"), "features", "attributes, clip")
        self.check(self.features == "clip" or bool(self.attributes), "features", "clip, without attributes")


@dataclass(frozen=True)
class CurveSpec(Config):
    """Identity against text over dials.

    Attributes:
        methods: names; empty for all that have a model and an identity.
        strengths, guidances: every pair is painted.
        people, prompts, pictures: the first so many, and pictures of each.
    """

    methods: tuple[str, ...] = ()
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    guidances: tuple[float, ...] = (1.5, 3.0, 6.0)
    people: int = 10
    prompts: int = 4
    pictures: int = 2

    def validate(self) -> None:
        self.check(bool(self.strengths), "strengths", "one or more numbers")
        self.check(bool(self.guidances), "guidances", "one or more numbers")
        self.check(all(0 <= s <= 1 for s in self.strengths), "strengths", "numbers from 0 to 1")
        self.check(self.people >= 2, "people", "2 or more")
        self.check(self.prompts >= 1 and self.pictures >= 1, "prompts", "1 or more (pictures too)")


@dataclass(frozen=True)
class SliceSpec(Config):
    """Reference photos that are hard in one way each (`limner.world.slices`).

    Attributes:
        names: of the slices; empty for all.
        methods: names; empty for all that have a model and an identity.
        people, prompts, pictures: as in `CurveSpec`.
    """

    names: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    people: int = 10
    prompts: int = 2
    pictures: int = 1

    def validate(self) -> None:
        self.check(all(n in SLICES for n in self.names), "names", ", ".join(SLICES))
        self.check(self.people >= 2, "people", "2 or more")
        self.check(self.prompts >= 1 and self.pictures >= 1, "prompts", "1 or more (pictures too)")


@dataclass(frozen=True)
class Benchmark(Config):
    """A whole benchmark.

    Attributes:
        name: the default output folder is runs/evaluate/NAME.
        people, scorers, curve, slices: see there.
        prompts: sentences that call the person S*.
        pictures: of every (method, person, prompt).
        batch: pictures painted at once; those of one person share it, whatever the prompt.
        methods: in the order of the tables.
        table1: methods in the order of DreamIdentity's Table 1 (arXiv 2307.00300).
        faceclip: a method, then those it is compared with (arXiv 2504.14202).
        draws: of the bootstrap.
        seed: of the bootstrap.
    """

    name: str
    people: PeopleSpec
    prompts: tuple[str, ...]
    scorers: ScorerSpec
    methods: tuple[MethodSpec, ...] = ()
    pictures: int = 4
    batch: int = 4
    curve: CurveSpec | None = None
    slices: SliceSpec | None = None
    table1: tuple[str, ...] = ()
    faceclip: tuple[str, ...] = ()
    draws: int = 1000
    seed: int = 0

    def validate(self) -> None:
        self.check(bool(_NAME.fullmatch(self.name)), "name", "letters, digits and _ . + -")
        self.check(bool(self.prompts), "prompts", "one or more sentences")
        self.check(len(set(self.prompts)) == len(self.prompts), "prompts", "sentences that differ")
        self.check(all(SUBJECT in p for p in self.prompts), "prompts", f"sentences that call the person {SUBJECT}")
        self.check(self.pictures >= 1, "pictures", "1 or more")
        self.check(self.batch >= 1, "batch", "1 or more")
        names = [m.name for m in self.methods]
        self.check(len(set(names)) == len(names), "methods", "names that differ")
        self.check(self.draws >= 10, "draws", "10 or more")
        if self.slices is not None:
            self.check(self.people.kind == "world", "slices", "nothing, for photos: slices are rendered")

    def method(self, name: str) -> MethodSpec:
        """The method of that name; ConfigError lists the known ones."""
        for spec in self.methods:
            if spec.name == name:
                return spec
        raise ConfigError(f"Unknown method {name!r}; the recipe has: {', '.join(m.name for m in self.methods)}.")


def read_benchmark(path: str | Path) -> Benchmark:
    """A benchmark's recipe.

    Raises:
        ConfigError: not readable, an unknown or missing field, a value out of range.
    """
    return Benchmark.load(path)

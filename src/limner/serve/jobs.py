"""What is asked of the engine, what it answers, and how much of everything it takes."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from limner.config import Config
from limner.errors import LimnerError
from limner.pipelines.paint import Dials
from limner.types import Identity


@dataclass(frozen=True)
class Limits(Config):
    """How much the engine takes.

    Attributes:
        queue: jobs of all callers that may wait.
        per_owner: jobs of one caller (see `account_of`) that may exist, finished ones included; as many identities.
        enrolments: enrolments that may be under way at once.
        batch: pictures painted at once.
        number: pictures of one job.
        steps: denoising steps.
        pixels: of one painted picture.
        photo_pixels: of one photo.
        photos: of one person.
        models: held in memory at the same time.
        prompt: characters of a prompt, and of a negative prompt.
        keep_results: seconds that a finished job is kept.
        keep_identity: seconds that an identity is kept where the caller does not say.
        keep_identity_at_most: where the caller does.
        kept_bytes: of identities and pictures together; those still to be painted count with an estimate.
        attempts: times that a job is begun before the worker's deaths are put down to it.
    """

    queue: int = 64
    per_owner: int = 64
    enrolments: int = 16
    batch: int = 4
    number: int = 16
    steps: int = 100
    pixels: int = 2048 * 2048
    photo_pixels: int = 52_000_000
    photos: int = 8
    models: int = 2
    prompt: int = 2000
    keep_results: float = 600
    keep_identity: float = 3600
    keep_identity_at_most: float = 24 * 3600
    kept_bytes: int = 1 << 30
    attempts: int = 3

    def validate(self) -> None:
        for name in self.__dataclass_fields__:
            self.check(getattr(self, name) > 0, name, "more than 0")


def account_of(owner: str) -> str:
    """Whose limits an owner shares: what stands before the first `/`, or the owner alone."""
    return owner.partition("/")[0]


@dataclass(frozen=True)
class PaintRequest:
    """One order: pictures of one sentence. Dials that are None are the model's own.

    Attributes:
        prompt, negative_prompt: what to paint and what not.
        identity: id of an identity of the same caller; None paints nobody in particular.
        number: pictures.
        seed: of the first picture, the next count up; None draws one.
        strength, guidance_scale, guidance_rescale, pag_scale, face_guidance, face_detail, steps, width, height,
            scheduler: see `limner.pipelines.paint.Dials`.
        watermark: put the invisible mark into the pixels.
        embed_identity: write the person's numbers into the PNGs, so that they can be painted again from the file alone;
            whoever has such a file can paint that person.
        likeness: score each picture for its likeness by the model's own face encoder; None: where that can be done.
        text_score: score each picture for its fit to the prompt by a CLIP; None: where that can be done.
        preview: make small pictures while painting.
        model, method: of those that are offered; None: the one that the person was enrolled for, or else the first.
        gaze: where the eyes go, as `limner.pipelines.gaze.parse_gaze` reads it; empty leaves it to the model.
    """

    prompt: str
    identity: str | None = None
    negative_prompt: str = ""
    number: int = 1
    seed: int | None = None
    strength: float | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    pag_scale: float | None = None
    face_guidance: float | None = None
    face_detail: float | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    watermark: bool = False
    embed_identity: bool = False
    likeness: bool | None = None
    text_score: bool | None = None
    preview: bool = False
    model: str | None = None
    method: str | None = None
    gaze: str = ""


class Status(enum.StrEnum):
    """Where a job is in its life; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing will change any more."""
        return self in (Status.DONE, Status.FAILED, Status.CANCELLED)


@dataclass(frozen=True)
class Person:
    """An enrolled person, as the caller is told of them.

    Attributes:
        id: unguessable; only its owner can use it.
        digest: `Identity.digest()`, as provenance records it.
        expires: time (seconds since 1970) after which it is forgotten.
        faces: how many photos were used.
        size: bytes that are kept.
        model: that the person was enrolled for; no other can read what was kept.
        remarks: sentences for the user: which face was taken, what is wrong with a photo, who was left out.
    """

    id: str
    digest: str
    expires: float
    faces: int
    size: int
    model: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """One finished picture.

    Attributes:
        index: its place in the job.
        seed: of its noise.
        png: the file, provenance inside; empty if it was refused.
        refused: why the safety checker refused it; empty if it did not.
        scores: `likeness` and `text`, cosines; -1 is the likeness of a picture in which no face is seen.
        unscored: which of them is missing, although it was not declined → why.
        settings: every dial, as provenance records it.
    """

    index: int
    seed: int
    png: bytes
    refused: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    unscored: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """A job at one moment.

    Attributes:
        id, status: of the job.
        position: jobs that were accepted earlier and still wait; 0 once it runs.
        step, steps: of the batch that is being painted.
        painted, number: pictures that are finished, and in all.
        fraction: of the whole job, 0 to 1.
        preview: JPEG of the picture being painted, if asked for.
        error: what went wrong, as `LimnerError.as_dict`; None if nothing did.
        remarks: sentences for the user.
        version: counts changes; equal versions are equal progress.
    """

    id: str
    status: Status
    position: int
    step: int
    steps: int
    painted: int
    number: int
    fraction: float
    preview: bytes | None
    error: dict[str, str] | None
    remarks: tuple[str, ...]
    version: int


@dataclass
class Job:
    """The engine's own record of a job; nobody else writes to it.

    Attributes:
        model: name of an offer.
        picture_bytes: that one of its pictures will have, about.
        rows: how many of its pictures are being painted now.
        alone: whether it is painted without other jobs, picture by picture.
        fetched: indexes of the pictures that were handed out.
    """

    id: str
    owner: str
    request: PaintRequest
    dials: Dials
    identity: Identity | None
    digest: str
    seeds: list[int]
    created: float
    model: str = ""
    picture_bytes: int = 0
    remarks: tuple[str, ...] = ()
    key: str | None = None
    status: Status = Status.QUEUED
    todo: list[int] = field(default_factory=list)
    pictures: dict[int, Picture] = field(default_factory=dict)
    step: int = 0
    rows: int = 0
    preview: bytes | None = None
    error: LimnerError | None = None
    attempts: int = 0
    alone: bool = False
    finished: float = 0.0
    fetched: set[int] = field(default_factory=set)
    version: int = 0

    @property
    def shape(self) -> tuple[Any, ...]:
        """What must be equal for pictures to be painted in one batch."""
        d = self.dials
        look = (
            d.width,
            d.height,
            d.steps,
            d.guidance_scale,
            d.guidance_rescale,
            d.pag_scale,
            d.scheduler,
            d.face_guidance,
            d.face_detail,
        )
        return (self.model, bool(d.gaze), d.watermark, *look)

    @property
    def kept_bytes(self) -> int:
        """Bytes of its finished pictures, and about those that the others will have."""
        return sum(len(p.png) for p in self.pictures.values()) + len(self.todo) * self.picture_bytes

    @property
    def unfetched(self) -> bool:
        """Whether a picture that was made, and not refused, was not handed out yet."""
        return any(i not in self.fetched and not p.refused for i, p in self.pictures.items())

    def progress(self, position: int) -> Progress:
        """What the caller is told."""
        steps = max(self.dials.steps, 1)
        fraction = (len(self.pictures) + min(self.step / steps, 1) * self.rows) / len(self.seeds)
        return Progress(
            id=self.id,
            status=self.status,
            position=position,
            step=self.step,
            steps=steps,
            painted=len(self.pictures),
            number=len(self.seeds),
            fraction=1.0 if self.status is Status.DONE else min(fraction, 1.0),
            preview=self.preview,
            error=self.error.as_dict() if self.error else None,
            remarks=self.remarks,
            version=self.version,
        )

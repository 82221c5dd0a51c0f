"""What goes over the wire, as pydantic models; their descriptions are the API's documentation."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from limner.pipelines.gaze import SIZE
from limner.serve.errors import Refused
from limner.serve.jobs import Limits, PaintRequest, Person, Picture, Progress, Status


class Place(BaseModel):
    """Where the eyes go."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    x: float = Field(description="Middle between the eyes, in widths of the picture from the left.", ge=0, le=1)
    y: float = Field(description="Middle between the eyes, in heights of the picture from the top.", ge=0, le=1)
    size: float = Field(SIZE, description="Distance of the eyes in widths of the picture.", ge=0.01, le=1)

    @property
    def text(self) -> str:
        """As `limner.pipelines.gaze.parse_gaze` reads it."""
        return f"{self.x:.6g},{self.y:.6g},{self.size:.6g}"


class Generate(BaseModel):
    """An order. Dials that are left out are the model's own; see `GET /v1/model`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    prompt: str = Field(description="What to paint.", min_length=1, max_length=2000, examples=["a wizard in the snow"])
    identity: str | None = Field(None, description="Id of a person you enrolled; none paints nobody in particular.")
    negative_prompt: str = Field("", description="What not to paint; needs guidance above 1.", max_length=2000)
    number: int = Field(1, description="Pictures.", ge=1, le=64)
    seed: int | None = Field(None, description="Of the first picture, then counting up; none: drawn.", ge=0, lt=2**62)
    strength: float | None = Field(None, description="How much of the person goes in.", ge=0, le=1)
    guidance_scale: float | None = Field(None, description="Weight of what is asked for; 1 is none.", ge=0, le=100)
    guidance_rescale: float | None = Field(None, description="Tames overexposure at high guidance.", ge=0, le=1)
    pag_scale: float | None = Field(None, description="Perturbed-attention guidance: firmer outlines.", ge=0, le=10)
    face_guidance: float | None = Field(
        None, description="How far the face is pulled towards the person while it is painted.", ge=0, le=10
    )
    face_detail: float | None = Field(
        None, description="How much of every face is painted anew, larger, when the picture is done.", ge=0, le=1
    )
    steps: int | None = Field(None, description="Denoising steps.", ge=1, le=1000)
    width: int | None = Field(None, description="Pixels, a multiple of 8.", ge=8, le=8192)
    height: int | None = Field(None, description="Pixels, a multiple of 8.", ge=8, le=8192)
    scheduler: str | None = Field(None, description="ddim, dpm++, euler, euler-a, unipc, …", max_length=64)
    watermark: bool = Field(False, description="Put an invisible mark into the pixels.")
    embed_identity: bool = Field(
        False, description="Write the person's numbers into the PNGs. Whoever has such a file can paint that person."
    )
    likeness: bool | None = Field(
        None, description="Score pictures for likeness by the model's own face encoder; null: where that can be done."
    )
    text_score: bool | None = Field(
        None, description="Score pictures for their fit to the prompt by a CLIP; null: where that can be done."
    )
    model: str | None = Field(
        None,
        description="One that `GET /v1/models` lists; none: that of the identity, or else the first.",
        max_length=200,
    )
    method: str | None = Field(
        None, description="As `model`: the first one that paints by this method.", max_length=200
    )
    gaze: Place | None = Field(None, description="Where the eyes go; only models that do not lack `gaze` can do it.")
    preview: bool = Field(False, description="Send small pictures with the events while painting.")

    def request(self) -> PaintRequest:
        """As the engine takes it."""
        fields = self.model_dump(exclude={"gaze"})
        return PaintRequest(**fields, gaze="" if self.gaze is None else self.gaze.text)


class PersonOut(BaseModel):
    """An enrolled person."""

    id: str
    digest: str = Field(description="sha256 of the identity, as pictures record it.")
    expires: float = Field(description="Seconds since 1970 after which it is forgotten.")
    faces: int = Field(description="Photos that were used.")
    model: str = Field(description="That the person was enrolled for; no other can paint them.")
    remarks: list[str] = Field(description="Which face was taken, what is wrong with a photo, who was left out.")

    @classmethod
    def of(cls, person: Person) -> PersonOut:
        """From the engine's."""
        facts = dataclasses.asdict(person)
        facts.pop("size")
        return cls(**facts)


class PictureOut(BaseModel):
    """A finished picture."""

    index: int
    seed: int
    url: str | None = Field(description="Where the PNG is; null if it was refused.")
    refused: str | None = Field(description="Why the safety checker refused it.")
    scores: dict[str, float] = Field(
        description="Cosines that help to choose, no measurements: `likeness` (of the face to the person; -1: no face "
        "is seen) and `text` (of the picture to the prompt)."
    )
    unscored: dict[str, str] = Field(description="Which of these is missing, and why.")
    settings: dict[str, Any]

    @classmethod
    def of(cls, job_id: str, picture: Picture) -> PictureOut:
        """From the engine's."""
        url = None if picture.refused else f"/v1/jobs/{job_id}/pictures/{picture.index}"
        return cls(
            index=picture.index,
            seed=picture.seed,
            url=url,
            refused=picture.refused or None,
            scores=picture.scores,
            unscored=picture.unscored,
            settings=picture.settings,
        )


class Error(BaseModel):
    """What went wrong."""

    type: str
    code: str = Field(description="Machine-readable reason.")
    message: str = Field(description="What was expected and what came.")
    hint: str = Field(description="What you can do next; may be empty.")


class ErrorBody(BaseModel):
    """The body of every error."""

    error: Error


class JobOut(BaseModel):
    """A job."""

    id: str
    status: Status
    position: int = Field(description="Jobs that wait before it.")
    step: int
    steps: int = Field(description="Of the batch that is being painted.")
    painted: int
    number: int = Field(description="Pictures, in all.")
    fraction: float = Field(description="Of the whole job, 0 to 1.")
    error: Error | None
    remarks: list[str] = Field(description="What the model cannot paint, and the like.")
    pictures: list[PictureOut] = Field(description="Once the job has ended.")

    @classmethod
    def of(cls, progress: Progress, pictures: list[Picture]) -> JobOut:
        """From the engine's."""
        names = ("id", "status", "position", "step", "steps", "painted", "number", "fraction")
        return cls(
            **{name: getattr(progress, name) for name in names},
            error=None if progress.error is None else Error(**progress.error),
            remarks=list(progress.remarks),
            pictures=[PictureOut.of(progress.id, p) for p in pictures],
        )


class ModelOut(BaseModel):
    """A model that paints here, and what is taken."""

    name: str
    method: str
    world: str = Field(description="Not empty: it only knows synthetic people, and real ones come out roughly.")
    license: str = Field(description="Of the weights; empty when unknown.")
    weights: dict[str, str] = Field(description="sha256 by component.")
    dials: dict[str, Any] = Field(description="Used where an order says nothing.")
    size_unit: int = Field(description="Width and height are multiples of it.")
    schedulers: list[str]
    lacks: dict[str, str] = Field(description="What it cannot do here (`gaze`, `likeness`, `text`), and why.")
    limits: dict[str, float]

    @classmethod
    def of(cls, facts: dict[str, Any], limits: Limits) -> ModelOut:
        """From the engine's."""
        return cls(**{k: facts[k] for k in cls.model_fields if k != "limits"}, limits=dataclasses.asdict(limits))


class OfferOut(BaseModel):
    """A model that can be asked for."""

    name: str
    method: str = Field(description="How it puts people into pictures.")
    description: str
    default: bool = Field(description="Whether it is taken where nothing is asked for.")
    loaded: bool = Field(description="Whether it is in memory; another is loaded when it is first asked for.")
    facts: ModelOut | None = Field(description="Null until it was loaded once.")

    @classmethod
    def of(cls, offer: dict[str, Any], limits: Limits) -> OfferOut:
        """From the engine's."""
        facts = offer["facts"]
        return cls(**{**offer, "facts": None if facts is None else ModelOut.of(facts, limits)})


def refusal(picture: Picture) -> Refused:
    """The error that stands for a refused picture."""
    return Refused(f"The safety checker refused this picture: {picture.refused}", "Ask for something else.")

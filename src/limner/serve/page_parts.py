"""What the page says: from what Limner answers to HTML. Every value that comes from outside is escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from limner.errors import LimnerError
from limner.pipelines.ranking import NO_FACE
from limner.provenance import Provenance
from limner.serve.jobs import Picture, Progress, Status

NOBODY = "no face seen"

EXAMPLES = (
    "a portrait of a wizard in the snow",
    "a photo of a chef in a kitchen, smiling",
    "a watercolor painting of a sailor on a beach",
    "an oil painting of a person with a red hat, in a forest",
)

HEADING = '<h1>Limner</h1><p class="limner-lead">Photos of a person and a sentence in, portraits out.</p>'

CONSENT = (
    "Paint people who agree to it. Photos are read to find the face, and deleted after an hour. The numbers that "
    "stand for the person are forgotten when the painting ends, except in your own files. Every picture says in its "
    "file that a machine painted it."
)

HINTS = {
    "several_faces": "Pick the right person in the row of faces under the photos.",
    "no_provenance": "Only PNGs that Limner wrote, unchanged by other programs, can be painted again.",
    "unreadable_image": "JPEG, PNG, WebP, AVIF, TIFF, BMP and GIF can be read. Save it as one of them.",
    "not_found": "The page was open for long, and what it held was deleted. Drop the files again.",
}
"""What to do next on the page, where an error's own hint speaks of the command line."""

TITLES = {
    "no_face": "No face found",
    "several_faces": "Several people",
    "face_too_small": "The face is too small",
    "face": "The face cannot be used",
    "unreadable_image": "Not a picture",
    "image_too_large": "Too large a picture",
    "no_provenance": "Nothing to paint again",
    "corrupt_data": "Damaged",
    "unknown_model": "No such model here",
    "unsupported": "The model cannot do that",
    "weights_mismatch": "Painted by another model",
    "prompt": "The sentence cannot be painted",
    "config": "A setting is out of range",
    "queue_full": "Many people are waiting",
    "too_many_jobs": "One at a time",
    "rate_limited": "Too fast",
    "storage_full": "No room left",
    "unavailable": "The model is not ready",
    "draining": "The service is stopping",
    "worker_crashed": "The painter broke down",
    "refused": "Held back",
}


def alert(error: LimnerError | Mapping[str, str], about: str = "") -> str:
    """A typed error as people read it: title, what happened, what to do next, and its code.

    Args:
        error: the error, or its `as_dict`.
        about: the file that it concerns.
    """
    facts = error if isinstance(error, Mapping) else error.as_dict()
    code = facts["code"]
    title = TITLES.get(code, "That did not work")
    hint = HINTS.get(code, facts.get("hint", ""))
    message = facts["message"].replace("<bytes>", about or "the photo").replace("The given data", about or "The file")
    name = f"{escape(about)}: " if about and about not in message else ""
    return (
        f'<div class="limner-alert" role="alert" data-code="{escape(code)}"><strong>{escape(title)}</strong>'
        f"<p>{name}{escape(message)}</p>" + (f"<p>{escape(hint)}</p>" if hint else "") + "</div>"
    )


def remarks(sentences: Sequence[str]) -> str:
    """Things worth knowing that stop nothing; empty for none. How to choose a face is seen on the page itself."""
    items = "".join(f"<li>{escape(s)}</li>" for s in sentences if "`choose`" not in s)
    if not items:
        return ""
    return f'<div class="limner-remarks" role="note"><ul>{items}</ul></div>'


def waiting(text: str) -> str:
    """A bar that moves without a measure."""
    return _bar(text, None)


def progress(state: Progress) -> str:
    """Where a job stands, with the picture as far as it is painted."""
    if state.status is Status.QUEUED:
        before = f"{state.position} before you" if state.position else "next"
        return _bar(f"Waiting: {before}", 0.0)
    if state.status is Status.DONE:
        hint = "likeness and text are scores to choose by: higher is better"
        return f'<p class="limner-said" role="status">Done: {plural(state.painted, "picture")}; {hint}.</p>'
    if state.status is Status.CANCELLED:
        kept = f" {plural(state.painted, 'picture')} had been finished." if state.painted else ""
        return f'<p class="limner-said" role="status">Stopped.{kept}</p>'
    text = f"Painting: step {state.step} of {state.steps}, {state.painted} of {plural(state.number, 'picture')} done"
    return _bar(text, state.fraction, state.preview)


def model_line(facts: Mapping[str, Any]) -> str:
    """Which model paints here, and whom it knows."""
    world = (
        " It knows only the synthetic people of its world: a real photo comes out resembling roughly."
        if facts["world"]
        else ""
    )
    says = "" if facts["method"] == "faceclip" else " In its sentences S* stands for the person: S* as a wizard."
    licence = f" Licence of its weights: {facts['license']}." if facts["license"] else ""
    said = escape(says + world + licence)
    return f'<p class="limner-model">Painted by <strong>{escape(facts["name"])}</strong>.{said}</p>'


def offer_choices(offers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(label, name) of every model that can be picked."""
    return [(f"{o['name']}, by {o['method']}" if o["method"] else o["name"], o["name"]) for o in offers]


def caption(picture: Picture) -> str:
    """The line under a picture in the gallery."""
    scores = picture.scores.items()
    said = [f"{name} {value:.2f}" if value > NO_FACE else NOBODY for name, value in scores]
    return " · ".join([f"seed {picture.seed}", *said])


def table(rows: Mapping[str, Any]) -> str:
    """Two columns; empty values are left out."""
    cells = "".join(
        f'<tr><th scope="row">{escape(k)}</th><td>{escape(str(v))}</td></tr>'
        for k, v in rows.items()
        if v not in ("", None)
    )
    return f'<table class="limner-facts">{cells}</table>'


def record_rows(record: Provenance) -> dict[str, Any]:
    """What a Limner PNG says of itself, for `table`."""
    portrait, settings = record.portrait, record.portrait.settings
    return {
        "Prompt": portrait.prompt,
        "Not": portrait.negative_prompt,
        "Seed": portrait.seed,
        "Steps": settings.get("steps"),
        "Guidance": settings.get("guidance_scale"),
        "Strength": settings.get("strength"),
        "Sampler": settings.get("scheduler"),
        "Size": f"{portrait.image.width} × {portrait.image.height}",
        "Model": portrait.model,
        "Method": settings.get("method"),
        "Eyes at": settings.get("gaze"),
        "Licence": record.license,
        "Person": person_of(record),
        "Pixels": "as they were painted" if record.intact else "changed after they were painted",
        "Made by": "a machine",
        **{
            name.capitalize(): f"{value:.2f}" if value > NO_FACE else NOBODY
            for name, value in portrait.scores.items()
            if isinstance(value, int | float)
        },
    }


def person_of(record: Provenance) -> str:
    """Whether the picture can be painted again from itself."""
    if not record.portrait.identity:
        return "nobody in particular"
    held = "held by the file" if record.identity is not None else "not held by the file"
    return f"{record.portrait.identity[:12]} ({held})"


def plural(count: int, noun: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _bar(text: str, fraction: float | None, preview: bytes | None = None) -> str:
    picture = ""
    if preview:
        data = base64.b64encode(preview).decode("ascii")
        picture = f'<img class="limner-preview" alt="The picture so far" src="data:image/jpeg;base64,{data}">'
    percent = None if fraction is None else round(100 * fraction)
    value = "" if percent is None else f' aria-valuenow="{percent}"'
    style = "" if percent is None else f' style="width:{percent}%"'
    moving = " limner-moving" if percent is None else ""
    limits = 'aria-valuemin="0" aria-valuemax="100"'
    return (
        f'<div class="limner-progress"><p role="status">{escape(text)}</p>'
        f'<div class="limner-bar" role="progressbar" aria-label="Progress" {limits}{value}>'
        f'<span class="limner-fill{moving}"{style}></span></div>{picture}</div>'
    )

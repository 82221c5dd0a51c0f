"""What the engine's worker does with the model: enrol, paint rows of several jobs in one batch, preview, check."""

from __future__ import annotations

import dataclasses
import io
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from limner.errors import ConfigError, FaceError, ImageError, LimnerError, WeightsMismatch
from limner.pipelines.gaze import gaze_image, parse_gaze
from limner.pipelines.paint import Dials, as_portrait, default_dials, paint_batch
from limner.pipelines.recogniser import own_embedding
from limner.pipelines.remarks import prompt_remarks, truncation_remarks, world_remarks
from limner.pipelines.schedulers import schedulers_for
from limner.provenance import MAX_IDENTITY_BYTES, compact, encode_portrait, picture_world
from limner.serve.errors import ServiceError, Unsupported
from limner.serve.jobs import Job, Limits, PaintRequest, Picture, Status
from limner.serve.preview import PREVIEW_EVERY, preview_jpeg
from limner.types import Conditioning, Face, Identity, Portrait

if TYPE_CHECKING:
    from limner.faces import Found
    from limner.pipelines.loading import Model
    from limner.serve.engine import Engine
    from limner.serve.shelf import Held
    from limner.serve.state import Kept

log = logging.getLogger(__name__)

Row = tuple[Job, int]
"""A job and the number of one of its pictures."""

STACKED = ("prompt_embeds", "pooled", "negative_prompt_embeds", "negative_pooled", "control_image", "face")
"""What of a conditioning can differ from picture to picture of a batch."""


class Abandoned(Exception):
    """Nobody waits for this batch any more."""


def model_facts(held: Held) -> dict[str, Any]:
    """What must be known of a model to check a request without touching it. `placed_weights` are what pictures record
    that were painted with a place for the eyes."""
    model = held.model
    return {
        "name": model.name,
        "method": model.pipe.method.name,
        "world": model.world,
        "license": model.license,
        "weights": dict(held.weights),
        "placed_weights": dict(model.weights),
        "lacks": dict(held.lacks),
        "dials": default_dials(model).to_dict(),
        "size_unit": model.pipe.size_unit,
        "schedulers": schedulers_for(model.pipe.scheduler),
    }


def make_job(
    job_id: str,
    owner: str,
    request: PaintRequest,
    kept: Kept | None,
    model: str,
    facts: dict[str, Any],
    limits: Limits,
) -> Job:
    """A job that can be painted, or ConfigError, Unsupported, or WeightsMismatch (no likeness to such an identity)."""
    names = (
        "strength", "guidance_scale", "guidance_rescale", "pag_scale", "face_guidance", "face_detail", "steps", "width",
        "height", "scheduler", "watermark", "gaze",
    )  # fmt: skip
    given = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    usual = {**facts["dials"], "face_detail": 0.0} if request.gaze else facts["dials"]  # as `default_dials`
    dials = Dials.from_dict({**usual, **given, "batch": min(limits.batch, 64)})
    dials.demand_heard(request.negative_prompt)
    unit = facts["size_unit"]
    for name, ok, allowed in (
        ("number", 1 <= request.number <= limits.number, f"1 to {limits.number}"),
        ("seed", request.seed is None or 0 <= request.seed < 2**62, "0 to 2^62"),
        ("steps", dials.steps <= limits.steps, f"1 to {limits.steps}"),
        ("width", dials.width % unit == 0 and dials.width >= unit, f"multiples of {unit}"),
        ("height", dials.height % unit == 0 and dials.height >= unit, f"multiples of {unit}"),
        ("scheduler", dials.scheduler in facts["schedulers"], ", ".join(facts["schedulers"])),
    ):
        if not ok:
            raise ConfigError(f"{name} is {getattr(request, name)!r}; allowed: {allowed}.")
    if dials.width * dials.height > limits.pixels:
        raise ConfigError(f"{dials.width} × {dials.height} are too many pixels; allowed: {limits.pixels} at most.")
    wanted = {"gaze": bool(request.gaze), "likeness": request.likeness, "text": request.text_score}
    for name, reason in facts["lacks"].items():
        if wanted[name]:
            raise Unsupported(f"{_WISHES[name]} cannot be had here: {reason}", "Leave it out, or take another model.")
    if request.likeness:
        if kept is None:
            raise ConfigError("likeness needs an identity to compare with.")
        own_embedding(kept.identity)
    first = secrets.randbelow(2**31) if request.seed is None else request.seed
    seeds = list(range(first, first + request.number))
    identity, digest = (None, "") if kept is None else (kept.identity, kept.person.digest)
    size = _PIXEL_BYTES * dials.width * dials.height
    if request.embed_identity and kept is not None and _fits(kept.identity):
        size += kept.person.size * 4 // 3  # base64
    todo = list(range(len(seeds)))
    return Job(job_id, owner, request, dials, identity, digest, seeds, time.monotonic(), model, size, todo=todo)


_PIXEL_BYTES = 2
"""Of a PNG that is still to be painted: an estimate."""
_WISHES = {"gaze": "A place for the eyes", "likeness": "A score of likeness", "text": "A score of the text"}


def gather(
    find: Callable[[bytes, str], Found], photos: Sequence[bytes], choose: Sequence[str], world: str
) -> tuple[list[Face], list[str], bool]:
    """The chosen face of every photo, remarks, and whether a photo comes from outside the model's world."""
    faces: list[Face] = []
    remarks: list[str] = []
    outside = False
    for number, (photo, rule) in enumerate(zip(photos, choose, strict=True), 1):
        name = f"photo {number}"

        def say(text: str, name: str = name) -> str:
            text = text.replace("<bytes>", name).replace("The given data", name.capitalize())
            return text.replace("--choose", "`choose`").replace(", or like:PHOTO", "")

        try:
            found = find(photo, rule)
        except ImageError as e:
            e.message, e.hint = say(e.message), say(e.hint)
            raise
        face = dataclasses.replace(found.face(), source=name)
        faces.append(face)
        remarks += [say(found.advice)] if found.advice else []
        remarks += [f"{name}: {warning}" for warning in face.quality.warnings] if face.quality else []
        outside = outside or (bool(world) and _world(photo) != world)
    return faces, remarks, outside


def enroll(model: Model, faces: Sequence[Face], outside: bool) -> tuple[Identity, list[str]]:
    """The person of these faces, rounded as provenance keeps it, with remarks; FaceError if they are several."""
    import torch

    from limner.pipelines.people import gather_references

    references = gather_references(list(faces), embedder=model.pipe.embedder)
    with torch.no_grad():
        identity = compact(model.pipe.method.enroll(references.faces))
    identity = dataclasses.replace(identity, info={**identity.info, "outside": outside})
    return identity, [*references.remarks, *world_remarks(model, identity)]


def paint_job_rows(engine: Engine, held: Held, rows: Sequence[Row]) -> None:
    """Paints one batch and hands every picture to its job. A job whose own inputs cannot be conditioned on or scored
    fails alone; anything else that is raised propagates."""
    model, taken = held.model, _jobs(rows)
    rows, conditioning = _condition(engine, model, rows)
    if not rows or conditioning is None:
        return
    jobs = _jobs(rows)
    engine._leave_out(taken, jobs)
    dials = rows[0][0].dials
    seeds = [job.seeds[index] for job, index in rows]
    started = previewed = time.monotonic()

    def on_step(step: int, of: int) -> None:
        with engine._changed:
            alive = [job for job in jobs if job.status is Status.RUNNING]
            if not alive or engine._stopping:
                raise Abandoned
            for job in alive:
                job.step = round(step * job.dials.steps / max(of, 1))
                engine._touch(job)

    def on_latents(latents: Any) -> None:
        nonlocal previewed
        wanting = [job for job in jobs if job.request.preview and job.status is Status.RUNNING]
        if not (engine.previews and wanting) or time.monotonic() - previewed < PREVIEW_EVERY:
            return
        for job in wanting:
            at = next(i for i, (owner, _) in enumerate(rows) if owner is job)
            jpeg = preview_jpeg(model.pipe, latents[at])
            with engine._changed:
                job.preview = None if job.status.final else jpeg
                engine._touch(job)
        previewed = time.monotonic()

    try:
        model.set_scheduler(dials.scheduler)
        images = paint_batch(model, conditioning, seeds, dials, on_step, on_latents)
    except Abandoned:
        return
    except LimnerError as e:
        _fail(engine, jobs, e)
        return
    timings = {"paint": round((time.monotonic() - started) / len(rows), 4)}
    for (job, index), image in zip(rows, images, strict=True):
        own = [job.seeds[i] for other, i in rows if other is job]
        portrait = as_portrait(
            model, image, job.seeds[index], job.request.prompt, job.request.negative_prompt, job.digest, job.dials, own,
            timings,
        )  # fmt: skip
        if not job.dials.gaze:
            portrait = dataclasses.replace(portrait, weights=held.weights)
        try:
            picture = _finished(engine, held, job, index, portrait, len(rows))
        except LimnerError as e:
            _fail(engine, [job], e)
            continue
        except Exception as e:
            _fail_over(engine, model, job, e)
            continue
        _deliver(engine, job, picture)


def _condition(engine: Engine, model: Model, rows: Sequence[Row]) -> tuple[list[Row], Conditioning | None]:
    """One row of conditioning a picture, or one row for all where they are of one job. Rows of which other things or
    another number of tokens are said are left for later, as are other jobs where a method says more than rows hold."""
    import torch

    made: dict[str, Conditioning] = {}
    for job in _jobs(rows):
        request = job.request
        identity = job.identity
        if job.status.final:
            continue
        try:
            told = model.pipe.condition(request.prompt, identity, request.negative_prompt, job.dials.strength)
            if not job.dials.face_guidance:
                told = dataclasses.replace(told, face=None)  # nobody reads it
            if job.dials.gaze:
                place = gaze_image(parse_gaze(job.dials.gaze), job.dials.height, job.dials.width)
                told = dataclasses.replace(told, control_image=place)
            remarks = prompt_remarks(model, [request.prompt, request.negative_prompt])
            remarks += truncation_remarks(model, [request.prompt, request.negative_prompt])
            remarks += world_remarks(model, identity) if identity is not None else []
        except LimnerError as e:
            _fail(engine, [job], e)
            continue
        except Exception as e:
            _fail_over(engine, model, job, e)
            continue
        made[job.id] = told
        with engine._changed:
            job.remarks = tuple(dict.fromkeys([*job.remarks, *remarks]))
    rows = [(job, index) for job, index in rows if job.id in made]
    if not rows:
        return [], None
    first = made[rows[0][0].id]
    if type(first) is not Conditioning or first.ip_adapter_image_embeds is not None:
        return [(job, index) for job, index in rows if job is rows[0][0]], first
    rows = [(job, index) for job, index in rows if _shapes(made[job.id]) == _shapes(first)]
    parts = [made[job.id] for job, _ in rows]

    def stacked(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    return rows, Conditioning(**{name: stacked(name) for name in STACKED})


def _shapes(conditioning: Conditioning) -> list[Any]:
    """What is said, and how much of it; equal where rows can be painted together."""
    values = (getattr(conditioning, name) for name in STACKED)
    return [None if value is None else value.shape for value in values]


def _finished(engine: Engine, held: Held, job: Job, index: int, portrait: Portrait, batch: int) -> Picture:
    """The picture as its caller gets it: scored, checked, encoded."""
    model, identity = held.model, job.identity
    scores, unscored = _scored(engine, held, job, portrait)
    portrait = dataclasses.replace(portrait, scores=scores, settings={**portrait.settings, "batch_rows": batch})
    facts: dict[str, Any] = {"scores": scores, "unscored": unscored, "settings": dict(portrait.settings)}
    refused = _refusal(engine, portrait)
    if refused:
        return Picture(index, portrait.seed, b"", refused, **facts)
    embedded = identity if job.request.embed_identity and identity is not None and _fits(identity) else None
    return Picture(index, portrait.seed, encode_portrait(portrait, embedded, model.license), **facts)


def _refusal(engine: Engine, portrait: Portrait) -> str:
    if engine.checker is None:
        return ""
    try:
        return str(engine.checker(portrait) or "")
    except Exception:  # whatever a checker that is not ours raises: no picture goes out unchecked
        log.exception("The safety checker failed.")
        return "The safety checker failed."


def _scored(engine: Engine, held: Held, job: Job, portrait: Portrait) -> tuple[dict[str, float], dict[str, str]]:
    """The scores that were not declined, and why one of them is missing."""
    scores: dict[str, float] = {}
    lacks, identity = dict(held.lacks), job.identity
    if identity is None:
        lacks["likeness"] = "Nobody in particular was painted."
    if job.request.likeness is not False and identity is not None and "likeness" not in lacks:
        try:
            scores["likeness"] = round(_likeness(engine, held.model, identity, portrait), 4)
        except WeightsMismatch as e:
            lacks["likeness"] = e.message
    if job.request.text_score is not False and held.text is not None:
        scores["text"] = round(held.text(portrait.image, portrait.prompt), 4)
    asked = {"likeness": job.request.likeness, "text": job.request.text_score}
    return scores, {name: lacks[name] for name in asked if asked[name] is not False and name in lacks}


def _likeness(engine: Engine, model: Model, identity: Identity, portrait: Portrait) -> float:
    from limner.pipelines.ranking import NO_FACE

    own = own_embedding(identity)
    try:
        face = engine._find(portrait.image, "largest").face()
    except FaceError:
        return NO_FACE
    embedder = model.pipe.embedder
    if embedder is None:
        raise ConfigError(f"{model.name} has no recogniser of its own; likeness cannot be scored.")
    return float(embedder.embed(face) @ own)


def _deliver(engine: Engine, job: Job, picture: Picture) -> None:
    with engine._changed:
        if job.status.final:
            return
        job.pictures[picture.index] = picture
        job.todo.remove(picture.index)
        job.rows -= 1
        engine.counters["refused" if picture.refused else "painted"] += 1
        if job.todo:
            engine._touch(job)
        else:
            engine._finish(job, Status.DONE)


def _fail(engine: Engine, jobs: Sequence[Job], error: LimnerError) -> None:
    with engine._changed:
        for job in jobs:
            if not job.status.final:
                engine._finish(job, Status.FAILED, error)


def _fail_over(engine: Engine, model: Model, job: Job, error: Exception) -> None:
    """Fails a job over whose own inputs something unforeseen was raised. Raises it where memory is used up, and what
    the device raises if it is broken: neither is the job's doing."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        raise error
    torch.ones(1, device=model.pipe._execution_device).item()
    log.error("A job failed.", exc_info=error)
    _fail(engine, [job], ServiceError("The service made a mistake with this; it has been logged.", "Send another job."))


def _jobs(rows: Sequence[Row]) -> list[Job]:
    return list({job.id: job for job, _ in rows}.values())


def _fits(identity: Identity) -> bool:
    return sum(t.numel() * t.element_size() for t in identity.tensors.values()) < MAX_IDENTITY_BYTES - 4096


def _world(photo: bytes) -> str:
    try:
        return picture_world(io.BytesIO(photo))
    except ImageError:
        return ""

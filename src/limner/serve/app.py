"""The HTTP API over an `Engine`: FastAPI, with its guard and metrics around it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from python_multipart.exceptions import FormParserError
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from limner import __version__
from limner.errors import LimnerError
from limner.serve.engine import Engine
from limner.serve.errors import InvalidRequest, NotFound, ServiceError, Unavailable, UnsupportedMedia, http_status
from limner.serve.guard import Guard, error_body, error_headers
from limner.serve.jobs import Progress
from limner.serve.metrics import CONTENT_TYPE, Metrics
from limner.serve.schemas import ErrorBody, Generate, JobOut, ModelOut, OfferOut, PersonOut, refusal
from limner.serve.settings import CALLER_KEY, Settings

log = logging.getLogger(__name__)

POLL = 0.1
"""Seconds between two looks at a job whose events are followed."""
KEEP_ALIVE = 10.0
"""Seconds after which a silent event stream says something, lest it be cut."""

DESCRIPTION = f"""
Portraits of a person from photos and a sentence.

1. `POST /v1/identities` with photos enrols a person. The photos are not kept, only numbers made from the face, for as
   long as you say (`ttl`); `DELETE` forgets them at once.
2. `POST /v1/jobs` orders pictures; follow `/v1/jobs/ID/events` (server-sent events) or ask for `/v1/jobs/ID`.
3. Fetch the PNGs; each says in its file how it was painted and that a machine painted it.

**Consent.** Enrol people who agree to it. Numbers made from a face are biometric data: in many countries you need the
person's permission to process them, and pictures of real people must not deceive.

**Who you are.** Send `Authorization: Bearer TOKEN` where the service demands tokens. Otherwise send `{CALLER_KEY}`:
22 or more random characters that only you know; they are what your identities, jobs and pictures belong to.
Nobody else can see them, or find out that they exist.

**Errors** are `{{"error": {{"type", "code", "message", "hint"}}}}`. `code` is stable and meant for programs. 429 and
503 come with `Retry-After` (seconds).
"""

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in (
        (400, "The body or a header cannot be read."),
        (401, "No valid token or caller key."),
        (404, "No such thing, or not yours."),
        (408, "The body did not arrive in time."),
        (413, "Too many bytes or pixels."),
        (415, "Another content type, or no picture."),
        (422, "A field, a photo or a prompt cannot be used; `code` says why."),
        (429, "Too often or too much; see Retry-After."),
        (500, "A fault of the service."),
        (503, "Full, loading or shutting down; see Retry-After."),
    )
}

router = APIRouter(prefix="/v1", responses=_ERRORS)
_bearer = HTTPBearer(auto_error=False, description="Where the service demands tokens.")
_caller = APIKeyHeader(name=CALLER_KEY, auto_error=False, description="22 to 128 random characters; yours alone.")


def _engine(request: Request) -> Engine:
    return request.app.state.engine


def _owner(
    request: Request, _token: Annotated[Any, Security(_bearer)] = None, _key: Annotated[Any, Security(_caller)] = None
) -> str:
    """The guard has found out who asks; the arguments are there for the documentation."""
    return request.state.owner


def _json_only(request: Request) -> None:
    _demand_type(request, "application/json")


Engine_ = Annotated[Engine, Depends(_engine)]
Owner = Annotated[str, Depends(_owner)]

_PHOTOS = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["photo"],
                    "properties": {
                        "photo": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                            "description": "Photos of one person; repeat the field for several.",
                        },
                        "choose": {
                            "type": "string",
                            "default": "largest",
                            "description": "Which face: largest, center, only, a number from the left, X,Y or a box.",
                        },
                        "ttl": {"type": "number", "description": "Seconds to keep the identity."},
                        "model": {"type": "string", "description": "That is to paint them; see `GET /v1/models`."},
                        "method": {"type": "string", "description": "As `model`, by its method."},
                    },
                }
            }
        },
    }
}


@router.post(
    "/identities",
    status_code=201,
    response_model=PersonOut,
    openapi_extra=_PHOTOS,
    tags=["people"],
    summary="Enrol a person",
)
async def enroll(request: Request, engine: Engine_, owner: Owner, response: Response) -> PersonOut:
    """Finds the face in each photo and keeps numbers that stand for the person. Waits until it is done."""
    photos, fields = await _form(request)
    choose, ttl = fields.get("choose", "largest"), _number(fields.get("ttl"))

    def work() -> Any:
        seconds = request.app.state.settings.enroll_seconds
        names = {name: fields.get(name) for name in ("model", "method")}
        return engine.enroll(owner, photos, choose, ttl=ttl, timeout=seconds, **names)

    person = await anyio.to_thread.run_sync(work, limiter=request.app.state.enrolling)
    response.headers["Location"] = f"/v1/identities/{person.id}"
    return PersonOut.of(person)


@router.get("/identities", tags=["people"], summary="Your enrolled people")
async def persons(engine: Engine_, owner: Owner) -> list[PersonOut]:
    return [PersonOut.of(person) for person in engine.persons(owner)]


@router.get("/identities/{identity}", tags=["people"], summary="One enrolled person")
async def person(identity: str, engine: Engine_, owner: Owner) -> PersonOut:
    return PersonOut.of(engine.person(owner, identity))


@router.delete("/identities/{identity}", status_code=204, tags=["people"], summary="Forget a person")
async def forget(identity: str, engine: Engine_, owner: Owner) -> None:
    engine.forget(owner, identity)


@router.post("/jobs", status_code=202, dependencies=[Depends(_json_only)], tags=["pictures"], summary="Order pictures")
async def generate(
    request: Request,
    order: Generate,
    engine: Engine_,
    owner: Owner,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(description="The same key with the same order gives the same job, not another.", max_length=128),
    ] = None,
) -> JobOut:
    """Accepts a job. An accepted job is painted even if the worker dies meanwhile. Waits for a model that was never
    loaded before."""
    paint = order.request()

    def work() -> str:
        return engine.submit(owner, paint, idempotency_key, request.app.state.settings.enroll_seconds)

    if engine.known(order.model, order.method):
        job = work()
    else:
        job = await anyio.to_thread.run_sync(work, limiter=request.app.state.enrolling)
    response.headers["Location"] = f"/v1/jobs/{job}"
    return _job(engine, owner, job)


@router.get("/jobs", tags=["pictures"], summary="Your jobs")
async def jobs(engine: Engine_, owner: Owner) -> list[JobOut]:
    return [JobOut.of(progress, []) for progress in engine.jobs(owner)]


@router.get("/jobs/{job}", tags=["pictures"], summary="How a job stands, and its pictures")
async def job(job: str, engine: Engine_, owner: Owner) -> JobOut:
    return _job(engine, owner, job)


@router.get(
    "/jobs/{job}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    tags=["pictures"],
    summary="Follow a job",
)
async def events(job: str, engine: Engine_, owner: Owner) -> StreamingResponse:
    """Server-sent events: `progress` (the job as JSON) at every change, `preview` (a JPEG as base64) if ordered, and
    `end` once, after which the stream closes."""
    engine.progress(owner, job)
    return StreamingResponse(
        _events(engine, owner, job), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


@router.post("/jobs/{job}/cancel", tags=["pictures"], summary="Cancel a job")
async def cancel(job: str, engine: Engine_, owner: Owner) -> JobOut:
    """Ends a job; what is painted already stays. Does nothing to a job that has ended."""
    engine.cancel(owner, job)
    return _job(engine, owner, job)


@router.get(
    "/jobs/{job}/pictures/{index}",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        403: {"model": ErrorBody, "description": "The safety checker refused this picture."},
        409: {"model": ErrorBody, "description": "The job has not ended yet."},
    },
    tags=["pictures"],
    summary="Fetch a picture",
)
async def picture(job: str, index: int, engine: Engine_, owner: Owner) -> Response:
    """The PNG, with its provenance inside."""
    found = engine.picture(owner, job, index)
    if found.refused:
        raise refusal(found)
    return Response(found.png, media_type="image/png")


@router.delete("/jobs/{job}", status_code=204, tags=["pictures"], summary="Delete a job and its pictures")
async def delete(job: str, engine: Engine_, owner: Owner) -> None:
    """Forgets the job and its pictures; one that has not ended is cancelled."""
    engine.delete(owner, job)


@router.get("/model", tags=["service"], summary="The first model, its dials, and the limits")
async def model(engine: Engine_, owner: Owner) -> ModelOut:
    if not engine.facts:
        raise Unavailable("The model is being loaded.", "Try again in a moment.", 2)
    return ModelOut.of(engine.facts, engine.limits)


@router.get("/models", tags=["service"], summary="All models that can be asked for")
async def models(engine: Engine_, owner: Owner) -> list[OfferOut]:
    return [OfferOut.of(offer, engine.limits) for offer in engine.offers()]


health = APIRouter(tags=["service"])


@health.get("/healthz", summary="Whether the process should live on", responses={503: _ERRORS[503]})
async def healthz(engine: Engine_) -> dict[str, str]:
    if engine.status()["failed"]:
        raise Unavailable("The model cannot be loaded any more; start the service again.")
    return {"status": "ok"}


@health.get("/readyz", summary="Whether jobs are taken", responses={503: _ERRORS[503]})
async def readyz(engine: Engine_) -> dict[str, str]:
    if not engine.status()["ready"]:
        raise Unavailable("Loading or shutting down.", "Try again in a moment.", 2)
    return {"status": "ready"}


@health.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
async def metrics(request: Request) -> Response:
    return Response(request.app.state.metrics.page(), media_type=CONTENT_TYPE)


def create_app(engine: Engine, settings: Settings | None = None) -> FastAPI:
    """The service over an engine, which the caller starts and closes.

    Args:
        engine: does the work.
        settings: tokens and limits.
    """
    settings = settings or Settings()
    app = FastAPI(
        title="Limner",
        version=__version__,
        summary="Identity-preserving image synthesis",
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.state.engine, app.state.settings = engine, settings
    app.state.enrolling = CapacityLimiter(engine.limits.enrolments + 1)
    app.state.metrics = Metrics(engine)
    app.include_router(router)
    app.include_router(health)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(_Outermost, metrics=app.state.metrics)
    app.add_exception_handler(LimnerError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_fault)
    return app


class _Outermost:
    """Counts every request, and adds the headers that every answer of the API has."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def careful(message: Any) -> None:
            if message["type"] == "http.response.start" and scope["path"].startswith("/v1"):
                present = {k for k, _ in message["headers"]}
                more = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
                message["headers"] = [*message["headers"], *(h for h in more if h[0] not in present)]
            await send(message)

        await self.metrics.watch(self.app, scope, receive, careful)


def _job(engine: Engine, owner: str, job_id: str) -> JobOut:
    progress = engine.progress(owner, job_id)
    return JobOut.of(progress, engine.result(owner, job_id, peek=True) if progress.status.final else [])


async def _events(engine: Engine, owner: str, job_id: str) -> AsyncIterator[bytes]:
    seen, shown, silent = -1, None, 0.0
    while True:
        try:
            progress = engine.progress(owner, job_id)
            if progress.version == seen:
                silent += POLL
                if silent >= KEEP_ALIVE:
                    silent = 0.0
                    yield b": still here\n\n"
            else:
                seen, silent = progress.version, 0.0
                if progress.preview is not None and progress.preview is not shown:
                    shown = progress.preview
                    yield _event("preview", base64.b64encode(shown).decode("ascii"), progress)
                name = "end" if progress.status.final else "progress"
                yield _event(name, _job(engine, owner, job_id).model_dump_json(), progress)
                if progress.status.final:
                    return
        except NotFound as e:  # deleted, or expired, while it was followed
            yield f"event: end\ndata: {json.dumps(error_body(e))}\n\n".encode()
            return
        await asyncio.sleep(POLL)


def _event(name: str, data: str, progress: Progress) -> bytes:
    return f"id: {progress.version}\nevent: {name}\ndata: {data}\n\n".encode()


class _MemoryParser(MultiPartParser):
    """Keeps photos in memory instead of temporary files; the guard has bounded the body."""

    spool_max_size = 1 << 40


async def _form(request: Request) -> tuple[list[bytes], dict[str, str]]:
    """Photos and text fields of a multipart body.

    Raises:
        UnsupportedMedia: another content type.
        InvalidRequest: damaged, or fields that are not known.
    """
    _demand_type(request, "multipart/form-data")
    most = request.app.state.engine.limits.photos
    parser = _MemoryParser(request.headers, request.stream(), max_files=4 * most, max_fields=8, max_part_size=4096)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError, ValueError, UnicodeError) as e:
        raise InvalidRequest(f"The form cannot be read ({getattr(e, 'message', '') or type(e).__name__}).") from e
    photos: list[bytes] = []
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "photo" and not isinstance(value, str):
            photos.append(await value.read())
        elif name in ("choose", "ttl", "model", "method") and isinstance(value, str) and name not in fields:
            fields[name] = value
        else:
            raise InvalidRequest("The fields photo (files), choose, ttl, model and method (text, once) are expected.")
    await form.close()
    if not photos:
        raise InvalidRequest("At least one file in the field photo is expected; got none.")
    return photos, fields


def _demand_type(request: Request, expected: str) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != expected:
        raise UnsupportedMedia(f"A body of type {expected} is expected.", f"Send the header Content-Type: {expected}.")


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError as e:
        raise InvalidRequest("ttl is no number; seconds are expected.") from e


def _answer(error: LimnerError) -> JSONResponse:
    return JSONResponse(error_body(error), http_status(error), headers=error_headers(error))


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, LimnerError)
    if http_status(error) == 500:
        log.error("A request failed: %s", error)
    return _answer(error)


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _answer(InvalidRequest("The body is no JSON.", "See /docs for what is expected."))
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    place = place.encode("ascii", "replace").decode()[:80]
    return _answer(InvalidRequest(f"{place}: {first['msg']}.", "See /docs for what is expected."))


async def _on_http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = BadRequest(f"{error.detail}.", "See /docs for what there is.")
    answer.code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    response = _answer(answer)
    response.status_code = error.status_code
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _on_fault(_request: Request, _error: Exception) -> Response:
    return _answer(ServiceError("The service made a mistake; it has been logged."))


class BadRequest(ServiceError):
    """What the web framework itself refuses: an unknown method, an unreadable body."""

    status = 400

"""`limner serve`: the HTTP service, and the page if gradio is installed."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import ipaddress
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli import painting
from limner.cli.output import note
from limner.cli.painting import AcceptLicense, Device, DType, Memory, Place
from limner.errors import ConfigError, MissingDependency

if TYPE_CHECKING:
    from limner.serve.engine import Engine
    from limner.serve.shelf import Offer

HELP = """Serve portraits over HTTP.

One worker owns the models; callers enrol people, order pictures, follow and fetch them. See /docs for the API, /metrics
for Prometheus, /page for the page. Everything is kept in memory, for a while.

[bold]Examples[/bold]

  limner serve

  limner serve --model my-model --port 9000

  limner serve --model faceclip-mini --model dreamidentity-mini --hold 2

  LIMNER_TOKENS=first-secret,second-secret limner serve --host 0.0.0.0

Ctrl-C finishes the accepted jobs first; a second one leaves at once.
"""

TOKENS = "LIMNER_TOKENS"
NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("serve", help=HELP)(serve)


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A name that `limner models` lists, or a trained model's folder; repeat it to offer several, of which "
            "the first is the default. Without it: all that are on this machine and fit into its memory.",
        ),
    ] = None,
    hold: Annotated[int, typer.Option(help="Models held in memory at the same time.")] = 2,
    gaze_weights: Annotated[
        Path | None, typer.Option(help="Folder of the ControlNet for places of the eyes; default: the model's own.")
    ] = None,
    text_scorer: Annotated[
        Path | None, typer.Option(help="Folder of the CLIP that scores text; default: the one that ships for sitters.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.", min=0, max=65535)] = 8000,
    tokens: Annotated[
        Path | None, typer.Option(help=f"File of bearer tokens, one a line; or give them in {TOKENS}, with commas.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures painted at once.")] = 4,
    queue: Annotated[int, typer.Option(help="Jobs that may wait.")] = 64,
    rate: Annotated[float, typer.Option(help="Enrolments and jobs a minute that one client may send.")] = 60.0,
    max_body: Annotated[float, typer.Option(help="MB of a request.")] = 32.0,
    max_pixels: Annotated[float, typer.Option(help="Megapixels of a photo.")] = 52.0,
    keep: Annotated[float, typer.Option(help="Seconds that finished jobs are kept.")] = 600.0,
    keep_identity: Annotated[float, typer.Option(help="Seconds that a person is kept by default.")] = 3600.0,
    drain: Annotated[float, typer.Option(help="Seconds to finish accepted jobs when told to stop.")] = 60.0,
    linger: Annotated[float, typer.Option(help="Seconds after that to let finished pictures be fetched.")] = 10.0,
    checker: Annotated[
        str | None, typer.Option(help="Safety checker MODULE:FUNCTION; see the documentation of the service.")
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Whether to serve the page, too.")] = True,
    device: Device = "auto",
    dtype: DType = "auto",
    memory: Memory = "plain",
    accept_license: AcceptLicense = False,
) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(f"limner serve needs {', '.join(missing)}.", "pip install 'limner[serve]'")
    from limner.encoders.tokenizer import PromptTruncated
    from limner.serve.app import create_app
    from limner.serve.engine import Engine
    from limner.serve.jobs import Limits
    from limner.serve.server import load_checker, run
    from limner.serve.settings import Settings

    known = read_tokens(tokens)
    settings = Settings(tokens=known, rate=rate, body_bytes=int(max_body * 1e6))
    limits = dataclasses.replace(
        Limits(), batch=batch, queue=queue, models=hold, keep_results=keep, keep_identity=keep_identity,
        keep_identity_at_most=max(keep_identity, Limits.keep_identity_at_most), photo_pixels=int(max_pixels * 1e6),
    )  # fmt: skip
    place = Place(device, dtype, accept_license, memory)
    for folder in (gaze_weights, text_scorer):
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"{folder} is no folder.", "Check the path.")
    judge = load_checker(checker) if checker else None
    engine = Engine(
        offers_of(model or [], place),
        limits,
        gaze_weights=gaze_weights,
        text_weights=text_scorer,
        checker=judge,
        previews=memory in ("plain", "compiled"),
    )
    warnings.simplefilter("ignore", PromptTruncated)  # callers are told; logs must not hold prompts
    engine.start()
    app = create_app(engine, settings)
    if page:
        _mount(app, engine, known)
    if not known and not _loopback(host):
        note(f"Anybody who can reach {host} can use this service; set {TOKENS} or --tokens to change that.")
    if gaze_weights is not None and "gaze" in engine.facts["lacks"]:
        note(f"No places of the eyes: {engine.facts['lacks']['gaze']}")
    name = ", ".join(offer["name"] for offer in engine.offers())
    run(
        app, engine, host=host, port=port, drain=drain, linger=linger,
        on_ready=lambda url: note(f"{name} is ready on {url} (the API: {url}/docs)."),
    )  # fmt: skip


def offers_of(names: list[str], place: Place) -> list[Offer]:
    """The models of these names or folders; of none, all registered ones that are here and fit into memory.

    Raises:
        ConfigError, WeightsUnavailable, LicenseNotAccepted: see `limner.pipelines.loading.locate`.
    """
    from limner.cli.method import METHODS
    from limner.pipelines.loading import INDEX, locate
    from limner.serve.shelf import Offer

    offers = []
    for name in names or _here(place):
        spec, folder = locate(name, accept_license=place.accept_license)
        if spec is not None:
            method, description = spec.method, spec.description
        else:
            try:
                kind = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("_class_name")
            except (OSError, ValueError, AttributeError):
                kind = None  # loading says what is wrong with it
            method, description = next((m for m, k in METHODS.items() if k == kind), ""), ""
        called = spec.name if spec else folder.resolve().name
        offers.append(Offer(called, functools.partial(painting.open_model, name, place), method, description))
    return offers


def _here(place: Place) -> list[str]:
    """Registered models whose weights are here and fit into memory, the default one first; if none is, that one."""
    from limner.pipelines.catalogue import DEFAULT
    from limner.pipelines.fitting import fits, free_memory, needed, sizes_of
    from limner.pipelines.folders import model_folder
    from limner.pipelines.loading import INDEX, choose_device, choose_dtype
    from limner.registry import models

    where, width = choose_device(place.device), choose_dtype(place.dtype, place.device).itemsize
    free = free_memory(where.type, where.index or 0)
    found = []
    for spec in sorted(models(), key=lambda spec: spec.name != DEFAULT):
        folder = model_folder(spec)
        if not (folder / INDEX).is_file():
            continue
        sizes = sizes_of(folder)
        auto = place.memory == "auto"
        if not free or (fits(where.type, free, sizes, width) if auto else needed(place.memory, sizes, width) <= free):
            found.append(spec.name)
    return found or [DEFAULT]


def read_tokens(path: Path | None) -> tuple[str, ...]:
    """Tokens of the file and of the environment.

    Raises:
        ConfigError: a file that cannot be read, or holds none.
    """
    found = [t.strip() for t in os.environ.get(TOKENS, "").split(",")]
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"Cannot read tokens from {path}: {e}") from e
        if not lines:
            raise ConfigError(f"{path} holds no token; one a line is expected.")
        found += lines
    return tuple(dict.fromkeys(t for t in found if t))


def _mount(app: Any, engine: Engine, tokens: tuple[str, ...]) -> None:
    if importlib.util.find_spec("gradio") is None:
        note("The page is left out: gradio is not installed (pip install 'limner[serve]').")
        return
    from limner.serve.page import mount_page

    mount_page(app, engine, tokens=tokens)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

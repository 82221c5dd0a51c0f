"""`limner generate`: a person and sentences in, portraits out."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli import painting
from limner.cli.method import MethodName, open_model_for
from limner.cli.order import SAVED, Order
from limner.cli.output import print_json, progress
from limner.cli.painting import (
    AcceptLicense,
    Choose,
    Detector,
    Device,
    DType,
    Faces,
    Fast,
    Json,
    Memory,
    ModelName,
    Place,
)
from limner.errors import ConfigError
from limner.pipelines.remarks import prompt_remarks, world_remarks

if TYPE_CHECKING:
    from limner.faces import FaceFinder
    from limner.pipelines.loading import Model
    from limner.types import Identity, Portrait

HELP = """Paint portraits of a person.

Who: one photo or several of the same person (--face), or somebody enrolled before (--identity). What: --prompt, which
can be given several times, or one prompt a line in --prompts-file. Every picture is a PNG that says how it was painted
and that a machine painted it; of more than one, a contact sheet is made too.

[bold]Examples[/bold]

  limner generate --face me.jpg --prompt "a portrait of a wizard in the snow"

  limner generate --face a.jpg --face b.jpg -p "a photo on a beach" -n 4 --seed 7 --out beach

  limner generate --identity me.safetensors --prompts-file ideas.txt --best-of 8 -n 2

  limner generate --person me.jpg@left --person you.jpg@right -p "a photo on a beach" --rescue auto

  limner generate --face me.jpg -p "a photo of S*" --scenes scenes.txt --gaze 0.5,0.4,0.2

  limner generate --from beach/a-photo-on-a-beach-7.png        (paints that very picture again)

A PNG holds the numbers that stand for the person, so that it can be painted again from the file alone. Whoever has them
can paint that person: --no-embed-identity leaves them out. Of instruct-pix2pix, which edits photos, they are the photo;
there only --embed-identity puts them in. Where they are too large for a PNG, they go into a file beside it.
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("generate", help=HELP)(generate)


def generate(
    face: Faces = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="What to paint; may be repeated.")] = None,
    number: Annotated[int | None, typer.Option("--number", "-n", help="Pictures per prompt; default 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first picture, the next count up; default: random.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much of the person goes in, 0 to 1; default 1.")] = None,
    negative: Annotated[str | None, typer.Option(help="What not to paint; needs --guidance above 1.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Weight of what is asked for; default: the model's.")] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help="0 to 1, tames overexposure at high guidance; default 0.")
    ] = None,
    pag: Annotated[
        float | None,
        typer.Option(
            help="Weight of perturbed-attention guidance: firmer outlines, 1.5 times as slow; default: the model's."
        ),
    ] = None,
    face_guidance: Annotated[
        float | None,
        typer.Option(help="How far the face is pulled towards the person while painting; 0 not; default: the model's."),
    ] = None,
    face_detail: Annotated[
        float | None,
        typer.Option(help="How much of every face is painted anew, larger, in the end; 0 to 1; default: the model's."),
    ] = None,
    model: ModelName = None,
    method: MethodName = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: the model's.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, dpm++, euler, euler-a, unipc, …")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="One prompt a line; # begins a comment.")] = None,
    scenes: Annotated[
        Path | None, typer.Option(help="One scene a line, as in: on a beach. Every prompt is painted in each of them.")
    ] = None,
    gaze: Annotated[
        str | None,
        typer.Option(
            help="Where the eyes go, in shares of the picture: x,y or x,y,SIZE (their distance); two eyes as "
            "x0,y0,x1,y1; box:x0,y0,x1,y1 of the face; or five landmarks."
        ),
    ] = None,
    gaze_weights: Annotated[
        Path | None, typer.Option(help="Folder of the ControlNet for that; default: the model's own.")
    ] = None,
    identity: Annotated[Path | None, typer.Option(help="Somebody that `limner enroll` saved.")] = None,
    person: Annotated[
        list[str] | None,
        typer.Option(
            "--person",
            help="FILE@REGION, repeated: one of several people, by a photo or what `limner enroll` saved, and where: "
            "x0,y0,x1,y1 from 0 to 1, left, right, left-third, …. Later people stand in front.",
        ),
    ] = None,
    choose: Choose = None,
    detector: Detector = None,
    best_of: Annotated[
        int | None, typer.Option(help="Paint so many per prompt, keep the -n that resemble the person most.")
    ] = None,
    ranker: Annotated[
        str | None, typer.Option(help="Who says so: own (the model's face encoder), or sface, auraface, …")
    ] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="A PNG of Limner's, to be painted again.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("portraits"),
    embed_identity: Annotated[
        bool | None,
        typer.Option(
            "--embed-identity/--no-embed-identity",
            help="Whether PNGs hold the person's numbers; default: unless they are the photo (instruct-pix2pix).",
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures painted at once; default 4.")] = None,
    watermark: Annotated[
        bool | None,
        typer.Option(
            "--watermark/--no-watermark", help="Put an invisible mark into the pixels; `limner inspect` finds it."
        ),
    ] = None,
    rescue: Annotated[
        str | None,
        typer.Option(
            help="Paint a small face again, larger: auto (where it gains much), always, never; default never."
        ),
    ] = None,
    rescue_strength: Annotated[
        float | None, typer.Option(help="How much of such a face is painted anew, 0 to 1; default 0.5.")
    ] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    memory: Memory = "auto",
    fast: Fast = None,
    accept_license: AcceptLicense = False,
    as_json: Json = False,
) -> None:
    sides = painting.parse_size(size)
    order = Order(
        face or [], identity, person or [], prompt or [], prompts_file, scenes, negative, number, best_of, ranker,
        seed, choose, detector, gaze_weights,
        {
            "strength": strength, "guidance_scale": guidance, "guidance_rescale": guidance_rescale,
            "pag_scale": pag, "face_guidance": face_guidance, "face_detail": face_detail, "steps": steps,
            "scheduler": scheduler, "batch": batch, "watermark": watermark, "rescue": rescue,
            "rescue_strength": rescue_strength, "gaze": gaze, **sides,
        },
    )  # fmt: skip
    talk = painting.Talk(as_json)
    place = Place(
        device, dtype, accept_license, memory, order.ranks_with_encoder, fast or "",
        batch=order.together, size=(sides["width"], sides["height"]) if sides else None,
    )  # fmt: skip
    with talk.truncations():
        if from_ is None:
            order.check(place)
            loaded = open_model_for(method, model, place, learns=order.learns)
            finder = painting.face_finder(detector, accept_license)
            report = _paint(order, loaded, finder, out, embed_identity, talk)
        else:
            order.check_again(place, method)
            report = _paint_again(order, from_, model, place, out, embed_identity, talk)
    if as_json:
        print_json({**report, "remarks": talk.remarks})
        return
    for picture in report["pictures"]:
        likeness = picture["scores"].get("likeness")
        typer.echo(picture["path"] + ("" if likeness is None else f"  likeness {likeness:.2f}"))
    typer.echo(report["summary"])


def _paint(
    order: Order, model: Model, finder: FaceFinder, out: Path, embed: bool | None, talk: painting.Talk
) -> dict[str, Any]:
    from limner.pipelines.gaze import add_gaze
    from limner.pipelines.memory import encode, encode_then_free, memory_mode
    from limner.pipelines.paint import default_dials, paint
    from limner.pipelines.ranking import keep_best

    prompts, seeds, negative = order.prompts(), order.seeds(), order.negative or ""
    dials = default_dials(model, **order.dials)
    dials.demand_heard(negative)
    if dials.gaze:
        add_gaze(model, order.gaze_weights)
    folder = painting.make_folder(out)  # before anybody is learnt, which may take a while
    talk(prompt_remarks(model, [*prompts, negative]))
    model.pipe.method.check_prompts(prompts)
    identity, faces = _who(order, model, finder, talk)
    embedded = _embedded(order, model, identity, embed, folder, talk)
    ranker = _ranker(order, model, identity, faces) if order.best_of else None
    beforehand = encode_then_free if memory_mode(model.memory).free_encoders else encode
    ready = beforehand(model.pipe, identity, prompts, negative, dials.strength)
    start = time.perf_counter()
    rows: list[list[tuple[Path, Portrait]]] = []
    batches = len(prompts) * math.ceil(len(seeds) / dials.batch)
    with _bar(batches, dials.steps, shown=not talk.as_json) as on_step:
        for prompt in prompts:
            portraits: Iterable[Portrait] = paint(
                model, identity, [prompt], seeds, dials,
                negative_prompt=negative, on_step=on_step, ready=ready, finder=finder,
            )  # fmt: skip
            if ranker is not None:
                portraits = keep_best(portraits, ranker, order.number or 1)
            rows.append([(_write(p, folder, model, embedded), p) for p in portraits])
    talk(f"{path.name}: {said}" for row in rows for path, p in row for said in painting.rescue_remarks(p))
    seconds = time.perf_counter() - start
    pictures = [painting.facts_of(path, portrait) for row in rows for path, portrait in row]
    summary = f"{len(pictures)} portrait{'s' * (len(pictures) > 1)} in {seconds:.1f} s"
    sheet = _sheet(rows, faces, folder) if len(pictures) > 1 else None
    if sheet is not None:
        summary += f"; all of them are on {sheet}"
    return {"pictures": pictures, "sheet": sheet and str(sheet), "summary": summary + "."}


def _paint_again(
    order: Order,
    source: Path,
    model_name: str | None,
    place: Place,
    out: Path,
    embed: bool | None,
    talk: painting.Talk,
) -> dict[str, Any]:
    from limner.pipelines.again import compare, recorded_model, repaint
    from limner.pipelines.gaze import add_gaze
    from limner.provenance import compact, read_provenance
    from limner.types import Identity

    record = read_provenance(source)
    if not record.intact:
        talk([f"The pixels of {source} were changed after it was painted."])
    gaze = record.portrait.settings.get("gaze")
    if order.gaze_weights is not None and not gaze:
        raise ConfigError(f"--gaze-weights was given, but {source} was painted without a place for the eyes.")
    model = painting.open_model(model_name or recorded_model(record, source), painting.place_of(record, place))
    folder = painting.make_folder(out)
    if gaze:
        add_gaze(model, order.gaze_weights)
    identity = compact(Identity.load(order.identity)) if order.identity is not None else record.identity
    with _bar(1, record.portrait.settings.get("steps", 1), shown=not talk.as_json) as on_step:
        portrait = repaint(model, record, identity, on_step)
    embed = not model.pipe.method.keeps_photo if embed is None else embed
    path = _write(portrait, folder, model, identity if embed and record.identity is not None else None)
    same = compare(record, portrait)
    return {"pictures": [painting.facts_of(path, portrait)], "sheet": None, **same}


def _who(order: Order, model: Model, finder: FaceFinder, talk: painting.Talk) -> tuple[Identity, list[Any]]:
    """The identity to paint, rounded as it will be embedded, and the faces it came from (none for a saved one)."""
    from limner.provenance import compact
    from limner.types import Identity

    faces: list[Any]
    if order.identity is not None:
        identity, faces = compact(Identity.load(order.identity)), []
    elif order.person:
        identity, faces = _group(order, model, finder, talk)
    else:
        identity, references = painting.enroll_photos(model, order.photos, order.choose, finder, bar=not talk.as_json)
        talk(references.remarks)
        faces = list(references.faces)
    talk(world_remarks(model, identity))
    return identity, faces


def _group(order: Order, model: Model, finder: FaceFinder, talk: painting.Talk) -> tuple[Identity, list[Any]]:
    """Everybody of --person as one identity, and the faces they came from. A photo must show one face, unless --choose
    says which to take."""
    from limner.pipelines.regions import group
    from limner.provenance import compact
    from limner.types import Identity

    identities: list[Identity] = []
    faces: list[Any] = []
    for path, _ in order.people():
        if path.suffix == SAVED:
            identities.append(compact(Identity.load(path)))
            continue
        identity, references = painting.enroll_photos(
            model, [path], order.choose or "only", finder, bar=not talk.as_json
        )
        talk(references.remarks)
        identities.append(identity)
        faces += references.faces
    return group(identities, [box for _, box in order.people()]), faces


def _ranker(order: Order, model: Model, identity: Identity, faces: list[Any]) -> Any:
    from limner.faces import OnnxEmbedder, fuse
    from limner.pipelines.ranking import Likeness
    from limner.pipelines.recogniser import own_embedding
    from limner.pipelines.regions import is_group

    if is_group(identity):
        raise ConfigError("--best-of compares with one person; it cannot choose among pictures of several.")
    if order.ranker in (None, "own"):
        own: Any = model.pipe.embedder
        if own is None:
            raise ConfigError(
                f"{model.name} has no recogniser of its own, by which --best-of could choose.",
                "Name another judge with --ranker.",
            )
        return Likeness(own, own_embedding(identity))
    embedder = OnnxEmbedder.load(str(order.ranker))
    return Likeness(embedder, fuse(faces, embedder).embedding)


def _embedded(
    order: Order, model: Model, identity: Identity, asked: bool | None, folder: Path, talk: painting.Talk
) -> Identity | None:
    """What every PNG holds of the person; it is said why, where that is nothing and nobody asked for it. What is too
    large for a PNG is written into the folder, unless it came from a file."""
    from limner.provenance import MAX_IDENTITY_BYTES

    method = model.pipe.method
    if asked is None and method.keeps_photo:
        needed = order.identity or "what `limner enroll` makes of it"
        talk(
            [
                f"An identity of {method.name} is the photo itself, so the pictures do not hold it (--embed-identity "
                f"puts it in); painting them again needs {needed}."
            ]
        )
        return None
    if asked is False:
        return None
    size = sum(t.numel() * t.element_size() for t in identity.tensors.values())
    if size < MAX_IDENTITY_BYTES - 4096:  # what the names and shapes may take
        return identity
    path = order.identity
    if path is None:
        path = free_path(folder, "identity", SAVED)
        identity.save(path)
    talk([f"The identity ({size / 1e6:.1f} MB) is too large for a PNG; painting again needs --identity {path}."])
    return None


def _write(portrait: Portrait, folder: Path, model: Model, identity: Identity | None) -> Path:
    """Writes the portrait under a name of its own; nothing is overwritten."""
    from limner.provenance import write_portrait

    words = re.sub(r"[^a-z0-9]+", "-", portrait.prompt.lower()).strip("-")[:48].strip("-") or "portrait"
    path = free_path(folder, f"{words}-{portrait.seed}")
    write_portrait(portrait, path, identity, model.license)
    return path


def free_path(folder: Path, stem: str, suffix: str = ".png") -> Path:
    """`stem.png`, or `stem-2.png` and so on where that is taken."""
    for i in itertools.count(1):
        path = folder / (f"{stem}{suffix}" if i == 1 else f"{stem}-{i}{suffix}")
        if not path.exists():
            return path
    raise AssertionError("unreachable")


def _sheet(rows: list[list[tuple[Path, Portrait]]], faces: list[Any], folder: Path) -> Path:
    """Writes the contact sheet."""
    from limner.pipelines.sheet import portrait_sheet
    from limner.types import write_atomic

    path = free_path(folder, "sheet")
    write_atomic(path, portrait_sheet([[p for _, p in row] for row in rows], faces))
    return path


@contextlib.contextmanager
def _bar(batches: int, steps: int, *, shown: bool) -> Iterator[Any]:
    """Progress over all denoising steps; yields what `paint` calls after each."""
    with progress("Painting", batches * steps, "steps", shown=shown) as advance:
        yield lambda _, of: advance(steps / of)

"""`limner generate`: a person and sentences in, portraits out."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli import painting
from limner.cli.method import MethodName, open_model_for
from limner.cli.output import print_json, progress
from limner.cli.painting import AcceptLicense, Choose, Device, DType, Faces, Fast, Json, Memory, ModelName, Place
from limner.errors import ConfigError, PromptError
from limner.pipelines.remarks import prompt_remarks, world_remarks

if TYPE_CHECKING:
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

A PNG holds the numbers that stand for the person, never the photo, so that it can be painted again from the file alone.
Whoever has them can paint that person: --no-embed-identity leaves them out.
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
    negative: Annotated[str | None, typer.Option(help="What not to paint.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Weight of what is asked for; default: the model's.")] = None,
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
    best_of: Annotated[
        int | None, typer.Option(help="Paint so many per prompt, keep the -n that resemble the person most.")
    ] = None,
    ranker: Annotated[
        str | None, typer.Option(help="Who says so: own (the model's face encoder), or sface, auraface, …")
    ] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="A PNG of Limner's, to be painted again.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("portraits"),
    embed_identity: Annotated[
        bool, typer.Option("--embed-identity/--no-embed-identity", help="Whether PNGs hold the person's numbers.")
    ] = True,
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
    order = Order(
        face or [], identity, person or [], prompt or [], prompts_file, scenes, negative, number, best_of, ranker,
        seed, choose,
        {
            "strength": strength, "guidance_scale": guidance, "steps": steps, "scheduler": scheduler, "batch": batch,
            "watermark": watermark, "rescue": rescue, "rescue_strength": rescue_strength, "gaze": gaze,
            **painting.parse_size(size),
        },
    )  # fmt: skip
    talk = painting.Talk(as_json)
    place = Place(device, dtype, accept_license, memory, order.ranks_with_encoder, fast or "")
    with talk.truncations():
        if from_ is None:
            order.check(place)
            report = _paint(order, open_model_for(method, model, place), gaze_weights, out, embed_identity, talk)
        else:
            report = _paint_again(order, from_, model, gaze_weights, place, out, embed_identity, talk)
    if as_json:
        print_json({**report, "remarks": talk.remarks})
        return
    for picture in report["pictures"]:
        likeness = picture["scores"].get("likeness")
        typer.echo(picture["path"] + ("" if likeness is None else f"  likeness {likeness:.2f}"))
    typer.echo(report["summary"])


@dataclass(frozen=True)
class Order:
    """What is to be painted: the options as they were given, None where they were not."""

    photos: list[Path]
    identity: Path | None
    person: list[str]
    prompt: list[str]
    prompts_file: Path | None
    scenes: Path | None
    negative: str | None
    number: int | None
    best_of: int | None
    ranker: str | None
    seed: int | None
    choose: str | None
    dials: dict[str, Any]

    def check(self, place: Place) -> None:
        """Raises what can be raised before a model is loaded: ConfigError, PromptError, UnreadableImage."""
        from limner.pipelines.few_step import few_step
        from limner.pipelines.gaze import parse_gaze
        from limner.pipelines.memory import memory_mode

        if place.fast:
            few_step(place.fast)
        if place.memory != "auto":
            memory_mode(place.memory)
        ways = {"--face": self.photos, "--identity": self.identity, "--person": self.person}
        given = [name for name, value in ways.items() if value]
        if len(given) != 1:
            said = " and ".join(given) or "none of them"
            raise ConfigError(f"--face, --identity or --person says who is painted; got {said}.", "--face me.jpg …")
        number = self.number or 1
        if not 1 <= number <= 1000 or self.number == 0:
            raise ConfigError(f"-n is {self.number}; allowed: 1 to 1000.")
        if self.best_of is not None and not number <= self.best_of <= 1000:
            raise ConfigError(f"--best-of is {self.best_of}; allowed: {number} (as many as -n) to 1000.")
        if self.seed is not None and not 0 <= self.seed < 2**62:
            raise ConfigError(f"--seed is {self.seed}; allowed: 0 to 2^62.")
        if self.ranker is not None and self.best_of is None:
            raise ConfigError("--ranker says who chooses, but nothing is chosen without --best-of.")
        if self.ranker not in (None, "own") and not self.photos:
            raise ConfigError(f"--ranker {self.ranker} needs photos; give them with --face.")
        if place.memory != "auto" and self.ranks_with_encoder and memory_mode(place.memory).free_encoders:
            raise ConfigError(
                f"--memory {place.memory} frees the encoder, by whose face encoder --best-of chooses.",
                "Give another judge with --ranker, or another mode.",
            )
        self.prompts()
        if self.dials.get("gaze"):
            parse_gaze(self.dials["gaze"])
            if self.person:
                raise ConfigError("--gaze places one pair of eyes; --person places people. Both were given.")
        people = [path for path, _ in self.people()]
        painting.demand_files([*self.photos, *([self.identity] if self.identity else []), *people])

    @property
    def ranks_with_encoder(self) -> bool:
        """Whether the model's own face encoder is still needed when the pictures are painted."""
        return self.best_of is not None and self.ranker in (None, "own")

    def people(self) -> list[tuple[Path, Any]]:
        """File and box of every --person; ConfigError for what cannot be read so."""
        from limner.pipelines.regions import parse_box

        found = []
        for text in self.person:
            path, at, region = text.rpartition("@")
            if not at or not path:
                raise ConfigError(f"--person is {text!r}; FILE@REGION is expected, as in me.jpg@left.")
            found.append((Path(path), parse_box(region)))
        return found

    def prompts(self) -> list[str]:
        """All prompts, those of the file last.

        Raises:
            PromptError: none at all.
            ConfigError: a file that cannot be read.
        """
        prompts = [p.strip() for p in self.prompt]
        prompts = [p for p in prompts if p and not p.startswith("#")] + painting.read_lines(self.prompts_file)
        if not prompts:
            raise PromptError(
                "There is nothing to paint: no prompt was given.", 'Say it: --prompt "a wizard in the snow".'
            )
        if self.scenes is None:
            return prompts
        scenes = painting.read_lines(self.scenes)
        if not scenes:
            raise PromptError(f"{self.scenes} holds no scene.", "Write one a line, as in: on a beach.")
        return [f"{prompt}, {scene}" for prompt in prompts for scene in scenes]

    def seeds(self) -> list[int]:
        """Of every picture painted for a prompt, kept or not."""
        first = secrets.randbelow(2**31) if self.seed is None else self.seed
        return list(range(first, first + (self.best_of or self.number or 1)))


def _paint(
    order: Order, model: Model, gaze_weights: Path | None, out: Path, embed: bool, talk: painting.Talk
) -> dict[str, Any]:
    from limner.pipelines.gaze import add_gaze
    from limner.pipelines.memory import encode_then_free, memory_mode
    from limner.pipelines.paint import default_dials, paint
    from limner.pipelines.ranking import keep_best

    prompts, seeds, negative = order.prompts(), order.seeds(), order.negative or ""
    dials = default_dials(model, **order.dials)
    if dials.gaze:
        add_gaze(model, gaze_weights)
    talk(prompt_remarks(model, [*prompts, negative]))
    identity, faces = _who(order, model, talk)
    ranker = _ranker(order, model, identity, faces) if order.best_of else None
    embed = embed and _fits(identity, talk)
    ready = None
    if memory_mode(model.memory).free_encoders:
        ready = encode_then_free(model.pipe, identity, prompts, negative, dials.strength)
    folder = painting.make_folder(out)
    start = time.perf_counter()
    rows: list[list[tuple[Path, Portrait]]] = []
    with _bar(len(prompts) * math.ceil(len(seeds) / dials.batch), dials.steps) as on_step:
        for prompt in prompts:
            portraits: Iterable[Portrait] = paint(
                model, identity, [prompt], seeds, dials, negative_prompt=negative, on_step=on_step, ready=ready
            )
            if ranker is not None:
                portraits = keep_best(portraits, ranker, order.number or 1)
            rows.append([(_write(p, folder, model, identity if embed else None), p) for p in portraits])
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
    gaze_weights: Path | None,
    place: Place,
    out: Path,
    embed: bool,
    talk: painting.Talk,
) -> dict[str, Any]:
    from limner.pipelines.again import compare, recorded_model, repaint
    from limner.pipelines.gaze import add_gaze
    from limner.provenance import compact, read_provenance
    from limner.types import Identity

    if place.fast:
        raise ConfigError("--from paints a picture exactly as it was; another fast cannot be given with it.")
    fields = {f.name: getattr(order, f.name) for f in dataclasses.fields(order) if f.name not in ("identity", "dials")}
    given = [name for name, value in {**fields, **order.dials}.items() if value not in (None, [])]
    if given:
        raise ConfigError(
            f"--from paints a picture exactly as it was; another {given[0].replace('_', '-')} cannot be given with it."
        )
    record = read_provenance(source)
    if not record.intact:
        talk([f"The pixels of {source} were changed after it was painted."])
    model = painting.open_model(model_name or recorded_model(record, source), painting.place_of(record, place))
    if record.portrait.settings.get("gaze"):
        add_gaze(model, gaze_weights)
    identity = compact(Identity.load(order.identity)) if order.identity is not None else record.identity
    with _bar(1, record.portrait.settings.get("steps", 1)) as on_step:
        portrait = repaint(model, record, identity, on_step)
    kept = identity if embed and record.identity is not None else None
    path = _write(portrait, painting.make_folder(out), model, kept)
    same = compare(record, portrait)
    return {"pictures": [painting.facts_of(path, portrait)], "sheet": None, **same}


def _who(order: Order, model: Model, talk: painting.Talk) -> tuple[Identity, list[Any]]:
    """The identity to paint, rounded as it will be embedded, and the faces it came from (none for a saved one)."""
    from limner.provenance import compact
    from limner.types import Identity

    faces: list[Any]
    if order.identity is not None:
        identity, faces = compact(Identity.load(order.identity)), []
    elif order.person:
        identity, faces = _group(order, model, talk)
    else:
        identity, references = painting.enroll_photos(model, order.photos, order.choose)
        talk(references.remarks)
        faces = list(references.faces)
    talk(world_remarks(model, identity))
    return identity, faces


def _group(order: Order, model: Model, talk: painting.Talk) -> tuple[Identity, list[Any]]:
    """Everybody of --person as one identity, and the faces they came from. A photo must show one face, unless --choose
    says which to take."""
    from limner.pipelines.regions import group
    from limner.provenance import compact
    from limner.types import Identity

    identities: list[Identity] = []
    faces: list[Any] = []
    for path, _ in order.people():
        if path.suffix == ".safetensors":
            identities.append(compact(Identity.load(path)))
            continue
        identity, references = painting.enroll_photos(model, [path], order.choose or "only")
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


def _fits(identity: Identity, talk: painting.Talk) -> bool:
    from limner.provenance import MAX_IDENTITY_BYTES

    size = sum(t.numel() * t.element_size() for t in identity.tensors.values())
    if size < MAX_IDENTITY_BYTES - 4096:  # what the names and shapes may take
        return True
    talk([f"The identity ({size / 1e6:.1f} MB) is too large to be embedded; painting again will need it as a file."])
    return False


def _write(portrait: Portrait, folder: Path, model: Model, identity: Identity | None) -> Path:
    """Writes the portrait under a name of its own; nothing is overwritten."""
    from limner.provenance import write_portrait

    words = re.sub(r"[^a-z0-9]+", "-", portrait.prompt.lower()).strip("-")[:48].strip("-") or "portrait"
    path = free_path(folder, f"{words}-{portrait.seed}")
    write_portrait(portrait, path, identity, model.license)
    return path


def free_path(folder: Path, stem: str) -> Path:
    """`stem.png`, or `stem-2.png` and so on where that is taken."""
    for i in itertools.count(1):
        path = folder / (f"{stem}.png" if i == 1 else f"{stem}-{i}.png")
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
def _bar(batches: int, steps: int) -> Iterator[Any]:
    """Progress over all denoising steps; yields what `paint` calls after each."""
    with progress("Painting", batches * steps, "steps") as advance:
        yield lambda _, of: advance(steps / of)

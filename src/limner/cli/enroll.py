"""`limner enroll`: photos of a person → a small file to paint that person from, again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from limner.cli.method import MethodName, open_model_for
from limner.cli.output import print_json
from limner.cli.painting import AcceptLicense, Choose, Detector, Device, DType, Faces, Json, Memory, ModelName, Place

HELP = """Enrol a person once, and paint them often.

The file holds what the model keeps of the face: numbers, no picture (but of instruct-pix2pix, which edits photos, the
photo itself). It fits the model that made it. Whoever has it can paint that person, so treat it like a photo.

[bold]Examples[/bold]

  limner enroll --face me.jpg --out me.safetensors

  limner enroll --face a.jpg --face b.jpg --face group.jpg --choose like:a.jpg --out anna.safetensors

  limner generate --identity me.safetensors --prompt "as a wizard in the snow"
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("enroll", help=HELP)(enroll)


def enroll(
    face: Faces = None,
    out: Annotated[Path, typer.Option(help="File to write, as in me.safetensors.")] = Path("identity.safetensors"),
    model: ModelName = None,
    method: MethodName = None,
    choose: Choose = None,
    detector: Detector = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="How a method that tunes learns the person: a YAML file such as those in recipes/rivals."),
    ] = None,
    teacher: Annotated[
        str,
        typer.Option(help="For a method that tunes: the base that the model was distilled from, to learn over."),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    device: Device = "auto",
    dtype: DType = "auto",
    memory: Memory = "auto",
    accept_license: AcceptLicense = False,
    as_json: Json = False,
) -> None:
    import time

    from limner.cli.method import set_tuning
    from limner.cli.painting import Talk, demand_detector, demand_files, enroll_photos, face_finder, make_folder
    from limner.errors import ConfigError, OutputConflict
    from limner.pipelines.memory import memory_mode
    from limner.pipelines.remarks import world_remarks

    if not face:
        raise ConfigError("--face is missing.", "Give one photo of the person, or several: --face a.jpg --face b.jpg.")
    if out.exists() and not (force and out.is_file()):
        raise OutputConflict(f"{out} is there already.", "Choose another --out, or replace it with --force.")
    demand_files(face)
    demand_detector(detector)
    if memory != "auto":
        memory_mode(memory)
    place = Place(device, dtype, accept_license, memory, keep_encoder=True)
    loaded = open_model_for(method, model, place, learns=True)
    if recipe is not None or teacher:
        set_tuning(loaded, recipe, teacher)
    make_folder(out.parent)  # before anybody is learnt, which may take a while
    start = time.perf_counter()
    finder = face_finder(detector, accept_license)
    identity, references = enroll_photos(loaded, face, choose, finder, bar=not as_json)
    seconds = time.perf_counter() - start
    talk = Talk(as_json)
    talk([*references.remarks, *world_remarks(loaded, identity)])
    identity.save(out)
    facts: dict[str, Any] = {
        "out": str(out),
        "model": loaded.name,
        "method": identity.method,
        "digest": identity.digest(),
        "bytes": out.stat().st_size,
        "photos": len(face),
        "used": len(references.faces),
        "seconds": round(seconds, 3),
        "remarks": talk.remarks,
    }
    if as_json:
        print_json(facts)
        return
    typer.echo(
        f"{out}: {facts['used']} of {len(face)} photos enrolled for {loaded.name} in {seconds:.2f} s "
        f"({facts['bytes'] / 1000:.0f} kB, identity {facts['digest'][:12]})."
    )

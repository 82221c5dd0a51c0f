"""`limner data faces` and `limner data edits`: people whom a base knows by name, and their edits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.output import note, print_json, progress
from limner.cli.painting import read_lines

if TYPE_CHECKING:
    from limner.data.self_augment import Brush
    from limner.data.shards import Pool

Base = Annotated[Path, typer.Option(help="Folder of the base that paints; of `limner train`, or in diffusers' layout.")]
Out = Annotated[Path, typer.Option(help="Folder to write: new, empty, or with an unfinished build of the same.")]
Steps = Annotated[int, typer.Option(help="Denoising steps.")]
Guidance = Annotated[float, typer.Option(help="Weight of what is asked for.")]
Size = Annotated[int, typer.Option(help="Side of the pictures in pixels; 0 is the base's own.")]
Seed = Annotated[int, typer.Option(help="Another one makes another set.")]
Detector = Annotated[str, typer.Option(help="Finds the faces, with landmarks: yunet, ….")]
DType = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ….")]
Pag = Annotated[float, typer.Option("--pag", help="Weight of perturbed-attention guidance: firmer outlines. 0: none.")]
Scheduler = Annotated[str, typer.Option(help="Sampler: ddim, euler-a, dpm++, ….")]
Batch = Annotated[int, typer.Option(help="Pictures painted at once. Part of the build.")]
Threads = Annotated[int, typer.Option(help="CPU threads of one painter; 0 is one a core. Part of the build.")]
Ray = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Paint on a Ray cluster: local, auto or HOST:PORT.")
]
Gpus = Annotated[float, typer.Option("--ray-gpus", help="GPUs that one painter takes on the cluster; parts allowed.")]
Json = Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")]


def faces(
    names: Annotated[Path, typer.Argument(help="What `limner data names` wrote.")],
    base: Base,
    out: Out,
    number: Annotated[int, typer.Option("--number", "-n", help="Pictures painted of each person.")] = 4,
    min_side: Annotated[int, typer.Option(help="Shortest side in pixels of a face that is kept.")] = 128,
    limit: Annotated[int | None, typer.Option(help="Only so many people, the first of the list.")] = None,
    prompt: Annotated[str | None, typer.Option(help="With {name}; default: the paper's.")] = None,
    steps: Steps = 30,
    guidance: Guidance = 7.5,
    scheduler: Scheduler = "ddim",
    pag: Pag = 0.0,
    batch: Batch = 4,
    size: Size = 0,
    seed: Seed = 0,
    detector: Detector = "auto",
    dtype: DType = "auto",
    device: Device = "auto",
    threads: Threads = 0,
    ray: Ray = None,
    ray_gpus: Gpus = 0,
    as_json: Json = False,
) -> None:
    """Paint the faces of people whom a base knows by name: the second step of DreamIdentity's self-augmented data.

    A face is found, and kept where it is large enough; the rest is listed in rejected.jsonl. Killed, the same command
    goes on where it stopped and makes the same set, here or on a Ray cluster.
    """
    _quiet()
    from limner.data.self_augment import FacesPlan, read_people
    from limner.pipelines.self_augment import build_faces

    people = read_people(names, limit)
    plan = FacesPlan(**({"prompt": prompt} if prompt else {}), number=number, min_side=min_side)
    brush = _brush(steps, guidance, size, seed, detector, dtype, device, threads, scheduler, batch, pag)
    pool = _pool(ray, brush, ray_gpus)
    with progress("Painting faces", len(people), "people", shown=not as_json) as advance:
        manifest = build_faces(people, base, out, plan, brush, pool, advance)
    if as_json:
        print_json({"out": str(out), **manifest})
        return
    for why, count in manifest["rejected"].items():
        typer.echo(f"{count:6,} rejected: {why}")
    note(f"{out} holds {manifest['kept']:,} faces of {manifest['people']:,} of {len(people):,} people.")


def edits(
    faces: Annotated[Path, typer.Argument(help="What `limner data faces` wrote.")],
    base: Base,
    recogniser: Annotated[Path, typer.Option(help="Scores likeness; not the benchmark's own.")],
    clip: Annotated[Path, typer.Option(help="Folder of a CLIP that scores the fit; not the benchmark's own.")],
    out: Out,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="An edit, with S*; repeated; default: the paper's nine.")
    ] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="More of them, one a line; # begins a comment.")] = None,
    number: Annotated[int, typer.Option("--number", "-n", help="Pictures of each person for each prompt.")] = 4,
    steps: Steps = 30,
    guidance: Guidance = 7.5,
    scheduler: Scheduler = "ddim",
    pag: Pag = 0.0,
    batch: Batch = 4,
    size: Size = 0,
    seed: Seed = 0,
    detector: Detector = "auto",
    dtype: DType = "auto",
    device: Device = "auto",
    threads: Threads = 0,
    ray: Ray = None,
    ray_gpus: Gpus = 0,
    as_json: Json = False,
) -> None:
    """Paint edits of those people, and score them: the third step of DreamIdentity's self-augmented data.

    For every prompt the name stands in for S*. Likeness is the cosine to the person's faces, fit that of a CLIP.
    Killed, the same command goes on where it stopped and makes the same set, here or on a Ray cluster.
    """
    _quiet()
    from limner.data.self_augment import EditsPlan, read_faces
    from limner.pipelines.self_augment import build_edits

    prompts = [*(prompt or []), *read_lines(prompts_file)]
    plan = EditsPlan(**({"prompts": tuple(prompts)} if prompts else {}), number=number)
    brush = _brush(steps, guidance, size, seed, detector, dtype, device, threads, scheduler, batch, pag)
    people = len(read_faces(faces))
    pool = _pool(ray, brush, ray_gpus)
    with progress("Painting edits", people, "people", shown=not as_json) as advance:
        manifest = build_edits(faces, base, recogniser, clip, out, plan, brush, pool, advance)
    if as_json:
        print_json({"out": str(out), **manifest})
    else:
        note(f"{out} holds {manifest['samples']:,} pictures of {people:,} people; now: limner data clean {out} --out …")


def _quiet() -> None:
    """Without the chatter of the libraries below; before they are imported."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _brush(
    steps: int,
    guidance: float,
    size: int,
    seed: int,
    detector: str,
    dtype: str,
    device: str,
    threads: int,
    scheduler: str,
    batch: int,
    pag: float,
) -> Brush:
    import os

    from limner.data.self_augment import Brush

    cores = os.cpu_count() or 1
    return Brush(steps, guidance, size, seed, detector, dtype, device, threads or cores, scheduler, batch)


def _pool(address: str | None, brush: Brush, gpus: float) -> Pool | None:
    if address is None:
        return None
    from limner.data.ray_pool import RayPool

    return RayPool(address, cpus=brush.threads, gpus=gpus)

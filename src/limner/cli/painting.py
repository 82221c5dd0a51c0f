"""What `generate` and `enroll` share: their options, quiet loading, and what is said to the person at the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli.output import note, progress
from limner.errors import ConfigError, ImageError, UnreadableImage

if TYPE_CHECKING:
    from limner.faces import FaceFinder
    from limner.pipelines.loading import Model
    from limner.pipelines.people import References
    from limner.provenance import Provenance
    from limner.types import Identity, Portrait

Faces = Annotated[
    list[Path] | None, typer.Option("--face", "-f", help="Photo of the person; repeat it for more photos of them.")
]
Choose = Annotated[
    str | None,
    typer.Option(help="Which face to take where a photo shows several: largest, center, only, 0, 1, X,Y, like:PHOTO."),
]
ModelName = Annotated[
    str | None, typer.Option("--model", "-m", help="A name that `limner models` lists, or a trained model's folder.")
]
Detector = Annotated[
    str | None, typer.Option(help="Who finds faces: auto, yunet, mini, cascade or insightface; default: auto.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
Memory = Annotated[
    str,
    typer.Option(
        help="auto (what suits model and device; see `limner doctor`), plain, freed, sliced, offload, sequential, fp8, "
        "int8, nf4, compiled."
    ),
]
Fast = Annotated[str | None, typer.Option(help="Paint in 4 steps with a published LoRA for SDXL: lcm or lightning.")]
AcceptLicense = Annotated[
    bool, typer.Option("--accept-license", help="Accept weights whose licence forbids commercial use.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


class Talk:
    """What is said to the user besides the result: at once on a terminal, in the document for a program."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.remarks: list[str] = []

    def __call__(self, remarks: Iterable[str]) -> None:
        """Says every remark that was not said before."""
        for remark in remarks:
            if remark not in self.remarks:
                self.remarks.append(remark)
                if not self.as_json:
                    note(remark)

    @contextlib.contextmanager
    def truncations(self) -> Iterator[None]:
        """Turns the encoder's warnings of prompts that were cut into remarks."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        self(str(w.message) for w in caught if type(w.message).__name__ == "PromptTruncated")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and how the model runs; the fields are arguments of `limner.pipelines.loading.load_model`."""

    device: str = "auto"
    dtype: str = "auto"
    accept_license: bool = False
    memory: str = "auto"
    keep_encoder: bool = False
    fast: str = ""
    method: str = ""
    batch: int = 1
    size: tuple[int, int] | None = None


def open_model(name: str | None, place: Place) -> Model:
    """The model, loaded without the chatter of the libraries below."""
    from limner.pipelines.catalogue import DEFAULT
    from limner.pipelines.loading import load_model, locate

    model = name or DEFAULT
    locate(model, accept_license=place.accept_license, method=place.method)  # says quickly if there is nothing to load
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from diffusers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return load_model(model, **dataclasses.asdict(place))


def face_finder(detector: str | None, accept_license: bool) -> FaceFinder:
    """What finds faces; it loads nothing before the first picture comes."""
    from limner.faces import FaceFinder

    return FaceFinder(detector or "auto", accept_license=accept_license)


def demand_detector(name: str | None) -> None:
    """ConfigError for a face detector that does not exist."""
    from limner.faces.detect import DETECTORS

    if name is not None and name not in DETECTORS:
        raise ConfigError(f"--detector is {name!r}; allowed: {', '.join(DETECTORS)}.")


def enroll_photos(
    model: Model, photos: Sequence[Path], choose: str | None, finder: FaceFinder, *, bar: bool = True
) -> tuple[Identity, References]:
    """The person in the photos, rounded as provenance keeps it, and the faces that were used, with remarks.

    Whether the photos come from outside the model's world is written into the identity, so that it can be said again
    when that identity is painted from.

    Args:
        bar: whether a method that tunes, which takes a while, shows its progress.
    """
    from limner.pipelines.people import gather_references
    from limner.provenance import compact

    if bar and hasattr(model.pipe, "report"):
        model.pipe.report = progress
    references = gather_references(photos, choose or "largest", finder, model.pipe.embedder)
    identity = compact(model.pipe.method.enroll(references.faces))
    outside = bool(model.world) and any(_world_of(path) != model.world for path in photos)
    return dataclasses.replace(identity, info={**identity.info, "outside": outside}), references


def demand_files(paths: Iterable[Path]) -> None:
    """UnreadableImage for the first that is no file: said before a model is loaded, which takes a while."""
    for path in paths:
        if not path.is_file():
            raise UnreadableImage(f"{path} is no file.", "Check the path.")


def make_folder(path: Path) -> Path:
    """The folder, made if need be; StorageError if that fails, or nothing can be written into it."""
    from limner.errors import StorageError

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StorageError(f"Cannot make the folder {path}: {e.strerror or e}.", "Choose another --out.") from e
    if not os.access(path, os.W_OK):
        raise StorageError(f"Nothing can be written into the folder {path}.", "Choose another --out.")
    return path


def read_lines(path: Path | None) -> list[str]:
    """Lines of a file that say something; # begins a comment; none without a file. ConfigError if it cannot be read."""
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"Cannot read the lines of {path}: {e}.", "A text file in UTF-8 is expected.") from e
    return [line for line in lines if line and not line.startswith("#")]


def parse_size(text: str | None) -> dict[str, int]:
    """`640x960` or `128` → width and height; None keeps the model's own."""
    if text is None:
        return {}
    numbers = text.lower().replace("×", "x").split("x")
    if len(numbers) not in (1, 2) or not all(n.strip().isdecimal() for n in numbers):
        raise ConfigError(f"--size is {text!r}; WIDTHxHEIGHT in pixels is expected, as in 1024x1024.")
    return {"width": int(numbers[0]), "height": int(numbers[-1])}


def _world_of(path: Path) -> str:
    from limner.provenance import picture_world

    try:
        return picture_world(path)
    except ImageError:
        return ""


def place_of(record: Provenance, place: Place) -> Place:
    """Where and how a recorded picture was painted, as far as that is here and nothing else was asked for."""
    import torch

    from limner.pipelines.few_step import FEW_STEP
    from limner.pipelines.loading import choose_device
    from limner.pipelines.memory import modes_for

    device, dtype, memory, fast = (record.portrait.settings.get(k) for k in ("device", "dtype", "memory", "fast"))
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    chosen = str(device) if place.device == "auto" and here.get(str(device)) else place.device
    known = memory in modes_for(choose_device(chosen))
    return dataclasses.replace(
        place,
        device=chosen,
        memory=str(memory) if place.memory == "auto" and known else place.memory,
        fast=str(fast) if fast in FEW_STEP else "",
        dtype=str(dtype) if place.dtype == "auto" and dtype else place.dtype,
        method=str(record.portrait.settings.get("method", "")),
    )


def rescue_remarks(portrait: Portrait) -> list[str]:
    """What was done about small faces, where that was asked for."""
    return list(portrait.settings.get("rescued", {}).get("said", []))


def facts_of(path: Path, portrait: Portrait) -> dict[str, Any]:
    """What programs are told about a written portrait."""
    keys = ("seed", "prompt", "negative_prompt", "model", "identity", "settings", "scores", "timings")
    return {"path": str(path), **{k: getattr(portrait, k) for k in keys}}

"""The people of a benchmark: reference photos, aligned faces, and real pictures of them for the bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from limner.errors import ConfigError, FaceError
from limner.evaluation.recipe import PeopleSpec
from limner.faces import DetectedFace, FaceFinder, align_face
from limner.types import Face
from limner.world.dataset import WorldDataset
from limner.world.identity import Sitter
from limner.world.labels import labels
from limner.world.prompts import view_from_prompt
from limner.world.render import Picture, render
from limner.world.sampling import sample_view
from limner.world.seeds import derive
from limner.world.splits import sitter_of

REFERENCE_YAW = 45.0
_TRIES = 64


@dataclass(frozen=True)
class Person:
    """Somebody to be painted.

    Attributes:
        key: names them in files and tables.
        photos: reference photos, (H, W, 3) uint8 RGB.
        faces: aligned faces in them; empty if none was found.
        facts: what they are like, for breakdowns (world): sex, age, skin, glasses.
        sitter: of the world, or None.
        others: further photos of them (folder).
    """

    key: str
    photos: tuple[np.ndarray, ...]
    faces: tuple[Face, ...]
    facts: dict[str, str] = field(default_factory=dict)
    sitter: Sitter | None = None
    others: tuple[np.ndarray, ...] = ()


def gather(spec: PeopleSpec, finder: FaceFinder) -> list[Person]:
    """`spec.gallery` people, those who are painted first.

    Raises:
        ConfigError: not so many people, or a folder without enough photos of them.
    """
    if spec.kind == "folder":
        return _from_folder(spec, finder)
    return [_sitter(spec, sitter_of(spec.split, k), finder) for k in range(spec.gallery)]


def gather_slice(spec: PeopleSpec, name: str, count: int, finder: FaceFinder) -> list[Person]:
    """People whose reference photos are hard in the way that the slice says.

    Raises:
        ConfigError: the slice has not so many people.
    """
    views = WorldDataset(
        identities=count, views=spec.references, seed=spec.seed, size=spec.size, split=spec.split, slice=name
    )
    found = []
    for p in range(count):
        pictures = [views.picture(p * spec.references + k) for k in range(spec.references)]
        found.append(_person(spec, views.sitter(p), pictures, finder))
    return found


def real_picture(person: Person, prompt: str, seed: int, size: int) -> np.ndarray:
    """Another picture of the person that shows what the prompt says: rendered, or one of their further photos.

    Raises:
        PromptError: no picture of the world can fulfil the prompt.
        ConfigError: there is no further photo.
    """
    if person.sitter is not None:
        return render(person.sitter, view_from_prompt(prompt, person.sitter, seed), size).image
    if not person.others:
        raise ConfigError(f"There is no further photo of {person.key}.", "Give two photos or more of everybody.")
    return person.others[seed % len(person.others)]


def find_face(finder: FaceFinder, image: np.ndarray) -> Face | None:
    """The largest face of a picture, or None."""
    try:
        return finder.face(image)
    except FaceError:
        return None


def _sitter(spec: PeopleSpec, sitter: Sitter, finder: FaceFinder) -> Person:
    pictures = []
    for k in range(spec.references):
        for attempt in range(_TRIES):
            seed = derive("reference", spec.seed, sitter.seed, k, attempt)
            view = sample_view(sitter, seed, "any", style="photo", headwear="none")
            if abs(view.yaw) <= REFERENCE_YAW and view.eyewear != "sunglasses":
                break
        pictures.append(render(sitter, view, spec.size))
    return _person(spec, sitter, pictures, finder)


def _person(spec: PeopleSpec, sitter: Sitter, pictures: Sequence[Picture], finder: FaceFinder) -> Person:
    said = labels(sitter, pictures[0].view)
    facts = {
        "sex": said["sex"],
        "age": said["age"],
        "skin": f"tone {min(4, 1 + int(4 * sitter.skin))}",
        "glasses": "yes" if said["eyewear"] == "glasses" else "no",
    }
    faces: list[Face | None]
    if spec.align == "truth":
        faces = [_placed(p) for p in pictures]
    else:
        faces = [find_face(finder, p.image) for p in pictures]
    return Person(
        f"sitter-{sitter.seed}",
        tuple(p.image for p in pictures),
        tuple(f for f in faces if f is not None),
        facts,
        sitter,
    )


def _placed(picture: Picture) -> Face:
    box: Any = tuple(float(v) for v in picture.box)
    return align_face(picture.image, DetectedFace(box, 1.0, np.asarray(picture.landmarks, np.float64)))


def _from_folder(spec: PeopleSpec, finder: FaceFinder) -> list[Person]:
    """People of a folder by name, photos by the digest of their pixels: renaming files changes nothing."""
    import hashlib

    from limner.data.pictures import FolderPictures

    pictures = FolderPictures(Path(spec.path))
    photos: dict[str, list[np.ndarray]] = {}
    for row in range(len(pictures)):
        name = str(pictures.rows.names[row])
        photos.setdefault(name, []).append(pictures.sample(row).image)
    enough = {n: p for n, p in photos.items() if len(p) > spec.references}
    if len(enough) < spec.gallery:
        raise ConfigError(
            f"{spec.path} has {len(enough)} people with more than {spec.references} photos; {spec.gallery} are asked "
            "for.",
            "Lower people.count and people.gallery, or add photos: one beyond the references bounds the score.",
        )
    found = []
    for name in sorted(enough)[: spec.gallery]:
        sorted_photos = sorted(enough[name], key=lambda p: hashlib.sha256(p.tobytes()).hexdigest())
        given = sorted_photos[: spec.references]
        faces = [find_face(finder, p) for p in given]
        found.append(
            Person(
                "".join(c if c.isalnum() or c in "-_." else "_" for c in name),
                tuple(given),
                tuple(f for f in faces if f is not None),
                others=tuple(sorted_photos[spec.references :]),
            )
        )
    keys = [p.key for p in found]
    if len(set(keys)) < len(keys):
        return [dataclasses.replace(p, key=f"{p.key}-{k}") for k, p in enumerate(found)]
    return found

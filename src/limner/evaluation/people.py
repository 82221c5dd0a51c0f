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
        known: aligned faces of the photos by which the scorers know them; empty if those are the reference photos.
        others: further photos of them (folder).
    """

    key: str
    photos: tuple[np.ndarray, ...]
    faces: tuple[Face, ...]
    facts: dict[str, str] = field(default_factory=dict)
    sitter: Sitter | None = None
    known: tuple[Face, ...] = ()
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
    return _person(spec, sitter, _photos(spec, sitter, "reference", spec.references), finder)


def _photos(spec: PeopleSpec, sitter: Sitter, purpose: str, count: int) -> list[Picture]:
    """Photos that show who it is: not turned far away, no hat, no sunglasses."""
    pictures = []
    for k in range(count):
        for attempt in range(_TRIES):
            seed = derive(purpose, spec.seed, sitter.seed, k, attempt)
            view = sample_view(sitter, seed, "any", style="photo", headwear="none")
            if abs(view.yaw) <= REFERENCE_YAW and view.eyewear != "sunglasses":
                break
        pictures.append(render(sitter, view, spec.size))
    return pictures


def _person(spec: PeopleSpec, sitter: Sitter, pictures: Sequence[Picture], finder: FaceFinder) -> Person:
    said = labels(sitter, pictures[0].view)
    facts = {
        "sex": said["sex"],
        "age": said["age"],
        "skin": f"tone {min(4, 1 + int(4 * sitter.skin))}",
        "glasses": "yes" if said["eyewear"] == "glasses" else "no",
    }
    return Person(
        f"sitter-{sitter.seed}",
        tuple(p.image for p in pictures),
        _faces(spec, pictures, finder),
        facts,
        sitter,
        _faces(spec, _photos(spec, sitter, "known", spec.known), finder),
    )


def _faces(spec: PeopleSpec, pictures: Sequence[Picture], finder: FaceFinder) -> tuple[Face, ...]:
    if spec.align == "truth":
        return tuple(_placed(p) for p in pictures)
    return _found([p.image for p in pictures], finder)


def _found(photos: Sequence[np.ndarray], finder: FaceFinder) -> tuple[Face, ...]:
    faces = (find_face(finder, photo) for photo in photos)
    return tuple(face for face in faces if face is not None)


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
    taken = spec.references + spec.known
    enough = {n: p for n, p in photos.items() if len(p) > taken}
    if len(enough) < spec.gallery:
        raise ConfigError(
            f"{spec.path} has {len(enough)} people with more than {taken} photos; {spec.gallery} are asked for.",
            "Lower people.count, people.gallery or people.known, or add photos: one beyond those that are given and "
            "known bounds the score.",
        )
    found = []
    for name in sorted(enough)[: spec.gallery]:
        sorted_photos = sorted(enough[name], key=lambda p: hashlib.sha256(p.tobytes()).hexdigest())
        given = sorted_photos[: spec.references]
        found.append(
            Person(
                "".join(c if c.isalnum() or c in "-_." else "_" for c in name),
                tuple(given),
                _found(given, finder),
                known=_found(sorted_photos[spec.references : taken], finder),
                others=tuple(sorted_photos[taken:]),
            )
        )
    keys = [p.key for p in found]
    if len(set(keys)) < len(keys):
        return [dataclasses.replace(p, key=f"{p.key}-{k}") for k, p in enumerate(found)]
    return found

"""Whatever stands for a person (photos, files, aligned faces) → the aligned faces that a method enrols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limner.errors import FaceError
from limner.faces import Choice, FaceEmbedder, FaceFinder, ImageSource, fuse
from limner.types import Face


@dataclass(frozen=True)
class References:
    """The faces of one person.

    Attributes:
        faces: those to enrol, at least one.
        remarks: sentences for the user: which face was taken of several, what is wrong with a photo, who was left out.
    """

    faces: tuple[Face, ...]
    remarks: tuple[str, ...] = ()


def gather_references(
    sources: Sequence[ImageSource | Face],
    choice: Choice = "largest",
    finder: FaceFinder | None = None,
    embedder: FaceEmbedder | None = None,
) -> References:
    """Finds the person in every picture, and leaves out pictures that show somebody else.

    Args:
        sources: what `limner.faces.load_image` takes, or faces that were aligned before.
        choice: which face to take where there are several; see `limner.faces.choose`.
        finder: None makes one with default settings.
        embedder: tells people apart; None keeps every picture.

    Raises:
        FaceError: no source, no face in one of them, or pictures of different people.
        ImageError: a source that cannot be read.
    """
    if not sources:
        raise FaceError("At least one picture of the person is expected; got none.", "Give one or more photos.")
    finder = finder or FaceFinder()
    faces, remarks = [], []
    for source in sources:
        if isinstance(source, Face):
            faces.append(source)
            continue
        found = finder.find(source, choice)
        face = found.face()
        faces.append(face)
        remarks += [found.advice] if found.advice else []
        if face.quality is not None:
            remarks += [f"{found.name}: {warning}" for warning in face.quality.warnings]
    if embedder is not None and len(faces) > 1:
        fused = fuse(faces, embedder)
        faces = list(fused.faces)
        remarks += [f"{rejected}." for rejected in fused.rejected]
    return References(tuple(faces), tuple(remarks))


def as_sources(face: Any) -> list[Any]:
    """One picture or a sequence of them, as a list."""
    return list(face) if isinstance(face, (list, tuple)) else [face]

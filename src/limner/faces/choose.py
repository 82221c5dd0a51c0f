"""Which face of several: one rule, the same for every caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from limner.errors import ConfigError, NoFaceFound, SeveralFaces
from limner.faces.detect import DetectedFace, overlap

Choice = str | int | tuple[float, ...] | np.ndarray
"""How to choose: `largest`, `center`, `only`, a number (from 0, left to right), a point (x, y), a box (x0, y0, x1, y1),
or the (D,) embedding of a reference; see `choose`."""

RULES = "largest, center, only, a number, X,Y or X0,Y0,X1,Y1"


def parse_choice(text: str) -> Choice:
    """A choice as typed: `largest`, `center`, `only`, `2`, `120,80` or `10,20,200,220`.

    Raises:
        ConfigError: anything else.
    """
    text = text.strip()
    if text in ("largest", "center", "only"):
        return text
    if text.isdecimal():
        return int(text)
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) in (2, 4) and np.isfinite(numbers).all():
        return numbers
    raise ConfigError(f"The choice of a face is {text!r}; allowed: {RULES}.")


def choose(
    faces: Sequence[DetectedFace],
    choice: Choice = "largest",
    *,
    size: tuple[int, int],
    embed: Callable[[int], np.ndarray] | None = None,
    same_person: float = 0.0,
) -> int:
    """The index of the face that `choice` names.

    - `largest`: the box with most pixels. `center`: the box whose middle is nearest to the picture's.
    - `only`: there must be exactly one.
    - a number: that face, from left to right, beginning with 0.
    - a point: of the boxes that hold it, else of all, the one whose middle is nearest.
    - a box: the one that overlaps it most (intersection over union); if none does, the nearest to its middle.
    - an embedding: the face most similar to it, if `same_person` at least.

    Args:
        faces: as a detector gives them.
        size: width and height of the picture.
        embed: embedding of face number i; needed for a choice by embedding only.
        same_person: least cosine for a choice by embedding.

    Raises:
        NoFaceFound: there is none to choose from.
        SeveralFaces: the choice fits none, or, for `only`, there are several.
        ConfigError: not a choice.
    """
    if not faces:
        raise NoFaceFound("There is no face to choose from.")
    if isinstance(choice, str):
        choice = parse_choice(choice)
    if isinstance(choice, np.ndarray):
        return _most_similar(faces, choice, embed, same_person)
    if isinstance(choice, tuple):
        return _by_place(faces, choice)
    if isinstance(choice, int):
        if not 0 <= choice < len(faces):
            raise SeveralFaces(
                f"There is no face number {choice}; there are {len(faces)}, numbered from 0, left to right.", ADVICE
            )
        return choice
    if choice == "only" and len(faces) > 1:
        raise SeveralFaces(f"Exactly one face is expected; there are {len(faces)}.", ADVICE)
    if choice == "center":
        return _nearest(faces, (size[0] / 2, size[1] / 2), range(len(faces)))
    return max(range(len(faces)), key=lambda i: faces[i].area)


ADVICE = f"Choose one with --choose: {RULES}, or like:PHOTO."


def _nearest(faces: Sequence[DetectedFace], point: tuple[float, float], among: Sequence[int]) -> int:
    return min(among, key=lambda i: float(np.hypot(*np.subtract(faces[i].center, point))))


def _by_place(faces: Sequence[DetectedFace], place: tuple[float, ...]) -> int:
    if len(place) == 2:
        x, y = place
        holding = [i for i, f in enumerate(faces) if f.box[0] <= x <= f.box[2] and f.box[1] <= y <= f.box[3]]
        return _nearest(faces, (x, y), holding or range(len(faces)))
    if len(place) != 4 or not (place[2] > place[0] and place[3] > place[1]):
        raise ConfigError(f"A point X,Y or a box X0,Y0,X1,Y1 with X1 > X0 and Y1 > Y0 is expected; got {place}.")
    wanted = DetectedFace((place[0], place[1], place[2], place[3]), 1.0)
    best = max(range(len(faces)), key=lambda i: overlap(faces[i], wanted))
    return best if overlap(faces[best], wanted) else _nearest(faces, wanted.center, range(len(faces)))


def _most_similar(
    faces: Sequence[DetectedFace],
    reference: np.ndarray,
    embed: Callable[[int], np.ndarray] | None,
    same_person: float,
) -> int:
    if embed is None:
        raise ConfigError("Choosing by a reference embedding needs an embedder; got none.")
    cosines = [float(embed(i) @ reference / np.linalg.norm(reference)) for i in range(len(faces))]
    best = int(np.argmax(cosines))
    if cosines[best] < same_person:
        raise SeveralFaces(
            f"None of the {len(faces)} faces looks like the reference: the nearest has a cosine of "
            f"{cosines[best]:.2f}; {same_person:.2f} or more is expected.",
            ADVICE,
        )
    return best

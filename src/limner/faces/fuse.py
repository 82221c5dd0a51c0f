"""Several pictures of one person → one embedding, without the picture that shows somebody else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limner.errors import FaceError
from limner.faces.embed import FaceEmbedder
from limner.types import Face


@dataclass(frozen=True)
class Rejected:
    """A reference that does not show the person of the others.

    Attributes:
        index: its place among the references.
        source: its path, as in `Face.source`.
        similarity: cosine with the fused embedding of the others.
    """

    index: int
    source: str
    similarity: float

    def __str__(self) -> str:
        name = self.source or f"reference {self.index}"
        return f"{name} shows somebody else (cosine {self.similarity:.2f} with the others); it was left out"


@dataclass(frozen=True)
class Fused:
    """One person from several references.

    Attributes:
        embedding: (D,) float32 of length 1, the mean direction of the kept references.
        faces: the references that were kept.
        rejected: the others.
    """

    embedding: np.ndarray
    faces: tuple[Face, ...]
    rejected: tuple[Rejected, ...] = ()


def fuse(faces: Sequence[Face], embedder: FaceEmbedder) -> Fused:
    """Embeds every reference, keeps those that agree, and averages them.

    Two references agree when their cosine reaches `embedder.same_person`. Kept are the reference with which most
    agree (of equals, the most similar one) and those that agree with it, if that is more than half of all.

    Raises:
        FaceError: no reference, or no majority that agrees: nobody can tell then which one is meant.
    """
    if not faces:
        raise FaceError("At least one reference face is expected; got none.", "Give one or more photos of the person.")
    vectors = np.stack([embedder.embed(face) for face in faces])
    cosines = vectors @ vectors.T
    agree = cosines >= embedder.same_person
    np.fill_diagonal(agree, True)
    middle = max(range(len(faces)), key=lambda i: (int(agree[i].sum()), float(cosines[i].sum())))
    kept = [i for i in range(len(faces)) if agree[middle, i]]
    if 2 * len(kept) <= len(faces):
        pairs = "; ".join(
            f"{_name(faces, i)} and {_name(faces, j)}: {cosines[i, j]:.2f}"
            for i in range(len(faces))
            for j in range(i + 1, len(faces))
        )
        raise FaceError(
            f"The references show different people: no majority reaches a cosine of {embedder.same_person:.2f} "
            f"({pairs}).",
            "Leave out those of other people, or choose the face in each of them.",
        )
    mean = vectors[kept].mean(0)
    mean /= np.linalg.norm(mean)
    others = [i for i in range(len(faces)) if i not in kept]
    return Fused(
        mean.astype(np.float32),
        tuple(faces[i] for i in kept),
        tuple(Rejected(i, faces[i].source, float(vectors[i] @ mean)) for i in others),
    )


def _name(faces: Sequence[Face], index: int) -> str:
    return faces[index].source or f"reference {index}"

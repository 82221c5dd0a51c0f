"""A pipeline's own recogniser: the method's encoder, which told faces apart before it told a denoiser about them."""

from __future__ import annotations

import math

import numpy as np

from limner.errors import WeightsMismatch
from limner.faces import FaceEmbedder
from limner.methods.base import EncoderMethod
from limner.types import Face, Identity


class OwnRecogniser(FaceEmbedder):
    """The class token that a method's encoder enrols, as an embedding.

    Args:
        method: whose identities hold `class_token.0`.
        dim: its length.
        same_person: cosine from which two pictures are taken to show one person; None where that was not measured:
            all pictures are then taken for the same.
    """

    name = "own"
    license = "of the model"
    commercial = True

    def __init__(self, method: EncoderMethod, dim: int, same_person: float | None) -> None:
        self._method, self.dim = method, dim
        self.same_person = -1.0 if same_person is None else same_person

    def embed(self, face: Face) -> np.ndarray:
        return own_embedding(self._method.enroll([face]))


def own_embedding(identity: Identity) -> np.ndarray:
    """(D,) float32 of length 1: the class token of an identity that an `EncoderMethod` enrolled.

    Raises:
        WeightsMismatch: it has none, or none of any length; several people together have none.
    """
    token = identity.tensors.get("class_token.0")
    length = 0.0 if token is None or token.ndim != 1 else token.float().norm().item()
    if token is None or not 0 < length < math.inf:
        raise WeightsMismatch(
            "The identity does not say how the face of one person looks, so no picture can be compared with it.",
            "Enrol photos of one person with this model.",
        )
    return token.float().cpu().numpy() / length

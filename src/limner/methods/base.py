"""The contract of every way to put a person into a picture: enrol faces once, condition on any number of prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from limner.errors import ConfigError, FaceError, PromptError, WeightsMismatch
from limner.types import Conditioning, Face, Identity

if TYPE_CHECKING:
    from torch import Tensor

SAME_WEIGHTS = 0.98
"""Cosine between what the identity's encoder and this one say of nobody; rounding to half precision keeps 0.999."""
T = TypeVar("T", bound=tuple)


class Method(ABC):
    """Turns faces into an `Identity`, and an identity and prompts into the denoiser's `Conditioning`.

    A method knows nothing of sampling, and a pipeline knows nothing of faces: what passes between them is a
    `Conditioning`. All tensors of one conditioning are on the device and of the dtype of the method's weights.

    Attributes:
        name: key of the method (`faceclip`, `dreamidentity`, …); written into every identity.
        version: raised whenever the meaning of the identity's tensors changes; old identities are then refused.
        keeps_photo: its identities hold the photo itself, which can be seen again in them.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    keeps_photo: ClassVar[bool] = False

    @abstractmethod
    def enroll(self, faces: Sequence[Face]) -> Identity:
        """What the method keeps of one person, from one or more pictures of them.

        Args:
            faces: aligned faces of the same person, at least one; outliers were removed before (`limner.faces`).

        Raises:
            FaceError: no face given.
        """

    def check_prompts(self, prompts: Sequence[str]) -> None:  # noqa: B027 (most methods have nothing to check)
        """Raises PromptError for prompts that could paint nobody, before `enroll` takes its minutes; methods that enrol
        in a moment leave it to `condition`."""

    @abstractmethod
    def condition(
        self,
        identity: Identity | None,
        prompts: Sequence[str],
        *,
        negative_prompts: Sequence[str] | None = None,
        strength: float = 1.0,
    ) -> Conditioning:
        """One row of conditioning per prompt, with its unconditional branch.

        Args:
            identity: the person to paint; None paints the prompt alone.
            prompts: B sentences.
            negative_prompts: B sentences, or one for all; None means empty ones.
            strength: how much of the person goes in: 1 as the method was trained, 0 nobody in particular.

        Raises:
            WeightsMismatch: the identity was made by another method, version or model.
            PromptError: no prompt, or a number of negative prompts that fits none.
            ConfigError: strength outside [0, 1].
        """


class EncoderMethod(Method):
    """A method that enrols by one forward pass of an encoder.

    Every identity holds what the encoder says of nobody, by which it is recognised as made by the same weights, at any
    precision.

    Attributes:
        encoder: with `enroll(images, weights)`.
        model: name of the weights, written into identities.
    """

    encoder: Any
    model: str

    @abstractmethod
    def nulls(self) -> dict[str, Tensor]:
        """What the encoder says of nobody, under names that the identity has besides the person's."""

    def enroll(self, faces: Sequence[Face]) -> Identity:
        """See `Method.enroll`; several pictures are weighted by their quality, where it is known."""
        weights = quality_weights(demand_faces(faces))
        tensors = {**self.encoder.enroll(face_images(faces), weights), **self.nulls()}
        info = {"references": len(faces), "weights": [round(w, 4) for w in weights]}
        return Identity(tensors=tensors, method=self.name, version=self.version, model=self.model, info=info)

    def demand(self, identity: Identity) -> Mapping[str, Tensor]:
        """The identity's tensors.

        Raises:
            WeightsMismatch: an identity of another method, version or weights.
        """
        identity.demand(self.name, self.version)
        for name, null in self.nulls().items():
            theirs = identity.tensors.get(name)
            if theirs is None or theirs.shape != null.shape or _cosine(theirs, null) < SAME_WEIGHTS:
                raise WeightsMismatch(
                    f"This identity was enrolled with other weights ({identity.model}) than these ({self.model}).",
                    "Enrol the face again with the model that is to paint it.",
                )
        return identity.tensors


def each_once(prompts: Sequence[str], encode: Callable[[list[str]], T]) -> T:
    """What `encode` says of every prompt, row by row, each distinct one encoded once: four pictures of one sentence
    cost one encoding. `encode` returns a named tuple of tensors (or None)."""
    import torch

    distinct = list(dict.fromkeys(prompts))
    made: Any = encode(distinct)
    rows = torch.tensor([distinct.index(p) for p in prompts])
    return type(made)(*(v if v is None else v[rows.to(v.device)] for v in made))


def demand_faces(faces: Sequence[Face]) -> Sequence[Face]:
    """`faces`, if there is at least one; else FaceError."""
    if not faces:
        raise FaceError("Enrolling needs at least one face; got none.", "Give one or more photos of the person.")
    return faces


def face_images(faces: Sequence[Face]) -> Tensor:
    """(R, 3, 448, 448) float32 in [0, 1] of faces."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([face.image for face in faces]))


def quality_weights(faces: Sequence[Face]) -> list[float]:
    """How much each picture counts among those of a person: its quality, where it is known."""
    return [1.0 if face.quality is None else max(face.quality.score, 0.01) for face in faces]


def demand_prompts(prompts: Sequence[str], negative_prompts: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Prompts and as many negative prompts.

    Raises:
        PromptError: a bare string, no prompt, or counts that do not fit.
    """
    if isinstance(prompts, str) or isinstance(negative_prompts, str):
        raise PromptError("A list of prompts is expected; got a bare string.", "Write [prompt].")
    if not prompts:
        raise PromptError("At least one prompt is expected; got none.")
    negatives = [""] if negative_prompts is None else list(negative_prompts)
    if len(negatives) == 1:
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise PromptError(
            f"{len(prompts)} prompts need as many negative prompts, or one for all; got {len(negatives)}."
        )
    return list(prompts), negatives


def demand_strength(strength: float) -> float:
    """`strength`, if it lies in [0, 1]; else ConfigError."""
    if not 0 <= strength <= 1:
        raise ConfigError(f"strength is {strength!r}; allowed: 0 (nobody in particular) to 1 (as trained).")
    return float(strength)


def _cosine(a: Tensor, b: Tensor) -> float:
    import torch

    return torch.cosine_similarity(a.flatten().to(b.device).float(), b.flatten().float(), dim=0).item()


def demand_guidance(negative_prompt: str | Sequence[str] | None, guidance_scale: float) -> None:
    """Raises ConfigError where a negative prompt would change nothing: at a guidance of 1 or less nothing is painted
    away from it, and a model that paints in few steps recommends 1."""
    said = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt or []
    if any(said) and guidance_scale <= 1:
        raise ConfigError(
            f"The negative prompt would change nothing: guidance_scale is {guidance_scale:g}.",
            "Set the guidance above 1 (1.5 to 2 for models that recommend 1), or leave the negative prompt out.",
        )

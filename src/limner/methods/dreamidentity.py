"""DreamIdentity as a method: a person is k words of the base's own language (arXiv 2307.00300)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from limner.encoders.dreamidentity import FaceWordsEncoder
from limner.encoders.pseudo_words import PLACEHOLDER, check_placeholder
from limner.encoders.word_towers import Said
from limner.errors import ConfigError, WeightsMismatch
from limner.methods.base import Method, demand_faces, demand_prompts, demand_strength
from limner.types import Conditioning, Face, Identity

SAME_WEIGHTS = 0.98
"""Cosine between the null words of the identity's encoder and of this one; half precision keeps 0.999."""


class DreamIdentity(Method):
    """Conditioning of an untouched text-to-image model by words made from a face.

    A prompt says where the person is to be: `S* as a chef`. Without an identity, `S*` is nobody in particular.

    Identity: for tower i `words.i` (k, width) and `null.i` (k, width), the words of an all-zero picture, by which an
    identity is recognised as made by these weights; `class_token.0` (D), the recogniser's identity vector. Of several
    people (see `together`): the same behind `A*/`, `B*/`, ….

    Args:
        encoder: M² ID encoder and text towers.
        placeholder: what prompts call the person.
        zero_empty: the embeddings of an empty negative prompt are zeros, as SDXL was trained.
        model: name of the weights, written into identities.
    """

    name: ClassVar[str] = "dreamidentity"
    version: ClassVar[int] = 1

    def __init__(
        self, encoder: FaceWordsEncoder, *, placeholder: str = PLACEHOLDER, zero_empty: bool = False, model: str = ""
    ) -> None:
        self.encoder = encoder
        self.placeholder = check_placeholder(placeholder)
        self.zero_empty = zero_empty
        self.model = model or f"dreamidentity-{encoder.m2id.config.digest()[:12]}"

    def enroll(self, faces: Sequence[Face]) -> Identity:
        """See `Method.enroll`; several pictures are weighted by their quality, where it is known."""
        images = torch.from_numpy(np.stack([face.image for face in demand_faces(faces)]))
        weights = [1.0 if face.quality is None else max(face.quality.score, 0.01) for face in faces]
        tensors = self.encoder.enroll(images, weights)
        info = {"references": len(faces), "weights": [round(w, 4) for w in weights]}
        return Identity(tensors=tensors, method=self.name, version=self.version, model=self.model, info=info)

    def condition(
        self,
        identity: Identity | None,
        prompts: Sequence[str],
        *,
        negative_prompts: Sequence[str] | None = None,
        strength: float = 1.0,
    ) -> Conditioning:
        """See `Method.condition`. With an identity, every prompt must name it; negative prompts may.

        Raises:
            PromptError: also a prompt without the placeholder, an unknown placeholder, or too many words.
        """
        positive, negative = demand_prompts(prompts, negative_prompts)
        demand_strength(strength)
        people = {} if identity is None else self.people(identity)
        given = self._encode(positive, people, strength, demanded=identity is not None)
        without = self._encode(negative, people, strength, demanded=False)
        if self.zero_empty:
            kept = torch.tensor([bool(p.strip()) for p in negative], device=without.tokens.device)
            pooled = None if without.pooled is None else without.pooled * kept[:, None]
            without = Said(without.tokens * kept[:, None, None], pooled)
        return Conditioning(
            prompt_embeds=given.tokens,
            pooled=given.pooled,
            negative_prompt_embeds=without.tokens,
            negative_pooled=without.pooled,
        )

    def together(self, identities: Mapping[str, Identity]) -> Identity:
        """Several people for one prompt, as in "A* and B* in the snow".

        Args:
            identities: placeholder → a person enrolled by this method.

        Raises:
            ConfigError: nobody, or an identity that already holds several people.
            PromptError: a name that is no placeholder.
            WeightsMismatch: an identity of other weights.
        """
        if not identities:
            raise ConfigError("together needs at least one person; got none.")
        tensors: dict[str, Tensor] = {}
        for placeholder, identity in identities.items():
            check_placeholder(placeholder)
            self._demand(identity)
            if "people" in identity.info:
                raise ConfigError(f"The identity given as {placeholder} already holds several people.")
            tensors |= {f"{placeholder}/{k}": v for k, v in identity.tensors.items() if k.startswith("words.")}
            tensors |= {k: v for k, v in identity.tensors.items() if k.startswith("null.")}
        info = {"people": list(identities)}
        return Identity(tensors=tensors, method=self.name, version=self.version, model=self.model, info=info)

    def people(self, identity: Identity) -> dict[str, list[Tensor]]:
        """Placeholder → words for each tower.

        Raises:
            WeightsMismatch: an identity of another method, version or weights.
        """
        self._demand(identity)
        towers = range(len(self.encoder.towers.widths))
        names = {f"{p}/": p for p in identity.info.get("people", [])} or {"": self.placeholder}
        try:
            return {p: [identity.tensors[f"{start}words.{i}"] for i in towers] for start, p in names.items()}
        except KeyError as e:
            raise WeightsMismatch(f"The identity lacks {e}.", "Enrol the face again.") from e

    def _encode(
        self, prompts: list[str], people: Mapping[str, Sequence[Tensor]], strength: float, demanded: bool
    ) -> Said:
        """Each distinct prompt once: four pictures of one sentence cost one encoding."""
        distinct = list(dict.fromkeys(prompts))
        said = self.encoder.encode(distinct, people, strength=strength, demanded=demanded)
        rows = torch.tensor([distinct.index(p) for p in prompts], device=said.tokens.device)
        return Said(said.tokens[rows], None if said.pooled is None else said.pooled[rows])

    def _demand(self, identity: Identity) -> None:
        identity.demand(self.name, self.version)
        for i, null in enumerate(self.encoder.m2id.null_words()):
            theirs, ours = identity.tensors.get(f"null.{i}"), null.float().flatten()
            if theirs is None or theirs.shape != null.shape or _cosine(theirs.flatten(), ours) < SAME_WEIGHTS:
                raise WeightsMismatch(
                    f"This identity was enrolled with other weights ({identity.model}) than these ({self.model}).",
                    "Enrol the face again with the model that is to paint it.",
                )


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.to(b), b, dim=0).item()

"""DreamIdentity as a method: a person is k words of the base's own language (arXiv 2307.00300)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from limner.encoders.dreamidentity import FaceWordsEncoder
from limner.encoders.pseudo_words import PLACEHOLDER, check_placeholder
from limner.encoders.word_towers import zero_empty
from limner.errors import ConfigError, WeightsMismatch
from limner.methods.base import EncoderMethod, demand_prompts, demand_strength, each_once
from limner.types import Conditioning, Identity


class DreamIdentity(EncoderMethod):
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

    def nulls(self) -> dict[str, Tensor]:
        """The words of an all-zero picture, for every tower."""
        return {f"null.{i}": words for i, words in enumerate(self.encoder.null_words())}

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
        named = identity is not None
        given = each_once(positive, lambda said: self.encoder.encode(said, people, strength=strength, demanded=named))
        without = each_once(negative, lambda said: self.encoder.encode(said, people, strength=strength))
        if self.zero_empty:
            without = zero_empty(without, negative)
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
            self.demand(identity)
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
        self.demand(identity)
        towers = range(len(self.encoder.towers.widths))
        names = {f"{p}/": p for p in identity.info.get("people", [])} or {"": self.placeholder}
        try:
            return {p: [identity.tensors[f"{start}words.{i}"] for i in towers] for start, p in names.items()}
        except KeyError as e:
            raise WeightsMismatch(f"The identity lacks {e}.", "Enrol the face again.") from e

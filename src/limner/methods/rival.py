"""What all rivals share: the base's own text, with or without words for the person, and a check of who made an
identity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from limner.encoders.rivals import RivalEncoder
from limner.encoders.word_towers import WordTowers, zero_empty
from limner.errors import WeightsMismatch
from limner.methods.base import EncoderMethod, demand_prompts, demand_strength, each_once
from limner.methods.steering import SteeredConditioning, Steering
from limner.types import Face, Identity

PROBE = "probe"
PROBED = 64
"""Values of each weight that `probe_unet` takes."""


class Rival(EncoderMethod):
    """A method over a base that is not changed for good. At strength 0 it paints what it paints for nobody.

    Every identity has `probe`: a few of the weights, or what they say of an all-zero picture, by which an identity is
    recognised as made by them, at any precision.

    Attributes:
        names_person: a prompt must say `S*` where a person is given; otherwise it may, and "person" is read.

    Args:
        encoder: text towers, and a backbone where faces are seen.
        zero_empty: the embeddings of an empty negative prompt are zeros, as SDXL was trained.
        model: name of the weights, written into identities.
    """

    encoder: RivalEncoder
    names_person: ClassVar[bool] = True

    def __init__(self, encoder: RivalEncoder, *, zero_empty: bool = False, model: str = "") -> None:
        self.encoder, self.zero_empty = encoder, zero_empty
        self.model = model or self.name

    @abstractmethod
    def probe(self) -> Tensor:
        """(N,) float32, see above."""

    def nulls(self) -> dict[str, Tensor]:
        return {PROBE: self.probe()}

    def words(self, person: Mapping[str, Tensor]) -> list[Tensor] | None:
        """The person's words for each tower, `words.i` (k, width); None for methods without words."""
        try:
            return [person[f"words.{i}"] for i in range(len(self.encoder.towers.widths))]
        except KeyError as e:
            raise WeightsMismatch(f"The identity lacks {e}.", "Enrol the face again.") from e

    def steer(self, person: Mapping[str, Tensor] | None, strength: float) -> Steering:
        """What of the denoiser differs for this person; None is nobody."""
        return Steering()

    def image_embeds(self, person: Mapping[str, Tensor] | None) -> list[Tensor] | None:
        """What the IP-Adapter is shown: a row without and one with the person, which diffusers repeats for all
        pictures of a batch; None without an adapter."""
        return None

    def condition(
        self,
        identity: Identity | None,
        prompts: Sequence[str],
        *,
        negative_prompts: Sequence[str] | None = None,
        strength: float = 1.0,
    ) -> SteeredConditioning:
        """See `Method.condition`."""
        positive, negative = demand_prompts(prompts, negative_prompts)
        demand_strength(strength)
        known = None if identity is None else self.demand(identity)
        person = known if strength > 0 else None
        words = None if person is None else self.words(person)
        named = self.names_person and identity is not None
        given = each_once(positive, lambda said: self.encoder.say(said, words, strength, demanded=named))
        without = each_once(negative, lambda said: self.encoder.say(said, words, strength))
        if self.zero_empty:
            without = zero_empty(without, negative)
        return SteeredConditioning(
            prompt_embeds=given.tokens,
            pooled=given.pooled,
            negative_prompt_embeds=without.tokens,
            negative_pooled=without.pooled,
            ip_adapter_image_embeds=self.image_embeds(person),
            steering=self.steer(person, strength),
        )

    def made(self, tensors: Mapping[str, Tensor], faces: Sequence[Face], **info: object) -> Identity:
        """The identity that holds these tensors."""
        kept = {k: v.detach().float().cpu().contiguous() for k, v in {**tensors, **self.nulls()}.items()}
        facts = {"references": len(faces), **info}
        return Identity(tensors=kept, method=self.name, version=self.version, model=self.model, info=facts)


def probe_unet(unet: Any, towers: WordTowers) -> Tensor:
    """(N,) float32: some weights of a UNet, and the base's word for nobody in particular."""
    some = [unet.conv_in.weight, unet.conv_out.weight, *towers.neutral_words(1)]
    parts = [w.detach().flatten()[:PROBED].float().cpu() for w in some]
    return torch.cat([p / p.norm().clamp(min=1e-6) for p in parts])

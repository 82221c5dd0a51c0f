"""Several people in one picture: each acts in a region of their own, the prompt alone everywhere else.

A group is an `Identity` of the method `people`: the identities of its members and their boxes. Whatever takes an
identity (pipelines, files, PNGs, digests) takes a group. `PortraitPipeline.condition` makes of it the conditioning of
the plain prompt with one more conditioning for each region, and while diffusers denoises, every place of a
cross-attention layer is answered by the tokens of whom it belongs to. Self-attention stays whole: it is what makes one
picture of them.

Boxes are (x0, y0, x1, y1) in shares of the picture, 0 to 1, from its top-left corner. They may overlap; later people
stand in front of earlier ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from limner.errors import ConfigError, CorruptData, WeightsMismatch
from limner.types import Conditioning, Identity

if TYPE_CHECKING:
    import torch

Box = tuple[float, float, float, float]

PEOPLE = "people"
VERSION = 1
BOXES = "boxes"
_UNIT = 1_000_000  # boxes are stored as integers, which rounding to half precision leaves alone

NAMED: dict[str, Box] = {
    "all": (0, 0, 1, 1),
    "left": (0, 0, 1 / 2, 1),
    "right": (1 / 2, 0, 1, 1),
    "top": (0, 0, 1, 1 / 2),
    "bottom": (0, 1 / 2, 1, 1),
    "center": (1 / 4, 0, 3 / 4, 1),
    "left-third": (0, 0, 1 / 3, 1),
    "middle-third": (1 / 3, 0, 2 / 3, 1),
    "right-third": (2 / 3, 0, 1, 1),
}
"""Regions that have a name."""


def parse_box(text: str) -> Box:
    """A name of `NAMED`, or four numbers `x0,y0,x1,y1`.

    Raises:
        ConfigError: neither, outside the picture, or empty.
    """
    text = text.strip()
    if text in NAMED:
        return NAMED[text]
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4:
        raise ConfigError(f"The region is {text!r}; allowed: x0,y0,x1,y1 from 0 to 1, or {', '.join(NAMED)}.")
    return demand_box(numbers)


def demand_box(box: Sequence[float]) -> Box:
    """`box`, if it has an area and lies in the picture; else ConfigError."""
    said = ",".join(f"{v:g}" for v in box)
    if len(box) != 4:
        raise ConfigError(f"The region {said} has {len(box)} numbers; x0,y0,x1,y1 are expected.")
    x0, y0, x1, y1 = (float(v) for v in box)
    if not all(0 <= v <= 1 for v in (x0, y0, x1, y1)):
        raise ConfigError(f"The region {said} lies outside the picture; shares from 0 to 1 are expected.")
    if not (x1 > x0 and y1 > y0):
        raise ConfigError(f"The region {said} is empty; x0,y0,x1,y1 with x1 > x0 and y1 > y0 are expected.")
    return x0, y0, x1, y1


# --- groups -----------------------------------------------------------------------------------------------------------


def group(identities: Sequence[Identity], boxes: Sequence[Box | str]) -> Identity:
    """People and where they are, as one identity of the method `people`.

    Args:
        identities: at least one, all enrolled by the same method; later ones stand in front of earlier ones.
        boxes: where each of them acts: a box, or a name of `NAMED`.

    Raises:
        ConfigError: nobody, more or fewer regions than people, an empty region or one outside the picture.
        WeightsMismatch: identities of different methods, or a group.
    """
    if not identities:
        raise ConfigError("A group needs at least one person; got none.")
    if len(identities) != len(boxes):
        raise ConfigError(f"Each person needs one region; got {len(identities)} people and {len(boxes)} regions.")
    places = [parse_box(box) if isinstance(box, str) else demand_box(box) for box in boxes]
    kinds = sorted({f"{p.method} v{p.version}" for p in identities})
    if len(kinds) > 1 or is_group(identities[0]):
        raise WeightsMismatch(f"People of one group are enrolled by one method; got {', '.join(kinds)}.")
    import torch

    rounded = torch.tensor([[round(v * _UNIT) for v in box] for box in places], dtype=torch.int64)
    tensors = {f"{i}/{name}": t for i, person in enumerate(identities) for name, t in person.tensors.items()}
    facts = [{k: getattr(p, k) for k in ("method", "version", "model", "info")} for p in identities]
    return Identity(
        tensors={BOXES: rounded, **tensors},
        method=PEOPLE,
        version=VERSION,
        model="+".join(f"{p.method}/{p.version}/{p.model}" for p in identities),
        info={"members": facts, "outside": any(bool(p.info.get("outside")) for p in identities)},
    )


def is_group(identity: Identity | None) -> bool:
    """Whether it is one of `group`."""
    return identity is not None and identity.method == PEOPLE


def members(identity: Identity) -> list[tuple[Box, Identity]]:
    """The people of a group with their boxes, from the back to the front.

    Raises:
        WeightsMismatch: a group of another version.
        CorruptData: a damaged one.
    """
    identity.demand(PEOPLE, VERSION)
    try:
        boxes, facts = identity.tensors[BOXES].tolist(), identity.info["members"]
        found = []
        for i, (box, fact) in enumerate(zip(boxes, facts, strict=True)):
            tensors = {k.removeprefix(f"{i}/"): t for k, t in identity.tensors.items() if k.startswith(f"{i}/")}
            found.append((demand_box([v / _UNIT for v in box]), Identity(tensors=tensors, **fact)))
        return found
    except (KeyError, TypeError, ValueError, ConfigError) as e:
        raise CorruptData(f"The group of people is damaged ({type(e).__name__}: {e}).") from e


def group_facts(identity: Identity | None) -> dict[str, Any]:
    """What provenance says of a group: `people`, for each the box and the digest; empty for one person or none."""
    if identity is None or not is_group(identity):
        return {}
    return {"people": [{"box": list(box), "identity": person.digest()} for box, person in members(identity)]}


def condition_group(condition: Callable[[Identity | None], Conditioning], identity: Identity) -> Conditioning:
    """The conditioning of the plain prompt, with one more for each person's region; `condition` makes any of them."""
    people = tuple((box, condition(person)) for box, person in members(identity))
    return dataclasses.replace(condition(None), regions=people)


# --- who owns which place ---------------------------------------------------------------------------------------------


def owners(boxes: Sequence[Box], height: int, width: int) -> np.ndarray:
    """(height, width) int64: the number of the person, from 1, whose box holds the middle of a place; 0 is nobody's."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    owner = np.zeros((height, width), np.int64)
    for number, (x0, y0, x1, y1) in enumerate(boxes, 1):
        owner[np.ix_((y >= y0) & (y < y1), (x >= x0) & (x < x1))] = number
    return owner


def grids(unet: Any, height: int, width: int) -> list[tuple[int, int]]:
    """(height, width) of every resolution at which the UNet works, from the latents' own to the coarsest."""
    sizes = [(height, width)]
    for _ in unet.config.block_out_channels[1:]:
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    return sizes


def demand_places(boxes: Sequence[Box], sizes: Sequence[tuple[int, int]]) -> None:
    """Raises ConfigError where somebody owns no place on one of the grids."""
    for height, width in sizes:
        found = set(owners(boxes, height, width).flat)
        for number, box in enumerate(boxes, 1):
            if number in found:
                continue
            said = ",".join(f"{v:g}" for v in box)
            if 1 in owners([box], height, width):
                raise ConfigError(
                    f"Person {number} ({said}) is hidden behind those who come later.",
                    "Later people stand in front: change the order, or the regions.",
                )
            raise ConfigError(
                f"The region {said} of person {number} is too small: it holds no place of the {width}×{height} grid "
                "at which the model composes this picture.",
                f"Make it {1 / width:.2g} wide and {1 / height:.2g} high at least, or paint a larger picture.",
            )


# --- attention --------------------------------------------------------------------------------------------------------


class RegionProcessor:
    """Cross-attention in which each place attends to its owner's tokens alone; all else is the processor it wraps.

    Queries are split by owner and every part is given to the wrapped processor with its owner's tokens, so nobody's
    tokens have any weight in the region of somebody else, whatever attention (fused, sliced, plain) the wrapped one is.

    Args:
        inner: the processor of that layer.
        places: number of queries → for each owner, from nobody (0) on, the indices of the queries that are theirs.
    """

    def __init__(self, inner: Any, places: dict[int, list[torch.Tensor]]) -> None:
        self.inner, self.places = inner, places

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See diffusers' `AttnProcessor`; hidden_states (B, queries, C), encoder_hidden_states (B, owners·T, C)."""
        if encoder_hidden_states is None:  # self-attention
            return self.inner(attn, hidden_states, attention_mask=attention_mask)
        import torch

        places = [p.to(hidden_states.device) for p in self.places[hidden_states.shape[1]]]
        tokens = encoder_hidden_states.chunk(len(places), dim=1)
        parts = [
            self.inner(attn, hidden_states[:, own], told) for own, told in zip(places, tokens, strict=True) if len(own)
        ]
        return torch.cat(parts, dim=1)[:, torch.cat(places).argsort()]


@contextlib.contextmanager
def apart(unet: Any, conditioning: Conditioning, height: int, width: int) -> Iterator[Conditioning]:
    """While it is open, the UNet keeps the regions of `conditioning` apart; afterwards it is as it was.

    Args:
        height, width: of the latents.

    Yields:
        what the UNet is to be told: `conditioning` itself if it has no regions; else the tokens of all owners, one
        after another, and the mean of their pooled embeddings, weighted with the area that is theirs.

    Raises:
        ConfigError: a region that holds no place; image tokens, which know no regions.
        WeightsMismatch: conditionings of different shapes.
    """
    if not conditioning.regions:
        yield conditioning
        return
    import torch

    boxes, sizes = [box for box, _ in conditioning.regions], grids(unet, height, width)
    demand_places(boxes, sizes)
    told = _joined(conditioning, owners(boxes, height, width))
    places = {}
    for size in sizes:
        owner = torch.from_numpy(owners(boxes, *size).ravel()).to(told.prompt_embeds.device)
        places[owner.numel()] = [(owner == number).nonzero()[:, 0] for number in range(len(boxes) + 1)]
    before = unet.attn_processors
    try:
        unet.set_attn_processor({name: RegionProcessor(inner, places) for name, inner in before.items()})
        yield told
    finally:
        unet.set_attn_processor(dict(before))


def _joined(conditioning: Conditioning, owner: np.ndarray) -> Conditioning:
    """What `apart` yields; `owner` tells the areas."""
    import torch

    everybody = [dataclasses.replace(conditioning, regions=()), *(c for _, c in conditioning.regions)]
    if any(c.ip_adapter_image_embeds is not None for c in everybody):
        raise ConfigError("Several people cannot be told apart in image tokens; a method that fuses them is needed.")
    shares = [float((owner == number).mean()) for number in range(len(everybody))]

    def tokens(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts, dim=1)

    def mean(parts: list[torch.Tensor]) -> torch.Tensor:
        return sum(share * part for share, part in zip(shares, parts, strict=True) if share)  # type: ignore[return-value]

    joins = {"prompt_embeds": tokens, "pooled": mean, "negative_prompt_embeds": tokens, "negative_pooled": mean}
    told: dict[str, Any] = {}
    for name, join in joins.items():
        parts = [getattr(c, name) for c in everybody]
        shapes = [None if part is None else tuple(part.shape) for part in parts]
        if len(set(shapes)) > 1:
            raise WeightsMismatch(f"{name} of everybody in a picture must have one shape; got {shapes}.")
        told[name] = None if parts[0] is None else join(parts)
    return Conditioning(**told)

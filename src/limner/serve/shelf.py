"""The models that one service offers: loaded when they are first needed, at most so many of them in memory."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import ConfigError, WeightsMismatch, WeightsUnavailable

if TYPE_CHECKING:
    from limner.pipelines.loading import Model
    from limner.pipelines.ranking import TextFit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offer:
    """A model that can be had here.

    Attributes:
        name: what callers ask for; empty for a service of one model that is called what its weights are called.
        load: makes it; called on the worker, again after it was put away.
        method: how it puts people into pictures; empty until it was loaded, where nobody knows.
        description: a line for people.
    """

    name: str
    load: Callable[[], Model]
    method: str = ""
    description: str = ""


@dataclass(frozen=True)
class Held:
    """A model in memory, and what it can do here besides painting.

    Attributes:
        model: with the ControlNet for places of the eyes, if there is one.
        weights: sha256 by component without that ControlNet, as pictures record them that were painted without it.
        text: scores pictures for their fit to the sentence, or None.
        lacks: what cannot be had (`gaze`, `likeness`, `text`) → why, in a sentence.
    """

    model: Model
    weights: dict[str, str]
    text: TextFit | None
    lacks: dict[str, str]


class Shelf:
    """Models by name; the one that was not used for longest makes room. Belongs to one worker.

    Args:
        offers: all of them.
        most: how many are held at the same time.
        gaze_weights: folder of a ControlNet for places of the eyes; None takes what the model has or what ships for it.
        text_weights: folder of a CLIP for text scores; None takes what ships for the model's world.
    """

    def __init__(
        self,
        offers: Sequence[Offer],
        most: int,
        gaze_weights: Path | None = None,
        text_weights: Path | None = None,
    ) -> None:
        self.most, self.gaze_weights, self.text_weights = most, gaze_weights, text_weights
        self._offers = {offer.name: offer for offer in offers}
        self._held: dict[str, Held] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of what is in memory, the latest used last."""
        return tuple(self._held)

    def take(self, name: str) -> Held:
        """The offered model of that name, loaded if need be. Raises what loading raises."""
        held = self._held.pop(name, None)
        if held is None:
            self._make_room()
            held = hold(self._offers[name].load(), self.gaze_weights, self.text_weights)
        self._held[name] = held
        return held

    def _make_room(self) -> None:
        if len(self._held) < self.most:
            return
        while len(self._held) >= self.most:
            oldest = next(iter(self._held))
            del self._held[oldest]
            log.info("%s was put away.", oldest)
        collect()


def collect() -> None:
    """Gives memory back that nothing uses any more."""
    import torch

    gc.collect()  # pipelines hold themselves in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def hold(model: Model, gaze_weights: Path | None = None, text_weights: Path | None = None) -> Held:
    """A loaded model with everything that is here for it; what is missing is noted, not raised.

    Raises:
        CorruptData: weights that are there, but damaged.
        ConfigError: a folder for text scores that holds something else.
    """
    from limner.pipelines.gaze import add_gaze
    from limner.pipelines.ranking import text_fit

    weights, lacks, text = dict(model.weights), {}, None
    try:
        add_gaze(model, gaze_weights)
    except (WeightsUnavailable, WeightsMismatch) as e:
        lacks["gaze"] = e.message
    if model.pipe.embedder is None:
        lacks["likeness"] = f"{model.name} has no recogniser of its own."
    try:
        text = text_fit(model, text_weights)
    except WeightsUnavailable as e:
        lacks["text"] = e.message
    return Held(model, weights, text, lacks)


def check_names(offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """The offers; ConfigError unless there is one, and all have names of their own."""
    names = [offer.name for offer in offers]
    twice = [name for name in names if names.count(name) > 1]
    if not names:
        raise ConfigError("There is no model to serve.", "Name one with --model.")
    if twice or (len(names) > 1 and not all(names)):
        raise ConfigError(
            f"Two of the models are called {twice[0]!r}." if twice else "A model has no name.",
            "Callers tell them apart by their names; rename a folder.",
        )
    return tuple(offers)


def described(offer: Offer, facts: dict[str, Any] | None, *, default: bool, loaded: bool) -> dict[str, Any]:
    """An offer as callers are told of it; `facts` are known once it was loaded."""
    known = facts or {}
    return {
        "name": known.get("name", offer.name) if not offer.name else offer.name,
        "method": known.get("method", offer.method),
        "description": offer.description,
        "default": default,
        "loaded": loaded,
        "facts": facts,
    }

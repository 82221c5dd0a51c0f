"""Whatever makes pictures of a person, behind one small contract; a model is loaded when its painter is told to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from limner.errors import ConfigError, FaceError, OutputConflict, PromptError
from limner.evaluation.people import Person, real_picture
from limner.evaluation.recipe import SUBJECT, MethodSpec
from limner.provenance import compact
from limner.types import Identity

if TYPE_CHECKING:
    from limner.pipelines.loading import Model

Pictures = list[np.ndarray]


@dataclass(frozen=True)
class Enrolled:
    """A person as a method keeps them.

    Attributes:
        identity: None for methods that keep none.
        seconds: what enrolling took.
    """

    identity: Identity | None
    seconds: float


@dataclass(frozen=True)
class Wish:
    """What is to be painted of a person.

    Attributes:
        prompts: call the person S*.
        seeds: of each prompt, one a picture, equally many.
        strength: how much of the person goes in, 0 to 1.
        guidance: weight of what is asked for; None is the model's own.
    """

    prompts: Sequence[str]
    seeds: Sequence[Sequence[int]]
    strength: float = 1.0
    guidance: float | None = None


class Painter(Protocol):
    """A way to put a person into pictures.

    Attributes:
        weights: sha256 by component, kept with everything it paints; empty without a model.
    """

    weights: Mapping[str, str]

    def load(self) -> None:
        """Makes ready; called once, before anything else, so that nobody's time or memory counts it."""

    def enroll(self, person: Person) -> Enrolled:
        """The person, from the faces of their reference photos.

        Raises:
            FaceError: the photos show no face.
        """

    def paint(self, person: Person, identity: Identity | None, wish: Wish) -> list[Pictures]:
        """For each prompt, one picture (H, W, 3) uint8 per seed."""


class ModelPainter:
    """A model of Limner's, as `limner generate` paints with it.

    Args:
        spec: model and dials.
        open_model: opens the model, given name and method.
        weights: what it is expected to be loaded from; see `limner.evaluation.weights.Weights.digests`.
    """

    model: Model

    def __init__(self, spec: MethodSpec, open_model: Callable[[str, str], Model], weights: Mapping[str, str]) -> None:
        self.spec, self._open, self.weights = spec, open_model, weights

    def load(self) -> None:
        """See `Painter.load`.

        Raises:
            ConfigError: settings or teacher of a tuning, for a method that does not tune.
            WeightsUnavailable, WeightsMismatch, CorruptData: no such teacher, or not this model's.
            OutputConflict: the model's weights are not the expected ones.
        """
        self.model = self._open(self.spec.model, self.spec.method)
        if not self.weights.items() >= self.model.weights.items():
            raise OutputConflict(
                f"{self.spec.model} was loaded with other weights than it had when the benchmark began.",
                "Run it again.",
            )
        if self.spec.tuning or self.spec.teacher:
            pipe: Any = self.model.pipe
            if not hasattr(pipe, "tuning"):
                raise ConfigError(f"{self.spec.name} has `tuning`, but {self.spec.model} enrols without it.")
            from limner.methods.tuning import TuningSettings

            pipe.tuning = TuningSettings.load(self.spec.tuning) if self.spec.tuning else None
            if self.spec.teacher:
                pipe.learn_over(self.spec.teacher)

    def enroll(self, person: Person) -> Enrolled:
        """See `Painter.enroll`; the identity is rounded as `limner enroll` does."""
        if not self.spec.identity:
            return Enrolled(None, 0.0)
        if not person.faces:
            raise FaceError(f"No face was found in the photos of {person.key}.")
        method = self.model.pipe.method
        start = time.perf_counter()
        identity = method.enroll(person.faces)
        _wait()
        seconds = time.perf_counter() - start
        return Enrolled(compact(identity), seconds)

    def paint(self, person: Person, identity: Identity | None, wish: Wish) -> list[Pictures]:
        """See `Painter.paint`."""
        from limner.pipelines.paint import default_dials, paint_batch

        own = {
            "steps": self.spec.steps,
            "pag_scale": self.spec.pag,
            "scheduler": self.spec.scheduler,
            "face_guidance": self.spec.face_guidance,
            "face_detail": self.spec.face_detail,
        }
        dials = default_dials(self.model, strength=wish.strength, guidance_scale=wish.guidance, **own)
        said = [prompt.replace(SUBJECT, self.spec.subject) for prompt in wish.prompts]
        self.model.set_scheduler(dials.scheduler)
        conditioning = self.model.pipe.condition(said, identity, "", dials.strength)
        images = paint_batch(self.model, conditioning, [seed for seeds in wish.seeds for seed in seeds], dials)
        pictures = iter([np.asarray(image.convert("RGB")) for image in images])
        return [[next(pictures) for _ in seeds] for seeds in wish.seeds]


class Bound:
    """What needs no model and keeps nothing of a person."""

    weights: Mapping[str, str] = MappingProxyType({})

    def load(self) -> None:
        """There is nothing to load."""

    def enroll(self, person: Person) -> Enrolled:
        """Nothing is kept."""
        return Enrolled(None, 0.0)


class RealPainter(Bound):
    """The ceiling: other real pictures of the person; see `limner.evaluation.people.real_picture`.

    Args:
        size: side in pixels of rendered pictures.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def paint(self, person: Person, identity: Identity | None, wish: Wish) -> list[Pictures]:
        """See `Painter.paint`; dials mean nothing here."""
        return [
            [real_picture(person, prompt, seed, self.size) for seed in seeds]
            for prompt, seeds in zip(wish.prompts, wish.seeds, strict=True)
        ]


class CopyPainter(Bound):
    """Copy-paste: the reference photo, whatever the prompt says."""

    def paint(self, person: Person, identity: Identity | None, wish: Wish) -> list[Pictures]:
        """See `Painter.paint`; all pictures are the same."""
        return [[person.photos[k % len(person.photos)] for k in range(len(seeds))] for seeds in wish.seeds]


def check_prompts(prompts: Sequence[str], people: Sequence[Person]) -> None:
    """Raises PromptError for the first prompt that the world cannot fulfil for somebody, before anything is painted."""
    for prompt in prompts:
        for person in people[:2]:
            if person.sitter is not None:
                from limner.world.prompts import view_from_prompt

                try:
                    view_from_prompt(prompt, person.sitter, 0)
                except PromptError as e:
                    raise PromptError(f"There is no real picture to compare with: {e.message}", e.hint) from e


class Peak:
    """Peak memory since it was made, in MB: of the accelerator if there is one, else of this process."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far

    def __call__(self) -> float:
        """The peak so far."""
        import torch

        if self.cuda:
            return torch.cuda.max_memory_allocated() / 1e6
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
        except (OSError, StopIteration):
            import resource
            import sys

            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _wait() -> None:
    """Until the accelerator has done what it was told."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()

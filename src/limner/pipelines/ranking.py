"""Scores that help to choose among pictures, and best of N: paint more than is wanted, keep what resembles the person
most. None of them is a measurement: see `limner.evaluation` for that."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import limner
from limner.errors import FaceError, WeightsUnavailable
from limner.faces import FaceEmbedder, FaceFinder
from limner.types import Portrait

if TYPE_CHECKING:
    from PIL import Image

    from limner.encoders.clip_scorer import ClipScorer
    from limner.pipelines.loading import Model

Ranker = Callable[["Image.Image"], float]
"""Scores a picture; higher is better. Any function will do."""

NO_FACE = -1.0
PACKAGED, SOMEBODY = "mini-clip", "a person"


class Likeness:
    """How much a picture resembles a person to a recogniser: the cosine of its largest face with a reference.

    A picture without a face scores -1, so it is never preferred. A ranker must not be the recogniser that an evaluation
    uses, and a score that was selected for is no measurement: it only says which of several pictures is best.

    Args:
        embedder: the recogniser; by default of the CLI, the face encoder of the method itself.
        reference: (D,) embedding of the person by the same recogniser.
        finder: None makes one with default settings.
    """

    def __init__(self, embedder: FaceEmbedder, reference: np.ndarray, finder: FaceFinder | None = None) -> None:
        self.embedder, self.finder = embedder, finder or FaceFinder()
        self.reference = reference / np.linalg.norm(reference)

    def __call__(self, image: Any) -> float:
        """The cosine, -1 to 1."""
        try:
            face = self.finder.face(image)
        except FaceError:
            return NO_FACE
        return float(self.embedder.embed(face) @ self.reference)


class TextFit:
    """How well a picture fits its sentence to a CLIP: their cosine (CLIPScore without its scaling, arXiv 2104.08718).

    Args:
        clip: not the one that an evaluation uses.
    """

    def __init__(self, clip: ClipScorer) -> None:
        self.clip = clip

    def __call__(self, image: Any, prompt: str) -> float:
        """The cosine of a PIL picture and a prompt, -1 to 1. Weights in the prompt are ignored, S* is a person."""
        import torch

        from limner.encoders.pseudo_words import plain_text
        from limner.encoders.tokenizer import PromptTruncated

        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        device = next(self.clip.parameters()).device
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptTruncated)
            return float(self.clip(pixels.to(device), [plain_text(prompt, SOMEBODY)])[0])


def text_fit(model: Model, folder: str | Path | None = None) -> TextFit:
    """What scores a model's pictures for their fit to the sentence, on the device where it paints.

    Args:
        folder: of a CLIP, as `ClipScorer.load` takes it; None takes the one that ships for sitters.

    Raises:
        WeightsUnavailable: none for this model.
        ConfigError, CorruptData, WeightsMismatch: see `ClipScorer.load`.
    """
    from limner.encoders.clip_scorer import ClipScorer

    if folder is None:
        folder = Path(limner.__file__).parent / "weights" / PACKAGED
        if model.world != "sitters" or not folder.is_dir():
            raise WeightsUnavailable(
                f"No CLIP that knows the world of {model.name} is here to compare picture and text.",
                "Give the folder of one with --text-scorer.",
            )
    return TextFit(ClipScorer.load(folder).to(model.pipe._execution_device))


def keep_best(portraits: Iterable[Portrait], ranker: Ranker, keep: int) -> list[Portrait]:
    """The `keep` portraits that the ranker scores highest, best first, with the score under `scores["likeness"]`."""
    scored = [
        dataclasses.replace(p, scores={**p.scores, "likeness": round(float(ranker(p.image)), 4)}) for p in portraits
    ]
    return sorted(scored, key=lambda p: -p.scores["likeness"])[:keep]

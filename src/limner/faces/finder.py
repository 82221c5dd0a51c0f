"""The one way from a picture to a face: CLI, web page and pipelines all call `FaceFinder`."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limner.errors import ConfigError, FaceTooSmall, NoFaceFound
from limner.faces.align import box_similarity, similarity, template, warp
from limner.faces.choose import ADVICE, Choice, choose, parse_choice
from limner.faces.detect import DetectedFace, FaceDetector, make_detector
from limner.faces.embed import FaceEmbedder, OnnxEmbedder
from limner.faces.images import MAX_PIXELS, ImageSource, load_image, source_name
from limner.faces.pose import estimate_pose
from limner.faces.quality import judge
from limner.types import Face

ALIGNED = 448
"""Side of `Face.image`."""


@dataclass(frozen=True)
class Found:
    """The faces of one picture and the one that was chosen.

    Attributes:
        name: what messages call the picture.
        image: (H, W, 3) uint8 RGB, upright.
        detected: every face, from left to right; never empty.
        chosen: index of the chosen one.
        choice: the rule that chose it.
    """

    name: str
    image: np.ndarray
    detected: tuple[DetectedFace, ...]
    chosen: int
    choice: Choice

    def face(self, index: int | None = None) -> Face:
        """Face number `index`, by default the chosen one, aligned and judged."""
        return align_face(self.image, self.detected[self.chosen if index is None else index], self.name)

    @property
    def advice(self) -> str:
        """With several faces: which was taken and how to choose another; else empty."""
        if len(self.detected) == 1:
            return ""
        why = f", the {self.choice} one" if self.choice == "largest" else f" ({self.choice})"
        if not isinstance(self.choice, str):
            why = ", as chosen"
        return f"{self.name}: {len(self.detected)} faces; took number {self.chosen}{why}. {ADVICE}"


class FaceFinder:
    """Finds, chooses, aligns and judges faces. Nothing is loaded before the first picture comes.

    Args:
        detector: a name of `limner.faces.detect.DETECTORS`, or a detector.
        weights: local file of the detector's weights.
        embedder: a name of `limner.faces.embed.EMBEDDERS`, or an embedder; needed only for the choice `like:PHOTO`.
        min_size: least width in pixels of the chosen face.
        max_pixels: larger pictures are refused.
        accept_license: of weights that forbid commercial use.
    """

    def __init__(
        self,
        detector: str | FaceDetector = "auto",
        *,
        weights: str | Path | None = None,
        embedder: str | FaceEmbedder = "sface",
        min_size: float = 0,
        max_pixels: int = MAX_PIXELS,
        accept_license: bool = False,
    ) -> None:
        self.min_size, self.max_pixels = min_size, max_pixels
        self._detector, self._embedder = detector, embedder
        self._weights, self._accept = weights, accept_license
        self._lock = threading.Lock()

    @property
    def detector(self) -> FaceDetector:
        """The detector, loaded at first use; raises what `make_detector` raises."""
        with self._lock:
            if isinstance(self._detector, str):
                self._detector = make_detector(self._detector, weights=self._weights, accept_license=self._accept)
            return self._detector

    @property
    def embedder(self) -> FaceEmbedder:
        """The recogniser, loaded at first use; raises what `OnnxEmbedder.load` raises."""
        with self._lock:
            if isinstance(self._embedder, str):
                self._embedder = OnnxEmbedder.load(self._embedder, accept_license=self._accept)
            return self._embedder

    def find(self, source: ImageSource, choice: Choice = "largest") -> Found:
        """All faces of a picture, one of them chosen.

        Args:
            source: what `load_image` takes.
            choice: what `choose` takes, or `like:PHOTO`: whoever looks like the largest face of that photo.

        Raises:
            UnreadableImage, ImageTooLarge: from `load_image`.
            NoFaceFound: no face at any scale.
            SeveralFaces: the choice fits none of the faces, or `only` was asked for and there are several.
            FaceTooSmall: the chosen face is narrower than `min_size`.
        """
        image, name = load_image(source, max_pixels=self.max_pixels), source_name(source)
        faces = self.detector.detect(image)
        if not faces:
            raise NoFaceFound(
                f"No face was found in {name} ({image.shape[1]} × {image.shape[0]}).",
                "Give a picture that shows the whole face, from about the front and not too dark.",
            )
        chosen = self._choose(image, faces, choice)
        if faces[chosen].size[0] < self.min_size:
            raise FaceTooSmall(
                f"The chosen face in {name} is {faces[chosen].size[0]:.0f} px wide; {self.min_size:.0f} are needed.",
                "Give a larger picture, or choose a larger face.",
            )
        return Found(name, image, tuple(faces), chosen, choice)

    def face(self, source: ImageSource, choice: Choice = "largest") -> Face:
        """The chosen face of a picture, aligned and judged; raises what `find` raises."""
        return self.find(source, choice).face()

    def resolve_choice(self, choice: Choice) -> Choice:
        """The choice with `like:PHOTO` replaced by the embedding of that photo's largest face; for use many times.

        Raises:
            ConfigError: not a choice.
            UnreadableImage, ImageTooLarge, NoFaceFound, FaceTooSmall: about the reference photo.
        """
        if not isinstance(choice, str):
            return choice
        if not choice.startswith("like:"):
            return parse_choice(choice)
        path = choice.removeprefix("like:")
        if not path:
            raise ConfigError("The choice of a face is 'like:'; the path of a photo is expected after it.")
        return self.embedder.embed(self.face(path))

    def _choose(self, image: np.ndarray, faces: list[DetectedFace], choice: Choice) -> int:
        choice = self.resolve_choice(choice)
        size = (image.shape[1], image.shape[0])
        if not isinstance(choice, np.ndarray):
            return choose(faces, choice, size=size)
        return choose(
            faces,
            choice,
            size=size,
            embed=lambda i: self.embedder.embed(align_face(image, faces[i])),
            same_person=self.embedder.same_person,
        )


def align_face(image: np.ndarray, detected: DetectedFace, source: str = "") -> Face:
    """A detected face as a `Face`: aligned to the ArcFace template at 448, with pose and quality.

    Without landmarks it is placed by its box, and there is no pose.

    Args:
        image: (H, W, 3) uint8, the picture that it was found in.
        detected: where it lies.
        source: where the picture came from, for messages.
    """
    if detected.landmarks is None:
        matrix, pose = box_similarity(detected.box, ALIGNED), None
    else:
        matrix = similarity(detected.landmarks, template(ALIGNED))
        pose = estimate_pose(detected.landmarks)
    crop = warp(image, matrix, ALIGNED)
    return Face(
        image=np.ascontiguousarray(crop.transpose(2, 0, 1), dtype=np.float32) / 255,
        box=detected.box,
        score=detected.score,
        matrix=matrix,
        landmarks=detected.landmarks,
        pose=pose,
        quality=judge(image, detected, pose),
        source=source,
        photo=image,
    )

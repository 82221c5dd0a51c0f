"""Judges who know the truth of every rendered picture, and nothing of any other: the ruler alone is under test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from limner.evaluation.painting import seeds_of
from limner.evaluation.people import Person, gather
from limner.evaluation.recipe import Benchmark
from limner.evaluation.scorers import About, AttributeReader, Judges, Read, Recogniser, TextAndImage
from limner.faces import DetectedFace, FaceDetector, FaceFinder, align_face
from limner.training.tasks.attributes import ATTRIBUTES, numbers_of
from limner.types import Face
from limner.world.identity import Sitter
from limner.world.labels import labels
from limner.world.prompts import requirements, view_from_prompt
from limner.world.render import Picture, render

WORDS = [(name, word) for name, words in ATTRIBUTES.items() for word in words]


def digest(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


class Truth:
    """Every real picture of a benchmark by its pixels: whom it shows, and how."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.pictures: dict[str, Picture] = {}
        self.faces: dict[str, Sitter] = {}
        for person in gather(benchmark.people, FaceFinder("cascade")):
            self._reference(person)
            for k, prompt in enumerate(benchmark.prompts):
                assert person.sitter is not None
                for seed in seeds_of(benchmark, person.key, k, benchmark.pictures):
                    view = view_from_prompt(prompt, person.sitter, seed)
                    self._know(render(person.sitter, view, benchmark.people.size))

    def _know(self, picture: Picture) -> None:
        self.pictures[digest(picture.image)] = picture
        face = align_face(picture.image, self.detected(picture))
        self.faces[digest(face.image)] = picture.sitter

    def _reference(self, person: Person) -> None:
        assert person.sitter is not None
        for face in person.faces:
            self.faces[digest(face.image)] = person.sitter

    @staticmethod
    def detected(picture: Picture) -> DetectedFace:
        x0, y0, x1, y1 = (float(v) for v in picture.box)
        return DetectedFace((x0, y0, x1, y1), 1.0, np.asarray(picture.landmarks, np.float64))


class Detector(FaceDetector):
    name: ClassVar[str] = "truth"
    license: ClassVar[str] = "Apache-2.0"
    levels: ClassVar[tuple[int, ...]] = (128,)
    last_level: ClassVar[int] = 128

    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    def scan(self, image: np.ndarray) -> list[DetectedFace]:
        return self.detect(image)

    def detect(self, image: np.ndarray) -> list[DetectedFace]:
        picture = self.truth.pictures.get(digest(image))
        return [self.truth.detected(picture)] if picture is not None else []


class Knower(Recogniser):
    """A person's own direction, and a little of what this crop looks like: two pictures agree, but not fully."""

    about = About("recogniser", "knower", "tests", "0")

    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    def embed(self, faces: Sequence[Face]) -> np.ndarray:
        rows = []
        for face in faces:
            who = np.random.default_rng(self.truth.faces[digest(face.image)].seed).normal(size=32)
            how = np.random.default_rng(int(digest(face.image)[:8], 16)).normal(size=32)
            row = who + 0.4 * how
            rows.append(row / np.linalg.norm(row))
        return np.array(rows, np.float32).reshape(len(rows), 32)


class Speaker(TextAndImage):
    """One direction for every word of every attribute."""

    about = About("clip", "speaker", "tests", "0")

    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        return np.stack([_said(requirements(p)) for p in prompts])

    def pictures(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([_said(_labels(self.truth, image)) for image in images])


class Seer(AttributeReader):
    """The labels of the picture; of an unknown one, nothing."""

    about = About("attributes", "seer", "tests", "0")

    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    def read(self, images: Sequence[np.ndarray]) -> Read:
        known = [self.truth.pictures.get(digest(image)) for image in images]
        numbers = [np.zeros(8) if p is None else np.array(numbers_of(p.view)) for p in known]
        words = [_labels(self.truth, image) for image in images]
        features = [
            np.concatenate([image[::32, ::32].ravel() / 255, n]) for image, n in zip(images, numbers, strict=True)
        ]
        return Read(words, np.array(numbers, np.float32), np.array(features, np.float32))


def truth_judges(benchmark: Benchmark) -> Judges:
    """Judges who know every picture that could be real."""
    truth = Truth(benchmark)
    finder = FaceFinder(Detector(truth))
    for person in gather(benchmark.people, finder):
        _remember(truth, person, benchmark)
    return Judges((Knower(truth),), Speaker(truth), Seer(truth), finder, features="attributes", detector="truth")


def _remember(truth: Truth, person: Person, benchmark: Benchmark) -> None:
    """Reference photos as pictures too, so that a copy of them is recognised."""
    from limner.evaluation import people
    from limner.world.sampling import sample_view
    from limner.world.seeds import derive

    assert person.sitter is not None
    for attempt in range(people._TRIES):
        seed = derive("reference", benchmark.people.seed, person.sitter.seed, 0, attempt)
        view = sample_view(person.sitter, seed, "any", style="photo", headwear="none")
        picture = render(person.sitter, view, benchmark.people.size)
        if np.array_equal(picture.image, person.photos[0]):
            truth._know(picture)
            return
    raise AssertionError("the reference photo cannot be found again")


def _labels(truth: Truth, image: np.ndarray) -> dict[str, str]:
    picture = truth.pictures.get(digest(image))
    return {} if picture is None else labels(picture.sitter, picture.view)


def _said(words: dict[str, str]) -> np.ndarray:
    row = np.array([float(words.get(name) == word) for name, word in WORDS], np.float32)
    return row / max(float(np.linalg.norm(row)), 1e-12)

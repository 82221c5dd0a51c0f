"""People from the world and from folders of photos, and people whom a method cannot enrol."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from limner.errors import ConfigError, FaceError
from limner.evaluation.judging import shots_of
from limner.evaluation.painters import CopyPainter, Enrolled, Painter
from limner.evaluation.painting import Job, jobs_of, paint_all
from limner.evaluation.people import Person, gather, gather_slice, real_picture
from limner.evaluation.recipe import Benchmark, PeopleSpec
from limner.evaluation.store import MAIN, Store, encode_png
from limner.faces import DetectedFace, FaceDetector, FaceFinder
from limner.training.progress import silent

PROMPT = "S* as a wizard, in a forest"


class Fixed(FaceDetector):
    """A face in the middle of every picture that is bright enough."""

    name: ClassVar[str] = "fixed"
    license: ClassVar[str] = "Apache-2.0"
    levels: ClassVar[tuple[int, ...]] = (64,)
    last_level: ClassVar[int] = 64

    def scan(self, image: np.ndarray) -> list[DetectedFace]:
        return self.detect(image)

    def detect(self, image: np.ndarray) -> list[DetectedFace]:
        points = np.array([[24, 26], [40, 26], [32, 34], [26, 42], [38, 42]], float)
        return [DetectedFace((18, 16, 46, 50), 1.0, points)] if image.mean() > 40 else []


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for person in ("ann", "bob b", "cyd"):
        (tmp_path / "photos" / person).mkdir(parents=True)
        for k in range(3):
            image = np.random.default_rng([len(person), k]).integers(60, 255, (64, 64, 3), dtype=np.uint8)
            (tmp_path / "photos" / person / f"{k}.png").write_bytes(encode_png(image))
    return tmp_path / "photos"


def folder_spec(photos: Path, count: int = 3) -> PeopleSpec:
    return PeopleSpec(kind="folder", path=str(photos), count=count, gallery=count, align="detector")


def test_photos_of_a_folder_become_people_whatever_their_files_are_called(photos: Path) -> None:
    finder = FaceFinder(Fixed())
    people = gather(folder_spec(photos), finder)
    assert [p.key for p in people] == ["ann", "bob_b", "cyd"]
    assert [(len(p.photos), len(p.faces), len(p.others)) for p in people] == [(1, 1, 2)] * 3
    (photos / "ann" / "0.png").rename(photos / "ann" / "z.png")
    (photos / "ann" / "1.png").rename(photos / "ann" / "0.png")
    again = gather(folder_spec(photos), finder)
    np.testing.assert_array_equal(again[0].photos[0], people[0].photos[0])
    ceiling = real_picture(again[0], PROMPT, 1, 64)
    assert any(np.array_equal(ceiling, other) for other in people[0].others)
    assert not np.array_equal(ceiling, people[0].photos[0])


def test_one_photo_of_a_person_is_too_few(photos: Path) -> None:
    for k in (1, 2):
        (photos / "cyd" / f"{k}.png").unlink()
    with pytest.raises(ConfigError, match="2 people with more than 1 photos; 3 are asked for"):
        gather(folder_spec(photos), FaceFinder(Fixed()))


def test_reference_photos_of_sitters_are_photos_and_always_the_same() -> None:
    spec, finder = PeopleSpec(count=2, gallery=3, size=64, references=2), FaceFinder(Fixed())
    people, again = gather(spec, finder), gather(spec, finder)
    assert len({p.key for p in people}) == 3
    assert all(len(p.faces) == 2 for p in people)
    assert not np.array_equal(people[0].photos[0], people[0].photos[1])
    np.testing.assert_array_equal(people[2].photos[1], again[2].photos[1])
    assert people[0].facts.keys() == {"sex", "age", "skin", "glasses"}
    small = gather_slice(spec, "tone_4", 2, finder)
    assert {p.facts["skin"] for p in small} == {"tone 4"}


class Unable(CopyPainter):
    """Cannot enrol the first person."""

    def __init__(self, unable: str) -> None:
        self.unable, self.asked = unable, 0

    def enroll(self, person: Person) -> Enrolled:
        self.asked += 1
        if person.key == self.unable:
            raise FaceError("No face was found.")
        return super().enroll(person)


def test_somebody_who_cannot_be_enrolled_is_a_failure_not_a_gap(tmp_path: Path) -> None:
    benchmark = Benchmark.from_dict(
        {
            "name": "failing",
            "people": {"count": 2, "gallery": 2, "size": 64},
            "prompts": [PROMPT, "S* on a beach"],
            "scorers": {"recognisers": ["r"], "clip": "c"},
        }
    )
    people = gather(benchmark.people, FaceFinder(Fixed()))
    job, store = Job(MAIN, MAIN, "m", count=2, prompts=2, pictures=3), Store(tmp_path)
    painter = Unable(people[0].key)
    made: Painter = painter
    for _ in range(2):
        assert paint_all(benchmark, store, {MAIN: people}, [job], lambda name: made, silent) == 0
    assert painter.asked == 2
    shots = shots_of(store, job, people)
    assert [s.path is None for s in shots] == [True] * 6 + [False] * 6
    assert jobs_of(benchmark)[0].pictures == 4

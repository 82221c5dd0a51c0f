"""The chosen face is the one that the rule names, for every caller."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from limner.errors import ConfigError, FaceTooSmall, NoFaceFound, SeveralFaces
from limner.faces import DetectedFace, FaceFinder, Found, OnnxEmbedder, choose, parse_choice

GROUP = {
    "0001_female": (20, 60, 300),
    "0003_female": (340, 300, 420),
    "0005_male": (800, 40, 260),
    "0011_male": (1100, 500, 200),
    "0013_male": (700, 750, 90),
    "0007_female": (500, 80, 150),
}
"""Left, top and side of each photo in the group picture; 0003_female is the largest and 0013_male the smallest."""


@pytest.fixture(scope="module")
def group(montage: Callable[[dict], np.ndarray]) -> np.ndarray:
    return montage(GROUP)


FACES = [
    DetectedFace((10, 10, 50, 60), 0.9),
    DetectedFace((100, 100, 200, 230), 0.8),
    DetectedFace((190, 20, 260, 110), 0.95),
    DetectedFace((300, 200, 330, 240), 0.99),
]
SIZE = (400, 300)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("largest", 1), ("center", 1), ("0", 0), ("3", 3), (2, 2), ("30,30", 0), ((399, 299), 3), ((195, 105), 2),
        ("270,50", 2), ("0,0,60,60", 0), ((90, 90, 210, 240), 1), ((340, 250, 390, 290), 3),
    ],
)  # fmt: skip
def test_rules(rule: object, expected: int) -> None:
    assert choose(FACES, rule, size=SIZE) == expected


def test_only_demands_exactly_one() -> None:
    assert choose(FACES[:1], "only", size=SIZE) == 0
    with pytest.raises(SeveralFaces, match="there are 4") as caught:
        choose(FACES, "only", size=SIZE)
    assert "--choose" in caught.value.hint


def test_a_choice_that_fits_none() -> None:
    for rule in (4, "17", -1):
        with pytest.raises((SeveralFaces, ConfigError)):
            choose(FACES, rule, size=SIZE)
    with pytest.raises(NoFaceFound):
        choose([], "largest", size=SIZE)


@pytest.mark.parametrize("text", ["biggest", "1.5", "-1", "1,2,3", "nan,1", "", "1,2,3,x"])
def test_what_is_no_choice_says_what_is(text: str) -> None:
    with pytest.raises(ConfigError, match="largest, center, only, a number"):
        parse_choice(text)


def test_a_box_needs_an_area() -> None:
    with pytest.raises(ConfigError, match="X1 > X0"):
        choose(FACES, (5.0, 5.0, 5.0, 9.0), size=SIZE)


def test_by_embedding() -> None:
    vectors = np.eye(4, dtype=np.float32)
    reference = np.array([0.1, 0.2, 3.0, 0.0])
    assert choose(FACES, reference, size=SIZE, embed=lambda i: vectors[i], same_person=0.5) == 2
    with pytest.raises(SeveralFaces, match="None of the 4 faces"):
        choose(FACES, np.ones(4), size=SIZE, embed=lambda i: vectors[i], same_person=0.6)
    with pytest.raises(ConfigError, match="embedder"):
        choose(FACES, reference, size=SIZE)


def chosen_photo(found: Found) -> str:
    x, y = found.detected[found.chosen].center
    (name,) = [n for n, (left, top, side) in GROUP.items() if left < x < left + side and top < y < top + side]
    return name


def test_a_group_photo(group: np.ndarray, finder: FaceFinder) -> None:
    for rule, expected in (
        ("largest", "0003_female"),
        ("center", "0003_female"),
        ("0", "0001_female"),
        ("3", "0013_male"),
        ("1200,600", "0011_male"),
        ("800,40,1060,300", "0005_male"),
    ):
        assert chosen_photo(finder.find(group, rule)) == expected, rule
    with pytest.raises(SeveralFaces, match="there are 6"):
        finder.find(group, "only")


def test_whoever_looks_like_the_reference(
    group: np.ndarray, photos: dict, yunet: object, embedder: OnnxEmbedder, tmp_path: object
) -> None:
    from PIL import Image

    finder = FaceFinder("yunet", weights=yunet, embedder=embedder)
    for name in ("0011_male", "0007_female"):
        path = f"{tmp_path}/{name}.png"
        Image.fromarray(photos[name]).save(path)
        assert chosen_photo(finder.find(group, f"like:{path}")) == name
    Image.fromarray(photos["astronaut"]).save(f"{tmp_path}/stranger.png")
    with pytest.raises(SeveralFaces, match="looks like the reference"):
        finder.find(group, f"like:{tmp_path}/stranger.png")
    with pytest.raises(ConfigError, match="path of a photo"):
        finder.find(group, "like:")


def test_advice_names_the_taken_face_and_the_way_to_another(
    group: np.ndarray, photos: dict, finder: FaceFinder
) -> None:
    found = finder.find(group)
    assert f"6 faces; took number {found.chosen}, the largest one" in found.advice
    assert "--choose" in found.advice
    assert finder.find(photos["0001_female"]).advice == ""


def test_a_face_below_the_demanded_size(photos: dict, yunet: object) -> None:
    demanding = FaceFinder("yunet", weights=yunet, min_size=200)
    assert demanding.face(photos["0001_female"]).quality.size > 200
    with pytest.raises(FaceTooSmall, match="200 are needed"):
        demanding.face(photos["astronaut"])

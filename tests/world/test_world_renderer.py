"""The sitters and the renderer: people are for ever, poses mean what they say, and the truth is true."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from limner.errors import ConfigError, NoFaceFound
from limner.faces.finder import FaceFinder
from limner.world import shape
from limner.world.factors import EYEWEAR, HAIR_STYLES, HEADWEAR, Expression, View
from limner.world.hair import CUTS
from limner.world.identity import PERSONAL, lookalike, sitter
from limner.world.render import MASKS, _form, _landmarks, render
from limner.world.sampling import own_wear, sample_view

LEFT_EYE, RIGHT_EYE, NOSE, LEFT_MOUTH, RIGHT_MOUTH = range(5)


def plain(seed: int = 1, **factors) -> View:
    """The sitter's own looks, photographed simply."""
    return View(**{**own_wear(sitter(seed)), "eyewear": "none", **factors})


def test_a_seed_is_a_person_for_ever() -> None:
    person = sitter(7)
    assert (person.sex, round(person.age), person.hair.style, person.iris_name) == ("woman", 31, "short", "blue")
    assert person.form.jaw_w == pytest.approx(0.568299, abs=1e-6)
    assert person.skin == pytest.approx(0.017836, abs=1e-6)


@pytest.mark.parametrize("seed", [-1, 2**31, 1.5, True, "1"])
def test_seeds_out_of_range_are_refused(seed) -> None:
    with pytest.raises(ConfigError, match="seed"):
        sitter(seed)


def test_people_differ_and_the_space_is_wide() -> None:
    people = [sitter(k) for k in range(400)]
    vectors = np.stack([p.vector for p in people])
    assert len({v.tobytes() for v in vectors}) == 400
    tones = np.asarray([p.skin for p in people])
    assert (np.histogram(tones, 8, (0, 1))[0] > 25).all()
    assert {p.sex for p in people} == {"woman", "man"}
    assert min(p.age for p in people) < 22
    assert max(p.age for p in people) > 72
    assert {p.hair.style for p in people} == set(HAIR_STYLES)
    assert (vectors[:, : len(PERSONAL)].std(0) > 0).all()


def test_a_lookalike_has_the_colours_and_another_face() -> None:
    person, other = sitter(3), lookalike(sitter(3), 99)
    assert (other.skin_color, other.hair, other.iris_color) == (person.skin_color, person.hair, person.iris_color)
    assert other.form != person.form
    assert np.abs(other.vector - person.vector)[: len(PERSONAL)].mean() > 0.5


def test_turning_nodding_and_leaning_have_their_signs() -> None:
    person = sitter(1)
    straight, right, up, clockwise = (
        render(person, plain(**pose)).landmarks for pose in ({}, {"yaw": 30.0}, {"pitch": 15.0}, {"roll": 20.0})
    )

    def nose_from_eyes(marks: np.ndarray) -> np.ndarray:
        return marks[NOSE] - marks[[LEFT_EYE, RIGHT_EYE]].mean(0)

    assert nose_from_eyes(right)[0] > nose_from_eyes(straight)[0] + 3
    assert nose_from_eyes(up)[1] < nose_from_eyes(straight)[1] - 2
    lean = clockwise[RIGHT_EYE] - clockwise[LEFT_EYE]
    assert np.degrees(np.arctan2(lean[1], lean[0])) == pytest.approx(20, abs=4)


@pytest.mark.parametrize("center", [(0.5, 0.46), (0.3, 0.6)])
def test_the_eyes_are_where_the_view_puts_them(center: tuple[float, float]) -> None:
    marks = render(sitter(2), plain(2, center=center, face_height=0.3)).landmarks
    assert marks[[LEFT_EYE, RIGHT_EYE]].mean(0) / 128 == pytest.approx(center, abs=0.012)


def test_sizes_show_the_same_picture() -> None:
    person, view = sitter(4), plain(4, yaw=20.0)
    small, large = render(person, view, 64), render(person, view, 256)
    np.testing.assert_allclose(small.landmarks * 4, large.landmarks, atol=1e-6)
    assert large.image.shape == (256, 256, 3)
    shrunk = large.image.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(shrunk - small.image).mean() < 4


def test_longer_lenses_stand_farther_away() -> None:
    wide, tele = (render(sitter(1), plain(focal=f)) for f in (35.0, 135.0))
    assert tele.depth.min() > 2.5 * wide.depth.min()


def test_landmarks_lie_on_the_skin() -> None:
    for seed in range(6):
        view = plain(seed, expression=Expression(smile=0.7, open=0.2 * (seed % 3)))
        form = _form(sitter(seed), view)
        for x, y, z in _landmarks(form):
            assert abs(shape.skin_distance(x, y, z, form)) < 0.01


def test_depth_and_masks_agree() -> None:
    picture = render(sitter(5), plain(5, headwear="wizard", face_height=0.3, center=(0.5, 0.6)))
    assert np.isinf(picture.depth[picture.mask == MASKS.index("background")]).all()
    assert np.isfinite(picture.depth[picture.mask > 0]).all()
    x, y = picture.landmarks[NOSE].astype(int)
    assert picture.depth[y, x] < picture.depth[picture.mask == MASKS.index("clothes")].mean()


def test_what_covers_a_landmark_hides_it() -> None:
    assert render(sitter(1), plain()).visible.all()
    dark = render(sitter(1), plain(eyewear="sunglasses")).visible
    assert not dark[[LEFT_EYE, RIGHT_EYE]].any()
    assert dark[[NOSE, LEFT_MOUTH, RIGHT_MOUTH]].all()
    assert not render(sitter(1), plain(yaw=75.0)).visible[RIGHT_EYE]


@pytest.mark.parametrize("kind", HEADWEAR[1:])
def test_headwear_is_worn_above_the_eyes(kind: str) -> None:
    picture = render(sitter(8), plain(8, headwear=kind, face_height=0.3, center=(0.5, 0.6)))
    rows = np.nonzero(picture.mask == MASKS.index("headwear"))[0]
    assert len(rows) > 60
    assert rows.mean() < picture.landmarks[LEFT_EYE, 1]
    assert picture.visible[[LEFT_EYE, RIGHT_EYE]].all()


@pytest.mark.parametrize("style", sorted(CUTS))
def test_every_cut_leaves_the_face_free(style: str) -> None:
    person = sitter(11)
    picture = render(person, plain(11, hair=replace(person.hair, style=style)))
    assert (picture.mask == MASKS.index("hair")).mean() > 0.02
    assert picture.visible.all()


def test_threads_do_not_disturb_each_other() -> None:
    jobs = [(sitter(k), sample_view(sitter(k), k)) for k in range(8)]
    alone = [render(*job, 64).image for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: render(*job, 64).image, jobs))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [0, 15, 4096, 12.5, "128", True])
def test_sizes_out_of_range_are_refused(size) -> None:
    with pytest.raises(ConfigError, match="size"):
        render(sitter(1), plain(), size)


def test_a_real_detector_finds_the_sitters(yunet: Path) -> None:
    finder = FaceFinder("yunet", weights=yunet)
    apart, missed, n = [], 0, 60
    for k in range(n):
        person = sitter(900 + k)
        view = sample_view(person, k, style="photo", yaw=-45 + 90 * k / (n - 1), eyewear=EYEWEAR[k % 2])
        picture = render(person, view)
        try:
            faces = finder.find(picture.image).detected
        except NoFaceFound:
            faces = ()
        missed += len(faces) != 1
        if len(faces) == 1:
            off = np.linalg.norm(faces[0].landmarks - picture.landmarks, axis=1)[picture.visible]
            apart.append(off.mean() / (picture.box[2] - picture.box[0]))
    assert missed <= 2
    assert (
        np.mean(apart) < 0.055
    )  # evenly spread turns, harder than the sampled ones; see benchmarks/check_world_faces.py

"""Pose has the right sign and size, and every warning comes when it should and only then."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from limner.faces import FaceFinder
from limner.faces.align import template
from limner.faces.pose import MODEL, estimate_pose
from limner.faces.quality import sharpness


def head(yaw: float, pitch: float, roll: float, distance: float = np.inf) -> np.ndarray:
    """Landmarks of the average face turned and seen from `distance` eye distances."""
    y, p, r = np.radians([yaw, pitch, roll])
    nod = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    shake = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    tilt = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    points = MODEL @ (tilt @ shake @ nod).T
    return points[:, :2] / (1 + points[:, 2:] / distance) * 60 + (200, 150)


@pytest.mark.parametrize(
    "pose", [(0, 0, 0), (35, 0, 0), (-50, 10, 0), (0, 25, 0), (0, -25, 30), (20, -15, -40), (5, 5, 170)]
)
def test_pose_of_a_turned_head(pose: tuple[float, float, float]) -> None:
    exact = estimate_pose(head(*pose))
    np.testing.assert_allclose(dataclasses.astuple(exact), pose, atol=1e-6)
    seen = estimate_pose(head(*pose, distance=12))
    np.testing.assert_allclose(dataclasses.astuple(seen), pose, atol=4)


def test_signs_are_those_of_the_types() -> None:
    frontal, right, up = head(0, 0, 0), head(30, 0, 0), head(0, 20, 0)
    assert right[2, 0] > frontal[2, 0]  # yaw > 0: the nose moves to the viewer's right
    assert up[2, 1] < frontal[2, 1]  # pitch > 0: it moves up
    assert head(0, 0, 10)[1, 1] > head(0, 0, 10)[0, 1]  # roll > 0, clockwise: the right eye sinks


def test_mirrored_photos_have_mirrored_poses(photos: dict, finder: FaceFinder) -> None:
    for name, image in photos.items():
        pose = finder.face(image).pose
        mirrored = finder.face(np.ascontiguousarray(image[:, ::-1])).pose
        assert abs(pose.yaw + mirrored.yaw) < 5, name
        assert abs(pose.roll + mirrored.roll) < 5, name
        assert abs(pose.pitch - mirrored.pitch) < 5, name
        assert abs(pose.yaw) < 10, name


def test_photos_as_taken_need_no_warning(photos: dict, finder: FaceFinder) -> None:
    for name, image in photos.items():
        quality = finder.face(image).quality
        if name == "astronaut":
            assert quality.warnings == (f"the face is {quality.size:.0f} px wide; 112 or more gives a better likeness",)
        else:
            assert quality.warnings == (), name
            assert quality.score > 0.9, name


def test_blur_and_size_lower_the_score(photos: dict, finder: FaceFinder) -> None:
    for name in ("0001_female", "0011_male"):
        sharp = finder.face(photos[name]).quality
        blurred = finder.face(cv2.GaussianBlur(photos[name], (0, 0), 9)).quality
        small = finder.face(cv2.resize(photos[name], None, fx=0.2, fy=0.2, interpolation=cv2.INTER_AREA)).quality
        assert blurred.sharpness < 0.4 < sharp.sharpness
        assert any("blurred" in warning for warning in blurred.warnings)
        assert any("px wide" in warning for warning in small.warnings)
        assert sharp.score > 1.3 * max(blurred.score, small.score)


def test_sharpness_falls_with_every_blur() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    values = [sharpness(noise), *(sharpness(cv2.GaussianBlur(noise, (0, 0), s)) for s in (0.5, 1, 2, 4))]
    assert values == sorted(values, reverse=True)
    assert sharpness(np.full((50, 50, 3), 9, np.uint8)) == 0
    assert 0 <= values[-1] <= values[0] <= 1


def test_faces_cut_by_the_border_say_so(photos: dict, found: dict, finder: FaceFinder) -> None:
    image = photos["0005_male"]
    half = finder.face(np.ascontiguousarray(image[:, int(found["0005_male"][2, 0]) :]))
    assert any("outside the picture" in warning for warning in half.quality.warnings)


def test_cover_and_darkness_are_noticed(photos: dict, found: dict, finder: FaceFinder, painted: Callable) -> None:
    eyes = template(448)[:2]
    circle = np.array([(np.cos(a) * 62, np.sin(a) * 44 + 4) for a in np.linspace(0, 2 * np.pi, 60)])
    lower = template(448)[2] + np.array([(-150, 20), (0, -25), (150, 20), (130, 130), (0, 200), (-130, 130)])
    for name in ("0001_female", "0007_female", "0011_male", "0013_male"):  # shaded, dark and bearded ones
        image = photos[name]
        shades = painted(image, found[name], [eye + circle for eye in eyes], (15, 15, 18))
        mask = painted(image, found[name], [lower], (110, 160, 200))
        for picture, word in ((shades, "eyes look covered"), (mask, "mouth looks covered"), (image // 8, "too dark")):
            quality = finder.face(picture).quality
            assert any(word in warning for warning in quality.warnings), (name, word, quality.warnings)
            assert quality.score < 0.6

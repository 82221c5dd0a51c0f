"""Alignment: the similarity is the least-squares one, sizes agree with each other, and a face can be put back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from limner.errors import FaceError
from limner.faces import DetectedFace, align_face, head_crop, put_back
from limner.faces.align import (
    ARCFACE_112,
    HEAD_ZOOM,
    box_similarity,
    halved,
    invert,
    scale_of,
    similarity,
    template,
    transform,
    usual_box,
    warp,
)


def smooth_picture(height: int, width: int) -> np.ndarray:
    """Waves of 20 pixels and more, so that resampling loses next to nothing."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [np.sin(x / 9 + c) + np.cos(y / (11 - c)) + np.sin((x + y) / 23) for c in range(3)]
    return ((np.stack(waves, -1) / 6 + 0.5) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_similarity_is_the_least_squares_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = rng.normal(size=(5, 2)) * 40, ARCFACE_112 + rng.normal(size=(5, 2)) * 9
    rows = [([x, -y, 1, 0], [y, x, 0, 1]) for x, y in source]  # times (a, b, u, v), of the matrix (a -b u; b a v)
    a, b, u, v = np.linalg.lstsq(np.vstack(rows), target.ravel(), rcond=None)[0]
    np.testing.assert_allclose(similarity(source, target), [[a, -b, u], [b, a, v]], atol=1e-9)


def test_similarity_recovers_turn_scale_and_shift() -> None:
    truth = np.array([[0.0, -3.0, 100.0], [3.0, 0.0, -20.0]])  # a quarter turn, thrice as large
    found = similarity(ARCFACE_112, transform(ARCFACE_112, truth))
    np.testing.assert_allclose(found, truth, atol=1e-9)
    assert scale_of(found) == pytest.approx(3)
    np.testing.assert_allclose(transform(transform(ARCFACE_112, found), invert(found)), ARCFACE_112, atol=1e-9)


@pytest.mark.parametrize("points", [np.ones((5, 2)), np.full((5, 2), np.nan)])
def test_impossible_landmarks_are_a_typed_error(points: np.ndarray) -> None:
    with pytest.raises(FaceError):
        similarity(points, template(112))


def test_the_template_is_arcfaces() -> None:
    np.testing.assert_allclose(template(112) - 0.5, ARCFACE_112)  # half a pixel: corner against centre of pixel (0, 0)
    np.testing.assert_allclose(template(448), 4 * template(112))


def test_the_crop_at_448_averaged_is_the_crop_at_112() -> None:
    image = smooth_picture(500, 600)
    landmarks = transform(template(448), np.array([[0.9, 0.2, 40], [-0.2, 0.9, 100]]))
    large = warp(image, similarity(landmarks, template(448)), 448)
    small = warp(image, similarity(landmarks, template(112)), 112)
    averaged = cv2.resize(large, (112, 112), interpolation=cv2.INTER_AREA)
    assert np.abs(averaged.astype(int) - small)[4:-4, 4:-4].mean() < 2


def test_a_crop_that_moves_nothing_is_the_picture() -> None:
    image = smooth_picture(64, 64)
    assert (warp(image, np.eye(2, 3), 64) == image).all()


def test_large_faces_do_not_alias() -> None:
    stripes = np.zeros((2000, 2000, 3), np.uint8)
    stripes[:, ::2] = 255
    small = warp(stripes, np.array([[0.05, 0, 6], [0, 0.05, 6]]), 112)
    assert np.abs(small[10:-10, 10:-10].astype(int) - 127).max() < 20


def test_halving_keeps_places() -> None:
    for width, scale, expected in ((1000, 0.3, 2), (999, 0.13, 4), (7, 0.01, 4), (4001, 0.25, 4), (50, 0.6, 1)):
        image = np.tile(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], (40, 1, 3))
        small, factor = halved(image, scale)
        assert factor == expected
        assert small.shape[1] == width // factor
        centers = (np.arange(small.shape[1]) + 0.5) * factor - 0.5
        assert np.abs(small[0, :, 0] - centers * 255 / (width - 1)).max() < 1.5


@pytest.mark.parametrize("angle", [0, 37, 180])
def test_a_face_is_put_back_where_it_was(angle: float) -> None:
    image = smooth_picture(400, 300)
    turn = np.hstack([cv2.getRotationMatrix2D((0, 0), angle, 0.5)[:, :2], [[150], [190]]])
    landmarks = transform(template(448) - 224, turn)
    matrix = similarity(landmarks, template(448))
    patch = warp(image, matrix, 448)
    back = put_back(image, patch, matrix).astype(int)
    assert np.abs(back - image)[2:-2, 2:-2].max() <= 6  # at the picture's own border the crop is black next to it
    red = put_back(image, np.full_like(patch, (255, 0, 0)), matrix)
    nose = landmarks[2].astype(int)
    assert (red[nose[1], nose[0]] == (255, 0, 0)).all()
    assert (red[0, 0] == image[0, 0]).all()
    assert not (image == (255, 0, 0)).all(-1).any()


def test_putting_back_at_the_border_and_outside() -> None:
    image = smooth_picture(100, 100)
    for move in ((-50, -50), (80, 20), (500, 500)):
        matrix = similarity(template(60) + move, template(448))
        assert put_back(image, warp(image, matrix, 448), matrix).shape == image.shape


def test_boxes_stand_in_for_landmarks() -> None:
    landmarks = transform(template(100), np.array([[2.0, 0, 70], [0, 2.0, 30]]))
    box = tuple(transform(np.reshape(usual_box(100), (2, 2)), np.array([[2.0, 0, 70], [0, 2.0, 30]])).ravel())
    np.testing.assert_allclose(box_similarity(box, 448), similarity(landmarks, template(448)), atol=1e-9)
    with pytest.raises(FaceError):
        box_similarity((5, 5, 5, 9), 448)
    face = align_face(smooth_picture(300, 400), DetectedFace(box, 0.8))
    assert face.image.shape == (3, 448, 448)
    assert face.image.dtype == np.float32
    assert face.pose is None
    assert any("no landmarks" in warning for warning in face.quality.warnings)


def test_the_head_crop_is_twice_as_wide_around_the_same_face() -> None:
    image = smooth_picture(700, 700)
    landmarks = transform(template(200), np.array([[0.98, 0.17, 200], [-0.17, 0.98, 250]]))
    x0, y0 = landmarks.min(0) - 60
    x1, y1 = landmarks.max(0) + 60
    face = align_face(image, DetectedFace((x0, y0, x1, y1), 0.9, landmarks))
    crop, matrix = head_crop(image, face, 256)
    assert crop.shape == (256, 256, 3)
    assert scale_of(matrix) / 256 == pytest.approx(scale_of(face.matrix) / 448 * HEAD_ZOOM)
    inside = transform(landmarks, matrix)
    assert ((inside > 64) & (inside < 192)).all()
    by_box, _ = head_crop(image, align_face(image, DetectedFace((x0, y0, x1, y1), 0.9)), 256)
    assert by_box.shape == (256, 256, 3)

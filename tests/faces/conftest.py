"""Real photos, and montages and damaged versions of them; all tests here use real detectors and recognisers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from limner.faces import FaceFinder, OnnxEmbedder, load_image
from limner.faces.align import invert, scale_of, similarity, template, transform

cv2.setNumThreads(2)


@pytest.fixture(scope="session")
def photos(shared: Path) -> dict[str, np.ndarray]:
    """Seven people: the shared photos and scikit-image's astronaut."""
    from skimage.data import astronaut

    pictures = {path.stem: load_image(path) for path in sorted((shared / "photos").glob("*.png"))}
    assert len(pictures) == 6
    return {**pictures, "astronaut": astronaut()}


@pytest.fixture(scope="session")
def finder(yunet: Path) -> FaceFinder:
    return FaceFinder("yunet", weights=yunet)


@pytest.fixture(scope="session")
def embedder(shared: Path) -> OnnxEmbedder:
    return OnnxEmbedder.load("mobilefacenet", shared / "models" / "MobileFaceNet.onnx")


@pytest.fixture(scope="session")
def found(photos: dict[str, np.ndarray], finder: FaceFinder) -> dict[str, np.ndarray]:
    """(5, 2) landmarks of every photo as it is."""
    landmarks = {name: finder.face(image).landmarks for name, image in photos.items()}
    assert all(points is not None for points in landmarks.values())
    return landmarks


@pytest.fixture(scope="session")
def montage(photos: dict[str, np.ndarray]) -> Callable[[dict[str, tuple[int, int, int]]], np.ndarray]:
    """{photo: (left, top, side)} → one picture of 1400 × 900 with those photos in it."""

    def paste(places: dict[str, tuple[int, int, int]]) -> np.ndarray:
        canvas = np.full((900, 1400, 3), (120, 130, 140), np.uint8)
        for name, (left, top, side) in places.items():
            small = cv2.resize(photos[name], (side, side), interpolation=cv2.INTER_AREA)
            canvas[top : top + side, left : left + side] = small
        return canvas

    return paste


@pytest.fixture(scope="session")
def turned() -> Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]:
    """(picture, degrees clockwise) → the turned picture, and the transform that turned it."""

    def turn(image: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
        height, width = image.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -angle, 0.8)
        return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE), matrix

    return turn


@pytest.fixture(scope="session")
def painted() -> Callable[..., np.ndarray]:
    """(picture, landmarks, polygons of a 448 crop, colour) → the picture with them painted on the face."""

    def paint(image: np.ndarray, landmarks: np.ndarray, polygons: list[np.ndarray], color: tuple) -> np.ndarray:
        matrix = similarity(landmarks, template(448))
        assert scale_of(matrix) > 0
        result = image.copy()
        for polygon in polygons:
            points = transform(polygon, invert(matrix)).round().astype(np.int32)
            cv2.fillPoly(result, [points], color, cv2.LINE_AA)
        return result

    return paint

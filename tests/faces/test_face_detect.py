"""A face is found in every photo, whatever its size, turn or crop, and none where there is none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from limner.errors import (
    ConfigError,
    LicenseNotAccepted,
    MissingDependency,
    NoFaceFound,
    WeightsMismatch,
    WeightsUnavailable,
)
from limner.faces import DetectedFace, FaceFinder, detect, make_detector
from limner.faces.align import invert, template, transform, usual_box
from limner.faces.cascade import Cascade
from limner.faces.detect import overlap
from limner.faces.insight import InsightFace
from limner.world.dataset import WorldDataset

Turn = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]


def error(points: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance of landmarks in shares of the distance between the eyes."""
    return float(np.linalg.norm(points - truth, axis=1).mean() / np.linalg.norm(truth[0] - truth[1]))


@pytest.mark.parametrize("scale", [0.1, 0.5, 4])
def test_every_size(photos: dict, found: dict, finder: FaceFinder, scale: float) -> None:
    for name, image in photos.items():
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = cv2.resize(image, None, fx=scale, fy=scale, interpolation=how)
        points = finder.face(resized).landmarks / scale
        assert error(points, found[name]) < (0.2 if scale < 0.5 else 0.1), name


@pytest.mark.parametrize("angle", [15, -40])
def test_turned_pictures_give_upright_crops(
    photos: dict, found: dict, finder: FaceFinder, turned: Turn, angle: float
) -> None:
    for name, image in photos.items():
        picture, matrix = turned(image, angle)
        face = finder.face(picture)
        assert error(transform(face.landmarks, invert(matrix)), found[name]) < 0.15, name
        upright = finder.face(image)
        assert abs(face.pose.roll - upright.pose.roll - angle) < 8, name


@pytest.mark.parametrize("quarters", [2, 3])
def test_pictures_on_their_side(photos: dict, finder: FaceFinder, quarters: int) -> None:
    for name, image in photos.items():
        height, width = image.shape[:2]
        nose = finder.face(image).landmarks[2]
        expected = {
            1: (nose[1], width - nose[0]),
            2: (width - nose[0], height - nose[1]),
            3: (height - nose[1], nose[0]),
        }
        points = finder.face(np.ascontiguousarray(np.rot90(image, quarters))).landmarks
        assert np.linalg.norm(points[2] - expected[quarters]) < 0.25 * np.linalg.norm(points[0] - points[1]), name


def test_crops_tight_to_chin_and_brow(photos: dict, found: dict, finder: FaceFinder) -> None:
    for name, image in photos.items():
        points = found[name]
        eyes, mouth = points[:2].mean(0)[1], points[3:].mean(0)[1]
        left, right = points[:, 0].min(), points[:, 0].max()
        brow, chin, side = 0.3 * (mouth - eyes), 0.6 * (mouth - eyes), 0.3 * (right - left)
        low = np.array([max(0, left - side), max(0, eyes - brow)]).astype(int)
        high = np.array([right + side, mouth + chin]).astype(int)
        crop = np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]])
        assert error(finder.face(crop).landmarks, points - low) < 0.15, name


def test_a_small_face_in_a_large_picture(photos: dict, finder: FaceFinder) -> None:
    canvas = np.full((3000, 4001, 3), 128, np.uint8)
    canvas[2000:2100, 3500:3600] = cv2.resize(photos["0003_female"], (100, 100), interpolation=cv2.INTER_AREA)
    face = finder.face(canvas)
    assert 50 < face.quality.size < 90
    assert np.linalg.norm(face.landmarks[2] - (3550, 2058)) < 10


def test_a_group_from_left_to_right(montage: Callable, finder: FaceFinder) -> None:
    places = {"0001_female": (700, 500, 200), "0003_female": (20, 10, 380), "0005_male": (480, 30, 90)}
    faces = finder.find(montage(places)).detected
    assert len(faces) == 3
    assert [round(face.center[0] / 100) for face in faces] == [2, 5, 8]
    assert all(face.score > 0.8 for face in faces)


@pytest.mark.parametrize(
    "name", ["chelsea", "coffee", "rocket", "coins", "gravel", "grass", "text", "hubble_deep_field"]
)
def test_no_face_where_there_is_none(finder: FaceFinder, name: str) -> None:
    import skimage.data

    with pytest.raises(NoFaceFound, match="No face was found") as caught:
        finder.face(getattr(skimage.data, name)())
    assert caught.value.hint


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 2), (20_000, 30)])
def test_odd_shapes_have_no_face(finder: FaceFinder, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    with pytest.raises(NoFaceFound):
        finder.find(noise)


def test_the_cascade_finds_faces_without_any_weights(photos: dict, found: dict) -> None:
    cascade = Cascade()
    for name in ("0003_female", "0011_male", "astronaut"):
        faces = cascade.detect(photos[name])
        assert len(faces) == 1
        assert faces[0].landmarks is None
        x0, y0, x1, y1 = faces[0].box
        inside = (found[name] > (x0, y0)) & (found[name] < (x1, y1))
        assert inside.all()


def test_our_own_detector_finds_photos_too(photos: dict, found: dict) -> None:
    for name in sorted(photos.keys() - {"astronaut"}):
        faces = make_detector("mini").detect(photos[name])
        assert len(faces) == 1, name
        width = faces[0].size[0]
        assert np.linalg.norm(faces[0].landmarks - found[name], axis=1).mean() < 0.08 * width, name


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_our_own_detector_takes_any_shape(shape: tuple[int, int]) -> None:
    assert make_detector("mini").detect(np.full((*shape, 3), 200, np.uint8)) == []


def test_our_own_detector_finds_sitters() -> None:
    detector = make_detector("mini")
    apart = []
    for sample in WorldDataset(split="test", identities=24, views=1, seed=7):
        faces = detector.detect(sample["image"])
        if abs(sample["view"]["yaw"]) > 45:
            continue
        assert len(faces) == 1, sample["view"]["style"]
        distance = np.linalg.norm(faces[0].landmarks - sample["landmarks"], axis=1)[np.asarray(sample["visible"])]
        apart.append(distance.mean() / (sample["box"][2] - sample["box"][0]))
    assert np.mean(apart) < 0.04


def test_without_weights_our_own_detector_takes_over_and_says_so_once(
    photos: dict, found: dict, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv("LIMNER_YUNET", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(detect, "_said", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            face = FaceFinder().face(photos["0003_female"])
            width = face.box[2] - face.box[0]
            assert np.linalg.norm(face.landmarks - found["0003_female"], axis=1).mean() < 0.12 * width
    assert len([record for record in caplog.records if "own small detector" in record.message]) == 1
    with pytest.raises(WeightsUnavailable, match="yunet") as caught:
        make_detector("yunet")
    assert "LIMNER_YUNET" in caught.value.hint


def test_weights_that_were_named_are_demanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable):
        make_detector("auto", weights=tmp_path / "absent.onnx")
    (tmp_path / "other.onnx").write_bytes(b"other weights")
    with pytest.raises(WeightsMismatch):
        make_detector("auto", weights=tmp_path / "other.onnx")
    monkeypatch.setenv("LIMNER_YUNET", str(tmp_path / "absent.onnx"))
    with pytest.raises(WeightsUnavailable):
        make_detector("auto")
    with pytest.raises(ConfigError, match="allowed: auto, yunet, mini, cascade, insightface"):
        make_detector("mtcnn")
    with pytest.raises(ConfigError, match="takes no weights"):
        make_detector("cascade", weights=tmp_path / "other.onnx")


def test_insightface_names_its_package_or_its_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMNER_ACCEPT_LICENSE", raising=False)
    with pytest.raises((MissingDependency, LicenseNotAccepted), match=r"package|commercial"):
        make_detector("insightface")
    assert not InsightFace.commercial


def test_insightfaces_answers_are_read(photos: dict) -> None:
    """A stand-in for its detection model, which takes BGR and gives boxes with scores, and landmarks."""

    class Model:
        def detect(self, image: np.ndarray, max_num: int) -> tuple[np.ndarray, np.ndarray]:
            assert max_num == 0
            assert (image == photos["astronaut"][..., ::-1]).all()
            return np.array([[1, 2, 30, 40, 0.75]], np.float32), np.arange(10, dtype=np.float32).reshape(1, 5, 2)

    (face,) = InsightFace(Model()).scan(photos["astronaut"])
    assert face.box == (1, 2, 30, 40)
    assert face.score == 0.75
    np.testing.assert_array_equal(face.landmarks, np.arange(10).reshape(5, 2))


def test_boxes_overlap() -> None:
    a, b = DetectedFace((0, 0, 2, 2), 1), DetectedFace((1, 0, 3, 2), 1)
    assert overlap(a, b) == pytest.approx(1 / 3)
    assert overlap(a, a) == 1
    assert overlap(a, DetectedFace((5, 5, 6, 6), 1)) == 0
    moved = DetectedFace((1, 2, 3, 4), 1, np.ones((5, 2))).moved(np.array([2.0, 10.0]), np.array([1.0, 0.0]))
    assert moved.box == (3, 20, 7, 40)
    assert (moved.landmarks == (3, 10)).all()


class Biased(detect.FaceDetector):
    """Sees every face where it is expected, its landmarks too low by a share that depends on the picture's size."""

    name, levels, last_level = "biased", (100,), 100
    look_sizes = (100, 100)
    off: ClassVar = {100: 0.10, 120: 0.02, 140: -0.02, 160: 0.03}

    def scan(self, image: np.ndarray) -> list[DetectedFace]:
        side = len(image)
        points = template(side, detect._LOOK_ZOOM) + np.array([0, self.off[side] * side])
        return [DetectedFace(usual_box(side, detect._LOOK_ZOOM), 0.95, points)]


def test_landmarks_are_the_mean_of_several_sizes() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    tops = []
    for sizes in ((), (120, 140, 160)):
        detector = Biased()
        detector.last_sizes = sizes  # type: ignore[misc]
        seen = detect._closer(detector, image, template(100, detect._LOOK_ZOOM), 100)
        assert seen is not None
        tops.append(float((seen.landmarks - template(100, detect._LOOK_ZOOM))[:, 1].mean()))
    once = 10.0  # a tenth of 100 pixels
    assert tops[0] == pytest.approx(once, abs=0.01)
    assert tops[1] == pytest.approx(once + 100 * (0.02 - 0.02 + 0.03) / 3, abs=0.01)

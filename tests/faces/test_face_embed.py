"""Recognisers tell people apart, refuse what does not fit them, and leave strangers out of a person's references."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from limner.errors import ConfigError, FaceError, WeightsMismatch, WeightsUnavailable
from limner.faces import EMBEDDERS, FaceFinder, OnnxEmbedder, Preprocessing, fuse
from limner.types import Face


@pytest.fixture(scope="module")
def people(photos: dict, finder: FaceFinder) -> dict[str, Face]:
    return {name: dataclasses.replace(finder.face(image), source=name) for name, image in photos.items()}


def versions(image: np.ndarray, width: float) -> dict[str, np.ndarray]:
    """The photo blurred by 1.5 % of the face's width, at half size, mirrored and darkened to 40 %."""
    return {
        "blurred": cv2.GaussianBlur(image, (0, 0), 0.015 * width),
        "half": cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "mirrored": np.ascontiguousarray(image[:, ::-1]),
        "dark": (image * 0.4).astype(np.uint8),
    }


def test_one_person_stays_one_person(photos: dict, people: dict, finder: FaceFinder, embedder: OnnxEmbedder) -> None:
    for name, image in photos.items():
        vector = embedder.embed(people[name])
        for what, version in versions(image, people[name].quality.size).items():
            assert embedder.embed(finder.face(version)) @ vector >= 0.80, (name, what)


def test_different_people_are_different(people: dict, embedder: OnnxEmbedder) -> None:
    vectors = np.stack([embedder.embed(face) for face in people.values()])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors @ vectors.T)[~np.eye(len(vectors), dtype=bool)].max() <= 0.30


def test_preprocessing_is_what_it_declares() -> None:
    image = np.zeros((3, 448, 448), np.float32)
    image[0], image[2] = 1.0, 0.25
    rgb = Preprocessing(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 0.25))(image)
    assert rgb.shape == (1, 3, 112, 112)
    assert rgb.dtype == np.float32
    np.testing.assert_allclose(rgb[0, :, 5, 5], [1.0, -0.25, 1.0])
    bgr = Preprocessing(size=64, color="bgr", mean=(0, 0, 0), std=(1 / 255,) * 3)(image)
    assert bgr.shape == (1, 3, 64, 64)
    np.testing.assert_allclose(bgr[0, :, 5, 5], [63.75, 0, 255], rtol=1e-5)
    checker = np.indices((448, 448)).sum(0) % 2
    averaged = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))(np.repeat(checker[None], 3, 0).astype(np.float32))
    np.testing.assert_allclose(averaged, 0.5)
    for wrong in ({"size": 4}, {"color": "hsv"}, {"std": (1.0, 0.0, 1.0)}):
        with pytest.raises(ConfigError):
            Preprocessing(**wrong)


def test_every_recogniser_declares_licence_and_source() -> None:
    assert set(EMBEDDERS) == {"mobilefacenet", "sface", "auraface"}
    for spec in EMBEDDERS.values():
        assert len(spec.weights.sha256) == 64
        assert spec.weights.license
        assert spec.evidence
        assert 0 < spec.same_person < 1
        assert spec.weights.repo or not spec.weights.commercial
    assert EMBEDDERS["sface"].weights.license == EMBEDDERS["auraface"].weights.license == "Apache-2.0"


def test_files_that_do_not_fit_are_refused(
    yunet: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EMBEDDERS["mobilefacenet"]
    unpinned = dataclasses.replace(spec, weights=dataclasses.replace(spec.weights, sha256=""))
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    for path, given in ((yunet, spec), (yunet, unpinned), (tmp_path / "broken.onnx", unpinned)):
        with pytest.raises(WeightsMismatch):
            OnnxEmbedder.load(given, path)
    mobilefacenet = shared / "models" / "MobileFaceNet.onnx"
    for wrong in (
        dataclasses.replace(unpinned, dim=512),
        dataclasses.replace(unpinned, preprocessing=Preprocessing(96)),
    ):
        with pytest.raises(WeightsMismatch, match="takes one input"):
            OnnxEmbedder.load(wrong, mobilefacenet)
    monkeypatch.delenv("LIMNER_MOBILEFACENET", raising=False)
    with pytest.raises(WeightsUnavailable, match="cannot be downloaded") as caught:
        OnnxEmbedder.load("mobilefacenet")
    assert "LIMNER_MOBILEFACENET" in caught.value.hint
    with pytest.raises(ConfigError, match="mobilefacenet, sface, auraface"):
        OnnxEmbedder.load("facenet")


def test_the_stranger_among_references_is_named(
    photos: dict, people: dict, finder: FaceFinder, embedder: OnnxEmbedder
) -> None:
    name = "0011_male"
    width = people[name].quality.size
    others = [finder.face(version) for version in versions(photos[name], width).values()]
    fused = fuse([others[0], people["0013_male"], others[1], people[name], others[2]], embedder)
    assert [r.index for r in fused.rejected] == [1]
    assert "0013_male shows somebody else" in str(fused.rejected[0])
    assert fused.rejected[0].similarity < embedder.same_person
    assert len(fused.faces) == 4
    assert np.linalg.norm(fused.embedding) == pytest.approx(1, abs=1e-5)
    kept = [embedder.embed(face) @ fused.embedding for face in fused.faces]
    assert min(kept) > 0.85


def test_references_without_a_majority_are_refused(people: dict, embedder: OnnxEmbedder) -> None:
    one = fuse([people["0001_female"]], embedder)
    assert one.rejected == ()
    np.testing.assert_allclose(one.embedding, embedder.embed(people["0001_female"]), atol=1e-5)
    with pytest.raises(FaceError, match="0001_female and 0005_male"):
        fuse([people["0001_female"], people["0005_male"]], embedder)
    with pytest.raises(FaceError, match="different people"):
        fuse([people[n] for n in ("0001_female", "0001_female", "0005_male", "0005_male")], embedder)
    with pytest.raises(FaceError, match="got none"):
        fuse([], embedder)

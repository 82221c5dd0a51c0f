"""The watermark: found after what web sites do to pictures, not found where none is, and not seen."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from limner.errors import ImageError
from limner.watermark import THRESHOLD, detect, embed
from limner.world.identity import sitter
from limner.world.render import render
from limner.world.sampling import sample_view


def picture(index: int, size: int = 128) -> np.ndarray:
    person = sitter(index)
    return np.asarray(render(person, sample_view(person, index), size=size).image)


def gradient(size: int) -> np.ndarray:
    ramp = np.linspace(0, 255, size)
    return np.stack(
        [np.add.outer(ramp, ramp) / 2, np.add.outer(ramp, 255 - ramp) / 2, np.full((size, size), 90)], -1
    ).astype(np.uint8)


def worn(marked: np.ndarray, scale: float = 0.75, quality: int = 80) -> np.ndarray:
    side = [round(scale * s) for s in marked.shape[1::-1]]
    out = io.BytesIO()
    Image.fromarray(cv2.resize(marked, side, interpolation=cv2.INTER_AREA)).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out).convert("RGB"))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def test_found_on_sitters_after_resize_and_jpeg_and_not_seen() -> None:
    originals = [picture(k) for k in range(25)]
    marked = [embed(p) for p in originals]
    assert all(detect(m).detected and detect(worn(m)).detected for m in marked)
    assert min(psnr(p, m) for p, m in zip(originals, marked, strict=True)) >= 40
    assert not any(detect(q).detected for p in originals for q in (p, worn(p)))


@pytest.mark.parametrize("original", [gradient(1024), picture(5, 1024)], ids=["gradient", "sitter"])
def test_large_pictures(original: np.ndarray) -> None:
    marked = embed(original)
    assert psnr(original, marked) >= 40
    assert detect(worn(marked)).detected
    assert detect(worn(marked, 0.3)).detected
    assert not detect(original).detected


def test_scores_without_a_mark_are_those_of_chance() -> None:
    """The greatest of eight standard normal numbers has mean 1.42 and deviation 0.61."""
    scores = np.asarray([detect(p, b"%d" % k).score for p in (picture(3), gradient(96)) for k in range(50)])
    assert 1.2 < scores.mean() < 1.6
    assert 0.4 < scores.std() < 0.8
    assert scores.max() < THRESHOLD


def test_another_key_finds_nothing() -> None:
    marked = embed(picture(1), b"mine")
    assert detect(marked, b"mine").detected
    assert not detect(marked).detected


@pytest.mark.parametrize("shape", [(64, 64, 3), (200, 67, 3), (97, 301, 3)])
@pytest.mark.parametrize("value", [0, 127, 255])
def test_odd_sizes_and_flat_pictures(shape: tuple[int, ...], value: int) -> None:
    flat = np.full(shape, value, np.uint8)
    assert not detect(flat).detected
    assert detect(embed(flat)).detected
    assert psnr(flat, embed(flat)) >= 40


def test_what_is_no_picture_is_refused() -> None:
    for wrong in (np.zeros((63, 100, 3), np.uint8), np.zeros((100, 100), np.uint8), np.zeros((100, 100, 3))):
        with pytest.raises(ImageError):
            embed(wrong)
        with pytest.raises(ImageError):
            detect(wrong)

"""Any picture becomes upright 8-bit RGB, or a typed error that says what is wrong."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from limner.errors import ImageTooLarge, UnreadableImage
from limner.faces import images, load_image


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    """(40, 60, 3): four plain quarters, each of another colour, so that every flip shows."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30], pixels[20:, 30:], pixels[:20, 30:] = (200, 30, 60), (10, 220, 90), (30, 60, 250)
    return pixels


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    assert a.dtype == np.uint8
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize(
    ("mode", "kind", "tolerance"),
    [
        ("RGB", "PNG", 0), ("RGB", "JPEG", 4), ("RGB", "WEBP", 12), ("RGB", "TIFF", 0), ("RGB", "BMP", 0),
        ("RGB", "PPM", 0), ("RGBA", "PNG", 0), ("P", "PNG", 0), ("P", "GIF", 0), ("CMYK", "TIFF", 0),
        ("CMYK", "JPEG", 4), ("YCbCr", "JPEG", 4), ("RGB", "AVIF", 12),
    ],
)  # fmt: skip
def test_every_kind_of_file(rgb: np.ndarray, mode: str, kind: str, tolerance: int) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow knows no {kind}")
    picture = Image.fromarray(rgb)
    picture = picture.quantize(8) if mode == "P" else picture.convert(mode)
    read = load_image(encoded(picture, kind))
    assert read.shape == rgb.shape
    assert distance(read[10::20, 15::30], rgb[10::20, 15::30]) <= tolerance  # lossy formats blur the borders between


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_has_it(rgb: np.ndarray, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(rgb), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert distance(load_image(data), expected) == 0
    assert (expected.shape == (60, 40, 3)) == (orientation >= 5)


def test_a_picture_in_many_strips_is_one_picture() -> None:
    tall = np.random.default_rng(0).integers(0, 256, (1500, 1999, 3), np.uint8)
    assert distance(load_image(encoded(Image.fromarray(tall), "PNG", compress_level=1)), tall) == 0


def test_deep_pictures_keep_their_upper_eight_bits(rgb: np.ndarray) -> None:
    deep = np.linspace(0, 65535, 2400).reshape(40, 60).astype(np.uint16)
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    assert distance(load_image(cv2.imencode(".png", deep)[1].tobytes()), expected) == 0
    assert distance(load_image(encoded(Image.fromarray(deep.astype(np.int32)), "TIFF")), expected) == 0
    assert distance(load_image(encoded(Image.fromarray((deep / 65535).astype(np.float32)), "TIFF")), expected) <= 1
    big_endian = Image.frombytes("I;16B", (60, 40), deep.astype(">u2").tobytes())
    assert distance(load_image(encoded(big_endian, "TIFF")), expected) == 0
    assert distance(load_image(big_endian), expected) == 0
    assert distance(load_image(deep.astype(">u2")), expected) == 0
    color = cv2.imencode(".png", rgb[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    assert distance(load_image(color), rgb) == 0


def test_transparency_is_laid_on_white(rgb: np.ndarray) -> None:
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:, :10], alpha[:, 10:20] = 0, 128
    data = encoded(Image.fromarray(np.dstack([rgb, alpha])), "PNG")
    for given in (load_image(data), load_image(np.dstack([rgb, alpha]))):
        assert (given[0, 0] == 255).all()
        assert distance(given[:1, 12:13], np.array([[[227, 142, 157]]], np.uint8)) <= 1
        assert distance(given[:, 20:], rgb[:, 20:]) == 0
    palette = Image.fromarray(rgb).quantize(8)
    data = encoded(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert (load_image(data)[0, 0] == 255).all()


def test_arrays_and_pil_pictures(rgb: np.ndarray) -> None:
    grey = rgb[..., 0]
    assert distance(load_image(rgb), rgb) == 0
    assert distance(load_image(Image.fromarray(rgb)), rgb) == 0
    assert distance(load_image(rgb / 255.0), rgb) == 0
    assert distance(load_image(grey), np.repeat(grey[..., None], 3, axis=2)) == 0
    assert distance(load_image(rgb.astype(np.uint16) * 257), rgb) == 0
    for wrong in (np.zeros((4, 4, 2)), np.zeros(5), np.zeros((0, 5, 3)), np.full((4, 4, 3), 7.0), rgb.astype(np.int64),
                  np.full((4, 4), np.nan), 3, None):  # fmt: skip
        with pytest.raises(UnreadableImage):
            load_image(wrong)


def test_an_animation_gives_its_first_frame(rgb: np.ndarray) -> None:
    frames = [Image.fromarray(rgb).quantize(8), Image.fromarray(255 - rgb).quantize(8)]
    assert distance(load_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])), rgb) == 0


def test_what_is_no_picture_says_so(tmp_path: Path, rgb: np.ndarray) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture at all")
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "cut.png").write_bytes(encoded(Image.fromarray(rgb), "PNG")[:60])
    os.mkfifo(tmp_path / "pipe.png")
    for name, word in (
        ("missing.png", "does not exist"), ("empty.png", "empty"), ("text.jpg", "not a picture"), (".", "folder"),
        ("cut.png", "damaged"), ("pipe.png", "regular file"), ("script.eps", "not a picture"),
        ("a\0b", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(UnreadableImage, match=word) as caught:
            load_image(tmp_path / name)
        assert caught.value.hint


def test_size_limits_hold_before_decoding(tmp_path: Path, rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(rgb), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageTooLarge, match="60 × 40"):
        load_image(data, max_pixels=2399)
    with pytest.raises(ImageTooLarge):
        load_image(rgb, max_pixels=2399)
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 1)
    (tmp_path / "large.png").write_bytes(data)
    with pytest.raises(ImageTooLarge, match="MB"):
        load_image(tmp_path / "large.png")


def test_fifty_megapixel_cameras_are_within_the_limit() -> None:
    assert images.MAX_PIXELS >= 8192 * 6144

"""Scenes and styles: the same for ever, the same at every size, and told apart from one another."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from limner.errors import ConfigError
from limner.world.factors import SCENES, STYLES
from limner.world.identity import sitter
from limner.world.render import render
from limner.world.sampling import own_wear, sample_view
from limner.world.scenes import MOODS, background, light, mood
from limner.world.seeds import stream
from limner.world.styles import stylise


def sides(scene: str, seed: int) -> np.ndarray:
    """What stays visible beside a head, coarsely, as square roots of linear light."""
    small = cv2.resize(background(scene, seed, 64), (12, 12), interpolation=cv2.INTER_AREA)
    keep = np.ones((12, 12), bool)
    keep[2:, 3:9] = False
    return np.sqrt(small[keep]).ravel()


def test_a_scene_is_its_seed() -> None:
    for scene in SCENES:
        a, b, c = background(scene, 5, 64), background(scene, 5, 64), background(scene, 6, 64)
        assert a.dtype == np.float32
        assert a.shape == (64, 64, 3)
        assert a.min() >= 0
        assert a.max() <= 1
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


@pytest.mark.parametrize("scene", SCENES)
def test_a_scene_looks_alike_at_every_size(scene: str) -> None:
    large = cv2.resize(background(scene, 3, 512), (64, 64), interpolation=cv2.INTER_AREA)
    for size in (64, 128, 200, 256):
        small = cv2.resize(background(scene, 3, size), (64, 64), interpolation=cv2.INTER_AREA)
        assert np.abs(np.sqrt(large) - np.sqrt(small)).mean() < 0.02, size


def test_scenes_are_told_apart_beside_a_head() -> None:
    gallery = [(s, sides(s, k)) for s in SCENES for k in range(20)]
    hits = 0
    for scene in SCENES:
        for k in range(20, 24):
            probe = sides(scene, k)
            hits += min(gallery, key=lambda g: float(np.abs(g[1] - probe).sum()))[0] == scene
    assert hits >= 0.95 * 4 * len(SCENES)


def test_moods_and_light_belong_to_the_scene() -> None:
    seen = {mood(s, k) for s in SCENES for k in range(40)}
    assert seen == set(MOODS)
    for k in range(60):
        if mood("beach", k) == "sunset":
            warm = light("beach", k, stream("t", k))
            assert warm.color[0] > 1.3 * warm.color[2]


def test_unknown_names_are_refused() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ConfigError, match="moon"):
        background("moon", 0, 64)
    with pytest.raises(ConfigError, match="cubism"):
        stylise(image, image[..., 0], "cubism", 0)


@pytest.fixture(scope="module")
def portrait():
    person = sitter(6)
    view = sample_view(person, 4, style="photo", headwear="none", yaw=5.0, pitch=0.0, **own_wear(person))
    return {size: render(person, view, size) for size in (64, 128, 256)}


def test_photo_is_the_picture_itself(portrait) -> None:
    p = portrait[128]
    out = stylise(p.image, p.mask, "photo", 1)
    assert np.array_equal(out, p.image)
    assert out is not p.image


@pytest.mark.parametrize("style", STYLES[1:])
def test_a_style_keeps_the_face_and_changes_the_picture(style: str, portrait) -> None:
    for size, p in portrait.items():
        before = p.image.copy()
        out = stylise(p.image, p.mask, style, 7)
        assert np.array_equal(p.image, before)
        assert out.shape == p.image.shape
        assert out.dtype == np.uint8
        assert np.array_equal(out, stylise(p.image, p.mask, style, 7))
        assert not np.array_equal(out, stylise(p.image, p.mask, style, 8)) or style == "comic"
        assert np.abs(out.astype(int) - before).mean() > 8
        x0, y0, x1, y1 = (round(v) for v in p.box)
        gray = [cv2.cvtColor(i, cv2.COLOR_RGB2GRAY)[y0:y1, x0:x1] for i in (before, out)]
        soft = [cv2.GaussianBlur(g, (0, 0), size / 100).ravel() for g in gray]
        assert np.corrcoef(*soft)[0, 1] > 0.5, size


def test_styles_are_told_apart_from_their_pixels(portrait) -> None:
    """A rule of thumb on saturation, contrast and fine texture separates every pair of styles."""
    p = portrait[128]
    told = []
    for style in STYLES:
        out = stylise(p.image, p.mask, style, 3)
        hsv = cv2.cvtColor(out, cv2.COLOR_RGB2HSV).astype(float)
        gray = cv2.cvtColor(out, cv2.COLOR_RGB2GRAY).astype(float)
        fine = np.abs(gray - cv2.GaussianBlur(gray, (0, 0), 1.0)).mean()
        told.append(np.array((hsv[..., 1].mean() / 20, gray.std() / 10, gray.mean() / 20, fine)))
    for i in range(len(told)):
        for j in range(i):
            assert np.abs(told[i] - told[j]).max() > 0.3, (STYLES[i], STYLES[j])

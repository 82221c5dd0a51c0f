"""Views: deterministic, wide, and free of the person except for what a person carries."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from limner.errors import ConfigError
from limner.world import colors
from limner.world.factors import CLOTHING, EYEWEAR, HEADWEAR, SCENES, STYLES
from limner.world.identity import sitter
from limner.world.sampling import HELD_OUT, OWN_HAIR, UNIFORMS, sample_view

PEOPLE = [sitter(k) for k in range(30)]
CARRIED = ("hair", "facial_hair", "eyewear", "eyewear_seed", "clothing", "cloth_colors", "headwear_color", "makeup")
"""What may differ between two people at the same seed (clothing by sex only)."""


def test_a_view_is_its_seed_and_owes_nothing_else_to_the_person() -> None:
    for seed in range(40):
        a, b = sample_view(PEOPLE[1], seed), sample_view(PEOPLE[2], seed)
        assert a == sample_view(PEOPLE[1], seed)
        assert a != sample_view(PEOPLE[1], seed + 1)
        for field in dataclasses.fields(a):
            if field.name not in CARRIED:
                assert getattr(a, field.name) == getattr(b, field.name), field.name


def test_clothes_depend_on_the_seed_not_on_the_person() -> None:
    women = [p for p in PEOPLE if p.sex == "woman"]
    for seed in range(40):
        views = [sample_view(p, seed) for p in women]
        assert len({(v.clothing, v.cloth_colors, v.headwear_color) for v in views}) == 1


def test_everything_occurs_and_in_sensible_shares() -> None:
    views = [sample_view(PEOPLE[k % 30], k) for k in range(1200)]
    for name, words in (
        ("scene", SCENES), ("style", STYLES), ("headwear", HEADWEAR), ("clothing", CLOTHING), ("eyewear", EYEWEAR),
    ):  # fmt: skip
        assert {getattr(v, name) for v in views} == set(words), name
    assert 0.30 < sum(v.headwear != "none" for v in views) / 1200 < 0.40
    assert 0.30 < sum(v.style != "photo" for v in views) / 1200 < 0.40
    assert min(v.yaw for v in views) < -50
    assert max(v.yaw for v in views) > 50
    uniformed = [v for v in views if v.headwear in UNIFORMS]
    assert 0.7 < sum(v.clothing == UNIFORMS[v.headwear] for v in uniformed) / len(uniformed) < 0.9
    own = sum(v.hair == PEOPLE[k % 30].hair for k, v in enumerate(views)) / 1200
    assert OWN_HAIR - 0.04 < own < OWN_HAIR + 0.04


def test_held_out_pairs_are_held_out() -> None:
    seen = [sample_view(PEOPLE[k % 30], k, "seen") for k in range(1200)]
    pairs = {(w, v.scene) for v in seen for w in (v.headwear, v.style)}
    assert not pairs & set(HELD_OUT)
    for part, scene in HELD_OUT:
        assert any(p[0] == part for p in pairs), part
        assert any(p[1] == scene for p in pairs), scene
    for k in range(150):
        v = sample_view(PEOPLE[k % 30], k, "unseen")
        assert {(v.headwear, v.scene), (v.style, v.scene)} & set(HELD_OUT)
    every = [sample_view(PEOPLE[0], k, "any") for k in range(500)]
    drawn = Counter(p for v in every for p in ((v.headwear, v.scene), (v.style, v.scene)) if p in HELD_OUT)
    assert len(drawn) > len(HELD_OUT) // 3


def test_fixing_one_thing_leaves_the_rest() -> None:
    free, fixed = sample_view(PEOPLE[3], 9), sample_view(PEOPLE[3], 9, yaw=-30.0, focal=50.0)
    assert (fixed.yaw, fixed.focal) == (-30.0, 50.0)
    assert fixed.scene == free.scene
    assert fixed.clothing == free.clothing
    assert fixed.pitch == free.pitch


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="colour"):
        sample_view(PEOPLE[0], 0, colour="red")
    with pytest.raises(ConfigError, match="yaw"):
        sample_view(PEOPLE[0], 0, yaw=120.0)
    with pytest.raises(ConfigError, match="sometimes"):
        sample_view(PEOPLE[0], 0, "sometimes")


@pytest.mark.parametrize("name", colors.COLORS)
def test_colour_words_come_back(name: str) -> None:
    from limner.world.seeds import stream

    for k in range(50):
        assert colors.word(colors.sample(name, stream("colour", k))) == name

"""Samples: the truth about a picture is true, survives files, and does not give the person away by clothes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from limner.errors import ConfigError, CorruptData
from limner.world.checks import check
from limner.world.dataset import WorldConfig, WorldDataset
from limner.world.render import render
from limner.world.sampling import sample_view
from limner.world.slices import SLICES
from limner.world.splits import sitter_of
from limner.world.truth import decode, encode


def test_labels_and_captions_agree_with_masks_and_pixels() -> None:
    applied: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for sample in WorldDataset(split="test", identities=60, views=1, seed=3):
        for name, ok in check(sample).items():
            applied[name] += 1
            failed[name] += not ok
    for name in ("caption", "prompt", "headwear", "eyewear"):
        assert applied[name] == 60
        assert failed[name] == 0, name
    assert sum(failed.values()) <= 0.01 * sum(applied.values()), failed


def test_the_checks_notice_lies() -> None:
    sample = WorldDataset(split="test", identities=1, views=1)[0]
    lies = {"headwear": "none" if sample["labels"]["headwear"] != "none" else "hat", "scene": "nowhere"}
    wrong = {**sample, "labels": {**sample["labels"], **lies}, "prompt": "S* as a chef and a king, oil painting"}
    found = check(wrong)
    assert not found["headwear"]
    assert not found["prompt"]


def test_a_sample_survives_its_files(same) -> None:
    for sample in WorldDataset(split="named", identities=2, views=2, size=64):
        assert same(decode(encode(sample)), sample)
        assert sample["name"] in sample["caption"]
        assert "S*" in sample["prompt"]
    with pytest.raises(CorruptData):
        decode({**encode(sample), "png": b"not a picture"})
    with pytest.raises(CorruptData):
        decode({"json": b"{}"})


def test_a_data_set_is_its_config_and_index(same) -> None:
    a, b = (WorldDataset(identities=3, views=2, seed=s, size=64) for s in (5, 5))
    assert len(a) == 6
    assert same(a[3], b[3])
    assert a[2]["seed"] == a[3]["seed"]
    assert not np.array_equal(a[2]["image"], a[3]["image"])
    assert WorldDataset(identities=3, views=2, seed=6, size=64).view(3) != a.view(3)
    more = WorldDataset(identities=9, views=2, seed=5, size=64)
    assert more.view(3) == a.view(3)
    with pytest.raises(IndexError):
        a[6]


@pytest.mark.parametrize(
    "fields",
    [
        {"identities": 0},
        {"identities": 2000, "split": "test"},
        {"size": 32},
        {"size": 1024},
        {"views": -1},
        {"seed": -1},
        {"split": "all"},
        {"slice": "rain"},
        {"world": 0},
    ],
)
def test_a_data_set_refuses_what_is_out_of_range(fields: dict) -> None:
    name = "identities" if "identities" in fields else next(iter(fields))
    with pytest.raises(ConfigError, match=name):
        WorldConfig.from_dict(fields)


@pytest.mark.parametrize("name", SLICES)
def test_slices_are_what_they_say(name: str, same) -> None:
    data = WorldDataset(split="validation", identities=2, views=1, size=64, slice=name)
    sample = data[1]
    assert same(sample, data[1])
    _, y0, _, y1 = sample["box"]
    view, sitter = sample["view"], data.sitter(1)
    if name.startswith("yaw"):
        low, high = (float(v) for v in name.split("_")[1:])
        assert low <= abs(view["yaw"]) <= high
    if name.startswith("tone"):
        assert SLICES[name].tones[0] <= sitter.skin <= SLICES[name].tones[1]
    if name == "small":
        assert (y1 - y0) / 64 < 0.3
    if name == "close":
        assert (y1 - y0) / 64 > 0.6
    if name == "anywhere":
        many = WorldDataset(split="validation", identities=200, views=1, slice=name)
        x = [many.view(i).center[0] for i in range(200)]
        assert min(x) < 0.2
        assert max(x) > 0.8
        assert np.mean(x) == pytest.approx(0.5, abs=0.05)
    if name == "occluded":
        assert not sample["visible"].all()
    if name == "low_light":
        skin = sample["image"][sample["mask"] == 1]
        assert skin.mean() < 70
    if name == "blurred":
        sharp = render(sitter, data.view(1), 64).image
        assert np.diff(sample["image"].astype(int), axis=1).std() < 0.8 * np.diff(sharp.astype(int), axis=1).std()


def test_hair_clothes_and_background_do_not_tell_who_it_is() -> None:
    """Nearest neighbour among 200 people on mean colours; photos, so that styles hide nothing."""
    people = 200

    def features(k: int, j: int) -> np.ndarray:
        person = sitter_of("train", k)
        p = render(person, sample_view(person, 1000 * k + j, style="photo"), 40)
        parts = [p.image[p.mask == m] / 255 for m in (3, 2, 0)]
        return np.stack([part.mean(0) if len(part) else np.zeros(3) for part in parts])

    gallery = np.stack([features(k, 0) for k in range(people)])
    probes = np.stack([features(k, 1) for k in range(people)])

    def found(parts: tuple[int, ...]) -> float:
        g, p = (x[:, parts].reshape(people, -1) for x in (gallery, probes))
        return float((((p[:, None] - g[None]) ** 2).sum(-1).argmin(1) == np.arange(people)).mean())

    assert found((0, 1, 2)) <= 0.10
    # Chance is 0.5 %; with 200 probes, six hits or more come by chance in under one world of a thousand.
    assert found((1, 2)) <= 5 / people

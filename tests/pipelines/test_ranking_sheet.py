"""Best of N keeps what resembles the person; the contact sheet shows every picture, undistorted."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import noise_face

from limner.errors import ConfigError, WeightsMismatch
from limner.pipelines.faceclip import FaceCLIPPipeline
from limner.pipelines.ranking import NO_FACE, Likeness, keep_best
from limner.pipelines.recogniser import own_embedding
from limner.pipelines.sheet import contact_sheet, portrait_sheet
from limner.types import Portrait
from limner.world.sheet import SheetConfig, sheet


@pytest.fixture(scope="module")
def sitters() -> list[Image.Image]:
    return [sheet(SheetConfig(identities=1, views=1, seed=seed, size=320))[0] for seed in (7, 11)]


def portrait(image: Image.Image, seed: int = 0, **kwargs: Any) -> Portrait:
    return Portrait(image=image, seed=seed, prompt="a chef", model="tiny", **kwargs)


def test_the_most_alike_are_kept_and_faceless_pictures_come_last(tiny: FaceCLIPPipeline, sitters: Any) -> None:
    identity = tiny.enroll(sitters[0])
    ranker = Likeness(tiny.embedder, own_embedding(identity))
    wall = Image.new("RGB", (64, 64), "gray")
    ranked = keep_best([portrait(wall, 0), portrait(sitters[1], 1), portrait(sitters[0], 2)], ranker, 3)
    assert [p.seed for p in ranked] == [2, 1, 0]
    same, other, none = (p.scores["likeness"] for p in ranked)
    assert same == pytest.approx(1.0, abs=1e-3)
    assert other < same - 1e-3
    assert none == NO_FACE
    assert [p.seed for p in keep_best([portrait(wall, 5)], lambda image: 3.0, 1)] == [5]


def test_references_of_somebody_else_are_left_out_if_the_model_can_tell(tiny: FaceCLIPPipeline) -> None:
    from limner.pipelines.people import gather_references

    faces = [noise_face(0), noise_face(0), noise_face(1)]
    assert len(gather_references(faces, embedder=tiny.embedder).faces) == 3
    own = own_embedding(tiny.enroll(noise_face(0)))
    cosine = float(own @ own_embedding(tiny.enroll(noise_face(1))))
    strict = FaceCLIPPipeline(**tiny.components, same_person=(1 + cosine) / 2)
    references = gather_references(faces, embedder=strict.embedder)
    assert len(references.faces) == 2
    assert "somebody else" in references.remarks[0]


def test_an_identity_without_one_face_is_compared_with_nothing(tiny: FaceCLIPPipeline) -> None:
    person = tiny.enroll(noise_face(0))
    token = person.tensors["class_token.0"]
    for crafted in ({}, {"class_token.0": token * 0}, {"class_token.0": token / 0}, {"class_token.0": token[None]}):
        with pytest.raises(WeightsMismatch, match="one person"):
            own_embedding(dataclasses.replace(person, tensors=crafted))


def test_every_picture_is_on_the_sheet_in_its_place() -> None:
    colours = [["red", "lime"], ["blue"]]
    rows = [[Image.new("RGB", (100, 50), c) for c in row] for row in colours]
    made = contact_sheet(rows, ["first", "second"], [["a", "b"], ["c"]], cell=100, gap=10)
    assert made.width == 2 * 110 + 10
    pixels = np.asarray(made)
    for row in colours:
        for j, colour in enumerate(row):
            target = np.array(Image.new("RGB", (1, 1), colour))[0, 0]
            ys, xs = np.where((pixels == target).all(-1))
            assert len(ys) == 5000, colour  # fitted, not cropped, not stretched
            assert xs.min() == 10 + j * 110


def test_long_rows_go_on_below_and_photos_stand_above() -> None:
    pictures = [portrait(Image.new("RGB", (64, 64), "red"), seed) for seed in range(5)]
    alone = Image.open(io.BytesIO(portrait_sheet([pictures], columns=2)))
    with_photo = Image.open(io.BytesIO(portrait_sheet([pictures], [noise_face(0)], columns=2)))
    assert (np.asarray(alone) == (255, 0, 0)).all(-1).sum() == 5 * 192 * 192
    assert with_photo.height > alone.height
    assert with_photo.width == alone.width


def test_sheets_that_make_no_sense_are_refused() -> None:
    picture = Image.new("RGB", (8, 8))
    for rows, titles, notes in (
        ([], [], None),
        ([[]], ["a"], None),
        ([[picture]], [], None),
        ([[picture]], ["a"], [[]]),
    ):
        with pytest.raises(ConfigError):
            contact_sheet(rows, titles, notes)

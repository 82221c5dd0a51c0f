"""Small-face rescue: only small faces are painted again, only where they are, and the same way every time."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import noise_face, tiny_pipeline

from limner.errors import ConfigError, CorruptData, WeightsMismatch
from limner.faces import DetectedFace, FaceDetector, FaceFinder
from limner.methods.steering import SteeredConditioning, Steering
from limner.pipelines.again import compare, repaint
from limner.pipelines.faceclip import FaceCLIPPipeline
from limner.pipelines.loading import Model
from limner.pipelines.memory import encode_then_free
from limner.pipelines.paint import default_dials, paint
from limner.pipelines.regions import group
from limner.pipelines.rescue import Plan, rescue
from limner.pipelines.schedulers import SCHEDULERS, make_scheduler
from limner.provenance import compact, encode_portrait, read_provenance
from limner.types import Identity, Portrait
from limner.watermark import embed
from limner.world.sheet import SheetConfig, sheet

PROMPT = "a wizard in the snow"
AT = (300, 40)
SMALL = (350.0, 80.0, 360.0, 93.0)


class Known(FaceDetector):
    """A detector that knows where the faces are: what a random model paints holds none."""

    name = "known"
    license = "none"

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        self.boxes = boxes

    def detect(self, image: np.ndarray) -> list[DetectedFace]:
        return [DetectedFace(box, 0.9) for box in self.boxes]

    def scan(self, image: np.ndarray) -> list[DetectedFace]:
        raise AssertionError("detect does not scan")


def finder(*boxes: tuple[float, float, float, float]) -> FaceFinder:
    return FaceFinder(Known(*boxes))


@pytest.fixture(scope="module")
def large() -> FaceCLIPPipeline:
    """A tiny pipeline whose own pictures are 512 pixels wide."""
    pipe = tiny_pipeline()
    pipe.unet.register_to_config(sample_size=64)
    return pipe


@pytest.fixture(scope="module")
def me(tiny: FaceCLIPPipeline) -> Identity:
    return compact(tiny.enroll(noise_face(0)))


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """A sitter of 128 pixels in a wide picture."""
    sitter, _ = sheet(SheetConfig(identities=1, views=1, seed=7, size=128))
    picture = Image.new("RGB", (512, 224), (90, 120, 150))
    picture.paste(sitter, AT)
    return picture


def difference(a: Any, b: Any) -> np.ndarray:
    """(H, W) largest difference of a pixel's three values."""
    return np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max(-1)


# --- what is painted again --------------------------------------------------------------------------------------------


def test_a_found_face_is_painted_again_and_nothing_else(
    large: FaceCLIPPipeline, me: Identity, scene: Image.Image
) -> None:
    told = large.condition(PROMPT, me)
    done = rescue(large, scene, told, seed=1, finder=FaceFinder("cascade"))
    (face,) = done.plan.faces
    assert "times larger" in done.plan.said[0]
    assert AT[0] <= (face.face[0] + face.face[2]) / 2 <= AT[0] + 128
    assert face.enlarged >= 2
    changed = difference(done.image, scene)
    x0, y0, x1, y1 = face.box
    assert changed[y0:y1, x0:x1].any()
    changed[y0:y1, x0:x1] = 0
    assert not changed.any()
    again = rescue(large, scene, told, seed=1, plan=done.plan)
    assert not difference(again.image, done.image).any()


def test_seed_person_and_prompt_decide_how(tiny: FaceCLIPPipeline, me: Identity, scene: Image.Image) -> None:
    told = tiny.condition(PROMPT, me)
    plan = rescue(tiny, scene, told, finder=finder(SMALL)).plan
    pictures = [
        rescue(tiny, scene, told, seed=1, plan=plan),
        rescue(tiny, scene, told, seed=2, plan=plan),
        rescue(tiny, scene, tiny.condition(PROMPT, None), seed=1, plan=plan),
        rescue(tiny, scene, tiny.condition("a chef", me), seed=1, plan=plan),
        rescue(tiny, scene, told, seed=1, plan=plan, strength=1.0),
        rescue(tiny, scene, told, seed=1, plan=plan, guidance_scale=1.0),
        rescue(tiny, scene, told, seed=1, plan=plan, steps=9),
    ]
    assert len({p.image.tobytes() for p in pictures}) == len(pictures)


def test_the_border_is_soft(tiny: FaceCLIPPipeline, me: Identity) -> None:
    grey = Image.new("RGB", (256, 128), (128, 128, 128))
    done = rescue(tiny, grey, tiny.condition(PROMPT, me), strength=1.0, finder=finder((120, 56, 130, 69)))
    changed = difference(done.image, grey).astype(float)
    x0, y0, x1, y1 = done.plan.faces[0].box
    rim = np.ones_like(changed, bool)
    rim[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3] = False
    middle = changed[(y0 + y1) // 2 - 6 : (y0 + y1) // 2 + 6, (x0 + x1) // 2 - 6 : (x0 + x1) // 2 + 6]
    assert middle.mean() > 10
    assert changed[rim].max() < 0.4 * middle.max()


def test_modes(tiny: FaceCLIPPipeline, me: Identity, scene: Image.Image) -> None:
    told = tiny.condition(PROMPT, me)
    small, middling, big = (10.0, 50.0, 20.0, 62.0), (10.0, 50.0, 30.0, 75.0), (10.0, 50.0, 60.0, 115.0)
    expected = {
        ("auto", small): True, ("auto", middling): False, ("auto", big): False,
        ("always", small): True, ("always", middling): True, ("always", big): False,
        ("never", small): False,
    }  # fmt: skip
    for (mode, box), painted in expected.items():
        done = rescue(tiny, scene, told, mode=mode, finder=finder(box))
        assert bool(done.plan.faces) is painted, (mode, box)
        if not painted:
            assert done.image is scene
            assert mode == "never" or "large already" in done.plan.said[0]


def test_no_face_is_said(tiny: FaceCLIPPipeline, me: Identity) -> None:
    wall = Image.new("RGB", (96, 64), "gray")
    done = rescue(tiny, wall, tiny.condition(PROMPT, me), finder=FaceFinder("cascade"))
    assert done.image is wall
    assert done.plan == Plan((), ("No face was found; nothing was painted again.",))


def test_of_several_faces_the_largest(tiny: FaceCLIPPipeline, me: Identity, scene: Image.Image) -> None:
    done = rescue(tiny, scene, tiny.condition(PROMPT, me), finder=finder((10, 10, 18, 20), (80, 80, 92, 95)))
    assert [f.face for f in done.plan.faces] == [(80, 80, 92, 95)]


def test_everybody_of_a_group_by_their_own_identity(tiny: FaceCLIPPipeline, me: Identity, scene: Image.Image) -> None:
    you = compact(tiny.enroll(noise_face(1)))
    told = tiny.condition(PROMPT, group([me, you], ["left", "right"]))
    left, right = (100.0, 90.0, 112.0, 105.0), (400.0, 90.0, 412.0, 105.0)
    done = rescue(tiny, scene, told, seed=4, finder=finder(left, right))
    assert [f.person for f in done.plan.faces] == [1, 2]
    other = rescue(tiny, scene, tiny.condition(PROMPT, group([me, me], ["left", "right"])), seed=4, plan=done.plan)
    changed = difference(done.image, other.image)
    assert changed[:, 256:].any()
    assert not changed[:, :256].any()
    nobody = rescue(tiny, scene, told, finder=finder(left))
    assert nobody.plan.said[1] == "Person 2: no face was found; nothing was painted again."
    (behind,) = rescue(
        tiny, scene, tiny.condition(PROMPT, group([me, you], ["all", "left"])), finder=finder(left)
    ).plan.faces
    assert behind.person == 2


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler(tiny: FaceCLIPPipeline, me: Identity, scene: Image.Image, name: str) -> None:
    pipe = FaceCLIPPipeline(**{**tiny.components, "scheduler": make_scheduler(name, tiny.scheduler)})
    told, where = pipe.condition(PROMPT, me), finder(SMALL)
    done, again = (rescue(pipe, scene, told, finder=where, steps=4) for _ in range(2))
    assert difference(done.image, scene).any()
    assert not difference(done.image, again.image).any()


@pytest.mark.parametrize("strength", [0.02, 1 / 49, 0.3, 1.0])
def test_few_steps_and_little_strength(
    tiny: FaceCLIPPipeline, me: Identity, scene: Image.Image, strength: float
) -> None:
    where = finder(SMALL)
    done = rescue(tiny, scene, tiny.condition(PROMPT, me), finder=where, steps=1, strength=strength)
    assert done.plan.faces


def test_with_sdxls_own_autoencoder(me: Identity, scene: Image.Image) -> None:
    pipe = tiny_pipeline("kl")
    done = rescue(pipe, scene, pipe.condition(PROMPT, me), finder=finder((350, 80, 355, 87)), guidance_scale=1.0)
    assert difference(done.image, scene).any()


# --- painting and provenance ------------------------------------------------------------------------------------------


def painted(model: Model, identity: Identity, seeds: list[int], *boxes: Any, **dials: Any) -> list[Portrait]:
    wanted = default_dials(model, **{"rescue": "auto", "width": 128, "batch": 2} | dials)
    return list(paint(model, identity, [PROMPT], seeds, wanted, finder=finder(*boxes)))


def reread(portrait: Portrait, identity: Identity | None) -> Any:
    return read_provenance(io.BytesIO(encode_portrait(portrait, identity)))


BOX = (70.0, 20.0, 80.0, 33.0)


@pytest.fixture(scope="module")
def model(tiny: FaceCLIPPipeline) -> Model:
    return Model("tiny", tiny, {"unet": "0"})


def test_portraits_say_what_was_rescued_and_are_painted_again(model: Model, me: Identity) -> None:
    for portrait in painted(model, me, [1, 2, 3], BOX):
        (face,) = portrait.settings["rescued"]["faces"]
        assert tuple(face["face"]) == BOX
        assert portrait.settings["rescue"] == "auto"
        assert portrait.settings["rescue_strength"] == 0.5
        assert portrait.timings["rescue"] > 0
        record = reread(portrait, me)
        again = repaint(model, record, None)  # no detector that finds anything is at hand
        assert compare(record, again)["identical"]
        assert again.settings["rescued"] == record.portrait.settings["rescued"]
    plain = painted(model, me, [1], BOX, rescue="never")[0]
    assert "rescued" not in plain.settings
    assert difference(plain.image, painted(model, me, [1], BOX)[0].image).any()


def test_a_rescued_group_is_painted_again(model: Model, tiny: FaceCLIPPipeline, me: Identity) -> None:
    us = compact(group([me, compact(tiny.enroll(noise_face(1)))], ["left", "right"]))
    (portrait,) = painted(model, us, [5], (20.0, 20.0, 30.0, 33.0), BOX)
    assert [f["person"] for f in portrait.settings["rescued"]["faces"]] == [1, 2]
    record = reread(portrait, us)
    assert compare(record, repaint(model, record, None))["identical"]
    with pytest.raises(WeightsMismatch, match="group of 2 people that is not embedded"):
        repaint(model, reread(portrait, None), None)
    assert compare(record, repaint(model, reread(portrait, None), us))["identical"]


def test_the_mark_comes_last(model: Model, me: Identity) -> None:
    (portrait,) = painted(model, me, [1], BOX, watermark=True)
    (plain,) = painted(model, me, [1], BOX)
    assert portrait.settings["rescued"]["faces"]
    assert np.array_equal(portrait.image, embed(np.asarray(plain.image)))
    record = reread(portrait, me)
    assert compare(record, repaint(model, record, None))["identical"]


def test_a_freed_encoder_is_not_missed(me: Identity) -> None:
    pipe = tiny_pipeline()
    model = Model("tiny", pipe, {})
    expected = painted(model, me, [1], BOX)[0]
    ready = encode_then_free(pipe, me, [PROMPT])
    dials = default_dials(model, rescue="auto", width=128)
    (portrait,) = paint(model, me, [PROMPT], [1], dials, ready=ready, finder=finder(BOX))
    assert not difference(portrait.image, expected.image).any()


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_dials(tiny: FaceCLIPPipeline, model: Model, scene: Image.Image) -> None:
    told = tiny.condition(PROMPT)
    with pytest.raises(ConfigError, match="auto, always, never"):
        rescue(tiny, scene, told, mode="sometimes")
    for strength in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="strength"):
            rescue(tiny, scene, told, strength=strength)
    with pytest.raises(ConfigError, match="one prompt"):
        rescue(tiny, scene, tiny.condition([PROMPT, PROMPT]))
    with pytest.raises(ConfigError, match="rescue"):
        default_dials(model, rescue="sometimes")
    with pytest.raises(ConfigError, match="rescue_strength"):
        default_dials(model, rescue_strength=0.0)


@pytest.mark.parametrize(
    "steering",
    [{"adapter_scale": 1.0}, {"change": {"conv_in.bias": torch.zeros(32)}}, {"photo": torch.zeros(1, 4, 8, 8)}],
    ids=["adapter", "weights", "photo"],
)
def test_a_person_who_is_more_than_embeddings_is_refused_before_painting(
    tiny: FaceCLIPPipeline, model: Model, scene: Image.Image, steering: dict[str, Any]
) -> None:
    plain = tiny.condition(PROMPT)
    parts = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    told = SteeredConditioning(**parts, steering=Steering(**steering))

    def painted_anyway(step: int, of: int) -> None:
        raise AssertionError("a step was taken")

    dials = default_dials(model, rescue="auto")
    shown = dataclasses.replace(plain, ip_adapter_image_embeds=[torch.zeros(2, 1, 8)])
    for one in (told, shown, dataclasses.replace(plain, regions=(((0, 0, 1, 1), told),))):
        with pytest.raises(ConfigError, match="rescue"):
            rescue(tiny, scene, one, finder=finder(SMALL))
        with pytest.raises(ConfigError, match="rescue"):
            next(paint(model, None, [PROMPT], [1], dials, ready={PROMPT: one}, on_step=painted_anyway))
    words = SteeredConditioning(**parts)
    assert rescue(tiny, scene, words, finder=finder(SMALL)).plan.faces
    assert rescue(tiny, scene, told, mode="never").image is scene


@pytest.mark.parametrize(
    "damage",
    [
        None,
        {"faces": 3, "said": []},
        {"faces": [{}], "said": []},
        {"matrix": [[1, 0, 0]]},
        {"matrix": [[1, 0, 0], [0, 1]]},
        {"matrix": [[1e9, 0, 0], [0, 1e9, 0]]},
        {"matrix": [[1e-9, 0, 0], [0, 1e-9, 0]]},
        {"matrix": [["nan", 0, 0], [0, 1, 0]]},
        {"person": 7},
        {"person": -1},
    ],
    ids=str,
)
def test_damaged_records(model: Model, me: Identity, damage: Any) -> None:
    (portrait,) = painted(model, me, [1], BOX)
    facts = portrait.settings["rescued"]
    if damage is None or "faces" in damage:
        facts = damage
    else:
        facts = {**facts, "faces": [{**facts["faces"][0], **damage}]}
    record = reread(dataclasses.replace(portrait, settings={**portrait.settings, "rescued": facts}), me)
    with pytest.raises(CorruptData):
        repaint(model, record, None)


def test_yunet_finds_smaller_faces(large: FaceCLIPPipeline, me: Identity, yunet: Path) -> None:
    picture = Image.new("RGB", (512, 224), (90, 120, 150))
    picture.paste(sheet(SheetConfig(identities=1, views=1, seed=7, size=72))[0], AT)
    done = rescue(large, picture, large.condition(PROMPT, me), finder=FaceFinder("yunet", weights=yunet))
    (face,) = done.plan.faces
    assert face.enlarged > 4
    assert difference(done.image, picture)[AT[1] + 24 : AT[1] + 48, AT[0] + 24 : AT[0] + 48].any()


def test_the_pipelines_components_are_left_as_they_were(
    large: FaceCLIPPipeline, me: Identity, scene: Image.Image
) -> None:
    told, noise = large.condition(PROMPT, me), torch.Generator()
    options = {"height": 64, "width": 64, "output_type": "latent"}
    before = large(conditioning=told, generator=noise.manual_seed(0), **options).images
    rescue(large, scene, told, finder=finder(SMALL))
    after = large(conditioning=told, generator=noise.manual_seed(0), **options).images
    assert torch.equal(before, after)

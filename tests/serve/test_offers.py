"""Several models in one service, places of the eyes, and scores: engine and HTTP, with tiny random models."""

from __future__ import annotations

import io
import secrets
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from fastapi.testclient import TestClient
from serve_models import offer
from tiny_model import noise_face

from limner.cli.painting import Place
from limner.cli.serve import offers_of
from limner.errors import ConfigError, CorruptData, WeightsMismatch, WeightsUnavailable
from limner.pipelines.loading import Model, load_model
from limner.pipelines.paint import default_dials, paint
from limner.pipelines.ranking import text_fit
from limner.provenance import compact, read_provenance
from limner.serve.app import create_app
from limner.serve.engine import Engine
from limner.serve.errors import UnknownModel, Unsupported
from limner.serve.jobs import Limits, PaintRequest, Picture, Status
from limner.serve.settings import CALLER_KEY, Settings
from limner.serve.shelf import Offer


@pytest.fixture
def both(make_engine: Any, tiny_folder: Path, dream_folder: Path) -> Engine:
    """FaceCLIP and DreamIdentity, one of them in memory."""
    offers = [offer(tiny_folder, "faceclip"), offer(dream_folder, "dreamidentity", "S* is the person")]
    return make_engine(Limits(models=1), load=offers)


def painted(engine: Engine, request: PaintRequest) -> list[Picture]:
    job = engine.submit("ann", request)
    last = list(engine.watch("ann", job))[-1]
    assert last.status is Status.DONE, last.error
    return engine.result("ann", job)


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.png)))


def loaded(engine: Engine) -> list[str]:
    return [o["name"] for o in engine.offers() if o["loaded"]]


def test_models_are_loaded_when_needed_and_make_room(both: Engine, photo: bytes) -> None:
    assert loaded(both) == ["tiny"]
    assert both.offers()[1]["facts"] is None
    assert not both.known("dream")
    me = both.enroll("ann", [photo], method="dreamidentity")
    assert (me.model, loaded(both)) == ("dream", ["dream"])
    assert painted(both, PaintRequest("S* as a wizard", identity=me.id))[0].settings["method"] == "dreamidentity"
    assert painted(both, PaintRequest("a wizard"))[0].settings["method"] == "faceclip"
    assert loaded(both) == ["tiny"]
    assert both.known("dream")
    (picture,) = painted(both, PaintRequest("S* as a wizard", identity=me.id, seed=3))
    (same,) = painted(both, PaintRequest("S* as a wizard", identity=me.id, seed=3, model="dream"))
    assert np.array_equal(pixels(picture), pixels(same))


def test_what_is_not_offered_or_does_not_fit(both: Engine, photo: bytes) -> None:
    me = both.enroll("ann", [photo])
    for wrong in ({"model": "nobody"}, {"method": "elite"}, {"model": "tiny", "method": "dreamidentity"}):
        with pytest.raises(UnknownModel, match=r"tiny \(faceclip\), dream \(dreamidentity\)"):
            both.submit("ann", PaintRequest("a chef", **wrong))
        with pytest.raises(UnknownModel):
            both.enroll("ann", [photo], **wrong)
    with pytest.raises(WeightsMismatch, match="enrolled for tiny"):
        both.submit("ann", PaintRequest("S* as a chef", identity=me.id, model="dream"))
    with pytest.raises(WeightsMismatch, match="by faceclip"):
        both.keep("ann", both.identity("ann", me.id), model="dream")


def test_a_model_that_cannot_be_loaded_harms_no_other(make_engine: Any, tiny_folder: Path, photo: bytes) -> None:
    def broken() -> Model:
        raise CorruptData("its file is damaged")

    engine = make_engine(load=[offer(tiny_folder, "faceclip"), Offer("broken", broken, "faceclip")])
    with pytest.raises(Exception, match="broken cannot be loaded: its file is damaged") as caught:
        engine.submit("ann", PaintRequest("a chef", model="broken"))
    assert caught.value.code == "unavailable"  # type: ignore[attr-defined]
    assert painted(engine, PaintRequest("a chef"))
    assert engine.counters["crashes"] == 0


def test_names_tell_models_apart(tiny_folder: Path) -> None:
    one = offer(tiny_folder, "faceclip")
    for offers in ([one, one], [one, Offer("", one.load)], []):
        with pytest.raises(ConfigError):
            Engine(offers)


def test_both_scores_or_the_reason(both: Engine, photo: bytes) -> None:
    me = both.enroll("ann", [photo])
    (picture,) = painted(both, PaintRequest("a chef on a beach", identity=me.id))
    assert set(picture.scores) == {"likeness", "text"}
    assert picture.unscored == {}
    judge = text_fit(load_model(str(Path(both._offers["tiny"].load.args[0])), device="cpu"))  # type: ignore[attr-defined]
    image = Image.open(io.BytesIO(picture.png))
    assert picture.scores["text"] == pytest.approx(judge(image, "a chef on a beach"), abs=1e-4)
    assert read_provenance(io.BytesIO(picture.png)).portrait.scores == picture.scores
    (declined,) = painted(both, PaintRequest("a chef", identity=me.id, likeness=False, text_score=False))
    assert declined.scores == declined.unscored == {}
    (nobody,) = painted(both, PaintRequest("a chef"))
    assert set(nobody.scores) == {"text"}
    assert "Nobody" in nobody.unscored["likeness"]
    (strange,) = painted(both, PaintRequest("a chef", model="dream"))
    assert strange.scores == {}
    assert "No CLIP" in strange.unscored["text"]
    with pytest.raises(Unsupported, match="No CLIP"):
        both.submit("ann", PaintRequest("a chef", model="dream", text_score=True))


def test_the_text_score_knows_sentences_of_its_world(tiny: Any) -> None:
    from limner.world.sheet import SheetConfig, sheet

    judge = text_fit(Model("tiny", tiny, {}, world="sitters"))
    image, facts = sheet(SheetConfig(identities=1, views=1, seed=7, size=128))
    sex = facts[0]["labels"]["sex"]
    other = {"man": "woman", "woman": "man"}[sex]
    right = judge(image, f"a photo of a {sex} in a studio")
    for wrong in (f"a watercolor painting of a {other} on a beach", "a comic of a pirate with a red hat in a forest"):
        assert judge(image, wrong) < right - 0.1
    assert judge(image, "(a photo:1.3) of S*") == pytest.approx(judge(image, "a photo of a person"), abs=1e-3)


def test_eyes_go_where_they_were_asked(make_engine: Any, tiny_folder: Path, steered_folder: Path, photo: bytes) -> None:
    engine = make_engine(load=[offer(tiny_folder, "faceclip")], gaze_weights=steered_folder)
    assert "gaze" not in engine.facts["lacks"]
    left, right, free = (
        painted(engine, PaintRequest("a chef", seed=1, gaze=gaze))[0] for gaze in ("0.3,0.4,0.2", "0.7,0.5,0.2", "")
    )
    from limner.pipelines.gaze import add_gaze

    model = load_model(str(tiny_folder), device="cpu")
    plain = dict(model.weights)
    assert np.array_equal(
        pixels(free), np.asarray(next(paint(model, None, ["a chef"], [1], default_dials(model))).image)
    )
    add_gaze(model, steered_folder)
    dials = default_dials(model, gaze="0.3,0.4,0.2")
    assert np.array_equal(pixels(left), np.asarray(next(paint(model, None, ["a chef"], [1], dials)).image))
    assert not np.array_equal(pixels(left), pixels(right))
    records = [read_provenance(io.BytesIO(p.png)).portrait for p in (left, free)]
    assert [r.weights for r in records] == [model.weights, plain]
    assert records[0].settings["gaze"] == "0.3,0.4,0.2"
    with pytest.raises(ConfigError):
        engine.submit("ann", PaintRequest("a chef", gaze="0.02,0.4,0.2"))


def test_several_people_in_one_identity_are_painted_and_not_compared(make_engine: Any, dream_folder: Path) -> None:
    engine = make_engine(load=[offer(dream_folder, "dreamidentity")])
    method: Any = load_model(str(dream_folder), device="cpu").pipe.method
    both = compact(method.together({f"{name}*": method.enroll([noise_face(i)]) for i, name in enumerate("AB")}))
    us = engine.keep("ann", both)
    request = PaintRequest("A* and B* as wizards", identity=us.id)
    (picture,) = painted(engine, request)
    assert picture.scores == {}
    assert "one person" in picture.unscored["likeness"]
    with pytest.raises(WeightsMismatch, match="one person"):
        engine.submit("ann", replace(request, likeness=True))
    assert engine.counters["crashes"] == 0


@pytest.fixture
def adapter_model(tmp_path: Path) -> Model:
    """IP-Adapter, whose image tokens reach the UNet."""
    from dream_models import FACE, save_base

    from limner.diffusion.adapter import new_adapter
    from limner.encoders.face_vit import FaceViT
    from limner.encoders.rivals import RivalEncoder
    from limner.encoders.scales import FaceBackbone
    from limner.encoders.word_towers import WordTowers
    from limner.pipelines.dreamidentity import base_parts
    from limner.pipelines.rivals import IPAdapterPipeline

    base = save_base("mini", tmp_path / "base")
    vae, unet, scheduler = base_parts(base)
    encoder = RivalEncoder(WordTowers.from_base(base), FaceBackbone(FaceViT(FACE).eval()))
    encoder.adapter = {k: v + 0.1 for k, v in new_adapter(unet, "identity", FACE.output).items()}
    pipe: Any = IPAdapterPipeline(vae, unet, scheduler, encoder, default_steps=2)
    pipe.set_progress_bar_config(disable=True)
    return Model("ip", pipe, {})


def test_methods_that_say_more_than_rows_are_painted_job_by_job(make_engine: Any, adapter_model: Model) -> None:
    model, pipe = adapter_model, adapter_model.pipe
    people = [compact(pipe.method.enroll([noise_face(i)])) for i in (0, 1)]
    direct = [np.asarray(p.image) for i in people for p in paint(model, i, ["a wizard"], [5, 6], default_dials(model))]
    engine = make_engine(load=lambda: model)
    jobs = []
    for identity in people:
        person = engine.keep("ann", identity)
        jobs.append(engine.submit("ann", PaintRequest("a wizard", identity=person.id, number=2, seed=5)))
    for job in jobs:
        list(engine.watch("ann", job))
    served = [pixels(p) for job in jobs for p in engine.result("ann", job)]
    assert np.array_equal(served, direct)
    assert not np.array_equal(served[0], served[2])


def test_who_is_left_out_of_a_batch_is_next(make_engine: Any, adapter_model: Model) -> None:
    entered, release = threading.Event(), threading.Event()
    order: list[int] = []
    waits: list[Status] = []

    def checker(portrait: Any) -> str:
        entered.set()
        assert release.wait(60)
        order.append(portrait.seed)
        waits.extend(p.status for p in engine.jobs("bob"))
        return ""

    engine = make_engine(load=lambda: adapter_model, checker=checker)
    requests = [("zoe", 0), ("ann", 1), ("ann", 2), ("ann", 3), ("bob", 4)]
    jobs = []
    for owner, seed in requests:
        jobs.append((owner, engine.submit(owner, PaintRequest("a wizard", seed=seed, steps=1))))
        assert entered.wait(60)
    release.set()
    for owner, job in jobs:
        list(engine.watch(owner, job))
    assert order == [0, 1, 4, 2, 3]
    assert waits[1] is Status.QUEUED  # while ann's first one is painted


def http(engine: Engine) -> TestClient:
    app = create_app(engine, Settings(rate=100_000, burst=10_000))
    return TestClient(app, headers={CALLER_KEY: secrets.token_urlsafe()})


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_over_http(both: Engine, photo: bytes) -> None:
    client = http(both)
    offers = client.get("/v1/models").json()
    assert [(o["name"], o["method"], o["default"], o["loaded"]) for o in offers] == [
        ("tiny", "faceclip", True, True),
        ("dream", "dreamidentity", False, False),
    ]
    assert "gaze" in offers[0]["facts"]["lacks"]
    assert offers[1]["facts"] is None
    me = client.post("/v1/identities", files={"photo": photo}, data={"model": "dream"}).json()
    assert me["model"] == "dream"
    body = {"prompt": "S* as a wizard", "identity": me["id"]}
    job = client.post("/v1/jobs", json=body).json()["id"]
    list(client.get(f"/v1/jobs/{job}/events").iter_lines())
    (picture,) = client.get(f"/v1/jobs/{job}").json()["pictures"]
    assert set(picture["scores"]) == {"likeness"}
    assert set(picture["unscored"]) == {"text"}
    for status, code, changes in (
        (422, "unknown_model", {"model": "nobody"}),
        (422, "unknown_model", {"method": "../../x"}),
        (422, "weights_mismatch", {"method": "faceclip"}),
        (422, "unsupported", {"gaze": {"x": 0.5, "y": 0.4}}),
        (422, "unsupported", {"text_score": True}),
        (422, "invalid_request", {"gaze": {"x": 0.5}}),
        (422, "invalid_request", {"gaze": {"x": 1.5, "y": 0.5}}),
        (422, "invalid_request", {"gaze": "0.5,0.4"}),
    ):
        assert refusal(client.post("/v1/jobs", json=body | changes)) == (status, code), changes
    response = client.post("/v1/identities", files={"photo": photo}, data={"method": "nothing"})
    assert refusal(response) == (422, "unknown_model")


def test_a_place_over_http(make_engine: Any, tiny_folder: Path, steered_folder: Path) -> None:
    client = http(make_engine(load=[offer(tiny_folder, "faceclip")], gaze_weights=steered_folder))
    body = {"prompt": "a chef", "gaze": {"x": 0.5, "y": 0.4, "size": 0.2}}
    job = client.post("/v1/jobs", json=body).json()["id"]
    list(client.get(f"/v1/jobs/{job}/events").iter_lines())
    (picture,) = client.get(f"/v1/jobs/{job}").json()["pictures"]
    assert picture["settings"]["gaze"] == "0.5,0.4,0.2"
    outside = {"prompt": "a chef", "gaze": {"x": 0.01, "y": 0.4}}
    assert refusal(client.post("/v1/jobs", json=outside)) == (422, "config")


def test_what_the_command_offers(tiny_folder: Path, dream_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = offers_of([str(tiny_folder), str(dream_folder)], Place("cpu"))
    assert [(o.name, o.method) for o in found] == [("tiny", "faceclip"), ("dream", "dreamidentity")]
    monkeypatch.setattr("limner.pipelines.folders.model_folder", lambda spec: dream_folder)
    monkeypatch.setattr("limner.pipelines.loading.model_folder", lambda spec: dream_folder)
    registered = [o.name for o in offers_of([], Place("cpu", memory="plain"))]
    assert registered[0] == "faceclip-mini"
    assert "dreamidentity-mini" in registered
    monkeypatch.setattr("limner.pipelines.fitting.free_memory", lambda *_: 1)
    monkeypatch.setattr("limner.pipelines.loading.model_folder", lambda spec: tiny_folder.parent / "absent")
    with pytest.raises(WeightsUnavailable, match="faceclip-mini"):
        offers_of([], Place("cpu", memory="plain"))

"""The engine: jobs, batches, previews, owners, crashes, draining. A tiny model, nothing mocked."""

from __future__ import annotations

import ctypes
import io
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner.errors import ConfigError, ImageTooLarge, NoFaceFound, PromptError, UnreadableImage
from limner.pipelines.loading import load_model
from limner.pipelines.paint import default_dials, paint
from limner.provenance import IDENTITY_KEY, read_provenance
from limner.serve.engine import Engine
from limner.serve.errors import (
    Draining,
    IdempotencyMismatch,
    NotFinished,
    NotFound,
    QueueFull,
    StorageFull,
    TooManyJobs,
)
from limner.serve.jobs import Limits, PaintRequest, Progress, Status

A = PaintRequest("a wizard in the snow", seed=5, steps=2)


def finish(engine: Engine, owner: str, job: str) -> list[Progress]:
    """Every progress until the job has ended."""
    return list(engine.watch(owner, job))


class Brake:
    """A safety checker that lets every picture out once `release` is set: holds the worker where it is."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()

    def __call__(self, portrait: Any) -> str:
        self.entered.set()
        assert self.release.wait(60)
        return ""


def test_a_job_from_photo_to_pictures(make_engine: Any, photo: bytes) -> None:
    engine = make_engine()
    me = engine.enroll("ann", [photo])
    job = engine.submit(
        "ann",
        PaintRequest("a chef on a beach", identity=me.id, number=3, seed=8, embed_identity=True, likeness=True),
    )
    with pytest.raises(NotFinished):
        engine.result("ann", job)
    seen = finish(engine, "ann", job)
    assert seen[-1].status is Status.DONE
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen)
    assert seen[-1].fraction == 1
    pictures = engine.result("ann", job)
    assert [p.seed for p in pictures] == [8, 9, 10]
    record = read_provenance(io.BytesIO(pictures[1].png))
    assert record.intact
    assert record.portrait.seed == 9
    assert record.portrait.identity == me.digest
    assert record.identity is not None
    assert -1 <= pictures[0].scores["likeness"] <= 1
    engine.delete("ann", job)
    engine.forget("ann", me.id)
    assert engine.jobs("ann") == engine.persons("ann") == []
    assert engine.status()["kept_bytes"] == 0


def test_pictures_are_those_of_the_pipeline(make_engine: Any, photo: bytes, tiny_folder: Path) -> None:
    engine = make_engine()
    me = engine.enroll("ann", [photo])
    job = engine.submit("ann", PaintRequest("a chef", identity=me.id, number=2, seed=3, scheduler="euler-a"))
    finish(engine, "ann", job)
    served = [np.asarray(Image.open(io.BytesIO(p.png))) for p in engine.result("ann", job)]
    model = load_model(str(tiny_folder), device="cpu")
    dials = default_dials(model, scheduler="euler-a")
    direct = [np.asarray(p.image) for p in paint(model, engine.identity("ann", me.id), ["a chef"], [3, 4], dials)]
    assert np.array_equal(served, direct)


def test_requests_of_several_callers_share_a_batch_and_keep_their_own_picture(make_engine: Any, photo: bytes) -> None:
    brake = Brake()
    engine = make_engine(Limits(batch=4), checker=brake)
    first = engine.submit("zoe", PaintRequest("a hat", steps=1))
    brake.entered.wait(60)
    orders = (("a", "a chef", 1, ""), ("b", "a wizard", 2, "hat"), ("c", "a man", 3, ""))
    jobs = {
        owner: engine.submit(owner, PaintRequest(prompt, seed=seed, steps=2, negative_prompt=negative))
        for owner, prompt, seed, negative in orders
    }
    other = engine.submit("d", PaintRequest("a man", seed=3, steps=3))
    before = engine.counters["batches"]
    brake.release.set()
    for owner, job in [*jobs.items(), ("zoe", first), ("d", other)]:
        assert finish(engine, owner, job)[-1].status is Status.DONE
    assert engine.counters["batches"] - before <= 3  # zoe's, the three together, d's of another number of steps
    together = {owner: engine.result(owner, job)[0] for owner, job in jobs.items()}
    assert {p.settings["batch_rows"] for p in together.values()} == {3}
    for owner, prompt, seed, negative in orders:
        alone = engine.submit("x", PaintRequest(prompt, seed=seed, steps=2, negative_prompt=negative))
        finish(engine, "x", alone)
        one = np.asarray(Image.open(io.BytesIO(engine.result("x", alone)[0].png)), int)
        both = np.asarray(Image.open(io.BytesIO(together[owner].png)), int)
        assert np.abs(one - both).max() <= 1
        assert read_provenance(io.BytesIO(together[owner].png)).portrait.prompt == prompt


def test_people_and_nobody_are_not_painted_together(make_engine: Any, photo: bytes) -> None:
    """Only for somebody is there a face to be guided by; whatever the order, nobody loses it and no worker dies."""
    brake = Brake()
    engine = make_engine(Limits(batch=4), checker=brake)
    me = engine.enroll("ann", [photo])
    first = engine.submit("ann", PaintRequest("a hat", steps=1))
    brake.entered.wait(60)
    order = PaintRequest("a chef", seed=7, steps=2, likeness=False, face_guidance=1.0)
    jobs = [engine.submit("ann", replace(order, identity=i)) for i in (None, me.id, None, me.id)]
    brake.release.set()
    for job in [first, *jobs]:
        assert finish(engine, "ann", job)[-1].status is Status.DONE
    assert engine.counters["crashes"] == 0
    assert [engine.result("ann", job)[0].settings["batch_rows"] for job in jobs] == [2, 2, 2, 2]


def test_callers_cannot_reach_each_other(make_engine: Any, photo: bytes) -> None:
    engine = make_engine()
    me = engine.enroll("ann", [photo])
    job = engine.submit("ann", PaintRequest("a chef", identity=me.id))
    finish(engine, "ann", job)
    for call in (engine.progress, engine.result, engine.cancel, engine.delete):
        with pytest.raises(NotFound):
            call("bob", job)
    for call in (engine.person, engine.identity, engine.forget):
        with pytest.raises(NotFound):
            call("bob", me.id)
    with pytest.raises(NotFound):
        engine.submit("bob", PaintRequest("a chef", identity=me.id))
    assert engine.jobs("bob") == engine.persons("bob") == []
    assert engine.result("ann", job)


def test_cancel_a_waiting_and_a_running_job(make_engine: Any) -> None:
    engine = make_engine()
    long = engine.submit("ann", PaintRequest("a chef", steps=100, number=16))
    waiting = engine.submit("ann", PaintRequest("a hat"))
    for progress in engine.watch("ann", long):
        if progress.status is Status.RUNNING and progress.step > 1:
            break
    assert engine.progress("ann", waiting).position == 0
    assert engine.cancel("ann", waiting).status is Status.CANCELLED
    assert engine.cancel("ann", long).status is Status.CANCELLED
    after = engine.submit("ann", A)
    assert finish(engine, "ann", after)[-1].status is Status.DONE
    assert engine.counters["painted"] < 10  # the long job was really abandoned
    assert engine.result("ann", waiting) == []
    assert engine.cancel("ann", after).status is Status.DONE


def test_previews_are_small_pictures(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.serve.worker.PREVIEW_EVERY", 0.0)
    engine = make_engine()
    job = engine.submit("ann", PaintRequest("a chef", steps=30, preview=True))
    previews = {p.preview for p in engine.watch("ann", job) if p.preview}
    assert len(previews) > 1
    assert all(Image.open(io.BytesIO(p)).size == (64, 64) for p in previews)
    quiet = engine.submit("ann", PaintRequest("a chef", steps=30))
    assert not any(p.preview for p in engine.watch("ann", quiet))


def test_the_same_key_gives_the_same_job(make_engine: Any) -> None:
    engine = make_engine()
    job = engine.submit("ann", A, "k")
    assert engine.submit("ann", A, "k") == job
    assert engine.submit("bob", A, "k") != job
    with pytest.raises(IdempotencyMismatch):
        engine.submit("ann", PaintRequest("a chef"), "k")
    engine.delete("ann", job)
    assert engine.submit("ann", A, "k") != job


@pytest.mark.parametrize(
    "request_",
    [
        PaintRequest("  "),
        PaintRequest("a" * 2001),
        PaintRequest("a", negative_prompt="a" * 2001),
        PaintRequest("a", negative_prompt="hat", guidance_scale=1.0),
        PaintRequest("a \ud800"),
        PaintRequest("a", number=0),
        PaintRequest("a", number=17),
        PaintRequest("a", seed=-1),
        PaintRequest("a", seed=2**63),
        PaintRequest("a", steps=0),
        PaintRequest("a", steps=101),
        PaintRequest("a", strength=1.5),
        PaintRequest("a", strength=float("nan")),
        PaintRequest("a", guidance_scale=-1.0),
        PaintRequest("a", width=60),
        PaintRequest("a", width=-64),
        PaintRequest("a", width=4096, height=4096),
        PaintRequest("a", scheduler="fastest"),
        PaintRequest("a", scheduler="KarrasVeScheduler"),
        PaintRequest("a", likeness=True),
    ],
    ids=lambda r: str({k: v for k, v in vars(r).items() if v})[:60],
)
def test_wrong_requests_are_refused_at_once(shared_engine: Engine, request_: PaintRequest) -> None:
    with pytest.raises((ConfigError, PromptError)):
        shared_engine.submit("ann", request_)
    assert shared_engine.jobs("ann") == []


def test_wrong_photos_are_refused(shared_engine: Engine, photo: bytes, wall: bytes) -> None:
    for photos, error in (
        ([wall], NoFaceFound),
        ([photo, wall], NoFaceFound),
        ([b"no picture"], UnreadableImage),
        ([photo[: len(photo) // 2]], UnreadableImage),
        ([b""], UnreadableImage),
        ([], ConfigError),
        ([photo] * 9, ConfigError),
    ):
        with pytest.raises(error):
            shared_engine.enroll("ann", photos)
    with pytest.raises(NoFaceFound, match="photo 2"):
        shared_engine.enroll("ann", [photo, wall])
    for choose in ("like:/etc/passwd", "prettiest"):
        with pytest.raises(ConfigError):
            shared_engine.enroll("ann", [photo], choose)
    with pytest.raises(TypeError):
        shared_engine.find_faces("/etc/passwd")  # type: ignore[arg-type]
    for ttl in (0, -1, float("nan"), 1e9):
        with pytest.raises(ConfigError):
            shared_engine.enroll("ann", [photo], ttl=ttl)
    assert shared_engine.persons("ann") == []


def test_photos_of_too_many_pixels(make_engine: Any, photo: bytes) -> None:
    with pytest.raises(ImageTooLarge):
        make_engine(Limits(photo_pixels=1000)).enroll("ann", [photo])


def test_limits_of_queue_caller_and_memory(make_engine: Any, photo: bytes) -> None:
    brake = Brake()
    engine = make_engine(Limits(queue=3, per_owner=2), checker=brake)
    for owner in ("ann", "ann", "bob"):
        engine.submit(owner, A)
    with pytest.raises(QueueFull) as full:
        engine.submit("bob", A)
    assert full.value.retry_after >= 1
    brake.release.set()
    for job in engine.jobs("ann"):
        finish(engine, "ann", job.id)
    finish(engine, "bob", engine.jobs("bob")[0].id)
    with pytest.raises(TooManyJobs):
        engine.submit("ann", A)
    engine.delete("ann", engine.jobs("ann")[0].id)
    assert engine.submit("ann", A)
    small = make_engine(Limits(kept_bytes=100))
    with pytest.raises(StorageFull):
        small.enroll("ann", [photo])


def test_pictures_take_room_before_they_are_painted(make_engine: Any) -> None:
    brake = Brake()
    engine = make_engine(Limits(kept_bytes=100_000), checker=brake)
    order = PaintRequest("a chef", steps=1, number=7, width=64, height=64)
    job = engine.submit("ann", order)
    assert engine.status()["kept_bytes"] == 7 * 64 * 64 * 2
    with pytest.raises(StorageFull):
        engine.submit("bob", order)
    brake.release.set()
    finish(engine, "ann", job)
    assert engine.status()["kept_bytes"] == sum(len(p.png) for p in engine.result("ann", job))
    engine.delete("ann", job)
    assert engine.submit("bob", order)


def test_a_job_is_fetched_when_all_its_pictures_are(make_engine: Any) -> None:
    engine = make_engine(checker=lambda portrait: "no" if portrait.seed == 7 else "")
    job = engine.submit("ann", PaintRequest("a chef", steps=1, number=3, seed=5))
    finish(engine, "ann", job)
    with pytest.raises(NotFound):
        engine.picture("ann", job, 3)
    assert engine.picture("ann", job, 1).seed == 6
    engine.result("ann", job, peek=True)
    assert engine.status()["unfetched"] == 1
    engine.picture("ann", job, 0)
    assert engine.status()["unfetched"] == 0  # the third was refused


def test_what_is_old_is_forgotten(make_engine: Any, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(Limits(keep_results=300))
    me = engine.enroll("ann", [photo], ttl=400)
    other = engine.enroll("ann", [photo], ttl=1000)
    job = engine.submit("ann", PaintRequest("a chef", identity=me.id))
    assert finish(engine, "ann", job)[-1].status is Status.DONE
    later = SimpleNamespace(time=lambda: time.time() + 500, monotonic=lambda: time.monotonic() + 500)
    monkeypatch.setattr("limner.serve.state.time", later)
    with pytest.raises(NotFound):
        engine.person("ann", me.id)
    status = engine.status()
    assert (status["results"], status["identities"]) == (0, 1)
    assert engine.persons("ann") == [other]
    with pytest.raises(NotFound):
        engine.result("ann", job)


def test_identities_stay_out_of_pictures_unless_asked_for(make_engine: Any, photo: bytes) -> None:
    engine = make_engine()
    me = engine.enroll("ann", [photo])
    job = engine.submit("ann", PaintRequest("a chef", identity=me.id, watermark=True))
    finish(engine, "ann", job)
    picture = Image.open(io.BytesIO(engine.result("ann", job)[0].png))
    assert IDENTITY_KEY not in picture.text
    from limner.watermark import detect

    assert detect(np.asarray(picture)).detected


def test_a_checker_refuses_and_one_that_breaks_lets_nothing_out(make_engine: Any) -> None:
    def strict(portrait: Any) -> str:
        return "no hats" if "hat" in portrait.prompt else ""

    engine = make_engine(checker=strict)
    for prompt, refused in (("a hat", "no hats"), ("a chef", "")):
        job = engine.submit("ann", PaintRequest(prompt))
        assert finish(engine, "ann", job)[-1].status is Status.DONE
        (picture,) = engine.result("ann", job)
        assert picture.refused == refused
        assert bool(picture.png) is not bool(refused)

    def broken(portrait: Any) -> str:
        raise RuntimeError("out of order")

    engine = make_engine(checker=broken)
    job = engine.submit("ann", PaintRequest("a chef"))
    finish(engine, "ann", job)
    assert engine.result("ann", job)[0].png == b""


class Killed(BaseException):
    """Nothing in the engine catches it by name."""


def kill(engine: Engine) -> None:
    """The worker dies wherever it is."""
    worker = engine._worker
    assert worker is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(Killed))


def test_a_killed_worker_loses_no_job(make_engine: Any, photo: bytes) -> None:
    engine = make_engine()
    me = engine.enroll("ann", [photo])
    jobs = [engine.submit(o, PaintRequest("a chef", seed=i, steps=20)) for i, o in enumerate("abcdef")]
    jobs.append(engine.submit("ann", PaintRequest("a chef", identity=me.id, steps=20, number=5)))
    owners = [*"abcdef", "ann"]
    for _ in range(2):
        time.sleep(0.1)
        kill(engine)
    for owner, job in zip(owners, jobs, strict=True):
        last = finish(engine, owner, job)[-1]
        assert last.status is Status.DONE, last
    assert engine.counters["crashes"] >= 1
    assert len(engine.result("ann", jobs[-1])) == 5
    assert engine.status()["ready"]


def test_a_job_that_kills_every_worker_fails_alone(make_engine: Any, tiny_folder: Path) -> None:
    def load() -> Any:
        model = load_model(str(tiny_folder), device="cpu")
        condition = model.pipe.condition

        def fragile(prompt: str, *args: Any, **kwargs: Any) -> Any:
            if prompt == "boom":
                raise Killed
            return condition(prompt, *args, **kwargs)

        model.pipe.condition = fragile  # type: ignore[method-assign]
        return model

    engine = make_engine(load=load)
    boom, good = engine.submit("ann", PaintRequest("boom")), engine.submit("bob", PaintRequest("a chef"))
    assert finish(engine, "bob", good)[-1].status is Status.DONE
    last = finish(engine, "ann", boom)[-1]
    assert last.status is Status.FAILED
    assert last.error is not None
    assert last.error["code"] == "worker_crashed"
    assert engine.counters["crashes"] == 3
    assert finish(engine, "ann", engine.submit("ann", A))[-1].status is Status.DONE


@pytest.mark.parametrize("where", ["prompt_remarks", "_likeness"])
def test_a_job_that_cannot_be_conditioned_on_or_scored_fails_alone(
    make_engine: Any, photo: bytes, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def broken(*args: Any) -> Any:
        raise KeyError("class_token.0")

    engine = make_engine()
    me = engine.enroll("ann", [photo])
    with monkeypatch.context() as patch:
        patch.setattr(f"limner.serve.worker.{where}", broken)
        last = finish(engine, "ann", engine.submit("ann", PaintRequest("a chef", identity=me.id, steps=1)))[-1]
    assert last.error is not None
    assert (last.status, last.error["code"]) == (Status.FAILED, "service")
    assert finish(engine, "ann", engine.submit("ann", A))[-1].status is Status.DONE
    assert engine.counters["crashes"] == 0


def test_without_memory_for_a_batch_pictures_come_alone(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from limner.serve import worker

    most, real = 1, worker.paint_batch

    def paint_batch(model: Any, conditioning: Any, seeds: Any, *more: Any) -> Any:
        if len(seeds) > most:
            raise torch.OutOfMemoryError
        return real(model, conditioning, seeds, *more)

    monkeypatch.setattr(worker, "paint_batch", paint_batch)
    engine = make_engine()
    job = engine.submit("ann", PaintRequest("a chef", steps=1, number=3))
    assert finish(engine, "ann", job)[-1].status is Status.DONE
    assert [p.settings["batch_rows"] for p in engine.result("ann", job)] == [1, 1, 1]
    most = 0
    last = finish(engine, "ann", engine.submit("ann", A))[-1]
    assert last.error is not None
    assert last.error["code"] == "out_of_memory"
    assert engine.counters["crashes"] == 0


def test_a_model_that_cannot_be_loaded_again_fails_what_waits(make_engine: Any, tiny_folder: Path) -> None:
    loads = []

    def load() -> Any:
        loads.append(1)
        if len(loads) > 1:
            raise ConfigError("the folder is gone")
        return load_model(str(tiny_folder), device="cpu")

    engine = make_engine(load=load)
    job = engine.submit("ann", PaintRequest("a chef", steps=100, number=16))
    kill(engine)
    last = finish(engine, "ann", job)[-1]
    assert last.error is not None
    assert last.error["code"] == "unavailable"
    assert engine.status()["failed"]
    assert not engine.status()["ready"]


def test_what_loading_raises_reaches_the_caller(make_engine: Any) -> None:
    def load() -> Any:
        raise ConfigError("no such model")

    with pytest.raises(ConfigError, match="no such model"):
        make_engine(load=load)


def test_draining_finishes_what_was_accepted(make_engine: Any, photo: bytes) -> None:
    engine = make_engine()
    jobs = [engine.submit("ann", PaintRequest("a chef", seed=i)) for i in range(4)]
    assert engine.drain(30)
    assert [engine.progress("ann", job).status for job in jobs] == [Status.DONE] * 4
    assert not engine.status()["ready"]
    with pytest.raises(Draining):
        engine.submit("ann", A)
    with pytest.raises(Draining):
        engine.enroll("ann", [photo])


def test_closing_hands_back_what_is_unfinished(make_engine: Any) -> None:
    engine = make_engine()
    job = engine.submit("ann", PaintRequest("a chef", steps=100, number=16))
    assert not engine.drain(0.05)
    engine.close()
    progress = engine.progress("ann", job)
    assert progress.error is not None
    assert (progress.status, progress.error["code"]) == (Status.FAILED, "draining")


def test_enrolments_do_not_hold_up_painting(make_engine: Any, photo: bytes) -> None:
    brake = Brake()
    waiting: list[int] = []

    def checker(portrait: Any) -> str:
        waiting.append(sum(not task.future.done() for task in engine._tasks))
        return brake(portrait)

    engine = make_engine(checker=checker)
    jobs = [engine.submit("zoe", PaintRequest("a hat", steps=1))]
    brake.entered.wait(60)
    crowd = [threading.Thread(target=engine.enroll, args=("ann", [photo])) for _ in range(3)]
    for thread in crowd:
        thread.start()
    while len(engine._tasks) < 3:
        time.sleep(0.01)
    jobs.append(engine.submit("zoe", PaintRequest("a chef", steps=1)))
    brake.release.set()
    for thread in crowd:
        thread.join(60)
    for job in jobs:
        assert finish(engine, "zoe", job)[-1].status is Status.DONE
    assert waiting == [0, 2]  # one was served, then the job's turn came


@pytest.mark.parametrize("owners", [["ann"] * 6, [f"ann/{i}" for i in range(6)]], ids=["one", "of-one-account"])
def test_callers_take_turns(make_engine: Any, owners: list[str]) -> None:
    brake = Brake()
    engine = make_engine(Limits(batch=1), checker=brake)
    greedy = [(owner, engine.submit(owner, PaintRequest("a chef", steps=1))) for owner in owners]
    brake.entered.wait(60)
    late = engine.submit("bob", PaintRequest("a chef", steps=1))
    brake.release.set()
    finish(engine, "bob", late)
    assert sum(engine.progress(owner, job).status is Status.DONE for owner, job in greedy) <= 3


def test_remarks_say_what_the_model_cannot_do(make_engine: Any, photo: bytes) -> None:
    engine = make_engine()
    image = io.BytesIO()
    Image.open(io.BytesIO(photo)).convert("RGB").save(image, "JPEG", quality=95)
    me = engine.enroll("ann", [image.getvalue()])
    assert "outside its world" in " ".join(me.remarks)
    job = engine.submit("ann", PaintRequest("a zeppelin " + "hat " * 40, identity=me.id))
    said = " ".join(finish(engine, "ann", job)[-1].remarks)
    assert "zeppelin" in said
    assert "cut off" in said
    assert "outside its world" in said

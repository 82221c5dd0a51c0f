"""The engine: jobs, batches, previews, owners, crashes, draining. A tiny model, nothing mocked."""

from __future__ import annotations

import ctypes
import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
        assert self.release.wait(20)
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
    brake.entered.wait(20)
    me = engine.enroll  # enrolments wait for the worker too; these jobs paint nobody
    assert me
    jobs = {
        owner: engine.submit(owner, PaintRequest(prompt, seed=seed, steps=2, negative_prompt=negative))
        for owner, prompt, seed, negative in (
            ("a", "a chef", 1, ""),
            ("b", "a wizard", 2, "hat"),
            ("c", "a man", 3, ""),
        )
    }
    other = engine.submit("d", PaintRequest("a man", seed=3, steps=3))
    before = engine.counters["batches"]
    brake.release.set()
    for owner, job in [*jobs.items(), ("zoe", first), ("d", other)]:
        assert finish(engine, owner, job)[-1].status is Status.DONE
    assert engine.counters["batches"] - before <= 3  # zoe's, the three together, d's of another number of steps
    together = {owner: engine.result(owner, job)[0] for owner, job in jobs.items()}
    assert {p.settings["batch_rows"] for p in together.values()} == {3}
    for owner, prompt, seed, negative in (("a", "a chef", 1, ""), ("b", "a wizard", 2, "hat"), ("c", "a man", 3, "")):
        alone = engine.submit("x", PaintRequest(prompt, seed=seed, steps=2, negative_prompt=negative))
        finish(engine, "x", alone)
        one = np.asarray(Image.open(io.BytesIO(engine.result("x", alone)[0].png)), int)
        both = np.asarray(Image.open(io.BytesIO(together[owner].png)), int)
        assert np.abs(one - both).max() <= 1
        assert read_provenance(io.BytesIO(together[owner].png)).portrait.prompt == prompt

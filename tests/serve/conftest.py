"""A service on the tiny random model, and photos to enrol."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from limner.pipelines.loading import load_model
from limner.serve.engine import Engine
from limner.serve.jobs import Limits


def photo_of(seed: int, size: int = 320, kind: str = "PNG") -> bytes:
    """A rendered sitter as a camera would deliver it."""
    from limner.world.sheet import SheetConfig, sheet

    image, _ = sheet(SheetConfig(identities=1, views=1, seed=seed, size=size))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def png_of(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def photo() -> bytes:
    return photo_of(7)


@pytest.fixture(scope="session")
def wall() -> bytes:
    """A picture without a face."""
    return png_of(Image.new("RGB", (64, 64), "gray"))


@pytest.fixture
def make_engine(tiny_folder: Path) -> Iterator[Any]:
    """Starts engines with given limits and closes them."""
    engines: list[Engine] = []

    def make(limits: Limits | None = None, **options: Any) -> Engine:
        load = options.pop("load", lambda: load_model(str(tiny_folder), device="cpu"))
        engine = Engine(load, limits, **options)
        engines.append(engine)
        engine.start()
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def shared_engine(tiny_folder: Path) -> Iterator[Engine]:
    """For tests that leave nothing behind."""
    engine = Engine(lambda: load_model(str(tiny_folder), device="cpu"))
    engine.start()
    yield engine
    engine.close()

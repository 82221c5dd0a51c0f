"""A service on the tiny random model, and photos to enrol."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dreamidentity"))

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


@pytest.fixture(scope="session")
def steered_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with a random ControlNet for places of the eyes."""
    import torch
    from diffusers import ControlNetModel
    from tiny_model import tiny_pipeline

    from limner.pipelines.gaze import stages

    pipe = tiny_pipeline()
    with torch.random.fork_rng():
        torch.manual_seed(8)
        size = stages(pipe.vae_scale_factor, (8, 16))
        pipe.controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=size)
        for name, value in pipe.controlnet.named_parameters():
            if "controlnet" in name:
                torch.nn.init.normal_(value, std=0.3)
    folder = tmp_path_factory.mktemp("steered") / "gaze"
    pipe.controlnet.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dream_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DreamIdentity model of no world."""
    from dream_models import encoder, save_base

    from limner.pipelines.dreamidentity import assemble

    root = tmp_path_factory.mktemp("dream")
    folder = root / "dream"
    assemble(save_base("mini", root / "base"), encoder("mini"), default_steps=2).save_pretrained(folder)
    return folder

"""Every memory mode paints what the plain one paints, as far as it promises that; what needs a GPU says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import noise_face, tiny_pipeline

from limner.cli.main import main
from limner.errors import ConfigError
from limner.pipelines.loading import load_model
from limner.pipelines.memory import MODES, MemoryMode, encode_then_free, memory_mode, place

CPU = torch.device("cpu")
PROMPTS = ["a portrait of a wizard", "oil painting in snow"]
ON_CPU = [n for n, m in MODES.items() if m.offload == "none" and not m.compile]
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")


def painted(mode: MemoryMode) -> np.ndarray:
    """Two prompts, two pictures each (2·2, H, W, 3) in [0, 1], of one person."""
    pipe = tiny_pipeline("kl")
    identity = pipe.enroll(noise_face(1))
    place(pipe, mode, CPU)
    ready = encode_then_free(pipe, identity, PROMPTS) if mode.free_encoders else {}
    pictures = [
        pipe(
            conditioning=ready.get(prompt) or pipe.condition(prompt, identity), num_images_per_prompt=2,
            generator=[torch.Generator().manual_seed(i) for i in range(2)], output_type="np",
        ).images
        for prompt in PROMPTS
    ]  # fmt: skip
    return np.concatenate(pictures)


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return painted(MemoryMode())


@pytest.mark.parametrize("name", [n for n in ON_CPU if n != "plain"])
def test_modes_paint_the_plain_pictures(name: str, plain: np.ndarray) -> None:
    found = painted(MODES[name])
    if MODES[name].exact:
        np.testing.assert_array_equal(found, plain)
    else:  # tiles are not in play: the picture is smaller than one
        np.testing.assert_allclose(found, plain, atol=1e-4)


def test_a_compiled_denoiser_paints_the_plain_pictures(plain: np.ndarray) -> None:
    # The whole graph is captured as for inductor, but run by torch itself: inductor takes minutes on a CPU.
    np.testing.assert_allclose(painted(MemoryMode(compile="eager")), plain, atol=1e-5)


def test_large_pictures_are_decoded_in_tiles() -> None:
    pipe = tiny_pipeline("kl")
    place(pipe, MODES["sliced"], CPU)
    latents = torch.randn(1, 4, 24, 24)
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 16, 32
    with torch.no_grad():
        tiled = pipe.vae.decode(latents).sample
        pipe.vae.disable_tiling()
        whole = pipe.vae.decode(latents).sample
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < 0.5 * whole.std()


def test_a_freed_encoder_holds_nothing_and_says_so() -> None:
    pipe = tiny_pipeline()
    identity = pipe.enroll(noise_face(1))
    assert list(encode_then_free(pipe, identity, [PROMPTS[0]] * 3)) == [PROMPTS[0]]
    assert {t.device.type for t in (*pipe.encoder.parameters(), *pipe.encoder.buffers())} == {"meta"}
    assert pipe.device == CPU
    assert pipe.method.name == "faceclip"
    for work in (lambda: pipe.condition(PROMPTS[0]), lambda: pipe.enroll(noise_face(1))):
        with pytest.raises(ConfigError, match="freed"):
            work()


@needs_no_gpu
@pytest.mark.parametrize("name", [n for n, m in MODES.items() if m.offload != "none"])
def test_offloading_without_a_gpu_is_refused_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CUDA") as caught:
        load_model(str(tmp_path / "nothing"), device="cpu", memory=name)
    assert "freed" in caught.value.hint


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="sequential"):
        memory_mode("tiny")
    with pytest.raises(ConfigError, match="offload"):
        MemoryMode(offload="disk")


def test_generate_in_every_mode(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    person = tmp_path / "me.safetensors"
    tiny_pipeline().enroll(noise_face(1)).save(person)

    def run(mode: str, *more: str) -> tuple[int, str, str]:
        what = ["--model", str(tiny_folder), "--identity", str(person), "--prompt", PROMPTS[0], "--seed", "5"]
        how = ["--device", "cpu", "--out", str(tmp_path / mode), "--json", "--memory", mode]
        with pytest.raises(SystemExit) as end:
            sys.exit(main(["generate", *what, *how, *more]))
        return (int(end.value.code or 0), *capsys.readouterr())

    pictures = {}
    for name in ON_CPU:
        status, out, _ = run(name)
        assert status == 0
        pictures[name] = np.asarray(Image.open(json.loads(out)["pictures"][0]["path"])).astype(int)
        assert np.abs(pictures[name] - pictures["plain"]).max() <= (0 if MODES[name].exact else 1)
    status, _, err = run("freed", "--best-of", "2")
    assert status == 2
    assert "--ranker" in err

"""Every memory mode paints what the plain one paints, as far as it promises that; what needs a GPU says so."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import noise_face, tiny_pipeline

from limner.cli.main import main
from limner.errors import ConfigError, MissingDependency
from limner.pipelines import memory
from limner.pipelines.loading import load_model, load_pipeline
from limner.pipelines.memory import MODES, PACKAGES, MemoryMode, encode_then_free, memory_mode, modes_for, place

CPU = torch.device("cpu")
PROMPTS = ["a portrait of a wizard", "oil painting in snow"]
MISSING = [p for p in PACKAGES.values() if find_spec(p) is None]
ON_CPU = [
    pytest.param(n, marks=pytest.mark.skipif(PACKAGES.get(MODES[n].weights) in MISSING, reason="needs limner[quant]"))
    for n in modes_for(CPU)
    if not MODES[n].compile
]
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline with SDXL's kind of autoencoder."""
    path = tmp_path_factory.mktemp("kl")
    tiny_pipeline("kl").save_pretrained(path)
    return path


def painted(folder: Path, mode: MemoryMode) -> np.ndarray:
    """Two prompts, two pictures each (2·2, H, W, 3) in [0, 1], of one person."""
    pipe = load_pipeline(folder, torch.float32, mode)
    pipe.set_progress_bar_config(disable=True)
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
def plain(folder: Path) -> np.ndarray:
    return painted(folder, MemoryMode())


@pytest.mark.parametrize("name", ON_CPU)
def test_modes_paint_the_plain_pictures(name: str, folder: Path, plain: np.ndarray) -> None:
    found, mode = painted(folder, MODES[name]), MODES[name]
    if mode.exact:
        np.testing.assert_array_equal(found, plain)
    elif mode.faithful:  # tiles are not in play: the picture is smaller than one
        np.testing.assert_allclose(found, plain, atol=1e-4)
    else:
        difference = np.abs(found - plain)
        assert 0 < difference.mean() < 0.1 * plain.std()


def test_a_compiled_denoiser_paints_the_plain_pictures(folder: Path, plain: np.ndarray) -> None:
    # The whole graph is captured as for inductor, but run by torch itself: inductor takes minutes on a CPU.
    np.testing.assert_allclose(painted(folder, MemoryMode(compile="eager")), plain, atol=1e-5)


def weight_bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def test_fp8_keeps_a_quarter_of_the_bytes(folder: Path) -> None:
    pipe = load_pipeline(folder, torch.float32, MODES["fp8"])
    before = weight_bytes(pipe.unet)
    place(pipe, MODES["fp8"], CPU)
    assert weight_bytes(pipe.unet) < 0.3 * before
    assert pipe.unet.conv_norm_out.weight.dtype == torch.float32


@pytest.mark.skipif("torchao" in MISSING, reason="needs limner[quant]")
def test_int8_rounds_the_linear_layers(folder: Path) -> None:
    unet = load_pipeline(folder, torch.float32, MODES["int8"]).unet
    assert "Int8Tensor" in type(unet.mid_block.attentions[0].proj_in.weight).__name__
    assert type(unet.conv_in.weight.data) is torch.Tensor


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_installed", lambda package: False)
    with pytest.raises(MissingDependency, match="torchao") as caught:
        load_model(str(tmp_path / "nothing"), device="cpu", memory="int8")
    assert "limner[quant]" in caught.value.hint


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
@pytest.mark.parametrize("name", ["offload", "sequential", "nf4"])
def test_what_needs_a_gpu_is_refused_without_one_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CUDA") as caught:
        load_model(str(tmp_path / "nothing"), device="cpu", memory=name)
    assert "freed" in caught.value.hint


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="sequential"):
        memory_mode("tiny")
    with pytest.raises(ConfigError, match="offload"):
        MemoryMode(offload="disk")
    with pytest.raises(ConfigError, match="weights"):
        MemoryMode(weights="int3")
    with pytest.raises(ConfigError, match="offloaded"):
        MemoryMode(weights="fp8", offload="model")


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
    for name in ("plain", "auto", "freed", "sliced", "fp8"):
        status, out, _ = run(name)
        assert status == 0
        row = json.loads(out)["pictures"][0]
        used = row["settings"]["memory"]
        assert used == (name if name != "auto" else "plain")
        pictures[name] = np.asarray(Image.open(row["path"])).astype(int)
        if MODES[used].faithful:
            assert np.abs(pictures[name] - pictures["plain"]).max() <= (0 if MODES[used].exact else 1)
    again = ["generate", "--from", row["path"], "--model", str(tiny_folder), "--device", "cpu", "--json"]
    with pytest.raises(SystemExit):
        sys.exit(main([*again, "--out", str(tmp_path / "again")]))
    assert json.loads(capsys.readouterr().out)["identical"] is True  # in fp8 once more
    status, _, err = run("freed", "--best-of", "2")
    assert status == 2
    assert "--ranker" in err

"""Few-step LoRAs: what the catalogue says of them, and painting with a tiny one, from loading to painting again."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import noise_face, tiny_pipeline

from limner.cli.main import main
from limner.errors import ConfigError, WeightsMismatch, WeightsUnavailable
from limner.pipelines.few_step import FEW_STEP, apply_lora
from limner.pipelines.loading import load_model
from limner.pipelines.memory import MODES
from limner.pipelines.paint import default_dials
from limner.pipelines.schedulers import make_scheduler

PROMPT = "a portrait of a wizard"


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of rank 2 for the tiny UNet, strong enough to be seen."""
    from diffusers import StableDiffusionXLPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    folder = tmp_path_factory.mktemp("lora")
    unet = tiny_pipeline().unet
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "proj_in"]))
    layers = get_peft_model_state_dict(unet)
    generator = torch.Generator().manual_seed(0)
    layers = {k: 0.3 * torch.randn(v.shape, generator=generator) for k, v in layers.items()}
    StableDiffusionXLPipeline.save_lora_weights(str(folder), unet_lora_layers=layers)
    return next(folder.glob("*.safetensors"))


@pytest.fixture
def person(tmp_path: Path) -> Path:
    path = tmp_path / "me.safetensors"
    tiny_pipeline().enroll(noise_face(1)).save(path)
    return path


def generate(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        sys.exit(main(["generate", "--device", "cpu", "--json", *arguments]))
    return (int(end.value.code or 0), *capsys.readouterr())


def test_the_catalogue_says_what_each_was_made_for() -> None:
    for entry in FEW_STEP.values():
        assert entry.base == "sdxl"
        assert entry.file.license
        assert entry.file.repo.count("/") == 1
        assert "arXiv" in entry.source
        assert 1 <= entry.steps <= 8
        make_scheduler(entry.scheduler, tiny_pipeline().scheduler).set_timesteps(entry.steps)
    assert len({e.file.variable for e in FEW_STEP.values()}) == len(FEW_STEP)


def test_a_fused_lora_is_the_lora(lora: Path) -> None:
    def latents(fuse: bool | None) -> torch.Tensor:
        pipe = tiny_pipeline()
        if fuse is not None:
            apply_lora(pipe, "lcm", lora, fuse=fuse)
        return pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent").images

    without, beside, fused = latents(None), latents(False), latents(True)
    torch.testing.assert_close(fused, beside, atol=1e-4, rtol=1e-4)
    assert (fused - without).abs().mean() > 0.01


@pytest.mark.parametrize("fast", FEW_STEP)
def test_generate_fast_and_again(
    fast: str, lora: Path, tiny_folder: Path, person: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FEW_STEP[fast].file.variable, str(lora))
    what = ["--model", str(tiny_folder), "--identity", str(person), "--prompt", PROMPT, "--seed", "5"]
    status, out, err = generate(capsys, *what, "--fast", fast, "--out", str(tmp_path / "fast"))
    assert status == 0, err
    row = json.loads(out)["pictures"][0]
    entry, settings = FEW_STEP[fast], row["settings"]
    assert (settings["steps"], settings["guidance_scale"]) == (entry.steps, entry.guidance_scale)
    assert (settings["scheduler"], settings["fast"]) == (entry.scheduler, fast)
    status, out, _ = generate(capsys, *what, "--out", str(tmp_path / "slow"), "--steps", "4", "--guidance", "1")
    slow = json.loads(out)["pictures"][0]
    assert np.any(np.asarray(Image.open(slow["path"])) != np.asarray(Image.open(row["path"])))
    again = ["--from", row["path"], "--model", str(tiny_folder), "--out", str(tmp_path / "again")]
    status, out, err = generate(capsys, *again)
    assert status == 0, err
    assert json.loads(out)["identical"] is True
    status, _, err = generate(capsys, *again, "--fast", fast)
    assert status == 2
    assert "fast" in err


@pytest.mark.parametrize("mode", ["fp8", pytest.param("int8", marks=pytest.mark.skipif(
    find_spec("torchao") is None, reason="needs limner[quant]"))])  # fmt: skip
def test_a_lora_with_rounded_weights(mode: str, lora: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FEW_STEP["lcm"].file.variable, str(lora))

    def latents(memory: str, fast: str = "lcm") -> torch.Tensor:
        pipe = load_model(str(tiny_folder), device="cpu", memory=memory, fast=fast).pipe
        return pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent").images

    exact = latents("plain")
    assert (latents(mode) - exact).abs().mean() < 0.5 * (latents("plain", "") - exact).abs().mean()
    assert not MODES[mode].faithful


def test_own_dials_come_first(lora: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FEW_STEP["lightning"].file.variable, str(lora))
    model = load_model(str(tiny_folder), device="cpu", fast="lightning")
    dials = default_dials(model, steps=8, scheduler="ddim")
    assert (dials.steps, dials.scheduler, dials.guidance_scale) == (8, "ddim", 1.0)
    assert "unet_lora" in model.weights


def test_what_cannot_be_said_clearly(lora: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(ConfigError, match="lcm, lightning"):
        load_model(str(tiny_folder), fast="turbo")
    mini = dataclasses.replace(FEW_STEP["lcm"], base="other")
    monkeypatch.setitem(FEW_STEP, "lcm", mini)
    monkeypatch.setattr("limner.pipelines.loading.model_folder", lambda spec: tiny_folder)
    with pytest.raises(ConfigError, match="was made for other"):
        load_model("faceclip-mini", device="cpu", fast="lcm")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(WeightsMismatch, match="cannot be loaded"):
        apply_lora(tiny_pipeline(), "lcm", broken, fuse=True)
    wider = {k: v.repeat(1, 2) if k.endswith("lora_A.weight") else v for k, v in load_file(lora).items()}
    save_file(wider, broken)
    with pytest.raises(WeightsMismatch, match="size mismatch"):
        apply_lora(tiny_pipeline(), "lcm", broken, fuse=True)
    save_file({f"text_encoder.{k}": v for k, v in load_file(lora).items()}, broken)
    with pytest.raises(WeightsMismatch, match="no layers for the UNet"):
        apply_lora(tiny_pipeline(), "lcm", broken, fuse=True)


def test_offline_the_answer_comes_soon(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.perf_counter()
    with pytest.raises(WeightsUnavailable, match="ByteDance/SDXL-Lightning") as caught:
        load_model(str(tiny_folder), device="cpu", fast="lightning")
    assert time.perf_counter() - began < 5
    assert "LIMNER_LIGHTNING_LORA" in caught.value.hint

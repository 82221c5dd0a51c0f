"""The scene switch: where the eyes go, as numbers, as a picture, in pipelines, in training and on the command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLControlNetPipeline, UNet2DConditionModel
from dream_models import encoder, save_base
from PIL import Image
from tiny_model import noise_face, tiny_pipeline

from limner.cli.main import main
from limner.errors import ConfigError, CorruptData, WeightsMismatch, WeightsUnavailable
from limner.pipelines.dreamidentity import assemble
from limner.pipelines.gaze import Gaze, add_gaze, attach, gaze_image, load_gaze, parse_gaze, stages
from limner.pipelines.gaze_net import GazeNet
from limner.provenance import read_provenance
from limner.training.dice import Dice, seed_everything
from limner.training.progress import silent
from limner.training.tasks.gaze import GazeSettings, GazeTask

MARKS = [[11, 13], [21, 13], [16, 18], [12, 22], [20, 22]]


def test_all_ways_to_say_it() -> None:
    assert parse_gaze("0.5,0.4,0.2") == Gaze((0.4, 0.4), (0.6, 0.4))
    assert parse_gaze("0.5,0.4").middle == pytest.approx((0.5, 0.4))
    eyes = Gaze((0.3, 0.4), (0.5, 0.45))
    assert parse_gaze("0.3,0.4,0.5,0.45") == eyes
    assert parse_gaze("0.3,0.4,0.5,0.45,0.4,0.5,0.35,0.6,0.45,0.6") == eyes
    assert parse_gaze(eyes.text) == eyes
    box = parse_gaze("box:0.2,0.2,0.6,0.8")
    assert 0.2 < box.left[0] < 0.4 < box.right[0] < 0.6
    assert 0.2 < box.middle[1] < 0.5


@pytest.mark.parametrize("text", ["", "middle", "0.5", "0.5,1.4", "0.1,0.5,0.4", "0.5,0.5,0", "1,2,3,4,5", "head:1,2"])
def test_places_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_gaze(text)


def test_the_picture_shows_the_eyes() -> None:
    image = gaze_image(parse_gaze("0.5,0.25,0.25"), 64, 128)
    assert image.shape == (1, 3, 64, 128)
    assert 0 <= image.min() < image.max() <= 1
    for channel, (x, y) in enumerate(((48, 16), (80, 16), (64, 16))):
        flat = int(image[0, channel].argmax())
        assert abs(flat % 128 + 0.5 - x) <= 1
        assert abs(flat // 128 + 0.5 - y) <= 1


def net_for(pipe: Any, random: bool = True) -> Any:
    """A ControlNet that has something to say (or, fresh from the UNet, nothing)."""
    with torch.random.fork_rng():
        torch.manual_seed(8)
        net: Any = GazeNet.from_unet(
            pipe.unet, conditioning_embedding_out_channels=stages(pipe.vae_scale_factor, (8, 16))
        )
        if random:
            for name, value in net.named_parameters():
                if "controlnet" in name:
                    torch.nn.init.normal_(value, std=0.3)
    return net.eval()


def pipelines(kind: str, folder: Path) -> Any:
    if kind == "faceclip":
        return tiny_pipeline()
    pipe = assemble(save_base(kind, folder), encoder(kind), default_steps=2)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: Any, **kwargs: Any) -> np.ndarray:
    noise = torch.Generator().manual_seed(3)
    return np.stack(pipe("a wizard", num_inference_steps=2, generator=noise, output_type="np", **kwargs)[0])


@pytest.mark.parametrize("kind", ["faceclip", "sd21", "sdxl", "mini"])
def test_every_pipeline_can_be_steered(kind: str, tmp_path: Path) -> None:
    pipe = pipelines(kind, tmp_path)
    plain = paint(pipe)
    with pytest.raises(ConfigError, match="needs a ControlNet"):
        paint(pipe, gaze="0.5,0.4")
    pipe.controlnet = net_for(pipe, random=False)
    assert np.array_equal(paint(pipe, gaze="0.5,0.4"), plain)  # zero convolutions
    pipe.controlnet = net_for(pipe)
    here, there = paint(pipe, gaze="0.3,0.3"), paint(pipe, gaze="0.7,0.6")
    assert not np.allclose(here, plain, atol=1e-3)
    assert not np.allclose(here, there, atol=1e-3)
    assert np.array_equal(paint(pipe), plain)  # the UNet is as it was
    two = paint(pipe, gaze=Gaze((0.21, 0.3), (0.39, 0.3)), num_images_per_prompt=2)
    assert np.allclose(two[0], here[0], atol=1e-2)


def test_value_for_value_what_diffusers_paints(tmp_path: Path) -> None:
    pipe = pipelines("sdxl", tmp_path)
    pipe.controlnet = net_for(pipe)
    told = pipe.condition("a wizard")
    theirs = StableDiffusionXLControlNetPipeline(
        vae=pipe.vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=pipe.unet,
        controlnet=pipe.controlnet, scheduler=pipe.scheduler, add_watermarker=False,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    size = pipe.default_size[0]
    expected = theirs(
        prompt_embeds=told.prompt_embeds, pooled_prompt_embeds=told.pooled,
        negative_prompt_embeds=told.negative_prompt_embeds, negative_pooled_prompt_embeds=told.negative_pooled,
        image=gaze_image(parse_gaze("0.4,0.4"), size, size), height=size, width=size, num_inference_steps=2,
        guidance_scale=7.5, generator=torch.Generator().manual_seed(3), output_type="np",
    ).images  # fmt: skip
    assert np.allclose(paint(pipe, gaze="0.4,0.4", guidance_scale=7.5), expected, atol=1e-5)


def test_it_travels_with_the_pipeline(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    attach(pipe, net_for(pipe))
    pipe.save_pretrained(tmp_path / "with")
    again = type(pipe).from_pretrained(tmp_path / "with")
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(paint(again, gaze="0.4,0.4"), paint(pipe, gaze="0.4,0.4"))


def test_levels_of_different_depths(tmp_path: Path) -> None:
    """UNets that were grown have them, and a time embedding of their own width; diffusers' ControlNet has neither."""
    pipe = tiny_pipeline()
    config = {k: v for k, v in pipe.unet.config.items() if not k.startswith("_")}
    depths = (2, *[1] * (len(config["block_out_channels"]) - 1))
    config |= {"layers_per_block": depths, "time_embedding_dim": 48}
    pipe.unet = UNet2DConditionModel.from_config(config).eval()
    plain = paint(pipe)
    pipe.controlnet = net_for(pipe, random=False)
    assert np.array_equal(paint(pipe, gaze="0.5,0.4"), plain)
    pipe.controlnet = net_for(pipe)
    steered = paint(pipe, gaze="0.5,0.4")
    assert not np.allclose(steered, plain, atol=1e-3)
    pipe.controlnet.save_pretrained(tmp_path)
    pipe.controlnet = load_gaze(tmp_path, pipe.unet)
    assert np.array_equal(paint(pipe, gaze="0.5,0.4"), steered)
    with pytest.raises(WeightsMismatch, match="layers_per_block"):
        load_gaze(tmp_path, tiny_pipeline().unet)


def test_sitters_are_steered_by_what_a_clone_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.pipelines.folders.cloned_weights", lambda name: tmp_path / name)
    pipe = tiny_pipeline()
    model: Any = SimpleNamespace(name="tiny", world="sitters", pipe=pipe, weights={})
    with pytest.raises(WeightsUnavailable, match="no ControlNet") as caught:
        add_gaze(model)
    assert "mini-gaze" in str(caught.value.hint)
    net_for(pipe).save_pretrained(tmp_path / "mini-gaze")
    add_gaze(model)
    assert isinstance(model.pipe.controlnet, GazeNet)
    assert len(model.weights["controlnet"]) == 64
    elsewhere: Any = SimpleNamespace(name="tiny", world="", pipe=tiny_pipeline(), weights={})
    with pytest.raises(WeightsUnavailable, match="no ControlNet"):
        add_gaze(elsewhere)


def test_weights_that_cannot_be_used(tmp_path: Path) -> None:
    pipe, other = tiny_pipeline(), pipelines("sd21", tmp_path / "base")
    with pytest.raises(WeightsUnavailable, match=r"recipes/mini-gaze\.yaml"):
        load_gaze(tmp_path, pipe.unet)
    net_for(other).save_pretrained(tmp_path / "other")
    with pytest.raises(WeightsMismatch, match="made for another base"):
        load_gaze(tmp_path / "other", pipe.unet)
    (tmp_path / "other" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CorruptData):
        load_gaze(tmp_path / "other", other.unet)


# --- training ---------------------------------------------------------------------------------------------------------


def write_pictures(folder: Path, size: int, count: int = 6) -> dict[str, Any]:
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        Image.fromarray(random.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        marks = (np.array(MARKS) * size / 32 + i).tolist() if i else None  # of one the eyes are not known
        rows.append(
            {"file_name": f"{i}.png", "identity": i // 2, "text": "a photo of a man", "prompt": "S* in snow",
             "landmarks": marks}
        )  # fmt: skip
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"kind": "folder", "path": str(folder), "size": size, "workers": 1}


def digest(*modules: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            found.update(name.encode() + value.cpu().numpy().tobytes())
    return found.hexdigest()


def task_of(data: dict[str, Any], **settings: Any) -> GazeTask:
    seed_everything(0)
    task = GazeTask(GazeSettings.from_dict({"data": data, "held_out": data, "validation": 4, "steps": 2, **settings}))
    task.prepare(silent)
    return task


@pytest.mark.parametrize("base", ["sd21", "mini"])
def test_it_learns_and_the_base_stays_as_it_was(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    task = task_of(write_pictures(tmp_path / "data", 32), base=str(save_base(base, tmp_path / "base")), dropout=0.0)
    assert len(task.source()) == 5
    before = digest(*task.frozen())
    with torch.no_grad():
        metrics = task.validate()
    assert metrics["loss"] == metrics["base"]  # it begins by adding nothing
    batch = task.source().batch(np.arange(5), 0)
    assert task.example(5).keys() == batch.keys()
    optimizer = torch.optim.AdamW(task.parameter_groups(0.0), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = task.loss(task.model.train(), batch, Dice(0, 0, range(5))).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not [n for n, p in task.model.named_parameters() if p.requires_grad and p.grad is None]
    assert digest(*task.frozen()) == before
    task.model.eval()
    with torch.no_grad():
        assert task.validate()["loss"] != metrics["loss"]
        assert task.sheet().size[0] > 32
    task.export(tmp_path / "weights")
    assert load_gaze(tmp_path / "weights", task.unet).config.in_channels == 4


def test_a_base_in_bfloat16_trains_validates_and_paints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    base = str(save_base("sdxl", tmp_path / "base"))
    task = task_of(write_pictures(tmp_path / "data", 32), base=base, base_dtype="bfloat16", dropout=1.0)
    batch = task.source().batch(np.arange(5), 0)
    task.loss(task.model.train(), batch, Dice(0, 0, range(5))).total.backward()
    with torch.no_grad():
        assert np.isfinite(task.validate()["loss"])
        assert task.sheet().size[0] > 32
    embeds, pooled, told = task.conditioner.draw(batch, Dice(0, 0, range(5)), 0.5, 1.0)
    assert not told.any()
    assert not embeds.any(), "SDXL paints with zeros where nothing is said"
    assert not pooled.any()


def test_under_faceclips_conditioning(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    data = write_pictures(folder, 64)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({**r, "landmarks": MARKS}) for r in rows))
    task = task_of(data, base=str(tiny_folder), encoder=str(tiny_folder / "encoder"))
    batch = task.source().batch(np.arange(3), 0)
    task.loss(task.model, batch, Dice(0, 0, range(3))).total.backward()
    assert task.sheet() is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 2}, "dropout is 2"),
        ({"base_dtype": "half"}, "base_dtype"),
        ({"steps": 0}, "steps is 0"),
        ({"validation": 0}, "validation is 0"),
        ({"held_out": {"kind": "folder", "path": "x", "size": 64}}, "one size for data and held_out"),
    ],
)
def test_settings_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    data = {"kind": "folder", "path": "x", "size": 32}
    with pytest.raises(ConfigError, match=message):
        GazeSettings.from_dict({"data": data, "held_out": data, "base": "b", **changes})


# --- command line -----------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


def test_a_series_of_scenes_with_the_eyes_in_one_place(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    pipe = tiny_pipeline()
    net_for(pipe).save_pretrained(tmp_path / "gaze")
    pipe.enroll(noise_face(0)).save(tmp_path / "me.safetensors")
    (tmp_path / "scenes.txt").write_text("# two of them\non snow\n\nin beach\n")
    common = ["--model", tiny_folder, "--identity", tmp_path / "me.safetensors", "--seed", 5, "--steps", 2,
              "--device", "cpu", "--gaze", "0.5,0.4,0.2"]  # fmt: skip
    series = [*common, "-p", "a photo", "--scenes", tmp_path / "scenes.txt", "--out", tmp_path / "out"]
    assert run("generate", *series) == 2
    assert "--gaze-weights" in " ".join(capsys.readouterr().err.split())
    assert run("generate", *series, "--gaze-weights", tmp_path / "gaze") == 0
    files = sorted((tmp_path / "out").glob("a-photo*.png"))
    assert [read_provenance(f).portrait.prompt for f in files] == ["a photo, in beach", "a photo, on snow"]
    assert read_provenance(files[0]).portrait.settings["gaze"] == "0.5,0.4,0.2"
    again = ["generate", "--from", files[0], "--model", tiny_folder, "--out", tmp_path / "again", "--device", "cpu"]
    assert run(*again) == 2
    assert run(*again, "--gaze-weights", tmp_path / "gaze") == 0
    (copy,) = (tmp_path / "again").glob("*.png")
    assert np.array_equal(np.asarray(Image.open(copy)), np.asarray(Image.open(files[0])))
    assert run("generate", *common[:-1], "0.5", "-p", "a photo", "--out", tmp_path / "out") == 2

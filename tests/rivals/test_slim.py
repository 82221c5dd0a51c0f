"""A rival's folder without its base paints what the whole one paints, and only over the base that it was trained on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dream_models import FACE, encoder, save_base
from tiny_model import noise_face

from limner.diffusion.adapter import new_adapter, read_adapter
from limner.diffusion.lora import FaceDetailer, add_lora
from limner.encoders.face_vit import FaceViT
from limner.encoders.rivals import RivalEncoder
from limner.encoders.scales import FaceBackbone, load_backbone
from limner.encoders.word_towers import WordTowers
from limner.errors import ConfigError, CorruptData, WeightsMismatch
from limner.pipelines.dreamidentity import assemble, base_parts
from limner.pipelines.instruct import InstructPix2PixPipeline
from limner.pipelines.loading import load_model
from limner.pipelines.rivals import IPAdapterPipeline
from limner.pipelines.schedulers import make_scheduler, scheduler_name
from limner.pipelines.slim import PICTURES, base_towers, onto, whole_encoder, write_slim
from limner.pipelines.tuned import over_base
from limner.training.tasks.instruct_pix2pix import widen


def paint(pipe: Any) -> np.ndarray:
    noise = torch.Generator().manual_seed(0)
    return pipe("a wizard", identity=pipe.enroll(noise_face(0)), output_type="np", generator=noise).images


def test_a_rival_without_its_base(parts: Path, tmp_path: Path) -> None:
    assemble(parts / "base", encoder("mini"), default_steps=2).save_pretrained(tmp_path / "dream")
    vae, unet, scheduler = base_parts(parts / "base")
    made = RivalEncoder(WordTowers.from_base(parts / "base"), FaceBackbone(FaceViT(FACE).eval()))
    made.adapter = {k: v + 0.1 for k, v in new_adapter(unet, "identity", FACE.output).items()}
    scheduler = make_scheduler("euler-a", scheduler)
    pipe: Any = IPAdapterPipeline(vae, unet, scheduler, made, default_steps=2, world="sitters")
    pipe.set_progress_bar_config(disable=True)
    slim = tmp_path / "slim"
    write_slim(pipe, slim, str(tmp_path / "dream"))
    assert sorted(p.name for p in slim.iterdir()) == ["encoder", "model_index.json"]
    loaded = load_model(str(slim), device="cpu")
    assert set(loaded.weights) == {"encoder", "unet", "vae"}
    assert loaded.world == "sitters"
    assert scheduler_name(loaded.pipe.scheduler) == "euler-a"
    assert np.abs(paint(loaded.pipe) - paint(pipe)).max() < 5e-2  # half precision
    assert next(made.parameters()).dtype == torch.float32
    index = json.loads((slim / "model_index.json").read_text())
    other = save_base("mini", tmp_path / "other")
    noisy = base_parts(other)[1]
    with torch.no_grad():
        noisy.conv_in.weight.normal_()
        noisy.conv_out.weight.normal_()
    noisy.save_pretrained(other / "unet")
    (other / "model_index.json").write_text("{}")
    (slim / "model_index.json").write_text(json.dumps({**index, "limner_base": str(other)}))
    with pytest.raises(WeightsMismatch, match="trained on another base"):
        load_model(str(slim), device="cpu")
    del index["limner_probe"]
    (slim / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptData, match="is damaged"):
        load_model(str(slim), device="cpu")


def test_the_packaged_picture_tower_is_not_stored_again(parts: Path, tmp_path: Path) -> None:
    assemble(parts / "base", encoder("mini"), default_steps=2).save_pretrained(tmp_path / "dream")
    vae, unet, scheduler = base_parts(parts / "base")
    backbone: Any = load_backbone(PICTURES.parent)
    made = RivalEncoder(WordTowers.from_base(parts / "base"), backbone)
    made.adapter = new_adapter(unet, "identity", backbone.config.output)
    write_slim(
        IPAdapterPipeline(vae, unet, scheduler, made, default_steps=2), tmp_path / "slim", str(tmp_path / "dream")
    )
    sizes = [f.stat().st_size for f in (tmp_path / "slim").rglob("model.safetensors")]
    assert sum(sizes) < 0.1 * (PICTURES / "model.safetensors").stat().st_size
    with whole_encoder(tmp_path / "slim") as whole:
        kept = RivalEncoder.from_pretrained(whole)
    theirs, ours = kept.state_dict(), made.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(v, ours[k].half().float()) for k, v in theirs.items() if v.is_floating_point())


def test_over_a_base_distilled_from_its_own(parts: Path, tmp_path: Path) -> None:
    """With the adapter in the other UNet, at the other base's dials."""
    vae, unet, scheduler = base_parts(parts / "base")
    made = RivalEncoder(WordTowers.from_base(parts / "base"), FaceBackbone(FaceViT(FACE).eval()))
    made.adapter = {k: v + 0.1 for k, v in new_adapter(unet, "identity", FACE.output).items()}
    adapter = dict(made.adapter)
    pipe: Any = IPAdapterPipeline(vae, unet, scheduler, made, default_steps=2, default_pag=0.7, world="sitters")
    student = save_base("mini", tmp_path / "student")
    few = base_parts(student)[1]
    with torch.no_grad():
        few.conv_out.weight.add_(1e-2)
    few.save_pretrained(student / "unet")
    theirs: Any = assemble(student, encoder("mini"), default_steps=1)
    theirs.scheduler = make_scheduler("lcm", theirs.scheduler)
    theirs.save_pretrained(tmp_path / "dream")
    moved: Any = onto(pipe, tmp_path / "dream")
    assert (moved.config.default_steps, moved.config.default_pag, moved.config.world) == (1, 0.0, "sitters")
    assert scheduler_name(moved.scheduler) == "lcm"
    assert torch.equal(moved.unet.conv_out.weight, few.conv_out.weight)
    kept = read_adapter(moved.unet)
    assert all(torch.equal(kept[k], v) for k, v in adapter.items())
    write_slim(moved, tmp_path / "slim", str(tmp_path / "dream"))
    loaded = load_model(str(tmp_path / "slim"), device="cpu").pipe
    moved.set_progress_bar_config(disable=True)
    assert np.abs(paint(loaded) - paint(moved)).max() < 5e-2  # half precision
    moved.unet.register_to_config(cross_attention_dim=7)
    with pytest.raises(WeightsMismatch, match="7 are said"):
        onto(moved, tmp_path / "dream")


def test_dreamidentity_without_its_base(parts: Path, tmp_path: Path) -> None:
    pipe: Any = assemble(parts / "base", encoder("mini"), default_steps=2, default_pag=0.7, world="sitters")
    lora = copy.deepcopy(pipe.unet)
    add_lora(lora, 2)
    pipe.register_modules(detailer=FaceDetailer.of(lora, 2.2, 0.6))
    pipe.save_pretrained(tmp_path / "whole")
    pipe.set_progress_bar_config(disable=True)
    slim = tmp_path / "slim"
    write_slim(pipe, slim, str(tmp_path / "whole"))
    sizes = {f.relative_to(slim): f.stat().st_size for f in slim.rglob("*.safetensors")}
    assert sum(sizes.values()) < 0.1 * sum(f.stat().st_size for f in (tmp_path / "whole" / "encoder").rglob("*.saf*"))
    loaded = load_model(str(slim), device="cpu")
    assert (loaded.pipe.config.default_pag, loaded.world) == (0.7, "sitters")
    assert (loaded.pipe.detailer.config.zoom, loaded.pipe.default_face_detail) == (2.2, 0.6), "the base's"
    pictures = [
        made("S* as a wizard", identity=made.enroll(noise_face(0)), output_type="np", pag_scale=0.0,
             face_detail=0.0, generator=torch.Generator().manual_seed(0)).images
        for made in (loaded.pipe, pipe)
    ]  # fmt: skip
    assert np.abs(pictures[0] - pictures[1]).max() < 5e-2  # half precision
    tuned = over_base("textual-inversion", slim)
    assert torch.equal(tuned.unet.conv_in.weight, pipe.unet.conv_in.weight)
    assert (tuned.config.default_pag, tuned.config.world) == (0.7, "sitters")
    said, wanted = (
        base_towers(folder)(tuned.encoder.towers.lay_out(["a wizard"], {}), {}).tokens
        for folder in (slim, parts / "base")
    )
    assert torch.allclose(said, wanted, atol=1e-2)  # half precision


def test_a_rival_with_a_unet_of_its_own(parts: Path, tmp_path: Path) -> None:
    vae, unet, scheduler = base_parts(parts / "base")
    widen(unet)
    pipe = InstructPix2PixPipeline(vae, unet, scheduler, RivalEncoder(WordTowers.from_base(parts / "base")))
    with pytest.raises(ConfigError, match="has a UNet of its own"):
        write_slim(pipe, tmp_path / "slim", "dreamidentity-mini")

"""Every task learns: a few steps on one small batch bring its loss down, and what it exports can be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_tasks import FACE, FUSER, TEXT, UNET, Make, assert_learns, metrics_of

from limner.errors import ConfigError, WeightsMismatch
from limner.training.dice import Dice
from limner.training.tasks import recogniser
from limner.training.tasks.recogniser import _Pairs
from limner.training.towers import load_image_tower


def test_autoencoder(make: Make, vae: Path) -> None:
    from limner.encoders.autoencoder import PatchAutoencoder

    task = make("autoencoder", widths=[8, 8], decoder_layers=1, noise=0.0, edge_weight=0.0, validation=8)
    before = metrics_of(task)["psnr"]
    assert_learns(task, steps=30, rate=1e-3)
    assert metrics_of(task)["psnr"] > before
    with torch.no_grad():
        assert task.sheet().size == (8 * 66 - 2, 2 * 66 - 2)
    model = PatchAutoencoder.from_pretrained(vae)
    images = torch.from_numpy(task.table["image"][:]).permute(0, 3, 1, 2) / 127.5 - 1
    latents = model.encode(images).latent_dist.mode().detach()
    assert latents.mean((0, 2, 3)).abs().max() < 0.01
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.01


def test_recogniser(make: Make, face: Path) -> None:
    from limner.encoders.parts import load_face

    task = make("recogniser", face=FACE, margin_warmup=0)
    assert_learns(task)
    metrics = metrics_of(task)
    assert metrics["same_pairs"] == 6 * 6
    assert metrics["different_pairs"] == 24 * 23 / 2 - 36
    assert 0.4 < metrics["accuracy"] <= 1
    assert load_face(face).config.output == 8


def test_a_face_encoder_is_also_taken_from_a_faceclip_encoder() -> None:
    import limner
    from limner.encoders.faceclip import FaceCLIPEncoder
    from limner.encoders.parts import load_face

    folder = Path(limner.__file__).parent / "weights" / "faceclip-mini" / "encoder"
    theirs, ours = FaceCLIPEncoder.from_pretrained(folder).faces[0].state_dict(), load_face(folder).state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[k], ours[k]) for k in ours)


def test_recogniser_starts_from_a_clip(make: Make, tmp_path: Path) -> None:
    image = {"patch_size": 8, "width": FACE["width"], "depth": FACE["depth"], "heads": FACE["heads"]}
    make("clip", text=TEXT, image=image).export(tmp_path)
    size = {**FACE, "image_size": 28, "patch_size": 7}  # 4 patches a side, as the CLIP has on 32 pixels
    task = make("recogniser", face=size, init=str(tmp_path))
    grey = torch.full((1, 3, 28, 28), 0.5)
    tower = load_image_tower(tmp_path).vision_model
    theirs = tower.embeddings.patch_embedding(torch.zeros(1, 3, 32, 32)).flatten(2).mT
    assert torch.allclose(task.face.patch_embed(grey), theirs, atol=1e-5), "the same grey gives the same patches"
    assert torch.equal(task.face.blocks[0].norm2.weight, tower.encoder.layers[0].layer_norm2.weight)
    with pytest.raises(ConfigError, match="must agree"):
        make("recogniser", face={**size, "patch_size": 14}, init=str(tmp_path))


def test_recogniser_on_references_alone(make: Make) -> None:
    task = make("recogniser", face=FACE)
    rows = task.source().batch(np.arange(8), 0)
    assert rows["image"].shape == (8, 2, 32, 32, 3)
    assert not torch.equal(rows["image"][:, 0], rows["image"][:, 1])
    known = task.table["identity"]
    pairs = _Pairs(task.table, np.array([0, 1, 6, 7]))
    assert len(pairs) == 4
    batch = pairs.batch(np.arange(4), 3)
    assert batch["identity"].tolist() == known[[0, 1, 6, 7]].tolist()
    pixels = torch.from_numpy(task.table["image"][:])
    assert torch.equal(batch["image"][:, 1], pixels[[1, 0, 7, 6]]), "the partner is the other eligible picture"


def test_recogniser_needs_held_out_pairs(make: Make, data: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    rows = (pictures / "metadata.jsonl").read_text().splitlines()[::4]  # one picture of each person
    for row in rows:
        name = json.loads(row)["file_name"]
        (tmp_path / name).write_bytes((pictures / name).read_bytes())
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.raises(ConfigError, match="one of them in two pictures"):
        make("recogniser", face=FACE, held_out={**data, "path": str(tmp_path)})


def test_a_validation_compares_so_many_pictures_at_most(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recogniser, "MOST_HELD_OUT", 10)
    found = metrics_of(make("recogniser", face=FACE))
    assert found["same_pairs"] + found["different_pairs"] == 10 * 9 / 2


class AsTheyAre(torch.nn.Module):
    """A face encoder for faces that are features already."""

    config = SimpleNamespace(output=8)

    def forward(self, faces: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(class_token=faces)


def test_the_margin_is_not_rounded() -> None:
    """Autocast would leave cosines three digits."""
    head = recogniser.ArcFace(AsTheyAre(), 9, 32.0)  # type: ignore[arg-type]
    faces, persons = torch.nn.functional.normalize(torch.randn(6, 8), dim=1), torch.arange(6)
    expected = head(faces, persons, 0.4, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(faces, persons, 0.4, 0)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["autoencoder", "detector"])
def test_a_loss_is_the_mean_over_its_rows(make: Make, vae: Path, name: str) -> None:
    """So that neither accumulation nor processes change a training."""
    settings: dict[str, Any] = {"init": str(vae), "decoder_only": True, "noise": 1.0, "balance": 0.2}
    if name == "detector":
        settings = {"detector": {"widths": [8, 8, 8, 8, 8]}, "view": 64, "smallest": 12, "largest": 40, "outside": 0.5}
    task = make(name, **settings)
    task.model.eval()
    batch = task.source().batch(np.arange(8), 0)
    with torch.no_grad():
        whole = task.loss(task.model, batch, Dice(0, 0, range(8))).total
        parts = [
            task.loss(task.model, {k: v[a : a + 2] for k, v in batch.items()}, Dice(0, 0, range(a, a + 2))).total
            for a in range(0, 8, 2)
        ]
    assert float(whole) == pytest.approx(float(torch.stack(parts).mean()), rel=1e-4)


def test_detector(make: Make, tmp_path: Path) -> None:
    from limner.faces.mini import MiniDetector

    task = make("detector", detector={"widths": [8, 8, 8, 8, 8]}, view=64, smallest=12, largest=40, validation=24)
    before = metrics_of(task)
    assert_learns(task, steps=40, rate=3e-3)
    after = metrics_of(task)
    assert after["n"] == 24
    assert after["found"] >= before["found"]
    with torch.no_grad():
        assert task.sheet().size[0] > 8 * 64
    task.export(tmp_path)
    seen = MiniDetector.load(tmp_path).scan(np.zeros((40, 50, 3), np.uint8))  # sides that are no multiples of 32
    assert all(0 <= face.score <= 1 for face in seen)


@pytest.mark.parametrize("objective", ["sigmoid", "softmax"])
def test_clip(make: Make, objective: str) -> None:
    image = {"patch_size": 8, "width": 16, "depth": 1, "heads": 2}
    task = make("clip", text=TEXT, image=image, objective=objective, prefix=0.5)
    assert_learns(task, rate=1e-3)
    assert metrics_of(task)["n"] == 24


def test_clip_learns_people_beside_a_frozen_text_tower(
    make: Make, face: Path, clips: list[str], tmp_path: Path
) -> None:
    image = {"patch_size": 8, "width": 16, "depth": 1, "heads": 2}
    start = {"init": clips[0], "frozen_text": True, "text": TEXT, "image": image, "objective": "softmax"}
    task = make("clip", **start, people_weight=1.0, recogniser=str(face))
    assert_learns(task, rate=1e-3)
    metrics = metrics_of(task)
    assert {"image_to_face_recall@1", "text_to_image_recall@1"} <= metrics.keys()
    task.export(tmp_path)
    text = "text.safetensors"
    assert load_file(tmp_path / text).keys() == load_file(Path(clips[0]) / text).keys()
    assert all(torch.equal(v, load_file(Path(clips[0]) / text)[k]) for k, v in load_file(tmp_path / text).items())
    with pytest.raises(ConfigError, match="people_weight"):
        make("clip", **start, people_weight=1.0)
    with pytest.raises(WeightsMismatch):
        make("clip", **{**start, "image": {**image, "width": 32}})


def test_alignment(make: Make, face: Path, clips: list[str]) -> None:
    task = make("alignment", face=str(face), clips=clips, fuser=FUSER)
    frozen = {n: p.clone() for n, p in task.model.named_parameters() if not p.requires_grad}
    assert_learns(task)
    assert any("face_encoder" in n for n in frozen)
    assert all(torch.equal(p, frozen[n]) for n, p in task.model.named_parameters() if n in frozen)
    metrics = metrics_of(task)
    assert metrics["n"] == 6
    assert {"joint_to_image_recall@1", "text_to_image_recall@5", "joint_to_face_recall@1"} <= metrics.keys()


def test_alignment_leaves_a_loss_out(make: Make, face: Path, clips: list[str]) -> None:
    task = make("alignment", face=str(face), clips=clips, fuser=FUSER, image_weight=0.0, text_weight=0.0)
    batch = task.source().batch(np.arange(8), 0)
    losses = task.loss(task.model, batch, Dice(0, 0, range(8)))
    assert torch.isclose(losses.total, losses.parts["face"])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_diffusion_on_text(make: Make, vae: Path, clips: list[str], prediction: str, tmp_path: Path) -> None:
    schedule = {"prediction": prediction, "zero_snr": prediction == "v_prediction"}
    min_snr = 5.0 if prediction == "epsilon" else None
    task = make("diffusion", autoencoder=str(vae), clips=clips, unet=UNET, schedule=schedule, min_snr=min_snr)
    assert_learns(task)
    assert metrics_of(task)["n"] == 24
    task.export(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"unet", "vae", "scheduler", "text_0", "text_1"}


def test_diffusion_on_faces(make: Make, vae: Path, encoder: Path, tmp_path: Path) -> None:
    from limner.pipelines.loading import load_model

    task = make("diffusion", autoencoder=str(vae), encoder=str(encoder), unet=UNET, faceless=0.3, dropout=0.3)
    assert_learns(task)
    with torch.no_grad():
        sheet = task.sheet()
    assert sheet.size == (8 * 34 - 2, 2 * 34 - 2)
    task.export(tmp_path / "model")
    model = load_model(str(tmp_path / "model"), device="cpu")
    assert model.world == ""
    picture = model.pipe("a person", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (32, 32, 3)


def test_one_denoiser_for_faces_and_for_text(
    make: Make, vae: Path, encoder: Path, clips: list[str], tmp_path: Path
) -> None:
    from limner.pipelines.loading import load_model
    from limner.pipelines.text import open_base

    parts = {"autoencoder": str(vae), "unet": UNET, "dropout": 0.0, "prompts": 0.0, "faceless": 0.0}
    task = make("diffusion", **parts, encoder=str(encoder), clips=clips, alone=0.5)
    assert_learns(task)
    batch = task.source().batch(np.arange(8), 0)
    drawn, _, told = task.conditioner.draw(batch, Dice(0, 0, range(8)), 0.0, 0.0)
    given = {**batch, "with_face": torch.ones(8)}
    faces = task.conditioner.encode(given, torch.zeros(8, dtype=torch.bool))[0]
    ids = {f"{k}_ids": batch[f"{k}_plain"] for k in ("caption", "prompt")}
    text = task.conditioner.text.encode(ids, torch.zeros(8, dtype=torch.bool))[0]
    alone = Dice(0, 0, range(8)).uniform() < 0.5
    assert 0 < alone.sum() < 8
    assert told.equal(~alone)
    assert torch.allclose(drawn, torch.where(alone[:, None, None], text, faces), atol=1e-5)
    with torch.no_grad():
        task.export(tmp_path / "model")
    assert load_model(str(tmp_path / "model"), device="cpu").pipe("a person", num_inference_steps=2).images
    assert open_base(tmp_path / "model")("a person", num_inference_steps=2).images
    with pytest.raises(ConfigError, match="above 0 and below 1 with both"):
        make("diffusion", **parts, encoder=str(encoder), clips=clips)
    with pytest.raises(ConfigError, match="tokens of one size"):
        make("diffusion", **parts, encoder=str(encoder), clips=clips[:1], alone=0.5)


def test_diffusion_with_an_identity_loss(make: Make, vae: Path, encoder: Path) -> None:
    settings = {"autoencoder": str(vae), "encoder": str(encoder), "unet": UNET}
    plain, task = (make("diffusion", **settings, identity_weight=w, identity_share=1.0) for w in (0.0, 0.5))
    batch = task.source().batch(np.arange(8), 0)
    found = task.loss(task.model, batch, Dice(0, 0, range(8)))
    noise, unlike = (float(found.parts[k]) for k in ("noise", "unlike"))
    assert noise == pytest.approx(float(plain.loss(task.model, batch, Dice(0, 0, range(8))).total), rel=1e-6)
    assert 0 < float(found.total) - noise < 0.5 * unlike + 1e-6
    assert metrics_of(task)["loss"] == pytest.approx(metrics_of(plain)["loss"], rel=1e-5)
    assert 0 < metrics_of(task)["unlike"] < 2
    assert "unlike" not in metrics_of(plain)
    assert_learns(task)


def test_a_judge_of_ones_own_looks_at_what_text_alone_paints(
    make: Make, vae: Path, clips: list[str], face: Path
) -> None:
    judged = {"identity_weight": 0.5, "identity_share": 1.0, "judge": str(face)}
    task = make("diffusion", autoencoder=str(vae), clips=clips, unet=UNET, **judged)
    assert 0 < metrics_of(task)["unlike"] < 2
    assert_learns(task)


def test_an_identity_loss_can_be_counted(data: dict[str, Any], vae: Path, encoder: Path, tmp_path: Path) -> None:
    """Although it depends on the data, in how many rows it is computed."""
    from limner.training.plan import plan
    from limner.training.tasks import load_training

    parts = {"autoencoder": str(vae), "encoder": str(encoder), "unet": UNET}
    settings = {"data": data, "held_out": data, **parts, "identity_weight": 0.5}
    values = {"name": "t", "task": "diffusion", "settings": settings, "loop": {"steps": 2, "batch_size": 8}}
    (tmp_path / "t.yaml").write_text(json.dumps(values))
    assert plan(*load_training(tmp_path / "t.yaml"), tmp_path, gpus=1)["trained_parameters"] > 0


def test_towers_in_half_precision_say_nearly_the_same(make: Make, vae: Path, encoder: Path) -> None:
    task = make("diffusion", autoencoder=str(vae), encoder=str(encoder), unet=UNET, towers_dtype="bfloat16")
    batch = task.source().batch(np.arange(8), step=0)
    batch = {k: torch.as_tensor(v) for k, v in batch.items()}
    said = {
        dtype: task.conditioner.draw(batch, Dice(0, 0, range(8)), 0.5, 0.3, dtype)[0]
        for dtype in (torch.bfloat16, torch.float32)
    }
    half, full = said.values()
    assert half.dtype == full.dtype == torch.float32
    assert 0 < (half - full).norm() < 0.03 * full.norm()
    assert_learns(task)


def test_sampling_in_training_is_what_the_pipeline_paints(make: Make, vae: Path, encoder: Path) -> None:
    """The sheet's sampler and the shipped pipeline agree on schedule, guidance, size conditioning and latents."""
    from limner.pipelines.faceclip import FaceCLIPPipeline

    task = make("diffusion", autoencoder=str(vae), encoder=str(encoder), unet=UNET)
    said = task.conditioner.encoder.encode(None, ["a person"])
    time = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
    ours = task.sample(said.tokens, said.pooled, torch.Size((4, 4)), time)
    scheduler = task.settings.schedule.scheduler()
    pipe = FaceCLIPPipeline(task.autoencoder, task.model, scheduler, task.conditioner.encoder)
    pipe.set_progress_bar_config(disable=True)
    noise = Dice(0, 0, range(1)).normal(16, 4, 4)
    theirs = pipe("a person", latents=noise, num_inference_steps=30, guidance_scale=3.0, output_type="pt").images
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_buckets_keep_sizes_apart(make: Make, vae: Path, encoder: Path, tmp_path: Path) -> None:
    from PIL import Image

    for i in range(6):
        tall = i % 2
        Image.new("RGB", (32, 48) if tall else (48, 32), (40 * i, 90, 120)).save(tmp_path / f"{i}.png")
    rows = [
        f'{{"file_name": "{i}.png", "text": "a person", "identity": {i // 2}, '
        '"landmarks": [[11,13],[21,13],[16,18],[12,22],[20,22]]}'
        for i in range(6)
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    folder = {"kind": "folder", "path": str(tmp_path), "size": 32, "workers": 1}
    sizes = [[32, 32], [48, 32], [32, 48]]
    task = make("diffusion", autoencoder=str(vae), encoder=str(encoder), unet=UNET, sizes=sizes, data=folder)
    source = task.source()
    assert np.bincount(source.groups).tolist() == [3, 3]
    shapes = [source.batch(np.flatnonzero(source.groups == g), 0)["latents"].shape[2:] for g in (0, 1)]
    assert shapes == [(6, 4), (4, 6)]
    batch = source.batch(np.flatnonzero(source.groups == 1), 0)
    assert torch.isfinite(task.loss(task.model, batch, Dice(0, 0, range(3))).total)

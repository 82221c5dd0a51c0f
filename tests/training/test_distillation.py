"""A UNet distilled against a critic: who learns from what, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_tasks import UNET, Make, assert_learns, metrics_of

from limner.diffusion.lora import FaceDetailer
from limner.errors import ConfigError
from limner.pipelines.loading import load_model
from limner.training.dice import Dice
from limner.training.loop import Trainer
from limner.training.tasks import load_training


@pytest.fixture(scope="module")
def teacher(make: Make, vae: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a distillation whose teacher has not learnt anything yet."""
    task = make("diffusion", autoencoder=str(vae), encoder=str(encoder), unet=UNET)
    folder = tmp_path_factory.mktemp("teacher")
    task.export(folder)
    parts = {"autoencoder": str(vae), "encoder": str(encoder), "init": str(folder / "unet")}
    return {**parts, "schedule": {"prediction": "epsilon"}, "guidance": 1.0, "sampler": "lcm", "steps": 4}


def test_distillation(make: Make, teacher: dict[str, Any], tmp_path: Path) -> None:
    task = make("distillation", **teacher, identity_weight=0.1, identity_share=1.0)
    before = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    assert_learns(task)
    assert all(torch.equal(v, before[k]) for k, v in task.teacher.state_dict().items())
    assert not all(torch.equal(v, before[k]) for k, v in task.unet.state_dict().items())
    assert set(metrics_of(task)) == {"loss", "loss_ci95", "unlike", "n"}
    said = task.conditioner.encoder.encode(None, ["a person"])
    ours = task.sample(said.tokens, said.pooled, torch.Size((4, 4)), torch.tensor([[32.0, 32, 0, 0, 32, 32]]))
    task.export(tmp_path / "model")
    pipe = load_model(str(tmp_path / "model"), device="cpu").pipe
    noise = Dice(0, 0, range(1)).normal(16, 4, 4)
    theirs = pipe("a person", latents=noise, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert torch.allclose(ours, theirs, atol=1e-4), "the recommended dials are not those that the sheets show"


def test_a_student_that_follows_its_teacher_is_at_no_distance(make: Make, teacher: dict[str, Any]) -> None:
    """Before training, at the guidance that changes nothing, wherever the picture is not the target."""
    task = make("distillation", **teacher, teacher_guidance=1.0, doubt=1e-6)
    batch = task.source().batch(np.arange(8), 0)
    assert float(task._each(task.model, batch, Dice(0, 0, range(8))).noise.detach().max()) < 1e-8
    task = make("distillation", **teacher, teacher_guidance=1.0, doubt=1e6, on_policy=0.0)
    attempt = task._attempt(task.model, batch, Dice(0, 0, range(8)))
    far = task._rows(attempt, batch, Dice(0, 1, range(8))).noise
    assert (far > 1e-3).equal(attempt.doubt < 1e6)


def test_critic_and_student_learn_from_their_own_losses_alone(make: Make, teacher: dict[str, Any]) -> None:
    task = make("distillation", **teacher)
    batch, dice = task.source().batch(np.arange(8), 0), Dice(0, 0, range(8))
    unconvinced, caught, doubted = task._contest(task._attempt(task.model, batch, dice), batch, dice)
    ours, theirs = list(task.unet.parameters()), list(task.critic.parameters())
    assert all(g is None for g in torch.autograd.grad(unconvinced, theirs, retain_graph=True, allow_unused=True))
    assert any(g.abs().sum() > 0 for g in torch.autograd.grad(unconvinced, ours))
    for judged in (caught, doubted):
        assert all(g.abs().sum() > 0 for g in torch.autograd.grad(judged, theirs, retain_graph=True))
        assert all(g is None for g in torch.autograd.grad(judged, ours, retain_graph=True, allow_unused=True))


def test_a_critic_learns_to_tell_features_that_are_all_a_bit_higher(make: Make, teacher: dict[str, Any]) -> None:
    """As those of pictures that are too dark are; standardised picture by picture they would be the same."""
    task = make("distillation", **teacher)
    batch = task.source().batch(np.arange(8), 0)
    words, _ = task._words(batch, Dice(0, 0, range(8)))
    with torch.no_grad():
        real = task._seen(batch["latents"].float(), torch.full((8,), 20), words, Dice(0, 1, range(8)))
    seen = real, [f + f.std() for f in real]
    optimizer = torch.optim.AdamW(task.critic.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        right, wrong = (torch.cat([v.flatten() for v in task.critic(s, words[1])]) for s in seen)
        losses.append((1 - right).relu().mean() + (1 + wrong).relu().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert float(losses[-1].detach()) < 0.3 * float(losses[0].detach())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"init": ""}, "init"), ({"min_snr": 5.0}, "min_snr"), ({"critic_noise": 0.0}, "critic_noise")],
)
def test_distillation_says_what_it_needs(
    make: Make, teacher: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make("distillation", **{**teacher, **change})


def test_distillation_resumes_with_the_same_bits(data: dict[str, Any], teacher: dict[str, Any], tmp_path: Path) -> None:
    settings = {"data": data, "held_out": data, **teacher, "validation": 4}
    loop = {"steps": 3, "batch_size": 8, "warmup": 1, "ema": 0.5, "final_lr": 1.0}
    values = {"name": "t", "task": "distillation", "settings": settings, "loop": loop, "run": {"sheet_every": 0}}
    (tmp_path / "t.yaml").write_text(json.dumps(values))
    once, twice = (Trainer(*load_training(tmp_path / "t.yaml"), tmp_path / name) for name in ("once", "twice"))
    assert once.run().finished
    rates = [group["lr"] for group in once.optimizer.param_groups]
    assert rates[-1] == pytest.approx(20 * rates[0]), "the critic learns faster"
    assert not twice.run(minutes=0).finished
    assert Trainer(*load_training(tmp_path / "t.yaml"), tmp_path / "twice").run().finished
    for file in ("model", "optimizer", "ema"):
        ours, theirs = (
            load_file(tmp_path / n / f"checkpoints/step-00000003/{file}.safetensors") for n in ("once", "twice")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_lora_that_goes_on_with_pictures_under_noise(make: Make, teacher: dict[str, Any], tmp_path: Path) -> None:
    task = make("distillation", **teacher, rank=2, zoom=2.2, reach=0.6, doubt=float("inf"))
    before = {k: v.clone() for k, v in task.unet.state_dict().items() if "lora" not in k}
    batch = task.source().batch(np.arange(8), 0)
    attempt = task._attempt(task.model, batch, Dice(0, 0, range(8)))
    assert attempt.t.max() < 600
    assert_learns(task)
    assert all(torch.equal(v, before[k]) for k, v in task.unet.state_dict().items() if "lora" not in k)
    assert np.asarray(task.sheet()).std() > 0
    task.export(tmp_path / "lora")
    told = task.conditioner.encoder.encode(None, ["a person"])
    given = (torch.randn(1, 16, 4, 4), torch.tensor([100]), told.tokens)
    added = {"added_cond_kwargs": {"text_embeds": told.pooled, "time_ids": torch.zeros(1, 6)}}
    with torch.no_grad():
        ours, plain = task.unet(*given, **added).sample, task.teacher(*given, **added).sample
        detailer = FaceDetailer.from_pretrained(tmp_path / "lora")
        assert (detailer.config.zoom, detailer.config.strength) == (2.2, 0.6)
        with detailer.merged(task.teacher):
            theirs = task.teacher(*given, **added).sample
        assert torch.equal(task.teacher(*given, **added).sample, plain)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-5)

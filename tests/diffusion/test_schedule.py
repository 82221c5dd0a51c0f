"""The noise schedule says the same thing to training and to sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limner.diffusion.loss import denoising_loss, drop_conditioning
from limner.diffusion.schedule import NoiseSchedule
from limner.errors import ConfigError

EPSILON = NoiseSchedule()
VELOCITY = NoiseSchedule(prediction="v_prediction", zero_snr=True)
SAMPLERS = ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler")


def test_betas_are_stable_diffusions() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert np.allclose(EPSILON.signal.numpy(), np.cumprod(1 - betas), atol=1e-6)


def test_zero_snr_ends_in_pure_noise() -> None:
    x, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    assert torch.allclose(VELOCITY.add_noise(x, noise, torch.tensor([999, 999])), noise, atol=1e-6)
    assert VELOCITY.snr(torch.tensor([0]))[0] > 1000


@pytest.mark.parametrize("schedule", [EPSILON, VELOCITY], ids=["epsilon", "v"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_schedulers_agree_and_do_not_clip(schedule: NoiseSchedule, name: str) -> None:
    if schedule.zero_snr and name == "PNDMScheduler":
        with pytest.raises(ConfigError, match="cannot sample with zero_snr"):
            schedule.scheduler(name)
        return
    scheduler = schedule.scheduler(name)
    assert scheduler.config.get("clip_sample", False) is False
    assert scheduler.config.prediction_type == schedule.prediction
    x, noise, t = 3 * torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([10, 600])
    if name in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler"):
        assert torch.allclose(scheduler.add_noise(x, noise, t), schedule.add_noise(x, noise, t), atol=1e-5)


@pytest.mark.parametrize("schedule", [EPSILON, VELOCITY], ids=["epsilon", "v"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_perfect_model_samples_its_only_picture(schedule: NoiseSchedule, name: str) -> None:
    """Sampling inverts training: with the true target for one picture, far beyond ±1, every sampler ends there."""
    clean = 4 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler = schedule.scheduler(name)
    scheduler.set_timesteps(25)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        step = t.long().view(1)
        a = schedule.signal[step].float().view(1, 1, 1, 1)
        noise = (given - a.sqrt() * clean) / (1 - a).sqrt()
        x = scheduler.step(schedule.target(clean, noise, step), t, x).prev_sample
    assert (x - clean).abs().max() < 0.15


@pytest.mark.parametrize("schedule", [EPSILON, VELOCITY], ids=["epsilon", "v"])
def test_clean_inverts_target(schedule: NoiseSchedule) -> None:
    x, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 400, 900])
    noisy = schedule.add_noise(x, noise, t)
    assert torch.allclose(schedule.clean(noisy, schedule.target(x, noise, t), t), x, atol=1e-3)


def test_shift_draws_little_noise_more_often() -> None:
    u = (torch.arange(10_000) + 0.5) / 10_000
    plain = NoiseSchedule().timesteps(u)
    assert (plain.bincount(minlength=1000) - 10).abs().max() <= 1
    shifted = NoiseSchedule(shift=4).timesteps(u)
    assert (shifted.min(), shifted.max()) == (0, 999)
    assert abs(shifted.median() - 200) <= 1  # u = 1/2: 1 / (1 + 4)
    assert NoiseSchedule(shift=4).scheduler_config() == NoiseSchedule().scheduler_config()


def test_places_weigh_errors_within_a_sample() -> None:
    x, noise, t = torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 2), torch.tensor([10, 600])
    prediction, places = torch.zeros(2, 4, 2, 2), torch.ones(2, 1, 2, 2)
    prediction[:, :, 0, 0], places[1, :, 0, 0] = 1, 5
    losses = denoising_loss(EPSILON, prediction, x, noise, t, None, places)
    assert torch.allclose(losses, torch.tensor([1 / 4, 5 / 8]))
    assert torch.allclose(denoising_loss(EPSILON, prediction, x, noise, t, None, 3 * places), losses)


def test_min_snr_weights() -> None:
    t = torch.tensor([0, 500, 999])
    snr = EPSILON.snr(t)
    assert torch.equal(EPSILON.weights(t, None), torch.ones(3))
    assert torch.allclose(EPSILON.weights(t, 5.0), torch.minimum(snr, torch.tensor(5.0)) / snr)
    velocity = NoiseSchedule(prediction="v_prediction")
    assert torch.allclose(velocity.weights(t, 5.0), torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))


def test_min_snr_weighs_the_error_in_the_picture_alike_for_both_predictions() -> None:
    """The point of the division by SNR and SNR + 1: both are then min(SNR, gamma) on the error in x_0."""
    x, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([50, 400, 800])
    off = 0.1 * torch.randn(3, 4, 8, 8)
    losses = []
    for schedule in (EPSILON, NoiseSchedule(prediction="v_prediction")):
        noisy = schedule.add_noise(x, noise, t)
        a = schedule.signal[t].float().view(3, 1, 1, 1)
        implied = (noisy - a.sqrt() * (x + off)) / (1 - a).sqrt()
        guess = schedule.target(x + off, implied, t)
        losses.append(denoising_loss(schedule, guess, x, noise, t, 5.0))
    expected = EPSILON.snr(t).clamp(max=5.0) * off.square().flatten(1).mean(1)
    assert torch.allclose(losses[0], expected, rtol=1e-3)
    assert torch.allclose(losses[1], expected, rtol=1e-3)


def test_dropped_rows_get_the_null_conditioning() -> None:
    embeds, pooled = torch.ones(4, 3, 5), torch.ones(4, 2)
    null, null_pooled = torch.zeros(1, 3, 5), torch.zeros(1, 2)
    chance = torch.tensor([0.05, 0.5, 0.09, 0.1])
    a, b = drop_conditioning(embeds, pooled, null, null_pooled, chance, 0.1)
    assert a.flatten(1).mean(1).tolist() == [0, 1, 0, 1]
    assert b.mean(1).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 1}, "steps is 1"),
        ({"prediction": "sample"}, "epsilon, v_prediction"),
        ({"beta_end": 0.0001}, "beta_end"),
        ({"zero_snr": True}, "zero_snr is True"),
    ],
)
def test_impossible_schedules_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NoiseSchedule(**fields)


def test_unknown_scheduler() -> None:
    with pytest.raises(ConfigError, match="no scheduler 'UNet2DModel'"):
        EPSILON.scheduler("UNet2DModel")

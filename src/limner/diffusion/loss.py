"""The denoising loss, and the conditioning dropout that classifier-free guidance needs."""

from __future__ import annotations

import torch

from limner.diffusion.schedule import NoiseSchedule


def denoising_loss(
    schedule: NoiseSchedule,
    prediction: torch.Tensor,
    x0: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    min_snr_gamma: float | None = None,
    places: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted mean squared error of each sample (DDPM, Equation 14; weights: `NoiseSchedule.weights`).

    Args:
        prediction: the denoiser's output (B,C,H,W).
        x0, noise: clean latents and the noise that was added, same shape.
        t: timesteps (B,).
        places: weights of the places (B,1,H,W), of which only the ratios within a sample matter; None weighs all alike.

    Returns:
        (B,) float32; computed in float32 whatever the dtype of the prediction.
    """
    error = (prediction.float() - schedule.target(x0, noise, t).float()).square()
    if places is not None:
        error = error * (places / places.mean((2, 3), keepdim=True))
    error = error.flatten(1).mean(1)
    return error * schedule.weights(t, min_snr_gamma)


def drop_conditioning(
    embeds: torch.Tensor,
    pooled: torch.Tensor,
    null_embeds: torch.Tensor,
    null_pooled: torch.Tensor,
    uniform: torch.Tensor,
    probability: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces a sample's whole conditioning by the null one where `uniform` (B,) in [0, 1) is below `probability`.

    Classifier-free guidance (Ho and Salimans, arXiv 2207.12598, Algorithm 1). `null_embeds` (1,T,C) and
    `null_pooled` (1,P) are what sampling uses for the unconditional branch.
    """
    drop = uniform < probability
    embeds = torch.where(drop[:, None, None], null_embeds.to(embeds), embeds)
    return embeds, torch.where(drop[:, None], null_pooled.to(pooled), pooled)

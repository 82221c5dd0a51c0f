"""The noise schedule: the one class that training and sampling share.

Notation of DDPM (Ho et al., arXiv 2006.11239): x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, where a_t (the paper's alpha
bar) is the product of 1 - beta_s over s ≤ t, and e is Gaussian noise.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from limner.config import Config
from limner.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

PREDICTIONS = ("epsilon", "v_prediction")
BETAS = ("scaled_linear", "linear")


@dataclass(frozen=True)
class NoiseSchedule(Config):
    """How noise is added, and what the denoiser predicts. Defaults are those of Stable Diffusion and SDXL.

    Attributes:
        steps: number of timesteps T.
        beta_start, beta_end, beta_schedule: the betas, as diffusers names them.
        prediction: `epsilon` (the noise) or `v_prediction` (Salimans and Ho, arXiv 2202.00512, Appendix D).
        zero_snr: rescales the betas so that x_T holds nothing of x_0 (Lin et al., arXiv 2305.08891, Algorithm 1);
            needs v_prediction, since there the noise alone says nothing. Not every sampler can do it.
        shift: which timesteps training draws: 1 draws all alike; more draws those with little noise more often, by
            t = u / (u + shift (1 - u)) of uniform u (the map of arXiv 2403.03206, Section 5.3.2, turned towards the
            picture). Sampling does not depend on it.
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction: str = "epsilon"
    zero_snr: bool = False
    shift: float = 1.0

    def validate(self) -> None:
        self.check(2 <= self.steps <= 10_000, "steps", "2 to 10000")
        self.check(0 < self.beta_start < 1, "beta_start", "between 0 and 1")
        self.check(self.beta_start <= self.beta_end < 1, "beta_end", "from beta_start to below 1")
        self.check(self.beta_schedule in BETAS, "beta_schedule", ", ".join(BETAS))
        self.check(self.prediction in PREDICTIONS, "prediction", ", ".join(PREDICTIONS))
        self.check(not self.zero_snr or self.prediction == "v_prediction", "zero_snr", "false unless v_prediction")
        self.check(0.01 <= self.shift <= 100, "shift", "0.01 to 100")

    @classmethod
    def of(cls, config: Any) -> NoiseSchedule:
        """The schedule that a diffusers scheduler was configured with."""
        return cls(
            steps=config["num_train_timesteps"],
            beta_start=config["beta_start"],
            beta_end=config["beta_end"],
            beta_schedule=config["beta_schedule"],
            prediction=config.get("prediction_type", "epsilon"),
            zero_snr=bool(config.get("rescale_betas_zero_snr", False)),
        )

    @cached_property
    def signal(self) -> torch.Tensor:
        """a_t for every t: (T,) float64 in [0, 1], falling."""
        from diffusers import DDPMScheduler

        return DDPMScheduler.from_config(self.scheduler_config()).alphas_cumprod.double()

    def timesteps(self, u: torch.Tensor) -> torch.Tensor:
        """Timesteps to train at, from numbers uniform in [0, 1): integers of the same shape, 0 to T - 1."""
        return (u / (u + self.shift * (1 - u)) * self.steps).long().clamp(max=self.steps - 1)

    def snr(self, t: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio a_t / (1 - a_t) of integer timesteps (B,): (B,) float32."""
        a = self.signal[t.cpu()]
        return (a / (1 - a)).float().to(t.device)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t of clean latents (B,C,H,W), noise of the same shape and timesteps (B,) (DDPM, Equation 4)."""
        a, s = self._factors(t, x0)
        return a * x0 + s * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the denoiser is to predict: the noise, or v = sqrt(a) e - sqrt(1 - a) x_0."""
        if self.prediction == "epsilon":
            return noise
        a, s = self._factors(t, x0)
        return a * noise - s * x0

    def clean(self, x_t: torch.Tensor, prediction: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_0 as the prediction implies it; the inverse of `add_noise` and `target`."""
        a, s = self._factors(t, x_t)
        if self.prediction == "epsilon":
            return (x_t - s * prediction) / a
        return a * x_t - s * prediction

    def weights(self, t: torch.Tensor, min_snr_gamma: float | None) -> torch.Tensor:
        """Weight of each sample's squared error: (B,).

        min-SNR-gamma (Hang et al., arXiv 2303.09556, Section 3.4): min(SNR, gamma) on the error in x_0, which is
        divided by SNR for noise prediction and by SNR + 1 for v prediction. None weighs all alike.
        """
        if min_snr_gamma is None:
            return torch.ones(t.shape, device=t.device)
        snr = self.snr(t)
        return snr.clamp(max=min_snr_gamma) / (snr if self.prediction == "epsilon" else snr + 1)

    def scheduler_config(self) -> dict[str, Any]:
        """What any diffusers scheduler needs in order to sample what was trained here.

        `clip_sample` is off: diffusers' default clips latents to ±1, which washes every picture out. With zero_snr
        the spacing must be trailing, or sampling never starts from pure noise (arXiv 2305.08891, Section 3.3).
        """
        return {
            "num_train_timesteps": self.steps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "prediction_type": self.prediction,
            "rescale_betas_zero_snr": self.zero_snr,
            "timestep_spacing": "trailing" if self.zero_snr else "leading",
            "steps_offset": 0 if self.zero_snr else 1,
            "clip_sample": False,
            "set_alpha_to_one": False,
        }

    def scheduler(self, name: str = "DDIMScheduler") -> SchedulerMixin:
        """A diffusers scheduler by class name, built with this schedule.

        Raises:
            ConfigError: diffusers has no such scheduler, or it cannot sample with zero_snr.
        """
        import diffusers

        kind = getattr(diffusers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
            raise ConfigError(f"diffusers has no scheduler {name!r}.", "Try DDIMScheduler or EulerDiscreteScheduler.")
        if self.zero_snr and "rescale_betas_zero_snr" not in inspect.signature(kind.__init__).parameters:
            raise ConfigError(f"{name} cannot sample with zero_snr.", "Take DDIMScheduler or EulerDiscreteScheduler.")
        return kind.from_config(self.scheduler_config())

    def _factors(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t), shaped (B,1,…) to multiply `like`."""
        a = self.signal[t.cpu()].view(-1, *[1] * (like.ndim - 1))
        return a.sqrt().to(like.device, like.dtype), (1 - a).sqrt().to(like.device, like.dtype)

"""Samplers by short name: which diffusers scheduler each stands for, made from the one a model came with."""

from __future__ import annotations

import inspect
from typing import Any

from limner.errors import ConfigError

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "euler-trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Short name → (diffusers class, settings that differ from the model's own)."""


def make_scheduler(name: str, like: Any) -> Any:
    """A diffusers scheduler that samples the noise schedule of `like` (its betas, prediction type and spacing).

    Latents are never clipped unless the model says so: diffusers' default for DDIM and DDPM clips them to ±1, which is
    meant for pixels and washes latent pictures out; models whose own scheduler knows no clipping would fall into it.

    Args:
        name: a key of `SCHEDULERS`, or the name of any scheduler class of diffusers.
        like: the scheduler the model came with.

    Raises:
        ConfigError: no such scheduler, or one of another kind: flow matching and noise schedules have nothing in
            common.
    """
    import diffusers
    import torch
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    kind_name, changes = SCHEDULERS.get(name, (name, {}))
    kind: Any = getattr(diffusers, kind_name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ConfigError(f"Unknown scheduler {name!r}; known: {', '.join(SCHEDULERS)}, or a class of diffusers.")
    if is_flow(kind) != is_flow(type(like)):
        what = "flow matching" if is_flow(type(like)) else "a noise schedule"
        raise ConfigError(
            f"{name} is no scheduler for this model, which samples {what} ({type(like).__name__}).",
            "Leave the scheduler out, or name one of that kind.",
        )
    accepted = inspect.signature(kind.__init__).parameters
    if "clip_sample" in accepted and "clip_sample" not in like.config:
        changes = {**changes, "clip_sample": False}
    with torch.device("cpu"):  # some compute with numpy on the way, which the meta device does not allow
        return kind.from_config(like.config, **changes)  # type: ignore[attr-defined]


def schedulers_for(own: Any) -> list[str]:
    """Short names that `make_scheduler` makes for a model whose own scheduler this is, that one's among them."""
    name = scheduler_name(own)
    return [name] if is_flow(type(own)) else sorted({*SCHEDULERS, name})


def is_flow(kind: type) -> bool:
    """Whether schedulers of this class sample flow matching (FLUX), not a noise schedule of betas."""
    return kind.__name__.startswith("FlowMatch")


def demand_flow(scheduler: Any) -> None:
    """Raises ConfigError for a scheduler that FLUX cannot be sampled with: it must take FLUX's own noise levels, and
    how far the size of the picture shifts them."""
    takes = inspect.signature(scheduler.set_timesteps).parameters
    if not (is_flow(type(scheduler)) and {"sigmas", "mu"} <= set(takes)):
        raise ConfigError(
            f"{type(scheduler).__name__} cannot sample FLUX.", "Take FlowMatchEulerDiscreteScheduler, as published."
        )


def scheduler_name(scheduler: Any) -> str:
    """The most specific short name that makes this scheduler from its own settings, or else its class name."""
    kind = type(scheduler).__name__
    fitting = [
        name
        for name, (kind_name, changes) in SCHEDULERS.items()
        if kind_name == kind and all(scheduler.config.get(k) == v for k, v in changes.items())
    ]
    return max(fitting, key=lambda name: len(SCHEDULERS[name][1]), default=kind)

"""Painting: a loaded model, an identity, prompts and seeds in; portraits, one after another, out.

The command line, the service and the metrics all consume `paint`; nothing else runs a pipeline.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from limner.config import Config
from limner.faces import FaceFinder
from limner.methods.base import demand_guidance
from limner.pipelines.gaze import gaze_image, parse_gaze
from limner.pipelines.regions import group_facts
from limner.pipelines.rescue import MODES as RESCUES
from limner.pipelines.rescue import Plan, rescue
from limner.types import Conditioning, Identity, Portrait

if TYPE_CHECKING:
    from limner.pipelines.loading import Model
    from limner.pipelines.portrait import PortraitPipeline

OnStep = Callable[[int, int], None]
"""Called after every denoising step with (steps done, steps in all) of the present batch."""
OnLatents = Callable[[Any], None]
"""Called after every denoising step with the latents (pictures, C, H/8, W/8) of the present batch."""


@dataclass(frozen=True)
class Dials(Config):
    """How pictures are painted.

    Attributes:
        steps: denoising steps.
        guidance_scale: weight of classifier-free guidance; 1 is none (and twice as fast).
        guidance_rescale: 0 to 1, tames overexposure at high guidance (arXiv 2305.08891, Section 3.4).
        strength: how much of the person goes in, 0 to 1.
        width, height: in pixels.
        scheduler: a name of `limner.pipelines.schedulers`.
        batch: pictures painted at once. More is faster until memory ends. Not quite neutral: the same seed painted in
            another batch may differ in the last bit of some pixels.
        watermark: whether pictures carry the invisible mark of `limner.watermark`.
        rescue: whether small faces are painted again, larger: a mode of `limner.pipelines.rescue`.
        rescue_strength: how much of such a face is painted anew, over 0 to 1.
        gaze: where the eyes go, as `limner.pipelines.gaze.parse_gaze` reads it; empty leaves it to the model.
        pag_scale: weight of perturbed-attention guidance (`limner.pipelines.perturbed`); 0 is none. Faces that are
            painted again are painted without.
        face_guidance: how far the face is pulled towards the person (`limner.pipelines.face_guidance`); 0 is not at
            all.
        face_detail: how much of every face is painted anew, larger, when the picture is done
            (`limner.pipelines.face_detail`), up to 1; 0 is nothing.
    """

    steps: int
    guidance_scale: float
    strength: float
    width: int
    height: int
    scheduler: str
    guidance_rescale: float = 0.0
    batch: int = 4
    watermark: bool = False
    rescue: str = "never"
    rescue_strength: float = 0.5
    gaze: str = ""
    pag_scale: float = 0.0
    face_guidance: float = 0.0
    face_detail: float = 0.0

    def validate(self) -> None:
        self.check(1 <= self.steps <= 1000, "steps", "1 to 1000")
        self.check(0 <= self.guidance_scale <= 100, "guidance_scale", "0 to 100")
        self.check(0 <= self.guidance_rescale <= 1, "guidance_rescale", "0 to 1")
        self.check(0 <= self.pag_scale <= 10, "pag_scale", "0 (none) to 10")
        self.check(0 <= self.face_guidance <= 10, "face_guidance", "0 (none) to 10")
        self.check(0 <= self.face_detail <= 1, "face_detail", "0 (nothing) to 1 (all of a face anew)")
        self.check(0 <= self.strength <= 1, "strength", "0 (nobody in particular) to 1 (as trained)")
        for name in ("width", "height"):
            self.check(getattr(self, name) > 0 and getattr(self, name) % 8 == 0, name, "positive multiples of 8")
        self.check(1 <= self.batch <= 64, "batch", "1 to 64")
        self.check(self.rescue in RESCUES, "rescue", ", ".join(RESCUES))
        self.check(0 < self.rescue_strength <= 1, "rescue_strength", "over 0 (hardly changed) to 1 (anew)")
        if self.gaze:
            parse_gaze(self.gaze)
        if self.watermark:
            self.check(min(self.width, self.height) >= 64, "watermark", "for pictures of 64 pixels or more a side")

    def demand_heard(self, negative_prompt: str) -> None:
        """Raises ConfigError where a negative prompt would change nothing, for want of guidance."""
        demand_guidance(negative_prompt, self.guidance_scale)


def default_dials(model: Model, **changes: Any) -> Dials:
    """What the model recommends, or the few-step LoRA in it, with every change that is not None; no face guidance and
    no face detail where the model's memory mode sends parts away or rounds weights, and no face detail where the eyes
    have a place.

    Raises:
        ConfigError: a dial out of range, or one that the model's kind of denoiser cannot follow.
    """
    from limner.pipelines.memory import memory_mode
    from limner.pipelines.schedulers import scheduler_name

    pipe, mode = model.pipe, memory_mode(model.memory)
    together = not mode.free_encoders and mode.offload == "none"
    values = {
        "steps": pipe.config.default_steps,
        "guidance_scale": float(pipe.config.default_guidance),
        "pag_scale": pipe.default_pag,
        "face_guidance": pipe.default_face_guidance if together else 0.0,
        "face_detail": pipe.default_face_detail if together and not changes.get("gaze") else 0.0,
        "strength": 1.0,
        "width": pipe.default_size[1],
        "height": pipe.default_size[0],
        "scheduler": scheduler_name(pipe.scheduler),
    }
    if model.fast:
        values |= {
            "steps": model.fast.steps,
            "guidance_scale": model.fast.guidance_scale,
            "pag_scale": 0.0,
            "scheduler": model.fast.scheduler,
        }
    dials = Dials.from_dict(values | {k: v for k, v in changes.items() if v is not None})
    pipe.arguments(dials)
    return dials


def paint(
    model: Model,
    identity: Identity | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    dials: Dials,
    *,
    negative_prompt: str = "",
    on_step: OnStep | None = None,
    ready: Mapping[str, Conditioning] | None = None,
    finder: FaceFinder | None = None,
    plans: Mapping[int, Plan] | None = None,
) -> Iterator[Portrait]:
    """Paints every prompt with every seed, prompt by prompt.

    Each picture has its own generator on the CPU, so that its starting noise depends on its seed alone, whatever the
    device, the batch and the other pictures.

    Args:
        identity: the person, or a group of people (`regions.group`), or None for nobody in particular. Give
            `provenance.compact(identity)` where the pictures must be reproducible from their files.
        seeds: one picture each; 0 to 2^63 - 1.
        ready: conditioning of every prompt, made beforehand (`memory.encode_then_free`); None makes it when it is due.
        finder: finds small faces, if `dials.rescue` asks for it; None makes one with default settings.
        plans: which small faces to paint again, by seed, known before; None looks for them.

    Raises:
        PromptError, WeightsMismatch, ConfigError: as `PortraitPipeline.__call__`; ConfigError also for a method whose
            faces cannot be rescued, if that is asked for.
    """
    from limner.pipelines.face_detail import demand_plain

    dials.demand_heard(negative_prompt)
    model.pipe.arguments(dials)  # raises what this model cannot follow before anything is encoded
    model.set_scheduler(dials.scheduler)
    digest = identity.digest() if identity is not None else ""
    people = group_facts(identity)
    finder = finder or FaceFinder()
    for prompt in prompts:
        start = time.perf_counter()
        made = ready and ready[prompt]
        conditioning = made or model.pipe.condition(prompt, identity, negative_prompt, dials.strength)
        if dials.rescue != "never":
            demand_plain(_with_unet(model), conditioning)
        placed = conditioning
        if dials.gaze:
            place = gaze_image(parse_gaze(dials.gaze), dials.height, dials.width)
            placed = dataclasses.replace(conditioning, control_image=place)
        condition_time = time.perf_counter() - start
        for at in range(0, len(seeds), dials.batch):
            batch = list(seeds[at : at + dials.batch])
            start = time.perf_counter()
            images = paint_batch(model, placed, batch, dataclasses.replace(dials, watermark=False), on_step)
            seconds = (time.perf_counter() - start) / len(batch)
            timings = {"condition": round(condition_time, 4), "paint": round(seconds, 4)}
            for seed, image in zip(batch, images, strict=True):
                facts = dict(people)
                if dials.rescue != "never":
                    start = time.perf_counter()
                    plan = None if plans is None else plans.get(seed, Plan())
                    image, plan = _rescued(model, image, conditioning, seed, dials, finder, plan)
                    facts["rescued"] = plan.facts()
                    timings = {**timings, "rescue": round(time.perf_counter() - start, 4)}
                if dials.watermark:
                    image = _marked(image)
                portrait = as_portrait(model, image, seed, prompt, negative_prompt, digest, dials, batch, timings)
                yield dataclasses.replace(portrait, settings={**portrait.settings, **facts})


def as_portrait(
    model: Model,
    image: Any,
    seed: int,
    prompt: str,
    negative_prompt: str,
    identity: str,
    dials: Dials,
    batch: Sequence[int],
    timings: dict[str, float],
) -> Portrait:
    """A painted picture (PIL) with everything that is recorded about it; `batch` are the seeds painted with it, and
    `identity` is the digest of the person."""
    return Portrait(
        image=image,
        seed=seed,
        prompt=prompt,
        negative_prompt=negative_prompt,
        model=model.name,
        weights=model.weights,
        identity=identity,
        settings={**dials.to_dict(), **model.circumstances(), "batch_seeds": list(batch)},
        timings=timings,
    )


def paint_batch(
    model: Model,
    conditioning: Conditioning,
    seeds: Sequence[int],
    dials: Dials,
    on_step: OnStep | None = None,
    on_latents: OnLatents | None = None,
) -> list[Any]:
    """One picture (PIL) per seed, all of the one prompt that `conditioning` holds, or each of its own row of it."""
    import torch

    def after_step(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(step + 1, model.pipe.num_timesteps)
        if on_latents is not None:
            on_latents(model.pipe.as_map(tensors["latents"], dials.height, dials.width))
        return tensors

    output: Any = model.pipe(
        conditioning=conditioning,
        num_images_per_prompt=len(seeds) // conditioning.prompt_embeds.shape[0],
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        num_inference_steps=dials.steps,
        height=dials.height,
        width=dials.width,
        callback_on_step_end=after_step,
        **model.pipe.arguments(dials),
    )
    return [_marked(image) for image in output.images] if dials.watermark else output.images


def _rescued(
    model: Model,
    image: Any,
    conditioning: Conditioning,
    seed: int,
    dials: Dials,
    finder: FaceFinder,
    plan: Plan | None,
) -> tuple[Any, Plan]:
    """The picture with its small faces painted again, and what was done."""
    done = rescue(
        _with_unet(model),
        image,
        conditioning,
        mode=dials.rescue,
        strength=dials.rescue_strength,
        steps=dials.steps,
        guidance_scale=dials.guidance_scale,
        guidance_rescale=dials.guidance_rescale,
        seed=seed,
        finder=finder,
        plan=plan,
    )
    return done.image, done.plan


def _with_unet(model: Model) -> PortraitPipeline:
    """The pipeline of a model that was asked for what only a UNet can do; `arguments` has refused others."""
    pipe: Any = model.pipe
    return pipe


def _marked(image: Any) -> Any:
    """The PIL picture with the invisible mark in it."""
    from PIL import Image

    from limner.watermark import embed

    return Image.fromarray(embed(np.asarray(image.convert("RGB"))))

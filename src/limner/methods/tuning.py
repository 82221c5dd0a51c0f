"""Tuning on a few pictures of one person: pictures made of aligned faces, and a short training that can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limner.config import Config
from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.checkpoint import write_safetensors
from limner.encoders.pseudo_words import PLACEHOLDER
from limner.encoders.word_towers import Said, WordTowers
from limner.errors import ConfigError, CorruptData, TrainingDiverged
from limner.precision import affordable

Report = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress bar (description, total) and yields the function that advances it."""


@contextmanager
def silent(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A `Report` that shows nothing."""
    yield lambda _: None


PRECISIONS = ("no", "bf16")
CHUNK = 8
"""Pictures that are encoded at once."""


@dataclass(frozen=True)
class TuningSettings(Config):
    """How one person is learnt. Which fields count depends on the method.

    Attributes:
        steps, batch_size, lr, weight_decay: of AdamW; the rate is constant.
        words: k, the words that stand for the person (Textual Inversion).
        rank: of the LoRA's matrices.
        prior_weight: lambda of prior preservation (DreamBooth, Equation 2); 0 leaves it out.
        class_pictures, class_prompt: how many pictures of nobody in particular are painted for it, of what.
        regularisation: of the words' distance from where they started (E4T).
        templates: sentences about the person.
        framing: least and largest share of the picture's side that the aligned face takes.
        placements: pictures made of the faces, each face at another place and size.
        checkpoint_every: steps between two checkpoints; 0 writes none.
        precision: no (float32), or bf16 (mixed; what is learnt stays float32), faster where the machine can do it.
            A base in half precision is always tuned in mixed precision.
        seed: of everything random.
    """

    steps: int = 400
    batch_size: int = 4
    lr: float = 5e-3
    weight_decay: float = 0.01
    words: int = 1
    rank: int = 4
    prior_weight: float = 1.0
    class_pictures: int = 64
    class_prompt: str = "a photo of a person"
    regularisation: float = 0.0
    templates: tuple[str, ...] = ("a photo of S*", "a portrait of S*", "S*")
    framing: tuple[float, float] = (0.5, 0.75)
    placements: int = 32
    checkpoint_every: int = 50
    precision: str = "no"
    seed: int = 0

    def validate(self) -> None:
        for name in ("steps", "batch_size", "words", "rank", "placements"):
            self.check(getattr(self, name) >= 1, name, "1 or more")
        for name in ("weight_decay", "prior_weight", "class_pictures", "regularisation", "checkpoint_every", "seed"):
            self.check(getattr(self, name) >= 0, name, "0 or more")
        self.check(self.lr > 0, "lr", "more than 0")
        self.check(self.precision in PRECISIONS, "precision", ", ".join(PRECISIONS))
        self.check(bool(self.templates), "templates", "at least one sentence")
        self.check(all(PLACEHOLDER in t for t in self.templates), "templates", f"sentences with {PLACEHOLDER}")
        self.check(0.1 <= self.framing[0] <= self.framing[1] <= 1, "framing", "two rising shares from 0.1 to 1")
        self.check(self.prior_weight == 0 or self.class_pictures > 0, "class_pictures", "1 or more with prior_weight")


@dataclass(frozen=True)
class Studio:
    """What tuning needs besides text towers.

    Attributes:
        unet, vae: of the base that learns; left as they were.
        schedule: of the noise.
        size: side of the square pictures in pixels.
        painter: (sentence, seeds) → latents (N, C, h, w) of pictures of it, by the base alone.
        report: shows progress.
        cache: folder for checkpoints and class pictures; None keeps neither.
    """

    unet: Any
    vae: Any
    schedule: NoiseSchedule
    size: int
    painter: Callable[[str, Sequence[int]], Tensor]
    report: Report
    cache: Path | None = None


@dataclass(frozen=True)
class Shots:
    """Pictures of the person as the denoiser sees them.

    Attributes:
        latents: (M, C, h, w).
        masks: (M, 1, h, w), 1 where the face is and 0 where nothing is known.
    """

    latents: Tensor
    masks: Tensor


def place_faces(faces: Tensor, size: int, settings: TuningSettings) -> tuple[Tensor, Tensor]:
    """Aligned faces put onto grey pictures, each at a random place and scale: an aligned face fills its frame, which no
    portrait does, and a method that tunes would learn that frame.

    Args:
        faces: (R, 3, H, H) in [0, 1].

    Returns:
        pictures (M, 3, size, size) in [0, 1] and masks (M, 1, size, size), 1 where the face is.
    """
    dice = torch.Generator().manual_seed(settings.seed)
    low, high = settings.framing
    pictures = torch.full((settings.placements, 3, size, size), 0.5)
    masks = torch.zeros(settings.placements, 1, size, size)
    for i in range(settings.placements):
        scale, x, y = torch.rand(3, generator=dice).tolist()
        side = min(size, max(1, round(size * (low + (high - low) * scale))))
        left, top = round((size - side) * x), round((size - side) * y)
        face = F.interpolate(faces[i % len(faces)][None].float(), (side, side), mode="bilinear", antialias=True)
        pictures[i, :, top : top + side, left : left + side] = face[0].clamp(0, 1)
        masks[i, :, top : top + side, left : left + side] = 1
    return pictures, masks


@torch.no_grad()
def shoot(studio: Studio, faces: Tensor, settings: TuningSettings) -> Shots:
    """`place_faces` through the autoencoder."""
    pictures, masks = place_faces(faces, studio.size, settings)
    vae, like, made = studio.vae, next(studio.vae.parameters()), []
    for some in pictures.split(CHUNK):
        latents = vae.encode(some.to(like) * 2 - 1).latent_dist.mode()
        made.append((latents.float() - (getattr(vae.config, "shift_factor", None) or 0)) * vae.config.scaling_factor)
    latents = torch.cat(made)
    inside = (F.adaptive_avg_pool2d(masks, (latents.shape[-2], latents.shape[-1])) > 0.99).float()
    return Shots(latents, inside.to(latents.device))


class Lesson:
    """The diffusion loss on pictures of one person.

    Args:
        studio: see there.
        towers: of the base.
        shots: of the person.
        settings: see there.
    """

    def __init__(self, studio: Studio, towers: WordTowers, shots: Shots, settings: TuningSettings) -> None:
        self.studio, self.towers, self.shots, self.settings = studio, towers, shots, settings

    def loss(
        self,
        step: int,
        words: Sequence[Tensor],
        denoise: Callable[..., Any],
        class_latents: Tensor | None = None,
        class_said: Said | None = None,
    ) -> Tensor:
        """The mean loss of a step, a pure function of its number; with class pictures plus lambda times theirs
        (DreamBooth, arXiv 2208.12242, Equation 2).

        Args:
            words: that stand for the person, (k, width) for each tower.
            denoise: called as diffusers' UNet2DConditionModel.
            class_latents, class_said: pictures of nobody in particular (M, C, h, w), and their sentence, one row.
        """
        settings, shots = self.settings, self.shots
        dice = torch.Generator().manual_seed(_seed(settings.seed, step))
        rows = torch.randint(len(shots.latents), (settings.batch_size,), generator=dice)
        which = torch.randint(len(settings.templates), (settings.batch_size,), generator=dice)
        sentences = [settings.templates[i] for i in which]
        said = self.towers(self.towers.lay_out(sentences, {PLACEHOLDER: len(words[0])}), {PLACEHOLDER: words})
        latents, masks = shots.latents[rows], shots.masks[rows]
        if class_latents is not None and class_said is not None:
            more = torch.randint(len(class_latents), (settings.batch_size,), generator=dice)
            others = class_latents[more].to(latents)
            latents, masks = torch.cat([latents, others]), torch.cat([masks, torch.ones_like(masks)])
            said = _joined(said, class_said, settings.batch_size)
        noise = torch.randn(latents.shape, generator=dice).to(latents.device)
        t = torch.randint(self.studio.schedule.steps, (len(latents),), generator=dice).to(latents.device)
        error = self._error(denoise, latents, noise, t, said)
        each = (error * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) * error.shape[1]).clamp(min=1)
        own, prior = each[: settings.batch_size], each[settings.batch_size :]
        return own.mean() + (settings.prior_weight * prior.mean() if len(prior) else 0)

    def _error(self, denoise: Callable[..., Any], latents: Tensor, noise: Tensor, t: Tensor, said: Said) -> Tensor:
        unet, schedule, size = self.studio.unet, self.studio.schedule, self.studio.size
        added = None
        if said.pooled is not None and unet.config.addition_embed_type == "text_time":
            ids = torch.tensor([[size, size, 0, 0, size, size]] * len(latents), device=latents.device)
            added = {"text_embeds": said.pooled.to(unet.dtype), "time_ids": ids.to(unet.dtype)}
        noisy = schedule.add_noise(latents, noise, t).to(unet.dtype)
        with autocast(unet, self.settings.precision):
            prediction = denoise(noisy, t, said.tokens.to(unet.dtype), added_cond_kwargs=added).sample
        return (prediction.float() - schedule.target(latents, noise, t)).square()


def autocast(unet: Any, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision where it is asked for, or where the base is kept in half precision: what is tuned is float32."""
    if unet.dtype != torch.float32:
        return torch.autocast(unet.device.type, dtype=unet.dtype)
    asked = torch.float32 if precision == "no" else affordable(torch.bfloat16, unet.device)
    return nullcontext() if asked == torch.float32 else torch.autocast(unet.device.type, dtype=asked)


def tune(
    parameters: Mapping[str, Tensor],
    loss: Callable[[int], Tensor],
    settings: TuningSettings,
    report: Report,
    checkpoint: Path | None = None,
) -> None:
    """Trains `parameters` in place; killed, the same call goes on from its checkpoint and ends with the same values.

    Args:
        parameters: float32 leaves that require gradients.
        loss: of a step, a function of its number and of the parameters alone.
        checkpoint: file that is written meanwhile and removed at the end.

    Raises:
        TrainingDiverged: the loss is no longer a finite number.
        CorruptData: the checkpoint is damaged.
    """
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=settings.lr, weight_decay=settings.weight_decay)
    start = _resume(parameters, optimizer, checkpoint) if checkpoint is not None and checkpoint.is_file() else 0
    with torch.enable_grad(), report("learning the person", settings.steps) as advance:
        advance(start)
        for step in range(start, settings.steps):
            value = loss(step)
            if not bool(torch.isfinite(value)):
                raise TrainingDiverged(
                    f"Learning the person failed at step {step + 1}: the loss is {float(value.detach())}.", "Lower lr."
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            advance(1)
            due = settings.checkpoint_every and (step + 1) % settings.checkpoint_every == 0
            if checkpoint is not None and due and step + 1 < settings.steps:
                _save(parameters, optimizer, checkpoint, step + 1)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def checkpoint_path(cache: Path | None, *facts: Any) -> Path | None:
    """The checkpoint of a tuning of these facts (texts, numbers, tensors, configs); None without a cache."""
    if cache is None:
        return None
    found = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, Tensor):
            found.update(fact.detach().cpu().float().contiguous().numpy().tobytes())
        else:
            found.update(json.dumps(fact.to_dict() if isinstance(fact, Config) else fact, sort_keys=True).encode())
    return cache / f"{found.hexdigest()[:24]}.safetensors"


def class_latents(studio: Studio, settings: TuningSettings, probe: Tensor) -> Tensor:
    """Latents of pictures of `settings.class_prompt` that the base paints, made once for every base."""
    from safetensors.torch import load_file

    facts = [settings.class_prompt, settings.class_pictures, settings.seed, studio.size]
    path = checkpoint_path(studio.cache and studio.cache / "class-pictures", *facts, probe)
    if path is not None and path.is_file():
        return load_file(path)["latents"]
    made = []
    with studio.report("painting the class", settings.class_pictures) as advance:
        for start in range(0, settings.class_pictures, CHUNK):
            seeds = range(start, min(start + CHUNK, settings.class_pictures))
            made.append(studio.painter(settings.class_prompt, [settings.seed + s for s in seeds]).float().cpu())
            advance(len(seeds))
    latents = torch.cat(made)
    if path is not None:
        write_safetensors(path, {"latents": latents}, {})
    return latents


def _save(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, path: Path, step: int) -> None:
    tensors: dict[str, Tensor] = {}
    for name, value in parameters.items():
        state = optimizer.state[value]
        tensors |= {f"value/{name}": value, f"mean/{name}": state["exp_avg"], f"square/{name}": state["exp_avg_sq"]}
    write_safetensors(path, tensors, {"step": str(step)})


def _resume(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, path: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as f:
            step = int((f.metadata() or {})["step"])
            for name, value in parameters.items():
                value.data.copy_(f.get_tensor(f"value/{name}"))
                optimizer.state[value] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": f.get_tensor(f"mean/{name}").to(value.device),
                    "exp_avg_sq": f.get_tensor(f"square/{name}").to(value.device),
                }
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as e:
        raise CorruptData(f"The checkpoint {path} is damaged ({e}).", "Delete it and start again.") from e
    return step


def _joined(said: Said, other: Said, rows: int) -> Said:
    """Both, `other` (one row) repeated."""
    tokens = torch.cat([said.tokens, other.tokens.to(said.tokens).expand(rows, -1, -1)])
    if said.pooled is None or other.pooled is None:
        return Said(tokens, None)
    return Said(tokens, torch.cat([said.pooled, other.pooled.to(said.pooled).expand(rows, -1)]))


def _seed(*key: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")


def demand_plain(unet: Any) -> None:
    """ConfigError unless the UNet's weights are plain numbers on one device: what is tuned must pass gradients."""
    kinds = {p.device.type for p in unet.parameters()}
    if "meta" in kinds or not all(p.is_floating_point() for p in unet.parameters()):
        raise ConfigError("A person cannot be learnt in this memory mode.", "Load the model with --memory plain.")

"""Painting in a few steps, and firmly: adversarial distillation of a denoiser, with the identity loss."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from limner.data.loader import Batch
from limner.diffusion.lora import FaceDetailer, add_lora
from limner.training.critic import Critic, Features, over_places
from limner.training.denoising import dtype_named
from limner.training.dice import Dice
from limner.training.face_weights import place_weights
from limner.training.identity_loss import RowLosses
from limner.training.task import Losses, Report, channels_last
from limner.training.tasks.diffusion import DiffusionSettings, DiffusionTask

PURE = 0.98
"""From this share of the timesteps on the denoiser is shown noise alone, as at the beginning of sampling."""
FIRST, STANDARD_ROWS = 0.01, 32
"""Share of the timesteps from which on noise is added for the critic; pictures by which it is standardised."""


Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Embeddings (B,T,C), pooled embeddings (B,P) and size numbers (B,6)."""


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(DiffusionSettings):
    """Settings of the task: those of `DiffusionSettings`, where `init` is the teacher and what the student begins as.

    `guidance`, `pag` and `sampler` are what the exported pipeline recommends: 1, 0 and `lcm`, which is how the student
    learns to paint.

    Attributes:
        steps: of sampling, which the exported pipeline recommends.
        teacher_guidance: classifier-free guidance of the teacher, so that the student needs none.
        doubt: ratio of noise to signal from which on the teacher's prediction is the target; below it the picture is.
        on_policy: share of rows that are not pictures under noise but what the student paints from more noise.
        adversarial_weight: of the critic's verdict.
        critic_noise: largest share of the timesteps at which noise is added for the critic; little noise shows details.
        critic_rate: how many times as fast the critic learns.
        reach: share of the timesteps, from the least noise on, that are learnt; below 1 for a student that only ever
            goes on with pictures under noise.
        rank: of a LoRA on every layer, which is all that is trained and exported, as a `FaceDetailer` of strength
            `reach`; 0 trains and exports the whole UNet.
        zoom: of that `FaceDetailer`: how many times larger the faces of the data are than in crops of the head.
    """

    steps: int = 8
    teacher_guidance: float = 2.5
    doubt: float = 0.5
    on_policy: float = 0.5
    adversarial_weight: float = 0.1
    critic_noise: float = 0.45
    critic_rate: float = 20.0
    reach: float = 1.0
    rank: int = 0
    zoom: float = 1.0

    def validate(self) -> None:
        super().validate()
        self.check(bool(self.init), "init", "a folder with the teacher")
        self.check(not self.grow_channels, "grow_channels", "empty: student and teacher are of one size")
        self.check(self.steps >= 1, "steps", "1 or more")
        self.check(0 <= self.on_policy <= 1, "on_policy", "0 to 1")
        self.check(FIRST < self.critic_noise <= 1, "critic_noise", f"above {FIRST:g} to 1")
        for name in ("teacher_guidance", "doubt", "critic_rate"):
            self.check(getattr(self, name) > 0, name, "above 0")
        self.check(self.adversarial_weight >= 0, "adversarial_weight", "0 or more")
        self.check(0 < self.reach <= 1, "reach", "above 0 to 1")
        self.check(self.rank >= 0, "rank", "0 or more")
        self.check(self.zoom > 0, "zoom", "above 0")
        self.check(self.min_snr is None, "min_snr", "null: errors count by 1 + SNR, cut at 60")


class _Players(nn.Module):
    """What is trained: the student, and the critic of its pictures."""

    def __init__(self, student: Any, critic: Critic) -> None:
        super().__init__()
        self.student, self.critic = student, critic

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.student(*given, **named)


class _Attempt(NamedTuple):
    """A denoising of a batch in one step.

    Attributes:
        noisy, t, words, told: what was read, and which rows (B,) were told whom to paint.
        prediction, clean: what was said, and the latents that it means.
        doubt: (B,), the largest ratio of noise to signal between the picture of a row and what was read.
    """

    noisy: torch.Tensor
    t: torch.Tensor
    words: Words
    told: torch.Tensor
    prediction: torch.Tensor
    clean: torch.Tensor
    doubt: torch.Tensor


class DistillationTask(DiffusionTask):
    """See `DistillationSettings`; metrics as of `DiffusionTask`, the loss being the distance to the target.

    The student denoises in one step what a few steps of sampling will show it: pictures under noise, noise alone, and
    its own pictures under noise again (as in arXiv 2405.14867, Section 4.5). It follows the teacher's guided prediction
    where noise hides the picture, and the picture where it does not; a critic over the teacher's features, at all
    places and most at the face, asks that every prediction look real (arXiv 2311.17042, arXiv 2403.12015); and the
    recogniser that conditions, that the person be known (arXiv 2404.16022).
    """

    name = "distillation"
    settings_class: ClassVar = DistillationSettings
    shards: ClassVar[tuple[str, ...]] = ()
    settings: DistillationSettings

    def __init__(self, settings: DistillationSettings) -> None:
        super().__init__(settings)
        self.sampling_steps = settings.steps
        self.teacher: Any = channels_last(copy.deepcopy(self.unet)).requires_grad_(False).eval()
        self.features = Features(self.teacher)
        self.critic = Critic(self.features.channels, self.conditioner.pooled)
        if settings.rank:
            add_lora(self.unet, settings.rank)
        self.model = _Players(self.unet, self.critic)

    def frozen(self) -> list[nn.Module]:
        return [*super().frozen(), self.teacher]

    def prepare(self, report: Report) -> None:
        super().prepare(report)
        for module in (*self.frozen(), self.critic):
            module.to(self.device)
        batch = self.source().batch(self.sources[0].first_group()[:STANDARD_ROWS], 0)
        batch = {k: v.to(self.device) for k, v in batch.items()}
        dice = Dice(0, 0, range(len(batch["latents"])), self.device)
        words, _ = self._words(batch, dice)
        with torch.no_grad():
            self.critic.standardise(self._seen(batch["latents"].float(), self._critic_times(dice), words, dice))

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """The student's groups, and the critic's, which learns faster and without momentum."""
        player = [p for p in self.unet.parameters() if p.requires_grad]
        return [
            {"params": [p for p in player if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in player if p.ndim < 2], "weight_decay": 0.0},
            {
                "params": list(self.critic.parameters()),
                "weight_decay": 0.01,
                "betas": (0.0, 0.99),
                "factor": self.settings.critic_rate,
            },
        ]

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        attempt = self._attempt(model, batch, dice)
        followed = self._rows(attempt, batch, dice).losses(self.settings)
        unconvinced, caught, doubted = self._contest(attempt, batch, dice)
        total = followed.total + self.settings.adversarial_weight * unconvinced + caught + doubted
        parts = {"unconvinced": unconvinced, "caught": caught, "doubted": doubted}
        return Losses(total, {**followed.parts, **{k: v.detach() for k, v in parts.items()}})

    def _each(self, model: nn.Module, batch: Batch, dice: Dice) -> RowLosses:
        return self._rows(self._attempt(model, batch, dice), batch, dice)

    def _attempt(self, model: nn.Module, batch: Batch, dice: Dice) -> _Attempt:
        """Denoises a batch in one step."""
        schedule, settings = self.settings.schedule, self.settings
        words, told = self._words(batch, dice)
        latents, chance = batch["latents"].float(), dice.uniform(3)
        t = (schedule.timesteps(chance[:, 0]) * settings.reach).long()
        latest = int((schedule.steps - 1) * settings.reach)
        earlier = t + (chance[:, 1] * (latest - t)).long()
        with torch.no_grad():
            seen = self._under_noise(latents, earlier, dice)
            own = schedule.clean(seen, self._say(model, seen, earlier, words), earlier)
        mine = chance[:, 2] < settings.on_policy
        noisy = self._under_noise(torch.where(mine[:, None, None, None], own, latents), t, dice)
        prediction = self._say(model, noisy, t, words)
        hidden = torch.where(mine, earlier, t)
        doubt = schedule.snr(hidden).rsqrt().masked_fill(hidden >= PURE * schedule.steps, torch.inf)
        return _Attempt(noisy, t, words, told, prediction, schedule.clean(noisy, prediction, t), doubt)

    def _rows(self, attempt: _Attempt, batch: Batch, dice: Dice) -> RowLosses:
        """How far each row is from its target, and how unlike its person."""
        settings, schedule = self.settings, self.settings.schedule
        clear = (attempt.doubt < settings.doubt)[:, None, None, None]
        target = batch["latents"].float()
        if settings.doubt < math.inf or settings.reach > PURE:  # else no row is in doubt
            target = torch.where(clear, target, self._guided(attempt))
        places = place_weights(batch["landmarks"], target.shape[2:], 8, settings.face_weight, settings.eye_weight)
        error = (attempt.clean - target).square() * places / places.mean((2, 3), keepdim=True)
        loss = error.flatten(1).mean(1) * (1 + schedule.snr(attempt.t)).clamp(max=60)
        if self.judge is None:
            return RowLosses(loss)
        known = batch["recognisable"] & attempt.told & (attempt.doubt < settings.identity_noise)
        judged = {**batch, "recognisable": known}
        return RowLosses(loss, *self.identity(attempt.noisy, attempt.prediction, attempt.t, judged, dice.uniform()))

    @torch.no_grad()
    def _guided(self, attempt: _Attempt) -> torch.Tensor:
        """The clean latents that the teacher predicts, guided."""
        guided, _ = self._features(attempt.noisy, attempt.t, attempt.words)
        if self.settings.teacher_guidance != 1:
            null, null_pooled = (x.expand(len(attempt.noisy), *x.shape[1:]) for x in self.conditioner.null())
            without, _ = self._features(attempt.noisy, attempt.t, (null, null_pooled, attempt.words[2]))
            guided = without + self.settings.teacher_guidance * (guided - without)
        return self.settings.schedule.clean(attempt.noisy, guided, attempt.t)

    def _contest(self, attempt: _Attempt, batch: Batch, dice: Dice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the student pays where the critic is not convinced, and what the critic pays for painted pictures that
        it believes in and real ones that it doubts (hinge losses, arXiv 2403.12015, Equation 3)."""
        settings, pooled = self.settings, attempt.words[1]
        places = place_weights(
            batch["landmarks"], attempt.clean.shape[2:], 8, settings.face_weight, settings.eye_weight
        )
        t = self._critic_times(dice)
        painted = self._seen(attempt.clean, t, attempt.words, dice)
        with torch.no_grad():
            real = self._seen(batch["latents"].float(), t, attempt.words, dice)
        fixed = {k: v.detach() for k, v in self.critic.named_parameters()}
        verdict = functional_call(self.critic, fixed, (painted, pooled))
        caught = self.critic([f.detach() for f in painted], pooled)
        doubted = self.critic(real, pooled)
        sums = ([-v for v in verdict], [F.relu(1 + v) for v in caught], [F.relu(1 - v) for v in doubted])
        unconvinced, believed, refused = (over_places(maps, places).mean() for maps in sums)
        return unconvinced, believed, refused

    @torch.no_grad()
    def _exhibit(self, batch: Batch, embeds: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """As of `DiffusionTask`; a student of less `reach` goes on with the pictures under that much noise."""
        if self.settings.reach == 1:
            return super()._exhibit(batch, embeds, pooled)
        times = self._sampler().timesteps
        first = int((times > self.settings.reach * self.settings.schedule.steps).sum())
        latents = batch["latents"].float()
        noise = Dice(0, 0, range(len(latents)), self.device).normal(*latents.shape[1:])
        x = self.settings.schedule.add_noise(latents, noise, times[first].expand(len(latents)))
        return self._paint(x, first, (embeds, pooled, batch["time"].float()), 0)

    def export(self, folder: Path) -> None:
        """As of `DiffusionTask`; a LoRA alone, if that is what was trained."""
        if self.settings.rank:
            FaceDetailer.of(self.unet, self.settings.zoom, self.settings.reach).save_pretrained(folder)
        else:
            super().export(folder)

    def _sampler(self) -> Any:
        scheduler: Any = self.settings.schedule.scheduler("LCMScheduler")
        scheduler.set_timesteps(self.settings.steps, device=self.device)
        return scheduler

    def _words(self, batch: Batch, dice: Dice) -> tuple[Words, torch.Tensor]:
        """What a batch says, and which rows (B,) are told whom to paint."""
        said = self.conditioner.draw(
            batch, dice, self.settings.prompts, self.settings.dropout, dtype_named(self.settings.towers_dtype)
        )
        return (said.embeds, said.pooled, batch["time"].float()), said.told

    def _say(self, model: Any, noisy: torch.Tensor, t: torch.Tensor, words: Words) -> torch.Tensor:
        embeds, pooled, time_ids = words
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        return model(noisy, t, embeds, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}).sample.float()

    def _under_noise(self, latents: torch.Tensor, t: torch.Tensor, dice: Dice) -> torch.Tensor:
        """Latents under noise, as sampling meets them: at the highest timesteps there is nothing else."""
        noise, schedule = dice.normal(*latents.shape[1:]), self.settings.schedule
        pure = (t >= PURE * schedule.steps)[:, None, None, None]
        return torch.where(pure, noise, schedule.add_noise(latents, noise, t))

    def _critic_times(self, dice: Dice) -> torch.Tensor:
        """Timesteps (B,) of the noise for the critic, little noise more often."""
        share = FIRST + (self.settings.critic_noise - FIRST) * dice.uniform().square()
        return (share * self.settings.schedule.steps).long().clamp(max=self.settings.schedule.steps - 1)

    def _seen(
        self,
        latents: torch.Tensor,
        t: torch.Tensor,
        words: Words,
        dice: Dice,
    ) -> list[torch.Tensor]:
        noise = dice.normal(*latents.shape[1:])
        return self._features(self.settings.schedule.add_noise(latents, noise, t), t, words)[1]

    def _features(self, noisy: torch.Tensor, t: torch.Tensor, words: Words) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What the teacher says and sees, computed in `towers_dtype` as all that is frozen, in float32."""
        dtype = dtype_named(self.settings.towers_dtype)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(noisy.device.type, dtype, enabled=dtype != torch.float32):
            said, seen = self.features(noisy, t, *words)
        return said.float(), [f.float() for f in seen]

    @torch.no_grad()
    def sample(
        self, embeds: torch.Tensor, pooled: torch.Tensor, places: torch.Size, time_ids: torch.Tensor, seed: int = 0
    ) -> torch.Tensor:
        """Paints in a few steps without guidance: (B,3,H,W) in [0, 1]."""
        noise = Dice(seed, 0, range(len(embeds)), self.device).normal(self.unet.config.in_channels, *places)
        return self._paint(noise, 0, (embeds, pooled, time_ids), seed)

    def _paint(self, x: torch.Tensor, first: int, words: Words, seed: int) -> torch.Tensor:
        """Goes on from step `first` with what it is shown then."""
        generator = torch.Generator(self.device).manual_seed(seed)
        scheduler = self._sampler()
        for t in scheduler.timesteps[first:]:
            said = self._say(self.unet, x, t, words)
            x = scheduler.step(said, t, x, generator=generator).prev_sample
        return self._decode(x)

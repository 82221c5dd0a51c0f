"""What trainings beside an untouched base share: their settings, opening the base, validation, sheets, export."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from limner.data.loader import Batch, Source
from limner.data.tables import DataConfig, open_pictures, picture_table
from limner.diffusion.loss import denoising_loss
from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.face_vit import FaceViT
from limner.encoders.word_towers import WordTowers
from limner.pipelines.dreamidentity import zeros_for_empty
from limner.pipelines.schedulers import SCHEDULERS, make_scheduler
from limner.training.compiling import compiled
from limner.training.denoising import DTYPES, Noisy, Targets, decode_latents, dtype_named, latent_table, noisy_latents
from limner.training.dice import Dice
from limner.training.face_weights import place_weights
from limner.training.identity_loss import IdentityLoss, IdentityLossSettings, RowLosses
from limner.training.metrics import mean_interval
from limner.training.parts import base_of, face_of, towers_of
from limner.training.sheets import contact_sheet
from limner.training.task import Losses, Report, Task
from limner.training.towers import face_features
from limner.types import Identity
from limner.world.words import EDIT_PROMPTS

SHEET_FACES = 4
SHEET_PROMPTS = (EDIT_PROMPTS[0], EDIT_PROMPTS[4], EDIT_PROMPTS[8])


@dataclass(frozen=True, kw_only=True)
class FrozenBaseSettings(IdentityLossSettings):
    """Settings that all these trainings have; see also `IdentityLossSettings`.

    Attributes:
        data, held_out: pictures.
        base: folder of SD 2.1-base, SDXL (diffusers' layout), of a base that Limner trained, or of a model over one,
            whose base is as it was.
        base_dtype: in which the frozen base computes. `loop.precision` does not reach it where it stands outside of
            the model that is trained, as in the tasks `dreamidentity` and `gaze`.
        shift: which noise is drawn how often, see `NoiseSchedule`; all else of the schedule is the base's.
        face_weight, eye_weight: how much more an error counts in the face and at the eyes, where landmarks are known.
        checkpointing: trades time for memory.
        validation: held-out pictures whose loss is measured.
        guidance, pag, steps, sampler: of the sample sheets; an exported pipeline recommends them. `pag` weighs
            perturbed-attention guidance; the last is a name of `limner.pipelines.schedulers`.
    """

    data: DataConfig
    held_out: DataConfig
    base: str
    base_dtype: str = "float32"
    shift: float = 1.0
    face_weight: float = 0.0
    eye_weight: float = 0.0
    checkpointing: bool = False
    validation: int = 256
    guidance: float = 3.0
    pag: float = 0.0
    steps: int = 30
    sampler: str = "ddim"

    @property
    def dtype(self) -> torch.dtype:
        """`base_dtype` as PyTorch has it, see `dtype_named`."""
        return dtype_named(self.base_dtype)

    def validate(self) -> None:
        super().validate()
        self.check(not self.identity_weight or bool(self.judge), "judge", "a folder with identity_weight")
        self.check(self.base_dtype in DTYPES, "base_dtype", ", ".join(DTYPES))
        self.check(0.01 <= self.shift <= 100, "shift", "0.01 to 100")
        for name in ("face_weight", "eye_weight"):
            self.check(getattr(self, name) >= 0, name, "0 or more")
        self.check(self.validation >= 1, "validation", "1 or more")
        self.check(self.pag >= 0, "pag", "0 or more")
        self.check(self.steps >= 1, "steps", "1 or more")
        self.check(self.sampler in SCHEDULERS, "sampler", ", ".join(SCHEDULERS))
        self.check(self.data.size == self.held_out.size, "data", "one size for data and held_out")


C = TypeVar("C", bound=FrozenBaseSettings)


class FrozenBaseTask(Task[C]):
    """Metrics are the loss on held-out pictures at fixed noise and times, with what is trained and without; and
    `unlike`, the mean identity loss, if there is one.

    Attributes:
        baseline: name of the second metric.
        vae, unet, scheduler, schedule: of the base, set by `open_base`.
        judge: of the identity loss, or None, set by `open_base`.
        factor: pixels along a side of a latent place.
        encoder, pipeline: set by `assemble`, in tasks that export a whole pipeline.
        sources: rows of training and of held-out pictures, set by `prepare`.
    """

    baseline: ClassVar[str] = "nobody"
    encoder: Any
    pipeline: Any
    sources: list[Any]
    _quick: Any = None

    def open_towers(self) -> WordTowers:
        """The base's text towers, frozen."""
        return towers_of(Path(self.settings.base), self.settings.dtype)

    def open_base(self, dtype: torch.dtype) -> None:
        """Opens the base without its towers, frozen.

        Args:
            dtype: of the UNet. The autoencoder stays in float32 for what `prepare` makes with it.
        """
        self.vae, unet, scheduler = base_of(Path(self.settings.base))
        self.scheduler = make_scheduler(self.settings.sampler, scheduler)
        self.vae.requires_grad_(False)
        self.unet: Any = nn.Module.to(unet, dtype).requires_grad_(False)
        if self.settings.checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.schedule = replace(NoiseSchedule.of(self.scheduler.config), shift=self.settings.shift)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.judge: FaceViT | None = None
        settings = self.settings
        if settings.identity_weight:
            self.judge = face_of(Path(settings.judge)).eval().requires_grad_(False)
            self.identity = IdentityLoss(
                self.schedule,
                partial(decode_latents, self.vae),
                self.judge,
                settings.identity_share,
                settings.identity_noise,
                dtype,
            )

    def assemble(self, kind: Any, encoder: Any) -> None:
        """Makes the pipeline that will be exported.

        Args:
            kind: its class.
            encoder: over the base's towers, which are its `towers`.
        """
        settings = self.settings
        self.encoder = encoder
        self.pipeline = kind(
            self.vae,
            self.unet,
            self.scheduler,
            encoder,
            default_steps=settings.steps,
            default_guidance=settings.guidance,
            default_pag=settings.pag,
            world="sitters" if settings.data.kind == "world" else "",
            force_zeros_for_empty_prompt=zeros_for_empty(Path(settings.base), encoder.towers),
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def targets(self, config: DataConfig, report: Report, pictures: Any = None) -> Targets:
        """The pictures of a data set as targets.

        Args:
            pictures: opened already.
        """
        opened = pictures or open_pictures(config)
        table = picture_table(opened, config.size, config.size, report, config.workers)
        faces = face_features(self.judge, table, self.device, report) if self.judge else None
        return Targets(table, latent_table(self.vae, table, self.device, report), faces)

    def source(self) -> Source:
        return self.sources[0]

    def example(self, rows: int) -> Batch:
        side = self.settings.data.size // self.factor
        return Targets.example(rows, self.vae.config.latent_channels, (side, side), self.factor, self.judge)

    def tokens(self) -> int:
        """Places of the latent picture."""
        return (self.settings.data.size // self.factor) ** 2

    def frozen(self) -> list[nn.Module]:
        return [self.vae, *([self.judge] if self.judge else [])]

    def beside(self) -> list[nn.Module]:
        return [self.unet]

    def compile(self) -> None:
        self._quick = compiled(self.unet)

    @property
    def denoiser(self) -> Any:
        """The UNet, for tasks whose model does not call it itself; compiled while it trains, if that was asked for."""
        return self._quick if self._quick is not None and torch.is_grad_enabled() else self.unet

    @abstractmethod
    def each(self, model: nn.Module, batch: Batch, dice: Dice, baseline: bool = False) -> RowLosses:
        """What every row costs; `baseline` leaves out what is trained and nothing else."""

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        return self.each(model, batch, dice).losses(self.settings)

    def validate(self) -> dict[str, float]:
        source = self.sources[1]
        count = min(self.settings.validation, len(source))
        found: dict[bool, list[RowLosses]] = {False: [], True: []}
        for start in range(0, count, 16):
            rows = np.arange(start, min(start + 16, count))
            batch = {k: v.to(self.device) for k, v in source.batch(rows, step=0).items()}
            for baseline, values in found.items():
                dice = Dice(0, 0, range(start, start + len(rows)), self.device)
                values.append(self.each(self.model, batch, dice, baseline))
        without = torch.cat([b.noise for b in found[True]]).float().cpu().numpy()
        return {**RowLosses.metrics(found[False]), **mean_interval(self.baseline, without), "n": count}

    def export(self, folder: Path) -> None:
        """The whole pipeline, base included."""
        self.pipeline.save_pretrained(folder)

    # --- parts ----------------------------------------------------------------------------------------------------

    def noisy(self, batch: Batch, dice: Dice) -> Noisy:
        """See `noisy_latents`; what is seen has the UNet's type."""
        drawn = noisy_latents(self.schedule, batch, dice)
        return drawn._replace(seen=drawn.seen.to(self.unet.dtype))

    def costs(
        self, batch: Batch, drawn: Noisy, prediction: torch.Tensor, dice: Dice, outside: float = 1.0
    ) -> RowLosses:
        """What every row costs, of which errors count as the settings say in the face and at the eyes.

        Args:
            batch, drawn, prediction: what the UNet read and said.
            outside: see `place_weights`.
        """
        face, eyes = self.settings.face_weight, self.settings.eye_weight
        latents, noise, t, _ = drawn
        places = None
        if face or eyes or outside != 1:
            places = place_weights(batch["landmarks"], latents.shape[2:], self.factor, face, eyes, outside)
        error = denoising_loss(self.schedule, prediction, latents, noise, t, places=places)
        if self.judge is None:
            return RowLosses(error)
        return RowLosses(error, *self.identity(drawn.seen.float(), prediction, t, batch, dice.uniform()))

    def added(self, batch: Batch, pooled: torch.Tensor | None, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """SDXL's conditions besides the tokens, in the UNet's type or in `dtype`; empty for a UNet without them."""
        if pooled is None or self.unet.config.addition_embed_type != "text_time":
            return {}
        dtype = dtype or self.unet.dtype
        return {"text_embeds": pooled.to(dtype), "time_ids": batch["time"].to(dtype)}


def people_sheet(pipeline: Any, faces: Sequence[torch.Tensor], people: Sequence[Identity]) -> Image.Image:
    """Faces (3, H, W) in [0, 1] above what a pipeline paints of these people for three of the edit prompts."""
    shown = list(faces)
    for prompt in SHEET_PROMPTS:
        for person in people:
            noise = torch.Generator().manual_seed(0)
            shown += list(pipeline(prompt, identity=person, generator=noise, output_type="pt").images)
    return contact_sheet(shown, columns=len(faces))

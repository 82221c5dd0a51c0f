"""Training a ControlNet on the gaze location: where the eyes go on the canvas. The base stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import nn

from limner.config import Config
from limner.data.loader import Batch, Source
from limner.data.tables import DataConfig, open_pictures, picture_table
from limner.diffusion.loss import denoising_loss, drop_conditioning
from limner.diffusion.schedule import NoiseSchedule
from limner.pipelines.dreamidentity import base_parts
from limner.pipelines.faceclip import FaceCLIPPipeline
from limner.pipelines.gaze import gaze_images, stages
from limner.pipelines.text import TextPipeline
from limner.training.denoising import Conditioner, FaceCLIPConditioner
from limner.training.dice import Dice
from limner.training.dreamidentity import DTYPES
from limner.training.dreamidentity_data import latent_table
from limner.training.gaze_data import GazeRows, TowersConditioner
from limner.training.metrics import mean_interval
from limner.training.sheets import contact_sheet
from limner.training.task import Losses, Report, Task, channels_last
from limner.types import Conditioning

SHEET_PICTURES = 6


@dataclass(frozen=True)
class GazeSettings(Config):
    """Settings of the task.

    Attributes:
        data, held_out: pictures with captions and landmarks, whose eyes are what is learnt.
        base: folder of SD 2.1-base, SDXL (diffusers' layout), of a base that Limner trained, or of a FaceCLIP pipeline.
        encoder: folder of a FaceCLIP encoder, to condition on faces and text as its pipeline does; empty takes text.
        prompts: share of rows that read the sentence with S* ("person", or FaceCLIP's face) instead of the caption.
        dropout: share of rows without conditioning, so that both branches of guidance know the place.
        faceless: see `FaceCLIPConditioner`.
        base_dtype: in which the frozen base computes.
        checkpointing: trades time for memory.
        validation: held-out pictures whose loss is measured.
        guidance, steps: of the sample sheets.
    """

    data: DataConfig
    held_out: DataConfig
    base: str
    encoder: str = ""
    prompts: float = 0.25
    dropout: float = 0.1
    faceless: float = 0.1
    base_dtype: str = "float32"
    checkpointing: bool = False
    validation: int = 256
    guidance: float = 3.0
    steps: int = 30

    def validate(self) -> None:
        for name in ("prompts", "dropout", "faceless"):
            self.check(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self.check(self.base_dtype in DTYPES, "base_dtype", ", ".join(DTYPES))
        self.check(self.validation >= 1, "validation", "1 or more")
        self.check(self.steps >= 1, "steps", "1 or more")
        self.check(self.data.size == self.held_out.size, "data", "one size for data and held_out")


class GazeTask(Task[GazeSettings]):
    """See `GazeSettings`; metrics are the loss on held-out pictures at fixed noise and times, with the ControlNet and
    without (`base`). It begins as the UNet's own first half, and adds nothing (arXiv 2302.05543, section 3.1)."""

    name = "gaze"
    settings_class: ClassVar = GazeSettings

    def __init__(self, settings: GazeSettings) -> None:
        super().__init__(settings)
        base, dtype = Path(settings.base), DTYPES[settings.base_dtype]
        self.conditioner: Conditioner = (
            FaceCLIPConditioner(Path(settings.encoder), settings.faceless)
            if settings.encoder
            else TowersConditioner(base, dtype)
        )
        self.vae, self.unet, self.scheduler = base_parts(base)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.net: Any = ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=stages(self.factor))
        nn.Module.to(self.unet, dtype).requires_grad_(False)
        self.vae.requires_grad_(False)
        if settings.checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.net.enable_gradient_checkpointing()
        if not torch.accelerator.is_available():  # a CPU trains faster with attention written out
            self.unet.set_attn_processor(AttnProcessor())
            self.net.set_attn_processor(AttnProcessor())
        self.schedule = NoiseSchedule.of(self.scheduler.config)
        self.model = channels_last(self.net)

    def frozen(self) -> list[nn.Module]:
        return [self.vae, self.unet, *self.conditioner.modules]

    def prepare(self, report: Report) -> None:
        self.sources = []
        for config in (self.settings.data, self.settings.held_out):
            pictures = picture_table(open_pictures(config), config.size, config.size, report, config.workers)
            latents = latent_table(self.vae, pictures, self.device, report)
            prepared = self.conditioner.prepare([pictures], self.device, report)[0]
            self.sources.append(GazeRows(pictures, latents, self.conditioner, prepared))

    def source(self) -> Source:
        return self.sources[0]

    def example(self, rows: int) -> Batch:
        size = self.settings.data.size
        places, channels = size // self.factor, self.vae.config.latent_channels
        return {
            "latents": torch.zeros(rows, channels, places, places, dtype=torch.float16),
            "time": torch.tensor([[size, size, 0, 0, size, size]] * rows, dtype=torch.int32),
            "eyes": torch.tensor([[0.4, 0.4], [0.6, 0.4]]).expand(rows, 2, 2),
            **self.conditioner.example(rows),
        }

    def tokens(self) -> int:
        """Places of the latent picture and words of the prompt."""
        return (self.settings.data.size // self.factor) ** 2 + self.conditioner.context

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        return Losses(self._each(model, batch, dice).mean(), {})

    def validate(self) -> dict[str, float]:
        source = self.sources[1]
        count = min(self.settings.validation, len(source))
        found: dict[str, list[torch.Tensor]] = {"loss": [], "base": []}
        for start in range(0, count, 32):
            rows = np.arange(start, min(start + 32, count))
            batch = {k: v.to(self.device) for k, v in source.batch(rows, step=0).items()}
            for name, model in (("loss", self.model), ("base", None)):
                dice = Dice(0, 0, range(start, start + len(rows)), self.device)
                found[name].append(self._each(model, batch, dice))
        values = {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}
        return {**mean_interval("loss", values["loss"]), **mean_interval("base", values["base"]), "n": count}

    def sheet(self) -> Image.Image:
        """Places of the eyes, the held-out pictures that they are from, and what is painted for them."""
        source, size = self.sources[1], self.settings.data.size
        rows = np.linspace(0, len(source) - 1, min(SHEET_PICTURES, len(source))).astype(int)
        batch = {k: v.to(self.device) for k, v in source.batch(rows, step=0).items()}
        everyone = torch.ones(len(rows), device=self.device)
        embeds, pooled = self.conditioner.encode({**batch, "with_face": everyone}, everyone < 0)
        null, null_pooled = (x.expand(len(rows), *x.shape[1:]) for x in self.conditioner.null())
        images = gaze_images(batch["eyes"], size, size)
        told = Conditioning(embeds, pooled, null, null_pooled, control_image=images)
        painted: Any = self._pipeline()(
            conditioning=told,
            generator=torch.Generator().manual_seed(0),
            height=size,
            width=size,
            num_inference_steps=self.settings.steps,
            guidance_scale=self.settings.guidance,
            output_type="pt",
        )
        real = torch.from_numpy(source.pictures["image"][source.rows[rows]]).permute(0, 3, 1, 2) / 255
        return contact_sheet([*images, *real, *painted.images], columns=len(rows))

    def export(self, folder: Path) -> None:
        """The ControlNet in diffusers' form."""
        self.net.save_pretrained(folder)

    # --- parts ----------------------------------------------------------------------------------------------------

    def _pipeline(self) -> Any:
        kind: Any = FaceCLIPPipeline if self.settings.encoder else TextPipeline
        pipe = kind(self.vae, self.unet, self.scheduler, *self.conditioner.modules)
        pipe.set_progress_bar_config(disable=True)
        pipe.controlnet = self.net
        return pipe

    def _each(self, model: nn.Module | None, batch: Batch, dice: Dice) -> torch.Tensor:
        """The loss of every row: (B,); of the base alone without a model."""
        settings, dtype = self.settings, self.unet.dtype
        latents = batch["latents"].float()
        noise = dice.normal(*latents.shape[1:])
        t = dice.integers(self.schedule.steps)
        chance = dice.uniform(3)
        with torch.no_grad():
            given = {**batch, "with_face": chance[:, 0]}
            embeds, pooled = self.conditioner.encode(given, chance[:, 1] < settings.prompts)
            null, null_pooled = self.conditioner.null()
            embeds, pooled = drop_conditioning(embeds, pooled, null, null_pooled, chance[:, 2], settings.dropout)
        added = None
        if self.unet.config.addition_embed_type == "text_time":
            added = {"text_embeds": pooled, "time_ids": batch["time"].float()}
        noisy = self.schedule.add_noise(latents, noise, t)
        steering: dict[str, Any] = {}
        if model is not None:
            place = gaze_images(batch["eyes"], settings.data.size, settings.data.size)
            down, middle = model(
                noisy, t, embeds.float(), controlnet_cond=place, added_cond_kwargs=added, return_dict=False
            )
            steering["down_block_additional_residuals"] = [d.to(dtype) for d in down]
            steering["mid_block_additional_residual"] = middle.to(dtype)
        if added is not None:
            added = {name: value.to(dtype) for name, value in added.items()}
        prediction = self.unet(noisy.to(dtype), t, embeds.to(dtype), added_cond_kwargs=added, **steering).sample
        return denoising_loss(self.schedule, prediction, latents, noise, t)

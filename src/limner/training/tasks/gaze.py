"""Training a ControlNet on the gaze location: where the eyes go on the canvas. The base stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from limner.data.loader import Batch
from limner.pipelines.dreamidentity import zeros_for_empty
from limner.pipelines.faceclip import FaceCLIPPipeline
from limner.pipelines.gaze import gaze_images, stages
from limner.pipelines.gaze_net import GazeNet
from limner.pipelines.text import TextPipeline
from limner.training.denoising import Conditioner, FaceCLIPConditioner, noisy_latents, write_out_attention
from limner.training.dice import Dice
from limner.training.frozen_base import FrozenBaseSettings, FrozenBaseTask
from limner.training.gaze_data import GazeRows, TowersConditioner
from limner.training.identity_loss import RowLosses
from limner.training.sheets import contact_sheet
from limner.training.task import Report, channels_last
from limner.types import Conditioning

SHEET_PICTURES = 6


@dataclass(frozen=True)
class GazeSettings(FrozenBaseSettings):
    """Settings of the task; see also `FrozenBaseSettings`.

    Attributes:
        data, held_out: pictures with captions and landmarks, whose eyes are what is learnt.
        base: also the folder of a FaceCLIP pipeline, with `encoder`.
        encoder: folder of a FaceCLIP encoder, to condition on faces and text as its pipeline does; empty takes text.
        prompts: share of rows that read the sentence with S* ("person", or FaceCLIP's face) instead of the caption.
        dropout: share of rows without conditioning, so that both branches of guidance know the place.
        faceless: see `FaceCLIPConditioner`.
    """

    encoder: str = ""
    prompts: float = 0.25
    dropout: float = 0.1
    faceless: float = 0.1

    def validate(self) -> None:
        super().validate()
        for name in ("prompts", "dropout", "faceless"):
            self.check(0 <= getattr(self, name) <= 1, name, "0 to 1")


class GazeTask(FrozenBaseTask[GazeSettings]):
    """See `GazeSettings` and `FrozenBaseTask`; the second metric, `base`, is without the ControlNet. That begins as the
    UNet's own first half, and adds nothing (arXiv 2302.05543, section 3.1)."""

    name = "gaze"
    baseline = "base"
    settings_class: ClassVar = GazeSettings

    def __init__(self, settings: GazeSettings) -> None:
        super().__init__(settings)
        self.conditioner: Conditioner
        if settings.encoder:
            self.conditioner = FaceCLIPConditioner(Path(settings.encoder), settings.faceless)
        else:
            towers = self.open_towers()
            self.conditioner = TowersConditioner(towers, zeros_for_empty(Path(settings.base), towers))
        self.open_base(torch.float32)
        self.net: Any = GazeNet.from_unet(self.unet, conditioning_embedding_out_channels=stages(self.factor))
        nn.Module.to(self.unet, settings.dtype)  # after the exact copy
        if settings.checkpointing:
            self.net.enable_gradient_checkpointing()
        write_out_attention(self.unet, self.net)
        self.model = channels_last(self.net)

    def frozen(self) -> list[nn.Module]:
        return [*super().frozen(), self.unet, *self.conditioner.modules]

    def prepare(self, report: Report) -> None:
        self.sources = []
        for config in (self.settings.data, self.settings.held_out):
            targets = self.targets(config, report)
            prepared = self.conditioner.prepare([targets.pictures], self.device, report)[0]
            self.sources.append(GazeRows(targets, self.conditioner, prepared))
        nn.Module.to(self.vae, self.settings.dtype)

    def example(self, rows: int) -> Batch:
        eyes = torch.tensor([[0.4, 0.4], [0.6, 0.4]]).expand(rows, 2, 2)
        return {**super().example(rows), "eyes": eyes, **self.conditioner.example(rows)}

    def tokens(self) -> int:
        """Places of the latent picture and words of the prompt."""
        return super().tokens() + self.conditioner.context

    def each(self, model: nn.Module, batch: Batch, dice: Dice, baseline: bool = False) -> RowLosses:
        settings, dtype = self.settings, self.unet.dtype
        drawn = noisy_latents(self.schedule, batch, dice)
        _, _, t, noisy = drawn
        embeds, pooled, _ = self.conditioner.draw(batch, dice, settings.prompts, settings.dropout)
        steering: dict[str, Any] = {}
        if not baseline:
            place = gaze_images(batch["eyes"], settings.data.size, settings.data.size)
            added = self.added(batch, pooled, torch.float32)
            down, middle = model(
                noisy, t, embeds.float(), controlnet_cond=place, added_cond_kwargs=added, return_dict=False
            )
            steering["down_block_additional_residuals"] = [d.to(dtype) for d in down]
            steering["mid_block_additional_residual"] = middle.to(dtype)
        added = self.added(batch, pooled)
        prediction = self.denoiser(noisy.to(dtype), t, embeds.to(dtype), added_cond_kwargs=added, **steering).sample
        return self.costs(batch, drawn, prediction, dice)

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

    def _pipeline(self) -> Any:
        kind: Any = FaceCLIPPipeline if self.settings.encoder else TextPipeline
        pipe = kind(self.vae, self.unet, self.scheduler, *self.conditioner.modules)
        pipe.set_progress_bar_config(disable=True)
        pipe.controlnet = self.net
        return pipe

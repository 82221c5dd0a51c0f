"""Training InstructPix2Pix: the whole UNet of a base, which learns to read a photo beside the noise
(arXiv 2211.09800, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from limner.data.edit_pairs import WorldEdits
from limner.data.loader import Batch, Source
from limner.data.partners import Partners
from limner.data.tables import captions_of, demand
from limner.encoders.rivals import RivalEncoder
from limner.errors import ConfigError
from limner.pipelines.instruct import InstructPix2PixPipeline
from limner.training.denoising import Targets, write_out_attention
from limner.training.dice import Dice
from limner.training.dreamidentity_data import PromptTable
from limner.training.identity_loss import RowLosses
from limner.training.rival_task import RivalSettings, RivalTask
from limner.training.task import Report, channels_last


@dataclass(frozen=True)
class InstructPix2PixSettings(RivalSettings):
    """Settings of the task; see also `RivalSettings`. Data of sitters are rendered in pairs (`WorldEdits`); other
    data are photos (`reference: true`) and edits of them (`reference: false`, with a `prompt`) under one `identity`.
    """

    def validate(self) -> None:
        super().validate()
        self.check(self.base_dtype == "float32", "base_dtype", "float32: all of it is trained; see loop.precision")


class InstructPix2PixTask(RivalTask[InstructPix2PixSettings]):
    """See `InstructPix2PixSettings` and `RivalTask`; `nobody` is the loss without the photo."""

    name = "instruct_pix2pix"
    settings_class: ClassVar = InstructPix2PixSettings
    shards: ClassVar = ("BasicTransformerBlock", "ResnetBlock2D")

    def __init__(self, settings: InstructPix2PixSettings) -> None:
        super().__init__(settings)
        towers = self.open_towers()
        self.open_base(settings.dtype)
        widen(self.unet)
        write_out_attention(self.unet)
        self.model = channels_last(self.unet.requires_grad_(True))
        self.assemble(InstructPix2PixPipeline, RivalEncoder(towers))

    def prepare(self, report: Report) -> None:
        self.sources = []
        for config in (self.settings.data, self.settings.held_out):
            targets = self.targets(config, report, WorldEdits(config.sitters) if config.kind == "world" else None)
            self.sources.append(EditRows(targets, self.lay_out))

    def example(self, rows: int) -> Batch:
        made = super().example(rows)
        return {**made, "photo": made["latents"]}

    def each(self, model: nn.Module, batch: Batch, dice: Dice, baseline: bool = False) -> RowLosses:
        drawn = self.noisy(batch, dice)
        no_text, no_photo = self.dropped(model, dice)
        with torch.no_grad():
            tokens, pooled = self.without_text(no_text, *self.say(batch, None))
        if baseline:
            no_photo = torch.ones_like(no_photo)
        photo = batch["photo"].to(drawn.seen) * ~no_photo[:, None, None, None]
        both = torch.cat([drawn.seen, photo], 1).contiguous(memory_format=torch.channels_last)
        prediction = model(both, drawn.t, tokens, added_cond_kwargs=self.added(batch, pooled)).sample
        return self.costs(batch, drawn, prediction, dice)


class EditRows(Source):
    """Rows (photo, sentence, edited photo).

    Args:
        targets: the photos and their edits.
        lay_out: sentences → `PromptTable`.

    Raises:
        ConfigError: no edits, or one without its photo.
    """

    def __init__(self, targets: Targets, lay_out: Any) -> None:
        self.targets, self.pictures = targets, targets.pictures
        pictures = self.pictures
        demand(pictures, captions=True, landmarks=True)
        reference, identity = pictures["reference"][:], pictures["identity"][:]
        self.rows = np.flatnonzero(~reference)
        lonely = sorted(set(identity[self.rows]) - set(identity[reference]))
        if not len(self.rows) or lonely:
            lacks = f"the edit of identity {lonely[0]} has no photo" if lonely else "there are no edits"
            raise ConfigError(
                f"The pairs cannot be used: {lacks}.",
                "Photos have `reference: true` in metadata.jsonl, their edits `reference: false`.",
            )
        self.partners = Partners(identity, reference)
        said = captions_of(pictures, "prompt")
        distinct = {sentence: i for i, sentence in enumerate(dict.fromkeys(said))}
        self.prompts: PromptTable = lay_out(list(distinct))
        self.prompt_of = np.array([distinct[s] for s in said])

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        own = self.rows[rows]
        photos = self.partners.of(own, step)
        found = {
            **self.targets.columns(own),
            "photo": self.targets.latents["latents"][photos],
            **self.prompts.batch(self.prompt_of[own]),
        }
        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in found.items()}


def widen(unet: Any) -> None:
    """Has a UNet read as many latent channels again, which say nothing yet (section 3.2)."""
    old = unet.conv_in
    new = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)  # type: ignore[union-attr]
    unet.conv_in = new.to(old.weight)
    unet.register_to_config(in_channels=new.in_channels)

"""Training E4T's encoder and weight offsets on an untouched base (arXiv 2302.12228, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from limner.data.loader import Batch
from limner.diffusion.offsets import call_with, new_offsets, offset_changes
from limner.encoders.m2id import WordHead
from limner.encoders.rivals import RivalEncoder
from limner.methods.e4t import near_person
from limner.methods.tuning import TuningSettings
from limner.pipelines.tuned import E4TPipeline
from limner.training.denoising import write_out_attention
from limner.training.dice import Dice
from limner.training.dreamidentity import WordsConfig
from limner.training.frozen_base import FrozenBaseTask
from limner.training.identity_loss import RowLosses
from limner.training.parts import backbone_of
from limner.training.rival_task import BesideUNet, RivalSettings, RivalTask
from limner.training.task import Losses


@dataclass(frozen=True)
class E4TSettings(RivalSettings):
    """Settings of the task; see also `RivalSettings`.

    Attributes:
        recogniser: folder of the backbone, a CLIP (`limner.encoders.scales.load_backbone`).
        encoder: what it reads and makes; one word.
        regularisation: lambda of the squared distance of the words from "person".
        tuning_steps: of the tuning on the faces of the sample sheets; 0 draws no sheets.
    """

    recogniser: str = ""
    templates: tuple[str, ...] = ("a photo of S*",)
    partner: bool = False
    encoder: WordsConfig = field(default_factory=lambda: WordsConfig(words=1))
    regularisation: float = 0.01
    tuning_steps: int = 0

    def validate(self) -> None:
        super().validate()
        self.check(bool(self.recogniser), "recogniser", "the folder of a backbone")
        self.check(bool(self.templates) and all("S*" in t for t in self.templates), "templates", "sentences with S*")
        self.check(self.encoder.words == 1, "encoder", "one word")
        self.check(self.regularisation >= 0, "regularisation", "0 or more")
        self.check(self.tuning_steps >= 0, "tuning_steps", "0 or more")


class E4TTask(RivalTask[E4TSettings]):
    """See `E4TSettings` and `RivalTask`."""

    name = "e4t"
    settings_class: ClassVar = E4TSettings
    kind = "scales"

    def __init__(self, settings: E4TSettings) -> None:
        super().__init__(settings)
        towers = self.open_towers()
        self.open_base(settings.dtype)
        write_out_attention(self.unet)
        words = settings.encoder.build(backbone_of(Path(settings.recogniser)), towers.widths)
        encoder = RivalEncoder(towers, None, words)
        words.head.requires_grad_(True)
        self.model = EncoderAndOffsets(self.unet, words.head)
        self.assemble(E4TPipeline, encoder)

    def example(self, rows: int) -> Batch:
        assert self.encoder.words is not None
        scales = self.encoder.words.config.scales
        return {**super().example(rows), **{f"scale_{i}": torch.ones(rows, n) for i, n in enumerate(scales)}}

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        rows, words = self._both(model, batch, dice)
        costs = rows.losses(self.settings)
        away = torch.stack([w.float().square().sum((1, 2)) for w in words]).sum(0).mean()
        total = costs.total + self.settings.regularisation * away
        return Losses(total, {"noise": costs.total.detach(), **costs.parts, "away": away.detach()})

    def each(self, model: nn.Module, batch: Batch, dice: Dice, baseline: bool = False) -> RowLosses:
        return self._both(model, batch, dice, nobody=baseline)[0]

    def frozen(self) -> list[nn.Module]:
        assert self.encoder.words is not None
        return [*FrozenBaseTask.frozen(self), self.encoder.towers, self.encoder.words.backbone]

    def sheet(self) -> Any:
        if self.settings.tuning_steps == 0:
            return None
        self._hand_over()
        pipeline: Any = self.pipeline
        pipeline.tuning = TuningSettings.from_dict(
            {**pipeline.rival.defaults.to_dict(), "steps": self.settings.tuning_steps, "checkpoint_every": 0}
        )
        return super().sheet()

    def export(self, folder: Path) -> None:
        self._hand_over()
        super().export(folder)

    def _hand_over(self) -> None:
        """The offsets as they are now, averaged or not, to the encoder that is exported."""
        self.encoder.offsets = self.model.offsets()  # type: ignore[operator]

    def _both(
        self, model: nn.Module, batch: Batch, dice: Dice, nobody: bool = False
    ) -> tuple[RowLosses, list[torch.Tensor]]:
        """What every row costs, and for each tower how its words differ from "person" (B, 1, width)."""
        drawn = self.noisy(batch, dice)
        assert self.encoder.words is not None
        scales = [batch[f"scale_{i}"] for i in range(len(self.encoder.words.config.scales))]
        neutral = self.encoder.towers.neutral_words(1)

        def say(words: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
            return self.say(batch, near_person(neutral, words))

        prediction, words = model(scales, say, drawn.seen, drawn.t, lambda pooled: self.added(batch, pooled), nobody)
        return self.costs(batch, drawn, prediction, dice), words


class EncoderAndOffsets(BesideUNet):
    """What is trained: the MLPs that make words, and the offsets of the UNet's attention.

    Args:
        unet: of the base.
        head: of the encoder.
    """

    def __init__(self, unet: Any, head: WordHead) -> None:
        super().__init__(unet)
        self.head = head
        made = new_offsets(unet)
        self._names = list(made)
        self.values = nn.ParameterList([nn.Parameter(v) for v in made.values()])

    def offsets(self) -> dict[str, torch.Tensor]:
        """As `limner.diffusion.offsets` names them."""
        return {k: v.detach().float().cpu().clone() for k, v in zip(self._names, self.values, strict=True)}

    def forward(
        self, scales: list[torch.Tensor], say: Any, noisy: torch.Tensor, t: torch.Tensor, added: Any, nobody: bool
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The UNet's prediction and how the words differ from "person".

        Args:
            scales: what the backbone says of the faces.
            say: words → tokens (B, T, C) and pooled embeddings.
            noisy, t: see diffusers' UNet2DConditionModel.
            added: pooled embeddings → SDXL's further conditions.
            nobody: the word is "person" itself, and the UNet the base's.
        """
        words = [w * (0.0 if nobody else 1.0) for w in self.head(scales)]
        tokens, pooled = say(words)
        named = {"added_cond_kwargs": added(pooled)}
        tokens = tokens.to(self.unet.dtype)
        if nobody:
            return self.unet(noisy, t, tokens, **named).sample, words
        changes = offset_changes(self.unet, dict(zip(self._names, self.values, strict=True)))
        return call_with(self.unet, changes, noisy, t, tokens, **named).sample, words

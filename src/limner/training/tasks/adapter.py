"""Training an IP-Adapter on an untouched base: IP-Adapter-FaceID from identity vectors (arXiv 2308.06721), and ELITE's
local mapping from patch tokens beside a trained global mapping (arXiv 2302.13848, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor
from torch import nn

from limner.data.loader import Batch
from limner.diffusion.adapter import KINDS, adapter_modules, install, new_adapter
from limner.encoders.rivals import RivalEncoder, patch_width
from limner.pipelines.rivals import ElitePipeline, IPAdapterPipeline
from limner.training.dice import Dice
from limner.training.identity_loss import RowLosses
from limner.training.parts import backbone_of, words_of
from limner.training.rival_task import BesideUNet, RivalSettings, RivalTask


@dataclass(frozen=True)
class AdapterSettings(RivalSettings):
    """Settings of the task; see also `RivalSettings`.

    Attributes:
        recogniser: folder of the backbone (`limner.encoders.scales.load_backbone`); empty with `words`.
        words: folder of a trained M² ID encoder whose first word stands for S* (ELITE's global mapping); or empty.
        kind: what the adapter reads of a face: `identity` (IP-Adapter-FaceID) or `patches` (ELITE; needs `words`).
        tokens: that an identity vector becomes.
    """

    recogniser: str = ""
    words: str = ""
    kind: str = "identity"
    tokens: int = 4

    def validate(self) -> None:
        super().validate()
        self.check(self.kind in KINDS, "kind", ", ".join(KINDS))
        self.check(bool(self.recogniser) != bool(self.words), "recogniser", "either recogniser or words")
        self.check((self.kind == "patches") == bool(self.words), "words", "a folder with kind patches, and only then")
        self.check(self.tokens >= 1, "tokens", "1 or more")


class AdapterTask(RivalTask[AdapterSettings]):
    """See `AdapterSettings` and `RivalTask`."""

    name = "adapter"
    settings_class: ClassVar = AdapterSettings

    def __init__(self, settings: AdapterSettings) -> None:
        super().__init__(settings)
        self.kind = settings.kind
        towers = self.open_towers()
        self.open_base(settings.dtype)
        words = words_of(Path(settings.words)) if settings.words else None
        encoder = RivalEncoder(towers, None if words else backbone_of(Path(settings.recogniser)), words)
        seen = encoder.backbone
        width = seen.config.output if settings.kind == "identity" else patch_width(seen)
        install(self.unet, new_adapter(self.unet, settings.kind, width, settings.tokens))
        if not torch.accelerator.is_available():  # see `write_out_attention`
            _write_out_attention(self.unet)
        adapter_modules(self.unet).float().requires_grad_(True)
        self.model = AdaptedUNet(self.unet)
        self.assemble(IPAdapterPipeline if settings.kind == "identity" else ElitePipeline, encoder)

    def example(self, rows: int) -> Batch:
        seen = self.encoder.backbone.config
        face: tuple[int, ...] = (seen.output,)
        if self.settings.kind == "patches":
            face = ((seen.image_size // seen.patch_size) ** 2, seen.width)
        widths = self.encoder.towers.widths if self.settings.words else ()
        return {
            **super().example(rows),
            "face": torch.ones(rows, *face),
            **{f"words_{i}": torch.zeros(rows, 1, width) for i, width in enumerate(widths)},
        }

    def each(self, model: nn.Module, batch: Batch, dice: Dice, baseline: bool = False) -> RowLosses:
        drawn = self.noisy(batch, dice)
        no_text, no_face = self.dropped(model, dice)
        with torch.no_grad():
            widths = self.encoder.towers.widths
            words = [batch[f"words_{i}"] for i in range(len(widths))] if self.settings.words else None
            tokens, pooled = self.without_text(no_text, *self.say(batch, words))
        if baseline:
            no_face = torch.ones_like(no_face)
        face = batch["face"].float() * ~no_face.view(-1, *[1] * (batch["face"].ndim - 1))
        added = {"image_embeds": [face[:, None].to(self.unet.dtype)], **self.added(batch, pooled)}
        prediction = model(drawn.seen, drawn.t, tokens.to(self.unet.dtype), added).sample
        return self.costs(batch, drawn, prediction, dice)


class AdaptedUNet(BesideUNet):
    """The adapter in a UNet as the trained model."""

    def __init__(self, unet: Any) -> None:
        super().__init__(unet)
        self.adapter = adapter_modules(unet)

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor, added: dict[str, Any]) -> Any:
        """See diffusers' UNet2DConditionModel."""
        return self.unet(noisy, t, tokens, added_cond_kwargs=added)


def _write_out_attention(unet: Any) -> None:
    """Processors that compute attention step by step, with the same weights."""
    found: dict[str, Any] = {}
    for name, old in unet.attn_processors.items():
        if not hasattr(old, "to_k_ip"):
            found[name] = AttnProcessor()
            continue
        found[name] = IPAdapterAttnProcessor(old.hidden_size, old.cross_attention_dim, old.num_tokens)
        found[name].load_state_dict(old.state_dict())
    unet.set_attn_processor(found)

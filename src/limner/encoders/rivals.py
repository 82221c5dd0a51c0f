"""What the rivals read: a base's text towers and, for those that encode faces, a backbone and words made from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from limner.encoders.checkpoint import write_safetensors
from limner.encoders.config import FaceViTConfig
from limner.encoders.face_vit import FaceTokens, check_images
from limner.encoders.m2id import M2IDEncoder
from limner.encoders.pseudo_words import PLACEHOLDER
from limner.encoders.scales import Backbone, ClipBackbone, ClipVisionConfig, FaceBackbone, build_backbone
from limner.encoders.word_towers import Said, WordTowers
from limner.errors import ConfigError, CorruptData, WeightsMismatch

BACKBONE, ADAPTER, OFFSETS, WORDS, TOWERS = (
    "backbone.safetensors", "ip_adapter.safetensors", "offsets.safetensors", "words", "towers",
)  # fmt: skip
METADATA = "limner.backbone"


class RivalEncoder(ModelMixin):
    """A diffusers model as far as pipelines need one: they save, load, move and offload it. Nothing in it is trained.

    Args:
        towers: of the base.
        backbone: sees faces; None where a method tunes instead.
        words: makes words of faces; its backbone is then this encoder's.

    Attributes:
        adapter: an IP-Adapter (see `limner.diffusion.adapter`) that travels with the encoder's files until a pipeline
            puts it into its UNet; empty otherwise.
        offsets: E4T's weight offsets, likewise; a pipeline keeps them here.

    Raises:
        WeightsMismatch: words of other widths than the towers'.
    """

    def __init__(self, towers: WordTowers, backbone: Backbone | None = None, words: M2IDEncoder | None = None) -> None:
        super().__init__()
        if words is not None:
            towers.demand_widths(words.config.widths)
        self.towers, self.words = towers, words
        self.own = None if words is not None else backbone
        self.adapter: dict[str, Tensor] = {}
        self.offsets: dict[str, Tensor] = {}
        self.requires_grad_(False)
        self.train(False)

    @property
    def backbone(self) -> Backbone:
        """What sees faces."""
        found = self.own if self.words is None else self.words.backbone
        assert isinstance(found, Backbone), "a rival without a backbone sees no faces"
        return found

    @property
    def tokenizer(self) -> Any:
        """Of the first tower."""
        return self.towers.tokenizers[0]

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    @apply_forward_hook
    def see(self, images: Tensor) -> FaceTokens:
        """Identity vectors (R, D) of length 1 and patch tokens (R, N, W) of aligned faces (R, 3, H, W) in [0, 1].

        Raises:
            ImageError: images of another shape, type or range.
        """
        self._demand_weights()
        return see_faces(self.backbone, check_images(images).to(self.device))

    @torch.no_grad()
    @apply_forward_hook
    def say(
        self, prompts: Sequence[str], words: Sequence[Tensor] | None, strength: float = 1.0, *, demanded: bool = False
    ) -> Said:
        """Encodes B prompts in which `S*` stands for a person.

        Args:
            words: of the person, (k, width) for each tower; None puts the word "person" in the place of `S*`.
            strength: s in [0, 1]: every word is s·person + (1 − s)·the embedding of "person".
            demanded: every prompt must name the person.

        Raises:
            PromptError: see `limner.encoders.pseudo_words.lay_out`.
            WeightsMismatch: words of other widths than the towers'.
        """
        self._demand_weights()
        layouts = self.towers.lay_out(prompts, {PLACEHOLDER: len(words[0]) if words else 1}, demanded=demanded)
        if words is None:
            return self.towers(layouts, {})
        self.towers.demand_widths([w.shape[-1] for w in words])
        neutral = self.towers.neutral_words(len(words[0]))
        mixed = [strength * w.to(n) + (1 - strength) * n for w, n in zip(words, neutral, strict=True)]
        return self.towers(layouts, {PLACEHOLDER: mixed})

    def free(self) -> None:
        """Gives up the memory of the weights for good; sizes stay known, but nothing can be encoded any more."""
        nn.Module.to(self, "meta")

    # --- files ----------------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:  # type: ignore[override]
        """Writes towers/ and what else there is: words/ or backbone.safetensors, and the safetensors of the adapter
        and the offsets."""
        folder = Path(path)
        self.towers.save(folder / TOWERS)
        if self.words is not None:
            self.words.save_pretrained(folder / WORDS)
        elif self.own is not None:
            config = self.own.config
            kind = "face" if isinstance(config, FaceViTConfig) else "clip"
            write_safetensors(
                folder / BACKBONE, self.own.state_dict(), {METADATA: json.dumps({kind: config.to_dict()})}
            )
        for file, tensors in ((ADAPTER, self.adapter), (OFFSETS, self.offsets)):
            if tensors:
                write_safetensors(folder / file, tensors, {})

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, *, torch_dtype: torch.dtype | None = None, **_: Any
    ) -> RivalEncoder:
        """Reads what `save_pretrained` wrote.

        Raises:
            WeightsUnavailable, CorruptData, WeightsMismatch: see `WordTowers.load`, `M2IDEncoder.from_pretrained`.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder, dtype = Path(path), torch_dtype or torch.float32
        words = None
        if (folder / WORDS).is_dir():
            words = M2IDEncoder.from_pretrained(folder / WORDS, torch_dtype=dtype)
        backbone = _load_backbone(folder / BACKBONE) if (folder / BACKBONE).is_file() else None
        made = nn.Module.to(cls(WordTowers.load(folder / TOWERS, dtype), backbone, words), dtype)
        try:
            made.adapter, made.offsets = (
                load_file(folder / file) if (folder / file).is_file() else {} for file in (ADAPTER, OFFSETS)
            )
        except (OSError, SafetensorError) as e:
            raise CorruptData(f"{folder} is damaged ({e}).", "Copy the model's folder again.") from e
        return made

    def _demand_weights(self) -> None:
        if next(self.parameters()).device.type == "meta":
            raise ConfigError("This encoder has no weights: its memory was freed.", "Load the model again.")


def see_faces(backbone: Backbone, images: Tensor) -> FaceTokens:
    """A backbone's identity vectors (B, D) of length 1 and patch tokens (B, N, W): those after its last layer, without
    the class token, of faces (B, 3, H, W) in [0, 1]."""
    if isinstance(backbone, FaceBackbone):
        return backbone.vit(images)
    assert isinstance(backbone, ClipBackbone)
    kept: list[Tensor] = []
    with backbone.tower.register_forward_hook(lambda *given: kept.append(given[2].last_hidden_state)):
        identity = backbone(images, ())[-1]
    return FaceTokens(nn.functional.normalize(identity, dim=-1), kept[0][:, 1:])


def patch_width(backbone: Backbone) -> int:
    """W, channels of a patch token."""
    return backbone.config.width


def _load_backbone(path: Path) -> Backbone:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(str(path), framework="pt") as f:
            values = json.loads((f.metadata() or {})[METADATA])
        state = load_file(path)
        config: FaceViTConfig | ClipVisionConfig = (
            FaceViTConfig.from_dict(values["face"]) if "face" in values else ClipVisionConfig.from_dict(values["clip"])
        )
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as e:
        raise CorruptData(f"{path} is damaged or is no backbone ({e!r}).", "Copy the model's folder again.") from e
    backbone = build_backbone(config)
    try:
        backbone.load_state_dict(state)
    except RuntimeError as e:
        raise WeightsMismatch(f"{path} does not fit its own config: {e}.") from e
    return backbone

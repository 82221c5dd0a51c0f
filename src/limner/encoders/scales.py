"""Recognisers as multi-scale backbones: what a vision transformer says of a face at chosen depths, and at its end."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from limner.config import Config
from limner.encoders.config import FaceViTConfig
from limner.encoders.face_vit import FaceViT
from limner.encoders.faceclip import FILE
from limner.encoders.parts import FACE, load_face
from limner.errors import ConfigError, WeightsUnavailable

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class ClipVisionConfig(Config):
    """A CLIP picture tower; the defaults are those of CLIP ViT-L/14.

    Attributes:
        image_size, patch_size: in pixels.
        width, depth, heads, feedforward: of the transformer.
        activation: `quick_gelu` or `gelu`.
        output: channels of the picture feature.
        mean, std: per channel; pictures enter as (pixel in [0, 1] - mean) / std.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    feedforward: int = 4096
    activation: str = "quick_gelu"
    output: int = 768
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    def validate(self) -> None:
        self.check(1 <= self.patch_size <= self.image_size, "patch_size", f"1 to {self.image_size} (image_size)")
        self.check(self.width % self.heads == 0, "heads", f"a divisor of width {self.width}")
        self.check(min(self.depth, self.feedforward, self.output) >= 1, "depth", "at least 1, as all sizes")
        self.check(min(self.std) > 0, "std", "positive numbers")


def quarters(depth: int) -> tuple[int, ...]:
    """The layers at each quarter of a transformer of this depth, counted from 1: 12 → (3, 6, 9, 12)."""
    return tuple(sorted({-(-depth * i // 4) for i in range(1, 5)}))


class Backbone(nn.Module):
    """A recogniser whose layers can be read. Always in evaluation mode: its normalisation statistics are fixed.

    Attributes:
        config: its sizes.
    """

    config: FaceViTConfig | ClipVisionConfig

    @abstractmethod
    def forward(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Faces (B, 3, H, W) in [0, 1] of any size → a summary (B, width) after each of the `layers` (counted from 1),
        then the identity vector (B, output)."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class FaceBackbone(Backbone):
    """Limner's face ViT. It has no class token: a layer is summed up by the mean of its patch tokens."""

    def __init__(self, vit: FaceViT) -> None:
        super().__init__()
        self.config: FaceViTConfig = vit.config
        self.vit = vit
        vit.mask_token.requires_grad_(False)  # only hides patches while a recogniser is trained
        self.train()

    def forward(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        with _outputs([self.vit.blocks[n - 1] for n in layers]) as seen:
            said = self.vit(images)
        return [*(tokens.mean(1) for tokens in seen), said.class_token]


class ClipBackbone(Backbone):
    """A CLIP picture tower: the class token after each layer, and at the end the picture feature."""

    def __init__(self, config: ClipVisionConfig, tower: CLIPVisionModelWithProjection | None = None) -> None:
        super().__init__()
        self.config: ClipVisionConfig = config
        self.tower: Any = CLIPVisionModelWithProjection(_transformers_config(config)) if tower is None else tower
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)
        self.train()

    def forward(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(
                images.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True
            )
        pixels = (images.to(self.mean) - self.mean) / self.std
        said = self.tower(pixel_values=pixels, output_hidden_states=bool(layers))
        return [*(said.hidden_states[n][:, 0] for n in layers), said.image_embeds]


def build_backbone(config: FaceViTConfig | ClipVisionConfig) -> Backbone:
    """An untrained backbone of these sizes."""
    return FaceBackbone(FaceViT(config)) if isinstance(config, FaceViTConfig) else ClipBackbone(config)


def load_backbone(folder: str | Path) -> Backbone:
    """The trained recogniser in a folder.

    Understood are: what Limner's recogniser task wrote (face.safetensors); a FaceCLIP encoder of Limner's, whose face
    encoder is taken; what the clip task wrote (image/); and a CLIP model or picture tower of transformers with its
    preprocessor_config.json.

    Raises:
        WeightsUnavailable: none of these is there.
        ConfigError: a model of transformers that is no CLIP, or lacks its preprocessing.
        CorruptData, WeightsMismatch: damaged.
    """
    folder = Path(folder)
    if (folder / "image" / "config.json").is_file():
        return _load_clip(folder / "image", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # the clip task's pictures are in [-1, 1]
    if (folder / "config.json").is_file():
        if not (folder / _PREPROCESSOR).is_file():
            raise ConfigError(
                f"{folder} has no {_PREPROCESSOR}, so nobody knows what its pictures look like.",
                "Copy it from where the model came from.",
            )
        values = json.loads((folder / _PREPROCESSOR).read_text(encoding="utf-8"))
        return _load_clip(folder, tuple(values["image_mean"]), tuple(values["image_std"]))
    if (folder / FACE).is_file() or (folder / FILE).is_file():
        return FaceBackbone(load_face(folder))
    raise WeightsUnavailable(
        f"{folder} holds no recogniser.", "Train one (recipes/mini-recogniser.yaml), or import one (`limner import`)."
    )


def _load_clip(folder: Path, mean: Any, std: Any) -> ClipBackbone:
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise ConfigError(f"{folder} holds a model of type {kind!r}; clip or clip_vision_model is expected.")
    from transformers.utils import logging

    logging.disable_progress_bar()
    tower = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)
    sizes: Any = tower.config
    config = ClipVisionConfig(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        width=sizes.hidden_size,
        depth=sizes.num_hidden_layers,
        heads=sizes.num_attention_heads,
        feedforward=sizes.intermediate_size,
        activation=sizes.hidden_act,
        output=sizes.projection_dim,
        mean=mean,
        std=std,
    )
    return ClipBackbone(config, tower)


def _transformers_config(config: ClipVisionConfig) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.feedforward,
        hidden_act=config.activation,
        projection_dim=config.output,
    )


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What the modules return while the context lasts, in the order in which they run."""
    seen: list[Tensor] = []
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_hook(lambda *given: seen.append(given[2])))
        yield seen

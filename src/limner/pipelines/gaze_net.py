"""diffusers' ControlNet for every UNet that diffusers has: levels may have different numbers of blocks, and the time
embedding any width, as in those that were grown (`limner.training.growing`)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from diffusers import ControlNetModel, ModelMixin  # noqa: F401  (diffusers loads from modules that have the second name)
from diffusers.models.embeddings import TimestepEmbedding
from torch import nn

TIME = "time_embedding_dim"


class GazeNet(ControlNetModel):
    """As `diffusers.ControlNetModel`, with UNet2DConditionModel's `layers_per_block` (a number, or one a level) and
    `time_embedding_dim` (None is diffusers' four times the first width)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        layers, time = kwargs.get("layers_per_block", 2), kwargs.pop(TIME, None)
        one = isinstance(layers, int)
        super().__init__(*args, **{**kwargs, "layers_per_block": layers if one else max(layers)})
        net: Any = self
        if not one:
            _keep_blocks(net, layers)
        if time is not None:
            _retime(net, time)
        net.register_to_config(**{"layers_per_block": layers if one else list(layers), TIME: time})

    # diffusers reads the names of a model's settings from the signature
    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *inspect.signature(ControlNetModel.__init__).parameters.values(),
            inspect.Parameter(TIME, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None),
        ]
    )

    @classmethod
    def from_unet(cls, unet: Any, conditioning_embedding_out_channels: tuple[int, ...]) -> Any:  # type: ignore[override]
        """The first half of a UNet, weights and all, with outlets that say nothing yet (arXiv 2302.05543, section 3.1).

        Args:
            unet: UNet2DConditionModel.
            conditioning_embedding_out_channels: of the stages that read the picture of the place, each but the first
                halving its sides, down to those of the latents.
        """
        known = [name for name in inspect.signature(cls.__init__).parameters if name in unet.config]
        settings = {name: unet.config[name] for name in known}
        net: Any = cls(**settings, conditioning_embedding_out_channels=conditioning_embedding_out_channels)
        own = net.state_dict()
        net.load_state_dict(own | {k: v for k, v in unet.state_dict().items() if k in own})
        return nn.Module.to(net, unet.dtype)


def _keep_blocks(net: Any, layers: Sequence[int]) -> None:
    """Leaves as many blocks in every level as it is to have, and an outlet for each of them."""
    most, outlets = max(layers), iter(net.controlnet_down_blocks)
    kept = [next(outlets)]  # of the first convolution
    for level, count in zip(net.down_blocks, layers, strict=True):
        level.resnets = level.resnets[:count]
        if getattr(level, "attentions", None) is not None:
            level.attentions = level.attentions[:count]
        kept += [next(outlets) for _ in range(most)][:count]
        if level.downsamplers is not None:
            kept.append(next(outlets))
    net.controlnet_down_blocks = nn.ModuleList(kept)


def _retime(net: Any, width: int) -> None:
    """Gives everything that makes or reads the time embedding another width."""
    for name in ("time_embedding", "add_embedding"):
        old = getattr(net, name, None)
        if isinstance(old, TimestepEmbedding):
            setattr(net, name, TimestepEmbedding(old.linear_1.in_features, width))
    for module in list(net.modules()):
        reader = getattr(module, "time_emb_proj", None)
        if isinstance(reader, nn.Linear):
            module.time_emb_proj = nn.Linear(width, reader.out_features)

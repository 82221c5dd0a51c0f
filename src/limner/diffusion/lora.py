"""A LoRA on every layer of a UNet that is worth one, as a part of its own that is merged only while it is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from limner.errors import WeightsMismatch

ADAPTER = "default"


def add_lora(unet: Any, rank: int) -> None:
    """Freezes a UNet and adds to it a LoRA (arXiv 2106.09685) that changes nothing yet and is all that is trained.

    Args:
        rank: of every pair of matrices. Layers that would hold fewer values than their pair have none.
    """
    from peft import LoraConfig

    unet.requires_grad_(False)
    layers = [name for name, weight in _weights(unet) if rank * sum(weight.flatten(1).shape) < weight.numel()]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), ADAPTER)


class FaceDetailer(ModelMixin, ConfigMixin):
    """What a UNet knows besides of heads that fill the picture: a LoRA, and how to use it.

    Args:
        layers: [values of its output, values of its input (times the places of its kernel)] of every layer that has
            a pair of matrices, by the layer's name in the UNet.
        rank: of every pair.
        zoom: how many times larger a face is in the crops that it was trained on than in `limner.faces`' crops of the
            whole head.
        strength: how much of a face is painted anew when nothing is said, over 0 to 1.
    """

    config_name: Any = "config.json"
    config: Any

    @register_to_config
    def __init__(self, layers: Mapping[str, tuple[int, int]], rank: int, zoom: float, strength: float) -> None:
        super().__init__()
        sizes = {_key(name): size for name, size in layers.items()}
        self.down = nn.ParameterDict({k: nn.Parameter(torch.zeros(rank, size[1])) for k, size in sizes.items()})
        self.up = nn.ParameterDict({k: nn.Parameter(torch.zeros(size[0], rank)) for k, size in sizes.items()})

    @classmethod
    def of(cls, unet: Any, zoom: float, strength: float) -> Self:
        """The LoRA that `add_lora` put into a UNet, copied out of it."""
        pairs = {
            name: (module.lora_A[ADAPTER].weight.detach().flatten(1), module.lora_B[ADAPTER].weight.detach().flatten(1))
            for name, module in unet.named_modules()
            if ADAPTER in getattr(module, "lora_A", {})
        }
        rank = next(len(down) for down, _ in pairs.values())
        made = cls({name: (len(up), down.shape[1]) for name, (down, up) in pairs.items()}, rank, zoom, strength)
        with torch.no_grad():
            for name, (down, up) in pairs.items():
                made.down[_key(name)].copy_(down)
                made.up[_key(name)].copy_(up)
        return made

    @contextmanager
    def merged(self, unet: Any) -> Iterator[None]:
        """While it is open the UNet holds the LoRA; afterwards its own weights again, bit for bit.

        Raises:
            WeightsMismatch: the LoRA is of another UNet.
        """
        weights, kept = dict(_weights(unet)), {}
        for name, (outputs, inputs) in self.config.layers.items():
            weight = weights.get(name)
            if weight is None or len(weight) != outputs or weight[0].numel() != inputs:
                raise WeightsMismatch(
                    f"The face detailer changes {outputs} × {inputs} values of {name}; the UNet has no such weights."
                )
            kept[name] = weight.clone()
        try:
            for name in kept:
                down, up = self.down[_key(name)].float(), self.up[_key(name)].float()
                weights[name].add_((up @ down).view(kept[name].shape).to(kept[name].dtype))
            yield
        finally:
            for name, weight in kept.items():
                weights[name].copy_(weight)


def _weights(unet: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names of the linear and convolutional layers, those under another LoRA too, and their weights (out, in, …)."""
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name.removesuffix(".base_layer"), module.weight.detach()


def _key(layer: str) -> str:
    return layer.replace(".", "/")

"""A UNet made larger without forgetting: wider levels, more residual blocks (after Net2Net, arXiv 1511.05641)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional as F

from limner.errors import ConfigError

SPREAD = 0.05
"""Noise on copied channels, in deviations of the tensor's values, so that copies do not learn alike."""
RIDGE = 1e-5
"""Keeps the weights of the time embedding small: large ones that cancel each other are lost in half precision."""


class GrownNorm(NamedTuple):
    """A normalisation, the one that it grew from, and which of its channels each of the new ones repeats."""

    was: nn.GroupNorm
    now: nn.GroupNorm
    channels: torch.Tensor


class Grown(NamedTuple):
    """A UNet that grew, the one that it grew from, and its normalisations in the order in which they are met."""

    unet: Any
    old: Any
    norms: tuple[GrownNorm, ...]

    @torch.no_grad()
    def settle(self, forward: Callable[[Any], Any]) -> None:
        """Fits the normalisations to what those of the old UNet give for examples, one after the other, by least
        squares for each channel: groups of other channels have other means and deviations.

        Args:
            forward: calls the UNet that it is given on examples.
        """
        wanted: dict[nn.Module, torch.Tensor] = {}
        hooks = [n.was.register_forward_hook(lambda m, _, out: wanted.update({m: out})) for n in self.norms]
        forward(self.old)
        for hook in hooks:
            hook.remove()
        for was, now, channels in self.norms:
            read = F.group_norm(_input_of(now, self.unet, forward), now.num_groups, eps=now.eps).flatten(2)
            target = wanted[was].flatten(2)[:, channels]
            middle, aim = read.mean((0, 2), keepdim=True), target.mean((0, 2), keepdim=True)
            gain = ((read - middle) * (target - aim)).sum((0, 2)) / (read - middle).square().sum((0, 2)).clamp(min=1e-6)
            now.weight.copy_(gain)
            now.bias.copy_(aim.flatten() - gain * middle.flatten())


class _Seen(Exception):
    """Ends a forward pass that has gone far enough."""


def _input_of(module: nn.Module, unet: Any, forward: Callable[[Any], Any]) -> torch.Tensor:
    """What a module of a UNet reads in a forward pass."""
    read: list[torch.Tensor] = []

    def stop(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        read.append(given[0])
        raise _Seen

    hook = module.register_forward_pre_hook(stop)
    try:
        forward(unet)
    except _Seen:
        pass
    finally:
        hook.remove()
    return read[0]


def grow(old: Any, channels: tuple[int, ...], layers: tuple[int, ...], spread: float = SPREAD) -> Grown:
    """A UNet of `channels` and `layers` of residual blocks per level that predicts about what `old` does.

    Wider levels repeat their channels and divide by their number where they are read (arXiv 1511.05641, Section 2.2);
    new blocks begin as the identity (Section 2.3), so that `layers` alone change nothing at all. Normalisation in
    groups that span two levels, and widths that are no multiple of the old ones, make wider levels approximate. The
    time embedding keeps its size.

    Args:
        old: a UNet2DConditionModel.
        channels, layers: of each level, from the finest on, none less than before.
        spread: see `SPREAD`.

    Raises:
        ConfigError: a level would shrink; a level with attention would change (the channels of heads cannot be
            repeated); or two neighbours would become equally wide, which leaves out a layer between them.
    """
    config = {k: v for k, v in old.config.items() if not k.startswith("_")}  # those would bring back defaults
    before = tuple(config["block_out_channels"])
    blocks = _per_level(config["layers_per_block"], len(before))
    attends = ["Attn" in kind for kind in config["down_block_types"]]
    pairs = [*zip(channels, before, strict=False), *zip(layers, blocks, strict=False)]
    if len(channels) != len(before) or len(layers) != len(blocks) or any(new < now for new, now in pairs):
        raise ConfigError(
            f"A UNet of {before} channels and {blocks} blocks cannot grow to {channels} channels and {layers} blocks.",
            "Give as many levels, each as large or larger.",
        )
    for level, attention in enumerate(attends):
        if attention and (channels[level], layers[level]) != (before[level], blocks[level]):
            raise ConfigError(
                f"Level {level} of the UNet has attention and cannot grow.", "Let levels without attention grow."
            )
    width = old.time_embedding.linear_2.out_features
    new: Any = UNet2DConditionModel.from_config(
        {**config, "block_out_channels": channels, "layers_per_block": layers, "time_embedding_dim": width}
    )
    copy = _Copy(old, new, before, channels, blocks)
    if not new.conv_in.weight.is_meta:  # only counted
        copy.run(spread)
    return Grown(new.train(old.training), old, tuple(copy.norms))


def _per_level(layers: int | Iterable[int], levels: int) -> tuple[int, ...]:
    return (layers,) * levels if isinstance(layers, int) else tuple(layers)


def _repeat(old: int, new: int) -> torch.Tensor:
    """Which old channel each new one repeats; equal numbers of groups keep their channels."""
    return torch.arange(new) * old // new


class _Copy:
    """Moves weights, following the channels through the UNet as its forward pass does."""

    def __init__(
        self,
        old: Any,
        new: Any,
        before: tuple[int, ...],
        after: tuple[int, ...],
        blocks: tuple[int, ...],
    ) -> None:
        self.old, self.new, self.blocks = old, new, blocks
        self.maps = [_repeat(*sizes) for sizes in zip(before, after, strict=True)]
        self.norms: list[GrownNorm] = []
        self.touched: list[tuple[nn.Parameter, torch.Tensor]] = []

    @torch.no_grad()
    def run(self, spread: float) -> None:
        old, new, maps = self.old, self.new, self.maps
        for name in ("time_embedding", "add_embedding", "mid_block"):
            part = getattr(new, name)
            kept = {k: v for k, v in getattr(old, name).state_dict().items() if k != "linear_1.weight"}
            part.load_state_dict(kept, strict=False)
        new.add_embedding.linear_1.weight.copy_(old.add_embedding.linear_1.weight)
        self._times()
        self._layer(old.conv_in, new.conv_in, torch.arange(old.config.in_channels), maps[0])
        skips, x = [maps[0]], maps[0]
        for level, (was, now) in enumerate(zip(old.down_blocks, new.down_blocks, strict=True)):
            self._attentions(was, now)
            for i, resnet in enumerate(now.resnets):
                if i < self.blocks[level]:
                    self._resnet(was.resnets[i], resnet, x, maps[level])
                    x = maps[level]
                else:
                    self._identity(resnet, len(x))
                skips.append(x)
            if now.downsamplers:
                self._layer(was.downsamplers[0].conv, now.downsamplers[0].conv, x, x)
                skips.append(x)
        for i, (was, now) in enumerate(zip(old.up_blocks, new.up_blocks, strict=True)):
            level = len(maps) - 1 - i
            self._attentions(was, now)
            blocks = self.blocks[level]  # kept: its first blocks and its last one, which reads what the level was given
            for k, resnet in enumerate(now.resnets):
                skip = skips.pop()
                last = k == len(now.resnets) - 1
                if last or k < blocks:
                    self._resnet(
                        was.resnets[-1 if last else k], resnet, torch.cat([x, skip + 1 + x.max()]), maps[level]
                    )
                    x = maps[level]
                else:
                    self._identity(resnet, len(x))
            if now.upsamplers:
                self._layer(was.upsamplers[0].conv, now.upsamplers[0].conv, x, x)
        self._layer(old.conv_norm_out, new.conv_norm_out, x, x)
        self._layer(old.conv_out, new.conv_out, x, torch.arange(old.config.out_channels))
        generator = torch.Generator().manual_seed(0)
        for parameter, copied in self.touched:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(spread * parameter.std() * noise * copied)

    def _times(self) -> None:
        """The first layer of the time embedding, for sinusoids of other frequencies: the nearest linear map."""
        if len(self.maps[0]) == self.old.time_embedding.linear_1.in_features:
            self.new.time_embedding.linear_1.weight.copy_(self.old.time_embedding.linear_1.weight)
            return
        times = torch.arange(self.old.config.get("num_train_timesteps", 1000)).float()
        was, now = self.old.time_proj(times).double(), self.new.time_proj(times).double()
        first = self.old.time_embedding.linear_1.weight.double()
        ridge = RIDGE * len(times) * torch.eye(now.shape[1], dtype=now.dtype)
        solved = torch.linalg.solve(now.T @ now + ridge, now.T @ was @ first.T)
        self.new.time_embedding.linear_1.weight.copy_(solved.T)

    def _attentions(self, was: Any, now: Any) -> None:
        if hasattr(now, "attentions"):
            now.attentions.load_state_dict(was.attentions.state_dict())

    def _resnet(self, was: Any, now: Any, reads: torch.Tensor, writes: torch.Tensor) -> None:
        self._layer(was.norm1, now.norm1, reads, reads)
        self._layer(was.conv1, now.conv1, reads, writes)
        self._layer(was.time_emb_proj, now.time_emb_proj, torch.arange(was.time_emb_proj.in_features), writes)
        self._layer(was.norm2, now.norm2, writes, writes)
        self._layer(was.conv2, now.conv2, writes, writes)
        if was.conv_shortcut is not None:
            if now.conv_shortcut is None:
                raise ConfigError(
                    f"A block that reads {len(reads)} channels and writes as many has no place for the weights of one "
                    f"that read {was.in_channels} and wrote {was.out_channels}.",
                    "Leave neighbouring levels unequal.",
                )
            self._layer(was.conv_shortcut, now.conv_shortcut, reads, writes)

    def _identity(self, now: Any, width: int) -> None:
        """A block that passes on the `width` channels of the hidden state, and no skip."""
        now.conv2.weight.zero_()
        now.conv2.bias.zero_()
        if now.conv_shortcut is not None:
            now.conv_shortcut.bias.zero_()
            nn.init.dirac_(now.conv_shortcut.weight)
            now.conv_shortcut.weight[:, width:] = 0

    def _layer(self, was: Any, now: Any, reads: torch.Tensor, writes: torch.Tensor) -> None:
        """Copies a layer or a normalisation; `reads` and `writes` are the old channels behind the new ones."""
        if was.weight.ndim == 1:
            now.weight.copy_(was.weight[writes])
            self.norms.append(GrownNorm(was, now, writes))
        else:
            share = 1 / torch.bincount(reads)[reads].float()
            weight = was.weight[writes][:, reads]
            now.weight.copy_(weight * share.reshape(1, -1, *[1] * (weight.ndim - 2)))
            if was.weight.shape != now.weight.shape:
                again = (torch.bincount(reads)[reads] > 1)[None] | (torch.bincount(writes)[writes] > 1)[:, None]
                self.touched.append((now.weight, again.reshape(*again.shape, *[1] * (weight.ndim - 2))))
        if was.bias is not None:
            now.bias.copy_(was.bias[writes])

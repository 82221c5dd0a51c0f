"""The rivals' pipelines: a base's parts, a `RivalEncoder`, and for each picture what a method changes in the UNet.

The UNet is the base's own. What a person changes in it (an adapter's scale, tuned weights) holds while their pictures
are painted, and not a moment longer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from limner.diffusion.adapter import has_adapter, install, read_adapter, set_scale, taken_out
from limner.encoders.autoencoder import PatchAutoencoder
from limner.encoders.rivals import RivalEncoder
from limner.encoders.word_towers import WordTowers
from limner.errors import ConfigError, WeightsMismatch
from limner.faces import FaceEmbedder
from limner.methods.elite import Elite
from limner.methods.ip_adapter import IPAdapter
from limner.methods.rival import Rival
from limner.methods.steering import SteeredConditioning, Steering
from limner.pipelines.recogniser import OwnRecogniser
from limner.pipelines.words import WordsPipeline
from limner.types import Conditioning


class RivalPipeline(WordsPipeline):
    """Face + prompt → portrait, by a rival.

    Args:
        vae, unet, scheduler: of the base; the UNet has text_time conditioning (SDXL, mini) or none (SD 2.1).
        encoder: the base's text towers and what sees faces.
        default_steps, default_guidance, default_pag: what the model is recommended to be sampled with.
        same_person: cosine of identity vectors from which two pictures are taken to show one person; None where that
            was not measured, or the method has no identity vector: no reference is then left out.
        world: `sitters` if the model only knows Limner's synthetic people; empty otherwise.
        force_zeros_for_empty_prompt: as in diffusers: an empty negative prompt is zeros.
    """

    rival: ClassVar[type[Rival]]
    encoder: RivalEncoder
    model_cpu_offload_seq: Any = "encoder->unet->vae"
    _offloaded_whole = ("encoder",)

    def __init__(
        self,
        vae: AutoencoderKL | PatchAutoencoder,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        encoder: RivalEncoder,
        default_steps: int = 30,
        default_guidance: float = 7.5,
        same_person: float | None = None,
        world: str = "",
        force_zeros_for_empty_prompt: bool = False,
        default_pag: float = 0.0,
    ) -> None:
        super().__init__(
            components={"vae": vae, "unet": unet, "scheduler": scheduler, "encoder": encoder},
            facts={
                "default_steps": default_steps, "default_guidance": default_guidance, "same_person": same_person,
                "world": world, "force_zeros_for_empty_prompt": force_zeros_for_empty_prompt,
                "default_pag": default_pag,
            },
        )  # fmt: skip
        self._demand_width()
        if encoder.adapter and not has_adapter(self.unet):
            install(self.unet, encoder.adapter)
            encoder.adapter = {}  # the UNet has it now

    @property
    def method(self) -> Rival:
        """The rival over this pipeline's parts."""
        return self.rival(self.encoder, zero_empty=bool(self.config.force_zeros_for_empty_prompt))

    @property
    def towers(self) -> WordTowers:
        return self.encoder.towers

    @torch.no_grad()
    def __call__(
        self,
        prompt: Any = None,
        face: Any = None,
        *,
        identity: Any = None,
        conditioning: Conditioning | None = None,
        negative_prompt: Any = None,
        strength: float = 1.0,
        guidance_scale: float | None = None,
        **painting: Any,
    ) -> Any:
        """See `PortraitPipeline.__call__`.

        Raises:
            ConfigError: also several people in one picture, where the method changes the UNet for each.
        """
        self._check_source(prompt, face, identity, conditioning, negative_prompt, strength)
        if face is not None:
            identity = self.enroll(face)
        if conditioning is None:
            conditioning = self.condition(prompt, identity, negative_prompt, strength)
        guidance = self.config.default_guidance if guidance_scale is None else guidance_scale
        with self._steered(conditioning, guidance) as told:
            return super().__call__(conditioning=told, guidance_scale=guidance, **painting)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; the UNet is written as the base's own, the adapter beside the encoder."""
        adapter = read_adapter(self.unet) if has_adapter(self.unet) else {}
        self.encoder.adapter = adapter
        try:
            with taken_out(self.unet):
                super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.encoder.adapter = {}

    @contextmanager
    def _steered(self, conditioning: Conditioning, guidance: float) -> Iterator[Conditioning]:
        """While it is open, the UNet is what the conditioning says."""
        if any(_steering(c).change for _, c in conditioning.regions):
            raise ConfigError(
                f"{self.rival.name} changes the whole denoiser for a person; it cannot paint several in one picture."
            )
        steering, embeds = _steering(conditioning), conditioning.ip_adapter_image_embeds
        if embeds is not None and guidance <= 1:  # diffusers then wants no unconditional rows
            conditioning = dataclasses.replace(conditioning, ip_adapter_image_embeds=[e.chunk(2)[1] for e in embeds])
        set_scale(self.unet, steering.adapter_scale)
        with changed(self.unet, steering):
            yield conditioning


@contextmanager
def changed(unet: Any, steering: Steering) -> Iterator[None]:
    """While it is open, what the steering says is added to the UNet's weights; afterwards they are, bit for bit, as
    before.

    Raises:
        WeightsMismatch: a parameter that this UNet does not have, or not in that shape.
        ConfigError: weights that cannot be added to: rounded, or elsewhere until they are needed.
    """
    parameters = dict(unet.named_parameters())
    for name, change in steering.change.items():
        if name not in parameters or parameters[name].shape != change.shape:
            raise WeightsMismatch(
                f"The identity changes {name} {tuple(change.shape)}, which this UNet does not have.",
                "Enrol the face again with the model that is to paint it.",
            )
        if parameters[name].device.type == "meta" or not parameters[name].is_floating_point():
            raise ConfigError(
                "The weights of this UNet cannot be changed for a person in this memory mode.",
                "Load the model with --memory plain.",
            )
    before = {name: parameters[name].data for name in steering.change}
    try:
        for name, change in steering.change.items():
            parameters[name].data = (before[name].float() + change.to(before[name].device).float()).to(before[name])
        yield
    finally:
        for name, value in before.items():
            parameters[name].data = value


class IPAdapterPipeline(RivalPipeline):
    """IP-Adapter-FaceID; see `limner.methods.ip_adapter`."""

    rival = IPAdapter

    @property
    def embedder(self) -> FaceEmbedder:
        """The encoder's backbone as a recogniser."""
        return OwnRecogniser(self.method, self.encoder.backbone.config.output, self.config.same_person)


class ElitePipeline(RivalPipeline):
    """ELITE; see `limner.methods.elite`."""

    rival = Elite


def _steering(conditioning: Conditioning) -> Steering:
    return conditioning.steering if isinstance(conditioning, SteeredConditioning) else Steering()

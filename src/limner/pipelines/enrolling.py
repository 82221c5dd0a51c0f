"""What all of Limner's pipelines share, whatever their denoiser: people are enrolled, a method says what to paint, and
diffusers' own pipeline, which each subclass names, paints it.

A pipeline has no text encoders of its own: the method's `Conditioning` takes their place, so that everything from the
embeddings onward is diffusers' code.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from limner.errors import ConfigError, PromptError
from limner.faces import FaceEmbedder, ImageSource
from limner.methods.base import Method
from limner.pipelines.people import as_sources, gather_references
from limner.types import Conditioning, Face, Identity

if TYPE_CHECKING:
    from limner.pipelines.paint import Dials

log = logging.getLogger(__name__)

FaceInput = Face | ImageSource | Sequence[Face | ImageSource]
"""One picture of a person or several of the same person: aligned faces, or whatever `limner.faces.load_image` takes."""

OUTPUTS = ("pil", "np", "pt", "latent")


class EnrollingPipeline(DiffusionPipeline):
    """Base beside one of diffusers' pipelines: `class X(EnrollingPipeline, StableDiffusionXLPipeline)`.

    Subclasses name their components in `__init__`, the denoiser among them, and build their `method` from them. Every
    one has the facts `default_steps`, `default_guidance` (what the model is recommended to be sampled with) and `world`
    in its configuration.

    Attributes:
        denoiser_name: the component that denoises.
        sampling: arguments of diffusers' `__call__` that concern sampling and are passed on as they are.
    """

    denoiser_name: ClassVar[str] = "unet"
    sampling: ClassVar[frozenset[str]] = frozenset()
    text_encoder: Any = None
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    image_encoder: Any = None
    feature_extractor: Any = None
    controlnet: Any = None
    detailer: Any = None
    __call__: Any
    config: Any
    vae: Any
    scheduler: Any
    _callback_tensor_inputs: Any
    _offload_device: Any
    _optional_components: Any = []  # noqa: RUF012 (diffusers' way)
    _offloaded_whole: tuple[str, ...] = ()
    _whole_hooks: Sequence[Any] = ()

    def __init__(self, components: dict[str, Any], facts: dict[str, Any]) -> None:
        # Not the __init__ of diffusers' pipeline: it would register text encoders that are no part of this one.
        DiffusionPipeline.__init__(self)
        self.register_modules(**components)
        self.register_to_config(**facts)
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def denoiser(self) -> Any:
        """The model that denoises latents."""
        return getattr(self, self.denoiser_name)

    @property
    @abstractmethod
    def method(self) -> Method:
        """The method that turns faces and prompts into conditioning, over this pipeline's components."""

    @property
    def device(self) -> torch.device:
        """As in diffusers; an encoder whose memory was freed says nothing of it."""
        found = super().device
        return self.denoiser.device if found.type == "meta" else found

    @property
    def embedder(self) -> FaceEmbedder | None:
        """The method's own recogniser, if it has one; tells references apart and ranks pictures."""
        return None

    @property
    @abstractmethod
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels of what is painted when no size is asked for."""

    @property
    @abstractmethod
    def size_unit(self) -> int:
        """Heights and widths are multiples of so many pixels."""

    @property
    def default_pag(self) -> float:
        """The weight of perturbed-attention guidance that the model is recommended to be sampled with."""
        return 0.0

    @property
    def default_face_guidance(self) -> float:
        """The weight of face guidance that the model is recommended to be sampled with."""
        return 0.0

    @property
    def default_face_detail(self) -> float:
        """How much of a face the model is recommended to paint anew, larger, when a picture is done."""
        return 0.0

    @abstractmethod
    def latents_shape(self, pictures: int, height: int, width: int) -> tuple[int, ...]:
        """Of the latents in which so many pictures of so many pixels are painted."""

    def as_map(self, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(pictures, C, h, w): latents of pictures of so many pixels as the autoencoder has them."""
        return latents

    @abstractmethod
    def arguments(self, dials: Dials) -> dict[str, Any]:
        """The dials, but for size and steps, as arguments of `__call__`.

        Raises:
            ConfigError: a dial that this pipeline cannot follow.
        """

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """As in diffusers, layer by layer; but the method's own models, which read parameters across layers, go to the
        accelerator whole, and only while they encode."""
        from accelerate import cpu_offload_with_hook

        whole = [name for name in self.components if name in self._offloaded_whole]
        self._exclude_from_cpu_offload = list(self._exclude_from_cpu_offload) + whole
        super().enable_sequential_cpu_offload(gpu_id, device)
        self._exclude_from_cpu_offload = [n for n in self._exclude_from_cpu_offload if n not in whole]
        self._whole_hooks = [cpu_offload_with_hook(getattr(self, name), self._offload_device)[1] for name in whole]
        self._send_away()

    @torch.no_grad()
    def enroll(self, face: FaceInput) -> Identity:
        """The identity of the person in one picture or several of them.

        Faces are found in pictures that are no aligned faces; of several, the largest is taken. Where the model can
        tell people apart, pictures that show somebody else than most do are left out. Both are logged.

        Raises:
            FaceError: no face in a picture, or different people.
            ImageError: a picture that cannot be read.
        """
        references = gather_references(as_sources(face), embedder=self.embedder)
        for remark in references.remarks:
            log.warning(remark)
        return self.method.enroll(references.faces)

    @torch.no_grad()
    def condition(
        self,
        prompt: str | Sequence[str],
        identity: Identity | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        strength: float = 1.0,
    ) -> Conditioning:
        """What the denoiser is told for each prompt; see `Method.condition`."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
        return self.method.condition(identity, prompts, negative_prompts=negatives, strength=strength)

    @classmethod
    def load_lora_into_text_encoder(cls, state_dict: dict[str, Any], *args: Any, prefix: str, **kwargs: Any) -> None:
        """Skips layers for diffusers' text encoders, which this pipeline does not have, and says so."""
        if any(key.startswith(f"{prefix}.") for key in state_dict):
            log.warning("The LoRA's layers for %s are skipped: %s has no such component.", prefix, cls.__name__)

    def _send_away(self) -> None:
        """Brings what is on the accelerator whole back to the CPU, where layers are streamed."""
        for hook in self._whole_hooks:
            hook.offload()

    def _spread(
        self, rows: torch.Tensor | None, pictures: int, device: torch.device | str | None = None
    ) -> torch.Tensor | None:
        """Every row so many times, side by side, of the denoiser's type and on its device; None stays None."""
        if rows is None:
            return None
        return rows.to(self.denoiser.dtype).to(device or self._execution_device).repeat_interleave(pictures, dim=0)

    # --- what can be wrong ----------------------------------------------------------------------------------------

    def _check_source(
        self, prompt: Any, face: Any, identity: Any, conditioning: Any, negative_prompt: Any, strength: float
    ) -> None:
        said = {"prompt": prompt, "face": face, "identity": identity, "negative_prompt": negative_prompt}
        also = [name for name, value in said.items() if value is not None] + ["strength"] * (strength != 1)
        if conditioning is not None and also:
            raise ConfigError(f"conditioning says everything; {also[0]} cannot be given with it.")
        if face is not None and identity is not None:
            raise ConfigError("Either face or identity says who is painted; both were given.")
        if conditioning is None and not prompt:
            raise PromptError("Nothing to paint: neither prompt nor conditioning was given.")
        if identity is not None and not isinstance(identity, Identity):
            raise ConfigError(f"identity is a {type(identity).__name__}; an Identity is expected.")

    def _check_size(self, height: int, width: int) -> None:
        for name, value in (("height", height), ("width", width)):
            if value <= 0 or value % self.size_unit:
                raise ConfigError(f"{name} is {value!r}; allowed: multiples of {self.size_unit}.")

    def _check_sampling(
        self, steps: int, pictures: int, output_type: str, watched: Sequence[str], sampling: dict[str, Any]
    ) -> None:
        if steps < 1:
            raise ConfigError(f"num_inference_steps is {steps!r}; allowed: 1 or more.")
        most = self.scheduler.config.get("original_inference_steps")
        if most is not None and steps > most:
            name = type(self.scheduler).__name__
            raise ConfigError(
                f"num_inference_steps is {steps}; {name} allows {most} at most.", "Take fewer, or another scheduler."
            )
        if pictures < 1:
            raise ConfigError(f"num_images_per_prompt is {pictures!r}; allowed: 1 or more.")
        if output_type not in OUTPUTS:
            raise ConfigError(f"output_type is {output_type!r}; allowed: {', '.join(OUTPUTS)}.")
        strangers = [name for name in watched if name not in self._callback_tensor_inputs]
        if strangers:
            allowed = ", ".join(self._callback_tensor_inputs)
            raise ConfigError(f"callback_on_step_end_tensor_inputs has {strangers[0]!r}; allowed: {allowed}.")
        unknown = sorted(set(sampling) - self.sampling)
        if unknown:
            raise ConfigError(
                f"{type(self).__name__} has no argument {unknown[0]!r}; sampling is steered by: "
                f"{', '.join(sorted(self.sampling))}."
            )
        for name in ("timesteps", "sigmas"):
            if sampling.get(name) is not None and name not in signature(self.scheduler.set_timesteps).parameters:
                raise ConfigError(f"{type(self.scheduler).__name__} takes no {name} of one's own; Euler and others do.")

    def _check_noise(self, generator: Any, latents: Any, pictures: int, height: int, width: int) -> None:
        if isinstance(generator, list) and len(generator) != pictures:
            raise ConfigError(f"{pictures} pictures need as many generators, or a single one; got {len(generator)}.")
        shape = self.latents_shape(pictures, height, width)
        if latents is not None and tuple(latents.shape) != shape:
            raise ConfigError(f"latents have shape {tuple(latents.shape)}; {shape} is needed.")

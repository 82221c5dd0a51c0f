"""FaceT5-FLUX: a FLUX transformer that is told persons and prompts by FaceT5 (arXiv 2504.14202, the second variant).

Everything from the embeddings onward *is* diffusers' FluxPipeline, so that the same embeddings give, bit for bit, its
pictures; what is added lies before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

from limner.encoders.facet5 import FaceT5Encoder
from limner.errors import ConfigError, WeightsMismatch
from limner.faces import FaceEmbedder
from limner.methods.base import demand_guidance
from limner.methods.facet5 import FaceT5, flux_arguments
from limner.pipelines.enrolling import EnrollingPipeline, FaceInput
from limner.pipelines.recogniser import OwnRecogniser
from limner.pipelines.regions import is_group
from limner.pipelines.schedulers import demand_flow, make_scheduler, scheduler_name
from limner.types import Conditioning, Identity

if TYPE_CHECKING:
    from limner.pipelines.paint import Dials

STEPS, GUIDANCE, HEIGHT, WIDTH = 50, 3.5, 1152, 864
"""Of the published inference script: `true_cfg_scale` 3.5, pictures of 1152 × 864 (height × width)."""

ELSEWHERE = {
    "guidance_rescale": "tames guidance of a UNet",
    "pag_scale": "(perturbed-attention guidance) needs the attention layers of a UNet",
    "face_guidance": "needs a UNet",
    "face_detail": "needs image-to-image with a UNet",
    "gaze": "needs a ControlNet beside a UNet",
}
"""What other pipelines can be told → why this one cannot."""


class FaceT5FluxPipeline(EnrollingPipeline, FluxPipeline):
    """Face + prompt → portrait, by FaceT5 on FLUX.

    FLUX knows two guidances. `true_cfg_scale` is classifier-free guidance, as elsewhere in Limner
    (`Dials.guidance_scale`, `--guidance`); `guidance_scale` is a number that a distilled transformer is told, and is 1
    as published.

    Args:
        vae: FLUX's autoencoder.
        transformer: of FLUX's shape, fine-tuned under FaceT5.
        scheduler: a flow-matching one.
        encoder: turns faces and prompts into what the transformer attends to; brings its own tokenizers.
        default_steps, default_guidance: what the model is recommended to be sampled with; the guidance is the true one.
        default_embedded_guidance: what a distilled transformer is told.
        default_height, default_width: of pictures, in pixels.
        same_person: cosine of the face encoder's class tokens from which two pictures are taken to show one person;
            None where that was not measured: no reference is then left out.
        world: `sitters` if the model only knows Limner's synthetic people; empty otherwise.
    """

    denoiser_name: ClassVar[str] = "transformer"
    sampling: ClassVar[frozenset[str]] = frozenset(("sigmas", "joint_attention_kwargs"))
    encoder: FaceT5Encoder
    transformer: Any
    model_cpu_offload_seq: Any = "encoder->transformer->vae"
    _offloaded_whole = ("encoder",)
    _lora_loadable_modules = ["transformer"]  # noqa: RUF012 (diffusers' way)

    def __init__(
        self,
        vae: AutoencoderKL,
        transformer: FluxTransformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        encoder: FaceT5Encoder,
        default_steps: int = STEPS,
        default_guidance: float = GUIDANCE,
        default_embedded_guidance: float = 1.0,
        default_height: int = HEIGHT,
        default_width: int = WIDTH,
        same_person: float | None = None,
        world: str = "",
    ) -> None:
        super().__init__(
            components={"vae": vae, "transformer": transformer, "scheduler": scheduler, "encoder": encoder},
            facts={
                "default_steps": default_steps, "default_guidance": default_guidance,
                "default_embedded_guidance": default_embedded_guidance, "default_height": default_height,
                "default_width": default_width, "same_person": same_person, "world": world,
            },
        )  # fmt: skip
        # The transformer sees squares of 2 × 2 latents.
        self.image_processor = VaeImageProcessor(vae_scale_factor=2 * self.vae_scale_factor)

    @property
    def tokenizer(self) -> Any:
        """T5's, which reads the whole prompt; it belongs to the encoder."""
        return self.encoder.t5_tokenizer

    @property
    def method(self) -> FaceT5:
        """FaceT5 over this pipeline's encoder."""
        return FaceT5(self.encoder)

    @property
    def embedder(self) -> FaceEmbedder:
        """The encoder's face ViT as a recogniser."""
        return OwnRecogniser(self.method, self.encoder.config.face.output, self.config.same_person)

    @property
    def default_size(self) -> tuple[int, int]:
        return self.config.default_height, self.config.default_width

    @property
    def size_unit(self) -> int:
        return math.lcm(8, 2 * self.vae_scale_factor)

    def latents_shape(self, pictures: int, height: int, width: int) -> tuple[int, ...]:
        """Packed: (pictures, h·w / 4, 4·C) for h × w latents of C channels."""
        f = 2 * self.vae_scale_factor
        return pictures, (height // f) * (width // f), self.transformer.config.in_channels

    def as_map(self, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return self._unpack_latents(latents, height, width, self.vae_scale_factor)

    def arguments(self, dials: Dials) -> dict[str, Any]:
        if dials.rescue != "never":
            raise ConfigError("rescue needs image-to-image with a UNet; this model has none.", "Leave it out.")
        self._refuse({name: getattr(dials, name) for name in ELSEWHERE})
        self._check_size(dials.height, dials.width)
        if dials.scheduler != scheduler_name(self.scheduler):
            demand_flow(make_scheduler(dials.scheduler, self.scheduler))
        return {"true_cfg_scale": dials.guidance_scale}

    @torch.no_grad()
    def condition(
        self,
        prompt: str | Sequence[str],
        identity: Identity | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        strength: float = 1.0,
    ) -> Conditioning:
        """As in `EnrollingPipeline`; ConfigError for several people in one picture."""
        if is_group(identity):
            raise ConfigError(
                "Several people in one picture need the cross-attention of a UNet; this model paints one.",
                "Paint them one by one, or with faceclip-sdxl.",
            )
        return super().condition(prompt, identity, negative_prompt, strength)

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | Sequence[str] | None = None,
        face: FaceInput | None = None,
        *,
        identity: Identity | None = None,
        conditioning: Conditioning | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        strength: float = 1.0,
        true_cfg_scale: float | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **sampling: Any,
    ) -> FluxPipelineOutput | tuple[Any]:
        """Paints.

        Say what to paint with `prompt`, and whom with `face` or `identity` (neither: nobody in particular); or give a
        ready `conditioning` instead of all of them.

        Args:
            prompt: B sentences, or one.
            face: one picture of the person, or several of the same person.
            identity: of an enrolled person, instead of `face`.
            conditioning: what `condition` made, instead of prompt, face, identity, negative_prompt and strength.
            negative_prompt: what not to paint; one for all, or one a prompt.
            strength: how much of the person goes in, from 0 to 1.
            true_cfg_scale: weight of classifier-free guidance; 1 is none, and twice as fast. Default: what the model's
                own configuration recommends.
            guidance_scale: what a distilled transformer is told. Default: the model's own.
            height, width: in pixels, multiples of 16 for FLUX's autoencoder; default: the model's own.
            num_inference_steps: default: what the model's own configuration recommends.
            num_images_per_prompt: N; B·N pictures come out, those of one prompt side by side.
            generator: one for all pictures, or a list of B·N, which makes each picture independent of the others.
            latents: packed starting noise instead of the generator's; see `latents_shape`.
            output_type: `pil`, `np`, `pt` or `latent` (packed).
            return_dict: an output object with `images`, or else a tuple.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in diffusers.
            **sampling: `sigmas` and `joint_attention_kwargs`, as of `FluxPipeline.__call__`.

        Raises:
            ConfigError: an argument is unknown, out of range, changes nothing, contradicts another, or needs a UNet.
            PromptError: nothing to paint.
            FaceError: no face in the pictures.
            WeightsMismatch: an identity or a conditioning of another model.
        """
        # 1. Check what can be checked before any work is done
        height, width = height or self.default_size[0], width or self.default_size[1]
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        true_guidance = self.config.default_guidance if true_cfg_scale is None else true_cfg_scale
        embedded = self.config.default_embedded_guidance if guidance_scale is None else guidance_scale
        self._check_source(prompt, face, identity, conditioning, negative_prompt, strength)
        demand_guidance(negative_prompt, true_guidance)
        self._check_size(height, width)
        self._refuse(sampling)
        sampling = {name: value for name, value in sampling.items() if name not in ELSEWHERE}
        self._check_sampling(steps, num_images_per_prompt, output_type, callback_on_step_end_tensor_inputs, sampling)
        demand_flow(self.scheduler)
        if guidance_scale is not None and not self.transformer.config.guidance_embeds:
            raise ConfigError(
                "guidance_scale would change nothing: this transformer is told no guidance.", "Set true_cfg_scale."
            )

        # 2. Faces → identity
        if face is not None:
            identity = self.enroll(face)

        # 3. Identity and prompts → conditioning
        if conditioning is None:
            assert prompt is not None
            conditioning = self.condition(prompt, identity, negative_prompt, strength)
        self._check_conditioning(conditioning, true_guidance)
        self._send_away()
        pictures = conditioning.prompt_embeds.shape[0] * num_images_per_prompt
        self._check_noise(generator, latents, pictures, height, width)

        # 4. Denoise and decode, as diffusers does
        (images,) = FluxPipeline.__call__(
            self,
            **flux_arguments(conditioning),
            true_cfg_scale=true_guidance,
            guidance_scale=embedded,
            height=height,
            width=width,
            num_inference_steps=steps,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            latents=latents,
            output_type=output_type,
            return_dict=False,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=list(callback_on_step_end_tensor_inputs),
            **sampling,
        )
        return FluxPipelineOutput(images=images) if return_dict else (images,)

    def encode_prompt(  # type: ignore[override]
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int = 512,
        lora_scale: float | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """FLUX's signature: a prompt (painting nobody in particular) or ready embeddings, one row per prompt, which
        diffusers would not repeat for several pictures of a prompt.

        Returns:
            prompt_embeds (B·N, T, C), pooled (B·N, P), and the places (T, 3) of text tokens, which are all zero.
        """
        if prompt_embeds is None:
            made = self.condition(prompt or "")
            prompt_embeds, pooled_prompt_embeds = made.prompt_embeds, made.pooled
        return FluxPipeline.encode_prompt(
            self,
            prompt=None,
            device=device,
            prompt_embeds=self._spread(prompt_embeds, num_images_per_prompt, device),
            pooled_prompt_embeds=self._spread(pooled_prompt_embeds, num_images_per_prompt, device),
        )

    def _refuse(self, given: dict[str, Any]) -> None:
        """ConfigError for the first of `ELSEWHERE` that is given and not neutral."""
        for name, why in ELSEWHERE.items():
            if given.get(name):
                raise ConfigError(
                    f"{name} {why}; {type(self).__name__} has a transformer instead.", "Leave it out, or set it to 0."
                )

    def _check_conditioning(self, c: Conditioning, guidance: float) -> None:
        width, pooled = (self.transformer.config[n] for n in ("joint_attention_dim", "pooled_projection_dim"))
        if c.prompt_embeds.ndim != 3 or c.prompt_embeds.shape[-1] != width:
            raise WeightsMismatch(
                f"The transformer needs prompt_embeds of shape (B, T, {width}); got {tuple(c.prompt_embeds.shape)}."
            )
        if c.pooled is None or c.pooled.shape[-1] != pooled:
            got = None if c.pooled is None else tuple(c.pooled.shape)
            raise WeightsMismatch(f"The transformer needs pooled embeddings of shape (B, {pooled}); got {got}.")
        if guidance > 1:
            if c.negative_prompt_embeds is None or c.negative_pooled is None:
                raise ConfigError(
                    f"true_cfg_scale is {guidance:g}, but the conditioning has no unconditional branch.",
                    "Give negative_prompt_embeds and negative_pooled, or set true_cfg_scale to 1.",
                )
            if c.negative_prompt_embeds.shape != c.prompt_embeds.shape or c.negative_pooled.shape != c.pooled.shape:
                raise WeightsMismatch("Both branches of the conditioning need tensors of equal shapes.")
        beside = {
            "regions": c.regions, "control_image": c.control_image, "ip_adapter_image_embeds": c.ip_adapter_image_embeds
        }  # fmt: skip
        told = [name for name, value in beside.items() if value is not None and value != ()]
        if told:
            raise ConfigError(f"The conditioning has {told[0]}, which a UNet is told and a transformer is not.")

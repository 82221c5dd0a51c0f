"""The base of pipelines with a UNet: diffusers' own SDXL pipeline, told what to paint by a method's `Conditioning`.

Everything from the embeddings onward (schedulers, guidance, callbacks, offload, decoding) *is* diffusers' code, so that
the same embeddings give, bit for bit, the pictures of `StableDiffusionXLPipeline`. What is added lies before it: who is
painted (faces, or an identity) and how that becomes embeddings (the method).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_output import StableDiffusionXLPipelineOutput
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from limner.errors import ConfigError, WeightsMismatch
from limner.methods.base import demand_guidance
from limner.pipelines.enrolling import EnrollingPipeline, FaceInput
from limner.pipelines.face_detail import demand_plain, with_face_detail
from limner.pipelines.face_guidance import face_guided
from limner.pipelines.gaze import Gaze, gaze_image, parse_gaze, steered
from limner.pipelines.perturbed import default_layers, perturbed
from limner.pipelines.regions import apart, condition_group, is_group
from limner.types import Conditioning, Identity

if TYPE_CHECKING:
    from limner.pipelines.paint import Dials


class PortraitPipeline(EnrollingPipeline, StableDiffusionXLPipeline):  # type: ignore[misc]
    """Paints people. Subclasses name their components in `__init__` and build their `method` from them.

    The two CLIP text encoders of SDXL do not exist here; a LoRA's layers for them are skipped with a warning.
    """

    sampling: ClassVar[frozenset[str]] = frozenset(
        (
            "timesteps", "sigmas", "denoising_end", "eta", "guidance_rescale", "cross_attention_kwargs",
            "original_size", "crops_coords_top_left", "target_size", "negative_original_size",
            "negative_crops_coords_top_left", "negative_target_size",
        )
    )  # fmt: skip
    watermark: Any = None
    unet: Any
    _lora_loadable_modules = ["unet"]  # noqa: RUF012 (diffusers' way)

    @property
    def default_size(self) -> tuple[int, int]:
        """As in `EnrollingPipeline`: what the UNet was trained at."""
        places = self.unet.config.sample_size
        height, width = (places, places) if isinstance(places, int) else places
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def size_unit(self) -> int:
        return math.lcm(8, self.vae_scale_factor)

    def latents_shape(self, pictures: int, height: int, width: int) -> tuple[int, ...]:
        f = self.vae_scale_factor
        return pictures, self.unet.config.in_channels, height // f, width // f

    @property
    def default_pag(self) -> float:
        return float(self.config.get("default_pag", 0.0))

    @property
    def face_network(self) -> Any:
        """The face encoder that pictures can be compared with the person by, with gradients: aligned faces (B, 3, S, S)
        in [0, 1] → `FaceTokens`, whose class token is the `face` of a `Conditioning`; None where there is none."""
        return None

    @property
    def default_face_guidance(self) -> float:
        return float(self.config.get("default_face_guidance", 0.0))

    @property
    def default_face_detail(self) -> float:
        return 0.0 if self.detailer is None else float(self.detailer.config.strength)

    def arguments(self, dials: Dials) -> dict[str, Any]:
        names = ("guidance_scale", "guidance_rescale", "pag_scale", "face_guidance", "face_detail")
        return {name: getattr(dials, name) for name in names}

    @torch.no_grad()
    def condition(
        self,
        prompt: str | Sequence[str],
        identity: Identity | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        strength: float = 1.0,
    ) -> Conditioning:
        """What the denoiser is told for each prompt; see `Method.condition`. The identity may be a group of people
        (`limner.pipelines.regions.group`); `strength` then holds for each of them."""
        if identity is not None and is_group(identity):
            return condition_group(lambda one: self.condition(prompt, one, negative_prompt, strength), identity)
        return super().condition(prompt, identity, negative_prompt, strength)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        face: FaceInput | None = None,
        *,
        identity: Identity | None = None,
        conditioning: Conditioning | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        strength: float = 1.0,
        gaze: Gaze | str | None = None,
        pag_scale: float | None = None,
        face_guidance: float | None = None,
        face_detail: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **sampling: Any,
    ) -> StableDiffusionXLPipelineOutput | tuple[Any]:
        """Paints.

        Say what to paint with `prompt`, and whom with `face` or `identity` (neither: nobody in particular); or give a
        ready `conditioning` instead of all of them.

        Args:
            prompt: B sentences, or one.
            face: one picture of the person, or several of the same person.
            identity: of an enrolled person, or a group of them, instead of `face`.
            conditioning: what `condition` (or any method) made, instead of prompt, face, identity, negative_prompt and
                strength.
            negative_prompt: what not to paint; one for all, or one a prompt.
            strength: how much of the person goes in, from 0 to 1.
            gaze: where the eyes go, as `limner.pipelines.gaze.parse_gaze` reads it; needs the `controlnet` for it.
            pag_scale: weight of perturbed-attention guidance (`limner.pipelines.perturbed`); 0 is none, above that the
                UNet works half as much again. Default: what the model's own configuration recommends.
            face_guidance: how far the face is pulled towards the person (`limner.pipelines.face_guidance`); 0 is not at
                all. Default: what the model's own configuration recommends.
            face_detail: how much of every face is painted anew, larger, when the picture is done
                (`limner.pipelines.face_detail`), up to 1; 0 is nothing. Latents are given back without. Default: what
                the model's own configuration recommends, and nothing where the eyes have a place.
            height, width: in pixels, multiples of 8; default: what the UNet was trained at.
            num_inference_steps, guidance_scale: default: what the model's own configuration recommends.
            num_images_per_prompt: N; B·N pictures come out, those of one prompt side by side.
            generator: one for all pictures, or a list of B·N, which makes each picture independent of the others.
            latents: (B·N, C, H/8, W/8) starting noise instead of the generator's.
            output_type: `pil`, `np`, `pt` or `latent`.
            return_dict: an output object with `images`, or else a tuple.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in diffusers.
            **sampling: any other argument of `StableDiffusionXLPipeline.__call__` that concerns sampling:
                timesteps, sigmas, denoising_end, eta, guidance_rescale, cross_attention_kwargs, original_size, ….

        Raises:
            ConfigError: an argument is unknown, out of range, changes nothing, or contradicts another.
            PromptError: nothing to paint.
            FaceError: no face in the pictures.
            WeightsMismatch: an identity or a conditioning of another model.
        """
        # 1. Check what can be checked before any work is done
        height, width = height or self.default_size[0], width or self.default_size[1]
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        guidance = self.config.default_guidance if guidance_scale is None else guidance_scale
        pag = self.default_pag if pag_scale is None else pag_scale
        towards = self.default_face_guidance if face_guidance is None else face_guidance
        if towards and self.face_network is None:
            raise ConfigError(f"{type(self).__name__} has no face encoder to guide by; face_guidance must be 0.")
        detail = self.default_face_detail if face_detail is None else face_detail
        if not 0 <= detail <= 1:
            raise ConfigError(f"face_detail is {detail!r}; allowed: 0 (nothing) to 1 (all of a face anew).")
        self._check_source(prompt, face, identity, conditioning, negative_prompt, strength)
        demand_guidance(negative_prompt, guidance)
        self._check_size(height, width)
        self._check_sampling(steps, num_images_per_prompt, output_type, callback_on_step_end_tensor_inputs, sampling)

        # 2. Faces → identity
        if face is not None:
            identity = self.enroll(face)

        # 3. Identity and prompts → conditioning
        if conditioning is None:
            assert prompt is not None
            conditioning = self.condition(prompt, identity, negative_prompt, strength)
        if gaze is not None:
            place = gaze_image(parse_gaze(gaze) if isinstance(gaze, str) else gaze, height, width)
            conditioning = dataclasses.replace(conditioning, control_image=place)
        for part in (conditioning, *(c for _, c in conditioning.regions)):
            self._check_conditioning(part, guidance)
        if output_type == "latent" or (face_detail is None and conditioning.control_image is not None):
            detail = 0.0
        if detail:
            demand_plain(self, conditioning)
        self._send_away()
        pictures = conditioning.prompt_embeds.shape[0] * num_images_per_prompt
        self._check_noise(generator, latents, pictures, height, width)

        # 4. Denoise and decode, as diffusers does; several people in one picture are kept apart meanwhile
        f = self.vae_scale_factor
        with (
            steered(self.unet, self.controlnet, conditioning.control_image, pictures),
            apart(self.unet, conditioning, height // f, width // f) as told,
            perturbed(self.unet, pag, guidance, default_layers(self.unet)),
            face_guided(self, conditioning, towards, guidance, pictures),
        ):
            (images,) = super().__call__(
                prompt_embeds=told.prompt_embeds,
                pooled_prompt_embeds=told.pooled,
                negative_prompt_embeds=told.negative_prompt_embeds,
                negative_pooled_prompt_embeds=told.negative_pooled,
                ip_adapter_image_embeds=told.ip_adapter_image_embeds,
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=guidance,
                num_images_per_prompt=num_images_per_prompt,
                generator=generator,
                latents=latents,
                output_type="pt" if detail else output_type,
                return_dict=False,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=list(callback_on_step_end_tensor_inputs),
                **sampling,
            )

        # 5. Paint every face once more, larger
        if detail:
            images = with_face_detail(
                self,
                images,
                conditioning,
                detail,
                steps=steps,
                guidance_scale=guidance,
                guidance_rescale=sampling.get("guidance_rescale", 0.0),
                face_guidance=towards,
                generator=generator,
            )
            if output_type != "pt":
                images = images.permute(0, 2, 3, 1).float().cpu().numpy()
            if output_type == "pil":
                images = self.image_processor.numpy_to_pil(images)
        return StableDiffusionXLPipelineOutput(images=images) if return_dict else (images,)

    def encode_prompt(  # type: ignore[override]
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """SDXL's signature: a prompt (painting nobody in particular) or ready embeddings, one row per picture.

        Returns:
            prompt_embeds (B·N, T, C), negative_prompt_embeds, pooled (B·N, P), negative_pooled; the negatives are as
            they came where there is no guidance.
        """
        if prompt_embeds is None:
            made = self.condition(prompt or "", None, negative_prompt)
            prompt_embeds, pooled_prompt_embeds = made.prompt_embeds, made.pooled
            negative_prompt_embeds, negative_pooled_prompt_embeds = made.negative_prompt_embeds, made.negative_pooled

        def spread(rows: torch.Tensor | None) -> torch.Tensor | None:
            return self._spread(rows, num_images_per_prompt, device)

        positive, pooled = spread(prompt_embeds), spread(pooled_prompt_embeds)
        if not do_classifier_free_guidance:
            return positive, negative_prompt_embeds, pooled, negative_pooled_prompt_embeds
        return positive, spread(negative_prompt_embeds), pooled, spread(negative_pooled_prompt_embeds)

    def _check_conditioning(self, c: Conditioning, guidance: float) -> None:
        width = self.unet.config.cross_attention_dim
        size_ids = 6 * (self.unet.config.addition_time_embed_dim or 0)
        pooled_width = (self.unet.config.projection_class_embeddings_input_dim or size_ids) - size_ids
        if c.prompt_embeds.ndim != 3 or c.prompt_embeds.shape[-1] != width:
            raise WeightsMismatch(
                f"The UNet needs prompt_embeds of shape (B, T, {width}); got {tuple(c.prompt_embeds.shape)}."
            )
        if c.pooled is None or c.pooled.shape[-1] != pooled_width:
            got = None if c.pooled is None else tuple(c.pooled.shape)
            raise WeightsMismatch(f"The UNet needs pooled embeddings of shape (B, {pooled_width}); got {got}.")
        if guidance > 1 and (c.negative_prompt_embeds is None or c.negative_pooled is None):
            raise ConfigError(
                f"guidance_scale is {guidance:g}, but the conditioning has no unconditional branch.",
                "Give negative_prompt_embeds and negative_pooled, or set guidance_scale to 1.",
            )
        if c.control_image is not None and self.controlnet is None:
            raise ConfigError(
                f"A place for the eyes needs a ControlNet, and this {type(self).__name__} has none.",
                "Load one: attach(pipe, load_gaze(FOLDER, pipe.unet)), from limner.pipelines.gaze.",
            )
        if c.control_image is not None and c.regions:
            raise ConfigError("Several people have regions; a place for one pair of eyes cannot be given with them.")

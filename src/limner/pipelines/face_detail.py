"""Face detail: the face in a painted picture is enlarged, painted on from some noise, and laid back where it was.

Denoisers paint small faces badly: a face of a few latents has no room for eyes. So the head is cropped upright and
enlarged to the size that the model paints at, noise is added, and diffusers' own image-to-image pipeline, over the same
parts and under the same conditioning, removes it again. (People know it as ADetailer, or as a "face fix".) A model may
hold a `FaceDetailer`, a LoRA that its UNet has learnt such crops with, and be recommended to finish every picture so.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from limner.errors import ConfigError
from limner.faces import put_back
from limner.faces.align import head_matrix, scale_of, warp
from limner.pipelines.face_guidance import face_guided
from limner.pipelines.painted_faces import as_pixels, detector_for, painted_faces, people
from limner.types import Conditioning

if TYPE_CHECKING:
    from limner.pipelines.portrait import PortraitPipeline

Noise = torch.Generator | list[torch.Generator] | None

LEAST_ENLARGED = 1.1
"""Faces that would be enlarged less than this are large enough."""
FEATHER = 0.2
"""Width of the soft border in shares of the crop's side."""


def with_face_detail(
    pipe: PortraitPipeline,
    pictures: torch.Tensor,
    conditioning: Conditioning,
    strength: float,
    *,
    face_guidance: float = 0.0,
    generator: Noise = None,
    **dials: Any,
) -> torch.Tensor:
    """Finished pictures of which everybody's face has been painted once more; others, and the rest, stay as they are.

    Args:
        pictures: (B·N, 3, H, W) in [0, 1], those of one prompt side by side.
        conditioning: what they were painted under, of B prompts.
        strength: how much of a face is painted anew, over 0 to 1.
        generator: of the noise: one for all, or one for each picture.
        face_guidance: as in `PortraitPipeline`; on faces that are so much larger (`head_zoom`) it moves that much more.
        **dials: steps, guidance_scale and guidance_rescale, as in `paint_heads`.

    Returns:
        (B·N, 3, H, W) in [0, 1], on the same device, of the same type.
    """
    everybody = people(conditioning)
    per_prompt = len(pictures) // len(conditioning.prompt_embeds)
    before, side = as_pixels(pictures), min(pipe.default_size)
    pixels = before.copy()
    seen = painted_faces(detector_for(pipe.config.world), pictures, [box for box, _ in everybody])
    for person, (_, told) in enumerate(everybody):
        rows, matrices = [], []
        for found in seen:
            matrix = head_matrix(found.face.box, found.landmarks, side, head_zoom(pipe))
            if found.person == person and scale_of(matrix) >= LEAST_ENLARGED:
                rows.append(found.row)
                matrices.append(matrix)
        if not rows:
            continue
        heads = paint_heads(
            pipe,
            [warp(pixels[row], matrix, side, extend=True) for row, matrix in zip(rows, matrices, strict=True)],
            rows_of(told, [row // per_prompt for row in rows]),
            strength=strength,
            face_guidance=face_guidance * head_zoom(pipe),
            generator=[generator[row] for row in rows] if isinstance(generator, list) else generator,
            **dials,
        )
        for row, matrix, head in zip(rows, matrices, heads, strict=True):
            pixels[row] = put_back(pixels[row], head, matrix, feather=FEATHER)
    after, changed = (torch.from_numpy(x).permute(0, 3, 1, 2).to(pictures.device) for x in (pixels, pixels != before))
    return torch.where(changed, after.to(pictures.dtype) / 255, pictures)


def paint_heads(
    pipe: PortraitPipeline,
    heads: Sequence[np.ndarray],
    told: Conditioning,
    *,
    strength: float,
    steps: int,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    face_guidance: float = 0.0,
    generator: Noise = None,
) -> np.ndarray:
    """Crops of heads, painted on.

    Args:
        heads: N crops (S, S, 3) uint8 by the matrix of `head_matrix` with `head_zoom`.
        told: what each shows, N rows of one person.
        strength: how much is painted anew, over 0 to 1: of the steps that share is taken, one at least.
        steps, guidance_scale, guidance_rescale, face_guidance: as in `PortraitPipeline`.
        generator: of the noise: one for all, or N.

    Returns:
        (N, S, S, 3) uint8.

    Raises:
        ConfigError: the embeddings of `told` do not say everything (`demand_plain`).
    """
    import math

    from limner.pipelines.image_to_image import ImageToImage

    demand_plain(pipe, told)
    painter: Any = ImageToImage.over(pipe)
    with (
        pipe.detailer.merged(pipe.unet) if pipe.detailer is not None else contextlib.nullcontext(),
        face_guided(pipe, told, face_guidance, guidance_scale, len(heads)),
    ):
        output = painter(
            image=torch.from_numpy(np.stack(heads)).permute(0, 3, 1, 2) / 255,
            strength=strength,
            num_inference_steps=max(steps, math.ceil(1 / strength + 1e-6)),  # so that one is left
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            generator=generator,
            prompt_embeds=told.prompt_embeds,
            pooled_prompt_embeds=told.pooled,
            negative_prompt_embeds=told.negative_prompt_embeds,
            negative_pooled_prompt_embeds=told.negative_pooled,
            output_type="pt",
        )
    pipe.maybe_free_model_hooks()
    return as_pixels(output.images)


def head_zoom(pipe: PortraitPipeline) -> float:
    """How much larger than usual a head is in the crops that a pipeline paints on."""
    return 1.0 if pipe.detailer is None else float(pipe.detailer.config.zoom)


def rows_of(told: Conditioning, rows: list[int]) -> Conditioning:
    """These rows of a conditioning, without regions."""
    fields = ("prompt_embeds", "pooled", "negative_prompt_embeds", "negative_pooled", "face")
    some: dict[str, Any] = {n: None if getattr(told, n) is None else getattr(told, n)[rows] for n in fields}
    return dataclasses.replace(told, **some, regions=(), control_image=None)


def demand_plain(pipe: PortraitPipeline, conditioning: Conditioning) -> None:
    """Raises ConfigError where embeddings alone do not say who is painted: image-to-image is told nothing else, and a
    person who is also an adapter's tokens, changed weights or a photo would come out as somebody else."""
    from limner.methods.steering import SteeredConditioning

    beside = pipe.unet.config.in_channels != pipe.vae.config.latent_channels
    for part in (conditioning, *(c for _, c in conditioning.regions)):
        beside = beside or part.ip_adapter_image_embeds is not None
        if isinstance(part, SteeredConditioning):
            steering = part.steering
            beside = beside or steering.adapter_scale != 0 or bool(steering.change) or steering.photo is not None
    if beside:
        raise ConfigError(
            f"{pipe.method.name} tells the denoiser more of a person than a face that is painted again can be told.",
            "Paint without --rescue and with --face-detail 0.",
        )

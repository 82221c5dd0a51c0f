"""Small pictures of what is being painted."""

from __future__ import annotations

import io
from typing import Any

PREVIEW_EVERY = 0.25
"""Least seconds between two previews of a batch."""

_SIDE = 32


def preview_jpeg(pipe: Any, latents: Any) -> bytes | None:
    """A JPEG of the latents (C, h, w) of one picture while they are still noisy; None where they cannot be decoded.

    Latents are averaged to at most 32 × 32 places first, so that a preview costs little at any size.
    """
    import torch
    from torch.nn import functional

    z = latents.detach()[None]
    shrink = -(-max(z.shape[-2:]) // _SIDE)
    if shrink > 1:
        z = functional.avg_pool2d(z, shrink)
    with torch.no_grad():
        weights = next(pipe.vae.parameters())
        shift = pipe.vae.config.get("shift_factor") or 0.0
        z = z.to(weights.device, weights.dtype) / pipe.vae.config.scaling_factor + shift
        pixels = pipe.vae.decode(z, return_dict=False)[0].float()
    if not torch.isfinite(pixels).all():  # SDXL's own autoencoder overflows in half precision
        return None
    image = pipe.image_processor.postprocess(pixels, output_type="pil")[0]
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()

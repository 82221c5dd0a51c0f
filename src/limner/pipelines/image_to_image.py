"""diffusers' image-to-image pipeline over the parts of one of Limner's pipelines."""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

from limner.pipelines.portrait import PortraitPipeline


class ImageToImage(StableDiffusionXLImg2ImgPipeline):
    """Takes the embeddings of a `Conditioning`; has no text encoders."""

    unet: Any

    @classmethod
    def over(cls, pipe: PortraitPipeline) -> Self:
        """Shares every part with `pipe`, hooks of offloading included."""
        absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        made: Any = cls(vae=pipe.vae, unet=pipe.unet, scheduler=pipe.scheduler, add_watermarker=False, **absent)
        made.set_progress_bar_config(disable=True)
        return made

    def _get_add_time_ids(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """SDXL's size conditioning; zeros, which nobody reads, for a UNet without it (SD 2.1)."""
        if self.unet.config.addition_embed_type is None:
            return torch.zeros(1, 6), torch.zeros(1, 6)
        return super()._get_add_time_ids(*args, **kwargs)  # type: ignore[misc]

"""A whole FaceCLIP pipeline at tiny size with random weights: real classes, nothing mocked. A pytest plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limner.faces import DetectedFace, FaceDetector
from limner.types import Face

WORDS = "a the portrait photo of person man woman as wizard chef in on snow beach oil watercolor painting with hat"
CONTEXT = 24


FLUX_TRANSFORMER: dict[str, Any] = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 32, "pooled_projection_dim": 16, "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
FLUX_VAE: dict[str, Any] = {
    "block_out_channels": (16, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 8, "latent_channels": 4,
    "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1, "scaling_factor": 0.36,
}  # fmt: skip


def tiny_pipeline(vae: str = "patch", **config: Any) -> Any:
    """A `FaceCLIPPipeline` that paints noise in milliseconds; the same weights every time.

    Args:
        vae: `patch` (the mini autoencoder, 64 px) or `kl` (SDXL's class, 32 px, latents of half size).
        config: of the pipeline: default_steps, default_guidance, world.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from limner.diffusion.schedule import NoiseSchedule
    from limner.encoders.autoencoder import PatchAutoencoder
    from limner.encoders.config import BranchConfig, FaceCLIPConfig, FaceViTConfig, FuserConfig, TextTowerConfig
    from limner.encoders.faceclip import FaceCLIPEncoder
    from limner.encoders.tokenizer import build_word_tokenizer
    from limner.pipelines.faceclip import FaceCLIPPipeline

    tokenizer = build_word_tokenizer(WORDS.split(), context=CONTEXT)
    face = FaceViTConfig(patch_size=28, width=32, depth=2, heads=2, output=16)
    branches = tuple(
        BranchConfig(
            face,
            TextTowerConfig(
                width=w, depth=2, heads=2, context=CONTEXT, vocabulary=len(tokenizer), projection=w, activation=kind
            ),
            FuserConfig(depth=1, heads=2, feedforward=32, gain=0.5),
        )
        for w, kind in ((16, "quick_gelu"), (32, "gelu"))
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = FaceCLIPEncoder(FaceCLIPConfig(branches, ("face_clip_l", "face_clip_g"), True), tokenizer)
        unet = UNet2DConditionModel(
            sample_size=8 if vae == "patch" else 16,
            in_channels=16 if vae == "patch" else 4,
            out_channels=16 if vae == "patch" else 4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            cross_attention_dim=48,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
            norm_num_groups=8,
        )
        if vae == "patch":
            autoencoder: Any = PatchAutoencoder(block_out_channels=(3, 12, 16, 16), decoder_layers=1)
        else:
            autoencoder = AutoencoderKL(
                block_out_channels=(16, 16),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=8,
                scaling_factor=0.13025,
            )
    scheduler = DDIMScheduler.from_config(NoiseSchedule().scheduler_config())
    config = {"default_steps": 3, "default_guidance": 3.0, "world": "sitters"} | config
    pipe = FaceCLIPPipeline(
        vae=autoencoder.eval(), unet=unet.eval(), scheduler=scheduler, encoder=encoder.eval(), **config
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_flux(**config: Any) -> Any:
    """A `FaceT5FluxPipeline` that paints noise of 32 px in milliseconds; the same weights every time.

    Args:
        config: of the pipeline: default_steps, default_guidance, default_height, ….
    """
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    from limner.encoders.facet5 import FACET5_PRESETS, FaceT5Encoder
    from limner.encoders.tokenizer import build_word_tokenizer
    from limner.pipelines import flux
    from limner.pipelines.facet5 import FaceT5FluxPipeline

    tokenizer = build_word_tokenizer(WORDS.split(), context=CONTEXT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = FaceT5Encoder(FACET5_PRESETS["tiny"], tokenizer, tokenizer).eval()
        transformer: Any = FluxTransformer2DModel(**FLUX_TRANSFORMER)
        vae: Any = AutoencoderKL(**FLUX_VAE)
    facts = {"default_steps": 3, "default_guidance": 3.0, "default_height": 32, "default_width": 32, **config}
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**flux.SCHEDULER)
    pipe = FaceT5FluxPipeline(vae.eval(), transformer.eval(), scheduler, encoder, **facts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise_face(seed: int) -> Face:
    """An aligned picture of noise: an encoder takes it for a face, whoever it shows."""
    image = np.random.default_rng(seed).random((3, 448, 448), dtype=np.float32)
    return Face(image=image, box=(0.0, 0.0, 448.0, 448.0), score=1.0, matrix=np.eye(2, 3))


class Everywhere(FaceDetector):
    """Sees one face in the middle of each half of any picture: tiny models paint none.

    Args:
        apart: from its left eye to its right one, in shares of the picture's height.
    """

    name = "everywhere"

    def __init__(self, apart: float = 0.2) -> None:
        self.apart = apart

    def scan(self, image: np.ndarray) -> list[DetectedFace]:
        height, width = image.shape[:2]
        marks = np.array([[-0.1, -0.1], [0.1, -0.1], [0, 0], [-0.08, 0.1], [0.08, 0.1]]) * height * self.apart / 0.2
        places = [np.array([x * width, height / 2]) for x in (0.25, 0.75)]
        return [DetectedFace((p[0] - 4, p[1] - 4, p[0] + 4, p[1] + 4), 1.0, marks + p) for p in places]


@pytest.fixture(scope="session")
def tiny() -> Any:
    """A tiny pipeline, shared by tests that leave it as it is."""
    return tiny_pipeline()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder

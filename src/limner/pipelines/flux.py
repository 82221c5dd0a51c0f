"""What FLUX.1-dev's published configurations say of its transformer, its autoencoder and its noise schedule.

They are facts about the weights, kept here so that a full-size pipeline needs nothing but the weight files themselves.
"""

from __future__ import annotations

from typing import Any

TRANSFORMER: dict[str, Any] = {"guidance_embeds": True}
"""What sets it apart from the defaults of diffusers' FluxTransformer2DModel."""

VAE: dict[str, Any] = {
    "sample_size": 1024,
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
"""Of FlowMatchEulerDiscreteScheduler: how far the noise levels are shifted depends on the size of the picture."""

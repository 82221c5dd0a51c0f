"""The models that paint, by name. Importing this registers them; it loads and fetches nothing."""

from __future__ import annotations

from limner.encoders.published import (
    FACECLIP_ENCODER,
    FACECLIP_UNET,
    FACET5_ENCODER,
    FACET5_TRANSFORMER,
    MERGES,
    T5_TOKENIZER,
)
from limner.pipelines.few_step import RAIL
from limner.pipelines.fitting import Sizes
from limner.registry import ModelSpec, WeightFile, register_model, register_weights

DEFAULT = "faceclip-mini"

SDXL_VAE = register_weights(
    WeightFile(
        name="sdxl-vae",
        repo="stabilityai/stable-diffusion-xl-base-1.0",
        filename="vae/diffusion_pytorch_model.fp16.safetensors",
        license=RAIL,
        size=83_653_863 * 2,
        variable="LIMNER_SDXL_VAE",
    )
)
FLUX_LICENSE = "FLUX.1-dev Non-Commercial License"
FLUX_VAE = register_weights(
    WeightFile(
        name="flux-vae",
        repo="black-forest-labs/FLUX.1-dev",
        filename="vae/diffusion_pytorch_model.safetensors",
        license=FLUX_LICENSE,
        commercial=False,
        size=83_819_683 * 2,
        variable="LIMNER_FLUX_VAE",
    )
)

MINI = register_model(
    ModelSpec(
        name=DEFAULT,
        method="faceclip",
        base="mini",
        description="128 px, two CPU cores, seconds; ships with Limner. Knows only its synthetic people (sitters).",
        license="Apache-2.0",
        packaged="faceclip-mini",
        scores={"identity": 0.731, "found first of 100": 0.630, "attributes / real": 0.953, "text-alignment": 0.636},
        command="limner evaluate recipes/benchmark-faceclip.yaml",
    )
)
DREAM_MINI = register_model(
    ModelSpec(
        name="dreamidentity-mini",
        method="dreamidentity",
        base="mini",
        description="As faceclip-mini, by DreamIdentity: the person is two words, S*, of an unchanged mini base.",
        license="Apache-2.0",
        cloned="dreamidentity-mini",
        scores={"identity": 0.462, "found first of 100": 0.167, "attributes / real": 0.949, "text-alignment": 0.641},
        command="limner evaluate recipes/benchmark-short.yaml",
    )
)
IP_MINI = register_model(
    ModelSpec(
        name="ip-adapter-mini",
        method="ip-adapter",
        base="mini",
        description="As faceclip-mini, by IP-Adapter-FaceID over dreamidentity-mini's base; young, for comparison.",
        license="Apache-2.0",
        cloned="ip-adapter",
        scores={"identity": 0.499, "found first of 100": 0.183, "attributes / real": 0.906, "text-alignment": 0.637},
        command="limner evaluate recipes/benchmark-short.yaml",
    )
)
FULL = register_model(
    ModelSpec(
        name="faceclip-sdxl",
        method="faceclip",
        base="sdxl",
        description="1024 px, real photos, a GPU with 12 GB or more; the published FaceCLIP-SDXL.",
        license=f"{FACECLIP_UNET.license} (base: {RAIL})",
        files={"encoder": FACECLIP_ENCODER, "unet": FACECLIP_UNET, "vae": SDXL_VAE, "tokenizer": MERGES},
    )
)
FACET5_FLUX = register_model(
    ModelSpec(
        name="facet5-flux",
        method="facet5",
        base="flux",
        description="864 × 1152 px, real photos, a GPU with 26 GB or more; the published FaceT5-FLUX.",
        license=f"{FACET5_TRANSFORMER.license} (base: {FLUX_LICENSE})",
        files={
            "encoder": FACET5_ENCODER, "transformer": FACET5_TRANSFORMER, "vae": FLUX_VAE, "tokenizer": T5_TOKENIZER,
            "clip_tokenizer": MERGES,
        },
    )
)  # fmt: skip
DREAM_SD21, DREAM_SDXL = (
    register_model(
        ModelSpec(
            name=f"dreamidentity-{base}",
            method="dreamidentity",
            base=base,
            description=f"{pixels} px, real photos, a GPU; DreamIdentity over {over}, trained by you.",
            license=f"yours (base: {RAIL})",
            recipe=f"recipes/full/dreamidentity-{base}.yaml",
        )
    )
    for base, pixels, over in (("sd21", 512, "Stable Diffusion 2.1-base"), ("sdxl", 1024, "SDXL"))
)

SIZES: dict[str, Sizes] = {
    FULL.name: Sizes(1_573_000_000, 2_567_463_684, 83_653_863, 1024**2),
    DREAM_SD21.name: Sizes(910_000_000, 865_910_724, 83_653_863, 512**2),
    DREAM_SDXL.name: Sizes(1_390_000_000, 2_567_463_684, 83_653_863, 1024**2),
    FACET5_FLUX.name: Sizes(6_272_712_704, 11_901_408_320, 83_819_683, 1152 * 864),
}
"""Of models that are too large to be taken for granted."""

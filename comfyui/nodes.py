"""Nodes: load a model, enrol a person, condition ComfyUI's own sampler or paint with Limner's, save with provenance.

A node parses its inputs and calls `limner`; nothing is computed here. Nothing heavy is imported before a node runs.
ComfyUI's pictures are (B, H, W, 3) float in [0, 1]; its conditioning is a list of [tokens (B, T, C), facts].
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

log = logging.getLogger(__name__)

OWN = "model's own"
SCHEDULERS = (OWN, "ddim", "dpm++", "dpm++-karras", "euler", "euler-a", "heun", "unipc")
MODEL, IDENTITY, PORTRAITS = "LIMNER_MODEL", "LIMNER_IDENTITY", "LIMNER_PORTRAITS"
MAX_SIDE = 4096
PROMPT = ("STRING", {"multiline": True, "default": "a portrait of a wizard in the snow"})
NEGATIVE = ("STRING", {"multiline": True, "default": ""})
STRENGTH = (
    "FLOAT",
    {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": "How much of the person goes in."},
)


class LimnerLoad:
    """A registered model, or a folder that training or `save_pretrained` wrote."""

    CATEGORY = "Limner"
    DESCRIPTION = "Loads a model that paints people."
    FUNCTION = "load"
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("STRING", {"default": "faceclip-mini", "tooltip": "A name of `limner models`, or a folder."})
            },
            "optional": {
                "dtype": (["auto", "float32", "bfloat16", "float16"],),
                "memory": (["plain", "sliced", "offload", "sequential"],),
                "accept_license": ("BOOLEAN", {"default": False, "tooltip": "Of weights for non-commercial use."}),
            },
        }

    def load(
        self, model: str, dtype: str = "auto", memory: str = "plain", accept_license: bool = False
    ) -> tuple[Any, ...]:
        from limner.pipelines.loading import load_model

        loaded = load_model(model.strip(), dtype=dtype, memory=memory, accept_license=accept_license)
        if loaded.world:
            log.warning("%s knows only synthetic people (%s); a real photo lies outside.", loaded.name, loaded.world)
        return (loaded,)


class LimnerEnroll:
    """One or more photos of one person → their identity."""

    CATEGORY = "Limner"
    DESCRIPTION = (
        "Finds the person in the photos and keeps what the model needs of them: numbers, no picture (but of "
        "instruct-pix2pix the photo)."
    )
    FUNCTION = "enroll"
    RETURN_TYPES = (IDENTITY, "STRING")
    RETURN_NAMES = ("identity", "remarks")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        choice = "Which face of several: largest, center, only, a number from the left (from 0), X,Y, X0,Y0,X1,Y1."
        return {
            "required": {
                "model": (MODEL,),
                "photos": ("IMAGE", {"tooltip": "One photo, or a batch of photos of the same person."}),
                "choose": ("STRING", {"default": "largest", "tooltip": choice}),
            },
            "optional": {f"photos_{i}": ("IMAGE", {"tooltip": "More, of any size."}) for i in (2, 3, 4)},
        }

    def enroll(self, model: Any, photos: Any, choose: str = "largest", **more: Any) -> tuple[Any, ...]:
        from limner.faces import parse_choice
        from limner.pipelines.people import gather_references
        from limner.provenance import compact

        pictures = [picture for batch in (photos, *more.values()) if batch is not None for picture in to_arrays(batch)]
        references = gather_references(pictures, parse_choice(choose), embedder=model.pipe.embedder)
        for remark in references.remarks:
            log.warning(remark)
        return compact(model.pipe.method.enroll(references.faces)), "\n".join(references.remarks)


class LimnerCondition:
    """Identity and prompt → CONDITIONING for ComfyUI's KSampler, with the model's UNet loaded by ComfyUI."""

    CATEGORY = "Limner"
    DESCRIPTION = (
        "Positive and negative conditioning of an SDXL-shaped UNet that was tuned under this model's method. A model "
        "that says more than embeddings can paints with Limner: generate."
    )
    FUNCTION = "condition"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": (MODEL,),
                "prompt": PROMPT,
                "negative": NEGATIVE,
                "strength": STRENGTH,
                "width": ("INT", {"default": 1024, "min": 8, "max": MAX_SIDE, "step": 8}),
                "height": ("INT", {"default": 1024, "min": 8, "max": MAX_SIDE, "step": 8}),
            },
            "optional": {"identity": (IDENTITY,)},
        }

    def condition(
        self,
        model: Any,
        prompt: str,
        negative: str = "",
        strength: float = 1.0,
        width: int = 1024,
        height: int = 1024,
        identity: Any = None,
    ) -> tuple[Any, ...]:
        made = model.pipe.condition(prompt, identity, negative, strength).to("cpu")
        demand_plain(made, model.name)
        size = {"width": width, "height": height, "target_width": width, "target_height": height}
        facts = size | {"crop_w": 0, "crop_h": 0}
        return (
            [[made.prompt_embeds, {"pooled_output": made.pooled, **facts}]],
            [[made.negative_prompt_embeds, {"pooled_output": made.negative_pooled, **facts}]],
        )


class LimnerGenerate:
    """Paints with Limner's own pipeline: the same pictures as `limner generate` with the same dials."""

    CATEGORY = "Limner"
    DESCRIPTION = "Paints the person. Connect Limner Save, so that the files say how they were made."
    FUNCTION = "generate"
    RETURN_TYPES = ("IMAGE", PORTRAITS)
    RETURN_NAMES = ("images", "portraits")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 0, "min": 0, "max": MAX_SIDE, "step": 8, "tooltip": "Pixels; 0: the model's own."}
        return {
            "required": {
                "model": (MODEL,),
                "prompt": PROMPT,
                "negative": NEGATIVE,
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**53 - 1, "control_after_generate": True}),
                "number": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "Pictures; seeds count up."}),
                "strength": STRENGTH,
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the model's own."}),
                "guidance": (
                    "FLOAT",
                    {"default": -1.0, "min": -1.0, "max": 100.0, "step": 0.1, "tooltip": "Below 0: the model's own."},
                ),
                "width": ("INT", side),
                "height": ("INT", side),
                "scheduler": (list(SCHEDULERS),),
            },
            "optional": {"identity": (IDENTITY,), "watermark": ("BOOLEAN", {"default": False})},
        }

    def generate(
        self,
        model: Any,
        prompt: str,
        negative: str = "",
        seed: int = 0,
        number: int = 1,
        strength: float = 1.0,
        steps: int = 0,
        guidance: float = -1.0,
        width: int = 0,
        height: int = 0,
        scheduler: str = OWN,
        identity: Any = None,
        watermark: bool = False,
    ) -> tuple[Any, ...]:
        from limner.pipelines.paint import default_dials, paint

        dials = default_dials(
            model,
            strength=strength,
            watermark=watermark,
            steps=steps or None,
            guidance_scale=None if guidance < 0 else guidance,
            width=width or None,
            height=height or None,
            scheduler=None if scheduler == OWN else scheduler,
        )
        seeds = range(seed, seed + number)
        batches = -(-number // dials.batch)
        on_step = reporter(batches * dials.steps)
        portraits = list(paint(model, identity, [prompt], seeds, dials, negative_prompt=negative, on_step=on_step))
        return to_images([portrait.image for portrait in portraits]), (model, identity, portraits)


class LimnerSave:
    """PNGs that say how they were painted and that a machine painted them, in ComfyUI's output folder."""

    CATEGORY = "Limner"
    DESCRIPTION = "Saves portraits with their provenance, as `limner generate` does."
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        embed = "Whether the files hold the person's numbers. Whoever has them can paint that person."
        return {
            "required": {
                "portraits": (PORTRAITS,),
                "filename_prefix": ("STRING", {"default": "limner"}),
                "embed_identity": ("BOOLEAN", {"default": True, "tooltip": embed}),
            }
        }

    def save(self, portraits: Any, filename_prefix: str = "limner", embed_identity: bool = True) -> dict[str, Any]:
        import folder_paths

        from limner.provenance import write_portrait

        model, identity, painted = portraits
        if embed_identity and model.pipe.method.keeps_photo:
            log.warning("%s keeps the photo itself; it is left out of the files.", model.pipe.method.name)
            embed_identity = False
        first = painted[0].image
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), first.width, first.height
        )
        saved = []
        for number, portrait in enumerate(painted, start=counter):
            file = f"{name}_{number:05}_.png"
            write_portrait(portrait, Path(folder) / file, identity if embed_identity else None, model.license)
            saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
        return {"ui": {"images": saved}}


def demand_plain(conditioning: Any, model: str) -> None:
    """ConfigError unless embeddings, pooled ones too, are all that the denoiser is told: the rest would be lost."""
    from limner.errors import ConfigError
    from limner.types import Conditioning

    more = (conditioning.ip_adapter_image_embeds, conditioning.control_image, conditioning.regions or None)
    if type(conditioning) is not Conditioning or conditioning.pooled is None or any(m is not None for m in more):
        raise ConfigError(
            f"What {model} says of a person does not fit into ComfyUI's conditioning of SDXL.",
            "Paint with the node Limner: generate.",
        )


def to_arrays(images: Any) -> list[Any]:
    """(B, H, W, 3) float in [0, 1] → B arrays (H, W, 3) uint8."""
    return list((images.detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy())


def to_images(pictures: Sequence[Any]) -> Any:
    """PIL pictures of one size → (B, H, W, 3) float32 in [0, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.asarray(p.convert("RGB")) for p in pictures])).float() / 255


def reporter(total: int) -> Callable[[int, int], None]:
    """What `paint` calls after every step: moves ComfyUI's bar, and stops when its user pressed cancel."""
    import comfy.model_management
    import comfy.utils

    bar = comfy.utils.ProgressBar(total)

    def on_step(_step: int, _steps: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    return on_step


NODE_CLASS_MAPPINGS = {
    node.__name__: node for node in (LimnerLoad, LimnerEnroll, LimnerCondition, LimnerGenerate, LimnerSave)
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LimnerLoad": "Limner: load model",
    "LimnerEnroll": "Limner: enrol a person",
    "LimnerCondition": "Limner: condition",
    "LimnerGenerate": "Limner: generate",
    "LimnerSave": "Limner: save with provenance",
}

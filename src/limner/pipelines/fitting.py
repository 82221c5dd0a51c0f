"""Which memory mode suits a machine: what each mode needs of a model, and the first that fits.

Only modes that keep the weights as they are get chosen; rounded weights (fp8, int8, nf4) are the user's decision.

What a mode needs of a GPU (of main memory, on a CPU) at its worst moment:

| mode | while the person and the prompts are encoded | while painting |
| --- | --- | --- |
| plain | | encoder + UNet + autoencoder + whole pictures |
| freed | encoder + UNet + autoencoder + margin | UNet + autoencoder + whole pictures |
| sliced | as freed | UNet + autoencoder + tiles |
| fp8, int8, nf4 | as freed, the UNet at 1.05, 1.15 or 0.75 bytes a value | the same UNet + autoencoder + tiles |
| offload | | the largest of the three + tiles |
| sequential | encoder + margin | tiles |
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.pipelines.memory import MODES

WHOLE, TILES, MARGIN = 4.0e9, 1.5e9, 0.5e9
"""Bytes beside the weights, at two bytes a number: denoising and decoding one picture of 1024 px, the same decoded in
tiles, and what encoding takes. Estimates from SDXL's sizes, not measurements; WHOLE and TILES go with the pixels."""

ROUNDED = {"fp8": 1.05, "int8": 1.15, "nf4": 0.75}
"""Bytes per value of an SDXL-shaped UNet: all of it but its norms in 8 bits; the linear layers, which hold nine tenths
of it, in 8 or in 4 bits."""

PREFERENCE = {
    "cuda": ("plain", "freed", "offload", "sequential"),
    "mps": ("plain", "freed", "sliced"),
    "cpu": ("plain", "freed", "sliced"),
}
"""What is tried, by kind of device, from the quickest on; the last is taken where nothing fits. Slicing attention is of
no use on CUDA, whose attention is fused."""


@dataclass(frozen=True)
class Sizes:
    """What a model is made of.

    Attributes:
        encoder, unet, vae: values of each; `unet` is the denoiser, also where that is a transformer.
        pixels: of the pictures it paints when no size is asked for; or of all that are painted at once.
    """

    encoder: int
    unet: int
    vae: int
    pixels: int

    def for_pictures(self, count: int, size: tuple[int, int] | None = None) -> Sizes:
        """As they count where `count` pictures are painted at once; `size` is (width, height), None the model's own."""
        return dataclasses.replace(self, pixels=count * (size[0] * size[1] if size else self.pixels))


def needed(mode: str, sizes: Sizes, width: int) -> int:
    """Bytes that painting `sizes.pixels` takes of the device in a mode of `MODES`, with `width` bytes a value."""
    how = MODES[mode]
    encoder, vae = sizes.encoder * width, sizes.vae * width
    unet = sizes.unet * ROUNDED.get(how.weights, width)
    work = (TILES if how.vae_tiling else WHOLE) * (sizes.pixels / 1024**2) * (width / 2)
    margin = MARGIN * min(1.0, sizes.encoder / 1e9)
    if how.offload == "sequential":
        worst = max(encoder + margin, work)
    elif how.offload == "model":
        worst = max(encoder, unet, vae) + work
    elif how.free_encoders:
        worst = max(encoder + unet + vae + margin, unet + vae + work)
    else:
        worst = encoder + unet + vae + work
    return math.ceil(worst)


def choose_mode(kind: str, memory: int, sizes: Sizes, width: int, *, keep_encoder: bool = False) -> str:
    """The first mode of `PREFERENCE` that fits.

    Args:
        kind: `cuda`, `mps` or `cpu`.
        memory: free bytes of the GPU, or of main memory for the other two.
        width: bytes a value: 4 for float32, else 2.
        keep_encoder: leaves out modes that free the encoder, which is still needed.

    Returns:
        a key of `MODES`; where nothing fits, the one that needs least.
    """
    candidates = [m for m in PREFERENCE[kind] if not (keep_encoder and MODES[m].free_encoders)]
    return next((m for m in candidates if needed(m, sizes, width) <= memory), candidates[-1])


def fits(kind: str, memory: int, sizes: Sizes, width: int) -> str:
    """As `choose_mode`, but the empty string where nothing fits."""
    mode = choose_mode(kind, memory, sizes, width)
    return mode if needed(mode, sizes, width) <= memory else ""


def sizes_of(folder: Path) -> Sizes:
    """The sizes of a model in diffusers' layout, from the headers of its files; nothing is loaded.

    A folder that cannot be read has the sizes 0: loading it will say what is wrong.
    """
    from safetensors import SafetensorError, safe_open

    counts = {"encoder": 0, "unet": 0, "vae": 0}
    places, factor = 128, 8
    try:
        denoiser = "transformer" if (folder / "transformer").is_dir() else "unet"
        for part in counts:
            for file in sorted((folder / (denoiser if part == "unet" else part)).glob("*.safetensors")):
                with safe_open(str(file), framework="pt") as f:
                    counts[part] += sum(math.prod(f.get_slice(key).get_shape()) for key in f.keys())  # noqa: SIM118
        config = json.loads((folder / denoiser / "config.json").read_text(encoding="utf-8"))
        decoder = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        places = config.get("sample_size") or places
        factor = 2 ** (len(decoder["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return Sizes(0, 0, 0, 0)
    height, across = (places, places) if isinstance(places, int) else places
    return Sizes(**counts, pixels=height * across * factor**2)


def free_memory(kind: str, index: int = 0) -> int:
    """Bytes that a device has to give now: of the GPU, or of main memory; three quarters of it for MPS, which shares it
    with everything else. 0 where the system does not say."""
    import torch

    if kind == "cuda":
        return torch.cuda.mem_get_info(index)[0]
    free = main_memory()["available"]
    return free * 3 // 4 if kind == "mps" else free


def main_memory() -> dict[str, int]:
    """Bytes of main memory: total and available; 0 where the system does not say."""
    import os

    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return {"total": 0, "available": 0}
    try:
        lines = dict(_fields(Path("/proc/meminfo").read_text(encoding="ascii").splitlines()))
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    return {"total": total, "available": free}


def _fields(lines: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (line.partition(":") for line in lines)]

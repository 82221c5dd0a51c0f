"""Sample sheets: a few pictures in a grid, by which a person judges a training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image


def contact_sheet(pictures: Sequence[torch.Tensor], columns: int, scale: int = 1, gap: int = 2) -> Image.Image:
    """Pictures (3,H,W) in [0, 1] in rows of `columns`, each pixel enlarged `scale` times."""
    arrays = [(p.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy() for p in pictures]
    height, width = arrays[0].shape[0] * scale, arrays[0].shape[1] * scale
    rows = -(-len(arrays) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, array in enumerate(arrays):
        tile = Image.fromarray(array).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(tile, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet

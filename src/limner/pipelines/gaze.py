"""Where the eyes go on the canvas: a ControlNet on the gaze location (DreamIdentity, arXiv 2307.00300: scene switch).

The place becomes a picture of its own (`gaze_image`); the ControlNet (arXiv 2302.05543) reads it at every step and adds
to what the UNet thinks. The UNet itself, and whatever method conditions it, stay as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limner.config import Config
from limner.errors import ConfigError, CorruptData, WeightsMismatch, WeightsUnavailable
from limner.faces.align import template, usual_box

if TYPE_CHECKING:
    import torch

    from limner.pipelines.loading import Model

SIZE = 0.18
"""Distance of the eyes, as a share of the canvas' width, where a point alone is given."""
SPOT = 0.25
"""Standard deviation of an eye's spot in `gaze_image`, in distances of the eyes."""
RECIPE, CLONED = "recipes/mini-gaze.yaml", "mini-gaze"


@dataclass(frozen=True)
class Gaze(Config):
    """Where the eyes go; x in shares of the canvas' width, y of its height.

    Attributes:
        left, right: the eyes, the viewer's left and right.
    """

    left: tuple[float, float]
    right: tuple[float, float]

    def validate(self) -> None:
        for name in ("left", "right"):
            self.check(all(0 <= v <= 1 for v in getattr(self, name)), name, "two numbers from 0 to 1")
        self.check(math.dist(self.left, self.right) >= 0.01, "right", "at least 0.01 from left")

    @property
    def text(self) -> str:
        """As `parse_gaze` reads it."""
        return ",".join(f"{v:.6g}" for v in (*self.left, *self.right))

    @property
    def middle(self) -> tuple[float, float]:
        """Between the eyes."""
        return (self.left[0] + self.right[0]) / 2, (self.left[1] + self.right[1]) / 2


def parse_gaze(text: str) -> Gaze:
    """A place from numbers from 0 to 1, parted by commas.

    Args:
        text: `x,y` (between the eyes), `x,y,size` (and their distance in canvas widths), `x0,y0,x1,y1` (the eyes; the
            left one first), `box:x0,y0,x1,y1` (of the face, hairline to chin), or five landmarks as ten numbers.

    Raises:
        ConfigError: nothing of the kind, or an eye outside the canvas.
    """
    kind, _, numbers = text.rpartition(":")
    try:
        values = [float(v) for v in numbers.split(",")]
    except ValueError:
        values = []
    if kind == "box" and len(values) == 4:
        x0, y0, x1, y1 = values
        return Gaze(*((x0 + u * (x1 - x0), y0 + v * (y1 - y0)) for u, v in _eyes_in_box()))
    if not kind and len(values) in (2, 3):
        x, y, size = (*values, SIZE)[:3]
        return Gaze((x - size / 2, y), (x + size / 2, y))
    if not kind and len(values) in (4, 10):
        return Gaze((values[0], values[1]), (values[2], values[3]))
    raise ConfigError(
        f"The gaze location is {text!r}; x,y or x,y,size is expected (or two eyes, box:x0,y0,x1,y1, ten landmarks), "
        "in numbers from 0 to 1.",
        "For instance --gaze 0.5,0.4,0.2: in the middle, rather high, eyes a fifth of the width apart.",
    )


def gaze_image(gaze: Gaze, height: int, width: int) -> torch.Tensor:
    """The place as a ControlNet reads it: (1, 3, height, width) float32 in [0, 1]; see `gaze_images`."""
    import torch

    return gaze_images(torch.tensor([[gaze.left, gaze.right]], dtype=torch.float32), height, width)


def gaze_images(eyes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Places (B, 2, 2), left and right eye in shares of the canvas, as pictures (B, 3, height, width) in [0, 1].

    Red and green are spots on the left and the right eye, a quarter of their distance wide; blue is a wide one between
    them, from which places far away can tell where the face is and how large.
    """
    import torch

    points = eyes.float() * torch.tensor([width, height], dtype=torch.float32, device=eyes.device)
    apart = (points[:, 0] - points[:, 1]).norm(dim=-1).clamp(min=1)
    spots = torch.cat([points, points.mean(1, keepdim=True)], 1)
    wide = torch.stack([apart * SPOT, apart * SPOT, apart], 1)[..., None, None]
    y = torch.arange(height, device=eyes.device) + 0.5
    x = torch.arange(width, device=eyes.device) + 0.5
    squares = (x[None, None, None, :] - spots[..., 0, None, None]) ** 2
    squares = squares + (y[None, None, :, None] - spots[..., 1, None, None]) ** 2
    return torch.exp(-squares / (2 * wide**2))


def load_gaze(folder: str | Path, unet: Any, device: torch.device | None = None) -> Any:
    """The ControlNet in a folder (what the gaze task wrote) for a UNet of this shape, on its device or another.

    Raises:
        WeightsUnavailable: none there.
        CorruptData: damaged.
        WeightsMismatch: made for a UNet of another shape.
    """
    import torch

    from limner.pipelines.gaze_net import GazeNet

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise WeightsUnavailable(f"{folder} holds no ControlNet for gaze locations.", f"Train one: {RECIPE}.")
    try:
        net: Any = GazeNet.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as e:
        raise CorruptData(f"The ControlNet in {folder} cannot be loaded ({type(e).__name__}: {e}).") from e
    for name in ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type"):
        theirs, ours = net.config[name], unet.config[name]
        if (list(theirs) if isinstance(theirs, (list, tuple)) else theirs) != (
            list(ours) if isinstance(ours, (list, tuple)) else ours
        ):
            raise WeightsMismatch(
                f"The ControlNet in {folder} was made for another base: its {name} is {theirs}, the UNet's {ours}.",
                "Train one for this base: the gaze task.",
            )
    whole = unet.dtype.is_floating_point and unet.dtype.itemsize > 1  # a UNet of rounded weights computes in more
    dtype = unet.dtype if whole else torch.bfloat16
    return torch.nn.Module.to(net, device=device or unet.device, dtype=dtype).eval()


def attach(pipe: Any, net: Any) -> None:
    """Gives a pipeline its ControlNet; where its class knows of such a component, it is saved with the pipeline."""
    if "controlnet" in pipe._optional_components:
        pipe.register_modules(controlnet=net)
    else:
        pipe.controlnet = net


def add_gaze(model: Model, folder: Path | None = None) -> None:
    """Gives a loaded model the ControlNet that `--gaze` needs, and notes its sha256 for provenance.

    Args:
        folder: what the gaze task wrote; None keeps the model's own, or takes the one that a clone has for sitters.

    Raises:
        WeightsUnavailable: none.
        CorruptData, WeightsMismatch: see `load_gaze`; also for a model that has no UNet.
    """
    from limner.pipelines.folders import cloned_weights
    from limner.registry import file_sha256

    if model.pipe.denoiser_name != "unet":
        raise WeightsMismatch(
            f"{model.name} has no UNet for a ControlNet to steer, so the eyes cannot be given a place.",
            "Leave it out, or paint with faceclip-sdxl.",
        )
    if folder is None and model.pipe.controlnet is not None:
        return
    none = WeightsUnavailable(
        f"{model.name} has no ControlNet for gaze locations.",
        f"A clone has one for the mini models, benchmarks/weights/{CLONED}. For others train one ({RECIPE}), "
        "and give its weights with --gaze-weights FOLDER.",
    )
    shipped = folder is None
    folder = folder or cloned_weights(CLONED)
    if shipped and (model.world != "sitters" or not folder.is_dir()):
        raise none
    try:
        net = load_gaze(folder, model.pipe.unet, model.pipe._execution_device)
    except WeightsMismatch as e:
        if shipped:
            raise none from e
        raise
    attach(model.pipe, net)
    files = sorted(folder.glob("*.safetensors"))
    model.weights["controlnet"] = hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


@contextlib.contextmanager
def steered(unet: Any, net: Any, image: torch.Tensor | None, pictures: int) -> Iterator[None]:
    """While it is open, the UNet hears the ControlNet; afterwards it is as it was.

    Args:
        net: a `GazeNet` or ControlNetModel for this UNet, of any type of numbers; not used where there is no image.
        image: (B, 3, H, W) in [0, 1] for B prompts, or one for all; None changes nothing.
        pictures: that are painted at once, a multiple of B; with guidance the UNet sees each twice.
    """
    if image is None:
        yield
        return
    rows = image.repeat_interleave(pictures // len(image), 0)

    def listen(_unet: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        sample, t = given[:2]
        told = named["encoder_hidden_states"] if len(given) < 3 else given[2]
        dtype, added = net.dtype, named.get("added_cond_kwargs") or {}
        place = rows.to(sample.device, dtype).repeat(len(sample) // pictures, 1, 1, 1)
        down, middle = net(
            sample.to(dtype),
            t,
            told.to(dtype),
            controlnet_cond=place,
            added_cond_kwargs={k: v.to(dtype) for k, v in added.items()},
            return_dict=False,
        )
        said = {
            "down_block_additional_residuals": [d.to(sample.dtype) for d in down],
            "mid_block_additional_residual": middle.to(sample.dtype),
        }
        return given, {**named, **said}

    handle = unet.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def stages(factor: int, channels: Sequence[int] = (16, 32, 96, 256)) -> tuple[int, ...]:
    """Channels of the ControlNet's picture encoder for latents of `factor` pixels a place (a power of two)."""
    return tuple(channels[min(i, len(channels) - 1)] for i in range(int(math.log2(factor)) + 1))


def _eyes_in_box() -> list[tuple[float, float]]:
    """Left and right eye of a usual face, in shares of its box."""
    x0, y0, x1, y1 = usual_box(112)
    eyes = (np.asarray(template(112))[:2] - [x0, y0]) / [x1 - x0, y1 - y0]
    return [(float(x), float(y)) for x, y in eyes]

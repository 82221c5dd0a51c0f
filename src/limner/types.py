"""The words everyone in Limner speaks: Face, Identity, Conditioning, Portrait.

Pictures are RGB throughout. Arrays of pixels are (H, W, 3) uint8; model inputs are (3, H, W) float32 in [0, 1].
Coordinates are pixels with the origin at the top-left corner of the top-left pixel, x to the right, y down.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limner.errors import CorruptData, StorageError, WeightsMismatch

if TYPE_CHECKING:
    import torch
    from PIL import Image

LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
"""Order of the five landmarks. Left and right are the *viewer's*, as in the ArcFace template."""


@dataclass(frozen=True)
class Pose:
    """Head pose in degrees: yaw > 0 turns towards the viewer's right, pitch > 0 looks up, roll > 0 is clockwise."""

    yaw: float
    pitch: float
    roll: float


@dataclass(frozen=True)
class Quality:
    """How much of a person a face picture can tell.

    Attributes:
        size: width of the face box in source pixels.
        sharpness: 0 (blurred) to 1 (sharp).
        score: overall 0 to 1.
        warnings: sentences that say what is wrong and what to do.
    """

    size: float
    sharpness: float
    score: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Face:
    """One aligned face.

    Attributes:
        image: (3, 448, 448) float32 in [0, 1], RGB, aligned to the ArcFace template at 448.
        box: (x0, y0, x1, y1) in source pixels.
        score: detector confidence in [0, 1].
        matrix: (2, 3) float64 similarity, source pixels → aligned pixels (its inverse puts a face back).
        landmarks: (5, 2) float64 in source pixels in the order of `LANDMARKS`, or None for box-only detectors.
        pose, quality: estimates; None where they could not be made.
        source: where the picture came from (a path), for messages only.
        photo: (H, W, 3) uint8, the whole picture that the face was found in, for methods that edit it; None where it is
            not at hand.
    """

    image: np.ndarray
    box: tuple[float, float, float, float]
    score: float
    matrix: np.ndarray
    landmarks: np.ndarray | None = None
    pose: Pose | None = None
    quality: Quality | None = None
    source: str = ""
    photo: np.ndarray | None = None


@dataclass(frozen=True)
class Identity:
    """What a method keeps of a person: enrol once, paint often. Holds no picture, except where the method
    keeps the photo itself (`Method.keeps_photo`).

    Attributes:
        tensors: named tensors, meaning defined by the method.
        method: name of the method that made it (`faceclip`, `dreamidentity`, …).
        version: version of that method's tensors; loading into another version is an error.
        model: digest or name of the weights that made it.
        info: small JSON-able facts (how many references, which were rejected, …).
    """

    tensors: dict[str, torch.Tensor]
    method: str
    version: int
    model: str
    info: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file with the facts in its metadata; atomic.

        Raises:
            StorageError: the file cannot be written.
        """
        from safetensors.torch import save

        meta = {k: getattr(self, k) for k in ("method", "version", "model", "info")}
        data = save({k: v.contiguous().cpu() for k, v in self.tensors.items()}, {"limner.identity": json.dumps(meta)})
        write_atomic(path, data)

    @classmethod
    def load(cls, path: str | Path) -> Identity:
        """Reads an identity.

        Raises:
            CorruptData: absent, damaged, or not an identity.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as f:
                meta = json.loads((f.metadata() or {})["limner.identity"])
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
            return cls(tensors=tensors, **meta)
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as e:
            raise CorruptData(
                f"{path} is not an identity that Limner can read ({e}).", "Make one with `limner enroll`."
            ) from e

    def demand(self, method: str, version: int) -> None:
        """Raises WeightsMismatch unless this identity was made by `method` at `version`."""
        if (self.method, self.version) != (method, version):
            raise WeightsMismatch(
                f"This identity was enrolled by {self.method} v{self.version}; {method} v{version} is needed.",
                "Enrol the face again with the method that is to paint it.",
            )

    def digest(self) -> str:
        """sha256 (hex) over names, dtypes, shapes and values; what provenance records."""
        h = hashlib.sha256(f"{self.method}/{self.version}/{self.model}".encode())
        for name in sorted(self.tensors):
            value = self.tensors[name].detach().cpu()
            h.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            h.update(value.float().contiguous().numpy().tobytes())
        return h.hexdigest()


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told. B prompts, T tokens, C channels, P pooled channels.

    Attributes:
        prompt_embeds: (B, T, C).
        pooled: (B, P), or None for bases without pooled conditioning (SD 2.1).
        negative_prompt_embeds, negative_pooled: the unconditional branch, same shapes.
        ip_adapter_image_embeds: image tokens for diffusers' IP-Adapter machinery: for each adapter a row without and
            one with the person, the same for all B prompts.
        control_image: (B, 3, H, W) in [0, 1] for a ControlNet.
        regions: (box, conditioning) of everybody who has a place of their own: inside the box (x0, y0, x1, y1; shares
            of the picture, 0 to 1) that conditioning holds instead of this one. Later ones stand in front.
        face: (B, D) how the person looks to the method's own face encoder, for face guidance; its length, 0 to 1, is
            how much of the person goes in. None: nobody, or not known.
    """

    prompt_embeds: torch.Tensor
    pooled: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    negative_pooled: torch.Tensor | None = None
    ip_adapter_image_embeds: list[torch.Tensor] | None = None
    control_image: torch.Tensor | None = None
    regions: tuple[tuple[tuple[float, float, float, float], Conditioning], ...] = ()
    face: torch.Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> Conditioning:
        """Every tensor moved as `Tensor.to` would."""

        def move(value: Any) -> Any:
            if isinstance(value, list):
                return [v.to(*args, **kwargs) for v in value]
            if isinstance(value, tuple):
                return tuple((box, conditioning.to(*args, **kwargs)) for box, conditioning in value)
            return value if value is None else value.to(*args, **kwargs)

        return dataclasses.replace(self, **{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})


@dataclass(frozen=True)
class Portrait:
    """One painted picture and everything needed to paint it again.

    Attributes:
        image: PIL RGB picture.
        seed: of the noise generator.
        prompt, negative_prompt: as given.
        model: registry name; `weights` maps component names to sha256.
        identity: `Identity.digest()`.
        settings: every dial (steps, guidance_scale, strength, size, scheduler, method, …).
        scores: what a ranker said; never the evaluation scorer.
        timings: seconds by stage.
    """

    image: Image.Image
    seed: int
    prompt: str
    model: str
    negative_prompt: str = ""
    weights: dict[str, str] = field(default_factory=dict)
    identity: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)


def write_atomic(path: str | Path, data: bytes) -> None:
    """Writes `data` so that `path` holds either its old content or all of the new, even when killed; makes its folder.

    Raises:
        StorageError: no space, no permission.
    """
    import os
    import tempfile

    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
            temporary = Path(f.name)
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as e:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"Cannot write {path}: {e.strerror or e}.", "Free some space or choose another folder."
        ) from e


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Recognisers over ONNX Runtime: an aligned face → a unit vector; one person has a high cosine with themselves.

What a file wants to see stands beside the file (`Preprocessing`), and what does not fit it is refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from limner.config import Config
from limner.errors import ConfigError, WeightsMismatch, WeightsUnavailable
from limner.registry import WeightFile, register_weights
from limner.types import Face


@dataclass(frozen=True)
class Preprocessing(Config):
    """How a crop becomes a network's input: (pixel in [0, 1] - mean) / std per channel, channels first.

    Attributes:
        size: side of the ArcFace crop in pixels.
        color: order of the channels, `rgb` or `bgr`; mean and std are in that order.
        mean, std: per channel, of pixels in [0, 1].
    """

    size: int = 112
    color: str = "rgb"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def validate(self) -> None:
        self.check(16 <= self.size <= 448, "size", "16 to 448")
        self.check(self.color in ("rgb", "bgr"), "color", "rgb, bgr")
        self.check(all(s > 0 for s in self.std), "std", "positive numbers")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(3, 448, 448) float in [0, 1] as in `Face.image` → (1, 3, size, size) float32."""
        import cv2

        pixels = cv2.resize(image.transpose(1, 2, 0), (self.size, self.size), interpolation=cv2.INTER_AREA)
        if self.color == "bgr":
            pixels = pixels[..., ::-1]
        normal = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1)[None], dtype=np.float32)


@dataclass(frozen=True)
class EmbedderSpec:
    """A recogniser: its file, what it wants to see, and what comes out.

    Attributes:
        weights: the file, with its licence and source.
        preprocessing: what it was trained on.
        dim: length of its embedding.
        same_person: cosine from which two pictures are taken to show one person.
        evidence: where these numbers come from.
    """

    weights: WeightFile
    preprocessing: Preprocessing
    dim: int
    same_person: float
    evidence: str


_IMAGENET: Final = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_BYTES: Final = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))

EMBEDDERS: Final[dict[str, EmbedderSpec]] = {
    "mobilefacenet": EmbedderSpec(
        WeightFile(
            name="mobilefacenet",
            repo="",
            filename="MobileFaceNet.onnx",
            license="unverified",
            commercial=False,
            size=3_998_070,
            sha256="b7120c095d60094f28a4a54ba6a8bf51b297a6273fb40ef6350dfec1f63d9507",
            variable="LIMNER_MOBILEFACENET",
        ),
        _IMAGENET,
        dim=128,
        same_person=0.3,
        evidence=(
            "Chen et al., MobileFaceNets, CCBR 2018. Width, input and normalisation are those of PaddleX's model of "
            "that name; where this ONNX file comes from could not be verified, so its licence is not known either. "
            "Measured on seven photos: ImageNet normalisation beats (x - 0.5) / 0.5; different people reach a cosine "
            "of 0.29."
        ),
    ),
    "sface": EmbedderSpec(
        WeightFile(
            name="sface",
            repo="opencv/face_recognition_sface",
            filename="face_recognition_sface_2021dec.onnx",
            license="Apache-2.0",
            size=38_696_353,
            sha256="0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
            variable="LIMNER_SFACE",
        ),
        _BYTES,
        dim=128,
        same_person=0.363,
        evidence=(
            "Zhong et al., SFace, TIP 2021. Input and threshold as in OpenCV's FaceRecognizerSF (RGB in 0 to 255) and "
            "the model zoo's example; not run by this project's tests."
        ),
    ),
    "auraface": EmbedderSpec(
        WeightFile(
            name="auraface",
            repo="fal/AuraFace-v1",
            filename="glintr100.onnx",
            license="Apache-2.0",
            size=260_700_000,
            sha256="a7933ea5330113b01c9b60351d8f4c33003f145d8470ac5f0e52ee2effe25c60",
            variable="LIMNER_AURAFACE",
        ),
        Preprocessing(),
        dim=512,
        same_person=0.3,
        evidence=(
            "Deng et al., ArcFace, CVPR 2019; ResNet-100 retrained by fal on data that allow commercial use. Input as "
            "in InsightFace's ArcFaceONNX; the threshold is a guess; not run by this project's tests."
        ),
    ),
}
"""Recognisers by name. Another ArcFace-type file is an `EmbedderSpec` of one's own, given to `OnnxEmbedder.load`."""

for _spec in EMBEDDERS.values():
    register_weights(_spec.weights)


class FaceEmbedder(ABC):
    """Turns an aligned face into a unit vector.

    Attributes:
        name: of the recogniser.
        license: of its weights; `commercial` says whether they may be used commercially.
        dim: length of the vector.
        same_person: cosine from which two pictures are taken to show one person.
    """

    name: str
    license: str
    commercial: bool
    dim: int
    same_person: float

    @abstractmethod
    def embed(self, face: Face) -> np.ndarray:
        """(D,) float32 of length 1. May be called from several threads."""


class OnnxEmbedder(FaceEmbedder):
    """A recogniser in an ONNX file, on the CPU.

    Args:
        spec: what the file is.
        path: the file, verified (see `load`).

    Raises:
        WeightsMismatch: no ONNX file, or its input and output are not what the spec says.
    """

    def __init__(self, spec: EmbedderSpec, path: Path) -> None:
        import onnxruntime

        self.spec = spec
        self.name, self.license, self.commercial = spec.weights.name, spec.weights.license, spec.weights.commercial
        self.dim, self.same_person = spec.dim, spec.same_person
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime's errors have no common base
            raise WeightsMismatch(f"{path} cannot be loaded as an ONNX file ({type(e).__name__}).") from e
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        size = spec.preprocessing.size
        fits = len(inputs) == len(outputs) == 1 and _fits(inputs[0].shape, (1, 3, size, size))
        if not (fits and _fits(outputs[0].shape, (1, spec.dim))):
            raise WeightsMismatch(
                f"{self.name} takes one input (1, 3, {size}, {size}) and gives one output (1, {spec.dim}); {path} has "
                f"{[i.shape for i in inputs]} and {[o.shape for o in outputs]}."
            )
        self._input = inputs[0].name

    @classmethod
    def load(
        cls, spec: str | EmbedderSpec, weights: str | Path | None = None, *, accept_license: bool = False
    ) -> OnnxEmbedder:
        """By name (see `EMBEDDERS`) or spec; weights from `weights`, the spec's variable, the cache, or a download.

        Raises:
            ConfigError: unknown name.
            WeightsUnavailable, WeightsMismatch, LicenseNotAccepted: from `WeightFile.resolve`.
        """
        import os

        if isinstance(spec, str):
            if spec not in EMBEDDERS:
                raise ConfigError(f"Unknown recogniser {spec!r}; allowed: {', '.join(EMBEDDERS)}.")
            spec = EMBEDDERS[spec]
        file = spec.weights
        if not (file.repo or weights or os.environ.get(file.variable)):
            raise WeightsUnavailable(
                f"{file.name} cannot be downloaded: no public source of it is known.",
                f"Set {file.variable} to the path of {file.filename}.",
            )
        return cls(spec, file.resolve(weights, accept_license=accept_license))

    def embed(self, face: Face) -> np.ndarray:
        """See `FaceEmbedder.embed`."""
        (vector,) = self._session.run(None, {self._input: self.spec.preprocessing(face.image)})
        return (vector[0] / max(float(np.linalg.norm(vector[0])), 1e-12)).astype(np.float32)


def _fits(shape: list[object], wanted: tuple[int, ...]) -> bool:
    """Whether a shape of an ONNX file, in which names and None stand for any number, allows `wanted`."""
    return len(shape) == len(wanted) and all(s == w for s, w in zip(shape, wanted, strict=True) if isinstance(s, int))

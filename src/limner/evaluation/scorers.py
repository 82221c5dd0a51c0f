"""The judges: recognisers, a CLIP and an attribute reader, none of which conditioned or selected what they judge."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from limner.encoders.parts import load_text
from limner.encoders.scorer import load_reader, load_recogniser
from limner.errors import LicenseNotAccepted, WeightsUnavailable
from limner.evaluation.recipe import SUBJECT, ScorerSpec
from limner.faces import EMBEDDERS, FaceFinder, OnnxEmbedder
from limner.registry import file_sha256
from limner.types import Face

BATCH = 32
SOMEBODY = "a person"
"""What the text says in the place of S* when a CLIP reads it."""


@dataclass(frozen=True)
class About:
    """What a report says of a judge.

    Attributes:
        kind: recogniser, clip, attributes.
        name: in tables.
        source: folder or registered name.
        sha256: of its weights.
        license: of its weights.
        files: sha256 of each file of its weights; empty for a CLIP of the hub, which is named by its revision.
    """

    kind: str
    name: str
    source: str
    sha256: str
    license: str = "Apache-2.0"
    files: tuple[str, ...] = ()


class Recogniser(ABC):
    """Aligned faces → unit vectors; one person has a high cosine with themselves."""

    about: About

    @abstractmethod
    def embed(self, faces: Sequence[Face]) -> np.ndarray:
        """(N, D) float32, rows of unit length."""


class TextAndImage(ABC):
    """Sentences and pictures → unit vectors of one space."""

    about: About

    @abstractmethod
    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """(N, D) float32, rows of unit length."""

    @abstractmethod
    def pictures(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N, D) float32, rows of unit length; pictures are (H, W, 3) uint8."""


@dataclass(frozen=True)
class Read:
    """What a reader says of N pictures.

    Attributes:
        words: for every picture, attribute → word.
        numbers: (N, 8) float32, `limner.encoders.scorer.NUMBERS`.
        features: (N, F) float32.
    """

    words: list[dict[str, str]]
    numbers: np.ndarray
    features: np.ndarray


class AttributeReader(ABC):
    """Pictures → what they show."""

    about: About

    @abstractmethod
    def read(self, images: Sequence[np.ndarray]) -> Read:
        """What (H, W, 3) uint8 pictures show."""


@dataclass(frozen=True)
class Judges:
    """Everybody who judges.

    Attributes:
        recognisers: at least one; the first is the main one.
        clip: text against picture.
        reader: of attributes, or None.
        finder: finds the faces.
        left_out: optional judges that are not here, and why.
        features: `attributes` or `clip`: whose features FID, KID and diversity compare.
        detector: name of what finds the faces.
    """

    recognisers: tuple[Recogniser, ...]
    clip: TextAndImage
    reader: AttributeReader | None
    finder: FaceFinder
    left_out: tuple[str, ...] = ()
    features: str = "clip"
    detector: str = "auto"

    @property
    def abouts(self) -> list[About]:
        """What is to be said of them."""
        return [r.about for r in self.recognisers] + [self.clip.about] + ([self.reader.about] if self.reader else [])


def load_judges(spec: ScorerSpec, device: torch.device, accept_license: bool = False) -> Judges:
    """The judges of a recipe.

    Raises:
        WeightsUnavailable: a judge that is not optional is not here; says how to provide it.
        WeightsMismatch, CorruptData, LicenseNotAccepted: of their weights.
        ConfigError: an unknown detector.
    """
    recognisers = [_recogniser(name, device, accept_license) for name in spec.recognisers]
    left_out = []
    for name in spec.optional:
        try:
            recognisers.append(_recogniser(name, device, accept_license))
        except (WeightsUnavailable, LicenseNotAccepted) as e:
            left_out.append(f"{name}: {e}")
    clip = MiniClip(Path(spec.clip), device) if Path(spec.clip).is_dir() else HubClip(spec.clip, device)
    reader = NetworkReader(Path(spec.attributes), device) if spec.attributes else None
    finder = FaceFinder(spec.detector, accept_license=accept_license)
    found_by = finder.detector.name  # what `auto` stands for here
    return Judges(tuple(recognisers), clip, reader, finder, tuple(left_out), spec.features, found_by)


class ConvRecogniser(Recogniser):
    """The convolutional recogniser in a folder that the recogniser task wrote.

    Args:
        folder: with recogniser.safetensors.
        device: where it computes.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.network, self.device = load_recogniser(folder).to(device), device
        self.about = _about("recogniser", folder)

    @torch.inference_mode()
    def embed(self, faces: Sequence[Face]) -> np.ndarray:
        """See `Recogniser.embed`."""
        import cv2

        size = self.network.config.image_size
        crops = [cv2.resize(f.image.transpose(1, 2, 0), (size, size), interpolation=cv2.INTER_AREA) for f in faces]
        return _batched(_tensor(crops), lambda x: self.network(x.to(self.device)).class_token)


class OnnxRecogniser(Recogniser):
    """A recogniser of `limner.faces.EMBEDDERS`, trained on real people."""

    def __init__(self, embedder: OnnxEmbedder) -> None:
        self.embedder = embedder
        digest = embedder.spec.weights.sha256
        self.about = About("recogniser", embedder.name, embedder.name, digest, embedder.license, (digest,))

    def embed(self, faces: Sequence[Face]) -> np.ndarray:
        """See `Recogniser.embed`."""
        found = [self.embedder.embed(face) for face in faces]
        return np.stack(found) if found else np.zeros((0, self.embedder.dim), np.float32)


class MiniClip(TextAndImage):
    """The CLIP in a folder that the clip task wrote.

    Args:
        folder: with text.safetensors, tokenizer/ and image/.
        device: where it computes.

    Raises:
        WeightsUnavailable, WeightsMismatch, CorruptData: not there, or damaged.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import CLIPVisionModelWithProjection

        self.text, self.tokenizer = load_text(folder)
        self.text.to(device)
        if not (folder / "image" / "config.json").is_file():
            raise WeightsUnavailable(f"{folder / 'image'} does not exist.", "Train it: recipes/scorer-clip.yaml.")
        loaded: Any = CLIPVisionModelWithProjection.from_pretrained(folder / "image", local_files_only=True)
        self.image: Any = loaded.float().eval().to(device)
        self.device, self.about = device, _about("clip", folder)

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """See `TextAndImage.texts`."""
        from limner.training.words import caption_ids

        ids = caption_ids(
            self.tokenizer, [p.replace(SUBJECT, SOMEBODY) for p in prompts], self.text.text_config.context
        )
        return _batched(torch.from_numpy(ids), lambda x: self.text(x.to(self.device)).feature)

    @torch.inference_mode()
    def pictures(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """See `TextAndImage.pictures`."""
        pixels = _resized(images, self.image.config.image_size) * 2 - 1
        return _batched(pixels, lambda x: self.image(pixel_values=x.to(self.device)).image_embeds)


class HubClip(TextAndImage):
    """A CLIP of the Hugging Face hub, in transformers' form (Radford et al., arXiv 2103.00020).

    Args:
        name: `openai/clip-vit-large-patch14`, or another of that kind; from the local cache if it is there.
        device: where it computes.

    Raises:
        WeightsUnavailable: neither cached nor reachable.
    """

    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        if name.count("/") != 1 or name.startswith((".", "/")):
            raise WeightsUnavailable(
                f"scorers.clip is {name!r}, which is no folder here.",
                "Train one (recipes/scorer-clip.yaml), or name one of the hub: openai/clip-vit-large-patch14.",
            )
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        try:
            loaded: Any = CLIPModel.from_pretrained(name, local_files_only=offline)
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(name, local_files_only=offline)
        except (OSError, ValueError) as e:
            raise WeightsUnavailable(
                f"The CLIP {name} is neither in the local cache nor reachable ({type(e).__name__}).",
                f"On a machine with a network: hf download {name}. Then copy its cache (HF_HOME), or give a folder.",
            ) from e
        self.model: Any = loaded.eval().to(device)
        digest = str(getattr(loaded.config, "_commit_hash", "") or "")
        self.device, self.about = device, About("clip", name.split("/")[1], name, digest, "see its model card")

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """See `TextAndImage.texts`."""
        said = [p.replace(SUBJECT, SOMEBODY) for p in prompts]
        ids = self.tokenizer(said, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return _batched(ids, lambda x: _pooled(self.model.get_text_features(input_ids=x.to(self.device))))

    @torch.inference_mode()
    def pictures(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """See `TextAndImage.pictures`."""
        mean, std = (torch.tensor(v)[None, :, None, None] for v in (self.mean, self.std))
        pixels = (_resized(images, self.model.config.vision_config.image_size) - mean) / std
        return _batched(pixels, lambda x: _pooled(self.model.get_image_features(pixel_values=x.to(self.device))))


class NetworkReader(AttributeReader):
    """The reader in a folder that the attributes task wrote.

    Args:
        folder: with reader.safetensors.
        device: where it computes.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.network, self.device = load_reader(folder).to(device), device
        self.about = _about("attributes", folder)

    @torch.inference_mode()
    def read(self, images: Sequence[np.ndarray]) -> Read:
        """See `AttributeReader.read`."""
        config = self.network.config
        places, numbers, features = [], [], []
        for part in _resized(images, config.image_size).split(BATCH):
            logits, counted, seen = self.network(part.to(self.device))
            places.append(torch.stack([one.argmax(1) for one in logits], 1).cpu().numpy())
            numbers.append(counted.cpu().numpy())
            features.append(seen.cpu().numpy())
        rows = np.concatenate(places)
        words = [{name: config.words[k][row[k]] for k, name in enumerate(config.attributes)} for row in rows.tolist()]
        return Read(words, np.concatenate(numbers), np.concatenate(features))


def _recogniser(name: str, device: torch.device, accept_license: bool) -> Recogniser:
    if name in EMBEDDERS:
        return OnnxRecogniser(OnnxEmbedder.load(name, accept_license=accept_license))
    return ConvRecogniser(Path(name), device)


def _about(kind: str, folder: Path) -> About:
    """A folder `…/NAME/weights` or `…/NAME` is called NAME."""
    files = tuple(file_sha256(p) for p in sorted(folder.rglob("*.safetensors")) if p.is_file())
    digest = hashlib.sha256("".join(files).encode()).hexdigest()
    resolved = folder.resolve()
    name = resolved.parent.name if resolved.name == "weights" else resolved.name
    return About(kind, name, str(folder), digest, files=files)


def _pooled(output: Any) -> torch.Tensor:
    """transformers 5 wraps projected features, 4 returned them."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def _tensor(images: Sequence[np.ndarray]) -> torch.Tensor:
    """(H, W, 3) floats in [0, 1] → (N, 3, H, W)."""
    stacked = np.stack(images) if images else np.zeros((0, 8, 8, 3), np.float32)
    return torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)))


def _resized(images: Sequence[np.ndarray], size: int) -> torch.Tensor:
    """(H, W, 3) uint8 of any sizes → (N, 3, size, size) in [0, 1]: shorter side resized, middle cropped."""
    from limner.data.pictures import fit

    return _tensor([fit(image, size, size)[0].astype(np.float32) / 255 for image in images])


def _batched(rows: torch.Tensor, function: Any) -> np.ndarray:
    """Unit rows of a function of batches."""
    found = [F.normalize(function(part).float(), dim=-1).cpu().numpy() for part in rows.split(BATCH) if len(part)]
    return np.concatenate(found) if found else np.zeros((0, 1), np.float32)

"""FaceCLIP (arXiv 2504.14202): a face and a prompt in, conditioning of a text-to-image model out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from limner.encoders.branch import Encoded, FaceCLIPBranch
from limner.encoders.checkpoint import write_safetensors
from limner.encoders.config import PRESETS, FaceCLIPConfig, preset
from limner.encoders.enrolling import EnrollingEncoder
from limner.encoders.face_vit import FaceTokens, FaceViT, check_images, fuse_faces, place_faces
from limner.encoders.published import demand_layout, infer_config, shapes_of, strip_prefix
from limner.encoders.tokenizer import (
    IDENTITY_PREFIX,
    PromptTokenizer,
    clip_tokenizer,
    encode_prompts,
    identity_position,
)
from limner.errors import ConfigError, CorruptData, ImageError, PromptError, WeightsMismatch, WeightsUnavailable

__all__ = [
    "PRESETS",
    "Encoded",
    "FaceCLIPConfig",
    "FaceCLIPEncoder",
    "FaceTokens",
    "clip_tokenizer",
    "from_published",
    "fuse_faces",
    "preset",
]

FILE = "model.safetensors"
METADATA = "limner.faceclip"


class FaceCLIPEncoder(EnrollingEncoder, ModelMixin):
    """One or more branches side by side: their tokens are joined on channels, the last one gives everything else.

    A diffusers model as far as pipelines need one: they save, load, move and offload it.

    A face is *enrolled* once (`enroll`) and then painted with any number of prompts (`encode_identity`); `encode` does
    both at once.

    Args:
        config: sizes; one of `PRESETS` or of one's own.
        tokenizer: of the vocabulary in `config`; None leaves only `forward` usable.
    """

    identity_position = 4
    """Index of the identity word in a prompt with prefix, where no tokenizer says otherwise."""

    def __init__(self, config: FaceCLIPConfig, tokenizer: Any = None) -> None:
        super().__init__()
        self.config = config
        self.branches = nn.ModuleList(FaceCLIPBranch(b) for b in config.branches)
        if config.shared_face:
            self._share_face()
        self.tokenizer = tokenizer
        self.train()

    @property
    def tokenizer(self) -> Any:
        """Of the prompts, for every branch; setting one checks that it fits the vocabulary."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        if tokenizer is not None:
            _check_tokenizer(tokenizer, self.config.vocabulary)
            self.identity_position = identity_position(tokenizer)
        self._tokenizer = tokenizer

    @property
    def faces(self) -> list[FaceViT]:
        """The face encoders: one if it is shared, else one per branch."""
        branches = [cast(FaceCLIPBranch, b) for b in self.branches]
        return [b.face_encoder for b in (branches[:1] if self.config.shared_face else branches)]

    # --- encoding -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @apply_forward_hook
    def encode(
        self, images: Tensor | None, prompts: Sequence[str], has_face: Sequence[bool] | Tensor | None = None
    ) -> Encoded:
        """Encodes B pairs of face and prompt.

        Args:
            images: (B, 3, H, W) in [0, 1], aligned faces of any size; None if no row has a face.
            prompts: B sentences.
            has_face: B booleans; rows without a face take the null face (an all-zero picture), whatever `images`
                holds there, and get no identity prefix. None means that all rows have one (or none, without images).

        Raises:
            ImageError: images of another shape, type or range.
            PromptError: no prompts, or counts that do not fit.

        Warns:
            PromptTruncated: a prompt was too long; the warning quotes what was cut.
        """
        count = len(_check_prompts(prompts))
        with_face = torch.full((count,), images is not None) if has_face is None else torch.as_tensor(has_face).bool()
        with_face = with_face.cpu()
        if with_face.shape != (count,):
            raise PromptError(f"{count} prompts need as many values in has_face; got {tuple(with_face.shape)}.")
        if images is not None:
            check_images(images)
        if with_face.any() and (images is None or len(images) != count):
            got = "none" if images is None else str(len(images))
            raise ImageError(f"{count} prompts need as many face images; got {got}.")
        faces = [] if with_face.all() else self.null_faces()
        if images is not None and with_face.any():
            seen = self._see(images[with_face.to(images.device)])
            faces = [place_faces(n, own, with_face) for n, own in zip(faces, seen, strict=True)] if faces else seen
        ids = self.tokenize(prompts, with_face)
        return self(ids, faces, with_face.to(self.dtype))

    @torch.no_grad()
    @apply_forward_hook
    def encode_identity(
        self, identity: Mapping[str, Tensor] | None, prompts: Sequence[str], strength: float = 1.0
    ) -> Encoded:
        """Encodes B prompts for one enrolled person, without looking at a picture again.

        With strength s, the patch tokens are s·person + (1 − s)·null face, and the word `id` of the prefix has the
        embedding s·(projected class token) + (1 − s)·(the word's own). So 1 is `encode` with a face, exactly; 0 is
        `encode` without, exactly (the prefix is then left out too); between, every input moves along a straight line.

        Args:
            identity: from `enroll`; None is the null face.
            prompts: B sentences.
            strength: 0 to 1.

        Raises:
            WeightsMismatch: an identity of other shapes.
            ConfigError: strength outside [0, 1].
        """
        faces = self._person(identity, strength)
        with_face = torch.full((len(_check_prompts(prompts)),), identity is not None and strength > 0)
        return self(self.tokenize(prompts, with_face), faces, with_face.to(self.dtype) * strength)

    def forward(self, ids: Tensor, faces: Sequence[FaceTokens], amount: Tensor) -> Encoded:
        """Branch by branch, joined.

        Args:
            ids: (B, T).
            faces: of each face encoder; their batch is B, or 1 for one face with all prompts.
            amount: (B,): share of the identity word's embedding that the face replaces; 0 for rows without prefix.
        """
        ids, amount = ids.to(self.device), amount.to(self.device)
        faces = list(faces) * (len(self.branches) // len(faces))
        out = [b(ids, f, amount, self.identity_position) for b, f in zip(self.branches, faces, strict=True)]
        return out[-1]._replace(tokens=torch.cat([o.tokens for o in out], dim=-1))

    def tokenize(self, prompts: Sequence[str], with_face: Tensor) -> Tensor:
        """Token ids (B, T) of the prompts, those with a face behind the identity prefix."""
        if self.tokenizer is None:
            raise ConfigError(
                "This encoder has no tokenizer.", "Set one: encoder.tokenizer = clip_tokenizer(path_of_the_merges)."
            )
        texts = [IDENTITY_PREFIX + p if f else p for p, f in zip(prompts, with_face.tolist(), strict=True)]
        return encode_prompts(self.tokenizer, texts, self.config.context)

    # --- files ----------------------------------------------------------------------------------------------------

    def to_published(self) -> dict[str, Tensor]:
        """The state dict in the published layout (without `model.`); tensors are not copied."""
        return {self._published_key(key): value for key, value in self.state_dict().items()}

    def save_pretrained(self, path: str | Path) -> None:  # type: ignore[override]
        """Writes `model.safetensors` (published keys, the config in its metadata) and `tokenizer/` into a folder.

        A shared face encoder is written once, under the first branch.

        Raises:
            StorageError: it cannot be written.
        """
        state = {k: v.cpu() for k, v in self.to_published().items()}
        if self.config.shared_face:
            for name in self.config.names[1:]:
                state = {k: v for k, v in state.items() if not k.startswith(f"{name}.face_encoder.")}
        write_safetensors(Path(path) / FILE, state, {METADATA: json.dumps(self.config.to_dict())})
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(Path(path) / "tokenizer")

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, *, tokenizer: Any = None, torch_dtype: torch.dtype | None = None, **_: Any
    ) -> FaceCLIPEncoder:
        """Reads what `save_pretrained` or `limner import faceclip` wrote.

        Args:
            path: the folder.
            tokenizer: instead of the saved one.
            torch_dtype: of the weights; None means float32.
            **_: what diffusers passes to every component; there is one way to load this one.

        Raises:
            WeightsUnavailable: no such folder or file.
            CorruptData: damaged, or not written by Limner.
            WeightsMismatch: keys or shapes that do not fit the config in the file.
        """
        state, config = _read_saved(Path(path) / FILE)
        saved = Path(path) / "tokenizer"
        if tokenizer is None and saved.is_dir():
            tokenizer = PromptTokenizer.from_pretrained(saved)
        if config.shared_face:
            first = f"{config.names[0]}.face_encoder."
            for name in config.names[1:]:
                state |= {k.replace(config.names[0], name, 1): v for k, v in state.items() if k.startswith(first)}
        # ModelMixin.to would warn of modules kept in float32, of which there are none.
        return nn.Module.to(from_published(state, tokenizer, config), torch_dtype or torch.float32).eval()

    def _published_key(self, key: str) -> str:
        _, index, own = key.split(".", 2)
        name = self.config.names[int(index)]
        return f"{name}.{own}" if name else own

    def _share_face(self) -> None:
        for branch in self.branches[1:]:
            branch.face_encoder = self.branches[0].face_encoder


def from_published(state: Mapping[str, Any], tokenizer: Any, config: FaceCLIPConfig | None = None) -> FaceCLIPEncoder:
    """The encoder of a published state dict, strictly: every key is used, or named in the error.

    Tensors are adopted as they are (type and memory), not copied. Face encoders that are equal in all branches are
    kept once.

    Args:
        state: keys of one branch, or of several with their names in front; `model.` in front of all is allowed.
        tokenizer: `clip_tokenizer(…)` for published weights.
        config: sizes; None infers them from the shapes, and heads and activations from the preset of equal width.

    Raises:
        WeightsMismatch: missing or unexpected keys, wrong shapes, or a width that no preset has.
    """
    state = {key: _as_tensor(value) for key, value in strip_prefix(state).items()}
    given = shapes_of(state)
    config = config or infer_config(given)
    with torch.device("meta"):
        encoder = FaceCLIPEncoder(dataclasses.replace(config, shared_face=False), tokenizer)
    demand_layout(shapes_of(encoder.to_published()), given, "FaceCLIP encoder")
    own = {key: state[encoder._published_key(key)] for key in encoder.state_dict()}
    encoder.load_state_dict(own, strict=True, assign=True)
    if len(config.branches) > 1 and (config.shared_face or _equal_faces(encoder)):
        encoder.config = dataclasses.replace(config, shared_face=True)
        encoder._share_face()
    return encoder.eval()


def _check_tokenizer(tokenizer: Any, vocabulary: int) -> None:
    known = len(tokenizer)
    if known > vocabulary:
        raise WeightsMismatch(
            f"A tokenizer of at most {vocabulary} tokens is expected; got one of {known}.",
            "Use the tokenizer that the weights were trained with.",
        )
    if tokenizer.eos_token_id != known - 1:
        raise WeightsMismatch(
            f"An end token with the highest id ({known - 1}) is expected; it is {tokenizer.eos_token_id}.",
            "Towers find the end of a prompt by its highest id; take clip_tokenizer or build_word_tokenizer.",
        )


def _equal_faces(encoder: FaceCLIPEncoder) -> bool:
    first, *others = (f.state_dict() for f in encoder.faces)
    return all(first.keys() == o.keys() and all(torch.equal(first[k], o[k]) for k in first) for o in others)


def _as_tensor(value: Any) -> Any:
    import numpy as np

    return torch.from_numpy(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def _check_prompts(prompts: Sequence[str]) -> Sequence[str]:
    if isinstance(prompts, str) or not prompts:
        raise PromptError("A non-empty list of prompts is expected.", "Write [prompt].")
    return prompts


def _read_saved(file: Path) -> tuple[dict[str, Tensor], FaceCLIPConfig]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not file.is_file():
        raise WeightsUnavailable(f"{file} does not exist.", "Make it with `limner import faceclip`.")
    try:
        with safe_open(str(file), framework="pt") as f:
            config = FaceCLIPConfig.from_dict(json.loads((f.metadata() or {})[METADATA]))
        return load_file(file), config
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as e:
        raise CorruptData(f"{file} is damaged or was not written by Limner ({e!r}).", "Import it again.") from e

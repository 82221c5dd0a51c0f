"""What the rivals' trainings read: a picture, a sentence about it, and what a frozen backbone says of a face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from limner.data.cache import Column, Table
from limner.data.crops import align_faces
from limner.data.loader import Batch, Source
from limner.data.partners import Partners
from limner.data.tables import Report, captions_of, demand, to_images
from limner.encoders.rivals import RivalEncoder, see_faces
from limner.errors import ConfigError
from limner.training.denoising import Targets
from limner.training.dreamidentity_data import PromptTable
from limner.training.towers import feature_table


class RivalRows(Source):
    """Rows (face, sentence, picture).

    Args:
        targets: the pictures.
        faces: what is read of them, as `rival_features` makes it.
        lay_out: sentences → `PromptTable`.
        templates: sentences that all pictures share; without them, `prompts` is the share of rows that read the
            picture's sentence with S*, the others read its caption.
        partner: the face is another picture of the person. Otherwise it is the picture itself, and pictures that are no
            reference (turned far away, painted) are left out.

    Raises:
        ConfigError: captions, landmarks or persons are missing where they are needed.
    """

    def __init__(
        self,
        targets: Targets,
        faces: Table,
        lay_out: Callable[[list[str]], PromptTable],
        *,
        templates: Sequence[str] = (),
        prompts: float = 0.5,
        partner: bool = True,
    ) -> None:
        self.targets, self.pictures, self.faces, self.prompts = targets, targets.pictures, faces, prompts
        pictures = self.pictures
        demand(pictures, captions=not templates, landmarks=True, persons=partner)
        self.rows = np.arange(len(pictures)) if partner else np.flatnonzero(pictures["reference"])
        if not len(self.rows):
            raise ConfigError("No picture can be a reference; for this training some must.", "See docs/training.md.")
        self.partners = Partners(pictures["identity"], pictures["reference"]) if partner else None
        self.templates = lay_out(list(templates)) if templates else None
        self.sentences: dict[str, tuple[PromptTable, np.ndarray]] = {}
        if self.templates is None:
            for column in ("caption", "prompt"):
                said = captions_of(pictures, column)
                distinct = {sentence: i for i, sentence in enumerate(dict.fromkeys(said))}
                self.sentences[column] = (lay_out(list(distinct)), np.array([distinct[s] for s in said]))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        own = self.rows[rows]
        faces = own if self.partners is None else self.partners.of(own, step)
        found: dict[str, Any] = {
            **self.targets.columns(own),
            **{k: self.faces[k][faces] for k in self.faces.columns},
            **self._said(rows, own, step),
        }
        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in found.items()}

    def _said(self, rows: np.ndarray, own: np.ndarray, step: int) -> dict[str, np.ndarray]:
        draws = np.array([np.random.default_rng([step, int(row)]).random() for row in rows])
        if self.templates is not None:
            return self.templates.batch((draws * len(self.templates)).astype(np.int64))
        caption, prompt = (table.batch(number[own]) for table, number in self.sentences.values())
        return {k: np.where((draws < self.prompts)[:, None], prompt[k], caption[k]) for k in caption}


def rival_features(encoder: RivalEncoder, pictures: Table, kind: str, device: torch.device, report: Report) -> Table:
    """What the backbone says of the aligned face of every picture: for the kind `identity` column `face`, the identity
    vector (D) float32; for `patches` `face`, the patch tokens (N, W) float16, and `words_i` (1, width) float32, the
    first word for tower i; for `scales` `scale_i` float32, the parts of V that the encoder's words are made of."""
    backbone = encoder.backbone.to(device).eval()
    size = backbone.config.image_size
    demand(pictures, landmarks=True)
    words: Any = encoder.words
    module: Any = backbone
    if kind == "identity":

        def compute_faces(faces: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"face": see_faces(backbone, faces).class_token}

    elif kind == "patches":
        module = words.to(device)

        def compute_faces(faces: torch.Tensor) -> dict[str, torch.Tensor]:
            said = {f"words_{i}": own[:, :1] for i, own in enumerate(words(faces))}
            return {"face": see_faces(backbone, faces).patch_tokens, **said}

    else:

        def compute_faces(faces: torch.Tensor) -> dict[str, torch.Tensor]:
            return {f"scale_{i}": v for i, v in enumerate(words.scales(faces))}

    example = compute_faces(torch.zeros(1, 3, size, size, device=device))
    half = ("face",) if kind == "patches" else ()
    columns = {k: Column("f2" if k in half else "f4", tuple(v.shape[1:])) for k, v in example.items()}

    def compute(block: range) -> dict[str, torch.Tensor]:
        rows = slice(block.start, block.stop)
        images = to_images(torch.from_numpy(pictures["image"][rows])).to(device)
        marks = torch.from_numpy(pictures["landmarks"][rows]).to(device)
        return compute_faces(align_faces(images, marks, size).clamp(0, 1))

    # How CLIP normalises pictures, and which layers words are made of, is not in the weights.
    spec: dict[str, Any] = {"kind": kind, "backbone": backbone.config.to_dict()}
    if kind != "identity":
        spec["layers"] = list(words.config.read)
    return feature_table("rival-faces", pictures, module, columns, compute, report, spec)

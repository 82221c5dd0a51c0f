"""What DreamIdentity's training reads: faces to be reconstructed, mixed with edits of generated faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from limner.data.cache import Table
from limner.data.loader import Batch, Source
from limner.data.partners import Partners
from limner.data.tables import captions_of
from limner.encoders.pseudo_words import PLACEHOLDER, Layout
from limner.errors import ConfigError
from limner.training.denoising import Targets


class PromptTable:
    """P prompts laid out for every tower, as arrays: which token, and which of the person's words (-1: none).

    Args:
        layouts: of all prompts, one per tower.

    Raises:
        ConfigError: prompts with weights, which trainings do not know.
    """

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        for i, layout in enumerate(layouts):
            if layout.weights is not None:
                raise ConfigError("A prompt of the training set has weights, as in (S*:1.2).", "Leave them out.")
            slots = torch.full_like(layout.ids, -1)
            rows, places, words = layout.places[PLACEHOLDER].unbind(1)
            slots[rows, places] = words
            self.arrays[f"ids_{i}"], self.arrays[f"slots_{i}"] = layout.ids.numpy(), slots.numpy()

    def __len__(self) -> int:
        return len(self.arrays["ids_0"])

    def batch(self, prompts: np.ndarray) -> dict[str, np.ndarray]:
        """Columns `ids_i` and `slots_i` (B, T) int64 of the prompts with these numbers (B,)."""
        return {name: values[prompts] for name, values in self.arrays.items()}

    @staticmethod
    def layouts(batch: Batch, towers: int) -> list[Layout]:
        """The layouts, one per tower, of a batch that has the columns of `batch`."""
        found = []
        for i in range(towers):
            slots = batch[f"slots_{i}"]
            known = slots.cpu().numpy()
            rows, places = np.nonzero(known >= 0)
            where = torch.from_numpy(np.stack([rows, places, known[rows, places]], 1))
            found.append(Layout(batch[f"ids_{i}"], {PLACEHOLDER: where}))
        return found


class FaceMix(Source):
    """Rows (face, prompt, picture). Reconstruction: the picture is where the face comes from. Edit: the face is that
    person's identity face, the picture one of their edits.

    Args:
        pictures: of reconstruction; those that are no reference (turned far away, painted) are left out.
        templates: the prompts of reconstruction.
        edits: the self-augmented set, or None.
        share: of rows that are edits.
        lay_out: prompts → `PromptTable`, for the prompts of the edits.

    Raises:
        ConfigError: landmarks are missing, or a person of the edit set lacks faces or edits.
    """

    def __init__(
        self,
        pictures: Targets,
        templates: PromptTable,
        edits: Targets | None = None,
        *,
        share: float = 0.0,
        lay_out: Callable[[list[str]], PromptTable] | None = None,
    ) -> None:
        self.pictures, self.templates, self.edits, self.share = pictures, templates, edits, share
        self.rows = np.flatnonzero(pictures.pictures["reference"])
        _demand_landmarks(pictures.pictures, self.rows, "reconstruction")
        if edits is not None:
            assert lay_out is not None
            self._open_edits(edits.pictures, lay_out)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        parts = [self._row(int(row), step) for row in rows]
        return {name: torch.from_numpy(np.stack([part[name] for part in parts])) for name in parts[0]}

    def _row(self, row: int, step: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng([step, row])
        if self.edits is None or random.random() >= self.share:
            target = face = int(self.rows[row])
            prompt = self.templates.batch(np.array([random.integers(len(self.templates))]))
            return _columns(self.pictures, face, target, prompt)
        target = int(self.targets[random.integers(len(self.targets))])
        face = int(self.partners.of(np.array([target]), step)[0])
        prompt = self.prompts.batch(self.prompt_of[[target]])
        return _columns(self.edits, face, target, prompt)

    def _open_edits(self, edits: Table, lay_out: Callable[[list[str]], PromptTable]) -> None:
        reference, identity = edits["reference"][:], edits["identity"][:]
        self.targets = np.flatnonzero(~reference)
        faceless = sorted(set(identity[self.targets]) - set(identity[reference]))
        if not len(self.targets) or faceless:
            lacks = f"person {faceless[0]} has no identity face" if faceless else "there are no edited pictures"
            raise ConfigError(
                f"The edit set cannot be used: {lacks}.",
                "Identity faces have `reference: true` in metadata.jsonl, edited pictures `reference: false`.",
            )
        _demand_landmarks(edits, np.flatnonzero(reference), "the edit set")
        self.partners = Partners(identity, reference)
        sentences = captions_of(edits, "prompt")
        distinct = list(dict.fromkeys(sentences[i] for i in self.targets))
        number = {sentence: i for i, sentence in enumerate(distinct)}
        self.prompt_of = np.array([number.get(s, 0) for s in sentences])
        self.prompts = lay_out(distinct)


def _columns(targets: Targets, face: int, target: int, prompt: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    one = {**targets.columns(np.array([target])), **prompt}
    pictures = targets.pictures
    return {
        **{name: values[0] for name, values in one.items()},
        "face": np.asarray(pictures["image"][face]),
        "face_landmarks": np.asarray(pictures["landmarks"][face]),
    }


def _demand_landmarks(table: Table, rows: np.ndarray, what: str) -> None:
    if not len(rows) or np.isnan(table["landmarks"][:][rows]).any():
        raise ConfigError(
            f"Every face of {what} needs five landmarks (`landmarks`: five [x, y] in pixels); some have none.",
            "See docs/training.md.",
        )

"""Pictures of the sitters with edits of them: the same person, pose and frame, another style, hat, place or dress."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from limner.data.pictures import Pictures, Sample
from limner.errors import ConfigError
from limner.world.dataset import WorldConfig, WorldDataset
from limner.world.factors import View
from limner.world.render import render
from limner.world.sampling import sample_view
from limner.world.seeds import derive, stream
from limner.world.truth import sample_of

LAYOUT = (
    "yaw", "pitch", "roll", "face_height", "center", "focal", "expression", "hair", "facial_hair", "eyewear",
    "eyewear_seed", "makeup",
)  # fmt: skip
"""What an edit leaves as it is."""
PLACE, DRESS = ("scene", "scene_seed", "light"), ("clothing", "cloth_colors")
"""What an edit changes in half of the pairs, besides style and headwear."""


class WorldEdits(Pictures):
    """Pairs as InstructPix2Pix is trained on (arXiv 2211.09800, section 3.1; there they are painted by a model): row 2p
    is a photo (a reference), row 2p + 1 its edit, whose `prompt` says what it shows. A pair counts as a person.

    Args:
        configs: data sets of sitters; `views` pictures of each person are views / 2 pairs.

    Raises:
        ConfigError: an odd number of views.
    """

    def __init__(self, configs: tuple[WorldConfig, ...]) -> None:
        odd = next((c.views for c in configs if c.views % 2), None)
        if odd is not None:
            raise ConfigError(f"views is {odd}; pairs of a photo and its edit need an even number.")
        self.sets = [WorldDataset(c) for c in configs]
        self.spec = {"kind": "world-edits", "sets": [c.to_dict() for c in configs]}
        self.sizes = np.concatenate([np.full((len(s), 2), s.config.size, np.int64) for s in self.sets])
        self.persons = len(self.sizes) // 2
        self._first_row = np.cumsum([0, *(len(s) for s in self.sets)])

    def sample(self, row: int) -> Sample:
        k = int(np.searchsorted(self._first_row, row, side="right")) - 1
        own, index = self.sets[k], row - int(self._first_row[k])
        sitter = own.sitter(index // own.config.views)
        view = own.view(index | 1)
        if row % 2 == 0:
            view = self._before(view, own, index)
        seed = derive("edit", own.config.seed, index)
        sample = sample_of(render(sitter, view, own.config.size), str(row), seed)
        return Sample(
            image=sample["image"],
            caption=sample["caption"],
            prompt=sample["prompt"],
            identity=row // 2,
            landmarks=np.asarray(sample["landmarks"], np.float32),
            reference=row % 2 == 0,
        )

    def _before(self, edited: View, own: WorldDataset, index: int) -> View:
        """The photo that was edited into this view."""
        r = stream("before", own.config.split, own.config.seed, index)
        kept: dict[str, Any] = {name: getattr(edited, name) for name in LAYOUT}
        for aspect in (PLACE, DRESS):
            if r.random() < 0.5:
                kept |= {name: getattr(edited, name) for name in aspect}
        if kept["eyewear"] == "sunglasses":
            kept["eyewear"] = "none"
        sitter = own.sitter(index // own.config.views)
        view = sample_view(sitter, r.getrandbits(31), "any", **kept, style="photo", headwear="none")
        return dataclasses.replace(view, style_seed=edited.style_seed)

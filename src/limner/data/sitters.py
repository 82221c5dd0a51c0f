"""The synthetic sitters as training pictures."""

from __future__ import annotations

import numpy as np

from limner.data.pictures import Pictures, Sample
from limner.world.dataset import WorldConfig, WorldDataset
from limner.world.factors import View
from limner.world.identity import Sitter

REFERENCE_YAW = 45.0
"""Faces turned further than this, in degrees, are no references."""


class WorldPictures(Pictures):
    """One or more data sets of sitters, one after the other; rendered when asked for.

    Args:
        configs: of the data sets; people of different ones count as different.
    """

    def __init__(self, configs: tuple[WorldConfig, ...]) -> None:
        self.sets = [WorldDataset(c) for c in configs]
        self.spec = {"kind": "world", "sets": [c.to_dict() for c in configs]}
        self.sizes = np.concatenate([np.full((len(s), 2), s.config.size, np.int64) for s in self.sets])
        self.persons = sum(c.identities for c in configs)
        self._first_row = np.cumsum([0, *(len(s) for s in self.sets)])
        self._first_person = np.cumsum([0, *(c.identities for c in configs)])

    def sample(self, row: int) -> Sample:
        k, index = self._place(row)
        sample = self.sets[k][index]
        view = sample["view"]
        return Sample(
            image=sample["image"],
            caption=sample["caption"],
            prompt=sample["prompt"],
            identity=int(self._first_person[k]) + index // self.sets[k].config.views,
            landmarks=np.asarray(sample["landmarks"], np.float32),
            reference=view["style"] == "photo" and view["eyewear"] != "sunglasses" and abs(view["yaw"]) < REFERENCE_YAW,
        )

    def view(self, row: int) -> tuple[Sitter, View]:
        """Whom and what a picture shows; nothing is rendered."""
        k, index = self._place(row)
        chosen = self.sets[k]
        return chosen.sitter(index // chosen.config.views), chosen.view(index)

    def _place(self, row: int) -> tuple[int, int]:
        """Data set, and place in it."""
        k = int(np.searchsorted(self._first_row, row, side="right")) - 1
        return k, row - int(self._first_row[k])

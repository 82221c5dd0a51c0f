"""The world as a data set: rendered on the fly, or read back from built shards; both yield the same samples."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.config import Config
from limner.errors import ConfigError, CorruptData
from limner.world.factors import View
from limner.world.identity import WORLD_VERSION, Sitter
from limner.world.render import Picture, render
from limner.world.sampling import sample_view
from limner.world.seeds import LIMIT, derive, stream
from limner.world.slices import SLICES, slice_of
from limner.world.splits import SPLITS, sitter_of, split_of
from limner.world.truth import Sample, decode, sample_of

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class WorldConfig(Config):
    """What makes a data set of sitters; equal configs make equal bytes.

    Attributes:
        identities: how many people, the first of the split.
        views: pictures of each.
        seed: of views and captions.
        size: side of the pictures in pixels, 64 to 512.
        split: one of `SPLITS`.
        slice: one of `SLICES`, or "" for ordinary pictures.
        world: version of the world; a build of another version is another data set.
    """

    identities: int = 100
    views: int = 8
    seed: int = 0
    size: int = 128
    split: str = "train"
    slice: str = ""
    world: int = WORLD_VERSION

    def validate(self) -> None:
        self.check(self.split in SPLITS, "split", ", ".join(SPLITS))
        people = SPLITS[self.split].count
        self.check(1 <= self.identities <= people, "identities", f"1 to {people:,} in split {self.split!r}")
        self.check(1 <= self.views <= 100_000, "views", "1 to 100,000")
        self.check(0 <= self.seed < LIMIT, "seed", f"0 to {LIMIT - 1}")
        self.check(64 <= self.size <= 512, "size", "64 to 512 pixels")
        self.check(self.slice == "" or self.slice in SLICES, "slice", ", ".join(SLICES))
        self.check(self.world == WORLD_VERSION, "world", f"{WORLD_VERSION}, the version of this Limner")


class WorldDataset:
    """Pictures of sitters with their truth, rendered when asked for; a map-style data set.

    Index i is view i % views of person i // views. The same config and index give the same sample in any process, so
    that data loader workers need no care. Samples are dicts of numpy arrays and plain values: see `Sample`.
    """

    def __init__(self, config: WorldConfig | None = None, **fields: Any) -> None:
        """From a config, or from its fields.

        Raises:
            ConfigError: a field is unknown or out of range, or the slice has not so many people.
        """
        if config is not None and fields:
            raise ConfigError("WorldDataset takes a config or its fields, not both.")
        self.config = config or WorldConfig.from_dict(fields)
        self._people = self._choose()

    def __len__(self) -> int:
        return self.config.identities * self.config.views

    def __getitem__(self, index: int) -> Sample:
        picture = self.picture(index)
        return sample_of(picture, f"{index:08d}", self._seed(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def sitter(self, person: int) -> Sitter:
        """The `person`-th person of the data set."""
        return sitter_of(self.config.split, self._people[person])

    def view(self, index: int) -> View:
        """The view of picture `index`."""
        c, sitter = self.config, self.sitter(self._within(index) // self.config.views)
        seed = self._seed(index)
        if not c.slice:
            return sample_view(sitter, seed, split_of(c.split).combinations)
        hard = slice_of(c.slice)
        pairs = hard.combinations or split_of(c.split).combinations
        return sample_view(sitter, seed, pairs, **hard.fixed(stream("slice", seed)))

    def picture(self, index: int) -> Picture:
        """Picture `index`, as the renderer and the slice made it."""
        c = self.config
        picture = render(self.sitter(self._within(index) // c.views), self.view(index), c.size)
        spoil = slice_of(c.slice).spoil if c.slice else None
        return spoil(picture, stream("spoil", self._seed(index))) if spoil else picture

    def _within(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        return index

    def _seed(self, index: int) -> int:
        c = self.config
        person = self._people[self._within(index) // c.views]
        return derive("picture", c.split, c.slice, c.seed, person, index % c.views)

    def _choose(self) -> range | list[int]:
        """Places in the split of the people of this data set."""
        c = self.config
        hard = slice_of(c.slice) if c.slice else None
        if hard is None or hard.tones == (0.0, 1.0):
            return range(c.identities)
        fits = [k for k in range(split_of(c.split).count) if hard.accepts(sitter_of(c.split, k))]
        if len(fits) < c.identities:
            raise ConfigError(
                f"Slice {c.slice!r} has {len(fits)} people in split {c.split!r}; {c.identities} are asked for."
            )
        return fits[: c.identities]


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a finished build.

    Raises:
        CorruptData: none there, unreadable, or the build was not finished.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        complete = manifest["complete"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CorruptData(
            f"{folder} holds no manifest that can be read ({e}).", "Make one with `limner world build`."
        ) from e
    if not complete:
        raise CorruptData(f"The build in {folder} is not finished.", "Run the same `limner world build` again.")
    return dict(manifest)


def read_shards(folder: str | Path, verify: bool = False) -> Iterator[Sample]:
    """Every sample of a built data set in order.

    Args:
        folder: where `limner world build` wrote.
        verify: compare every shard with its checksum first.

    Raises:
        CorruptData: no finished build, or a shard that is absent or damaged.
    """
    for entry in read_manifest(folder)["shards"]:
        path = Path(folder) / entry["name"]
        try:
            if verify and hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                raise CorruptData(f"{path} is not the file that was built.", "Run the same `limner world build` again.")
            with tarfile.open(path) as tar:
                yield from (decode(files) for files in _groups(tar))
        except (OSError, tarfile.TarError) as e:
            raise CorruptData(f"{path} cannot be read ({e}).", "Run the same `limner world build` again.") from e


def _groups(tar: tarfile.TarFile) -> Iterator[dict[str, bytes]]:
    """Files of one sample after the other, by extension."""
    held, current = {}, None
    for member in tar:
        key, _, extension = member.name.partition(".")
        if current not in (None, key):
            yield held
            held = {}
        current = key
        held[extension] = (tar.extractfile(member) or io.BytesIO()).read()
    if held:
        yield held

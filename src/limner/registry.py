"""Names → what they stand for: files of weights (source, checksum, licence) and models built from them.

Nothing is fetched at import or in a constructor: `WeightFile.resolve` is the one place that touches the network.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from limner.errors import ConfigError, LicenseNotAccepted, WeightsMismatch, WeightsUnavailable

ACCEPT_VARIABLE = "LIMNER_ACCEPT_LICENSE"


@dataclass(frozen=True)
class WeightFile:
    """One file of weights.

    Attributes:
        name: how Limner calls it.
        repo: repository on the Hugging Face hub.
        filename: path inside it.
        license: SPDX name or a short title; `commercial` says whether commercial use is allowed.
        size: bytes, about (0 = unknown).
        sha256: hex digest, verified when given.
        variable: environment variable that may point to a local copy.
    """

    name: str
    repo: str
    filename: str
    license: str
    commercial: bool = True
    size: int = 0
    sha256: str = ""
    variable: str = ""

    @property
    def by_hand(self) -> str:
        """How to provide the file without a network."""
        where = f"set {self.variable} to its path" if self.variable else "place it in the Hugging Face cache"
        return f"Download {self.filename} from huggingface.co/{self.repo} on another machine and {where}."

    def cached(self) -> Path | None:
        """Where the file lies on this machine already, without looking at any network; None if nowhere."""
        local = os.environ.get(self.variable) if self.variable else None
        if local:
            return Path(local) if Path(local).is_file() else None
        if not self.repo:
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, self.filename)
        return Path(found) if isinstance(found, str) else None

    def resolve(self, path: str | Path | None = None, *, accept_license: bool = False) -> Path:
        """The local path: `path` if given, else the environment variable, else the cache, else a download.

        Raises:
            WeightsUnavailable: not there and not to be had (offline).
            WeightsMismatch: there, but its checksum differs.
            LicenseNotAccepted: non-commercial weights whose licence was not accepted.
        """
        local = path or (os.environ.get(self.variable) if self.variable else None)
        if local:
            found = Path(local)
            if not found.is_file():
                raise WeightsUnavailable(f"{self.name}: {found} does not exist or is no file.", self.by_hand)
        else:
            self.demand_license(accept_license)
            found = self._from_hub()
        if self.sha256 and file_sha256(found) != self.sha256:
            raise WeightsMismatch(
                f"{self.name}: the sha256 of {found} is not {self.sha256}.", "Delete the file and fetch it again."
            )
        return found

    def demand_license(self, accepted: bool) -> None:
        """Raises LicenseNotAccepted for non-commercial weights, unless `accepted` or the environment accepts them."""
        listed = {x.strip() for x in os.environ.get(ACCEPT_VARIABLE, "").split(",")}
        if not (self.commercial or accepted or self.license in listed):
            raise LicenseNotAccepted(
                f"{self.name} is licensed {self.license}, which forbids commercial use.",
                f"If that suits you, pass --accept-license or set {ACCEPT_VARIABLE}={self.license!r}.",
            )

    def _from_hub(self) -> Path:
        if found := self.cached():
            return found
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.utils import get_session

        try:
            get_session().head(constants.ENDPOINT, timeout=3)  # the hub's own client tries for half a minute
            return Path(hf_hub_download(self.repo, self.filename, etag_timeout=3))
        except Exception as e:  # the hub's errors have no common base; all mean "not to be had"
            size = f" ({self.size / 1e6:,.1f} MB)" if self.size else ""
            raise WeightsUnavailable(
                f"{self.name} is not cached, and {self.filename}{size} could not be fetched from the Hugging Face "
                f"repository {self.repo} ({type(e).__name__}).",
                self.by_hand,
            ) from e


@dataclass(frozen=True)
class ModelSpec:
    """A model that can paint.

    Attributes:
        name: what `--model` takes.
        method: key of `limner.methods`.
        base: the diffusion base it stands on.
        description: one line for `limner models`.
        files: weights by component.
        packaged: folder under `limner/weights` when the weights ship with the package.
        cloned: folder under `benchmarks/weights` when they ship with a clone of the repository only.
        recipe: by which its users train it themselves; nobody publishes the weights.
        license: strictest licence of its parts.
        scores: measured results, by name.
        command: reprints those scores.
    """

    name: str
    method: str
    base: str
    description: str
    license: str
    files: dict[str, WeightFile] = field(default_factory=dict)
    packaged: str = ""
    cloned: str = ""
    recipe: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    command: str = ""

    @property
    def shipped(self) -> str:
        """What brings the weights, `package` or `clone`; empty for those that are fetched."""
        return "package" if self.packaged else "clone" if self.cloned else ""

    @property
    def variable(self) -> str:
        """The environment variable that names the folder of a model that is trained by its users."""
        return f"LIMNER_{self.name.upper().replace('-', '_')}" if self.recipe else ""


T = TypeVar("T")

_WEIGHTS: dict[str, WeightFile] = {}
_MODELS: dict[str, ModelSpec] = {}


def register_weights(spec: WeightFile) -> WeightFile:
    """Adds a weight file under its name; a second, different one of that name is a ConfigError."""
    return _register(_WEIGHTS, spec.name, spec)


def register_model(spec: ModelSpec) -> ModelSpec:
    """Adds a model under its name; a second, different one of that name is a ConfigError."""
    return _register(_MODELS, spec.name, spec)


def get_weights(name: str) -> WeightFile:
    """The weight file called `name`; ConfigError lists the known ones."""
    return _get(_WEIGHTS, name, "weights")


def get_model(name: str) -> ModelSpec:
    """The model called `name`; ConfigError lists the known ones."""
    return _get(_MODELS, name, "model")


def weight_files() -> Iterator[WeightFile]:
    """Every registered weight file, in order of registration."""
    yield from _WEIGHTS.values()


def models() -> Iterator[ModelSpec]:
    """Every registered model, in order of registration."""
    yield from _MODELS.values()


def file_sha256(path: str | Path) -> str:
    """sha256 (hex) of a file, read in pieces."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _register(table: dict[str, T], name: str, spec: T) -> T:
    if table.setdefault(name, spec) != spec:
        raise ConfigError(f"Another {type(spec).__name__} is already registered as {name!r}.")
    return spec


def _get(table: dict[str, T], name: str, kind: str) -> T:
    if name not in table:
        raise ConfigError(f"Unknown {kind} {name!r}; known: {', '.join(table) or 'none'}.")
    return table[name]

"""Frozen dataclasses as configuration: validated on construction, read from YAML, written beside every output.

A config class derives from `Config`, is decorated with `@dataclass(frozen=True)` and checks itself in `validate`:

    @dataclass(frozen=True)
    class Sampling(Config):
        steps: int = 30

        def validate(self) -> None:
            self.check(1 <= self.steps <= 1000, "steps", "1 to 1000")
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Any, Self

from limner.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of all configuration dataclasses."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raises ConfigError when a value is out of range. The default accepts everything."""

    def check(self, ok: bool, field: str, allowed: str) -> None:
        """Raises ConfigError naming the field, its value and what is `allowed`, unless `ok`."""
        if not ok:
            raise ConfigError(f"{type(self).__name__}.{field} is {getattr(self, field)!r}; allowed: {allowed}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict of JSON types (tuples become lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Builds the config from nested plain values; unknown or missing fields raise ConfigError."""
        if not isinstance(values, dict):
            raise ConfigError(f"{cls.__name__} needs a mapping of fields; got {type(values).__name__}.")
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ConfigError(f"{cls.__name__} has no field {unknown[0]!r}; it has: {', '.join(fields)}.")
        try:
            return cls(**{k: _convert(hints[k], v, f"{cls.__name__}.{k}") for k, v in values.items()})
        except TypeError as e:
            raise ConfigError(f"{cls.__name__}: {e}.") from e

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a YAML (or JSON) file.

        Raises:
            ConfigError: the file is absent, is not YAML, or does not fit.
        """
        import yaml

        try:
            return cls.from_dict(yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {})
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            raise ConfigError(f"Cannot read a configuration from {path}: {e}") from e

    def save(self, path: str | Path) -> None:
        """Writes the resolved values as YAML."""
        import yaml

        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")

    def digest(self) -> str:
        """sha256 (hex) of the resolved values: equal configs have equal digests in every process."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type: nested configs, tuples, unions with None, and checked scalars."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [a for a in args if a is not type(None)]
        return _convert(rest[0], value, where) if len(rest) == 1 else value
    if isinstance(hint, type) and issubclass(hint, Config):
        return value if isinstance(value, hint) else hint.from_dict(value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} is {value!r}; a list is expected.")
        inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(f"{where} has {len(value)} values; {len(inner)} are expected.")
        return tuple(_convert(a, v, where) for a, v in zip(inner, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ConfigError(f"{where} is {value!r}; a value of type {hint.__name__} is expected.")
    return value

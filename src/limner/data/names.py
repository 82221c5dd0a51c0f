"""Names of famous people, for the self-augmented data of DreamIdentity (arXiv 2307.00300): field lists → one list.

The same person stands in several lists, and is written in several ways; each is kept once.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limner.errors import ConfigError

FEWEST = 2
"""Names that a list must hold: of one alone nothing can be ranked or left out."""

SEPARATOR = "|"
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})
"""Letters that Unicode does not take apart into a plain one and a mark."""


@dataclass(frozen=True)
class Entry:
    """One line of a list: a name, and other names of the same person."""

    name: str
    aliases: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)


@dataclass
class Person:
    """Somebody who is kept.

    Attributes:
        name: as written where they come first.
        fields: lists that name them, in order.
        aliases: every other way of writing the name that was met.
    """

    name: str
    fields: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a line of JSON."""
        return {"name": self.name, "fields": self.fields, "aliases": self.aliases}


@dataclass(frozen=True)
class Duplicate:
    """A line that was dropped.

    Attributes:
        name, of: the list it stood in.
        kept: the name of the person under which it went.
        why: `same`, `case`, `accents` (also punctuation) or `alias`.
    """

    name: str
    of: str
    kept: str
    why: str


@dataclass(frozen=True)
class Merged:
    """The merged list.

    Attributes:
        people: in order of their first appearance.
        duplicates: every line that was dropped, and why.
        read: lines of each list.
    """

    people: list[Person]
    duplicates: list[Duplicate]
    read: dict[str, int]

    def counts(self) -> dict[str, Any]:
        """How many names were read (in all and per list), dropped (in all and per reason), and kept."""
        why = Counter(d.why for d in self.duplicates)
        return {
            "read": sum(self.read.values()),
            "lists": dict(self.read),
            "dropped": len(self.duplicates),
            "reasons": {reason: why[reason] for reason in ("same", "case", "accents", "alias")},
            "kept": len(self.people),
        }


def name_key(name: str) -> str:
    """What is left of a name without case, accents and punctuation: "J.K. Rowling" and "j k rowling" are one."""
    plain = unicodedata.normalize("NFKD", name.casefold()).translate(_LETTERS)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = re.sub(r"[^\w\s-]", "" if "." not in plain else " ", plain.replace("'", "").replace("’", ""))
    found = re.split(r"[\s_-]+", words.strip())
    # Initials are joined, however they were set apart.
    return re.sub(r"\b(\w) (?=\w\b)", r"\1", " ".join(w for w in found if w))


def read_names(path: str | Path) -> list[Entry]:
    """A list of names: one person a line, other names of theirs behind `|`; `#` begins a comment.

    Raises:
        ConfigError: unreadable, not UTF-8, fewer than two names, or a line without a letter.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise ConfigError(f"Cannot read names from {path}: {e.strerror or e}.", "Check the path.") from e
    except UnicodeDecodeError as e:
        before = e.object[: e.start].count(b"\n")
        raise ConfigError(
            f"{path}, line {before + 1}, is not UTF-8 (byte 0x{e.object[e.start]:02x}).",
            f"Convert it, for instance: iconv -f latin1 -t utf-8 {path.name}.",
        ) from e
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        names = [" ".join(n.split()) for n in line.partition("#")[0].split(SEPARATOR)]
        names = [n for n in names if n]
        bad = next((n for n in names if "\ufffd" in n or not any(c.isalpha() for c in n)), None)
        if bad is not None:
            raise ConfigError(
                f"{path}, line {number}: {bad!r} is no name.", "Its encoding may have been broken before."
            )
        if names:
            found.append(Entry(names[0], tuple(names[1:])))
    if len(found) < FEWEST:
        raise ConfigError(
            f"{path} holds {len(found)} name{'s' * (len(found) != 1)}; at least {FEWEST} are expected.",
            "Write one name a line.",
        )
    return found


def merge_names(lists: Mapping[str, Sequence[Entry]], aliases: Iterable[Entry] = (), top: int | None = None) -> Merged:
    """One list of people from the lists of several fields.

    Two lines are one person where any name or alias of theirs has the same `name_key`. Who comes first is kept.

    Args:
        lists: field → names, the most famous first.
        aliases: further names of people, whether or not they stand in a list; they add nobody.
        top: so many of every list, from its beginning; None takes all.

    Raises:
        ConfigError: no list, or `top` below 1.
    """
    if not lists:
        raise ConfigError("At least one list of names is expected; got none.")
    if top is not None and top < 1:
        raise ConfigError(f"top is {top}; allowed: 1 or more.")
    linked = _Links()
    chosen = {of: list(entries)[:top] for of, entries in lists.items()}
    for entry in (*aliases, *(e for entries in chosen.values() for e in entries)):
        linked.join([name_key(n) for n in entry.all])
    people: dict[str, Person] = {}
    duplicates: list[Duplicate] = []
    for of, entries in chosen.items():
        for entry in entries:
            root = linked.root(name_key(entry.name))
            person = people.get(root)
            if person is None:
                person = people[root] = Person(entry.name)
            else:
                duplicates.append(Duplicate(entry.name, of, person.name, _why(entry.name, person)))
            if of not in person.fields:
                person.fields.append(of)
            person.aliases += [n for n in dict.fromkeys(entry.all) if n not in (person.name, *person.aliases)]
    return Merged(list(people.values()), duplicates, {of: len(entries) for of, entries in chosen.items()})


def to_jsonl(people: Iterable[Person]) -> str:
    """One object a line: name, fields, aliases."""
    return "".join(json.dumps(p.to_dict(), ensure_ascii=False) + "\n" for p in people)


def _why(name: str, person: Person) -> str:
    """The least difference between a name and any under which the person is known."""
    known = (person.name, *person.aliases)
    if name in known:
        return "same"
    if name.casefold() in {k.casefold() for k in known}:
        return "case"
    return "accents" if name_key(name) in {name_key(k) for k in known} else "alias"


class _Links:
    """Keys that stand for one person (disjoint sets)."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def root(self, key: str) -> str:
        while self._above.get(key, key) != key:
            key = self._above[key]
        return key

    def join(self, keys: Sequence[str]) -> None:
        first = self.root(keys[0])
        for key in keys:
            self._above[self.root(key)] = first

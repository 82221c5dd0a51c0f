"""Pseudo-words in prompts: a placeholder such as `S*` stands for k consecutive words that no dictionary has.

Here is what happens to text and token ids; `limner.encoders.word_towers` puts the embeddings in.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limner.encoders.tokenizer import PromptTruncated
from limner.errors import ConfigError, PromptError

PLACEHOLDER = "S*"
"""The paper's name for the person."""

NEUTRAL = "person"
"""The word that stands in the placeholder's slots where nobody in particular is painted."""

_LOOKS_LIKE_ONE = re.compile(r"(?<![\w*])[^\W\d_]\w*\*(?![\w*])|<[^\W\d]\w*>")


_WEIGHTED = re.compile(r"\(([^()]*?):\s*([-+]?\d*\.?\d+)\s*\)")
MAX_WEIGHT = 3.0


class Slot(NamedTuple):
    """One token of a prompt that belongs to a pseudo-word: number `word` of the k that `placeholder` stands for."""

    placeholder: str
    word: int


@dataclass(frozen=True)
class Layout:
    """B prompts as T tokens each, with the places of their pseudo-words.

    Attributes:
        ids: (B, T) int64: begin, prompt, end, padding; a pseudo-word's places hold the id of `NEUTRAL`.
        places: placeholder → (M, 3) int64: row, token, index of the word within the k; M is a multiple of k.
        weights: (B, T) float32, how much each token counts; None where every one counts 1.
    """

    ids: Tensor
    places: dict[str, Tensor]
    weights: Tensor | None = None


def check_placeholder(placeholder: str) -> str:
    """`placeholder`, if it can be told from ordinary words: `S*`, `anna*`, `<anna>`; else PromptError."""
    if not _LOOKS_LIKE_ONE.fullmatch(placeholder):
        raise PromptError(
            f"{placeholder!r} cannot stand for a person; a word with a star (S*) or in brackets (<anna>) can."
        )
    return placeholder


def split_prompt(prompt: str, placeholders: Collection[str]) -> list[str | Slot]:
    """A prompt as stretches of text and placeholders (as `Slot`s of word 0), in order. Case counts.

    Raises:
        PromptError: something that looks like a placeholder and is none of them.
    """
    longest_first = sorted(map(check_placeholder, placeholders), key=len, reverse=True)
    pattern = "|".join(rf"(?<![\w*]){re.escape(p)}(?![\w*])" for p in longest_first) or "(?!)"
    found: list[str | Slot] = []
    start = 0
    for match in re.finditer(pattern, prompt):
        found += [prompt[start : match.start()], Slot(match.group(), 0)]
        start = match.end()
    found.append(prompt[start:])
    for piece in found:
        stranger = _LOOKS_LIKE_ONE.search(piece) if isinstance(piece, str) else None
        if stranger:
            raise PromptError(
                f"The prompt names {stranger.group()}, which stands for nobody.",
                f"Known: {', '.join(placeholders) or 'no placeholder'}.",
            )
    return [p for p in found if not isinstance(p, str) or p.strip()]


def demand_named(prompt: str, placeholders: Collection[str]) -> None:
    """Raises PromptError, unless the prompt says where the person is to be."""
    if not any(isinstance(piece, Slot) for piece in split_prompt(prompt, placeholders)):
        raise PromptError(
            f"The prompt {prompt!r} does not say where the person is to be.",
            f'Write {" or ".join(placeholders)} for them, as in "{next(iter(placeholders), PLACEHOLDER)} as a wizard".',
        )


def split_weights(prompt: str) -> list[tuple[str, float]]:
    """A prompt as stretches of text with their weights: `(S*:1.2)` and `(in a hat:0.8)` count more and less than 1.

    Parentheses without a number are text.

    Raises:
        PromptError: a weight that is negative or over 3.
    """
    found: list[tuple[str, float]] = []
    start = 0
    for match in _WEIGHTED.finditer(prompt):
        weight = float(match.group(2))
        if not 0 <= weight <= MAX_WEIGHT:
            raise PromptError(f"{match.group()} has the weight {weight:g}; allowed: 0 to {MAX_WEIGHT:g}.")
        found += [(prompt[start : match.start()], 1.0), (match.group(1), weight)]
        start = match.end()
    return [(text, weight) for text, weight in [*found, (prompt[start:], 1.0)] if text.strip()]


def plain_text(prompt: str, person: str = " ") -> str:
    """The prompt without weights: only words that the tokenizer has to know. `person` takes the place of whatever looks
    like a placeholder."""
    return _LOOKS_LIKE_ONE.sub(person, _WEIGHTED.sub(r" \1 ", prompt))


def neutral_id(tokenizer: Any) -> int:
    """The token id of `NEUTRAL`.

    Raises:
        ConfigError: the tokenizer does not know it as one token.
    """
    ids = tokenizer(NEUTRAL, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] in (tokenizer.unk_token_id, tokenizer.eos_token_id):
        raise ConfigError(f"The tokenizer does not know {NEUTRAL!r}, the word for nobody in particular, as one token.")
    return int(ids[0])


def lay_out(
    tokenizer: Any,
    prompts: Sequence[str],
    context: int,
    words: Mapping[str, int],
    *,
    demanded: bool = False,
    quiet: bool = False,
) -> Layout:
    """Prompts as token ids with places for pseudo-words.

    A placeholder may stand anywhere and more than once, and parts may have weights (`split_weights`). What does not fit
    is cut off at the end, where a placeholder's k words stay or go together, as do the tokens of an ordinary word.

    Args:
        tokenizer: of the text tower.
        prompts: B sentences.
        context: T, tokens of a prompt.
        words: placeholder → k.
        demanded: every prompt must name at least one of them.
        quiet: do not warn of what was cut (the first of several towers did).

    Raises:
        PromptError: no placeholder where one is demanded, an unknown one, or too many words: k of them do not fit, or
            a placeholder is cut off wherever it stands.

    Warns:
        PromptTruncated: a prompt was too long; the warning quotes what was cut.
    """
    room, filler = context - 2, neutral_id(tokenizer)
    for placeholder, count in words.items():
        if count > room:
            raise PromptError(f"{placeholder} stands for {count} words; a prompt has room for {room}.")
    pad = tokenizer.pad_token_id or 0
    ids = torch.full((len(prompts), context), pad, dtype=torch.long)
    weights, weighted = torch.ones(ids.shape), False
    places: dict[str, list[tuple[int, int, int]]] = {p: [] for p in words}
    for row, prompt in enumerate(prompts):
        units: list[Unit] = []
        counts: list[float] = []
        for text, weight in split_weights(prompt):
            units += _units(tokenizer, split_prompt(text, words), words, room)
            counts += [weight] * (sum(map(len, units)) - len(counts))
        named = {u[0].placeholder for u in units if isinstance(u[0], Slot)}
        if demanded:
            demand_named(prompt, words)
        kept, cut = _fit(units, room)
        lost = sorted(named - {u.placeholder for u in kept if isinstance(u, Slot)})
        if lost:
            raise PromptError(
                f"The prompt has too many words: {room} tokens fit, and {lost[0]} comes after them.",
                f"Say {lost[0]} earlier, or say less.",
            )
        if cut and not quiet:
            message = f"The prompt has {len(kept) + len(cut) + 2} tokens, {context} fit; cut off: "
            warnings.warn(message + repr(_said(tokenizer, cut)), PromptTruncated, stacklevel=3)
        tokens = [filler if isinstance(u, Slot) else u for u in kept]
        ids[row, : len(tokens) + 2] = torch.tensor([tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id])
        weights[row, 1 : len(tokens) + 1] = torch.tensor(counts[: len(tokens)])
        weighted |= any(count != 1 for count in counts[: len(tokens)])
        for place, unit in enumerate(kept, 1):
            if isinstance(unit, Slot):
                places[unit.placeholder].append((row, place, unit.word))
    found = {p: torch.tensor(at, dtype=torch.long).view(-1, 3) for p, at in places.items()}
    return Layout(ids, found, weights if weighted else None)


Unit = list[int | Slot]
"""Tokens that stay or go together."""


def _units(tokenizer: Any, pieces: Sequence[str | Slot], words: Mapping[str, int], room: int) -> list[Unit]:
    units: list[Unit] = []
    for piece in pieces:
        if isinstance(piece, Slot):
            units.append([Slot(piece.placeholder, i) for i in range(words[piece.placeholder])])
        else:
            found = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for token, (start, stop) in zip(found["input_ids"], found["offset_mapping"], strict=True):
                inside = 0 < start < stop and _JOINED.fullmatch(piece[start - 1 : start + 1])
                if inside and units and len(units[-1]) < room and not isinstance(units[-1][0], Slot):
                    units[-1].append(token)
                else:
                    units.append([token])
    return units


_JOINED = re.compile(r"[\w'’-]{2}")
"""Two letters between which no word ends."""


def _fit(units: Sequence[Unit], room: int) -> tuple[Unit, Unit]:
    """What fits, and the rest, from the first unit on that does not."""
    kept: Unit = []
    for k, unit in enumerate(units):
        if len(kept) + len(unit) > room:
            return kept, [token for rest in units[k:] for token in rest]
        kept += unit
    return kept, []


def _said(tokenizer: Any, tokens: Unit) -> str:
    """Tokens as text, a pseudo-word by its placeholder."""
    said: list[str] = []
    run: list[int] = []
    for token in tokens:
        if isinstance(token, Slot):
            said += [tokenizer.decode(run)] * bool(run) + [token.placeholder] * (token.word == 0)
            run = []
        else:
            run.append(token)
    return " ".join([*said, tokenizer.decode(run)] if run else said)

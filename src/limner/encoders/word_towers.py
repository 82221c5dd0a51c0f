"""The text towers of a base, with words of one's own in the place of tokens; the towers themselves stay untouched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from limner.encoders.parts import load_text, save_text
from limner.encoders.pseudo_words import Layout, lay_out, neutral_id
from limner.encoders.text_tower import TextTower
from limner.errors import CorruptData, WeightsMismatch, WeightsUnavailable

FILE = "towers.json"
KINDS: dict[str, type[nn.Module]] = {
    "TextTower": TextTower,
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}


class Said(NamedTuple):
    """What the towers say of B prompts.

    Attributes:
        tokens: (B, T, C), the tokens of all towers joined on channels.
        pooled: (B, P) of the last tower, or None where the base has no use for it (SD 2.1).
    """

    tokens: Tensor
    pooled: Tensor | None


def zero_empty(said: Said, prompts: Sequence[str]) -> Said:
    """What was said, with zeros where the prompt is empty."""
    kept = torch.tensor([bool(p.strip()) for p in prompts], device=said.tokens.device)
    pooled = None if said.pooled is None else said.pooled * kept[:, None]
    return Said(said.tokens * kept[:, None, None], pooled)


class WordTowers(nn.Module):
    """One or more frozen text towers and their tokenizers.

    Args:
        towers: Limner's `TextTower`s, or transformers' `CLIPTextModel`s with and without projection.
        tokenizers: one each.
        penultimate: tokens are taken before the last layer and the final normalisation, as SDXL takes them; False
            takes the last layer normalised, as SD 2.1 and Limner's mini base do.
    """

    def __init__(self, towers: Sequence[nn.Module], tokenizers: Sequence[Any], penultimate: bool = False) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.tokenizers = list(tokenizers)
        self.penultimate = penultimate
        for tokenizer in self.tokenizers:
            neutral_id(tokenizer)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; diffusers asks every part of a pipeline."""
        return self.embeddings[0].weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.embeddings[0].weight.device

    @property
    def embeddings(self) -> list[nn.Embedding]:
        """The table of word embeddings of each tower."""
        return [t.token_embedding if isinstance(t, TextTower) else t.get_input_embeddings() for t in self._towers]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each tower's word embeddings."""
        return tuple(e.embedding_dim for e in self.embeddings)

    @property
    def width(self) -> int:
        """C, channels of a prompt's token."""
        return sum(self.widths)

    @property
    def pooled(self) -> int:
        """P, or 0 for towers without pooled output."""
        last = self._towers[-1]
        if isinstance(last, TextTower):
            return last.text_config.width
        return int(last.config.projection_dim or 0) if isinstance(last, CLIPTextModelWithProjection) else 0

    @property
    def context(self) -> int:
        """T, tokens of a prompt."""
        first = self._towers[0]
        return first.text_config.context if isinstance(first, TextTower) else first.config.max_position_embeddings

    def demand_widths(self, widths: Sequence[int]) -> None:
        """Raises WeightsMismatch unless words of these widths, one per tower, can stand in this base's prompts."""
        if tuple(widths) != self.widths:
            raise WeightsMismatch(
                f"This base has word embeddings of width {_list(self.widths)}; words of width {_list(widths)} were "
                "given.",
                "Take an encoder that was trained for this base.",
            )

    def lay_out(self, prompts: Sequence[str], words: Mapping[str, int], *, demanded: bool = False) -> list[Layout]:
        """The prompts for each tower; see `limner.encoders.pseudo_words.lay_out`."""
        return [
            lay_out(t, prompts, self.context, words, demanded=demanded, quiet=i > 0)
            for i, t in enumerate(self.tokenizers)
        ]

    def neutral_words(self, count: int) -> list[Tensor]:
        """(count, width) for each tower: the embedding of the word for nobody in particular, `count` times."""
        rows = [e.weight[neutral_id(t)] for e, t in zip(self.embeddings, self.tokenizers, strict=True)]
        return [row.detach().expand(count, -1) for row in rows]

    def forward(self, layouts: Sequence[Layout], people: Mapping[str, Sequence[Tensor]]) -> Said:
        """Encodes prompts that were laid out.

        Args:
            layouts: one per tower.
            people: placeholder → its words for each tower: (k, width) for all rows, or (B, k, width) for each row its
                own. A placeholder without words keeps the neutral word that the ids hold.

        Raises:
            WeightsMismatch: words of a width that these towers do not have.
        """
        for words in people.values():
            self.demand_widths([w.shape[-1] for w in words])
        said = [
            self._say(tower, table, layout, {p: words[i] for p, words in people.items()})
            for i, (tower, table, layout) in enumerate(zip(self._towers, self.embeddings, layouts, strict=True))
        ]
        tokens = [self._weighted(i, s.tokens, layout) for i, (s, layout) in enumerate(zip(said, layouts, strict=True))]
        return Said(torch.cat(tokens, -1), said[-1].pooled)

    # --- files ----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes towers.json and a folder 0/, 1/, … for each tower."""
        folder.mkdir(parents=True, exist_ok=True)
        for i, (tower, tokenizer) in enumerate(zip(self._towers, self.tokenizers, strict=True)):
            if isinstance(tower, TextTower):
                save_text(folder / str(i), tower, tokenizer)
            else:
                tower.save_pretrained(folder / str(i))
                tokenizer.save_pretrained(folder / str(i) / "tokenizer")
        facts = {"kinds": [type(t).__name__ for t in self._towers], "penultimate": self.penultimate}
        (folder / FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> WordTowers:
        """Reads what `save` wrote, in evaluation mode.

        Raises:
            WeightsUnavailable: not there.
            CorruptData, WeightsMismatch: damaged.
        """
        try:
            facts = json.loads((folder / FILE).read_text(encoding="utf-8"))
            kinds, penultimate = [KINDS[k] for k in facts["kinds"]], bool(facts["penultimate"])
        except FileNotFoundError as e:
            raise WeightsUnavailable(f"{folder} holds no text towers (it has no {FILE}).") from e
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CorruptData(f"{folder / FILE} is damaged ({e!r}).", "Copy the model's folder again.") from e
        parts = [_load(folder / str(i), folder / str(i) / "tokenizer", kind) for i, kind in enumerate(kinds)]
        return cls(*_columns(parts), penultimate).to(dtype).eval()

    @classmethod
    def from_base(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> WordTowers:
        """The towers of a text-to-image base: SD 2.1 or SDXL in diffusers' layout, or a base that Limner trained.

        Raises:
            WeightsUnavailable: the folder has no text towers.
            CorruptData, WeightsMismatch: damaged.
        """
        folder = Path(folder)
        own = sorted(folder.glob("text_[0-9]*"))
        if own:
            return cls(*_columns([load_text(f) for f in own])).to(dtype).eval()
        if not (folder / "text_encoder" / "config.json").is_file():
            raise WeightsUnavailable(
                f"{folder} holds no text towers (text_encoder/ or text_0/).",
                "Give the folder of a text-to-image base: SD 2.1-base, SDXL, or one that `limner train` made.",
            )
        second = (folder / "text_encoder_2" / "config.json").is_file()
        parts = [_load(folder / "text_encoder", folder / "tokenizer", CLIPTextModel)]
        if second:
            kind = CLIPTextModelWithProjection
            parts.append(_load(folder / "text_encoder_2", folder / "tokenizer_2", kind))
        return cls(*_columns(parts), penultimate=second).to(dtype).eval()

    # --- parts ----------------------------------------------------------------------------------------------------

    @property
    def _towers(self) -> list[Any]:
        return list(self.towers)

    def _say(self, tower: Any, table: nn.Embedding, layout: Layout, words: Mapping[str, Tensor]) -> Said:
        ids = layout.ids.to(table.weight.device)
        with _put(table, layout, words):
            if isinstance(tower, TextTower):
                own = tower(ids)
                return Said(own.tokens, own.pooled)
            said = tower(ids, output_hidden_states=self.penultimate)
        tokens = said.hidden_states[-2] if self.penultimate else said.last_hidden_state
        return Said(tokens, getattr(said, "text_embeds", None))

    def _weighted(self, number: int, tokens: Tensor, layout: Layout) -> Tensor:
        """Each token moved by its weight on the line from what the tower says there of an empty prompt."""
        if layout.weights is None:
            return tokens
        empty = lay_out(self.tokenizers[number], [""], self.context, {})
        nothing = self._say(self._towers[number], self.embeddings[number], empty, {}).tokens.to(tokens)
        return torch.lerp(nothing.expand_as(tokens), tokens, layout.weights.to(tokens)[..., None])


@contextmanager
def _put(table: nn.Embedding, layout: Layout, words: Mapping[str, Tensor]) -> Iterator[None]:
    """While the context lasts, what the table says at a pseudo-word's places is that word.

    A hook, since transformers' text models take ids alone; the rest of the tower runs as it is, masks and pooling
    included. Gradients reach the words.
    """

    def replace(_module: nn.Module, _given: Any, found: Tensor) -> Tensor:
        for placeholder, own in words.items():
            rows, places, index = layout.places[placeholder].to(found.device).unbind(1)
            values = own[rows, index] if own.ndim == 3 else own[index]
            found = found.index_put((rows, places), values.to(found))
        return found

    with table.register_forward_hook(replace):
        yield


def _load(folder: Path, tokenizer: Path, kind: type[nn.Module]) -> tuple[Any, Any]:
    if kind is TextTower:
        return load_text(folder)
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: Any = kind.from_pretrained(folder, local_files_only=True)  # type: ignore[attr-defined]
        return model, CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as e:
        raise CorruptData(f"The text tower in {folder} or its tokenizer cannot be loaded ({e}).") from e


def _columns(parts: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [tower for tower, _ in parts], [tokenizer for _, tokenizer in parts]


def _list(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths)) or "none"

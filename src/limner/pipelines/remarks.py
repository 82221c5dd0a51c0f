"""What a user should know before a picture is painted, as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limner.pipelines.loading import Model
    from limner.types import Identity


def world_remarks(model: Model, identity: Identity) -> list[str]:
    """What to say when a model that only knows synthetic people is given a real one."""
    if not (model.world and identity.info.get("outside")):
        return []
    return [
        f"{model.name} was trained on synthetic people ({model.world}) alone: a real photo lies outside its world, and "
        "the portrait will resemble it only roughly. For real people use a full-size model (see `limner models`)."
    ]


def prompt_remarks(model: Model, texts: Sequence[str]) -> list[str]:
    """Names the words that the model has never seen, which it cannot tell from one another."""
    from limner.encoders.tokenizer import unknown_words

    plain = getattr(model.pipe, "plain_prompt", str)  # placeholders of people are no words to be known
    words = [w for text in texts for w in unknown_words(model.pipe.tokenizer, plain(text))]
    if not words:
        return []
    return [f"{model.name} does not know these words and cannot paint them: {', '.join(dict.fromkeys(words))}."]


def truncation_remarks(model: Model, texts: Sequence[str]) -> list[str]:
    """Says which prompts are longer than the model reads."""
    tokenizer = model.pipe.tokenizer
    most = tokenizer.model_max_length
    lengths = [len(tokenizer(text, verbose=False)["input_ids"]) for text in texts if text]
    return [f"The prompt has {n} tokens, {most} fit; the rest was cut off." for n in lengths if n > most]

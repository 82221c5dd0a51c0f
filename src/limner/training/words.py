"""Which tokenizer a training uses, and captions as token ids."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limner.encoders.tokenizer import (
    IDENTITY_PREFIX,
    PromptTokenizer,
    PromptTruncated,
    build_word_tokenizer,
    clip_tokenizer,
    encode_prompts,
)

WORLD = "world"


def make_tokenizer(name: str, context: int) -> PromptTokenizer:
    """The tokenizer that a recipe names.

    Args:
        name: `world` (every word of the sitters' captions), the folder of a saved tokenizer, or a file of CLIP merges.
        context: tokens of a prompt.

    Raises:
        WeightsUnavailable, CorruptData: the file is not there or not what it should be.
    """
    if name == WORLD:
        from limner.world.captions import vocabulary

        return build_word_tokenizer(vocabulary(), context=context)
    if Path(name).is_dir():
        return PromptTokenizer.from_pretrained(name)
    return clip_tokenizer(name)


def caption_ids(tokenizer: Any, captions: Sequence[str], context: int, *, prefixed: bool = False) -> np.ndarray:
    """Token ids (N, context) int64 of captions; `prefixed` puts the identity prefix before each.

    Warns:
        PromptTruncated: once, with the number of captions that were too long.
    """
    texts = [IDENTITY_PREFIX + c for c in captions] if prefixed else list(captions)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PromptTruncated)
        ids = encode_prompts(tokenizer, texts, context).numpy()
    cut = sum(issubclass(w.category, PromptTruncated) for w in caught)
    if cut:
        message = f"{cut} of {len(texts)} captions were cut to {context} tokens."
        warnings.warn(message, PromptTruncated, stacklevel=2)
    return ids

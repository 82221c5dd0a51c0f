"""Prompts → token ids: CLIP's byte-pair tokenizer, word tokenizers for small worlds, and one way to use either."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from limner.encoders.published import MERGES, T5_TOKENIZER
from limner.errors import ConfigError, CorruptData, PromptError

IDENTITY_PREFIX = "Photo of a id person. "
"""What a prompt with a face begins with; the embedding of its `id` is replaced by the face's."""

IDENTITY_WORD = "id"
CLIP_MERGES = 48_894
"""Merges that make up CLIP's vocabulary: 2 × 256 bytes + merges + begin and end = 49,408."""

CLIP_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP splits a prompt into before merging bytes: endings, words, single digits, runs of other signs."""

PAD, BEGIN, UNKNOWN, END = "<pad>", "<begin>", "<unknown>", "<end>"
PUNCTUATION = tuple(".,:;!?'\"()-/&")


class PromptTruncated(UserWarning):
    """A prompt was longer than the encoder's context; the message quotes what was cut."""


class PromptTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer that pads with id 0 and whose end token has the highest id of all.

    Padding is not a *named* special token: in CLIP's vocabulary id 0 is an exclamation mark, and naming it would
    change how prompts that contain one are split.
    """

    @property
    def pad_token_id(self) -> int:
        return 0

    @property
    def pad_token(self) -> str:
        return str(self.convert_ids_to_tokens(0))

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, without the padding and truncation that the last call happened to use."""
        self.backend_tokenizer.no_padding()
        self.backend_tokenizer.no_truncation()
        return super().save_pretrained(*args, **kwargs)


def clip_tokenizer(path: str | Path | None = None) -> PromptTokenizer:
    """CLIP's tokenizer of 49,408 tokens, padded with 0, for prompts of 77 tokens.

    Args:
        path: file of byte-pair merges (`merges.txt` or CLIP's own `bpe_simple_vocab_16e6.txt`, plain or gzipped);
            None takes it from the Hugging Face hub or its cache.

    Raises:
        WeightsUnavailable: no path given, and the hub cannot be reached.
        CorruptData: the file holds no such merges.
    """
    merges = _read_merges(MERGES.resolve(path))
    letters = list(_byte_letters().values())
    vocabulary = letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges]
    begin, end = "<|startoftext|>", "<|endoftext|>"
    ids = {token: i for i, token in enumerate([*vocabulary, begin, end])}
    backend = Tokenizer(models.BPE(ids, merges, unk_token=end, end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    backend.post_processor = _enclose(begin, ids[begin], end, ids[end])
    return PromptTokenizer(tokenizer_object=backend, bos_token=begin, eos_token=end, unk_token=end, model_max_length=77)


def t5_tokenizer(path: str | Path | None = None) -> PromptTokenizer:
    """T5's tokenizer, padded with 0, for prompts of 512 tokens; its end token does not have the highest id.

    Args:
        path: its `tokenizer.json`, or the folder that holds it; None takes it from the Hugging Face hub or its cache.

    Raises:
        WeightsUnavailable: no path given, and the hub cannot be reached.
        CorruptData: the file is no tokenizer, or not T5's.
    """
    folder = None if path is None or not Path(path).is_dir() else Path(path)
    file = T5_TOKENIZER.resolve(folder / "tokenizer.json" if folder else path)
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as e:  # the library raises nothing narrower
        raise CorruptData(f"{file} is no tokenizer ({e}).", "Take tokenizer_2/tokenizer.json of FLUX.1-dev.") from e
    if (backend.token_to_id("<pad>"), backend.token_to_id("</s>")) != (0, 1):
        raise CorruptData(f"{file} is no tokenizer of T5.", "Take tokenizer_2/tokenizer.json of FLUX.1-dev.")
    return PromptTokenizer(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", model_max_length=512)


def _enclose(begin: str, begin_id: int, end: str, end_id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=[(begin, begin_id), (end, end_id)])


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, gzip.BadGzipFile, UnicodeDecodeError) as e:
        raise CorruptData(f"{path} is no readable file of byte-pair merges ({e}).") from e
    pairs = [tuple(line.split()) for line in text.split("\n")[1 : CLIP_MERGES + 1]]
    if len(pairs) != CLIP_MERGES or any(len(p) != 2 for p in pairs):
        raise CorruptData(
            f"{path} holds no {CLIP_MERGES} byte-pair merges below a header line.",
            "Take merges.txt of a CLIP model, or bpe_simple_vocab_16e6.txt.gz.",
        )
    return pairs  # type: ignore[return-value]


def _byte_letters() -> dict[int, str]:
    """Byte → printable letter, in vocabulary order: Latin letters stand for themselves, the rest is moved above 255."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    other = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(other)}


def build_word_tokenizer(words: Iterable[str], *, context: int = 77) -> PromptTokenizer:
    """A tokenizer that knows whole words, for a small world; lower-cases, and splits off punctuation.

    Args:
        words: the vocabulary; phrases are split, duplicates dropped, order kept. Punctuation and the words of the
            identity prefix are always known.
        context: tokens of a prompt, begin and end included.
    """
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])

    def split(text: str) -> list[str]:
        return [piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]

    known = [piece for text in (IDENTITY_PREFIX, *PUNCTUATION, *words) for piece in split(text)]
    vocabulary = list(dict.fromkeys([PAD, BEGIN, UNKNOWN, *known]))
    ids = {token: i for i, token in enumerate([*vocabulary, END])}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter
    backend.post_processor = _enclose(BEGIN, ids[BEGIN], END, ids[END])
    return PromptTokenizer(
        tokenizer_object=backend, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN, model_max_length=context
    )


def unknown_words(tokenizer: Any, prompt: str) -> list[str]:
    """Words of `prompt` that the tokenizer cannot tell from one another; empty for tokenizers that can spell."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:
        return []
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return list(dict.fromkeys(prompt[start:stop] for token, (start, stop) in pairs if token == unknown))


def encode_prompts(tokenizer: Any, prompts: Sequence[str], context: int) -> Tensor:
    """Token ids (B, context), int64: begin, prompt, end, padded with 0.

    Warns:
        PromptTruncated: a prompt was too long; the warning quotes what was cut.

    Raises:
        PromptError: something else than strings.
    """
    if isinstance(prompts, str) or not all(isinstance(p, str) for p in prompts):
        raise PromptError("Prompts are expected as a list of strings.", "Write [prompt].")
    ids = torch.zeros(len(prompts), context, dtype=torch.long)
    if not prompts:
        return ids
    for row, tokens in zip(ids, tokenizer(list(prompts), verbose=False)["input_ids"], strict=True):
        if len(tokens) > context:
            cut = tokenizer.decode(tokens[context - 1 : -1])
            warnings.warn(
                f"The prompt has {len(tokens)} tokens, {context} fit; cut off: {cut!r}.", PromptTruncated, stacklevel=4
            )
            tokens = [*tokens[: context - 1], tokens[-1]]
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def identity_position(tokenizer: Any) -> int:
    """Index of the identity word within an encoded prompt that begins with `IDENTITY_PREFIX`.

    Raises:
        ConfigError: the tokenizer does not know the word as one token.
    """
    word = tokenizer(IDENTITY_WORD, add_special_tokens=False)["input_ids"]
    prefix = tokenizer(IDENTITY_PREFIX)["input_ids"]
    if len(word) != 1 or word[0] not in prefix or (word[0] == tokenizer.unk_token_id):
        raise ConfigError(f"The tokenizer does not know {IDENTITY_WORD!r}, the word that stands for the person.")
    return int(prefix.index(word[0]))

"""Prompts as token ids, by spelling (CLIP) and by word."""

from __future__ import annotations

import gzip
import warnings

import pytest
import torch

from limner.encoders.tokenizer import (
    IDENTITY_PREFIX,
    PromptTokenizer,
    PromptTruncated,
    build_word_tokenizer,
    clip_tokenizer,
    encode_prompts,
    identity_position,
    unknown_words,
)
from limner.errors import ConfigError, CorruptData, PromptError, WeightsUnavailable


def test_words_are_lower_cased_and_punctuation_split_off(words: PromptTokenizer) -> None:
    ids = words("A CHEF, in (t-shirt)!")["input_ids"]
    tokens = words.convert_ids_to_tokens(ids)
    assert tokens == ["<begin>", "a", "chef", ",", "in", "(", "t", "-", "shirt", ")", "!", "<end>"]
    assert words.pad_token_id == 0
    assert words.eos_token_id == len(words) - 1 == max(words.get_vocab().values())


def test_unknown_words_are_named_once_and_as_written(words: PromptTokenizer) -> None:
    assert unknown_words(words, "A Chef on the Moon, moon and Moon") == ["on", "Moon", "moon", "and"]
    assert unknown_words(words, "a smiling chef.") == []


def test_a_spelling_tokenizer_knows_every_word(merges: PromptTokenizer) -> None:
    assert unknown_words(merges, "xyzzy 中 🙂") == []
    assert len(merges) == 49408


def test_an_exclamation_mark_is_no_padding(merges: PromptTokenizer) -> None:
    ids = merges("wow! !")["input_ids"]
    assert ids == [49406, 2781, 256, 256, 49407]


def test_saving_keeps_every_id(words: PromptTokenizer, merges: PromptTokenizer, tmp_path) -> None:
    text = "A chef! in Zürich, it's 7:30 t-shirt!!"
    for i, tokenizer in enumerate((words, merges)):
        tokenizer([text], padding="max_length", max_length=40, truncation=True)
        tokenizer.save_pretrained(tmp_path / str(i))
        again = PromptTokenizer.from_pretrained(tmp_path / str(i))
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert (again.pad_token_id, again.eos_token_id, len(again)) == (0, tokenizer.eos_token_id, len(tokenizer))
        assert again.model_max_length == tokenizer.model_max_length


def test_short_prompts_are_padded_silently(words: PromptTokenizer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = encode_prompts(words, ["a chef", ""], 12)
    assert ids.dtype == torch.int64
    assert ids[0].tolist() == words("a chef")["input_ids"] + [0] * 8
    assert ids[1].tolist() == [words.bos_token_id, words.eos_token_id] + [0] * 10
    assert encode_prompts(words, [], 12).shape == (0, 12)


def test_long_prompts_are_cut_and_the_warning_quotes_what_is_lost(words: PromptTokenizer) -> None:
    with pytest.warns(PromptTruncated, match=r"15 tokens, 12 fit; cut off: 'wizard hat person'"):
        ids = encode_prompts(words, ["the old chef at sea in front of the smiling wizard hat person"], 12)
    assert ids[0, -1] == words.eos_token_id
    assert words.convert_ids_to_tokens(ids[0, -2:-1]) == ["smiling"]


def test_clip_quotes_cut_words_as_words(merges: PromptTokenizer) -> None:
    with pytest.warns(PromptTruncated, match="photorealistic portrait"):
        encode_prompts(merges, ["very " * 75 + "photorealistic portrait"], 77)


def test_prompts_that_are_none_are_refused(words: PromptTokenizer) -> None:
    for wrong in ("a chef", ["a", 3], [None]):
        with pytest.raises(PromptError):
            encode_prompts(words, wrong, 12)


def test_the_identity_word_has_its_place(words: PromptTokenizer, merges: PromptTokenizer) -> None:
    for tokenizer in (words, merges):
        position = identity_position(tokenizer)
        ids = encode_prompts(tokenizer, [IDENTITY_PREFIX + "an id card"], 40)[0]
        assert tokenizer.decode([ids[position]]).strip() == "id"
        assert position == 4


def test_a_tokenizer_without_the_identity_word_is_refused() -> None:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<u>": 1, "<e>": 2}, unk_token="<u>"))
    tokenizer = PromptTokenizer(tokenizer_object=backend, unk_token="<u>", eos_token="<e>")
    with pytest.raises(ConfigError, match="'id'"):
        identity_position(tokenizer)


def test_the_same_words_make_the_same_tokenizer() -> None:
    first, second = (build_word_tokenizer(["Red hat", "hat", "blue"]) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert {"red", "hat", "blue", "photo", "id", "."} <= set(first.get_vocab())


def test_merges_come_from_a_plain_file_too_and_others_are_refused(merges, shared, tmp_path, monkeypatch) -> None:
    packed = shared / "parity" / "clip_bpe_merges.txt.gz"
    plain = tmp_path / "merges.txt"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    monkeypatch.setenv("LIMNER_CLIP_MERGES", str(plain))
    assert clip_tokenizer()("a chef")["input_ids"] == merges("a chef")["input_ids"]
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(packed.read_bytes()[:5000])
    short = tmp_path / "short.txt"
    short.write_text("#version\na b\n")
    for wrong in (damaged, short):
        with pytest.raises(CorruptData):
            clip_tokenizer(wrong)
    with pytest.raises(WeightsUnavailable):
        clip_tokenizer(tmp_path / "absent")

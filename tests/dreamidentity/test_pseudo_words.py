"""Pseudo-words in prompts, in the towers of SD 2.1, SDXL and the mini base."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from dream_models import BASES, CONTEXT, WIDTHS, clip_tokenizer, save_base, towers
from torch import Tensor

from limner.encoders.pseudo_words import Slot, check_placeholder, lay_out, plain_text, split_prompt
from limner.encoders.tokenizer import PromptTokenizer, PromptTruncated, build_word_tokenizer
from limner.encoders.word_towers import WordTowers
from limner.errors import ConfigError, CorruptData, PromptError, WeightsMismatch, WeightsUnavailable


@pytest.fixture(params=["words", "clip"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return clip_tokenizer() if request.param == "clip" else build_word_tokenizer(["a photo of", "hat as wizard in"])


def person(base: str, count: int = 2, seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(count, w, generator=random) for w in WIDTHS[base]]


def body(layout: Any, tokenizer: Any, row: int = 0) -> list[Any]:
    """A row as it reads: words, and (placeholder, index) for pseudo-words."""
    marks = {(r, t): (p, i) for p, at in layout.places.items() for r, t, i in at.tolist()}
    ids = layout.ids[row].tolist()
    end = ids.index(tokenizer.eos_token_id)
    assert ids[0] == tokenizer.bos_token_id
    assert set(ids[end + 1 :]) <= {tokenizer.pad_token_id}
    return [marks.get((row, t)) or tokenizer.decode([ids[t]]).strip() for t in range(1, end)]


def test_anywhere_and_more_than_once(tokenizer: Any) -> None:
    prompts = ["S* as a wizard", "a photo of S*", "S*,S*", "a hat"]
    layout = lay_out(tokenizer, prompts, CONTEXT, {"S*": 2})
    one = [("S*", 0), ("S*", 1)]
    assert body(layout, tokenizer, 0) == [*one, "as", "a", "wizard"]
    assert body(layout, tokenizer, 1) == ["a", "photo", "of", *one]
    assert body(layout, tokenizer, 2) == [*one, ",", *one]
    assert body(layout, tokenizer, 3) == ["a", "hat"]


def test_a_prompt_without_placeholders_is_tokenised_as_ever(tokenizer: Any) -> None:
    text = "A photo of, a wizard in a hat!"
    plain = tokenizer([text])["input_ids"][0]
    assert lay_out(tokenizer, [text], CONTEXT, {"S*": 2}).ids[0, : len(plain)].tolist() == plain


def test_two_people_of_different_lengths(tokenizer: Any) -> None:
    layout = lay_out(tokenizer, ["A* in a hat, B* as a wizard"], CONTEXT, {"A*": 1, "B*": 3}, demanded=True)
    b = [("B*", 0), ("B*", 1), ("B*", 2)]
    assert body(layout, tokenizer) == [("A*", 0), "in", "a", "hat", ",", *b, "as", "a", "wizard"]


@pytest.mark.parametrize("words", [1, 2, 3, 5])
@pytest.mark.parametrize("before", range(15))
def test_truncation_never_cuts_a_pseudo_word(words: int, before: int) -> None:
    tokenizer = clip_tokenizer()
    prompt = "S* " + "hat " * before + "S* in a hat"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layout = lay_out(tokenizer, [prompt], CONTEXT, {"S*": words})
    read = body(layout, tokenizer)
    assert len(read) <= CONTEXT - 2
    whole = words + before + words + 3
    assert bool(caught) == (whole > CONTEXT - 2)
    second_fits = words + before + words <= CONTEXT - 2
    assert len(layout.places["S*"]) == words * (1 + second_fits)
    if caught:
        assert caught[0].category is PromptTruncated
        assert ("S*" in str(caught[0].message).split("cut off")[1]) == (not second_fits)
    if not second_fits:
        assert read == [("S*", i) for i in range(words)] + ["hat"] * min(before, CONTEXT - 2 - words)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a wizard", "does not say where the person is"),
        ("", "does not say where the person is"),
        ("T* as a wizard", r"names T\*, which stands for nobody\. Known: S\*"),
        ("S* and <anna>", "names <anna>"),
        ("hat " * 13 + "S*", "too many words: 14 tokens fit, and S. comes after them"),
    ],
)
def test_prompts_that_cannot_be_used(tokenizer: Any, prompt: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        lay_out(tokenizer, [prompt], CONTEXT, {"S*": 2}, demanded=True)


def test_words_that_fit_no_prompt(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match=r"S\* stands for 15 words; a prompt has room for 14"):
        lay_out(tokenizer, ["S*"], CONTEXT, {"S*": 15})


@pytest.mark.parametrize("text", ["5 * 3", "f**k", "2*", "*", "a < b > c", "S**", "s"])
def test_stars_that_are_no_placeholders(text: str) -> None:
    assert split_prompt(text, ["S*"]) == [text]


@pytest.mark.parametrize("text", ["ES*", "s*", "S* and T*"])
def test_near_misses_are_not_taken_for_the_person(text: str) -> None:
    with pytest.raises(PromptError, match="stands for nobody"):
        split_prompt(text, ["S*"])


@pytest.mark.parametrize("name", ["S*", "anna*", "<anna>", "Ü*"])
def test_any_placeholder(name: str) -> None:
    assert split_prompt(f"a photo of {name}'s hat", [name]) == ["a photo of ", Slot(name, 0), "'s hat"]
    assert plain_text(f"a {name} b").split() == ["a", "b"]


@pytest.mark.parametrize("name", ["person", "", "S *", "5*", "<a b>"])
def test_names_that_are_no_placeholders(name: str) -> None:
    with pytest.raises(PromptError, match="cannot stand for a person"):
        check_placeholder(name)


def test_a_tokenizer_without_the_neutral_word_is_refused() -> None:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"<u>": 0, "hat": 1, "<e>": 2}, unk_token="<u>"))
    with pytest.raises(ConfigError, match="nobody in particular"):
        WordTowers([], [PromptTokenizer(tokenizer_object=backend, unk_token="<u>", eos_token="<e>")])


# --- towers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
@torch.no_grad()
def test_known_words_as_pseudo_words_change_nothing(base: str) -> None:
    """The embeddings of "wizard hat" under the name S* say exactly what "wizard hat" says."""
    model = towers(base)
    ids = [t("wizard hat", add_special_tokens=False)["input_ids"] for t in model.tokenizers]
    words = [e.weight[i] for e, i in zip(model.embeddings, ids, strict=True)]
    plain = model(model.lay_out(["a wizard hat in snow", "wizard hat"], {}), {})
    ours = model(model.lay_out(["a S* in snow", "S*"], {"S*": 2}), {"S*": words})
    assert torch.allclose(ours.tokens, plain.tokens, atol=1e-5)
    assert ours.tokens.shape == (2, CONTEXT, model.width)
    if base == "sd21":
        assert ours.pooled is None
        assert model.pooled == 0
    else:
        assert torch.allclose(ours.pooled, plain.pooled, atol=1e-5)
        assert ours.pooled.shape == (2, model.pooled)


@torch.no_grad()
def test_plain_prompts_are_what_diffusers_makes_of_them() -> None:
    xl, prompt = towers("sdxl"), "a wizard in snow, wearing a hat"
    expected = _sdxl_embeddings(xl, prompt)
    ours = xl(xl.lay_out([prompt], {"S*": 2}), {})
    assert torch.allclose(ours.tokens, expected[0], atol=1e-6)
    assert torch.allclose(ours.pooled, expected[1], atol=1e-6)
    sd = towers("sd21")
    given = sd.tokenizers[0](prompt, padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
    assert torch.allclose(sd(sd.lay_out([prompt], {}), {}).tokens, sd.towers[0](given)[0], atol=1e-6)


@pytest.mark.parametrize("base", BASES)
def test_every_row_its_own_person_and_gradients_for_each(base: str) -> None:
    model = towers(base).requires_grad_(False)
    one, two = person(base), person(base, seed=1)
    rows = [torch.stack([a, b]).requires_grad_() for a, b in zip(one, two, strict=True)]
    layouts = model.lay_out(["a photo of S*", "S* as a wizard"], {"S*": 2})
    together = model(layouts, {"S*": rows})
    for row, (prompt, own) in enumerate((("a photo of S*", one), ("S* as a wizard", two))):
        alone = model(model.lay_out([prompt], {"S*": 2}), {"S*": own})
        assert torch.allclose(together.tokens[row], alone.tokens[0], atol=1e-5)
    together.tokens.square().sum().backward()
    assert all(float(g.grad.abs().amin(-1).min()) > 0 for g in rows)
    assert not any(e._forward_hooks for e in model.embeddings)


@pytest.mark.parametrize("base", BASES)
@torch.no_grad()
def test_the_person_is_seen_and_without_words_the_neutral_one(base: str) -> None:
    model = towers(base)
    layouts = model.lay_out(["S* as a chef"], {"S*": 2})
    nobody = model(layouts, {})
    assert torch.allclose(model(layouts, {"S*": model.neutral_words(2)}).tokens, nobody.tokens, atol=1e-6)
    said = model(model.lay_out(["person person as a chef"], {}), {})
    assert torch.allclose(nobody.tokens, said.tokens, atol=1e-6)
    assert not torch.allclose(model(layouts, {"S*": person(base)}).tokens, nobody.tokens, atol=1e-2)


@pytest.mark.parametrize("base", BASES)
def test_words_of_another_width_are_refused(base: str) -> None:
    model = towers(base)
    with pytest.raises(WeightsMismatch, match=r"word embeddings of width 16 and 24|width 24; words of width 7"):
        model(model.lay_out(["S*"], {"S*": 2}), {"S*": [torch.zeros(2, 7)]})


@pytest.mark.parametrize("base", BASES)
@torch.no_grad()
def test_towers_saved_and_loaded(base: str, tmp_path: Path) -> None:
    model, words = towers(base), {"S*": person(base)}
    model.save(tmp_path)
    again = WordTowers.load(tmp_path)
    prompts = ["S* as a wizard, tall"]
    first, second = (m(m.lay_out(prompts, {"S*": 2}), words) for m in (model, again))
    assert torch.equal(first.tokens, second.tokens)
    (tmp_path / "towers.json").write_text("{}")
    with pytest.raises(CorruptData, match="damaged"):
        WordTowers.load(tmp_path)


@pytest.mark.parametrize("base", BASES)
@torch.no_grad()
def test_towers_of_a_base(base: str, tmp_path: Path) -> None:
    model = towers(base)
    with pytest.raises(WeightsUnavailable, match="holds no text towers"):
        WordTowers.from_base(tmp_path)
    save_base(base, tmp_path)
    again = WordTowers.from_base(tmp_path)
    assert (again.widths, again.penultimate, again.pooled) == (model.widths, model.penultimate, model.pooled)
    first, second = (m(m.lay_out(["a wizard"], {}), {}) for m in (model, again))
    assert torch.equal(first.tokens, second.tokens)


def _sdxl_embeddings(model: WordTowers, prompt: str) -> tuple[Tensor, Tensor]:
    """By diffusers' own code, given these towers."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline(
        vae=None, unet=None, scheduler=EulerDiscreteScheduler(),
        text_encoder=model.towers[0], text_encoder_2=model.towers[1],
        tokenizer=model.tokenizers[0], tokenizer_2=model.tokenizers[1],
    )  # fmt: skip
    embeds, _, pooled, _ = pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    return embeds, pooled


def test_truncation_cuts_no_word_in_half() -> None:
    tokenizer = clip_tokenizer()
    for before in range(8):
        prompt = "hat " * before + "xylo's blue-ish hat"  # spelt letter by letter
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            layout = lay_out(tokenizer, [prompt], CONTEXT, {})
        ids = layout.ids[0].tolist()
        said = tokenizer.decode(ids[1 : ids.index(tokenizer.eos_token_id)]).replace(" ", "")
        ends = ("", "xylo's", "xylo'sblue-ish", "xylo'sblue-ishhat")
        assert said in ["hat" * before + end for end in ends]
    endless = lay_out(tokenizer, ["x" * 40], CONTEXT, {}, quiet=True)  # no word at all: it is cut where it must be
    assert endless.ids[0].tolist().index(tokenizer.eos_token_id) == CONTEXT - 1


def test_weights_stand_beside_their_tokens(tokenizer: Any) -> None:
    layout = lay_out(tokenizer, ["a (S*:1.5) as (wizard, in a hat:0.5) of", "a hat (in a hat)"], CONTEXT, {"S*": 2})
    plain = lay_out(tokenizer, ["a S* as wizard, in a hat of", "a hat (in a hat)"], CONTEXT, {"S*": 2})
    assert torch.equal(layout.ids, plain.ids)
    assert torch.equal(layout.places["S*"], plain.places["S*"])
    assert plain.weights is None
    assert layout.weights is not None
    assert layout.weights[0].tolist() == [1, 1, 1.5, 1.5, 1, *[0.5] * 5, *[1] * (CONTEXT - 10)]
    assert bool((layout.weights[1] == 1).all())
    assert lay_out(tokenizer, ["(S*:1.0) (hat: 1)"], CONTEXT, {"S*": 1}).weights is None
    assert plain_text("(S*:1.2) in a (hat:0.8)").split() == ["in", "a", "hat"]


@pytest.mark.parametrize("prompt", ["(hat:-1)", "(hat:3.5)", "(S*:9)"])
def test_weights_out_of_range(tokenizer: Any, prompt: str) -> None:
    with pytest.raises(PromptError, match="allowed: 0 to 3"):
        lay_out(tokenizer, [prompt], CONTEXT, {"S*": 1})


@pytest.mark.parametrize("base", BASES)
def test_a_weight_scales_what_a_token_says(base: str) -> None:
    model, words = towers(base), {"S*": person(base)}

    def say(prompt: str) -> Tensor:
        with torch.no_grad():
            return model(model.lay_out([prompt], {"S*": 2}), words).tokens[0]

    plain, empty = say("S* in a hat"), say("")
    weighted = say("(S*:1.5) in a (hat:0)")
    assert torch.allclose(weighted[1:3] - empty[1:3], 1.5 * (plain[1:3] - empty[1:3]), atol=1e-4)
    assert torch.equal(weighted[3:5], plain[3:5])
    assert torch.allclose(weighted[5], empty[5], atol=1e-5)
    assert torch.equal(say("(S*:1) in a hat"), plain)

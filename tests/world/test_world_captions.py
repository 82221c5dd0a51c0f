"""Captions say nothing that is not so; prompts are understood and can be fulfilled."""

from __future__ import annotations

import pytest

from limner.errors import ConfigError, PromptError
from limner.world.captions import (
    EDIT_PROMPTS,
    NAME_PROMPT,
    caption,
    labels,
    requirements,
    view_from_prompt,
    vocabulary,
)
from limner.world.factors import HEADWEAR, STYLES
from limner.world.identity import sitter
from limner.world.names import name_of, names, seed_of
from limner.world.sampling import sample_view
from limner.world.splits import SPLITS, sitter_of, split_of
from limner.world.words import tokens

PERSONAL = ("sex", "age", "freckles")


def test_captions_are_true_known_and_various() -> None:
    known, said, mentioned = set(vocabulary()), set(), set()
    for k in range(1000):
        person = sitter(k % 50)
        view = sample_view(person, k)
        truth = labels(person, view)
        text = caption(person, view, k, (None, "S*", "Selma Jeldield")[k % 3])
        assert text == caption(person, view, k, (None, "S*", "Selma Jeldield")[k % 3])
        assert set(tokens(text)) <= known
        for key, value in requirements(text).items():
            assert truth[key] == value, text
            mentioned.add((key, value))
        said.add(text)
        assert (k % 3 != 1) or "S*" in text
    assert len(said) > 900
    for style in STYLES:
        assert ("style", style) in mentioned
    for worn in HEADWEAR[1:]:
        assert ("headwear", worn) in mentioned


@pytest.mark.parametrize("prompt", EDIT_PROMPTS)
def test_every_prompt_of_dreamidentity_is_said_and_fulfilled(prompt: str) -> None:
    person = sitter(11)
    wanted = requirements(prompt)
    assert len(wanted) > 1 or wanted["style"] != "photo"
    for seed in range(4):
        view = view_from_prompt(prompt, person, seed)
        truth = labels(person, view)
        assert all(truth[k] == v for k, v in wanted.items())
    assert any(prompt == caption(person, view_from_prompt(prompt, person, k), k, "S*") for k in range(600))


def test_the_name_prompt_is_said() -> None:
    name = names()[5]
    person = sitter(seed_of(name))
    prompt = NAME_PROMPT.format(name=name)
    assert labels(person, view_from_prompt(prompt, person, 1))["gaze"] == "camera"
    assert any(caption(person, view_from_prompt(prompt, person, k), k, name) == prompt for k in range(200))


def test_a_caption_leads_to_a_view_that_fulfils_it() -> None:
    for k in range(150):
        person = sitter(k)
        text = caption(person, sample_view(person, k), k)
        truth = labels(person, view_from_prompt(text, person, k))
        for key, value in requirements(text).items():
            assert key in PERSONAL or truth[key] == value, text


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a photo of a woman as a firefighter on a beach", {"headwear": "firefighter", "scene": "beach"}),
        ("me as a watercolor wizard", {"headwear": "wizard", "style": "watercolor"}),
        ("S* with long red hair and a yellow hoodie", {"hair": "long", "hair_color": "red", "cloth_color": "yellow"}),
        ("an old man with a full beard, in dim light", {"facial_hair": "full_beard", "light_level": "dim"}),
        (
            "S*, orange beanie, laughing, on a street",
            {"headwear_color": "orange", "expression": "laughing"},
        ),
    ],
)
def test_what_people_type(prompt: str, wanted: dict[str, str]) -> None:
    person = sitter(2)
    assert wanted.items() <= requirements(prompt).items()
    assert wanted.items() <= labels(person, view_from_prompt(prompt, person, 0)).items()


def test_prompts_that_cannot_be_used() -> None:
    with pytest.raises(PromptError, match="empty"):
        requirements(" ,. ")
    with pytest.raises(PromptError, match="time"):
        view_from_prompt("S* in a garden at night", sitter(1), 0)


def test_names_are_unique_and_belong_to_named_sitters() -> None:
    words = [w for n in names() for w in n.lower().split()]
    assert len(names()) == SPLITS["named"].count == 400
    assert len(words) == len(set(words)) == 800
    assert not set(words) & {w for w in vocabulary() if w not in words}
    first = SPLITS["named"].start
    assert name_of(first) == names()[0]
    assert name_of(first + 400) is None
    assert name_of(1) is None
    assert seed_of(names()[7].upper()) == first + 7
    assert seed_of("nobody known") is None


def test_splits_are_disjoint() -> None:
    seen: set[int] = set()
    for split in SPLITS.values():
        assert not seen & set(split.seeds)
        seen |= set(split.seeds)
    for name in ("test", "validation", "hard"):
        assert SPLITS[name].combinations == "any"
    assert SPLITS["train"].combinations == "seen"


def test_people_of_different_splits_are_different_people() -> None:
    digests = [sitter_of(name, k).digest() for name in SPLITS for k in range(20)]
    assert len(set(digests)) == len(digests)


def test_hard_pairs_share_everything_but_the_face() -> None:
    for k in range(0, 12, 2):
        a, b = sitter_of("hard", k), sitter_of("hard", k + 1)
        for name in ("sex", "age", "hair", "skin_color", "facial_hair", "glasses"):
            assert getattr(a, name) == getattr(b, name)
        assert a.form != b.form
        assert a.seed != b.seed


def test_unknown_splits_and_people() -> None:
    with pytest.raises(ConfigError, match="holiday"):
        split_of("holiday")
    with pytest.raises(ConfigError, match="20000"):
        sitter_of("train", 20000)

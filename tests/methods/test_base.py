"""What every method shares: checks of faces, prompts and strength."""

from __future__ import annotations

import pytest

from limner.errors import ConfigError, FaceError, PromptError
from limner.methods.base import demand_faces, demand_prompts, demand_strength


def test_negatives_are_one_for_all_one_each_or_empty() -> None:
    assert demand_prompts(["a", "b"], None) == (["a", "b"], ["", ""])
    assert demand_prompts(["a", "b"], ["n"]) == (["a", "b"], ["n", "n"])
    assert demand_prompts(["a", "b"], ["n", "m"]) == (["a", "b"], ["n", "m"])


@pytest.mark.parametrize(
    ("prompts", "negatives"), [([], None), ("a", None), (["a"], "n"), (["a", "b", "c"], ["n", "m"])]
)
def test_prompts_that_do_not_fit_are_refused(prompts, negatives) -> None:
    with pytest.raises(PromptError):
        demand_prompts(prompts, negatives)


def test_strength_and_faces_are_checked() -> None:
    assert demand_strength(1) == 1.0
    for wrong in (-0.01, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="strength"):
            demand_strength(wrong)
    with pytest.raises(FaceError):
        demand_faces([])

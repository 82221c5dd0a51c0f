"""Several people in one picture: each acts in a region of their own, and nowhere else."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import CONTEXT, noise_face, tiny_pipeline

from limner.errors import ConfigError, CorruptData, WeightsMismatch
from limner.pipelines.faceclip import FaceCLIPPipeline
from limner.pipelines.loading import Model
from limner.pipelines.memory import encode_then_free
from limner.pipelines.paint import default_dials, paint
from limner.pipelines.regions import NAMED, RegionProcessor, apart, grids, group, members, owners, parse_box
from limner.pipelines.schedulers import make_scheduler
from limner.provenance import compact
from limner.types import Conditioning, Identity

PROMPT = "a wizard in the snow"


@pytest.fixture(scope="module")
def people(tiny: FaceCLIPPipeline) -> list[Identity]:
    return [tiny.enroll(noise_face(i)) for i in range(3)]


@pytest.fixture
def pair(people: list[Identity]) -> Identity:
    return group(people[:2], ["left", "right"])


def latents(pipe: FaceCLIPPipeline, identity: Identity | None, *, prompt: Any = PROMPT, **options: Any) -> torch.Tensor:
    options = {"generator": torch.Generator().manual_seed(0), "output_type": "latent", **options}
    return pipe(prompt, identity=identity, **options).images


# --- attention --------------------------------------------------------------------------------------------------------


def gradients(pipe: FaceCLIPPipeline, told: Conditioning, side: int) -> torch.Tensor:
    """(side·side, people + 1): how much every place of a cross-attention layer depends on the tokens of each owner."""
    layer = pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
    tokens = told.prompt_embeds.clone().requires_grad_()
    queries = torch.randn(1, side * side, layer.to_q.in_features, generator=torch.Generator().manual_seed(1))
    answer = layer(queries, encoder_hidden_states=tokens)
    rows = []
    for place in range(side * side):
        (gradient,) = torch.autograd.grad(answer[0, place].square().sum(), tokens, retain_graph=True)
        rows.append(gradient.abs().unflatten(1, (-1, CONTEXT)).sum((0, 2, 3)))
    return torch.stack(rows)


@pytest.mark.parametrize("sliced", [False, True])
def test_tokens_have_no_weight_at_all_outside_their_region(sliced: bool, people: list[Identity]) -> None:
    pipe = tiny_pipeline()
    if sliced:
        pipe.unet.set_attention_slice("max")
    boxes = [(0.0, 0.0, 0.5, 1.0), (0.25, 0.5, 1.0, 1.0)]
    conditioning = pipe.condition(PROMPT, group(people[:2], boxes))
    with apart(pipe.unet, conditioning, 8, 8) as told:
        found = gradients(pipe, told, 4)
    owner = torch.from_numpy(owners(boxes, 4, 4).ravel())
    assert set(owner.tolist()) == {0, 1, 2}
    for place, number in itertools.product(range(16), range(3)):
        if owner[place] == number:
            assert found[place, number] > 0
        else:
            assert found[place, number] == 0


def test_another_person_changes_nothing_in_the_region_of_the_first(
    tiny: FaceCLIPPipeline, people: list[Identity]
) -> None:
    me, you, other = people
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    queries = torch.randn(2, 16, layer.to_q.in_features, generator=torch.Generator().manual_seed(1))
    answers = []
    for neighbour in (you, other):
        conditioning = tiny.condition([PROMPT, "a chef"], group([me, neighbour], ["left", "right"]))
        with apart(tiny.unet, conditioning, 8, 8) as told:
            answers.append(layer(queries, encoder_hidden_states=told.prompt_embeds).unflatten(1, (4, 4)))
    assert torch.equal(answers[0][:, :, :2], answers[1][:, :, :2])
    assert not torch.equal(answers[0][:, :, 2:], answers[1][:, :, 2:])


def test_each_region_gets_what_its_person_alone_would(tiny: FaceCLIPPipeline, people: list[Identity]) -> None:
    layer = tiny.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn2
    queries = torch.randn(1, 16, layer.to_q.in_features, generator=torch.Generator().manual_seed(1))
    with apart(tiny.unet, tiny.condition(PROMPT, group(people[:1], ["top"])), 8, 8) as told:
        both = layer(queries, encoder_hidden_states=told.prompt_embeds)
    alone = [layer(queries, encoder_hidden_states=tiny.condition(PROMPT, p).prompt_embeds) for p in (people[0], None)]
    torch.testing.assert_close(both, torch.cat([alone[0][:, :8], alone[1][:, 8:]], dim=1), atol=1e-6, rtol=0)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_one_region_of_everything_is_the_picture_of_that_person(
    tiny: FaceCLIPPipeline, people: list[Identity], guidance: float
) -> None:
    whole = latents(tiny, group(people[:1], ["all"]), guidance_scale=guidance)
    assert torch.equal(whole, latents(tiny, people[0], guidance_scale=guidance))


def test_people_and_places_matter(tiny: FaceCLIPPipeline, people: list[Identity], pair: Identity) -> None:
    seen = [latents(tiny, who) for who in (pair, group(people[1::-1], ["left", "right"]), people[0], None)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(seen, 2))


def test_the_unconditional_branch_is_that_of_one_person(tiny: FaceCLIPPipeline, pair: Identity) -> None:
    alone = tiny.condition(PROMPT, None, "hat")
    with apart(tiny.unet, tiny.condition(PROMPT, pair, "hat"), 8, 8) as told:
        layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2
        queries = torch.randn(1, 16, layer.to_q.in_features)
        apart_answer = layer(queries, encoder_hidden_states=told.negative_prompt_embeds)
    torch.testing.assert_close(apart_answer, layer(queries, encoder_hidden_states=alone.negative_prompt_embeds))
    torch.testing.assert_close(told.negative_pooled, alone.negative_pooled)


def test_groups_in_batches(tiny: FaceCLIPPipeline, pair: Identity) -> None:
    prompts, seeds = [PROMPT, "a chef"], [1, 2, 3, 4]
    every = latents(
        tiny, pair, prompt=prompts, num_images_per_prompt=2, generator=[torch.Generator().manual_seed(s) for s in seeds]
    )
    for i, seed in enumerate(seeds):
        alone = latents(tiny, pair, prompt=prompts[i // 2], generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(every[i : i + 1], alone, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ["euler-a", "heun", "unipc"])
def test_any_scheduler(tiny: FaceCLIPPipeline, people: list[Identity], name: str) -> None:
    pipe = FaceCLIPPipeline(**{**tiny.components, "scheduler": make_scheduler(name, tiny.scheduler)})
    pipe.set_progress_bar_config(disable=True)
    whole, alone = (latents(pipe, who) for who in (group(people[:1], ["all"]), people[0]))
    assert torch.isfinite(whole).all()
    assert torch.equal(whole, alone)


@pytest.mark.parametrize("size", [(48, 80), (40, 56), (64, 24)], ids=str)
def test_odd_sizes_have_masks_at_every_resolution(
    tiny: FaceCLIPPipeline, pair: Identity, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, known = set(), set()
    call = RegionProcessor.__call__

    def watch(self: RegionProcessor, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        known.update(self.places)
        asked.add(hidden_states.shape[1])
        return call(self, attn, hidden_states, *args, **kwargs)

    monkeypatch.setattr(RegionProcessor, "__call__", watch)
    assert torch.isfinite(latents(tiny, pair, height=size[0], width=size[1], num_inference_steps=1)).all()
    assert asked
    assert asked <= known == {h * w for h, w in grids(tiny.unet, size[0] // 8, size[1] // 8)}


def test_sliced_attention_paints_the_same(pair: Identity) -> None:
    plain, sliced = tiny_pipeline(), tiny_pipeline()
    sliced.unet.set_attention_slice("max")
    torch.testing.assert_close(latents(sliced, pair), latents(plain, pair), atol=1e-4, rtol=0)


def test_the_unet_is_left_as_it_was(tiny: FaceCLIPPipeline, pair: Identity) -> None:
    before, alone = tiny.unet.attn_processors, latents(tiny, None)
    seen = []

    def fail(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append({type(p) for p in pipe.unet.attn_processors.values()})
        raise KeyboardInterrupt

    latents(tiny, pair)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            latents(tiny, pair, callback_on_step_end=fail)
        after = tiny.unet.attn_processors
        assert after.keys() == before.keys()
        assert all(after[name] is before[name] for name in before)
    assert seen == [{RegionProcessor}] * 2
    assert torch.equal(latents(tiny, None), alone)


def test_a_freed_encoder_has_encoded_everybody(people: list[Identity]) -> None:
    pipe, who = tiny_pipeline(), compact(group(people[:2], ["left", "right"]))
    expected = latents(pipe, who)
    ready = encode_then_free(pipe, who, [PROMPT])
    torch.testing.assert_close(latents(pipe, None, prompt=None, conditioning=ready[PROMPT]), expected)
    moved = ready[PROMPT].to(torch.float16)
    assert {c.prompt_embeds.dtype for _, c in moved.regions} == {torch.float16}


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_is_an_identity(people: list[Identity], tmp_path: Path) -> None:
    who = compact(group(people, ["left-third", (1 / 3, 0.1, 2 / 3, 1), "right-third"]))
    who.save(tmp_path / "us.safetensors")
    loaded = Identity.load(tmp_path / "us.safetensors")
    assert loaded.digest() == who.digest() == compact(who).digest()
    assert [p.digest() for _, p in members(loaded)] == [compact(p).digest() for p in people]
    assert members(loaded)[1][0] == pytest.approx((1 / 3, 0.1, 2 / 3, 1), abs=1e-6)
    assert group(people, ["left", "top", "right"]).digest() != group(people, ["left", "bottom", "right"]).digest()


def test_portraits_say_who_is_where(tiny: FaceCLIPPipeline, pair: Identity) -> None:
    model, who = Model("tiny", tiny, {}), compact(pair)
    (portrait,) = paint(model, who, [PROMPT], [3], default_dials(model))
    assert portrait.identity == who.digest()
    assert portrait.settings["people"] == [
        {"box": list(NAMED[name]), "identity": person.digest()}
        for name, (_, person) in zip(["left", "right"], members(who), strict=True)
    ]
    (alone,) = paint(model, None, [PROMPT], [3], default_dials(model))
    assert "people" not in alone.settings


def test_later_people_stand_in_front() -> None:
    assert owners([NAMED["all"], NAMED["right"]], 2, 4).tolist() == [[1, 1, 2, 2]] * 2
    assert owners([NAMED["right"], NAMED["all"]], 2, 4).tolist() == [[2, 2, 2, 2]] * 2
    assert owners([(0.25, 0.5, 0.75, 1)], 2, 4).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0]]


def test_every_place_belongs_to_one_of_three_thirds() -> None:
    thirds = [NAMED[f"{name}-third"] for name in ("left", "middle", "right")]
    for width in range(3, 70):
        counts = np.bincount(owners(thirds, 1, width).ravel(), minlength=4)
        assert counts[0] == 0
        assert np.ptp(counts[1:]) <= 1


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,0,1", "allowed"),
        ("somewhere", "left-third"),
        ("", "allowed"),
        ("0.5,0,0.5,1", "empty"),
        ("0.7,0,0.3,1", "empty"),
        ("0,0,1.2,1", "outside"),
        ("-0.1,0,1,1", "outside"),
        ("0,nan,1,1", "outside"),
    ],
)
def test_bad_regions(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_box(text)


def test_bad_groups(people: list[Identity], pair: Identity) -> None:
    with pytest.raises(ConfigError, match="got none"):
        group([], [])
    with pytest.raises(ConfigError, match="1 people and 2 regions"):
        group(people[:1], ["left", "right"])
    with pytest.raises(ConfigError, match="2 people and 1 regions"):
        group(people[:2], ["left"])
    with pytest.raises(WeightsMismatch, match="one method"):
        group([people[0], dataclasses.replace(people[1], method="dreamidentity")], ["left", "right"])
    with pytest.raises(WeightsMismatch, match="one method"):
        group([pair], ["left"])
    del pair.tensors["boxes"]
    with pytest.raises(CorruptData, match="damaged"):
        members(pair)


def test_a_person_without_a_place(tiny: FaceCLIPPipeline, people: list[Identity]) -> None:
    with pytest.raises(ConfigError, match="hidden behind"):
        latents(tiny, group(people[:2], ["left", "all"]))
    with pytest.raises(ConfigError, match=r"too small.*4×4"):
        latents(tiny, group(people[:1], [(0.3, 0, 0.35, 1)]))
    assert not any(isinstance(p, RegionProcessor) for p in tiny.unet.attn_processors.values())


def test_people_of_another_model(tiny: FaceCLIPPipeline, people: list[Identity]) -> None:
    stranger = dataclasses.replace(
        people[0], tensors={k: -v if k.startswith("null") else v for k, v in people[0].tensors.items()}
    )
    with pytest.raises(WeightsMismatch, match="other weights"):
        latents(tiny, group([people[1], stranger], ["left", "right"]))


def test_conditionings_of_different_shapes(tiny: FaceCLIPPipeline, pair: Identity) -> None:
    conditioning = tiny.condition(PROMPT, pair)
    (left, first), *rest = conditioning.regions
    short = dataclasses.replace(first, prompt_embeds=first.prompt_embeds[:, :5])
    with pytest.raises(WeightsMismatch, match="one shape"):
        latents(tiny, None, prompt=None, conditioning=dataclasses.replace(conditioning, regions=((left, short), *rest)))

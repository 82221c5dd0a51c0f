"""Methods that tune: they learn a person, leave the base as it was, go on after a kill, paint from what they kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dream_models import BASES, save_base
from rival_models import digest
from tiny_model import noise_face

from limner.cli.main import main
from limner.errors import ConfigError, CorruptData, FaceError, PromptError, TrainingDiverged, WeightsMismatch
from limner.methods import tuning
from limner.methods.tuning import TuningSettings, place_faces
from limner.pipelines.dreamidentity import base_parts
from limner.pipelines.memory import encode
from limner.pipelines.regions import group
from limner.pipelines.tuned import TUNED, over_base
from limner.provenance import compact
from limner.types import Identity

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY = {"steps": 6, "batch_size": 2, "class_pictures": 2, "placements": 2, "checkpoint_every": 2, "rank": 2}
RATES = {"textual-inversion": 5e-2, "dreambooth": 2e-3, "dreambooth-lora": 5e-2}


def pipeline(method: str, base: Path, cache: Path, **settings: Any) -> Any:
    pipe = over_base(method, base, default_steps=2)
    pipe.set_progress_bar_config(disable=True)
    pipe.tuning = TuningSettings.from_dict({**TINY, "lr": RATES[method], **settings})
    pipe.cache = cache
    return pipe


def paint(pipe: Any, identity: Identity | None, **options: Any) -> np.ndarray:
    noise = torch.Generator().manual_seed(0)
    return pipe("a photo of S*", identity=identity, output_type="np", generator=noise, **options).images


@pytest.mark.parametrize("method", TUNED)
def test_it_learns_the_person_and_the_base_stays_as_it_was(method: str, parts: Path, tmp_path: Path) -> None:
    pipe = pipeline(method, parts / "base", tmp_path, steps=10)
    losses: list[float] = []
    lesson = tuning.Lesson.loss

    def watched(self: Any, step: int, *given: Any) -> Any:
        found = lesson(self, 0, *given)  # one batch with one noise, over and over
        losses.append(float(found.detach()))
        return found

    before = digest(pipe.unet, pipe.vae, pipe.encoder)
    names = [n for n, _ in pipe.unet.named_modules()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.Lesson, "loss", watched)
        person = compact(pipe.enroll([noise_face(0), noise_face(1)]))
    assert losses[-1] < losses[0], losses
    assert digest(pipe.unet, pipe.vae, pipe.encoder) == before
    assert [n for n, _ in pipe.unet.named_modules()] == names
    nobody, full = paint(pipe, None), paint(pipe, person)
    assert np.abs(full - nobody).max() > 1e-3
    assert np.array_equal(paint(pipe, person, strength=0.0), nobody)
    assert np.abs(paint(pipe, person, strength=0.5) - full).max() > 1e-4
    assert digest(pipe.unet, pipe.vae, pipe.encoder) == before
    person.save(tmp_path / "me.safetensors")
    fresh = pipeline(method, parts / "base", tmp_path)
    assert np.abs(paint(fresh, Identity.load(tmp_path / "me.safetensors")) - full).max() < 1e-5


def test_a_persons_weights_are_held_once_for_all_prompts(parts: Path, tmp_path: Path) -> None:
    pipe = pipeline("dreambooth", parts / "base", tmp_path, steps=1)
    person = pipe.enroll(noise_face(0))
    one, two = encode(pipe, person, ["S* in snow", "a photo of S*"], "hat", 0.5).values()
    assert one.steering.change
    assert one.steering is two.steering
    alone = pipe.condition("a photo of S*", person, "hat", 0.5)
    assert torch.equal(two.prompt_embeds, alone.prompt_embeds)
    assert all(torch.equal(v, two.steering.change[k]) for k, v in alone.steering.change.items())


@pytest.mark.parametrize("method", TUNED)
def test_a_learning_that_was_killed_goes_on(method: str, parts: Path, tmp_path: Path) -> None:
    whole = pipeline(method, parts / "base", tmp_path / "whole").enroll(noise_face(0))
    assert not list((tmp_path / "whole" / "tuning").glob("*"))
    pipe = pipeline(method, parts / "base", tmp_path / "cut")
    lesson = tuning.Lesson.loss

    def killed(self: Any, step: int, *given: Any) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return lesson(self, step, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.Lesson, "loss", killed)
        with pytest.raises(KeyboardInterrupt):
            pipe.enroll(noise_face(0))
    assert len(list((tmp_path / "cut" / "tuning").glob("*"))) == 1
    steps: list[int] = []

    def counted(self: Any, step: int, *given: Any) -> Any:
        steps.append(step)
        return lesson(self, step, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.Lesson, "loss", counted)
        again = pipe.enroll(noise_face(0))
    assert steps == [4, 5]
    assert again.digest() == whole.digest()
    assert not list((tmp_path / "cut" / "tuning").glob("*"))


@pytest.mark.parametrize("base", [b for b in BASES if b != "mini"])
@pytest.mark.parametrize("method", TUNED)
def test_full_size_shapes_and_mixed_precision(base: str, method: str, tmp_path: Path) -> None:
    pipe = pipeline(method, save_base(base, tmp_path / "base"), tmp_path, steps=1, precision="bf16")
    person = pipe.enroll(noise_face(0))
    assert np.abs(paint(pipe, person) - paint(pipe, None)).max() > 1e-5


def test_diffusers_reads_the_lora_of_a_person(parts: Path, tmp_path: Path) -> None:
    """What `dreambooth-lora` keeps is a LoRA as diffusers knows it, and there it says the same."""
    pipe = pipeline("dreambooth-lora", parts / "base", tmp_path)
    person = pipe.enroll(noise_face(0))
    told = pipe.condition("a photo of S*", person)
    ours = pipe(conditioning=told, output_type="np", generator=torch.Generator().manual_seed(0)).images
    theirs: Any = over_base("textual-inversion", parts / "base", default_steps=2)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights({k: v for k, v in person.tensors.items() if ".lora_" in k})
    plain = type(told)(told.prompt_embeds, told.pooled, told.negative_prompt_embeds, told.negative_pooled)
    images = theirs(conditioning=plain, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert np.abs(images - ours).max() < 1e-4


def test_prior_preservation_counts(parts: Path, tmp_path: Path) -> None:
    """With it the loss has a part that depends on the class pictures, which are painted once."""
    first = pipeline("dreambooth", parts / "base", tmp_path).enroll(noise_face(0))
    made = list((tmp_path / "class-pictures").glob("*.safetensors"))
    assert len(made) == 1
    stamp = made[0].stat().st_mtime_ns
    again = pipeline("dreambooth", parts / "base", tmp_path).enroll(noise_face(0))
    assert made[0].stat().st_mtime_ns == stamp
    assert again.digest() == first.digest()
    without = pipeline("dreambooth", parts / "base", tmp_path, prior_weight=0.0).enroll(noise_face(0))
    assert without.digest() != first.digest()


def test_faces_are_placed_within_the_picture() -> None:
    settings = TuningSettings(placements=6, framing=(0.25, 0.5))
    pictures, masks = place_faces(torch.ones(2, 3, 8, 8), 32, settings)
    assert pictures.shape == (6, 3, 32, 32)
    for picture, mask in zip(pictures, masks, strict=True):
        side = mask.sum().sqrt()
        assert 8 <= side <= 16
        assert bool((picture[:, mask[0] == 1] > 0.99).all())
        assert bool((picture[:, mask[0] == 0] == 0.5).all())
    assert len({tuple(m.nonzero()[0].tolist()) for m in masks}) > 3


def test_nothing_outside_the_face_counts(parts: Path, tmp_path: Path) -> None:
    pipe = pipeline("textual-inversion", parts / "base", tmp_path, batch_size=1, placements=1, framing=[0.5, 0.5])
    shots = tuning.shoot(pipe.studio, torch.rand(1, 3, 64, 64), pipe.tuning)
    assert 0 < float(shots.masks.mean()) < 0.5
    predicted = torch.zeros(shots.latents.shape, requires_grad=True)

    def denoise(*_: Any, **__: Any) -> Any:
        return type("Output", (), {"sample": predicted})

    tuning.Lesson(pipe.studio, pipe.encoder.towers, shots, pipe.tuning).loss(
        0, pipe.method.neutral(1), denoise
    ).backward()
    assert predicted.grad is not None
    moved = (predicted.grad != 0).all(1, keepdim=True).float()
    assert torch.equal(moved, shots.masks)


def test_what_cannot_be_learnt_or_painted(parts: Path, tmp_path: Path) -> None:
    pipe = pipeline("dreambooth", parts / "base", tmp_path, steps=1)
    with pytest.raises(FaceError, match="at least one face"):
        pipe.method.enroll([])
    person = pipe.enroll(noise_face(0))
    with pytest.raises(PromptError, match="does not say where the person is"):
        pipe("a wizard", identity=person)
    with pytest.raises(ConfigError, match="cannot paint several in one picture"):
        pipe("a photo of S*", identity=group([person, person], [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]))
    stranger = Identity({**person.tensors, "delta.nothing": torch.zeros(1)}, "dreambooth", 1, "x")
    with pytest.raises(WeightsMismatch, match="changes nothing"):
        pipe("S*", identity=stranger)
    other = pipeline("dreambooth", save_base("sd21", tmp_path / "other"), tmp_path)
    with pytest.raises(WeightsMismatch, match="enrolled with other weights"):
        other("S*", identity=person)
    lora = pipeline("dreambooth-lora", parts / "base", tmp_path, steps=1)
    half = lora.enroll(noise_face(0))
    lacking = {k: v for k, v in half.tensors.items() if "lora_B" not in k}
    with pytest.raises(WeightsMismatch, match=r"lacks unet.*lora_B"):
        lora("S*", identity=Identity(lacking, "dreambooth-lora", 1, "x"))
    with pytest.raises(TrainingDiverged, match=r"failed at step \d"):
        pipeline("textual-inversion", parts / "base", tmp_path, lr=1e30).enroll(noise_face(0))
    with pytest.raises(ConfigError, match="does not learn people by tuning"):
        over_base("faceclip", parts / "base")


@pytest.mark.parametrize("method", TUNED)
def test_learnt_over_what_the_painter_was_distilled_from(method: str, parts: Path, tmp_path: Path) -> None:
    student = save_base("mini", tmp_path / "student")
    unet = base_parts(student)[1]
    with torch.no_grad():
        unet.conv_out.weight.neg_()
    unet.save_pretrained(student / "unet")
    teacher = pipeline(method, parts / "base", tmp_path, prior_weight=0.0)
    painter = pipeline(method, student, tmp_path, prior_weight=0.0)
    wanted, alone = teacher.enroll(noise_face(0)), painter.enroll(noise_face(0))
    painter.learn_over(parts / "base")
    before = digest(painter.unet, painter.teacher)
    found = painter.enroll(noise_face(0))
    assert digest(painter.unet, painter.teacher) == before
    learnt = [k for k in found.tensors if k != "probe"]
    assert all(torch.equal(found.tensors[k], wanted.tensors[k]) for k in learnt)
    assert not all(torch.equal(found.tensors[k], alone.tensors[k]) for k in learnt)
    assert np.isfinite(paint(painter, found)).all()
    with pytest.raises(WeightsMismatch, match="enrolled with other weights"):
        paint(teacher, found)
    with pytest.raises(WeightsMismatch, match="is not the one"):
        painter.learn_over(save_base("sd21", tmp_path / "other"))


def test_a_damaged_checkpoint(parts: Path, tmp_path: Path) -> None:
    pipe = pipeline("textual-inversion", parts / "base", tmp_path, checkpoint_every=1)
    lesson = tuning.Lesson.loss

    def killed(self: Any, step: int, *given: Any) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return lesson(self, step, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.Lesson, "loss", killed)
        with pytest.raises(KeyboardInterrupt):
            pipe.enroll(noise_face(0))
    next((tmp_path / "tuning").glob("*")).write_bytes(b"nonsense")
    with pytest.raises(CorruptData, match="Delete it and start again"):
        pipe.enroll(noise_face(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "1 or more"),
        ({"lr": 0.0}, "more than 0"),
        ({"templates": ["a photo"]}, r"sentences with S\*"),
        ({"framing": [0.9, 0.5]}, "two rising shares"),
        ({"class_pictures": 0}, "with prior_weight"),
        ({"precision": "half"}, "no, bf16"),
        ({"speed": 3}, "has no field 'speed'"),
    ],
)
def test_settings_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TuningSettings.from_dict(changes)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("**/rivals/tuning/*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_complete(path: Path) -> None:
    TuningSettings.load(path)
    header = path.read_text().split("steps:")[0]
    assert all(f"# {word}" in header for word in ("Learns", "Command", "Cost", "Result"))


def run(*arguments: str | Path) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


def test_the_commands(parts: Path, tmp_path: Path, capsys: Any) -> None:
    photo, me, recipe = tmp_path / "sitter.png", tmp_path / "me.safetensors", tmp_path / "short.yaml"
    recipe.write_text("steps: 2\nplacements: 2\nbatch_size: 1\n")
    assert (
        run("world", "sample", "--identities", "1", "--views", "1", "--seed", "7", "--size", "320", "--out", photo) == 0
    )
    who = ("--method", "textual-inversion", "--model", parts / "base")
    assert run("enroll", *who, "--recipe", recipe, "--face", photo, "--out", me) == 0
    assert "learning the person" in capsys.readouterr().err
    other = ("enroll", *who, "--recipe", recipe, "--face", photo, "--out", tmp_path / "other.safetensors")
    assert run(*other, "--teacher", tmp_path / "nowhere", "--json") != 0
    assert "nowhere" in capsys.readouterr().err
    assert run(*other, "--teacher", parts / "base") == 0
    assert "learning the person" in capsys.readouterr().err
    assert run("generate", *who, "--face", photo, "-p", "a wizard", "--out", tmp_path / "none") != 0
    said = capsys.readouterr().err
    assert "does not say where the person is" in said
    assert "learning the person" not in said
    paint = ("generate", *who, "--identity", me, "--seed", "3", "--steps", "2")
    assert run(*paint, "-p", "S* as a wizard", "--out", tmp_path / "a", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pictures"][0]["settings"]["method"] == "textual-inversion"
    again = ("generate", "--from", report["pictures"][0]["path"], "--model", parts / "base", "--out", tmp_path / "b")
    assert run(*again, "--json") == 0
    assert json.loads(capsys.readouterr().out)["identical"]
    assert run("generate", "--method", "elite", "--identity", me, "-p", "S*", "--out", tmp_path / "c", "--json") == 2
    assert "No model of elite ships" in capsys.readouterr().err

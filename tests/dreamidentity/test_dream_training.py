"""Training the M² ID encoder at tiny size: it learns, from the right pairs, and nothing of the base changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from dream_models import FACE, save_base
from PIL import Image

from limner.encoders.face_vit import FaceViT
from limner.encoders.parts import save_face
from limner.errors import ConfigError, WeightsUnavailable
from limner.training.dice import Dice, seed_everything
from limner.training.dreamidentity import DreamIdentitySettings, DreamIdentityTask
from limner.training.face_weights import place_weights
from limner.training.progress import silent
from limner.training.tasks import load_training

MARKS = [[11, 13], [21, 13], [16, 18], [12, 22], [20, 22]]
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FULL = [RECIPES / "full" / f"dreamidentity-{base}.yaml" for base in ("sd21", "sdxl")]
Make = Callable[..., DreamIdentityTask]


def picture(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((32, 32))


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """faces/ (8 people), edits/ (3 people: a face and two edits each), base/ and face/."""
    root = tmp_path_factory.mktemp("dream")
    rows = [{"file_name": f"{i}.png", "identity": i, "landmarks": MARKS, "reference": i != 7} for i in range(8)]
    write(root / "faces", rows)
    edits: list[dict[str, Any]] = []
    for person in range(3):
        edits.append({"file_name": f"{person}-face.png", "identity": person, "landmarks": MARKS})
        for style in ("oil painting style, S* face", "S* as a wizard"):
            name = f"{person}-{style[:3]}.png"
            edits.append({"file_name": name, "identity": person, "prompt": style, "reference": False})
    write(root / "edits", edits)
    save_base("mini", root / "base")
    torch.manual_seed(5)
    save_face(root / "face", FaceViT(FACE))
    return root


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    for i, row in enumerate(rows):
        picture(i + 100 * len(rows)).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def data(folder: Path) -> dict[str, Any]:
    return {"kind": "folder", "path": str(folder), "size": 32, "workers": 1}


def settings(where: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": data(where / "faces"), "held_out": data(where / "faces"), "edits": data(where / "edits"),
        "base": str(where / "base"), "recogniser": str(where / "face"), "encoder": {"hidden": 16}, "steps": 2,
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def make(where: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    cache = tmp_path_factory.mktemp("cache")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_CACHE", str(cache))

        def build(**changes: Any) -> DreamIdentityTask:
            seed_everything(0)
            task = DreamIdentityTask(DreamIdentitySettings.from_dict(settings(where, **changes)))
            task.prepare(silent)
            return task

        yield build
    torch.set_num_threads(before)


def digest(*modules: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            found.update(name.encode() + value.cpu().numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("tuned", [False, True])
def test_it_learns_and_the_base_stays_as_it_was(make: Make, tuned: bool) -> None:
    task = make(tune_backbone=tuned, regularisation=0.0)
    base = digest(task.vae, task.unet, task.towers)
    backbone = digest(task.m2id.backbone)
    batch = task.source().batch(np.arange(7), 0)
    optimizer = torch.optim.AdamW(task.parameter_groups(0.0), lr=1e-2)
    losses = []
    for _ in range(8):
        found = task.loss(task.model.train(), batch, Dice(0, 0, range(7)))
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        losses.append(float(found.total.detach()))
    assert losses[-1] < losses[0], losses
    unused = [n for n, p in task.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, f"parameters without gradient would stop data-parallel training: {unused}"
    assert digest(task.vae, task.unet, task.towers) == base
    assert (digest(task.m2id.backbone) != backbone) == tuned


def test_a_whole_training_leaves_the_base_on_disk_untouched(make: Make, where: Path, tmp_path: Path) -> None:
    """Through the one loop, to a folder that `limner generate` takes; its base is the one that went in."""
    from limner.pipelines.loading import load_model
    from limner.training.loop import Trainer

    del make  # for its cache
    values = {
        "name": "dream", "task": "dreamidentity", "settings": settings(where, validation=4, sampler="euler-a"),
        "loop": {"steps": 2, "batch_size": 4, "lr": 1e-2, "warmup": 0, "ema": 0.5},
        "run": {"checkpoint_every": 0, "validate_every": 0, "sheet_every": 0},
    }  # fmt: skip
    (tmp_path / "dream.yaml").write_text(yaml.safe_dump(values))
    recipe, build = load_training(tmp_path / "dream.yaml")
    outcome = Trainer(recipe, build, tmp_path / "out").run()
    assert outcome.finished
    assert outcome.metrics["n"] == 4
    assert {"loss", "nobody"} <= outcome.metrics.keys()
    before, after = build(), load_model(str(tmp_path / "out" / "weights"), device="cpu")
    pipe: Any = after.pipe
    assert type(pipe.scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    assert digest(before.vae, before.unet, before.towers) == digest(pipe.vae, pipe.unet, pipe.encoder.towers)
    assert digest(before.m2id.backbone) == digest(pipe.encoder.m2id.backbone)
    assert digest(before.m2id.head) != digest(pipe.encoder.m2id.head)
    assert pipe("S* as a wizard", output_type="np").images.shape == (1, 32, 32, 3)
    checkpoint = next((tmp_path / "out" / "checkpoints").rglob("model.safetensors"))
    assert checkpoint.stat().st_size < 100_000  # holds what is trained, not the base
    assert list((tmp_path / "out" / "sheets").iterdir())


def test_the_loss_is_the_papers(make: Make) -> None:
    task = make(regularisation=0.25)
    batch = task.source().batch(np.arange(4), 0)
    found = task.loss(task.model, batch, Dice(0, 0, range(4)))
    assert torch.isclose(found.total, found.parts["noise"] + 0.25 * found.parts["norm"])
    words = task._words(task.model, batch)
    assert torch.isclose(found.parts["norm"], sum(w.norm(dim=-1).sum(1) for w in words).mean())


def row_of(column: Any, row: Any) -> int:
    """Which row of a table's column this is."""
    same = [i for i in range(len(column)) if np.array_equal(column[i], row)]
    assert len(same) == 1
    return same[0]


def test_reconstruction_and_edits_are_mixed(make: Make) -> None:
    task = make(edit_share=0.5, templates=["S* face", "a photo of S*"])
    source: Any = task.source()
    assert len(source) == 7  # the eighth picture is no reference
    edits = 0
    for step in range(30):
        batch = {k: v.numpy() for k, v in source.batch(np.arange(7), step).items()}
        for i in range(7):
            if batch["face"][i].tobytes() in {source.pictures.pictures["image"][j].tobytes() for j in range(8)}:
                face = row_of(source.pictures.pictures["image"], batch["face"][i])
                assert face == i == row_of(source.pictures.latents["latents"], batch["latents"][i])
                assert batch["ids_0"][i].tolist() in source.templates.arrays["ids_0"].tolist()
            else:
                edits += 1
                face = row_of(source.edits.pictures["image"], batch["face"][i])
                target = row_of(source.edits.latents["latents"], batch["latents"][i])
                assert source.edits.pictures["reference"][face]
                assert not source.edits.pictures["reference"][target]
                assert source.edits.pictures["identity"][face] == source.edits.pictures["identity"][target]
                tokens = task.towers.tokenizers[0].decode(batch["ids_0"][i])
                assert ("wizard" in tokens) == (b"wizard" in source.edits.pictures["prompt"][target])
            assert sorted(batch["slots_1"][i][batch["slots_1"][i] >= 0]) == [0, 1]
    assert 0.35 < edits / 210 < 0.65
    first, again = (source.batch(np.arange(7), 3) for _ in range(2))
    assert all(v.numpy().tobytes() == again[k].numpy().tobytes() for k, v in first.items())


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 7)])
def test_the_ablations_of_the_mix(make: Make, share: float, expected: int) -> None:
    source: Any = make(edit_share=share).source()
    faces = {source.pictures.pictures["image"][j].tobytes() for j in range(8)}
    batch = source.batch(np.arange(7), 0)
    assert sum(f.numpy().tobytes() not in faces for f in batch["face"]) == expected


def test_a_masked_loss_sees_the_face_alone(make: Make) -> None:
    marks = torch.tensor([MARKS, [[float("nan")] * 2] * 5])
    weights = place_weights(marks, torch.Size((8, 8)), 4, 0.0, 0.0, outside=0.0)
    assert weights.shape == (2, 1, 8, 8)
    assert bool((weights[1] == 1).all())  # unknown landmarks
    assert weights[0, 0, 4, 4] == 1
    assert weights[0, 0, 0, 0] == weights[0, 0, 7, 7] == 0
    task = make(outside=0.0, edit_share=0.0)
    batch = task.source().batch(np.arange(4), 0)
    words, errors = task._words(task.model, batch), []
    for _ in range(2):
        errors.append(task._each(words, batch, Dice(0, 0, range(4))).noise.detach())
        batch["landmarks"] = batch["landmarks"] + 8
    assert not torch.allclose(*errors)


def test_without_a_mask_the_loss_is_the_plain_one(make: Make) -> None:
    task = make(edit_share=0.0)
    batch = task.source().batch(np.arange(4), 0)
    words = task._words(task.model, batch)
    found = task._each(words, batch, Dice(0, 0, range(4))).noise
    batch["landmarks"] = torch.full_like(batch["landmarks"], torch.nan)
    assert torch.equal(task._each(words, batch, Dice(0, 0, range(4))).noise, found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_judge_can_look_at_what_is_painted(make: Make, where: Path, dtype: str) -> None:
    judged = {"identity_weight": 0.5, "identity_share": 1.0, "identity_noise": 1e6, "judge": str(where / "face")}
    plain, task = (make(edit_share=0.5, base_dtype=dtype, **own) for own in ({}, judged))
    plain.model.load_state_dict(task.model.state_dict())
    batch = task.source().batch(np.arange(7), 0)
    found = task.loss(task.model.train(), batch, Dice(0, 0, range(7)))
    alone = plain.loss(plain.model.train(), batch, Dice(0, 0, range(7)))
    assert torch.isclose(found.parts["noise"], alone.parts["noise"])
    each = task.each(task.model, batch, Dice(0, 0, range(7)))
    assert each.judged is not None
    assert each.judged.tolist() == batch["recognisable"].tolist()  # reconstructions; edits are no photos
    assert 0 < int(each.judged.sum()) < 7
    extra = found.total - found.parts["noise"] - 1e-4 * found.parts["norm"]
    assert torch.isclose(extra, 0.5 * each.unlike.mean(), rtol=1e-3)
    each.unlike.sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in task.model.parameters() if p.ndim > 1)
    with torch.no_grad():
        assert 0 < task.validate()["unlike"] < 2


def test_a_compiled_base_serves_training_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from limner.training import frozen_base

    used = []

    def compiled(unet: Any) -> Any:
        return lambda *a, **k: (used.append(torch.is_grad_enabled()), unet(*a, **k))[1]

    monkeypatch.setattr(frozen_base, "compiled", compiled)
    task = make(validation=4)
    task.compile()
    task.loss(task.model.train(), task.source().batch(np.arange(4), 0), Dice(0, 0, range(4))).total.backward()
    with torch.no_grad():
        task.validate()
    assert used == [True]


def test_a_base_in_bfloat16_trains_validates_and_paints(make: Make) -> None:
    task = make(base_dtype="bfloat16", validation=4, shift=4.0)
    assert task.schedule.shift == 4
    batch = task.source().batch(np.arange(4), 0)
    task.loss(task.model.train(), batch, Dice(0, 0, range(4))).total.backward()
    with torch.no_grad():
        assert np.isfinite(task.validate()["loss"])
        assert task.sheet().size[0] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edits": None}, "edit_share is 0.5; allowed: 0 without edits"),
        ({"templates": ["a face"]}, r"prompts with S\*"),
        ({"identity_weight": 0.1}, "judge is ''; allowed: a folder with identity_weight"),
        ({"identity_share": 0}, "identity_share is 0"),
        ({"edit_share": 1.5}, "edit_share is 1.5"),
        ({"base_dtype": "half"}, "float32, bfloat16, float16"),
        ({"edits": {"kind": "folder", "path": "x", "size": 64}}, "one size"),
        ({"encoder": {"words": 0}}, r"WordsConfig\.words is 0"),
        ({"encoder": {"words": 15}}, "stands for 15 words; a prompt has room for 14"),
        ({"encoder": {"layers": [9]}}, "rising numbers from 1 to 4"),
        ({"templates": ["S* and T*"]}, r"names T\*"),
    ],
)
def test_settings_that_cannot_be_used(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_data_that_cannot_be_used(make: Make, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="holds no text towers"):
        make(base=str(tmp_path))
    with pytest.raises(WeightsUnavailable, match="holds no recogniser"):
        make(recogniser=str(tmp_path))
    write(tmp_path / "none", [{"file_name": f"{i}.png"} for i in range(2)])
    with pytest.raises(ConfigError, match="Every face of reconstruction needs five landmarks"):
        make(data=data(tmp_path / "none"))
    with pytest.raises(ConfigError, match="there are no edited pictures"):
        make(edits=data(tmp_path / "none"))
    edit = {"file_name": "1.png", "identity": 1, "prompt": "S* as a wizard", "reference": False}
    write(tmp_path / "lone", [{"file_name": "0.png", "identity": 0, "landmarks": MARKS}, edit])
    with pytest.raises(ConfigError, match="person 1 has no identity face"):
        make(edits=data(tmp_path / "lone"))
    named = [{"file_name": "0.png", "identity": 0, "landmarks": MARKS}, {**edit, "identity": 0, "prompt": "a wizard"}]
    write(tmp_path / "named", named)
    with pytest.raises(ConfigError, match="training set cannot be used: The prompt 'a wizard' does not say"):
        make(edits=data(tmp_path / "named"))


@pytest.mark.parametrize("path", FULL, ids=lambda p: p.stem)
def test_the_full_size_recipes_are_complete_and_the_papers(path: Path) -> None:
    recipe, _ = load_training(path)
    assert (recipe.loop.steps, recipe.loop.batch_size, recipe.loop.lr) == (60_000, 64, 5e-5)
    assert recipe.settings["regularisation"] == 1e-4
    assert recipe.settings["encoder"]["words"] == 2
    header = path.read_text().split("name:")[0]
    assert all(f"# {word}" in header for word in ("Trains", "Cost", "Result"))


def test_every_ablation_in_the_mini_recipes_header_can_be_run() -> None:
    path = RECIPES / "mini-dreamidentity.yaml"
    lines = [line for line in path.read_text().splitlines() if line.startswith("#") and "--set name=" in line]
    assert len(lines) == 8
    for line in lines:
        recipe, _ = load_training(path, [word for word in line.split() if "=" in word])
        assert recipe.name in line
    assert load_training(RECIPES / "mini-gaze.yaml")[0].task == "gaze"
    assert load_training(RECIPES / "full" / "gaze-sd21.yaml")[0].task == "gaze"

"""The ComfyUI nodes without ComfyUI: its few modules are stood in for, Limner's own classes are real and tiny."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limner.errors import ConfigError, NoFaceFound
from limner.methods.steering import SteeredConditioning
from limner.pipelines.loading import load_model
from limner.pipelines.schedulers import SCHEDULERS
from limner.provenance import read_provenance
from limner.types import Conditioning

PACK = Path(__file__).resolve().parents[2] / "comfyui"
WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))
WIDGETS = ("STRING", "INT", "FLOAT", "BOOLEAN")


class Interrupted(Exception):
    """What ComfyUI raises out of a node when its user cancels."""


@pytest.fixture(scope="module")
def nodes() -> Any:
    """The pack as ComfyUI imports it: by path, as a package."""
    spec = importlib.util.spec_from_file_location(
        "custom_limner", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_limner"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.SimpleNamespace:
    """ComfyUI's modules, as far as the nodes use them; records what they were told."""
    told = types.SimpleNamespace(total=0, done=0, cancelled=False, output=tmp_path)

    class ProgressBar:
        def __init__(self, total: int) -> None:
            told.total = total

        def update(self, steps: int) -> None:
            told.done += steps

    def throw() -> None:
        if told.cancelled:
            raise Interrupted

    modules = {name: types.ModuleType(name) for name in ("comfy", "comfy.utils", "comfy.model_management")}
    modules["folder_paths"] = types.ModuleType("folder_paths")
    modules["comfy.utils"].ProgressBar = ProgressBar  # type: ignore[attr-defined]
    modules["comfy.model_management"].throw_exception_if_processing_interrupted = throw  # type: ignore[attr-defined]
    modules["folder_paths"].get_output_directory = lambda: str(tmp_path)  # type: ignore[attr-defined]
    modules["folder_paths"].get_save_image_path = (  # type: ignore[attr-defined]
        lambda prefix, folder, width=0, height=0: (folder, prefix, 1, "", prefix)
    )
    for name in ("utils", "model_management"):
        setattr(modules["comfy"], name, modules[f"comfy.{name}"])
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return told


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Any:
    return load_model(str(tiny_folder))


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """(1, H, W, 3) in [0, 1], as ComfyUI's LoadImage gives it."""
    from skimage.data import astronaut

    return torch.from_numpy(astronaut()[:300, 100:400].copy()).float()[None] / 255


def run(nodes: Any, kind: str, **inputs: Any) -> Any:
    node = nodes.NODE_CLASS_MAPPINGS[kind]()
    return getattr(node, node.FUNCTION)(**inputs)


def test_the_pack_imports_without_comfyui_and_describes_itself(nodes: Any) -> None:
    assert set(nodes.NODE_CLASS_MAPPINGS) == set(nodes.NODE_DISPLAY_NAME_MAPPINGS)
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node, node.FUNCTION))
        assert set(node.INPUT_TYPES()) <= {"required", "optional"}
        assert len(node.RETURN_TYPES) == len(getattr(node, "RETURN_NAMES", ()))
    schedulers = nodes.nodes.SCHEDULERS[1:]
    assert set(schedulers) <= set(SCHEDULERS)


def test_registry_metadata() -> None:
    facts = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    ours = tomllib.loads((PACK.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert facts["project"]["name"] == "limner"
    assert "limner" in facts["project"]["dependencies"]
    assert facts["project"]["license"]["text"] == ours["license"]
    assert facts["project"]["requires-python"] == ours["requires-python"]
    assert all(part.isdecimal() for part in facts["project"]["version"].split("."))
    assert facts["tool"]["comfy"]["PublisherId"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_example_workflows_fit_the_nodes(nodes: Any, path: Path) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    by_id = {node["id"]: node for node in graph["nodes"]}
    for number, source, slot, target, place, kind in graph["links"]:
        output, given = by_id[source]["outputs"][slot], by_id[target]["inputs"][place]
        assert number in output["links"]
        assert given["link"] == number
        assert output["type"] == given["type"] == kind
    ours = [node for node in graph["nodes"] if node["type"].startswith("Limner")]
    assert len(ours) >= 3
    for node in ours:
        declared = nodes.NODE_CLASS_MAPPINGS[node["type"]]
        assert [o["type"] for o in node["outputs"]] == list(declared.RETURN_TYPES)
        connected = {i["name"] for i in node["inputs"]}
        takes = {**declared.INPUT_TYPES()["required"], **declared.INPUT_TYPES().get("optional", {})}
        assert connected <= set(takes)
        assert {k for k, v in declared.INPUT_TYPES()["required"].items() if not widget(v)} <= connected
        assert len(widget_values(node, takes)) == sum(map(widget, takes.values()))


def test_the_portrait_workflow_runs(
    nodes: Any, comfy: types.SimpleNamespace, tiny_folder: Path, photo: torch.Tensor
) -> None:
    graph = json.loads((PACK / "example_workflows" / "portrait.json").read_text(encoding="utf-8"))
    made: dict[tuple[int, int], Any] = {}
    links = {number: (source, slot) for number, source, slot, *_ in graph["links"]}
    for node in sorted(graph["nodes"], key=lambda n: n["order"]):
        if node["type"] == "LoadImage":
            made[node["id"], 0] = photo
            continue
        declared = nodes.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()
        inputs = widget_values(node, {**declared["required"], **declared.get("optional", {})})
        inputs |= {i["name"]: made[links[i["link"]]] for i in node["inputs"]}
        if node["type"] == "LimnerLoad":
            inputs["model"] = str(tiny_folder)
        result = run(nodes, node["type"], **inputs)
        made |= {(node["id"], i): value for i, value in enumerate(result)} if isinstance(result, tuple) else {}
    files = sorted(comfy.output.glob("*.png"))
    records = [read_provenance(file) for file in files]
    assert [r.portrait.seed for r in records] == [7, 8, 9, 10]
    assert all(r.intact and r.identity is not None for r in records)
    assert comfy.done == comfy.total == 3


def test_generate_paints_what_the_library_paints(
    nodes: Any, comfy: types.SimpleNamespace, model: Any, photo: torch.Tensor
) -> None:
    from limner.pipelines.paint import default_dials, paint

    identity, _ = run(nodes, "LimnerEnroll", model=model, photos=photo)
    images, (_, _, portraits) = run(
        nodes,
        "LimnerGenerate",
        model=model,
        prompt="a chef",
        seed=3,
        number=2,
        steps=2,
        guidance=2.0,
        identity=identity,
    )
    assert images.shape == (2, 64, 64, 3)
    dials = default_dials(model, steps=2, guidance_scale=2.0)
    expected = list(paint(model, identity, ["a chef"], [3, 4], dials))
    for image, portrait, other in zip(images, portraits, expected, strict=True):
        assert np.array_equal(np.asarray(portrait.image), np.asarray(other.image))
        assert torch.equal((image * 255).round().byte(), torch.from_numpy(np.asarray(other.image).copy()))


def test_cancel_in_comfyui_stops_the_painting(nodes: Any, comfy: types.SimpleNamespace, model: Any) -> None:
    comfy.cancelled = True
    with pytest.raises(Interrupted):
        run(nodes, "LimnerGenerate", model=model, prompt="a chef")


def test_conditioning_is_in_comfyuis_form(nodes: Any, model: Any, photo: torch.Tensor) -> None:
    identity, _ = run(nodes, "LimnerEnroll", model=model, photos=photo)
    size = {"width": 832, "height": 1216}
    positive, negative = run(nodes, "LimnerCondition", model=model, prompt="a chef", identity=identity, **size)
    expected = model.pipe.condition("a chef", identity)
    assert torch.equal(positive[0][0], expected.prompt_embeds)
    assert torch.equal(negative[0][1]["pooled_output"], expected.negative_pooled)
    assert not torch.equal(positive[0][0], run(nodes, "LimnerCondition", model=model, prompt="a chef")[0][0][0])
    for entry in (positive[0], negative[0]):
        assert {k: entry[1][k] for k in size} == size
        assert entry[1]["pooled_output"].ndim == 2


@pytest.mark.parametrize("lost", ["steering", "pooled", "image"])
def test_conditioning_that_would_lose_the_person_is_refused(nodes: Any, lost: str) -> None:
    rows, image = torch.zeros(1, 4, 8), [torch.zeros(1, 1, 4, 8)]
    told = {
        "steering": SteeredConditioning(rows, rows[:, 0], rows, rows[:, 0]),
        "pooled": Conditioning(rows, None, rows, None),
        "image": Conditioning(rows, rows[:, 0], rows, rows[:, 0], ip_adapter_image_embeds=image),
    }[lost]
    model = types.SimpleNamespace(name="rival", pipe=types.SimpleNamespace(condition=lambda *given: told))
    with pytest.raises(ConfigError, match=r"rival .*Limner: generate"):
        run(nodes, "LimnerCondition", model=model, prompt="a chef")


def test_several_photos_and_a_picture_of_nobody(nodes: Any, model: Any, photo: torch.Tensor) -> None:
    both, _ = run(nodes, "LimnerEnroll", model=model, photos=photo, photos_2=photo.flip(2), photos_3=None)
    assert both.info["references"] == 2
    with pytest.raises(NoFaceFound):
        run(nodes, "LimnerEnroll", model=model, photos=torch.full((1, 64, 64, 3), 0.5))


def widget(declared: tuple[Any, ...]) -> bool:
    """Whether ComfyUI shows this input as a field instead of a socket."""
    return isinstance(declared[0], list) or declared[0] in WIDGETS


def widget_values(node: dict[str, Any], takes: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """A node's stored fields by name; ComfyUI stores one more after a seed: how it changes between runs."""
    values = iter(node["widgets_values"])
    found = {}
    for name, declared in takes.items():
        if not widget(declared):
            continue
        found[name] = next(values)
        if len(declared) > 1 and declared[1].get("control_after_generate"):
            assert next(values) in ("fixed", "increment", "decrement", "randomize")
    assert next(values, None) is None
    return found

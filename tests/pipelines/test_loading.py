"""Models load whole or not at all; published files become a folder; painting is reproducible from its record."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import noise_face, tiny_pipeline

from limner import provenance
from limner.data.cache import cache_root
from limner.errors import ConfigError, CorruptData, LicenseNotAccepted, WeightsMismatch, WeightsUnavailable
from limner.pipelines import sdxl
from limner.pipelines.again import compare, repaint
from limner.pipelines.catalogue import FULL
from limner.pipelines.folders import model_folder
from limner.pipelines.loading import Model, load_model, spec_folder, weight_digests
from limner.pipelines.paint import Dials, default_dials, paint
from limner.registry import ModelSpec, file_sha256
from limner.types import Identity, Portrait


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load_model(str(tiny_folder), device="cpu")


@pytest.fixture(scope="module")
def identity(model: Model) -> Identity:
    return provenance.compact(model.pipe.enroll(noise_face(0)))


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_what_is_known_of_a_loaded_model(model: Model, tiny_folder: Path) -> None:
    assert (model.name, model.world) == ("tiny", "sitters")
    assert set(model.weights) == {"encoder", "unet", "vae"}
    assert model.weights["unet"] == file_sha256(tiny_folder / "unet" / "diffusion_pytorch_model.safetensors")
    facts = model.circumstances()
    assert (facts["method"], facts["device"], facts["dtype"]) == ("faceclip", "cpu", "float32")


def test_digests_notice_one_changed_weight(folder: Path) -> None:
    before = weight_digests(folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["latent_mean"][0] += 1
    save_file(state, path, {"format": "pt"})
    after = weight_digests(folder)
    assert {k for k in before if before[k] != after[k]} == {"vae"}


def without_a_weight(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["conv_in.weight"]
    save_file(state, path, {"format": "pt"})


def of_another_shape(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v[:1] if k == "conv_in.weight" else v for k, v in load_file(path).items()}, path, {"format": "pt"})


DAMAGE = {
    "a weight is missing": without_a_weight,
    "a weight has another shape": of_another_shape,
    "truncated": lambda f: _cut(f / "unet" / "diffusion_pytorch_model.safetensors"),
    "truncated encoder": lambda f: _cut(f / "encoder" / "model.safetensors"),
    "no weights": lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
    "no component": lambda f: shutil.rmtree(f / "scheduler"),
    "no JSON": lambda f: (f / "model_index.json").write_text("{"),
    "no pipeline": lambda f: (f / "model_index.json").write_text("{}"),
    "another pipeline": lambda f: (f / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}'),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_models_are_refused(folder: Path, damage: str) -> None:
    DAMAGE[damage](folder)
    with pytest.raises((CorruptData, WeightsMismatch, WeightsUnavailable)):
        load_model(str(folder), device="cpu")


def test_converted_models_lie_with_the_other_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    for value, root in (("~/here", Path.home() / "here"), ("", Path.home() / ".cache" / "limner")):
        monkeypatch.setenv("LIMNER_CACHE", value)
        assert model_folder(FULL) == root / "models" / "faceclip-sdxl"
        assert cache_root() == root


def test_what_is_not_there_or_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))
    monkeypatch.delenv("LIMNER_ACCEPT_LICENSE", raising=False)
    with pytest.raises(WeightsUnavailable, match="no folder with a model"):
        load_model(str(tmp_path))
    with pytest.raises(ConfigError, match="faceclip-mini"):
        load_model("nobody")
    with pytest.raises(LicenseNotAccepted):
        load_model("faceclip-sdxl")
    with pytest.raises(WeightsUnavailable, match=r"model/unet\.pt"):
        load_model("faceclip-sdxl", accept_license=True)
    absent = ModelSpec("x", "faceclip", "mini", "", "MIT", packaged="not-in-this-package")
    with pytest.raises(WeightsUnavailable, match="ship with the package"):
        spec_folder(absent)
    with pytest.raises(WeightsUnavailable, match="benchmarks/weights/not-in-this-clone"):
        spec_folder(ModelSpec("x", "faceclip", "mini", "", "MIT", cloned="not-in-this-clone"))
    with pytest.raises(WeightsUnavailable, match=r"recipes/full/dreamidentity-sd21\.yaml"):
        load_model("dreamidentity-sd21")
    with pytest.raises(WeightsUnavailable, match="no folder"):
        weight_digests(tmp_path / "nowhere")


def test_sdxls_shapes_are_the_published_ones() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from limner.encoders.published import SDXL_UNET

    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(SDXL_UNET), AutoencoderKL.from_config(sdxl.VAE)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863


@pytest.fixture
def published(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Files of the published layout at a small size, and where the environment says they are."""
    from limner.encoders.faceclip import FaceCLIPEncoder, preset

    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    kl = tiny_pipeline("kl")
    wide = {**kl.unet.config, "cross_attention_dim": 320, "projection_class_embeddings_input_dim": 192 + 6 * 8}
    unet = type(kl.unet).from_config(wide)
    monkeypatch.setattr("limner.encoders.published.SDXL_UNET", wide)
    monkeypatch.setattr(sdxl, "VAE", dict(kl.vae.config))
    torch.manual_seed(0)
    encoder = FaceCLIPEncoder(
        dataclasses.replace(preset("mini"), shared_face=False).with_text(vocabulary=49408, context=77)
    )
    torch.save({f"model.{k}": v.half() for k, v in encoder.to_published().items()}, tmp_path / "encoder.pt")
    torch.save(unet.state_dict(), tmp_path / "unet.pt")
    save_file(kl.vae.state_dict(), tmp_path / "vae.safetensors", {"format": "pt"})
    for variable, name in (
        ("FACECLIP_ENCODER", "encoder.pt"),
        ("FACECLIP_UNET", "unet.pt"),
        ("SDXL_VAE", "vae.safetensors"),
    ):
        monkeypatch.setenv(f"LIMNER_{variable}", str(tmp_path / name))
    monkeypatch.setenv("LIMNER_CLIP_MERGES", str(shared / "parity" / "clip_bpe_merges.txt.gz"))
    return tmp_path


def test_published_files_become_a_model_that_paints(published: Path) -> None:
    full = load_model("faceclip-sdxl", device="cpu", accept_license=True)
    assert (full.name, full.world) == ("faceclip-sdxl", "")
    assert full.license.startswith("CC-BY-NC-4.0")
    assert type(full.pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert full.pipe.config.default_steps == 50
    identity = full.pipe.enroll(noise_face(0))
    dials = default_dials(full, steps=2)
    first = next(paint(full, identity, ["a café in Zürich"], [1], dials)).image
    for file in published.glob("*.pt"):  # what was converted needs the originals no more
        file.unlink()
    again = load_model("faceclip-sdxl", device="cpu")
    assert np.array_equal(
        np.asarray(next(paint(again, identity, ["a café in Zürich"], [1], dials)).image), np.asarray(first)
    )


def test_a_failed_conversion_leaves_nothing_behind(published: Path) -> None:
    torch.save({"conv_in.weight": torch.zeros(1)}, published / "unet.pt")
    with pytest.raises(WeightsMismatch, match="UNet"):
        spec_folder(FULL, accept_license=True)
    assert not list((published / "cache").rglob("*.safetensors"))


def test_a_truncated_autoencoder_is_noticed_before_the_rest_is_read(published: Path) -> None:
    _cut(published / "vae.safetensors")
    (published / "encoder.pt").write_bytes(b"")
    with pytest.raises(WeightsMismatch, match=r"vae\.safetensors"):
        spec_folder(FULL, accept_license=True)


# --- painting ---------------------------------------------------------------------------------------------------------


def test_painting_is_a_function_of_its_seeds(model: Model, identity: Identity) -> None:
    dials = default_dials(model, batch=2)
    both = list(paint(model, identity, ["a chef", "a man"], [3, 4, 5], dials, negative_prompt="hat"))
    assert [(p.prompt, p.seed) for p in both] == [(w, s) for w in ("a chef", "a man") for s in (3, 4, 5)]
    assert [p.settings["batch_seeds"] for p in both[:3]] == [[3, 4], [3, 4], [5]]
    assert both[0].identity == identity.digest()
    twice = list(paint(model, identity, ["a chef"], [3, 4, 5], dials, negative_prompt="hat"))
    for one, other in zip(both, twice, strict=False):
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
    (alone,) = paint(model, identity, ["a chef"], [4], dials, negative_prompt="hat")
    assert np.abs(np.asarray(alone.image, int) - np.asarray(both[1].image, int)).max() <= 1


def test_steps_are_reported(model: Model, identity: Identity) -> None:
    seen: list[tuple[int, int]] = []
    list(paint(model, identity, ["a"], [1, 2], default_dials(model, batch=1), on_step=lambda i, n: seen.append((i, n))))
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2


def test_the_models_own_scheduler_returns(model: Model, identity: Identity) -> None:
    def one(name: str) -> np.ndarray:
        return np.asarray(next(paint(model, identity, ["a"], [1], default_dials(model, scheduler=name))).image)

    own = one("ddim")
    assert not np.array_equal(one("euler"), own)
    assert np.array_equal(one("ddim"), own)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"guidance_scale": -1.0},
        {"strength": 1.1},
        {"width": 60},
        {"batch": 0},
        {"steps": "ten"},
        {"x": 1},
    ],
    ids=str,
)
def test_dials_validate_themselves(model: Model, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        default_dials(model, **wrong)


def recorded(model: Model, identity: Identity | None, seeds: list[int], pick: int) -> provenance.Provenance:
    portraits = list(paint(model, identity, ["a chef"], seeds, default_dials(model, scheduler="euler-a")))
    data = provenance.encode_portrait(portraits[pick], identity)
    return provenance.read_provenance(io.BytesIO(data))


def test_repainting_gives_the_same_pixels_even_on_other_threads(model: Model, identity: Identity) -> None:
    record = recorded(model, identity, [1, 2, 3], 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        portrait = repaint(model, record, record.identity)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    facts = compare(record, portrait)
    assert facts["identical"], facts
    nobody = recorded(model, None, [4], 0)
    assert compare(nobody, repaint(model, nobody, None))["identical"]


def test_repainting_frees_the_encoder_where_the_mode_says_so(identity: Identity) -> None:
    own = Model("tiny", tiny_pipeline(), {}, memory="freed")
    record = recorded(own, identity, [1, 2], 1)
    assert compare(record, repaint(own, record, None))["identical"]
    assert {p.device.type for p in own.pipe.encoder.parameters()} == {"meta"}


def test_repainting_refuses_what_would_differ(model: Model, identity: Identity) -> None:
    record = recorded(model, identity, [1], 0)
    with pytest.raises(WeightsMismatch, match="not embedded"):
        repaint(model, dataclasses.replace(record, identity=None), None)
    with pytest.raises(WeightsMismatch, match="another identity"):
        repaint(model, record, provenance.compact(model.pipe.enroll(noise_face(1))))
    with pytest.raises(WeightsMismatch, match="other weights"):
        repaint(dataclasses.replace(model, weights={}), record, identity)
    for key, value in (("batch_seeds", None), ("batch_seeds", [5]), ("batch_seeds", [1] * 50)):
        damaged = dataclasses.replace(record.portrait, settings={**record.portrait.settings, key: value})
        with pytest.raises(CorruptData):
            repaint(model, dataclasses.replace(record, portrait=damaged), identity)
    damaged = dataclasses.replace(record.portrait, settings={**record.portrait.settings, "steps": 0})
    with pytest.raises(ConfigError):
        repaint(model, dataclasses.replace(record, portrait=damaged), identity)


def test_differences_are_counted_and_explained(model: Model, identity: Identity) -> None:
    record = recorded(model, identity, [1], 0)
    pixels = np.asarray(record.portrait.image).copy()
    pixels[0, 0, 0] ^= 4
    from PIL import Image

    settings = {**record.portrait.settings, "threads": 77, "batch_seeds": [1, 2]}
    other: Portrait = dataclasses.replace(record.portrait, image=Image.fromarray(pixels), settings=settings)
    facts = compare(record, other)
    assert (facts["identical"], facts["largest"]) == (False, 4)
    assert facts["changed"] == pytest.approx(1 / pixels.size)
    assert "77 now; 1 painted together then, 2 now" in facts["summary"]
    assert json.dumps(facts)


def test_dials_are_plain_values() -> None:
    dials = Dials(steps=3, guidance_scale=2.0, strength=1.0, width=64, height=64, scheduler="ddim")
    assert Dials.from_dict(json.loads(json.dumps(dials.to_dict()))) == dials

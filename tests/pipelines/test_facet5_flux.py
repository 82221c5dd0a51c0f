"""FaceT5FluxPipeline paints what diffusers' own FluxPipeline paints, and says so of everything that it cannot do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig
from PIL import Image
from safetensors.torch import save_file
from tiny_model import FLUX_TRANSFORMER, noise_face, tiny_flux, tiny_pipeline

from limner.errors import ConfigError, FaceError, PromptError, WeightsMismatch
from limner.pipelines.facet5 import FaceT5FluxPipeline
from limner.pipelines.fitting import sizes_of
from limner.pipelines.loading import Model, load_model
from limner.pipelines.paint import default_dials, paint, paint_batch
from limner.pipelines.regions import group
from limner.pipelines.schedulers import make_scheduler
from limner.types import Conditioning, Identity

PROMPT = "a wizard in the snow"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def painted(pipe: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    return pipe(*args, **{"generator": seeded(), "output_type": "pt", **kwargs}).images


@pytest.fixture(scope="module")
def pipe() -> FaceT5FluxPipeline:
    return tiny_flux()


@pytest.fixture(scope="module")
def identity(pipe: FaceT5FluxPipeline) -> Identity:
    return pipe.enroll(noise_face(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("models") / "tiny-flux"
    tiny_flux().save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(str(folder), device="cpu")


def both(pipe: FaceT5FluxPipeline, conditioning: Conditioning, **options: Any) -> tuple[Any, Any]:
    """What the two pipelines make of the same embeddings and options; diffusers wants a row for each picture."""
    options = {"output_type": "pt", "num_inference_steps": 3, "true_cfg_scale": 3.0, "guidance_scale": 1.0, **options}
    make = options.pop("generators", seeded)
    ours = pipe(conditioning=conditioning, generator=make(), **options).images
    other = FluxPipeline(
        scheduler=pipe.scheduler, vae=pipe.vae, transformer=pipe.transformer,
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    other.set_progress_bar_config(disable=True)
    n = options.pop("num_images_per_prompt", 1)
    c = conditioning
    rows = {
        "prompt_embeds": c.prompt_embeds, "pooled_prompt_embeds": c.pooled,
        "negative_prompt_embeds": c.negative_prompt_embeds, "negative_pooled_prompt_embeds": c.negative_pooled,
    }  # fmt: skip
    options = {"height": 32, "width": 32, **options}
    theirs = other(**{k: v.repeat_interleave(n, 0) for k, v in rows.items()}, generator=make(), **options).images
    return ours, theirs


# --- bit for bit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"true_cfg_scale": 1.0},
        {"guidance_scale": 3.5},
        {"sigmas": [1.0, 0.7, 0.2]},
        {"height": 48, "width": 80},
        {"num_images_per_prompt": 3},
        {"num_images_per_prompt": 2, "generators": lambda: [seeded(i) for i in range(4)]},
        {"output_type": "latent"},
        {"output_type": "np"},
        {"output_type": "pil"},
    ],
    ids=str,
)
def test_every_option_does_what_it_does_in_flux(pipe: FaceT5FluxPipeline, options: dict[str, Any]) -> None:
    told = pipe.condition([PROMPT, "a chef on the beach"], pipe.enroll(noise_face(0)), "hat")
    ours, theirs = both(pipe, told, **options)
    assert len(ours) == 2 * options.get("num_images_per_prompt", 1)
    if options.get("output_type") == "pil":
        ours, theirs = ([np.asarray(i) for i in images] for images in (ours, theirs))
    assert np.isfinite(np.asarray(ours)).all()
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_the_model_recommends_steps_size_and_both_guidances(pipe: FaceT5FluxPipeline) -> None:
    explicit = {"num_inference_steps": 3, "true_cfg_scale": 3.0, "guidance_scale": 1.0, "height": 32, "width": 32}
    assert torch.equal(painted(pipe, PROMPT), painted(pipe, PROMPT, **explicit))
    for other in ({"true_cfg_scale": 4.0}, {"guidance_scale": 3.5}):
        assert not torch.equal(painted(pipe, PROMPT), painted(pipe, PROMPT, **other))
    published = FaceT5FluxPipeline(**pipe.components)
    assert published.default_size == (1152, 864)
    assert (published.config.default_steps, published.config.default_guidance) == (50, 3.5)


def test_encode_prompt_is_what_call_uses(pipe: FaceT5FluxPipeline) -> None:
    embeds, pooled, places = pipe.encode_prompt(PROMPT, num_images_per_prompt=2)
    assert (embeds.shape, pooled.shape, places.shape) == ((2, 24, 32), (2, 16), (24, 3))
    ready = Conditioning(embeds, pooled)
    guided = painted(pipe, PROMPT, num_images_per_prompt=2, true_cfg_scale=1.0)
    assert torch.equal(painted(pipe, conditioning=ready, true_cfg_scale=1.0), guided)


# --- who and what -----------------------------------------------------------------------------------------------------


def test_a_face_and_its_identity_paint_the_same(pipe: FaceT5FluxPipeline, identity: Identity) -> None:
    by_face = painted(pipe, PROMPT, noise_face(0))
    assert torch.equal(by_face, painted(pipe, PROMPT, identity=identity))
    assert torch.equal(by_face, painted(pipe, conditioning=pipe.condition(PROMPT, identity)))
    nobody = painted(pipe, PROMPT)
    for other in (
        nobody,
        painted(pipe, PROMPT, noise_face(1)),
        painted(pipe, "a chef", identity=identity),
        painted(pipe, PROMPT, identity=identity, negative_prompt="hat"),
        painted(pipe, PROMPT, identity=identity, strength=0.5),
    ):
        assert not torch.equal(by_face, other)
    assert torch.equal(painted(pipe, PROMPT, identity=identity, strength=0.0), nobody)


def test_batches_and_pictures_per_prompt_are_ordered_by_prompt(pipe: FaceT5FluxPipeline, identity: Identity) -> None:
    prompts, seeds = [PROMPT, "a chef"], [1, 2, 3, 4]
    batch = painted(pipe, prompts, identity=identity, num_images_per_prompt=2, generator=[seeded(s) for s in seeds])
    alone = [painted(pipe, prompts[i // 2], identity=identity, generator=seeded(s)) for i, s in enumerate(seeds)]
    torch.testing.assert_close(batch, torch.cat(alone), atol=2e-4, rtol=0)


def test_callbacks_see_and_change_every_step(pipe: FaceT5FluxPipeline) -> None:
    seen = []

    def watch(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, tuple(tensors["latents"].shape), tuple(tensors["prompt_embeds"].shape)))
        return tensors

    def blank(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.zeros_like(tensors["latents"])}

    watched = painted(
        pipe, PROMPT, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"]
    )
    assert torch.equal(watched, painted(pipe, PROMPT))
    assert seen == [(i, (1, 64, 16), (1, 24, 32)) for i in range(3)]
    latents = painted(pipe, PROMPT, callback_on_step_end=blank, output_type="latent")
    assert torch.equal(latents, torch.zeros_like(latents))
    assert pipe.as_map(latents, 32, 32).shape == (1, 4, 16, 16)


def test_outputs_and_starting_noise(pipe: FaceT5FluxPipeline) -> None:
    (pil,) = painted(pipe, PROMPT, output_type="pil")
    assert isinstance(pil, Image.Image)
    assert pil.size == (32, 32)
    (images,) = pipe(PROMPT, generator=seeded(), output_type="pt", return_dict=False)
    assert torch.equal(images, painted(pipe, PROMPT))
    noise = pipe._pack_latents(torch.randn(1, 4, 16, 16, generator=seeded()), 1, 4, 16, 16)
    assert noise.shape == pipe.latents_shape(1, 32, 32)
    assert torch.equal(painted(pipe, PROMPT, latents=noise), images)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (PromptError, {}),
        (PromptError, {"prompt": "a", "negative_prompt": ["b", "c"]}),
        (ConfigError, {"prompt": "a", "negative_prompt": "hat", "true_cfg_scale": 1.0}),
        (ConfigError, {"prompt": "a", "strength": 1.5}),
        (ConfigError, {"prompt": "a", "height": 36}),
        (ConfigError, {"prompt": "a", "num_images_per_prompt": 0}),
        (ConfigError, {"prompt": "a", "num_inference_steps": 0}),
        (ConfigError, {"prompt": "a", "output_type": "jpeg"}),
        (ConfigError, {"prompt": "a", "generator": [torch.Generator()] * 2}),
        (ConfigError, {"prompt": "a", "latents": torch.zeros(1, 4, 16, 16)}),
        (ConfigError, {"prompt": "a", "stregnth": 1}),
        (ConfigError, {"prompt": "a", "timesteps": [900, 100]}),
        (ConfigError, {"prompt": "a", "callback_on_step_end_tensor_inputs": ["noise"]}),
        (FaceError, {"prompt": "a", "face": []}),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(pipe: FaceT5FluxPipeline, error: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(error):
        painted(pipe, **arguments)


@pytest.mark.parametrize(
    "dial", [{"pag_scale": 2.0}, {"face_guidance": 1.0}, {"face_detail": 0.5}, {"guidance_rescale": 0.7}], ids=str
)
def test_what_needs_a_unet_is_refused_everywhere(pipe: FaceT5FluxPipeline, model: Model, dial: dict[str, Any]) -> None:
    (name,) = dial
    with pytest.raises(ConfigError, match=f"{name} .*transformer") as refused:
        painted(pipe, PROMPT, **dial)
    assert refused.value.hint
    with pytest.raises(ConfigError, match=name):
        default_dials(model, **dial)
    neutral = {name: 0.0}
    assert torch.equal(painted(pipe, PROMPT, **neutral), painted(pipe, PROMPT))
    assert default_dials(model, **neutral) == default_dials(model)


def test_dials_that_are_no_arguments_are_refused_too(model: Model) -> None:
    for dial in ({"rescue": "auto"}, {"gaze": "0.5,0.4"}, {"scheduler": "ddim"}, {"width": 20}):
        with pytest.raises(ConfigError):
            default_dials(model, **dial)
    with pytest.raises(ConfigError, match="FlowMatchHeun"):
        default_dials(model, scheduler="FlowMatchHeunDiscreteScheduler")
    from limner.pipelines.gaze import add_gaze

    with pytest.raises(WeightsMismatch, match="no UNet"):
        add_gaze(model)


def test_schedulers_of_the_other_kind_are_refused(pipe: FaceT5FluxPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="noise schedule"):
        make_scheduler("FlowMatchEulerDiscreteScheduler", diffusers.DDIMScheduler())
    for other in (diffusers.DDIMScheduler(), diffusers.FlowMatchHeunDiscreteScheduler()):
        monkeypatch.setattr(pipe, "scheduler", other)
        with pytest.raises(ConfigError, match="cannot sample FLUX"):
            painted(pipe, PROMPT)


def test_contradictions_and_misfits_are_refused(pipe: FaceT5FluxPipeline, identity: Identity) -> None:
    ready = pipe.condition(PROMPT)
    change = dataclasses.replace
    with pytest.raises(ConfigError, match="conditioning"):
        painted(pipe, PROMPT, conditioning=ready)
    with pytest.raises(ConfigError, match="both"):
        painted(pipe, PROMPT, noise_face(0), identity=identity)
    with pytest.raises(ConfigError, match="unconditional"):
        painted(pipe, conditioning=change(ready, negative_prompt_embeds=None))
    with pytest.raises(WeightsMismatch, match="equal shapes"):
        painted(pipe, conditioning=change(ready, negative_prompt_embeds=torch.zeros(1, 20, 32)))
    with pytest.raises(ConfigError, match="control_image"):
        painted(pipe, conditioning=change(ready, control_image=torch.zeros(1, 3, 32, 32)))
    with pytest.raises(WeightsMismatch, match="32"):
        painted(pipe, conditioning=change(ready, prompt_embeds=torch.zeros(1, 24, 40)))
    with pytest.raises(WeightsMismatch, match="pooled"):
        painted(pipe, conditioning=change(ready, pooled=None))
    with pytest.raises(WeightsMismatch):
        painted(pipe, PROMPT, identity=change(identity, method="faceclip"))
    with pytest.raises(ConfigError, match="Several people"):
        painted(pipe, PROMPT, identity=group([identity, identity], [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]))
    plain: Any = FluxTransformer2DModel(**{**FLUX_TRANSFORMER, "guidance_embeds": False})
    undistilled = FaceT5FluxPipeline(**{**pipe.components, "transformer": plain.eval()})
    undistilled.set_progress_bar_config(disable=True)
    with pytest.raises(ConfigError, match="change nothing"):
        painted(undistilled, PROMPT, guidance_scale=3.5, height=32, width=32)


# --- folders, memory, LoRAs -------------------------------------------------------------------------------------------


def test_saving_and_loading(pipe: FaceT5FluxPipeline, folder: Path, model: Model, identity: Identity) -> None:
    loaded = FaceT5FluxPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.default_steps == 3
    assert set(FaceT5FluxPipeline(**loaded.components).components) == {"vae", "transformer", "scheduler", "encoder"}
    kept = pipe.encoder.state_dict()
    assert all(
        torch.equal(value, kept[key]) for key, value in loaded.encoder.state_dict().items() if "text_pr" not in key
    )
    for other in (loaded, model.pipe):
        pictures = [painted(p, PROMPT, identity=identity) for p in (other, pipe)]
        torch.testing.assert_close(*pictures, atol=1e-4, rtol=0)  # where weights lie in memory may change last bits
    assert set(model.weights) == {"encoder", "transformer", "vae"}
    facts = model.circumstances()
    assert (facts["method"], facts["dtype"]) == ("facet5", "float32")
    sizes = sizes_of(folder)
    assert sizes.unet == sum(p.numel() for p in pipe.transformer.parameters())
    assert sizes.encoder > 0


def test_half_precision(folder: Path, identity: Identity) -> None:
    loaded = FaceT5FluxPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert {loaded.transformer.dtype, loaded.vae.dtype, loaded.encoder.dtype} == {torch.bfloat16}
    images = painted(loaded, PROMPT, identity=identity)
    assert images.dtype == torch.bfloat16
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("memory", ["freed", "sliced", "fp8"])
def test_memory_modes(folder: Path, model: Model, memory: str) -> None:
    from limner.pipelines.memory import encode_then_free, memory_mode

    saving = load_model(str(folder), device="cpu", memory=memory)
    plain = next(paint(model, None, [PROMPT], [1], default_dials(model))).image
    ready = encode_then_free(saving.pipe, None, [PROMPT])
    image = next(paint(saving, None, [PROMPT], [1], default_dials(saving), ready=ready)).image
    if memory_mode(memory).faithful:
        assert np.abs(np.asarray(image, int) - np.asarray(plain, int)).max() <= 1
    assert saving.pipe.encoder.device.type == "meta"


def test_a_damaged_transformer_is_refused(tmp_path: Path, folder: Path) -> None:
    import shutil

    from safetensors.torch import load_file

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["x_embedder.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(WeightsMismatch, match="x_embedder"):
        load_model(str(copy), device="cpu")
    with pytest.raises(ConfigError, match="has a transformer"):
        load_model(str(folder), device="cpu", fast="lcm")


def test_loras_load_and_unload(tmp_path: Path, pipe: FaceT5FluxPipeline) -> None:
    from peft.utils import get_peft_model_state_dict

    trained = tiny_flux()
    trained.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q"]))
    FaceT5FluxPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(trained.transformer))
    other = tiny_flux()
    other.load_lora_weights(tmp_path)
    styled = painted(other, PROMPT)
    assert torch.equal(styled, painted(trained, PROMPT))
    assert not torch.equal(styled, painted(pipe, PROMPT))
    other.unload_lora_weights()
    assert torch.equal(painted(other, PROMPT), painted(pipe, PROMPT))


def test_previews_get_latents_as_a_map(model: Model) -> None:
    seen: list[torch.Size] = []
    dials = default_dials(model, height=48)
    paint_batch(model, model.pipe.condition(PROMPT), [1, 2], dials, on_latents=lambda z: seen.append(z.shape))
    assert seen == [(2, 4, 24, 16)] * 3


def test_models_with_a_unet_keep_their_arguments() -> None:
    unet: Any = tiny_pipeline()
    assert (unet.denoiser_name, unet.denoiser is unet.unet, unet.size_unit) == ("unet", True, 8)
    assert unet.latents_shape(2, 64, 32) == (2, 16, 8, 4)

"""FaceCLIPPipeline is a diffusers pipeline in every respect, and paints what diffusers' own SDXL pipeline paints."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig
from PIL import Image
from tiny_model import noise_face, tiny_pipeline

from limner.errors import ConfigError, FaceError, PromptError, WeightsMismatch
from limner.pipelines.faceclip import FaceCLIPPipeline
from limner.pipelines.schedulers import SCHEDULERS, make_scheduler, scheduler_name
from limner.types import Conditioning, Identity

PROMPT = "a wizard in the snow"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def painted(pipe: FaceCLIPPipeline, *args: Any, **kwargs: Any) -> torch.Tensor:
    kwargs = {"generator": seeded(), "output_type": "pt", **kwargs}
    return pipe(*args, **kwargs).images


@pytest.fixture(scope="module")
def identity(tiny: FaceCLIPPipeline) -> Identity:
    return tiny.enroll(noise_face(0))


@pytest.fixture(scope="module")
def kl() -> FaceCLIPPipeline:
    """With SDXL's own class of autoencoder."""
    return tiny_pipeline("kl")


def sdxl(pipe: FaceCLIPPipeline) -> StableDiffusionXLPipeline:
    """Diffusers' pipeline over the same parts."""
    other = StableDiffusionXLPipeline(
        vae=pipe.vae, unet=pipe.unet, scheduler=pipe.scheduler,
        text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, add_watermarker=False,
    )  # fmt: skip
    other.set_progress_bar_config(disable=True)
    return other


def both(pipe: FaceCLIPPipeline, conditioning: Conditioning, **options: Any) -> tuple[Any, Any]:
    """What the two pipelines make of the same embeddings and options."""
    options = {"output_type": "pt", "num_inference_steps": 3, "guidance_scale": 3.0, **options}
    make = options.pop("generators", seeded)
    ours = pipe(conditioning=conditioning, generator=make(), **options).images
    theirs = sdxl(pipe)(
        prompt_embeds=conditioning.prompt_embeds,
        pooled_prompt_embeds=conditioning.pooled,
        negative_prompt_embeds=conditioning.negative_prompt_embeds,
        negative_pooled_prompt_embeds=conditioning.negative_pooled,
        generator=make(),
        **options,
    ).images
    return ours, theirs


# --- bit for bit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SCHEDULERS, "DEISMultistepScheduler", "LCMScheduler"])
def test_every_scheduler_paints_what_sdxl_paints(kl: FaceCLIPPipeline, name: str) -> None:
    pipe = FaceCLIPPipeline(**{**kl.components, "scheduler": make_scheduler(name, kl.scheduler)})
    pipe.set_progress_bar_config(disable=True)
    ours, theirs = both(pipe, kl.condition(PROMPT, kl.enroll(noise_face(0))))
    assert torch.isfinite(ours).all()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.7},
        {"num_images_per_prompt": 2, "generators": lambda: [seeded(i) for i in range(4)]},
        {"num_images_per_prompt": 3},
        {"eta": 1.0},
        {"denoising_end": 0.5, "output_type": "latent"},
        {"height": 48, "width": 80, "original_size": (96, 96), "crops_coords_top_left": (8, 4)},
        {"negative_original_size": (32, 32), "negative_target_size": (64, 64)},
        {"output_type": "np"},
        {"output_type": "pil"},
    ],
    ids=str,
)
def test_every_option_does_what_it_does_in_sdxl(kl: FaceCLIPPipeline, options: dict[str, Any]) -> None:
    ours, theirs = both(kl, kl.condition([PROMPT, "a chef on the beach"], negative_prompt="hat"), **options)
    if options.get("output_type") == "pil":
        ours, theirs = ([np.asarray(i) for i in images] for images in (ours, theirs))
    assert len(ours) == 2 * options.get("num_images_per_prompt", 1)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("options", [{"timesteps": [900, 500, 100]}, {"sigmas": [10.0, 3.0, 0.5]}], ids=str)
def test_custom_schedules(kl: FaceCLIPPipeline, options: dict[str, Any]) -> None:
    pipe = FaceCLIPPipeline(**{**kl.components, "scheduler": make_scheduler("euler", kl.scheduler)})
    pipe.set_progress_bar_config(disable=True)
    ours, theirs = both(pipe, kl.condition(PROMPT), **options)
    assert torch.equal(ours, theirs)
    with pytest.raises(ConfigError, match="DDIM"):
        painted(kl, PROMPT, **options)


def test_the_mini_autoencoder_serves_both(tiny: FaceCLIPPipeline) -> None:
    ours, theirs = both(tiny, tiny.condition(PROMPT))
    assert ours.shape == (1, 3, 64, 64)
    assert torch.equal(ours, theirs)


def test_encode_prompt_is_what_call_uses(tiny: FaceCLIPPipeline) -> None:
    embeds, negative, pooled, negative_pooled = tiny.encode_prompt(PROMPT, num_images_per_prompt=2)
    ready = Conditioning(embeds, pooled, negative, negative_pooled)
    assert torch.equal(painted(tiny, conditioning=ready), painted(tiny, PROMPT, num_images_per_prompt=2))


# --- who and what -----------------------------------------------------------------------------------------------------


def test_a_face_and_its_identity_paint_the_same(tiny: FaceCLIPPipeline, identity: Identity) -> None:
    by_face = painted(tiny, PROMPT, noise_face(0))
    assert torch.equal(by_face, painted(tiny, PROMPT, identity=identity))
    assert torch.equal(by_face, painted(tiny, conditioning=tiny.condition(PROMPT, identity)))
    assert torch.equal(by_face, painted(tiny, PROMPT, [noise_face(0)]))
    assert not torch.equal(by_face, painted(tiny, PROMPT, noise_face(1)))
    assert not torch.equal(by_face, painted(tiny, PROMPT, [noise_face(0), noise_face(1)]))
    assert not torch.equal(by_face, painted(tiny, "a chef", identity=identity))
    assert not torch.equal(by_face, painted(tiny, PROMPT, identity=identity, negative_prompt="hat"))


@pytest.mark.parametrize("negative", ["hat", ["", "hat"]])
def test_a_negative_prompt_without_guidance_is_refused(tiny: FaceCLIPPipeline, negative: str | list[str]) -> None:
    for guidance in (0.0, 1.0):
        with pytest.raises(ConfigError, match="would change nothing"):
            tiny([PROMPT, PROMPT], negative_prompt=negative, guidance_scale=guidance)
    assert torch.equal(
        painted(tiny, PROMPT, guidance_scale=1.0), painted(tiny, PROMPT, negative_prompt="", guidance_scale=1.0)
    )


def test_a_sampler_of_few_steps_says_how_many(tiny: FaceCLIPPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "scheduler", make_scheduler("lcm", tiny.scheduler))
    assert painted(tiny, PROMPT, num_inference_steps=4).isfinite().all()
    with pytest.raises(ConfigError, match="LCMScheduler allows 50 at most"):
        painted(tiny, PROMPT, num_inference_steps=51)


def test_strength_fades_the_person(tiny: FaceCLIPPipeline, identity: Identity) -> None:
    nobody, person = painted(tiny, PROMPT), painted(tiny, PROMPT, identity=identity)
    assert torch.equal(painted(tiny, PROMPT, identity=identity, strength=0.0), nobody)
    half = painted(tiny, PROMPT, identity=identity, strength=0.5)
    assert not torch.equal(half, person)
    assert not torch.equal(half, nobody)


def test_batches_and_pictures_per_prompt_are_ordered_by_prompt(tiny: FaceCLIPPipeline, identity: Identity) -> None:
    prompts, seeds = [PROMPT, "a chef"], [1, 2, 3, 4]
    batch = painted(tiny, prompts, identity=identity, num_images_per_prompt=2, generator=[seeded(s) for s in seeds])
    alone = [painted(tiny, prompts[i // 2], identity=identity, generator=seeded(s)) for i, s in enumerate(seeds)]
    torch.testing.assert_close(batch, torch.cat(alone), atol=2e-4, rtol=0)


def test_the_model_recommends_steps_and_guidance(tiny: FaceCLIPPipeline) -> None:
    explicit = painted(tiny, PROMPT, num_inference_steps=3, guidance_scale=3.0)
    assert torch.equal(painted(tiny, PROMPT), explicit)
    assert not torch.equal(painted(tiny, PROMPT, guidance_scale=4.0), explicit)


# --- callbacks, outputs, moving, saving -------------------------------------------------------------------------------


def test_callbacks_see_and_change_every_step(tiny: FaceCLIPPipeline) -> None:
    seen = []

    def watch(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, int(timestep), tuple(tensors["latents"].shape), tuple(tensors["prompt_embeds"].shape)))
        return tensors

    def blank(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.zeros_like(tensors["latents"])}

    def stop(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return tensors

    plain = painted(tiny, PROMPT)
    watched = painted(
        tiny, PROMPT, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"]
    )
    assert torch.equal(watched, plain)
    assert [s[0] for s in seen] == [0, 1, 2]
    assert seen[0][2:] == ((1, 16, 8, 8), (2, 24, 48))
    latents = painted(tiny, PROMPT, callback_on_step_end=blank, output_type="latent")
    assert torch.equal(latents, torch.zeros_like(latents))
    assert not torch.equal(painted(tiny, PROMPT, callback_on_step_end=stop), plain)


def test_output_types(tiny: FaceCLIPPipeline) -> None:
    (pil,) = painted(tiny, PROMPT, output_type="pil")
    assert isinstance(pil, Image.Image)
    assert pil.size == (64, 64)
    array = painted(tiny, PROMPT, output_type="np")
    assert np.abs(np.asarray(pil) / 255.0 - array[0]).max() <= 0.5 / 255 + 1e-6
    (images,) = tiny(PROMPT, generator=seeded(), output_type="pt", return_dict=False)
    assert torch.equal(images, painted(tiny, PROMPT))


def test_latents_replace_the_generators_noise(tiny: FaceCLIPPipeline) -> None:
    noise = torch.randn(1, 16, 8, 8, generator=seeded())
    assert torch.equal(painted(tiny, PROMPT, latents=noise), painted(tiny, PROMPT))


def test_saving_and_loading(tiny: FaceCLIPPipeline, tiny_folder: Path, identity: Identity) -> None:
    loaded = FaceCLIPPipeline.from_pretrained(tiny_folder)
    loaded.set_progress_bar_config(disable=True)
    assert (loaded.config.world, loaded.config.default_steps, loaded.config.default_guidance) == ("sitters", 3, 3.0)
    kept = tiny.unet.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in loaded.unet.state_dict().items())
    pictures = [painted(pipe, PROMPT, identity=identity) for pipe in (loaded, tiny)]
    torch.testing.assert_close(*pictures, atol=1e-4, rtol=0)  # where weights lie in memory may change the last bits
    again = FaceCLIPPipeline(**loaded.components)
    assert set(again.components) == {"vae", "unet", "scheduler", "encoder", "controlnet", "detailer"}


def test_other_precisions(tiny_folder: Path, identity: Identity) -> None:
    loaded = FaceCLIPPipeline.from_pretrained(tiny_folder, torch_dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.encoder.dtype} == {torch.bfloat16}
    images = painted(loaded, PROMPT, identity=identity)
    assert images.dtype == torch.bfloat16
    assert torch.isfinite(images).all()
    loaded.to(torch.float32)
    assert painted(loaded, PROMPT, identity=identity).dtype == torch.float32


def test_model_offload_changes_nothing(identity: Identity, tiny: FaceCLIPPipeline) -> None:
    pipe = tiny_pipeline()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe.enable_model_cpu_offload(device=device)
    for _ in range(2):
        images = painted(pipe, PROMPT, noise_face(0)).cpu()
        torch.testing.assert_close(
            images, painted(tiny, PROMPT, identity=identity), atol=0 if device == "cpu" else 1e-3, rtol=0
        )
    assert {p.device.type for m in (pipe.encoder, pipe.unet, pipe.vae) for p in m.parameters()} == {"cpu"}


def test_sequential_offload_streams_the_denoiser_and_keeps_the_encoder_whole(
    tiny: FaceCLIPPipeline, identity: Identity
) -> None:
    pipe = tiny_pipeline()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe.enable_sequential_cpu_offload(device=device)
    assert {p.device.type for p in pipe.unet.parameters()} == {"meta"}
    assert {p.device.type for p in pipe.encoder.parameters()} == {"cpu"}
    torch.testing.assert_close(
        pipe.enroll(noise_face(0)).tensors["class_token.0"].cpu(), identity.tensors["class_token.0"]
    )
    if device == "cuda":  # accelerate cannot stream to a CPU, diffusers' own pipelines included
        images = painted(pipe, PROMPT, noise_face(0)).cpu()
        torch.testing.assert_close(images, painted(tiny, PROMPT, identity=identity), atol=1e-3, rtol=0)
        assert {p.device.type for p in pipe.encoder.parameters()} == {"cpu"}


# --- LoRA -------------------------------------------------------------------------------------------------------------


def test_loras_load_scale_and_unload(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    trained = tiny_pipeline()
    trained.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(trained.unet))
    text = {"self_attn.q_proj.lora_A.weight": torch.ones(2, 8), "self_attn.q_proj.lora_B.weight": torch.ones(8, 2)}
    FaceCLIPPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, text_encoder_lora_layers=text)

    pipe = tiny_pipeline()
    plain = painted(pipe, PROMPT)
    with caplog.at_level(logging.WARNING, "limner"):
        pipe.load_lora_weights(tmp_path)
    assert "text_encoder" in caplog.text
    styled = painted(pipe, PROMPT)
    assert not torch.equal(styled, plain)
    assert torch.equal(styled, painted(trained, PROMPT))
    off = painted(pipe, PROMPT, cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(off, plain, atol=1e-5, rtol=0)
    pipe.unload_lora_weights()
    assert torch.equal(painted(pipe, PROMPT), plain)


# --- schedulers -------------------------------------------------------------------------------------------------------


def test_schedulers_keep_the_noise_schedule_and_never_clip(tiny: FaceCLIPPipeline) -> None:
    euler = make_scheduler("euler", tiny.scheduler)
    for name in SCHEDULERS:
        made = make_scheduler(name, make_scheduler("EulerDiscreteScheduler", euler))
        assert made.config.beta_end == 0.012
        assert not made.config.get("clip_sample", False), name
        assert scheduler_name(made) == name
    bare = diffusers.EulerDiscreteScheduler(beta_start=0.001)
    assert not make_scheduler("ddim", bare).config.clip_sample
    with pytest.raises(ConfigError, match="ddim"):
        make_scheduler("fastest", euler)
    with pytest.raises(ConfigError):
        make_scheduler("UNet2DModel", euler)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (PromptError, {}),
        (PromptError, {"prompt": []}),
        (PromptError, {"prompt": "a", "negative_prompt": ["b", "c"]}),
        (PromptError, {"prompt": ["a", 3]}),
        (ConfigError, {"prompt": "a", "strength": 1.5}),
        (ConfigError, {"prompt": "a", "height": 60}),
        (ConfigError, {"prompt": "a", "width": -8}),
        (ConfigError, {"prompt": "a", "num_images_per_prompt": 0}),
        (ConfigError, {"prompt": "a", "num_inference_steps": 0}),
        (ConfigError, {"prompt": "a", "output_type": "jpeg"}),
        (ConfigError, {"prompt": "a", "generator": [torch.Generator()] * 2}),
        (ConfigError, {"prompt": "a", "latents": torch.zeros(1, 4, 8, 8)}),
        (ConfigError, {"prompt": "a", "stregnth": 1}),
        (ConfigError, {"prompt": "a", "identity": "me.safetensors"}),
        (ConfigError, {"prompt": "a", "callback_on_step_end_tensor_inputs": ["noise"]}),
        (FaceError, {"prompt": "a", "face": []}),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(tiny: FaceCLIPPipeline, error: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(error):
        painted(tiny, **arguments)


def test_contradictions_and_misfits_are_refused(tiny: FaceCLIPPipeline, identity: Identity) -> None:
    ready = tiny.condition(PROMPT)
    with pytest.raises(ConfigError, match="conditioning"):
        painted(tiny, PROMPT, conditioning=ready)
    for name, value in (("negative_prompt", "hat"), ("strength", 0.5)):
        with pytest.raises(ConfigError, match=name):
            painted(tiny, conditioning=ready, **{name: value})
    with pytest.raises(ConfigError, match="both"):
        painted(tiny, PROMPT, noise_face(0), identity=identity)
    with pytest.raises(ConfigError, match="unconditional"):
        painted(tiny, conditioning=dataclasses.replace(ready, negative_prompt_embeds=None))
    with pytest.raises(ConfigError, match="ControlNet"):
        painted(tiny, conditioning=dataclasses.replace(ready, control_image=torch.zeros(1, 3, 64, 64)))
    with pytest.raises(WeightsMismatch, match="48"):
        painted(tiny, conditioning=dataclasses.replace(ready, prompt_embeds=torch.zeros(1, 24, 40)))
    with pytest.raises(WeightsMismatch, match="pooled"):
        painted(tiny, conditioning=dataclasses.replace(ready, pooled=None))
    with pytest.raises(WeightsMismatch):
        painted(tiny, PROMPT, identity=dataclasses.replace(identity, method="dreamidentity"))

"""Full size: values, bytes per memory mode, and what each mode takes in time and memory.

    python benchmarks/bench_full_size.py [--out benchmarks/results/full_size.json] [--repeats 3] [--steps 20]

Weights are random: neither memory nor speed depends on them. Every mode that the device can have paints FaceCLIP-SDXL
pictures of 1024 px with guidance in bfloat16 in a process of its own, beside diffusers' own SDXL pipeline (mode
`diffusers`: the same UNet and autoencoder from ready embeddings). On a CPU few steps say as much as many, and the
process's own memory is measured: `--steps 3 --repeats 1` takes half an hour on two cores with AMX, and 13 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import best_of, machine, peak_memory

WIDTHS = {"float32": 4, "bfloat16": 2}
OWN = "diffusers"
PARTS = ("sdxl", "sdxl-unet", "sdxl-vae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--modes", nargs="+", help="only these")
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    args = parser.parse_args()
    import torch

    from limner.pipelines.memory import modes_for

    if args.mode:
        print(json.dumps(measure_mode(args.mode, args.steps, args.repeats)))
        return
    gpu = torch.cuda.is_available()
    where = f"{torch.cuda.get_device_name()}; {machine()}" if gpu else machine()
    results: dict[str, Any] = {"machine": where, "torch": torch.__version__, "parameters": parameters()}
    results["weights_gb"] = weight_bytes(results["parameters"])
    modes = args.modes or [OWN, *modes_for(torch.device("cuda" if gpu else "cpu"))]
    if not gpu:
        results["cpu"] = measure_l_branch(args.repeats)
    results["measured"] = {}
    for mode in modes:
        results["measured"][mode] = in_own_process(mode, args.steps, args.repeats)
        print(f"{mode:18}{results['measured'][mode]}", flush=True)
    tell(results)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def parameters() -> dict[str, int]:
    """Values of every full-size model, from meta tensors."""
    from limner.pipelines.bases import BASES, ENCODERS, build, count

    return {name: count(build(name)) for name in (*ENCODERS, *BASES)}


def weight_bytes(values: dict[str, int]) -> dict[str, dict[str, float]]:
    """FaceCLIP-SDXL's weights on the GPU while it denoises, GB by mode and number type; sequential: largest layer."""
    import torch

    from limner.pipelines.bases import build

    encoder, unet, vae = (values[part] for part in PARTS)
    layers = (m for m in build("sdxl-unet").modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)))
    layer = max(sum(p.numel() for p in m.parameters()) for m in layers)
    resident = {"plain": encoder + unet + vae, "freed": unet + vae, "offload": unet, "sequential": layer}
    return {m: {t: round(n * w / 1e9, 3) for t, w in WIDTHS.items()} for m, n in resident.items()}


def measure_l_branch(repeats: int) -> dict[str, float]:
    """The L branch in float32: milliseconds (best of the repeats) of one face, of one prompt, and peak megabytes."""
    import torch

    from limner.encoders.faceclip import FaceCLIPEncoder, preset
    from limner.encoders.tokenizer import build_word_tokenizer

    prompt = "a portrait of a person as a wizard in the snow"
    config = preset("L")
    encoder = FaceCLIPEncoder(config, build_word_tokenizer([prompt], context=config.context)).eval()
    image = torch.rand(1, 3, 448, 448)
    person = encoder.enroll(image)
    face = best_of(lambda: encoder.enroll(image), repeats)
    words = best_of(lambda: encoder.encode_identity(person, [prompt]), repeats)
    return {
        "enroll_wall_ms": round(face.wall), "enroll_cpu_ms": round(face.cpu),
        "prompt_wall_ms": round(words.wall), "prompt_cpu_ms": round(words.cpu),
        "threads": torch.get_num_threads(), "peak_mb": round(peak_memory()),
    }  # fmt: skip


def measure_mode(name: str, steps: int, repeats: int) -> dict[str, float]:
    """Seconds and peak gigabytes (of the GPU, or of the process) of one picture of 1024 px."""
    import torch
    from diffusers import EulerDiscreteScheduler

    from limner.encoders.tokenizer import build_word_tokenizer
    from limner.pipelines import sdxl
    from limner.pipelines.bases import build
    from limner.pipelines.faceclip import FaceCLIPPipeline
    from limner.pipelines.memory import MODES, encode, encode_then_free, place

    prompt = "a portrait of a person as a wizard in the snow"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mode = MODES["plain" if name == OWN else name]
    torch.set_default_dtype(torch.bfloat16)
    encoder, unet, vae = (build(part, "cpu") for part in PARTS)
    torch.set_default_dtype(torch.float32)
    vae.register_to_config(force_upcast=False)
    _round(unet, mode.weights)
    encoder.tokenizer = build_word_tokenizer([prompt])
    pipe = FaceCLIPPipeline(vae, unet, EulerDiscreteScheduler.from_config(sdxl.SCHEDULER), encoder)
    pipe.set_progress_bar_config(disable=True)
    place(pipe, mode, device)
    del encoder, unet, vae
    identity = pipe.method.enroll([_noise()])
    encoded = encode_then_free if mode.free_encoders else encode
    ready = encoded(pipe, identity, [prompt])[prompt]
    embeddings = {
        "prompt_embeds": ready.prompt_embeds,
        "pooled_prompt_embeds": ready.pooled,
        "negative_prompt_embeds": ready.negative_prompt_embeds,
        "negative_pooled_prompt_embeds": ready.negative_pooled,
    }
    pipe = _diffusers(pipe) if name == OWN else pipe
    ticks: list[float] = []

    def tick(*found: Any) -> dict[str, Any]:
        if device.type == "cuda":
            torch.cuda.synchronize()
        ticks.append(time.perf_counter())
        return {}

    def paint() -> None:
        ticks.clear()
        given: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 5.0, "callback_on_step_end": tick}
        if name == OWN:
            pipe(**embeddings, height=1024, width=1024, **given)
        elif mode.free_encoders:
            pipe(conditioning=ready, **given)
        else:
            pipe(prompt, identity=identity, **given)
        tick()

    _forget_peak()
    seconds = best_of(paint, repeats).wall / 1e3
    return {
        "seconds": round(seconds, 2),
        "steps": steps,
        "seconds_per_step": round((ticks[-2] - ticks[0]) / (len(ticks) - 2), 3),
        "decoding_seconds": round(ticks[-1] - ticks[-2], 2),
        "peak_gb": round(_peak() / 1e9, 2),
    }


def _round(unet: Any, weights: str) -> None:
    """What loading does for the modes whose weights are rounded by packages; `place` does the rest."""
    if weights == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(unet, Int8WeightOnlyConfig())
    elif weights == "nf4":
        raise SystemExit("nf4 is made while loading from files, which random weights are not.")


def _forget_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew


def _peak() -> float:
    """Bytes at the most since `_forget_peak`."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in status if line.startswith("VmHWM")))


def _diffusers(pipe: Any) -> Any:
    """diffusers' own pipeline over the same denoiser and autoencoder; Limner's encoder leaves the memory."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipe.encoder.free()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    own = StableDiffusionXLPipeline(
        vae=pipe.vae, unet=pipe.unet, scheduler=pipe.scheduler, text_encoder=None, text_encoder_2=None,
        tokenizer=None, tokenizer_2=None, add_watermarker=False,
    )  # fmt: skip
    own.set_progress_bar_config(disable=True)
    return own


def _noise() -> Any:
    import numpy as np

    from limner.types import Face

    image = np.random.default_rng(0).random((3, 448, 448), dtype=np.float32)
    return Face(image=image, box=(0.0, 0.0, 448.0, 448.0), score=1.0, matrix=np.eye(2, 3))


def in_own_process(mode: str, steps: int, repeats: int) -> dict[str, Any]:
    """What `measure_mode` says, or the last line of the error of a mode that this machine cannot run."""
    command = [sys.executable, __file__, "--steps", str(steps), "--repeats", str(repeats), "--mode", mode]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def tell(results: dict[str, Any]) -> None:
    print(results["machine"])
    for name, values in results["parameters"].items():
        print(f"{name:18}{values:>16,} values")
    for mode, sizes in results["weights_gb"].items():
        print(f"{mode:18}" + "".join(f"{size:>10.3f} GB {kind}" for kind, size in sizes.items()))
    print("| mode | s a step | decoding, s | whole picture, s | peak GB |\n| --- | --- | --- | --- | --- |")
    for name, row in results["measured"].items():
        keys = ("seconds_per_step", "decoding_seconds", "seconds", "peak_gb")
        print(f"| `{name}` | " + (row.get("failed") or " | ".join(str(row[k]) for k in keys)) + " |")
    if "cpu" in results:
        print("L branch on the CPU:", results["cpu"])


if __name__ == "__main__":
    main()

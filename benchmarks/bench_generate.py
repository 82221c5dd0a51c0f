"""How long enrolling and painting take, what identity costs over text alone, and how much memory it needs.

    python benchmarks/bench_generate.py [--model NAME_OR_FOLDER] [-n 4] [--steps 30] [--threads 2] [--device auto]

Without --model: the packaged mini model, and as long as there is none, random weights at its size (speed does not
depend on them). Each number is the best of the repeats. Targets are for a warm machine with two idle cores: four
portraits at 30 DDIM steps with guidance in 10 s, enrolment in 0.2 s (finding the face included), identity at most 5 %
over text, a cold `limner generate` in 25 s.

What identity costs is measured twice: as the difference of two whole runs (noisy), and from its parts: enrolment, plus
conditioning on face and prompt, less conditioning on the prompt (steady). The denoiser does the same work in both; face
guidance, which the mini model has by default, and face detail are work of their own, and only the whole runs hold it
(--face-guidance 0 leaves it out, --face-detail 0.5 puts it in).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS = {
    "four portraits": 10.0,
    "enrolment": 0.2,
    "enrolment from a photo": 0.2,
    "identity over text": 0.05,
    "cold generate": 25.0,
}
PROMPT = "a portrait of a person as a wizard in the snow, oil painting"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a name that `limner models` lists, or a folder")
    parser.add_argument("-n", type=int, default=4, help="portraits in a batch")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--face-guidance", type=float, help="default: the model's own")
    parser.add_argument("--face-detail", type=float, help="default: the model's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--accept-license", action="store_true")
    parser.add_argument("--no-cold", action="store_true", help="leave out the cold run of the command line")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from diffusers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        model, what = find_model(args.model, Path(scratch))
        found = {"model": what, **measure(model, args)}
        if not args.no_cold:
            found["cold generate"] = cold(model, args, Path(scratch))
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        tell(found, args)


def find_model(name: str | None, scratch: Path) -> tuple[str, str]:
    """The model to measure, and what to call it."""
    from limner.errors import WeightsUnavailable
    from limner.pipelines.catalogue import DEFAULT
    from limner.pipelines.loading import locate

    try:
        locate(name or DEFAULT)
        return name or DEFAULT, name or DEFAULT
    except WeightsUnavailable:
        if name:
            raise
    random_mini(scratch / "model")
    return str(scratch / "model"), "random weights at the size of faceclip-mini"


def random_mini(folder: Path) -> None:
    """A pipeline with the mini model's sizes, untrained."""
    from diffusers import DDIMScheduler

    from limner.diffusion.schedule import NoiseSchedule
    from limner.encoders.autoencoder import PatchAutoencoder
    from limner.encoders.faceclip import FaceCLIPEncoder, preset
    from limner.encoders.tokenizer import build_word_tokenizer
    from limner.pipelines.faceclip import FaceCLIPPipeline
    from limner.training.tasks.diffusion import UNetConfig

    tokenizer = build_word_tokenizer(PROMPT.split(), context=preset("mini").context)
    encoder = FaceCLIPEncoder(preset("mini"), tokenizer)
    widths = [branch.text.width for branch in encoder.config.branches]
    vae = PatchAutoencoder()
    unet = UNetConfig().build(vae.config.latent_channels, 16, sum(widths), widths[-1])
    scheduler = DDIMScheduler.from_config(NoiseSchedule().scheduler_config())
    FaceCLIPPipeline(vae=vae, unet=unet, scheduler=scheduler, encoder=encoder, world="sitters").save_pretrained(folder)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds by stage, and bytes."""
    import torch

    torch.set_num_threads(args.threads)
    from limner.faces import FaceFinder
    from limner.pipelines.loading import load_model
    from limner.pipelines.paint import default_dials, paint
    from limner.provenance import compact

    start = time.perf_counter()
    model = load_model(name, device=args.device, dtype=args.dtype, accept_license=args.accept_license)
    loading = time.perf_counter() - start
    pipe, faces, finder, photo = model.pipe, [_noise()], FaceFinder(), _photo()
    identity = compact(pipe.method.enroll(faces))
    dials = default_dials(
        model, steps=args.steps, guidance_scale=args.guidance, scheduler="ddim", batch=args.n,
        face_guidance=args.face_guidance, face_detail=args.face_detail,
    )  # fmt: skip

    def run(person: Any) -> None:
        list(paint(model, person, [PROMPT], range(args.n), dials))

    def best(work: Callable[[], object], repeats: int) -> float:
        times = []
        for _ in range(repeats + 1):  # the first warms up
            start = time.perf_counter()
            work()
            if model.pipe.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    with torch.inference_mode():
        enrolment = best(lambda: pipe.method.enroll(faces), 3 * args.repeats)
        on_face = best(lambda: pipe.condition(PROMPT, identity), 3 * args.repeats)
        on_text = best(lambda: pipe.condition(PROMPT), 3 * args.repeats)
    from_photo = best(lambda: pipe.method.enroll([finder.face(photo)]), args.repeats)
    runs = [(best(lambda: run(identity), 1), best(lambda: run(None), 1)) for _ in range(args.repeats)]  # taking turns
    with_person, without = (min(times) for times in zip(*runs, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "device": f"{pipe.device.type} {pipe.unet.dtype}".replace("torch.", ""),
        "pixels": f"{dials.width}x{dials.height}",
        "parameters": {k: sum(p.numel() for p in getattr(pipe, k).parameters()) for k in ("encoder", "unet", "vae")},
        "loading": loading,
        "enrolment": enrolment,
        "enrolment from a photo": from_photo,
        "conditioning on face and text": on_face,
        "conditioning on text": on_text,
        "portraits": with_person,
        "portraits from text alone": without,
        "identity over text": (enrolment + on_face - on_text) / without,
        "identity over text, whole runs": (with_person + enrolment) / without - 1,
        "peak memory": peak,
        "peak memory on the device": torch.cuda.max_memory_allocated() if pipe.device.type == "cuda" else 0,
    }


def cold(name: str, args: argparse.Namespace, scratch: Path) -> float:
    """Seconds of one `limner generate` in a process of its own, from a photo to a file."""
    _photo().save(scratch / "face.png")
    command = [
        sys.executable, "-m", "limner.cli.main", "generate", "--model", name, "--face", str(scratch / "face.png"),
        "--prompt", PROMPT, "--steps", str(args.steps), "--device", args.device, "--dtype", args.dtype,
        "--out", str(scratch / "out"), *(["--accept-license"] if args.accept_license else []),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def tell(found: dict[str, Any], args: argparse.Namespace) -> None:
    """Prints the table."""
    sizes = ", ".join(f"{k} {v / 1e6:.1f} M" for k, v in found["parameters"].items())
    print(f"{found['model']}: {sizes}; {found['device']}, {args.threads} threads, {found['pixels']}")
    print(f"{args.n} portraits, {args.steps} DDIM steps, guidance {args.guidance:g}; best of {args.repeats}\n")
    four = args.n == 4 and args.steps == 30
    for key in (
        "loading",
        "enrolment",
        "enrolment from a photo",
        "conditioning on face and text",
        "conditioning on text",
    ):
        _row(key, f"{found[key]:.3f} s", f"{TARGETS[key]} s" if key in TARGETS else "")
    _row("portraits", f"{found['portraits']:.2f} s", f"{TARGETS['four portraits']:g} s" if four else "")
    _row("portraits from text alone", f"{found['portraits from text alone']:.2f} s")
    _row("identity over text", f"{found['identity over text']:.1%}", f"{TARGETS['identity over text']:.0%}")
    _row("identity over text, whole runs", f"{found['identity over text, whole runs']:.1%}")
    if "cold generate" in found:
        _row("cold generate", f"{found['cold generate']:.1f} s", f"{TARGETS['cold generate']:g} s")
    _row("peak memory", f"{found['peak memory'] / 2**20:.0f} MiB")
    if found["peak memory on the device"]:
        _row("peak memory on the device", f"{found['peak memory on the device'] / 2**20:.0f} MiB")


def _row(name: str, value: str, target: str = "") -> None:
    print(f"{name:34}{value:>12}" + (f"   (target: at most {target})" if target else ""))


def _photo() -> Any:
    """A sitter, 512 px wide, in which the face must be found."""
    from limner.world.sheet import SheetConfig, sheet

    return sheet(SheetConfig(identities=1, views=1, seed=7, size=512))[0]


def _noise() -> Any:
    """An aligned picture; speed does not depend on what it shows."""
    import numpy as np

    from limner.types import Face

    image = np.random.default_rng(0).random((3, 448, 448), dtype=np.float32)
    return Face(image=image, box=(0.0, 0.0, 448.0, 448.0), score=1.0, matrix=np.eye(2, 3))


if __name__ == "__main__":
    main()

"""How long FaceCLIP's L branch takes for one face and one prompt, part by part, in float32 and bfloat16.

    python benchmarks/bench_encoder.py [--preset L] [--repeats 7] [--threads 2] [--device cpu] [--clock wall]

Weights are random: speed does not depend on them. Each number is the best of the repeats. Every type runs in a process
of its own, so that peak memory is its own. The yardstick is a large matrix product in the same type, by which numbers
from different machines can be compared; the published code took 0.445 s in float32 on a 2-core machine of 0.18 to
0.26 TFLOP/s (float32) and 2.0 TFLOP/s (bfloat16), of which face 0.252 s and text 0.077 s, with 2.3 GB resident.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

PUBLISHED = {"end to end": 0.445, "face": 0.252, "text": 0.077}
TYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="L", help="mini, L, bigG or sdxl")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU seconds, for busy machines")
    parser.add_argument("--type", choices=TYPES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.type:
        print(json.dumps(measure(args.preset, args.type, args.repeats, args.threads, args.device, args.clock)))
        return
    results = {kind: _in_own_process(kind) for kind in TYPES}
    rows = list(results["float32"])
    print(
        f"FaceCLIP {args.preset}, one face, one prompt, {args.device}, {args.threads} threads, best of {args.repeats}"
    )
    print(f"{'':28}{'float32':>16}{'bfloat16':>16}{'published':>12}")
    for row in rows:
        known = f"{PUBLISHED[row]:.3f} s" if args.preset == "L" and row in PUBLISHED else ""
        print(f"{row:28}" + "".join(f"{results[k][row]:>16}" for k in TYPES) + f"{known:>12}")


def measure(preset_name: str, kind: str, repeats: int, threads: int, device: str, clock_name: str) -> dict[str, str]:
    """Row → value with unit."""
    import torch

    from limner.encoders.faceclip import FaceCLIPEncoder, preset
    from limner.encoders.tokenizer import build_word_tokenizer

    torch.set_num_threads(threads)
    dtype = getattr(torch, kind)
    prompt = "a woman wearing a blue denim shirt and khaki pants, on a rocky desert plateau."
    config = preset(preset_name)
    tokenizer = build_word_tokenizer([prompt], context=config.context)
    encoder = FaceCLIPEncoder(config, tokenizer).to(device=device, dtype=dtype).eval()
    image = torch.rand(1, 3, 448, 448)
    person = encoder.enroll(image)
    seen = encoder._recall(person)
    ids = encoder.tokenize([prompt], torch.tensor([True])).to(device)
    amount = torch.ones(1, dtype=dtype, device=device)

    def text() -> None:
        for branch, faces in zip(encoder.branches, seen * len(encoder.branches), strict=False):
            branch.encode_text(ids, branch.proj1(faces.class_token), 4, amount)

    clock = time.process_time if clock_name == "cpu" else time.perf_counter

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats + 1):
            start = clock()
            work()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            times.append(clock() - start)
        return min(times[1:])

    with torch.inference_mode():
        a, b = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
        rate = 2 * 2048**3 / best(lambda: a @ b)
        face_s, text_s = best(lambda: encoder.enroll(image)), best(text)
        prompt_s = best(lambda: encoder.encode_identity(person, [prompt]))
        whole_s = best(lambda: encoder.encode(image, [prompt]))
    memory = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 1024 * _peak()
    return {
        "face": f"{face_s:.3f} s",
        "text": f"{text_s:.3f} s",
        "fuser": f"{prompt_s - text_s:.3f} s",
        "new prompt, face enrolled": f"{prompt_s:.3f} s",
        "end to end": f"{whole_s:.3f} s",
        "peak memory": f"{memory / 1e9:.2f} GB",
        "yardstick (matrix product)": f"{rate / 1e12:.2f} TFLOP/s",
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _in_own_process(kind: str) -> dict[str, str]:
    command = [sys.executable, __file__, *sys.argv[1:], "--type", kind]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
    main()

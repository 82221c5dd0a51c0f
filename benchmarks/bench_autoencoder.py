"""How well the mini autoencoder keeps a picture: `python benchmarks/bench_autoencoder.py [N] [FOLDER]`.

Prints PSNR in dB with its 95 % interval over N (512) pictures of the test split, whole and around the eyes, by style,
and the time of both directions. Leaves with status 1 below 31 dB over all.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

import limner
from limner.training.face_weights import eye_mask
from limner.training.metrics import mean_interval
from limner.training.parts import autoencoder_of
from limner.training.tasks.autoencoder import psnr
from limner.world.dataset import WorldDataset

WANTED = 31.0
SHIPPED = Path(limner.__file__).parent / "weights" / "faceclip-mini" / "vae"


@torch.no_grad()
def main(pictures: int = 512, folder: Path = SHIPPED) -> int:
    model = autoencoder_of(folder).float().eval()
    found: dict[str, list[float]] = defaultdict(list)
    encode = decode = 0.0
    for sample in WorldDataset(split="test", identities=pictures, views=1, seed=11):
        image = torch.from_numpy(sample["image"]).permute(2, 0, 1)[None] / 127.5 - 1
        began = time.perf_counter()
        latents = model.encode(image).latent_dist.mode()
        middle = time.perf_counter()
        output = model.decode(latents).sample.clamp(-1, 1)
        encode, decode = encode + middle - began, decode + time.perf_counter() - middle
        error = ((output - image) / 2).square().mean(1, keepdim=True)
        whole = psnr(error.mean((1, 2, 3))).item()
        found["all"].append(whole)
        found[sample["view"]["style"]].append(whole)
        mask = eye_mask(torch.from_numpy(sample["landmarks"])[None], image.shape[2:]).float()
        if mask.any():
            found["around the eyes"].append(psnr((error * mask).sum() / mask.sum()).item())
    for group, values in found.items():
        m = mean_interval("psnr", np.asarray(values))
        print(f"{group:16s} n {len(values):4d}  {m['psnr']:.2f} ± {m['psnr_ci95']:.2f} dB")
    print(f"encode {1e3 * encode / pictures:.1f} ms, decode {1e3 * decode / pictures:.1f} ms a picture, one at a time")
    return int(np.mean(found["all"]) < WANTED)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(*(int(a) for a in arguments[:1]), *map(Path, arguments[1:2])))

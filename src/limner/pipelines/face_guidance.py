"""Face guidance: while it paints, the pipeline looks at what it has in mind and pulls the face towards the person.

Guidance by a recogniser as in Universal Guidance (arXiv 2302.07121) and FreeDoM (arXiv 2303.09833): at every step whose
noise lets a face be seen, the predicted clean latents are decoded, the face in them is found, aligned and shown to the
face encoder that enrolled the person, and the prediction is moved up the gradient of their cosine. The next step
denoises what was moved, which is what keeps it a picture.

The cosine that is pulled up measures nothing afterwards: only recognisers that had no part in it can judge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from limner.data.crops import align_faces
from limner.diffusion.schedule import NoiseSchedule
from limner.errors import ConfigError
from limner.faces import FaceDetector
from limner.pipelines.painted_faces import Box, detector_for, painted_faces, people
from limner.types import Conditioning

if TYPE_CHECKING:
    from limner.pipelines.portrait import PortraitPipeline

NOISE = 3.0
"""Ratio of noise to signal up to which a prediction shows a face: as in training (`identity_noise`)."""
PULLS = ((0.02, -0.01, 0.03, 0.02), (-0.02, 0.01, -0.03, -0.02))
"""Errors of the crop (right, down, log scale, turn) at each of a step's moves, so that no one crop is catered for."""
LENGTH = 0.06
"""How far a move goes at scale 1, as a share of the latents' own length."""


class _Target(NamedTuple):
    box: Box
    faces: torch.Tensor  # (pictures, D); their length is the weight


@contextlib.contextmanager
def face_guided(
    pipe: PortraitPipeline, conditioning: Conditioning, scale: float, guidance: float, pictures: int
) -> Iterator[None]:
    """While it is open, every call of the UNet is guided; afterwards it is as it was.

    Args:
        pipe: with a `face_network`.
        conditioning: what is painted; its `face` and those of its regions say who. Without any, nothing happens.
        scale: how far the latents are moved; 0 changes nothing, 1 is what was measured.
        guidance: of the caller, `guidance_scale`; above 1 the first half of the UNet's rows is unconditional.
        pictures: B·N rows of latents.

    Raises:
        ConfigError: the face encoder or the autoencoder is not on the UNet's device (offloaded or freed).
    """
    targets = _targets(conditioning, pictures, pipe.unet.device)
    if not scale or not targets:
        yield
        return
    network = pipe.face_network
    assert network is not None
    for part in (network, pipe.vae):
        if next(part.parameters()).device != pipe.unet.device or hasattr(part, "_hf_hook"):
            raise ConfigError(
                "Face guidance needs face encoder, UNet and autoencoder in memory together, and one of them is away.",
                "Paint without it (--face-guidance 0), or with --memory plain.",
            )
    schedule = NoiseSchedule.of(pipe.scheduler.config)
    detector = detector_for(pipe.config.world)

    def leave(_unet: Any, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        noisy, t = (given[i] if len(given) > i else named[n] for i, n in enumerate(("sample", "timestep")))
        t = torch.as_tensor(t).float().round().long().reshape(-1)[:1].cpu()
        if schedule.snr(t)[0] < NOISE**-2:
            return None
        halves = output[0].float().split(pictures)
        said = halves[0] + guidance * (halves[-1] - halves[0]) if len(halves) > 1 else halves[0]
        noisy = noisy[:pictures].float()
        t = t.to(noisy.device)
        clean = schedule.clean(noisy, said, t)
        moved = _pulled(pipe, detector, network, clean, targets, scale * LENGTH)
        signal = float(schedule.signal[t.cpu()])
        per_latent = -(signal**0.5 if schedule.prediction == "epsilon" else 1.0) / (1 - signal) ** 0.5
        change = per_latent * (moved - clean)  # so that the prediction implies `moved`
        return (output[0] + change.to(output[0].dtype).repeat(len(halves), 1, 1, 1), *output[1:])

    kept = pipe.vae.dtype
    if kept == torch.float16 and pipe.vae.config.force_upcast:
        pipe.vae.to(torch.float32)  # SDXL's autoencoder overflows in half precision
    hook = pipe.unet.register_forward_hook(leave, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        pipe.vae.to(kept)


def _pulled(
    pipe: Any, detector: FaceDetector, network: Any, clean: torch.Tensor, targets: list[_Target], length: float
) -> torch.Tensor:
    """The latents, moved once for each of `PULLS`; rows without a face stay as they are."""
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has switched off
        moved = clean = clean.clone()
        rows: list[int] = []
        for jitter in PULLS:
            latents = moved.detach().requires_grad_(True)
            decoded = pipe.vae.decode((latents / pipe.vae.config.scaling_factor).to(pipe.vae.dtype)).sample
            pictures = decoded.float() / 2 + 0.5
            if moved is clean:
                seen = painted_faces(detector, pictures, [target.box for target in targets])
                if not seen:
                    return clean
                rows = [s.row for s in seen]
                marks = torch.from_numpy(np.stack([s.landmarks for s in seen])).float().to(pictures.device)
                wanted = torch.stack([targets[s.person].faces[s.row] for s in seen]).clone()
            errors = torch.tensor(jitter, device=clean.device).expand(len(rows), 4)
            crops = align_faces(pictures[rows], marks, network.config.image_size, errors).clamp(0, 1)
            vectors = F.normalize(network(crops.to(next(network.parameters()).dtype)).class_token.float(), dim=1)
            (up,) = torch.autograd.grad((vectors * wanted).sum(), latents)
            up = up / (up.abs() + up.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-12)  # no few places bear it all
            at = torch.tensor(rows, device=clean.device)
            weight = torch.zeros(len(clean), device=clean.device).index_put((at,), wanted.norm(dim=1))
            reach = length * weight * moved.flatten(1).norm(dim=1) / up.flatten(1).norm(dim=1).clamp(min=1e-8)
            moved = moved.detach() + reach.view(-1, 1, 1, 1) * up
        return moved


def _targets(conditioning: Conditioning, pictures: int, device: torch.device) -> list[_Target]:
    """Who is to be where, one row a picture."""
    return [
        _Target(box, told.face.float().to(device).repeat_interleave(pictures // len(told.face), dim=0))
        for box, told in people(conditioning)
        if told.face is not None
    ]

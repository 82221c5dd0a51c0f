"""A tiny base, recognisers and pictures for the rivals' tests; real classes throughout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dream_models import FACE, save_base
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from limner.encoders.face_vit import FaceViT
from limner.encoders.parts import save_face
from limner.types import Identity

MARKS = [[11, 13], [21, 13], [16, 18], [12, 22], [20, 22]]


def write_parts(root: Path, base: str = "mini") -> Path:
    """base/, face/ (a recogniser), clip/ (a CLIP's picture tower) and people/ (4 people, 3 pictures each)."""
    save_base(base, root / "base")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        save_face(root / "face", FaceViT(FACE))
        CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=28,
                patch_size=7, projection_dim=12,
            )
        ).save_pretrained(root / "clip" / "image")  # fmt: skip
    rows = [
        {
            "file_name": f"{person}-{view}.png", "identity": person, "landmarks": MARKS, "reference": view != 2,
            "text": "a woman in snow", "prompt": "a photo of S* in snow",
        }
        for person in range(4) for view in range(3)
    ]  # fmt: skip
    (root / "people").mkdir()
    for i, row in enumerate(rows):
        random = np.random.default_rng(i)
        picture = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((32, 32))
        picture.save(root / "people" / row["file_name"])
    (root / "people" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def data(root: Path) -> dict[str, Any]:
    return {"kind": "folder", "path": str(root / "people"), "size": 32, "workers": 1}


def digest(*modules: torch.nn.Module) -> str:
    """Of all weights; adapters in a UNet are not counted."""
    found = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            if ".processor." in name or name.startswith("encoder_hid_proj."):
                continue
            found.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()


def learns(task: Any, steps: int = 8, lr: float = 1e-2) -> list[float]:
    """The losses of some steps on one batch with one noise."""
    from limner.training.dice import Dice

    rows = min(6, len(task.source()))
    batch = task.source().batch(np.arange(rows), 0)
    optimizer = torch.optim.AdamW(task.parameter_groups(0.0), lr=lr)
    losses = []
    for _ in range(steps):
        found = task.loss(task.model.train(), batch, Dice(0, 0, range(rows)))
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        losses.append(float(found.total.detach()))
    return losses


def assert_prompts_apart(pipe: Any, identity: Identity, **dials: Any) -> None:
    """Several prompts painted at once are what each is by itself."""
    prompts = ["a photo of S*", "S* in snow", "a wizard, S*", "an oil painting of S*"]
    noise = [torch.Generator().manual_seed(i) for i in range(4)]
    options = {"identity": identity, "num_inference_steps": 2, "output_type": "np", **dials}
    together = pipe(prompts, generator=noise, **options).images
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, generator=torch.Generator().manual_seed(i), **options).images[0]
        assert np.abs(together[i] - alone).max() < 1e-4, prompt

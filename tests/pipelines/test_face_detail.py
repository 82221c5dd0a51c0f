"""Face detail paints faces again and nothing else, the same way every time, and leaves the UNet as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import Everywhere, noise_face, tiny_pipeline

from limner.diffusion.lora import FaceDetailer, add_lora
from limner.errors import ConfigError, WeightsMismatch
from limner.pipelines import face_detail
from limner.pipelines.face_detail import with_face_detail
from limner.pipelines.faceclip import FaceCLIPPipeline
from limner.pipelines.loading import load_model
from limner.pipelines.paint import default_dials, paint
from limner.pipelines.regions import group
from limner.provenance import compact

PROMPT = "a wizard in the snow"
DIALS: dict[str, Any] = {"steps": 4, "guidance_scale": 1.0}


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> FaceCLIPPipeline:
    monkeypatch.setattr(face_detail, "detector_for", lambda world: Everywhere(0.08))
    return tiny_pipeline()


def detailer(pipe: FaceCLIPPipeline, size: float = 0.2, zoom: float = 1.0, strength: float = 0.5) -> FaceDetailer:
    """A LoRA of random values."""
    unet = tiny_pipeline().unet
    add_lora(unet, 2)
    made = FaceDetailer.of(unet, zoom, strength)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return made


def grey(pipe: FaceCLIPPipeline, count: int = 1) -> torch.Tensor:
    return torch.full((count, 3, 64, 128), 0.5)


def noise(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_the_face_is_painted_again_and_nothing_else(pipe: FaceCLIPPipeline) -> None:
    told = pipe.condition(PROMPT, pipe.enroll(noise_face(0)))
    pictures = grey(pipe)
    found = with_face_detail(pipe, pictures, told, 0.5, generator=noise(1), **DIALS)
    again = with_face_detail(pipe, pictures, told, 0.5, generator=noise(1), **DIALS)
    changed = (found != pictures).any(1)[0]
    assert torch.equal(found, again)
    assert changed[32, 32] or changed[32, 96], "one of the two faces, the larger"
    assert changed.float().mean() < 0.5
    assert found.min() >= 0
    assert found.max() <= 1


def test_pictures_do_not_depend_on_those_beside_them(pipe: FaceCLIPPipeline) -> None:
    told = pipe.condition([PROMPT, "a chef"], pipe.enroll(noise_face(0)))
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    together = with_face_detail(pipe, pictures, told, 0.5, generator=noise(4), **DIALS)
    alone = face_detail.rows_of(told, [1])
    last = with_face_detail(pipe, pictures[3:], alone, 0.5, generator=noise(4)[3:], **DIALS)
    assert torch.allclose(together[3:], last, atol=2 / 255)
    assert not torch.equal(last, pictures[3:])


def test_everybody_of_a_group_is_painted_in_their_own_region(pipe: FaceCLIPPipeline) -> None:
    me, you = (pipe.enroll(noise_face(seed)) for seed in (0, 1))
    pictures = grey(pipe)

    def both(first: Any, second: Any) -> torch.Tensor:
        told = pipe.condition(PROMPT, group([first, second], ["left", "right"]))
        return with_face_detail(pipe, pictures, told, 0.9, generator=noise(1), **DIALS)[..., 32, :].sum((0, 1))

    ours, theirs = both(me, you), both(me, me)
    assert torch.equal(ours[24:40], theirs[24:40])
    assert not torch.equal(ours[88:104], theirs[88:104])
    assert not torch.equal(ours[24:40], pictures[0, :, 32, 24:40].sum(0))


def test_faces_that_are_large_enough_stay(pipe: FaceCLIPPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    told = pipe.condition(PROMPT, pipe.enroll(noise_face(0)))
    pictures = grey(pipe)
    monkeypatch.setattr(face_detail, "LEAST_ENLARGED", 100)
    assert torch.equal(with_face_detail(pipe, pictures, told, 0.5, **DIALS), pictures)


def test_a_pipeline_finishes_its_pictures(pipe: FaceCLIPPipeline) -> None:
    def painted(**options: Any) -> Any:
        return pipe(PROMPT, generator=noise(1), output_type="pt", guidance_scale=1.0, **options).images

    plain = painted()
    assert pipe.default_face_detail == 0
    assert torch.equal(plain, painted(face_detail=0.0))
    told = pipe.condition(PROMPT)
    more = noise(1)
    pictures = pipe(conditioning=told, generator=more, output_type="pt", guidance_scale=1.0).images
    detailed = painted(face_detail=0.7)
    assert torch.equal(
        detailed, with_face_detail(pipe, pictures, told, 0.7, generator=more, steps=3, guidance_scale=1.0)
    )
    assert not torch.equal(detailed, plain)
    image = pipe(PROMPT, generator=noise(1), guidance_scale=1.0, face_detail=0.7).images[0]
    assert np.abs(np.asarray(image) / 255 - detailed[0].permute(1, 2, 0).numpy()).max() < 1 / 255
    with pytest.raises(ConfigError, match="face_detail"):
        painted(face_detail=1.5)


def test_its_own_weights_are_used_and_put_away(pipe: FaceCLIPPipeline) -> None:
    told = pipe.condition(PROMPT, pipe.enroll(noise_face(0)))
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}

    def painted() -> torch.Tensor:
        return with_face_detail(pipe, grey(pipe), told, 0.5, generator=noise(1), **DIALS)

    plain = painted()
    pipe.detailer = detailer(pipe)
    assert not torch.equal(painted(), plain)
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    with pytest.raises(RuntimeError), pipe.detailer.merged(pipe.unet):
        raise RuntimeError
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    pipe.detailer = detailer(pipe, 0.0)
    assert torch.equal(painted(), plain)


def test_weights_of_another_unet_are_refused(pipe: FaceCLIPPipeline) -> None:
    with pytest.raises(WeightsMismatch, match="no such weights"), detailer(pipe).merged(torch.nn.Linear(2, 2)):
        pass


def test_a_model_is_kept_with_its_detailer(pipe: FaceCLIPPipeline, tmp_path: Path) -> None:
    pipe.detailer = None
    pipe.register_modules(detailer=detailer(pipe, zoom=1.5, strength=0.7))
    pipe.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    assert {"unet", "detailer"} <= model.weights.keys()
    ours, theirs = pipe.detailer, model.pipe.detailer
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    dials = default_dials(model)
    assert dials.face_detail == 0.7
    assert face_detail.head_zoom(model.pipe) == 1.5
    assert default_dials(model, gaze="0.3,0.4,0.6,0.4").face_detail == 0
    who = compact(pipe.enroll(noise_face(0)))
    (portrait,) = paint(model, who, [PROMPT], [0], dials)
    assert portrait.settings["face_detail"] == 0.7
    expected = pipe(PROMPT, identity=who, generator=noise(1)).images[0]
    plain = pipe(PROMPT, identity=who, generator=noise(1), face_detail=0.0).images[0]
    ours, theirs, without = (np.asarray(image, float) for image in (portrait.image, expected, plain))
    assert np.abs(ours - theirs).max() <= 2
    assert np.abs(without - theirs).max() > 10

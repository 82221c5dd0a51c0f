"""Face guidance pulls a face towards the person, is nothing where it is not wanted, and leaves no trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import Everywhere, noise_face, tiny_pipeline

from limner.cli.demo import FACE
from limner.errors import ConfigError
from limner.faces import FaceFinder
from limner.faces.mini import MiniDetector
from limner.pipelines import face_guidance
from limner.pipelines.faceclip import FaceCLIPPipeline
from limner.pipelines.loading import Model, load_model
from limner.pipelines.paint import default_dials, paint
from limner.pipelines.ranking import NO_FACE, Likeness
from limner.pipelines.recogniser import own_embedding
from limner.pipelines.regions import group
from limner.provenance import compact
from limner.types import Identity

PROMPT = "a wizard in the snow"


@pytest.fixture
def kl(monkeypatch: pytest.MonkeyPatch) -> FaceCLIPPipeline:
    monkeypatch.setattr(face_guidance, "detector_for", lambda world: Everywhere())
    return tiny_pipeline("kl")


def painted(pipe: FaceCLIPPipeline, *args: Any, **options: Any) -> torch.Tensor:
    told = {"generator": torch.Generator().manual_seed(0), "output_type": "latent", "num_inference_steps": 4, **options}
    return pipe(*args, **told).images


def alike(pipe: FaceCLIPPipeline, latents: torch.Tensor, who: Identity, x: float) -> float:
    """Cosine of the face of one half of the picture with a person, as the pipeline's own face encoder sees it."""
    pictures = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    pixels = (pictures[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    face = next(f for f in Everywhere().scan(pixels) if abs(f.center[0] / pixels.shape[1] - x) < 0.1)
    marks = torch.from_numpy(np.asarray(face.landmarks)).float()[None]
    crops = face_guidance.align_faces(pictures, marks, pipe.face_network.config.image_size)
    seen = pipe.face_network(crops.clamp(0, 1)).class_token[0]
    return float(torch.cosine_similarity(seen, torch.from_numpy(own_embedding(who)), dim=0))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_the_face_gets_nearer_to_the_person(kl: FaceCLIPPipeline, guidance: float, prediction: str) -> None:
    kl.scheduler.register_to_config(prediction_type=prediction)
    who = kl.enroll(noise_face(0))
    dials = {"identity": who, "guidance_scale": guidance, "pag_scale": 0.0}
    without, with_it = (painted(kl, PROMPT, face_guidance=s, **dials) for s in (0.0, 2.0))
    assert not kl.unet._forward_hooks
    assert max(alike(kl, with_it, who, x) for x in (0.25, 0.75)) > max(alike(kl, without, who, x) for x in (0.25, 0.75))


@torch.no_grad()
def test_a_prediction_is_changed_so_that_it_implies_the_moved_picture(kl: FaceCLIPPipeline) -> None:
    """What the scheduler makes of the changed prediction lies as far from the plain one as was asked for."""
    who = kl.condition(PROMPT, kl.enroll(noise_face(0)))
    kl.scheduler.set_timesteps(10)
    schedule = face_guidance.NoiseSchedule.of(kl.scheduler.config)
    t = torch.tensor([100])
    shape = (1, kl.unet.config.in_channels, *(side // kl.vae_scale_factor for side in kl.default_size))
    noisy = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    size = [*kl.default_size, 0, 0, *kl.default_size]
    told = {
        "encoder_hidden_states": who.prompt_embeds,
        "added_cond_kwargs": {"text_embeds": who.pooled, "time_ids": torch.tensor([size]).float()},
    }
    plain = kl.unet(noisy, t, **told)[0]
    with face_guidance.face_guided(kl, who, 0.01, 1.0, 1):
        pulled = kl.unet(noisy, t, **told)[0]
    a, b = (schedule.clean(noisy, said, t) for said in (plain, pulled))
    moves = len(face_guidance.PULLS) * 0.01 * face_guidance.LENGTH
    assert 0.2 * moves < float((b - a).norm() / a.norm()) <= 1.01 * moves


def test_nobody_and_no_scale_change_nothing(kl: FaceCLIPPipeline) -> None:
    who = kl.enroll(noise_face(0))
    assert torch.equal(painted(kl, PROMPT, face_guidance=0.0), painted(kl, PROMPT, face_guidance=2.0))
    plain = painted(kl, PROMPT, identity=who)
    assert torch.equal(plain, painted(kl, PROMPT, identity=who, face_guidance=0.0))
    assert not torch.equal(plain, painted(kl, PROMPT, identity=who, face_guidance=2.0))
    assert torch.equal(
        painted(kl, PROMPT, identity=who, strength=0.0),
        painted(kl, PROMPT, identity=who, strength=0.0, face_guidance=2.0),
    )


def test_it_works_in_inference_mode(kl: FaceCLIPPipeline) -> None:
    expected = painted(kl, PROMPT, identity=kl.enroll(noise_face(0)), face_guidance=2.0)
    with torch.inference_mode():
        found = painted(kl, PROMPT, identity=kl.enroll(noise_face(0)), face_guidance=2.0)
    assert torch.allclose(found, expected, atol=1e-4)


def test_pictures_do_not_depend_on_who_is_painted_beside_them(kl: FaceCLIPPipeline) -> None:
    who = kl.condition([PROMPT, "a chef"], kl.enroll(noise_face(0)))
    alone = kl.condition(PROMPT, kl.enroll(noise_face(0)))
    both = painted(
        kl, conditioning=who, generator=[torch.Generator().manual_seed(s) for s in (0, 1)], face_guidance=1.0
    )
    first = painted(kl, conditioning=alone, generator=[torch.Generator().manual_seed(0)], face_guidance=1.0)
    assert torch.allclose(both[:1], first, atol=1e-3)


def test_everybody_of_a_group_is_pulled_in_their_own_region(kl: FaceCLIPPipeline) -> None:
    people = [kl.enroll(noise_face(s)) for s in (0, 1)]
    conditioning = kl.condition(PROMPT, group(people, ["left", "right"]))
    targets = face_guidance._targets(conditioning, 2, torch.device("cpu"))
    pictures = torch.rand(2, 3, *kl.default_size)
    seen = face_guidance.painted_faces(Everywhere(), pictures, [t.box for t in targets])
    assert [(s.row, s.person) for s in seen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for one in seen:
        assert np.allclose(targets[one.person].faces[one.row], own_embedding(people[one.person]), atol=1e-5)
        assert (one.face.landmarks[:, 0].max() < kl.default_size[1] / 2) == (one.person == 0)


def test_a_part_that_is_away_is_named(kl: FaceCLIPPipeline) -> None:
    who = kl.condition(PROMPT, kl.enroll(noise_face(0)))
    kl.encoder.to("meta")
    with pytest.raises(ConfigError, match="in memory together"):
        painted(kl, conditioning=who, face_guidance=1.0)


def test_methods_without_a_face_encoder_of_their_own_refuse(kl: FaceCLIPPipeline, monkeypatch: Any) -> None:
    monkeypatch.setattr(FaceCLIPPipeline, "face_network", None)
    with pytest.raises(ConfigError, match="no face encoder"):
        painted(kl, PROMPT, face_guidance=1.0)


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model("faceclip-mini", device="cpu")


def test_the_shipped_model_resembles_the_person_more_with_it(shipped: Model) -> None:
    pipe = shipped.pipe
    who = compact(pipe.method.enroll([FaceFinder(MiniDetector.load()).face(FACE)]))
    judge = Likeness(pipe.embedder, own_embedding(who))
    dials = default_dials(shipped)
    assert dials.face_guidance == 1
    scores = []
    for scale in (0.0, dials.face_guidance):
        told = default_dials(shipped, face_guidance=scale)
        found = [judge(p.image) for p in paint(shipped, who, [PROMPT.replace("a", "S* as a", 1)], range(4), told)]
        scores.append(float(np.mean([max(s, 0.0) for s in found if s != NO_FACE])))
    assert scores[1] > scores[0] + 0.1

"""Groups and rescues are the pipelines' own: they serve DreamIdentity on bases with and without pooled embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dream_models import encoder, save_base
from PIL import Image
from tiny_model import noise_face

from limner.pipelines.dreamidentity import DreamIdentityPipeline, assemble
from limner.pipelines.regions import group
from limner.pipelines.rescue import Plan, SmallFace, rescue

PROMPT = "S* as a wizard"


@pytest.fixture(scope="module", params=["sd21", "sdxl"])
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DreamIdentityPipeline:
    made = assemble(save_base(request.param, tmp_path_factory.mktemp("base")), encoder(request.param), default_steps=2)
    made.set_progress_bar_config(disable=True)
    return made


def test_a_group(pipe: DreamIdentityPipeline) -> None:
    me, you = (pipe.enroll(noise_face(i)) for i in range(2))
    whole, alone, both, swapped = (
        pipe(PROMPT, identity=who, generator=torch.Generator().manual_seed(0), output_type="latent").images
        for who in (group([me], ["all"]), me, group([me, you], ["left", "right"]), group([you, me], ["left", "right"]))
    )
    assert torch.equal(whole, alone)
    assert not torch.equal(both, alone)
    assert not torch.equal(both, swapped)


def test_a_rescue(pipe: DreamIdentityPipeline) -> None:
    scene = Image.effect_noise((64, 32), 60).convert("RGB")
    face = SmallFace(0, (36, 12, 40, 17), (32, 8, 44, 20), 3.0, ((3.0, 0.0, -98.0), (0.0, 3.0, -26.0)))
    done = rescue(pipe, scene, pipe.condition(PROMPT, pipe.enroll(noise_face(0))), plan=Plan((face,)))
    changed = np.asarray(done.image) != np.asarray(scene)
    assert changed[8:20, 32:44].any()
    changed[8:20, 32:44] = False
    assert not changed.any()

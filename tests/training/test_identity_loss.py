"""The identity loss: nothing for a perfect prediction, only where a face can be known, and it teaches."""

from __future__ import annotations

import pytest
import torch

from limner.data.crops import align_faces
from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.config import FaceViTConfig
from limner.encoders.face_vit import FaceViT
from limner.training.identity_loss import IdentityLoss

ROWS, EVERY = 6, torch.zeros(6)


def decode(latents: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(latents, scale_factor=8).sigmoid()


@pytest.fixture(scope="module")
def face() -> FaceViT:
    torch.manual_seed(0)
    sizes = {"image_size": 28, "patch_size": 7, "width": 16, "depth": 1, "heads": 2, "output": 8, "mask_ratio": 0.0}
    return FaceViT(FaceViTConfig.from_dict(sizes)).eval().requires_grad_(False)


@pytest.fixture
def batch(face: FaceViT) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    latents = torch.randn(ROWS, 3, 4, 4)
    landmarks = torch.tensor([[11.0, 13], [21, 13], [16, 18], [12, 22], [20, 22]]).repeat(ROWS, 1, 1)
    own = face(align_faces(decode(latents), landmarks, 28)).class_token
    return {
        "latents": latents,
        "landmarks": landmarks,
        "own_class_token": own,
        "recognisable": torch.ones(ROWS, dtype=torch.bool),
    }


def loss_of(face: FaceViT, share: float = 0.5, noise: float = 3.0, prediction: str = "v_prediction") -> IdentityLoss:
    return IdentityLoss(NoiseSchedule(prediction=prediction), decode, face, share, noise, torch.float32)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_a_perfect_prediction_costs_nothing(face: FaceViT, batch: dict[str, torch.Tensor], prediction: str) -> None:
    loss, t, noise = (
        loss_of(face, prediction=prediction),
        torch.tensor([0, 50, 100, 200, 300, 400]),
        torch.randn(6, 3, 4, 4),
    )
    noisy = loss.schedule.add_noise(batch["latents"], noise, t)
    target = loss.schedule.target(batch["latents"], noise, t)
    each, where = loss(noisy, target, t, batch, EVERY)
    assert where.all()
    assert each.abs().max() < 1e-4
    wrong, _ = loss(noisy, target + torch.randn_like(target), t, batch, EVERY)
    assert wrong.mean() > 0.01


def test_only_rows_in_which_a_face_can_be_known_count(face: FaceViT, batch: dict[str, torch.Tensor]) -> None:
    batch["landmarks"][1] = torch.nan
    batch["recognisable"][2] = False
    chance = torch.tensor([0.0, 0.0, 0.0, 0.6, 0.0, 0.0])
    t = torch.tensor([100, 100, 100, 100, 900, 100])
    each, where = loss_of(face)(torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4), t, batch, chance)
    assert where.tolist() == [True, False, False, False, False, True]
    assert (each != 0).tolist() == where.tolist()
    none, nowhere = loss_of(face, noise=1e-3)(torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4), t, batch, EVERY)
    assert none.tolist() == [0] * 6
    assert not nowhere.any()


def test_it_can_be_learnt_by_the_prediction_alone(face: FaceViT, batch: dict[str, torch.Tensor]) -> None:
    loss, t, noise = loss_of(face), torch.full((ROWS,), 300), torch.randn(ROWS, 3, 4, 4)
    noisy = loss.schedule.add_noise(batch["latents"], noise, t)
    prediction = torch.randn(ROWS, 3, 4, 4, requires_grad=True)
    optimizer = torch.optim.Adam([prediction], lr=0.05)
    costs = []
    for _ in range(40):
        cost = loss(noisy, prediction, t, batch, EVERY)[0].mean()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert costs[-1] < 0.5 * costs[0]

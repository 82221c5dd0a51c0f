"""Windows of latent pictures: what they show, and what is said of them."""

from __future__ import annotations

import torch

from limner.training.windows import Windows


def test_a_window_laid_back_changes_nothing_else() -> None:
    pictures = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    windows = Windows(torch.tensor([[0, 6], [4, 1]]), (8, 12))
    seen = windows.cut(pictures)
    assert seen.shape == (2, 3, 4, 6)
    assert seen[0].equal(pictures[0, :, :4, 6:])
    assert seen[1].equal(pictures[1, :, 4:, 1:7])
    assert windows.lay(seen, pictures).equal(pictures)
    laid = windows.lay(-seen - 1, pictures)
    assert windows.cut(laid).equal(-seen - 1)
    assert int((laid != pictures).sum()) == seen.numel()
    assert windows.rows(torch.tensor([1])).cut(pictures[1:]).equal(seen[1:])


def test_windows_hold_the_face() -> None:
    chance = torch.rand(100, 2, generator=torch.Generator().manual_seed(0))
    face = torch.tensor([[50.0, 40], [70, 40], [60, 52], [52, 62], [68, 62]]).expand(100, 5, 2)
    corners = Windows.at_faces(face, (16, 16), 8, chance).corners * 8
    low, high = face.amin(1).flip(1), face.amax(1).flip(1)
    assert bool(((corners <= low) & (corners + 64 >= high)).all())
    assert len(corners.unique(dim=0)) > 5, "not always in the same place"
    beyond = Windows.at_faces(face + 200, (16, 16), 8, chance).corners
    assert beyond.unique().tolist() == [8]
    unknown = Windows.at_faces(face * torch.nan, (16, 16), 8, chance).corners
    assert unknown.unique().tolist() == list(range(9)), "anywhere"


def test_a_window_is_told_as_sdxl_tells_crops() -> None:
    windows = Windows(torch.tensor([[3, 5]]), (16, 16))
    whole = torch.tensor([[256.0, 300, 10, 20, 128, 128]])
    assert windows.told(whole, 8).tolist() == [[256, 300, 10 + 24, 20 + 40, 64, 64]]

"""Which memory mode is chosen for which machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import tiny_pipeline

from limner.pipelines import loading
from limner.pipelines.catalogue import FULL, SIZES
from limner.pipelines.fitting import PREFERENCE, Sizes, choose_mode, fits, needed, sizes_of
from limner.pipelines.memory import MODES, modes_for

SDXL = SIZES[FULL.name]
MINI = Sizes(5_000_000, 9_000_000, 1_000_000, 128**2)


@pytest.mark.parametrize(
    ("kind", "gigabytes", "width", "mode"),
    [
        ("cuda", 80, 2, "plain"), ("cuda", 15, 2, "plain"), ("cuda", 11.5, 2, "freed"), ("cuda", 7.5, 2, "offload"),
        ("cuda", 5.5, 2, "sequential"), ("cuda", 1, 2, "sequential"), ("mps", 16, 2, "plain"), ("mps", 9, 2, "sliced"),
        ("cpu", 32, 4, "plain"), ("cpu", 20, 4, "freed"), ("cpu", 18, 4, "sliced"), ("cpu", 4, 4, "sliced"),
    ],
)  # fmt: skip
def test_sdxl_on_cards_of_many_sizes(kind: str, gigabytes: float, width: int, mode: str) -> None:
    assert choose_mode(kind, int(gigabytes * 1e9), SDXL, width) == mode
    assert choose_mode(kind, int(gigabytes * 1e9), MINI, width) == "plain"


def test_the_encoder_is_kept_where_it_is_needed() -> None:
    assert choose_mode("cuda", 11_500_000_000, SDXL, 2, keep_encoder=True) == "offload"


@pytest.mark.parametrize("kind", PREFERENCE)
def test_only_modes_of_the_device_that_keep_the_weights_are_tried(kind: str) -> None:
    assert set(PREFERENCE[kind]) <= set(modes_for(torch.device(kind)))
    assert all(MODES[m].faithful for m in PREFERENCE[kind])
    falling = [needed(m, SDXL, 2) for m in PREFERENCE[kind]]
    assert falling == sorted(falling, reverse=True)


def test_rounded_weights_need_less() -> None:
    assert needed("nf4", SDXL, 2) < needed("fp8", SDXL, 2) < needed("int8", SDXL, 2) < needed("freed", SDXL, 2)
    assert fits("cuda", 10**9, SDXL, 2) == ""


def test_many_or_large_pictures_need_more(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_mode("cuda", 15_000_000_000, SDXL.for_pictures(1), 2) == "plain"
    assert choose_mode("cuda", 15_000_000_000, SDXL.for_pictures(4), 2) == "offload"
    assert SDXL.for_pictures(2, (512, 1024)).pixels == 1024**2
    monkeypatch.setattr(loading, "free_memory", lambda *device: 500_000_000)
    for more, mode in (({}, "plain"), ({"batch": 64}, "sliced"), ({"size": (1024, 1024)}, "sliced")):
        assert loading.load_model(str(tiny_folder), device="cpu", memory="auto", **more).memory == mode


@pytest.mark.parametrize("vae", ["patch", "kl"])
def test_sizes_are_read_from_the_files(vae: str, tmp_path: Path) -> None:
    pipe = tiny_pipeline(vae)
    pipe.save_pretrained(tmp_path)
    sizes = sizes_of(tmp_path)
    assert sizes.unet == sum(p.numel() for p in pipe.unet.parameters())
    assert sizes.encoder >= sum(p.numel() for p in pipe.encoder.parameters())
    assert sizes.pixels == pipe.default_size[0] * pipe.default_size[1]
    assert sizes_of(tmp_path / "nothing") == Sizes(0, 0, 0, 0)

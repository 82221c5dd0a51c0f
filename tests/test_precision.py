"""Half precision only where the processor computes in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from limner import precision
from limner.precision import affordable, native_bfloat16
from limner.training.denoising import dtype_named
from limner.training.optimizer import orthogonalised

OLD = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}
NEW = {**OLD, "avx512_bf16": True}
OTHER = {"architecture": "aarch64"}


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    def say(found: dict[str, object]) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
        native_bfloat16.cache_clear()
        precision._say.cache_clear()

    yield say
    monkeypatch.undo()
    native_bfloat16.cache_clear()


def test_float32_where_bfloat16_is_emulated(able: object, caplog: pytest.LogCaptureFixture) -> None:
    able(OLD)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert affordable(torch.bfloat16, "cpu") == affordable(torch.bfloat16, "cpu") == torch.float32
    assert [r.message for r in caplog.records] == [
        "This processor only emulates bfloat16, which would be slower; float32 is used instead."
    ]
    assert affordable(torch.bfloat16, "cuda") == affordable(torch.bfloat16, "meta") == torch.bfloat16
    assert affordable(torch.float16, "cpu") == torch.float16
    assert orthogonalised(torch.randn(1, 4, 4)).dtype == torch.float32
    if not torch.accelerator.is_available():
        assert dtype_named("bfloat16") == torch.float32


@pytest.mark.parametrize("found", [NEW, OTHER])
def test_bfloat16_where_it_is_native(able: object, found: dict[str, object]) -> None:
    able(found)  # type: ignore[operator]
    assert affordable(torch.bfloat16, "cpu") == dtype_named("bfloat16") == torch.bfloat16
    assert orthogonalised(torch.randn(1, 4, 4)).dtype == torch.bfloat16

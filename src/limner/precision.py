"""Which half precisions the processor at hand computes in, and which it only emulates."""

from __future__ import annotations

import logging
from functools import cache

import torch

log = logging.getLogger(__name__)

NATIVE = ("avx512_bf16", "amx_bf16")
"""What a processor of the x86 family needs one of for bfloat16."""


@cache
def native_bfloat16() -> bool:
    """Whether the CPU itself computes in bfloat16. One of the x86 family without that converts every number back and
    forth, which made a UNet eight times slower than in float32; others are believed to."""
    able = torch.cpu.get_capabilities()
    return able.get("architecture") != "x86_64" or any(able.get(name) for name in NATIVE)


def affordable(dtype: torch.dtype, device: torch.device | str) -> torch.dtype:
    """`dtype`, or float32 where that is faster: for bfloat16 on a CPU that only emulates it."""
    if dtype != torch.bfloat16 or torch.device(device).type != "cpu" or native_bfloat16():
        return dtype
    _say()
    return torch.float32


@cache
def _say() -> None:
    log.warning("This processor only emulates bfloat16, which would be slower; float32 is used instead.")

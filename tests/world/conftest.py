"""Shared by the tests of the world."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from limner.world.truth import Sample


@pytest.fixture(scope="session")
def same() -> Callable[[Sample, Sample], bool]:
    """Whether two samples are equal in every field, arrays to the last bit."""

    def compare(a: Sample, b: Sample) -> bool:
        if a.keys() != b.keys():
            return False
        for key, value in a.items():
            if isinstance(value, np.ndarray):
                if value.dtype != b[key].dtype or not np.array_equal(value, b[key]):
                    return False
            elif value != b[key]:
                return False
        return True

    return compare

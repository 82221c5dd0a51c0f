"""The OpenAPI document against the service that it describes: schemathesis sends what it allows and what it forbids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from limner.pipelines.loading import load_model
from limner.serve.app import create_app
from limner.serve.engine import Engine
from limner.serve.jobs import Limits
from limner.serve.settings import CALLER_KEY, Settings

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
seen: Counter[int] = Counter()


@pytest.fixture(scope="module")
def api(tiny_folder: Path) -> Iterator[object]:
    engine = Engine(
        lambda: load_model(str(tiny_folder), device="cpu"), Limits(number=2, steps=2, queue=1000, per_owner=1000)
    )
    engine.start()
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(engine, Settings(rate=1e6, burst=10**6)))
    engine.close()


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_every_operation_answers_as_documented(api: Any, data: st.DataObject) -> None:
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        case = data.draw(operation.as_strategy())
        answer = case.call_and_validate(checks=CHECKS, headers={CALLER_KEY: "f" * 30})
        seen[answer.status_code] += 1


def test_both_good_and_bad_requests_were_sent() -> None:
    assert {200, 404, 422} <= set(seen), seen

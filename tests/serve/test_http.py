"""The HTTP API: every answer, callers kept apart, hostile bodies. A tiny model, a real engine, the real app."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import secrets
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from limner.pipelines.loading import load_model
from limner.provenance import read_provenance
from limner.serve.app import create_app
from limner.serve.engine import Engine
from limner.serve.guard import Guard
from limner.serve.jobs import Limits
from limner.serve.schemas import Generate
from limner.serve.settings import CALLER_KEY, Settings

ANN, BOB = ({CALLER_KEY: c * 30} for c in "ab")
GENEROUS = Settings(rate=100_000, burst=10_000)


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Iterator[Engine]:
    engine = Engine(lambda: load_model(str(tiny_folder), device="cpu"))
    engine.start()
    yield engine
    engine.close()


@pytest.fixture
def client(engine: Engine) -> TestClient:
    """Ann, on an engine that others use too."""
    return TestClient(create_app(engine, GENEROUS), headers={CALLER_KEY: secrets.token_urlsafe()})


@pytest.fixture
def serve(make_engine: Any) -> Any:
    """A client of a service of its own: `serve(limits, settings, **engine options)`."""

    def serve(limits: Limits | None = None, settings: Settings | None = None, **options: Any) -> TestClient:
        engine = make_engine(limits, **options)
        client = TestClient(create_app(engine, settings or GENEROUS), headers=ANN)
        client.app.state.engine = engine  # type: ignore[attr-defined]
        return client

    return serve


def refused(response: Any, status: int, code: str) -> dict[str, str]:
    """The error of an answer that must be one."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code, error
    assert error["message"]
    assert set(error) == {"type", "code", "message", "hint"}
    return error


def order(client: TestClient, **fields: Any) -> str:
    response = client.post("/v1/jobs", json={"prompt": "a wizard in the snow", "steps": 2} | fields)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/jobs/{response.json()['id']}"
    return response.json()["id"]


def ended(client: TestClient, job: str) -> dict[str, Any]:
    for _ in range(400):
        state = client.get(f"/v1/jobs/{job}").json()
        if state["status"] in ("done", "failed", "cancelled"):
            return state
        time.sleep(0.05)
    raise AssertionError(state)


def enroll(client: TestClient, *photos: bytes, **data: Any) -> Any:
    return client.post("/v1/identities", files=[("photo", ("a/../../x.png", p)) for p in photos], data=data)


def test_from_photo_to_picture(client: TestClient, photo: bytes) -> None:
    response = enroll(client, photo, ttl="60", choose="largest")
    assert response.status_code == 201, response.text
    me = response.json()
    assert me["faces"] == 1
    assert 50 < me["expires"] - time.time() <= 60
    assert client.get(response.headers["location"]).json() == me
    assert client.get("/v1/identities").json() == [me]
    job = order(client, identity=me["id"], number=2, seed=4, likeness=True)
    state = ended(client, job)
    assert state["status"] == "done"
    assert [p["seed"] for p in state["pictures"]] == [4, 5]
    assert "likeness" in state["pictures"][0]["scores"]
    png = client.get(state["pictures"][1]["url"])
    assert png.headers["content-type"] == "image/png"
    assert png.headers["cache-control"] == "no-store"
    assert png.headers["x-content-type-options"] == "nosniff"
    record = read_provenance(io.BytesIO(png.content))
    assert (record.portrait.seed, record.portrait.identity, record.identity) == (5, me["digest"], None)
    assert [j["id"] for j in client.get("/v1/jobs").json()] == [job]
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    assert client.delete(f"/v1/identities/{me['id']}").status_code == 204
    refused(client.get(state["pictures"][1]["url"]), 404, "not_found")
    refused(client.post("/v1/jobs", json={"prompt": "a", "identity": me["id"]}), 404, "not_found")


def test_callers_cannot_reach_each_other(client: TestClient, photo: bytes) -> None:
    me = enroll(client, photo).json()["id"]
    job = order(client, identity=me)
    url = ended(client, job)["pictures"][0]["url"]
    paths = [url, f"/v1/jobs/{job}", f"/v1/jobs/{job}/events", f"/v1/identities/{me}"]
    unknown = refused(client.get("/v1/jobs/unknown", headers=BOB), 404, "not_found")
    for path in paths:
        error = refused(client.get(path, headers=BOB), 404, "not_found")
        if "/jobs/" in path:
            assert error == unknown  # not even whether it exists
    refused(client.post(f"/v1/jobs/{job}/cancel", headers=BOB), 404, "not_found")
    refused(client.delete(f"/v1/jobs/{job}", headers=BOB), 404, "not_found")
    refused(client.delete(f"/v1/identities/{me}", headers=BOB), 404, "not_found")
    refused(client.post("/v1/jobs", json={"prompt": "a", "identity": me}, headers=BOB), 404, "not_found")
    assert client.get("/v1/jobs", headers=BOB).json() == client.get("/v1/identities", headers=BOB).json() == []
    for path in paths:
        assert client.get(path).status_code == 200


def test_tokens_and_keys(serve: Any) -> None:
    client = serve(settings=Settings(tokens=("secret-one", "secret-two")))
    one, two = ({"Authorization": f"Bearer secret-{n}"} for n in ("one", "two"))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret-one"}):
        response = client.get("/v1/jobs", headers=headers)
        refused(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    job = client.post("/v1/jobs", json={"prompt": "a hat"}, headers=one).json()["id"]
    assert client.get(f"/v1/jobs/{job}", headers=one).status_code == 200
    refused(client.get(f"/v1/jobs/{job}", headers=two), 404, "not_found")
    refused(client.get(f"/v1/jobs/{job}", headers=one | BOB), 404, "not_found")
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert client.get(path).status_code == 200
    bare = TestClient(client.app)
    refused(bare.get("/v1/jobs"), 401, "unauthorized")
    open_to_all = TestClient(serve().app)
    refused(open_to_all.get("/v1/jobs"), 401, "unauthorized")
    for key in ("short", "x" * 21, "x" * 129, "ümlaut" * 5):
        refused(open_to_all.get("/v1/jobs", headers={CALLER_KEY: key.encode()}), 401, "unauthorized")


def test_events_tell_the_whole_story(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.serve.worker.PREVIEW_EVERY", 0.0)
    job = order(client, steps=80, number=4, preview=True)
    kinds, last, preview = [], {}, ""
    with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for block in stream.read().decode().strip().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines())
            kinds.append(fields["event"])
            if fields["event"] == "preview":
                preview = fields["data"]
            else:
                last = json.loads(fields["data"])
    assert kinds[-1] == "end"
    assert kinds.count("end") == 1
    assert kinds.count("progress") > 1
    assert (last["status"], last["fraction"], len(last["pictures"])) == ("done", 1.0, 4)
    assert Image.open(io.BytesIO(base64.b64decode(preview))).format == "JPEG"
    with client.stream("GET", f"/v1/jobs/{job}/events") as stream:  # of a job that has ended
        assert stream.read().decode().count("event: ") == 1


def test_cancel_and_not_finished(client: TestClient) -> None:
    job = order(client, steps=100, number=16)
    refused(client.get(f"/v1/jobs/{job}/pictures/0"), 409, "not_finished")
    assert client.post(f"/v1/jobs/{job}/cancel").json()["status"] == "cancelled"
    assert ended(client, job)["status"] == "cancelled"
    assert client.post(f"/v1/jobs/{job}/cancel").json()["status"] == "cancelled"
    refused(client.get(f"/v1/jobs/{job}/pictures/15"), 404, "not_found")


def test_idempotency(client: TestClient) -> None:
    body, key = {"prompt": "a hat", "steps": 1}, {"Idempotency-Key": "k1"}
    first = client.post("/v1/jobs", json=body, headers=key).json()["id"]
    assert client.post("/v1/jobs", json=body, headers=key).json()["id"] == first
    assert client.post("/v1/jobs", json=body, headers=key | BOB).json()["id"] != first
    assert client.post("/v1/jobs", json=body).json()["id"] != first
    refused(client.post("/v1/jobs", json=body | {"seed": 1}, headers=key), 422, "idempotency_mismatch")
    refused(client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k" * 200}), 422, "invalid_request")


BAD_ORDERS: list[tuple[str, Any]] = [
    ("invalid_request", {}),
    ("invalid_request", []),
    ("invalid_request", "a"),
    ("invalid_request", {"prompt": ""}),
    ("invalid_request", {"prompt": 5}),
    ("invalid_request", {"prompt": "a" * 3000}),
    ("invalid_request", {"prompt": "a", "out": "/etc/passwd"}),
    ("invalid_request", {"prompt": "a", "steps": "3"}),
    ("invalid_request", {"prompt": "a", "steps": 3.5}),
    ("invalid_request", {"prompt": "a", "number": 10**30}),
    ("invalid_request", {"prompt": "a", "seed": -1}),
    ("invalid_request", {"prompt": "a", "strength": 2}),
    ("prompt", {"prompt": "   "}),
    ("config", {"prompt": "a", "steps": 500}),
    ("config", {"prompt": "a", "number": 50}),
    ("config", {"prompt": "a", "width": 100}),
    ("config", {"prompt": "a", "width": 8192, "height": 8192}),
    ("config", {"prompt": "a", "scheduler": "../../x"}),
    ("config", {"prompt": "a", "likeness": True}),
]


@pytest.mark.parametrize(("code", "body"), BAD_ORDERS, ids=lambda v: json.dumps(v)[:40])
def test_orders_that_cannot_be_taken(client: TestClient, code: str, body: Any) -> None:
    refused(client.post("/v1/jobs", json=body), 422, code)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (422, b"{"),
        (422, b""),
        (422, b"\xff\xfe"),
        (422, b'{"prompt": "\\ud800"}'),
        (422, b'{"prompt": "a", "strength": NaN}'),
        (400, b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}"),
        (400, b"[" * 100_000),
        (422, b'{"prompt": "a", "\\ud800": 1}'),
    ],
    ids=lambda v: repr(v)[:30],
)
def test_bodies_that_are_no_json(client: TestClient, status: int, body: bytes) -> None:
    response = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.status_code == status or status == 400
    assert response.json()["error"]["code"] in ("invalid_request", "bad_request")


def bomb() -> bytes:
    """A PNG of a few kilobytes that claims and would unpack to 3.6 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = (60_000).to_bytes(4, "big")
    pixels = zlib.compress(b"\0" * 10_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side + side + b"\x08\0\0\0\0") + chunk(b"IDAT", pixels)


def test_hostile_pictures(client: TestClient, photo: bytes, wall: bytes) -> None:
    for status, code, photos in (
        (413, "image_too_large", [bomb()]),
        (415, "unreadable_image", [b"GIF89a no"]),
        (415, "unreadable_image", [photo[: len(photo) // 2]]),
        (415, "unreadable_image", [b""]),
        (415, "unreadable_image", [b"<svg xmlns='http://www.w3.org/2000/svg'/>"]),
        (415, "unreadable_image", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]),
        (422, "no_face", [wall]),
        (422, "config", [photo] * 9),
    ):
        refused(enroll(client, *photos), status, code)
    assert "photo 2" in refused(enroll(client, photo, wall), 422, "no_face")["message"]
    assert client.get("/v1/identities").json() == []


def test_forms_that_cannot_be_taken(client: TestClient, photo: bytes) -> None:
    for code, data in (
        ("config", {"choose": "like:/etc/passwd"}),
        ("config", {"choose": "prettiest"}),
        ("several_faces", {"choose": "7"}),
        ("invalid_request", {"ttl": "soon"}),
        ("config", {"ttl": "nan"}),
        ("config", {"ttl": "-1"}),
        ("config", {"ttl": "1e12"}),
        ("invalid_request", {"path": "/etc/passwd"}),
        ("invalid_request", {"choose": "9" * 5000}),
    ):
        refused(enroll(client, photo, **data), 422, code)
    refused(client.post("/v1/identities", files={"file": photo}), 422, "invalid_request")
    refused(client.post("/v1/identities", files={"choose": b"largest"}), 422, "invalid_request")
    for header, body in (
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"--x\r\nbroken"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--"),
        ("multipart/form-data; boundary=x; charset=nonsense", b""),
    ):
        refused(client.post("/v1/identities", content=body, headers={"content-type": header}), 422, "invalid_request")


def test_content_types_and_paths(client: TestClient) -> None:
    for path in ("/v1/jobs", "/v1/identities"):
        refused(client.post(path, content=b"a", headers={"content-type": "text/plain"}), 415, "unsupported_media_type")
    refused(client.post("/v1/jobs", content=b"{}", headers={"content-type": ""}), 415, "unsupported_media_type")
    refused(client.get("/v1/nothing"), 404, "not_found")
    refused(client.put("/v1/jobs"), 405, "method_not_allowed")
    refused(client.get("/v1/jobs/..%2f..%2fetc%2fpasswd"), 404, "not_found")
    refused(client.get("/v1/jobs/x/pictures/first"), 422, "invalid_request")


def test_large_bodies_with_and_without_a_length(serve: Any) -> None:
    client = serve(settings=Settings(body_bytes=1000))
    refused(client.post("/v1/jobs", json={"prompt": "a" * 2000}), 413, "body_too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"a" * 100

    response = client.post("/v1/jobs", content=chunks(), headers={"content-type": "application/json"})
    refused(response, 413, "body_too_large")
    full = serve(settings=Settings(bodies_bytes=100))
    response = full.post("/v1/jobs", json={"prompt": "a" * 200})
    refused(response, 503, "queue_full")
    assert int(response.headers["retry-after"]) >= 1


def test_a_body_that_does_not_arrive() -> None:
    sent: list[Any] = []

    async def app(*_: Any) -> None:
        raise AssertionError("the app must not see it")

    async def receive() -> Any:
        await asyncio.sleep(30)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/jobs", "client": ("10.0.0.1", 1),
        "headers": [(b"x-caller-key", b"k" * 30), (b"content-length", b"10")],
    }  # fmt: skip
    guard = Guard(app, Settings(upload_seconds=0.05))
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "slow_upload"
    assert not guard._active


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*Generate.model_fields, "model", "path"])


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    body=JSON | st.dictionaries(FIELDS, JSON).map(lambda more: {"prompt": "a", "steps": 1} | more),
    key=st.none() | st.text(max_size=20),
    photo=st.binary(max_size=60),
    fields=st.dictionaries(st.sampled_from(["choose", "ttl", "photo", "x"]), st.text(max_size=12), max_size=2),
)
def test_whatever_comes_is_answered(client: TestClient, body: Any, key: str | None, photo: bytes, fields: Any) -> None:
    headers = {} if key is None else {"Idempotency-Key": key.encode("utf-8", "replace")}
    answers = []
    with contextlib.suppress(ValueError):  # what JSON or a form cannot hold is never sent
        sent = {"content-type": "application/json"} | headers
        answers.append(client.post("/v1/jobs", content=json.dumps(body), headers=sent))
        answers.append(client.post("/v1/identities", files={"photo": photo}, data=fields))
    for answer in answers:
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"type", "code", "message", "hint"}
        else:
            assert client.delete(f"/v1/jobs/{answer.json()['id']}").status_code == 204


def test_rate_of_one_client(serve: Any) -> None:
    client = serve(settings=Settings(rate=1, burst=3))
    for _ in range(3):
        order(client)
    response = client.post("/v1/jobs", json={"prompt": "a"})
    refused(response, 429, "rate_limited")
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert client.get("/v1/jobs").status_code == 200
    refused(client.post("/v1/jobs", json={"prompt": "a"}, headers=BOB), 429, "rate_limited")


def test_fresh_keys_do_not_escape_the_limits_of_a_token(serve: Any) -> None:
    client = serve(Limits(per_owner=2), Settings(tokens=("secret-one", "secret-two"), rate=1, burst=3))
    one, two = ({"Authorization": f"Bearer secret-{n}"} for n in ("one", "two"))

    def send(token: dict[str, str]) -> Any:
        fresh = {CALLER_KEY: secrets.token_urlsafe()}
        return client.post("/v1/jobs", json={"prompt": "a", "steps": 1}, headers=token | fresh)

    assert [send(one).status_code for _ in range(2)] == [202, 202]
    refused(send(one), 429, "too_many_jobs")
    refused(send(one), 429, "rate_limited")
    assert send(two).status_code == 202


def test_full_queue_too_many_jobs_and_draining(serve: Any, photo: bytes) -> None:
    hold = threading.Event()

    def wait(portrait: Any) -> str:
        hold.wait(60)
        return "no hats" if "hat" in portrait.prompt else ""

    client = serve(Limits(queue=2, per_owner=2), checker=wait)
    jobs = [order(client), order(client, prompt="a hat")]
    response = client.post("/v1/jobs", json={"prompt": "a"}, headers=BOB)
    refused(response, 503, "queue_full")
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert client.get("/readyz").json() == {"status": "ready"}
    hold.set()
    assert ended(client, jobs[1])["pictures"][0]["refused"] == "no hats"
    refused(client.get(f"/v1/jobs/{jobs[1]}/pictures/0"), 403, "refused")
    ended(client, jobs[0])
    response = client.post("/v1/jobs", json={"prompt": "a"})
    refused(response, 429, "too_many_jobs")
    assert "retry-after" in response.headers
    assert client.app.state.engine.drain(10)
    for response in (client.post("/v1/jobs", json={"prompt": "a"}), enroll(client, photo)):
        refused(response, 503, "draining")
        assert "retry-after" in response.headers
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    assert client.get(f"/v1/jobs/{jobs[0]}/pictures/0").status_code == 200


def test_connections_of_one_client_and_of_all() -> None:
    async def story() -> list[int]:
        release = asyncio.Event()
        statuses: list[int] = []

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            await release.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async def call(address: str) -> None:
            headers = [(b"x-caller-key", b"k" * 30)]
            scope = {"type": "http", "method": "GET", "path": "/v1/jobs", "client": (address, 1), "headers": headers}
            await guard(scope, receive, send)

        guard = Guard(app, Settings(per_client=1, connections=2))
        first = asyncio.create_task(call("10.0.0.1"))
        await asyncio.sleep(0)
        await call("10.0.0.1")
        second = asyncio.create_task(call("10.0.0.2"))
        await asyncio.sleep(0)
        await call("10.0.0.3")
        release.set()
        await asyncio.gather(first, second)
        await call("10.0.0.1")
        return statuses

    assert asyncio.run(story()) == [429, 503, 200, 200, 200]


def test_health_metrics_and_model(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ended(client, order(client))
    refused(client.get("/v1/jobs/secret-id"), 404, "not_found")
    text = client.get("/metrics").text
    assert "limner_ready 1.0" in text
    assert 'route="/v1/jobs/{job}",status="404"' in text
    assert 'limner_rejected_total{code="not_found"} 1.0' in text
    assert "secret-id" not in text
    facts = client.get("/v1/model").json()
    assert (facts["name"], facts["world"], facts["dials"]["steps"]) == ("tiny", "sitters", 3)
    assert facts["limits"]["queue"] == 64


def test_the_document_of_the_api(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "Consent" in document["info"]["description"]
    assert document["paths"]["/v1/identities"]["post"]["requestBody"]["content"]["multipart/form-data"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            if path.startswith("/v1"):
                assert {"401", "429", "503"} <= set(operation["responses"])
                assert operation["security"]

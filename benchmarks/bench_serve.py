"""Load and faults on the service: many clients on loopback, honest and hostile ones, while the worker is killed.

    python benchmarks/bench_serve.py --clients 50 --seconds 60

Fails if an answer is wrong, an accepted job is lost, a caller reaches another's picture, memory grows, or a worker dies
that was not killed. Prints
latencies and what was rejected. Without --model it paints with the tiny random model of the tests.
"""

from __future__ import annotations

import argparse
import ctypes
import http.client
import io
import json
import logging
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from common import machine

TESTS = Path(__file__).resolve().parents[1] / "tests"
HOST = "127.0.0.1"
UPLOAD_SECONDS = 2.0
KEEP = 10.0
PROMPTS = ("a wizard in the snow", "a chef on a beach", "a man with a hat", "an oil painting of a woman")
BUSY = ("rate_limited", "too_many_jobs", "queue_full", "storage_full")


class Killed(BaseException):
    """What the worker dies of."""


def serve(folder: str, port: int) -> None:
    """The service process; SIGUSR1 kills its worker wherever it is."""
    from diffusers.utils import logging as diffusers_logging

    from limner.pipelines.loading import load_model
    from limner.serve.app import create_app
    from limner.serve.engine import Engine
    from limner.serve.jobs import Limits
    from limner.serve.server import run
    from limner.serve.settings import Settings

    diffusers_logging.disable_progress_bar()
    logging.getLogger("limner").setLevel(logging.CRITICAL)  # the worker's deaths are meant
    engine = Engine(lambda: load_model(folder), Limits(keep_results=KEEP, keep_identity=KEEP, queue=32))
    engine.start()

    def kill(_signal: int, _frame: Any) -> None:
        worker = engine._worker
        if worker is not None and worker.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(Killed))

    signal.signal(signal.SIGUSR1, kill)
    settings = Settings(upload_seconds=UPLOAD_SECONDS, body_bytes=4_000_000, rate=600, burst=10)
    run(create_app(engine, settings), engine, host=HOST, port=port, drain=30, linger=1)


class Log:
    """What the clients saw."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.wrong: list[str] = []
        self.answers: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.accepted: set[str] = set()
        self.finished: Counter[str] = Counter()
        self.pictures: list[str] = []
        self.kills = 0

    def fault(self, text: str) -> None:
        """Something that must not happen."""
        with self.lock:
            self.wrong.append(text)


class Client(threading.Thread):
    """One caller with a key and an address of its own; does something random until the time is over."""

    def __init__(self, number: int, port: int, end: float, log: Log, photos: dict[str, bytes]) -> None:
        super().__init__(daemon=True)
        self.port, self.end, self.log, self.photos = port, end, log, photos
        self.random = random.Random(number)
        self.address = f"127.0.{1 + number // 250}.{1 + number % 250}" if sys.platform == "linux" else HOST
        self.key = secrets.token_urlsafe()
        self.person: dict[str, Any] | None = None

    def run(self) -> None:
        """Until the end, one act after another."""
        acts = [(self.order, 50), (self.enroll, 8), (self.malformed, 8), (self.slow, 2), (self.vanish, 6),
                (self.oversized, 4), (self.hostile, 8), (self.steal, 8), (self.cancel, 6)]  # fmt: skip
        while time.monotonic() < self.end:
            act = self.random.choices([a for a, _ in acts], [w for _, w in acts])[0]
            try:
                act()
            except Exception as e:  # a lost connection, an answer that cannot be read: whatever it is, it is wrong
                self.log.fault(f"{act.__name__}: {type(e).__name__}: {e}")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self.port, timeout=90, source_address=(self.address, 0))

    def ask(
        self, method: str, path: str, body: bytes | None = None, kind: str = "", **headers: str
    ) -> tuple[int, bytes]:
        """Status and body; counts errors by their code."""
        connection = self.connect()
        try:
            sent = {"X-Caller-Key": self.key, **({"Content-Type": kind} if kind else {}), **headers}
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            data, status = response.read(), response.status
        finally:
            connection.close()
        with self.log.lock:
            self.log.answers[str(status)] += 1
            if status >= 400:
                self.log.rejected[code_of(data)] += 1
        if status >= 500 and code_of(data) not in BUSY:
            self.log.fault(f"{method} {path}: {status} {data[:200]!r}")
        if status in (429, 503):
            if response.headers["Retry-After"] is None:
                self.log.fault(f"{method} {path}: {status} without Retry-After")
            time.sleep(min(float(response.headers["Retry-After"] or 1), 1.0))
        return status, data

    def expect(self, answer: tuple[int, bytes], *statuses: int) -> bool:
        """Whether the first of `statuses` came; a fault if none of them did, and no refusal for being busy."""
        status, data = answer
        if status not in statuses and not (status in (429, 503) and code_of(data) in BUSY):
            self.log.fault(f"expected {statuses}, got {status}: {data[:200]!r}")
        return status == statuses[0]

    def submit(self, **more: Any) -> dict[str, Any] | None:
        """A job that was accepted, or None."""
        request = {"prompt": self.random.choice(PROMPTS), "seed": self.random.randrange(10**6),
                   "number": self.random.choice((1, 1, 2, 4)), "steps": self.random.choice((2, 3))} | more  # fmt: skip
        if self.person and self.person["expires"] > time.time() + 1 and self.random.random() < 0.7:
            request["identity"] = self.person["id"]
        answer = self.ask("POST", "/v1/jobs", json.dumps(request).encode(), "application/json",
                          **{"Idempotency-Key": secrets.token_hex(8)})  # fmt: skip
        if answer[0] == 404 and "identity" in request:  # it expired on the way
            return None
        if not self.expect(answer, 202):
            return None
        job = json.loads(answer[1])["id"]
        with self.log.lock:
            self.log.accepted.add(job)
        return {"id": job, **request}

    def order(self) -> None:
        """An honest order, from the request to the checked pictures."""
        start = time.monotonic()
        job = self.submit(preview=self.random.random() < 0.3)
        if job is None:
            return
        state = self.follow(job["id"]) if self.random.random() < 0.5 else self.poll(job["id"])
        seconds = time.monotonic() - start
        if state.get("status") != "done" or len(state["pictures"]) != job["number"]:
            self.log.fault(f"an accepted job ended as {state}")
            return
        with self.log.lock:
            self.log.seconds.append(seconds)
        for picture in state["pictures"]:
            status, png = self.ask("GET", picture["url"])
            if status == 200:
                self.check(job, picture, png)
            elif time.monotonic() - start < KEEP:
                self.log.fault(f"a finished picture was not there: {status}")
        with self.log.lock:
            self.log.pictures.append(state["pictures"][0]["url"])
        if self.random.random() < 0.5:
            self.expect(self.ask("DELETE", f"/v1/jobs/{job['id']}"), 204, 404)

    def check(self, job: dict[str, Any], picture: dict[str, Any], png: bytes) -> None:
        """The picture is the one that was ordered, by this caller, of this person."""
        from limner.provenance import read_provenance

        record = read_provenance(io.BytesIO(png))
        portrait = record.portrait
        person = self.person["digest"] if self.person and job.get("identity") == self.person["id"] else ""
        found = (portrait.prompt, portrait.seed, portrait.identity, record.intact, portrait.settings["steps"])
        wanted = (job["prompt"], job["seed"] + picture["index"], person, True, job["steps"])
        if found != wanted:
            self.log.fault(f"a wrong picture: {found} instead of {wanted}")

    def poll(self, job: str) -> dict[str, Any]:
        while True:
            status, data = self.ask("GET", f"/v1/jobs/{job}")
            if status not in (200, 429):
                return {"status": f"lost ({status})"}
            if status == 200 and json.loads(data)["status"] in ("done", "failed", "cancelled"):
                return json.loads(data)
            time.sleep(0.1)

    def follow(self, job: str) -> dict[str, Any]:
        """Reads the events; asks instead where they are refused."""
        connection = self.connect()
        try:
            connection.request("GET", f"/v1/jobs/{job}/events", headers={"X-Caller-Key": self.key})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            return self.poll(job)
        last = [block for block in text.split("\n\n") if "event: end" in block]
        if len(last) != 1:
            self.log.fault(f"an event stream had {len(last)} ends")
            return self.poll(job)
        return json.loads(last[0].split("data: ", 1)[1])

    def enroll(self) -> None:
        answer = self.ask("POST", "/v1/identities", *form(self.photos[self.random.choice(("ann", "bob"))]))
        if self.expect(answer, 201):
            self.person = json.loads(answer[1])

    def cancel(self) -> None:
        job = self.submit(number=8)
        if job is not None:
            answer = self.ask("POST", f"/v1/jobs/{job['id']}/cancel")
            self.expect(answer, 200)

    def malformed(self) -> None:
        body = self.random.choice(
            (b"{", b"", b"\xff" * 50, b"[" * 50_000, b'{"prompt": 1}', b'{"prompt": "a", "x": 1}')
        )
        self.expect(self.ask("POST", "/v1/jobs", body, "application/json"), 422, 400)
        self.expect(self.ask("POST", "/v1/identities", b"--x\r\nbroken", "multipart/form-data; boundary=x"), 422)
        self.expect(self.ask("POST", "/v1/jobs", b"a", "text/plain"), 415)

    def hostile(self) -> None:
        name = self.random.choice(("bomb", "truncated", "text", "wall"))
        status = {"bomb": 413, "truncated": 415, "text": 415, "wall": 422}[name]
        self.expect(self.ask("POST", "/v1/identities", *form(self.photos[name])), status)

    def oversized(self) -> None:
        """A length that is too large is refused before the body comes."""
        with socket.create_connection((HOST, self.port), 20, (self.address, 0)) as s:
            s.sendall(self.head("POST", "/v1/jobs", "Content-Type: application/json\r\nContent-Length: 999999999\r\n"))
            self.raw_answer(s, "413", "429")

    def slow(self) -> None:
        """A body that never ends."""
        with socket.create_connection((HOST, self.port), 20, (self.address, 0)) as s:
            s.sendall(self.head("POST", "/v1/jobs", "Content-Type: application/json\r\nContent-Length: 1000\r\n"))
            s.settimeout(UPLOAD_SECONDS + 20)
            s.sendall(b" ")
            self.raw_answer(s, "408", "429")

    def vanish(self) -> None:
        """Leaves in the middle of a body, or of an event stream; the job must be finished all the same."""
        if self.random.random() < 0.5:
            with socket.create_connection((HOST, self.port), 20, (self.address, 0)) as s:
                s.sendall(
                    self.head("POST", "/v1/jobs", "Content-Type: application/json\r\nContent-Length: 99\r\n") + b"{"
                )
            return
        job = self.submit()
        if job is not None:
            with socket.create_connection((HOST, self.port), 20, (self.address, 0)) as s:
                s.sendall(self.head("GET", f"/v1/jobs/{job['id']}/events", ""))
                s.recv(100)

    def steal(self) -> None:
        """Another caller's picture does not exist."""
        with self.log.lock:
            url = self.random.choice(self.log.pictures) if self.log.pictures else "/v1/jobs/x/pictures/0"
        connection = self.connect()
        connection.request("GET", url, headers={"X-Caller-Key": secrets.token_urlsafe()})
        status = connection.getresponse().status
        connection.close()
        if status not in (404, 429):
            self.log.fault(f"a stranger got {status} for {url}")

    def head(self, method: str, path: str, more: str) -> bytes:
        return f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nX-Caller-Key: {self.key}\r\n{more}\r\n".encode()

    def raw_answer(self, s: socket.socket, *statuses: str) -> None:
        answer = s.recv(4096).decode("latin-1")
        status = answer.split(" ")[1] if " " in answer else "none"
        with self.log.lock:
            self.log.answers[status] += 1
            self.log.rejected[{"413": "body_too_large", "408": "slow_upload"}.get(status, "rate_limited")] += 1
        if status not in statuses:
            self.log.fault(f"expected {statuses}, got {answer[:200]!r}")


def code_of(data: bytes) -> str:
    """The code of an error body."""
    try:
        return str(json.loads(data)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "no code"


def form(photo: bytes) -> tuple[bytes, str]:
    """A multipart body with one photo, and its content type."""
    head = b'--limit\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n'
    return head + photo + b"\r\n--limit--\r\n", "multipart/form-data; boundary=limit"


def make_photos() -> dict[str, bytes]:
    """Two people, and pictures that cannot be used."""
    from PIL import Image

    from limner.world.sheet import SheetConfig, sheet

    def png(image: Image.Image) -> bytes:
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()

    ann, bob = (png(sheet(SheetConfig(identities=1, views=1, seed=seed, size=256))[0]) for seed in (7, 11))
    side = (60_000).to_bytes(4, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", side + side + b"\x08\0\0\0\0")
        + chunk(b"IDAT", zlib.compress(bytes(10**7)))
    )
    wall = png(Image.new("RGB", (64, 64), "gray"))
    return {
        "ann": ann,
        "bob": bob,
        "bomb": bomb,
        "truncated": ann[: len(ann) // 2],
        "text": b"no picture",
        "wall": wall,
    }


def metric(port: int, name: str) -> float:
    """One number of /metrics."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(rf"^limner_{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def run_load(
    port: int, process: subprocess.Popen[bytes], clients: int, seconds: float, kills: float
) -> tuple[Log, list[float]]:
    """Lets the clients loose and kills the worker now and then; what they saw, and the service's memory over time."""
    log, photos = Log(), make_photos()
    end = time.monotonic() + seconds
    crowd = [Client(i, port, end, log, photos) for i in range(clients)]
    for client in crowd:
        client.start()
    memory, next_kill, service = [], time.monotonic() + kills, psutil.Process(process.pid)
    while any(client.is_alive() for client in crowd) and time.monotonic() < end + 120:
        time.sleep(0.25)
        memory.append(service.memory_info().rss / 1e6)
        if next_kill < time.monotonic() < end:
            next_kill = time.monotonic() + kills
            process.send_signal(signal.SIGUSR1)
            log.kills += 1
    if any(client.is_alive() for client in crowd):
        log.fault("clients are still waiting for an answer two minutes after the end")
    return log, memory


def account(port: int, log: Log) -> dict[str, float]:
    """The engine's own books, once nothing is left to do; faults where they do not balance."""
    for _ in range(600):
        if metric(port, "queued") + metric(port, "running") == 0:
            break
        time.sleep(0.1)
    names = ("accepted", "done", "failed", "cancelled", "painted", "batches", "crashes")
    books = {name: metric(port, f"{name}_total") for name in names}
    if books["accepted"] != books["done"] + books["cancelled"] or books["failed"]:
        log.fault(f"accepted jobs were lost: {books}")
    if books["crashes"] > log.kills:
        log.fault(f"{books['crashes']:.0f} workers died, {log.kills} were killed")
    if books["accepted"] < len(log.accepted):
        log.fault(f"{len(log.accepted)} jobs were told to be accepted; the engine counts {books['accepted']:.0f}")
    return books


def flat(memory: list[float]) -> bool:
    """Whether the last quarter of the run holds about as much memory as the second."""
    quarter = max(len(memory) // 4, 1)
    before, after = (sorted(part)[len(part) // 2] for part in (memory[quarter : 2 * quarter], memory[-quarter:]))
    return after <= 1.1 * before + 48


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=float, default=5, help="seconds between two deaths of the worker")
    parser.add_argument("--model", help="a model's folder; default: the tiny random one")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.model, options.serve)
        return 0
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or make_model(Path(scratch) / "tiny")
        with socket.socket() as s:
            s.bind((HOST, 0))
            port = s.getsockname()[1]
        command = [sys.executable, __file__, "--serve", str(port), "--model", folder]
        process = subprocess.Popen(command)
        try:
            wait_ready(process, port)
            log, memory = run_load(port, process, options.clients, options.seconds, options.kills)
            books = account(port, log)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    if code not in (0, -signal.SIGTERM):
        log.fault(f"the service ended with status {code}")
    if not flat(memory):
        log.fault(f"memory grew: {memory[len(memory) // 4]:.0f} to {memory[-1]:.0f} MB")
    report(options, log, books, memory)
    return 1 if log.wrong else 0


def report(options: argparse.Namespace, log: Log, books: dict[str, float], memory: list[float]) -> None:
    print(f"{options.clients} clients, {options.seconds:g} s, worker killed {books['crashes']:.0f} times")
    print("jobs: " + ", ".join(f"{name} {value:.0f}" for name, value in books.items()))
    p50, p95 = percentile(log.seconds, 0.5), percentile(log.seconds, 0.95)
    print(f"order to last picture: p50 {p50:.2f} s, p95 {p95:.2f} s, {len(log.seconds)} orders")
    print("answers: " + ", ".join(f"{k} × {v}" for k, v in sorted(log.answers.items())))
    print("rejected: " + ", ".join(f"{k} × {v}" for k, v in log.rejected.most_common()))
    print(f"memory of the service: {min(memory):.0f} to {max(memory):.0f} MB, {memory[-1]:.0f} at the end")
    for text, count in Counter(log.wrong).most_common(10):
        print(f"WRONG ({count}×): {text}")
    print("wrong answers: " + str(len(log.wrong)))


def make_model(folder: Path) -> str:
    """The tiny random model of the tests, in a folder."""
    sys.path.insert(0, str(TESTS))
    from tiny_model import tiny_pipeline

    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def wait_ready(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        try:
            socket.create_connection((HOST, port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"The service ended with status {process.returncode}.")


if __name__ == "__main__":
    sys.exit(main())

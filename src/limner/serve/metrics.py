"""What Prometheus reads: requests as they are answered, and the engine as it stands."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from limner.serve.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """ASGI middleware that counts, and the page that tells. Labels are routes and codes, never anything of a caller."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        self.requests = Counter(
            "limner_http_requests", "Answered requests.", ["method", "route", "status"], registry=self.registry
        )
        self.rejected = Counter("limner_rejected", "Requests answered with an error.", ["code"], registry=self.registry)
        self.seconds = Histogram(
            "limner_http_seconds", "Time to the end of an answer.", ["route"], registry=self.registry, buckets=_BUCKETS
        )

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    async def watch(self, app: Any, scope: Any, receive: Any, send: Any) -> None:
        """Runs `app` and counts how it answered."""
        start, seen = time.perf_counter(), {"status": 499, "code": ""}

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                seen["code"] = dict(message["headers"]).get(b"x-error-code", b"").decode()
            await send(message)

        try:
            await app(scope, receive, counted)
        except Exception:
            seen["status"] = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.requests.labels(method, route, str(seen["status"])).inc()
            self.seconds.labels(route).observe(time.perf_counter() - start)
            if seen["code"]:
                self.rejected.labels(str(seen["code"])).inc()


_METHODS = ("GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS")


class _EngineCollector:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterable[Any]:
        status = self.engine.status()
        for name, text in (
            ("ready", "Whether the model is loaded and jobs are accepted."),
            ("queued", "Jobs that wait."),
            ("running", "Jobs that are being painted."),
            ("results", "Finished jobs that are kept."),
            ("identities", "Identities that are kept."),
            ("kept_bytes", "Bytes of identities and pictures, those still to be painted estimated."),
            ("models", "Models in memory."),
        ):
            yield GaugeMetricFamily(f"limner_{name}", text, value=float(status[name]))
        counters = self.engine.counters
        for name, text in (
            ("accepted", "Jobs that were accepted."),
            ("done", "Jobs that were finished."),
            ("failed", "Jobs that failed."),
            ("cancelled", "Jobs that were cancelled."),
            ("enrolled", "People that were enrolled."),
            ("painted", "Pictures that were painted."),
            ("refused", "Pictures that the safety checker refused."),
            ("batches", "Batches that were painted."),
            ("crashes", "Workers that died."),
        ):
            yield CounterMetricFamily(f"limner_{name}", text, value=float(counters[name]))

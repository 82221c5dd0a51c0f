"""What stands before the API: who asks, how often, how much, how slowly. Bodies are in memory before the app runs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import math
import re
import time
from collections import Counter, OrderedDict
from typing import Any

from limner.errors import LimnerError
from limner.serve.errors import (
    BodyTooLarge,
    InvalidRequest,
    QueueFull,
    RateLimited,
    ServiceError,
    SlowUpload,
    Unauthorized,
    http_status,
)
from limner.serve.jobs import account_of
from limner.serve.settings import CALLER_KEY, MIN_KEY, Settings

API = "/v1"
_KEY = re.compile(rb"[A-Za-z0-9._~+/=-]{%d,128}" % MIN_KEY)
_CLIENTS = 10_000


class Disconnected(Exception):
    """The client left while its body was being received."""


class Buckets:
    """A token bucket a client; of the least recently seen clients beyond 10,000 nothing is remembered.

    Args:
        rate: tokens a minute.
        burst: most tokens that are saved up.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self.per_second, self.burst = rate / 60, burst
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """0 if there was a token, else the seconds until there is one."""
        now = time.monotonic()
        level, then = self._levels.pop(client, (float(self.burst), now))
        level = min(self.burst, level + (now - then) * self.per_second)
        wait = 0.0 if level >= 1 else (1 - level) / self.per_second
        self._levels[client] = (level if wait else level - 1, now)
        if len(self._levels) > _CLIENTS:
            self._levels.popitem(last=False)
        return wait


class Guard:
    """ASGI middleware for everything under `API`; puts the caller's name into `scope["state"]["owner"]`."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self._tokens = [_digest("token", token.encode()) for token in settings.tokens]
        self._buckets = Buckets(settings.rate, settings.burst)
        self._active: Counter[str] = Counter()
        self._received = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self.app(scope, receive, send)
            return
        client = ""
        try:
            owner = self._owner(scope)
            client = account_of(owner) if self._tokens else _address(scope)
            self._enter(client)
        except LimnerError as e:
            await respond(e, send)
            return
        held = [0]
        try:
            scope.setdefault("state", {})["owner"] = owner
            if scope["method"] == "POST" and not scope["path"].endswith("/cancel"):
                self._demand_rate(client)
            body = await self._body(scope, receive, held)
            await self.app(scope, _replay(body, receive), send)
        except Disconnected:
            return
        except LimnerError as e:
            await respond(e, send)
        finally:
            self._received -= held[0]
            self._active[client] -= 1
            if not self._active[client]:
                del self._active[client]

    def _enter(self, client: str) -> None:
        if self._active.total() >= self.settings.connections:
            raise QueueFull("Too many requests are being answered.", "Try again later.", 2)
        if self._active[client] >= self.settings.per_client:
            raise RateLimited(f"At most {self.settings.per_client} requests at the same time.", "End some of them.", 2)
        self._active[client] += 1

    def _owner(self, scope: Any) -> str:
        """The caller's name: a digest of the token or the key, so that neither is kept. Of both it is `token/pair`:
        whoever has the token may make up any number of keys, and all of them share its limits."""
        headers = dict(scope["headers"])
        key = headers.get(CALLER_KEY.lower().encode(), b"")
        if key and not _KEY.fullmatch(key):
            raise Unauthorized(f"{CALLER_KEY} must have {MIN_KEY} to 128 letters, digits or ._~+/=-.", _KEY_HINT)
        if not self._tokens:
            if not key:
                raise Unauthorized(f"A caller key is expected in the header {CALLER_KEY}.", _KEY_HINT)
            return _digest("key", key)
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        digest = _digest("token", given.strip())
        known = [hmac.compare_digest(digest, token) for token in self._tokens]
        if scheme.lower() != b"bearer" or not any(known):
            raise Unauthorized("A valid bearer token is expected.", "Send the header Authorization: Bearer TOKEN.")
        return f"{digest}/{_digest(digest, key)}" if key else digest

    def _demand_rate(self, client: str) -> None:
        wait = self._buckets.take(client)
        if wait:
            rate = f"{self.settings.rate:g}"
            raise RateLimited(f"At most {rate} enrolments and jobs a minute are taken from a client.", "", wait)

    async def _body(self, scope: Any, receive: Any, held: list[int]) -> bytes:
        """The whole body; `held` counts its bytes while it arrives."""
        most = self.settings.body_bytes
        too_large = BodyTooLarge(f"The body has more than {most} bytes.", "Send fewer or smaller photos.")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit():
            raise InvalidRequest("Content-Length is not a number.")
        if len(declared) > 18 or int(declared) > most:
            raise too_large
        seconds = self.settings.upload_seconds
        too_slow = SlowUpload(f"The body did not arrive within {seconds:g} s.", "Send smaller photos.")
        deadline = time.monotonic() + seconds
        parts: list[bytes] = []
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.0))
            except TimeoutError:
                raise too_slow from None
            if message["type"] == "http.disconnect":
                raise Disconnected
            part = message.get("body", b"")
            parts.append(part)
            held[0] += len(part)
            self._received += len(part)
            if held[0] > most:
                raise too_large
            if self._received > self.settings.bodies_bytes:
                raise QueueFull("Too much is being uploaded at the moment.", "Try again later.", 5)
            if not message.get("more_body"):
                return b"".join(parts)


async def respond(error: LimnerError, send: Any) -> None:
    """Answers with an error, as `error_headers` and `error_body` say."""
    body = json.dumps(error_body(error)).encode()
    headers = {**error_headers(error), "content-type": "application/json", "content-length": str(len(body))}
    if isinstance(error, (BodyTooLarge, SlowUpload)):
        headers["connection"] = "close"
    raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": http_status(error), "headers": raw})
    await send({"type": "http.response.body", "body": body})


def error_body(error: LimnerError) -> dict[str, Any]:
    """What every error looks like: `{"error": {"type", "code", "message", "hint"}}`."""
    return {"error": error.as_dict()}


def error_headers(error: LimnerError) -> dict[str, str]:
    """Retry-After where trying again makes sense, and what 401 demands."""
    headers = {"x-error-code": error.code, "cache-control": "no-store"}
    if isinstance(error, ServiceError) and error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return headers


_KEY_HINT = "Make one: python -c 'import secrets; print(secrets.token_urlsafe())', and keep it to yourself."


def _replay(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the whole body at once, then whatever comes."""
    given = False

    async def replay() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _digest(salt: str, secret: bytes) -> str:
    return hashlib.sha256(salt.encode() + b"\0" + secret).hexdigest()


def _address(scope: Any) -> str:
    """The client's address; of IPv6 the network of 64 bits, all of which one client usually has."""
    host = (scope.get("client") or ("",))[0]
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64))) if ip.version == 6 else host

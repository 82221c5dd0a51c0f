"""How the HTTP service guards itself."""

from __future__ import annotations

from dataclasses import dataclass

from limner.config import Config
from limner.errors import ConfigError

CALLER_KEY = "X-Caller-Key"
"""Header by which callers without tokens are told apart: at least `MIN_KEY` characters that nobody can guess."""

MIN_KEY = 22


@dataclass(frozen=True)
class Settings(Config):
    """What one client may do.

    Attributes:
        tokens: bearer tokens, one of which every request must have; none: any caller with a caller key may come.
        body_bytes: of a request.
        bodies_bytes: of all requests that are being received.
        upload_seconds: that a body may take to arrive.
        rate: enrolments and jobs a minute that one client may send (a token, or an address where there are no tokens).
        burst: how many of them at once.
        connections: requests that are answered at the same time, event streams included; `per_client` of one client.
        enroll_seconds: that an enrolment may wait for its turn.
    """

    tokens: tuple[str, ...] = ()
    body_bytes: int = 32_000_000
    bodies_bytes: int = 128_000_000
    upload_seconds: float = 60.0
    rate: float = 60.0
    burst: int = 20
    connections: int = 512
    per_client: int = 32
    enroll_seconds: float = 60.0

    def validate(self) -> None:
        for token in self.tokens:
            if len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token:
                raise ConfigError("A token has 8 or more printable ASCII characters and no space; one has not.")
        for name in self.__dataclass_fields__:
            if name != "tokens":
                self.check(getattr(self, name) > 0, name, "more than 0")

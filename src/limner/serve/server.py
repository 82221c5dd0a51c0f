"""The process around the app: a server that finishes what it accepted before it leaves."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from limner.errors import ConfigError
from limner.serve.engine import Checker, Engine

log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """On the first signal it takes no new jobs, finishes those it has, lets them be fetched, and leaves; on the second
    it leaves at once. Until then it answers, so that callers learn how their jobs end.

    Args:
        config: uvicorn's.
        engine: what is drained.
        drain: most seconds for finishing; what is not finished then is handed back with the error `draining`.
        linger: most seconds after that for callers to fetch their pictures.
        on_ready: called as soon as connections are taken.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        engine: Engine,
        drain: float,
        linger: float,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self.on_ready = on_ready
        self.engine, self.drain, self.linger = engine, drain, linger
        self._leaving = False

    async def startup(self, sockets: Any = None) -> None:
        """Called by uvicorn to begin to listen."""
        await super().startup(sockets)
        if not self.should_exit:
            self.on_ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Called by uvicorn for SIGINT and SIGTERM."""
        if self._leaving:
            self.force_exit = True
            super().handle_exit(sig, frame)
            return
        self._leaving = True
        threading.Thread(target=self._leave, args=(sig, frame), name="limner-drain", daemon=True).start()

    def _leave(self, sig: int, frame: Any) -> None:
        try:
            log.info("Finishing what was accepted.")
            self.engine.drain(self.drain)
            end = time.monotonic() + self.linger
            while time.monotonic() < end and self.engine.status()["unfetched"]:
                time.sleep(0.1)
            self.engine.close()
            time.sleep(0.3)  # event streams tell how it ended
        finally:
            super().handle_exit(sig, frame)


def run(
    app: Any,
    engine: Engine,
    *,
    host: str,
    port: int,
    drain: float,
    linger: float,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves until a signal comes; returns when everything has ended.

    Args:
        app: the ASGI app.
        host, port: where to listen; port 0 takes any free one.
        drain, linger: see `DrainingServer`.
        on_ready: called with the URL as soon as connections are taken.

    Raises:
        ConfigError: the address is taken, or is none of this machine.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        limit_concurrency=2048,
        h11_max_incomplete_event_size=32_768,
        server_header=False,
        ws="none",
        lifespan="auto",
    )
    try:
        sock = config.bind_socket()
    except SystemExit as e:
        raise ConfigError(f"Cannot listen on {host}:{port}.", "Choose another --host or --port.") from e
    url = f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"
    server = DrainingServer(config, engine, drain, linger, lambda: on_ready(url) if on_ready else None)
    try:
        server.run(sockets=[sock])
    except KeyboardInterrupt:
        pass
    finally:
        engine.close()


def load_checker(name: str) -> Checker:
    """The callable that `module:function` names.

    Raises:
        ConfigError: it cannot be imported, or is no callable.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(
            f"The safety checker {name!r} cannot be loaded ({e}).", "Give it as MODULE:FUNCTION, importable from here."
        ) from e
    if not callable(found):
        raise ConfigError(f"The safety checker {name!r} is a {type(found).__name__}; a function is expected.")
    return found

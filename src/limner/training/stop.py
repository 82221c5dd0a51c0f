"""Reasons to leave a training early and in good order: a signal, or a limit of time."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self


class Stop:
    """Turns SIGINT and SIGTERM, and a limit of minutes, into a reason that the loop asks for between steps.

    A second signal of the same kind is no longer caught, so that an impatient user can still leave at once.

    Args:
        minutes: limit on the wall clock from now; None for none.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._signal: int | None = None
        self._before: dict[int, object] = {}

    @property
    def reason(self) -> str:
        """`signal SIGTERM` or the like, `time limit`, or the empty string."""
        if self._signal is not None:
            return f"signal {signal.Signals(self._signal).name}"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "time limit"
        return ""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]

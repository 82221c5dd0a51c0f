"""What a training tells: a bar or plain lines for people, TensorBoard and JSON lines for tools."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from limner.errors import StorageError
from limner.types import write_atomic

if TYPE_CHECKING:
    from PIL import Image


class Reporter:
    """Progress of one training on standard error, and its scalars and sheets on disk.

    On a terminal a bar with images/s and time left, elsewhere one line per log interval. Scalars go to
    `tensorboard/` and to `log.jsonl` (one object per interval, with `step`); sheets to `sheets/`.

    Args:
        out: the training's folder.
        start, steps: first and last step.
        batch: pictures per step.
        quiet: shows and writes nothing (processes other than the first).
    """

    def __init__(self, out: Path, start: int, steps: int, batch: int, quiet: bool = False) -> None:
        self.out, self.steps, self.batch, self.quiet = out, steps, batch, quiet
        self._step, self._paused = start, 0.0
        self._began = self._mark = time.monotonic()
        self._seen = 0
        self._bar: Any = None
        self._board: Any = None
        self._start = start

    def __enter__(self) -> Self:
        if not self.quiet:
            from torch.utils.tensorboard import SummaryWriter

            _forget_after(self.out / "log.jsonl", self._start)
            self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self._start + 1)
            if sys.stderr.isatty():
                self._bar = _bar(self._start, self.steps)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            try:
                self._board.close()
            except OSError as e:
                if error is None:
                    raise _storage(self.out, e) from e

    @property
    def images_per_second(self) -> float:
        """Over this run, pauses (validation, sheets, checkpoints) left out."""
        seconds = time.monotonic() - self._began - self._paused
        return self._seen / seconds if self._seen else 0.0

    def stepped(self, step: int) -> None:
        """One more step is done."""
        self._step = step
        self._seen += self.batch
        if self._bar is not None:
            self._bar.update(0, completed=step, rate=f"{self.images_per_second:.1f} images/s")

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside does not count towards images/s."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - start

    def scalars(self, step: int, values: dict[str, float], *, prefix: str) -> None:
        """Writes scalars, and shows them as a line.

        Raises:
            StorageError: no space.
        """
        if self.quiet:
            return
        try:
            for name, value in values.items():
                self._board.add_scalar(f"{prefix}/{name}", value, step)
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as f:
                f.write(json.dumps({"step": step, **{f"{prefix}/{k}": v for k, v in values.items()}}) + "\n")
        except OSError as e:
            raise _storage(self.out, e) from e
        shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        speed = f"  {self.images_per_second:.1f} images/s  left {self._left()}" if prefix == "train" else ""
        self.line(f"{prefix} {step}/{self.steps}  {shown}{speed}", plain_only=prefix == "train")

    def sheet(self, step: int, image: Image.Image) -> None:
        """Keeps a sample sheet as sheets/step-NNNNNNNN.png and in TensorBoard."""
        if self.quiet:
            return
        path = self.out / "sheets" / f"step-{step:08d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            image.save(path)
            self._board.add_image("sheet", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        except OSError as e:
            raise _storage(self.out, e) from e

    def line(self, text: str, plain_only: bool = False) -> None:
        """A line for the reader; `plain_only` leaves it out where a bar already tells it."""
        if self.quiet:
            return
        if self._bar is None:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        elif not plain_only:
            self._bar.console.print(text, markup=False, highlight=False)

    def _left(self) -> str:
        done = self._seen / self.batch
        seconds = 0 if not done else (time.monotonic() - self._began) / done * (self.steps - self._step)
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


@contextmanager
def counting(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar (or, elsewhere than on a terminal, a line every ten seconds) for counted work; yields `advance(n)`."""
    if sys.stderr.isatty():
        with _bar(0, total, description) as bar:
            yield lambda n: bar.update(0, advance=n, rate=f"{bar.tasks[0].speed or 0:.1f}/s")
        return
    done, began, told = 0, time.monotonic(), time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, told
        done += n
        now = time.monotonic()
        if now - told > 10 or done >= total:
            told = now
            sys.stderr.write(f"{description} {done}/{total}  {done / max(now - began, 1e-9):.1f}/s\n")
            sys.stderr.flush()

    yield advance


@contextmanager
def silent(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Like `counting`, without a word."""
    yield lambda n: None


def _bar(start: int, total: int, description: str = "training") -> Any:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[rate]}"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
    )
    bar = rich.Progress(*columns, console=Console(stderr=True))
    bar.add_task(description, total=total, completed=start, rate="")
    bar.start()
    return bar


def _forget_after(path: Path, step: int) -> None:
    """Drops the lines of later steps, which a resumed run will write again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_atomic(path, "".join(kept).encode())


def _storage(out: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Cannot write into {out}: {error.strerror or error}.",
        "Free some space; the checkpoints are intact, and the same command resumes.",
    )

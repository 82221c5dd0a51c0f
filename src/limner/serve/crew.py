"""The worker that owns the model, and the supervisor that replaces it when it dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from limner.errors import LimnerError
from limner.serve.errors import QueueFull, Unavailable, WorkerCrashed
from limner.serve.jobs import Job, Limits, Status
from limner.serve.state import State, Task

if TYPE_CHECKING:
    from limner.pipelines.loading import Model

log = logging.getLogger(__name__)


class Crew(State):
    """Runs what `State` holds. `_paint` paints a batch.

    Args:
        load: makes the model; called on the worker.
        limits: see `State`.
    """

    def __init__(self, load: Callable[[], Model], limits: Limits | None) -> None:
        super().__init__(limits)
        self._load = load
        self._model: Model | None = None
        self._worker: threading.Thread | None = None
        self._supervisor: threading.Thread | None = None
        self._turn = 0
        self._death: BaseException | None = None

    def _call(self, call: Callable[[Model], Any], timeout: float) -> Any:
        """Runs `call` on the worker and returns what it returns. Called without the lock."""
        task = Task(call, Future())
        with self._changed:
            self._demand_open()
            self._tasks.append(task)
            self._changed.notify_all()
        try:
            return task.future.result(timeout)
        except (FutureTimeout, CancelledError) as e:
            task.future.cancel()
            raise QueueFull("It was not this request's turn in time.", "Try again later.", self._wait()) from e

    def _supervise(self) -> None:
        """Replaces the worker when it dies."""
        failures = 0
        while True:
            done = self.counters["batches"]
            self._worker = threading.Thread(target=self._guarded, name="limner-worker", daemon=True)
            self._worker.start()
            self._worker.join()
            failures = 1 if self.counters["batches"] > done else failures + 1
            with self._changed:
                if self._stopping:
                    return
                loading, self._model = self._model is None, None
                death, self._death = self._death, None
                self.counters["crashes"] += 1
                self._recover()
                if loading and (not self._facts or failures >= self.limits.attempts):
                    self._fail(death)
                    return
                del death  # it holds the dead worker's model
            log.warning("The worker died; another takes over.")
            time.sleep(min(0.05 * 2**failures, 5.0))

    def _paint(self, model: Model, rows: list[tuple[Job, int]]) -> None:
        """Paints one batch and hands out the pictures. Called without the lock."""
        raise NotImplementedError

    def _recover(self) -> None:
        """Puts back what the worker had begun."""
        crashed = WorkerCrashed("The worker died on this several times.", "Send something else.")
        for job in self._jobs.values():
            if job.status.final or not job.rows:
                continue
            job.attempts, job.alone, job.rows, job.step = job.attempts + 1, True, 0, 0
            if job.attempts >= self.limits.attempts:
                self._finish(job, Status.FAILED, crashed)
            else:
                job.status = Status.QUEUED
                self._touch(job)
        task = self._tasks[0] if self._tasks else None
        if task is not None and task.future.running():
            task.attempts += 1
            if task.attempts >= self.limits.attempts:
                task.future.set_exception(crashed)

    def _fail(self, death: BaseException | None) -> None:
        """The model cannot be loaded: nothing that waits will ever run."""
        gone = Unavailable("The model cannot be loaded any more.", "Try again later.", 30)
        self._failure = death or gone
        self._give_up(gone)

    def _give_up(self, error: LimnerError) -> None:
        """Fails everything that is not finished."""
        for job in self._jobs.values():
            if not job.status.final:
                self._finish(job, Status.FAILED, error)
        for task in self._tasks:
            if not task.future.done():
                task.future.set_exception(error)
        self._tasks.clear()
        self._changed.notify_all()

    def _guarded(self) -> None:
        try:
            self._work()
        except BaseException as e:
            self._death = e
            if self._facts:
                log.exception("The worker died.")

    def _work(self) -> None:
        from limner.serve.worker import model_facts

        model = self._load()
        with self._changed:
            self._facts = self._facts or model_facts(model)
            self._model = model
            self._changed.notify_all()
        while (turn := self._next_turn()) is not None:
            started = time.monotonic()
            if isinstance(turn, Task):
                self._run_task(turn, model)
                continue
            self._paint(model, turn)
            with self._changed:
                for job, _ in turn:
                    job.rows = 0
                self._seconds = 0.7 * self._seconds + 0.3 * (time.monotonic() - started) / len(turn)
                self.counters["batches"] += 1
                self._changed.notify_all()

    def _run_task(self, task: Task, model: Model) -> None:
        """A task stays in the queue until its future is done, so that a death on the way loses nothing."""
        if not task.future.running() and not task.future.set_running_or_notify_cancel():
            return
        try:
            result: Any = task.call(model)
        except LimnerError as e:
            task.future.set_exception(e)
        else:
            task.future.set_result(result)
        with self._changed:
            self._changed.notify_all()

    def _next_turn(self) -> Task | list[tuple[Job, int]] | None:
        """What to do next: a task, pictures to paint, or None to leave. Waits. Called without the lock."""
        with self._changed:
            while not self._stopping:
                self._expire()
                while self._tasks and self._tasks[0].future.done():
                    self._tasks.popleft()
                if self._tasks:
                    return self._tasks[0]
                if rows := self._take():
                    return rows
                self._changed.wait(1.0)
            return None

    def _take(self) -> list[tuple[Job, int]]:
        """The next batch: the owner's turn who was served longest ago, and whatever can be painted with it."""
        waiting = [j for j in self._jobs.values() if not j.status.final and j.todo]
        waiting.sort(key=lambda j: self._served.get(j.owner, -1))  # stable: of one owner, in order of arrival
        rows: list[tuple[Job, int]] = []
        for job in waiting:
            fits = not rows or (job.shape == rows[0][0].shape and not job.alone)
            if fits:
                rows += [(job, i) for i in job.todo[: self.limits.batch - len(rows)]]
            if rows and (rows[0][0].alone or len(rows) == self.limits.batch):
                break
        for job, _ in rows:
            if not job.rows:
                self._begin(job, sum(other is job for other, _ in rows))
        return rows

    def _begin(self, job: Job, rows: int) -> None:
        self._turn += 1
        self._served[job.owner] = self._turn
        job.status, job.step, job.rows = Status.RUNNING, 0, rows
        self._touch(job)

"""The worker that owns the models, and the supervisor that replaces it when it dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from limner.errors import LimnerError
from limner.serve.errors import OutOfMemory, QueueFull, Unavailable, WorkerCrashed
from limner.serve.jobs import Job, Limits, Status, account_of
from limner.serve.shelf import Held, Offer, Shelf, check_names, collect
from limner.serve.state import State, Task

if TYPE_CHECKING:
    from limner.pipelines.loading import Model

log = logging.getLogger(__name__)


class Crew(State):
    """Runs what `State` holds. `_paint` paints a batch.

    Args:
        offers: the models; loaded on the worker, the first of them at once.
        limits: see `State`.
    """

    def __init__(self, offers: Sequence[Offer], limits: Limits | None) -> None:
        super().__init__(limits)
        self._offers = {offer.name: offer for offer in check_names(offers)}
        self._default = offers[0].name
        self._loaded: tuple[str, ...] = ()
        self._ready = False
        self._worker: threading.Thread | None = None
        self._supervisor: threading.Thread | None = None
        self._turn, self._did_task = 0, False
        self._served_before: dict[str, int] = {}
        self._death: BaseException | None = None

    def _call(self, call: Callable[[Model], Any], timeout: float, name: str) -> Any:
        """Runs `call` on the worker, with the model of that offer, and returns what it returns. Called without the
        lock."""
        task = Task(call, Future(), name)
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
                loading, self._ready, self._loaded = not self._ready, False, ()
                death, self._death = self._death, None
                self.counters["crashes"] += 1
                self._recover()
                if loading and (not self._facts or failures >= self.limits.attempts):
                    self._fail(death)
                    return
                del death  # it holds the dead worker's model
            log.warning("The worker died; another takes over.")
            time.sleep(min(0.05 * 2**failures, 5.0))

    def _shelf(self) -> Shelf:
        """An empty shelf for a new worker."""
        return Shelf(list(self._offers.values()), self.limits.models)

    def _paint(self, held: Held, rows: list[tuple[Job, int]]) -> None:
        """Paints one batch and hands out the pictures. Called without the lock."""
        raise NotImplementedError

    def _recover(self) -> None:
        """Puts back what the worker had begun when it died."""
        crashed = WorkerCrashed("The worker died on this several times.", "Send something else.")
        self._put_back(crashed)
        task = self._tasks[0] if self._tasks else None
        if task is not None and task.future.running():
            task.attempts += 1
            if task.attempts >= self.limits.attempts:
                task.future.set_exception(crashed)

    def _put_back(self, error: LimnerError) -> None:
        """What is being painted waits again, each job to be painted alone; `error` ends those tried often enough."""
        for job in self._jobs.values():
            if job.status.final or not job.rows:
                continue
            job.attempts, job.alone, job.rows, job.step = job.attempts + 1, True, 0, 0
            if job.attempts >= self.limits.attempts:
                self._finish(job, Status.FAILED, error)
            else:
                job.status = Status.QUEUED
                self._touch(job)

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
        shelf = self._shelf()
        self._note(shelf, self._default, shelf.take(self._default))
        with self._changed:
            self._ready = True
            self._changed.notify_all()
        while (turn := self._next_turn()) is not None:
            if isinstance(turn, Task):
                self._run_task(turn, shelf)
            else:
                self._run_rows(turn, shelf)

    def _hold(self, shelf: Shelf, name: str) -> Held:
        """The model of that offer; Unavailable if it cannot be loaded."""
        try:
            held = shelf.take(name)
        except LimnerError as e:
            raise Unavailable(f"The model {name} cannot be loaded: {e.message}", e.hint, 30) from e
        self._note(shelf, name, held)
        return held

    def _note(self, shelf: Shelf, name: str, held: Held) -> None:
        from limner.serve.worker import model_facts

        with self._changed:
            if name not in self._facts:
                self._facts[name] = model_facts(held)
            self._loaded = shelf.names
            self._changed.notify_all()

    def _run_rows(self, rows: list[tuple[Job, int]], shelf: Shelf) -> None:
        started = time.monotonic()
        try:
            held = self._hold(shelf, rows[0][0].model)
        except LimnerError as e:
            with self._changed:
                for job in {job.id: job for job, _ in rows}.values():
                    if not job.status.final:
                        self._finish(job, Status.FAILED, e)
            return
        if not self._painted(held, rows):
            collect()
            return
        with self._changed:
            for job, _ in rows:
                job.rows = 0
            self._seconds = 0.7 * self._seconds + 0.3 * (time.monotonic() - started) / len(rows)
            self.counters["batches"] += 1
            self._changed.notify_all()

    def _painted(self, held: Held, rows: list[tuple[Job, int]]) -> bool:
        """Whether memory sufficed for painting these; if not, they wait again."""
        import torch

        try:
            self._paint(held, rows)
        except (MemoryError, torch.OutOfMemoryError):
            log.warning("Memory was used up; what was being painted is painted again, picture by picture.")
            with self._changed:
                self._put_back(OutOfMemory("There is not enough memory to paint this.", "Ask for smaller pictures."))
            return False
        return True

    def _run_task(self, task: Task, shelf: Shelf) -> None:
        """A task stays in the queue until its future is done, so that a death on the way loses nothing."""
        if not task.future.running() and not task.future.set_running_or_notify_cancel():
            return
        try:
            result: Any = task.call(self._hold(shelf, task.model).model)
        except LimnerError as e:
            task.future.set_exception(e)
        else:
            task.future.set_result(result)
        with self._changed:
            self._changed.notify_all()

    def _next_turn(self) -> Task | list[tuple[Job, int]] | None:
        """What to do next: a task, pictures to paint (by turns where both wait), or None to leave. Waits. Called
        without the lock."""
        with self._changed:
            while not self._stopping:
                self._expire()
                while self._tasks and self._tasks[0].future.done():
                    self._tasks.popleft()
                paints_first = not self._tasks or self._did_task
                if paints_first and (rows := self._take()):
                    self._did_task = False
                    return rows
                if self._tasks:
                    self._did_task = True
                    return self._tasks[0]
                self._changed.wait(1.0)
            return None

    def _take(self) -> list[tuple[Job, int]]:
        """The next batch: the caller's turn who was served longest ago, and whatever can be painted with it."""
        waiting = [j for j in self._jobs.values() if not j.status.final and j.todo]
        served = self._served
        # stable: of one owner, in order of arrival
        waiting.sort(key=lambda j: (served.get(account_of(j.owner), -1), served.get(j.owner, -1)))
        rows: list[tuple[Job, int]] = []
        for job in waiting:
            fits = not rows or (job.shape == rows[0][0].shape and not job.alone)
            if fits:
                rows += [(job, i) for i in job.todo[: 1 if job.alone else self.limits.batch - len(rows)]]
            if rows and (rows[0][0].alone or len(rows) == self.limits.batch):
                break
        self._served_before = dict(self._served)
        for job, _ in rows:
            if not job.rows:
                self._begin(job, sum(other is job for other, _ in rows))
        return rows

    def _begin(self, job: Job, rows: int) -> None:
        self._turn += 1
        self._served[job.owner] = self._served[account_of(job.owner)] = self._turn
        job.status, job.step, job.rows = Status.RUNNING, 0, rows
        self._touch(job)

    def _leave_out(self, taken: Sequence[Job], painted: Sequence[Job]) -> None:
        """Of a batch that was taken, only these jobs are painted: the others wait again, and the turn of who ordered
        nothing else in it does not count. Called without the lock."""
        with self._changed:
            ids = {job.id for job in painted}
            left = [job for job in taken if job.id not in ids and not job.status.final]
            ids = {job.id for job in left}
            served = {name for job in taken if job.id not in ids for name in (job.owner, account_of(job.owner))}
            for job in left:
                job.status, job.rows = Status.QUEUED, 0
                self._touch(job)
                for name in {job.owner, account_of(job.owner)} - served:
                    self._served[name] = self._served_before.get(name, -1)

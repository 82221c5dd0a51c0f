"""What the engine remembers: jobs, people, keys; who may see them, how long, how many. In memory only."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limner.errors import LimnerError, PromptError
from limner.serve.errors import Draining, NotFound, StorageFull, TooManyJobs, Unavailable
from limner.serve.jobs import Job, Limits, PaintRequest, Person, Status, account_of
from limner.types import Identity

if TYPE_CHECKING:
    from limner.pipelines.loading import Model

EXPIRE_EVERY = 0.5
"""Least seconds between two searches for what has expired."""


@dataclass
class Kept:
    """An identity, whose it is, and the name of the offer that can read it."""

    owner: str
    identity: Identity
    person: Person
    model: str = ""


@dataclass
class Task:
    """Something else than painting that needs a model, by the name of its offer."""

    call: Callable[[Model], Any]
    future: Future[Any]
    model: str = ""
    attempts: int = 0


class State:
    """Jobs and people. Methods are called with the lock (`_changed`) held, unless they say that they take it."""

    def __init__(self, limits: Limits | None) -> None:
        self.limits = limits or Limits()
        self.counters: Counter[str] = Counter()
        self._changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, Job] = {}
        self._people: dict[str, Kept] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._tasks: deque[Task] = deque()
        self._served: dict[str, int] = {}
        self._seconds = 1.0
        self._facts: dict[str, dict[str, Any]] = {}
        self._failure: BaseException | None = None
        self._draining = self._stopping = False
        self._expired = 0.0

    def _busy(self) -> bool:
        tasks = any(not task.future.done() for task in self._tasks)
        return tasks or any(not job.status.final for job in self._jobs.values())

    def _version(self, job_id: str) -> int:
        job = self._jobs.get(job_id)
        return -1 if job is None else job.version

    def _kept(self, owner: str, person_id: str) -> Kept:
        with self._changed:
            kept = self._people.get(person_id)
            if kept is None or kept.owner != owner or kept.person.expires <= time.time():
                raise NotFound("There is no such identity.", "It may have expired; enrol the person again.")
            return kept

    def _job(self, owner: str, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise NotFound("There is no such job.", "It may have expired; finished jobs are kept for a while only.")
        return job

    def _position(self, job: Job) -> int:
        if job.status is not Status.QUEUED:
            return 0
        queued = [j.id for j in self._jobs.values() if j.status is Status.QUEUED]
        return queued.index(job.id)

    def _demand_open(self) -> None:
        if self._draining:
            raise Draining("The service is shutting down.", "Try again in a moment.", 5)
        if self._failure is not None:
            raise Unavailable("The model cannot be loaded any more.", "Try again later.", 30)
        if not self._facts:
            raise Unavailable("The model is being loaded.", "Try again in a moment.", 2)

    def _demand_room(self, owner: str, what: str, size: int = 0) -> None:
        with self._changed:
            things: Any = self._jobs if what == "jobs" else self._people
            account = account_of(owner)
            if sum(account_of(t.owner) == account for t in things.values()) >= self.limits.per_owner:
                raise TooManyJobs(
                    f"One caller may have {self.limits.per_owner} {what} at a time, finished ones included.",
                    f"Delete {what} that are no longer needed.",
                    self._wait(),
                )
            if self._kept_bytes() + size >= self.limits.kept_bytes:
                raise StorageFull("The memory for identities and pictures is used up.", "Try again later.", 30)

    def _demand_request(self, request: PaintRequest) -> None:
        limits = self.limits
        for name in ("prompt", "negative_prompt"):
            length = len(getattr(request, name))
            if length > limits.prompt:
                raise PromptError(f"{name} has {length} characters; allowed: {limits.prompt} at most.")
            try:
                getattr(request, name).encode("utf-8")
            except UnicodeEncodeError as e:
                raise PromptError(f"{name} has characters that no text can hold (lone surrogates).") from e
        if not request.prompt.strip():
            raise PromptError("There is nothing to paint: the prompt is empty.")

    def _wait(self) -> float:
        """Seconds after which there is room again, about."""
        waiting = sum(len(j.todo) for j in self._jobs.values() if not j.status.final)
        return min(max(1.0, self._seconds * waiting), 60.0)

    def _kept_bytes(self) -> int:
        return sum(k.person.size for k in self._people.values()) + sum(j.kept_bytes for j in self._jobs.values())

    def _expire(self) -> None:
        """Forgets what is older than it may be; looks for it twice a second at most."""
        now, clock = time.time(), time.monotonic()
        if clock - self._expired < EXPIRE_EVERY:
            return
        self._expired = clock
        for person_id in [i for i, k in self._people.items() if k.person.expires <= now]:
            del self._people[person_id]
        old = clock - self.limits.keep_results
        for job_id in [i for i, j in self._jobs.items() if j.status.final and j.finished <= old]:
            self._drop(job_id)

    def _drop(self, job_id: str) -> None:
        job = self._jobs.pop(job_id)
        job.version += 1
        if job.key:
            self._keys.pop((job.owner, job.key), None)
        left = {name for j in self._jobs.values() for name in (j.owner, account_of(j.owner))}
        for name in {job.owner, account_of(job.owner)} - left:
            self._served.pop(name, None)
        self._changed.notify_all()

    def _finish(self, job: Job, status: Status, error: LimnerError | None = None) -> None:
        job.status, job.error, job.finished = status, error, time.monotonic()
        job.todo, job.identity, job.preview, job.rows, job.step = [], None, None, 0, 0
        self.counters[status.value] += 1
        self._touch(job)

    def _touch(self, job: Job) -> None:
        job.version += 1
        self._changed.notify_all()

"""The engine of every service: one worker owns the model, callers hand it jobs and follow them. Thread-safe.

    engine = Engine(lambda: load_model("faceclip-mini"))
    engine.start()                                        # loads; raises what loading raises
    me = engine.enroll("owner", [photo_bytes])            # → Person; photos are not kept
    job = engine.submit("owner", PaintRequest("a wizard in the snow", identity=me.id, number=4, preview=True))
    for progress in engine.watch("owner", job):           # step, fraction, preview (JPEG), until it is final
        ...
    pictures = engine.result("owner", job)                # list[Picture], PNGs with their provenance
    engine.delete("owner", job); engine.forget("owner", me.id)
    engine.close()

Public methods: `start`, `drain`, `close`, `status`; `find_faces`, `enroll`, `keep`, `person`, `persons`, `identity`,
`forget`; `submit`, `progress`, `watch`, `jobs`, `cancel`, `result`, `delete`. `owner` is any string that tells callers
apart; whatever belongs to another owner does not exist (`NotFound`). Errors are `LimnerError`s: those of the pictures
and dials, and those of `limner.serve.errors` (QueueFull, TooManyJobs, StorageFull, Draining, … with `retry_after`).

- Jobs wait in one bounded queue. Owners take turns; pictures of equal size, steps, guidance and scheduler are painted
  in one batch, whoever ordered them.
- A worker that dies is replaced, with a freshly loaded model, and what it had begun is painted again, each job alone,
  so that none takes another down; a job on which workers die several times fails with `WorkerCrashed`.
- Everything lives in memory, with a time to live: identities as long as their owner wants, finished jobs for
  `Limits.keep_results` seconds. Nothing is read from or written to the file system.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from limner.errors import ConfigError
from limner.serve.crew import Crew
from limner.serve.errors import (
    Draining,
    IdempotencyMismatch,
    NotFinished,
    QueueFull,
)
from limner.serve.jobs import Job, Limits, PaintRequest, Person, Picture, Progress, Status
from limner.serve.state import Kept
from limner.types import Identity

if TYPE_CHECKING:
    from limner.faces import Choice, FaceFinder, Found
    from limner.pipelines.loading import Model
    from limner.types import Portrait

Checker = Callable[["Portrait"], "str | None"]
"""A safety checker: sees every finished portrait, returns why it must not go out, or nothing."""


class Engine(Crew):
    """See the head of this module.

    Args:
        load: makes the model; called on the worker, again whenever a worker died.
        limits: how much of everything is taken.
        checker: sees every finished picture and may refuse it; one that raises refuses.
        finder: finds faces; None makes one with default settings.
        previews: whether previews are made for those who ask. Not for models whose parts are moved between devices.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        limits: Limits | None = None,
        *,
        checker: Checker | None = None,
        finder: FaceFinder | None = None,
        previews: bool = True,
    ) -> None:
        super().__init__(load, limits)
        self.checker, self.previews = checker, previews
        self._finder = finder
        self._finder_lock = threading.Lock()
        self._enrolling = threading.BoundedSemaphore(self.limits.enrolments)

    # Life

    def start(self) -> None:
        """Loads the model and begins to work; returns when it is ready. Raises what loading raises."""
        self._supervisor = threading.Thread(target=self._supervise, name="limner-supervisor", daemon=True)
        self._supervisor.start()
        with self._changed:
            self._changed.wait_for(lambda: self._model is not None or self._failure is not None)
            if self._failure is not None:
                raise self._failure

    def drain(self, timeout: float = 60.0) -> bool:
        """Accepts nothing new and waits until all that was accepted is finished; whether it was in time."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._busy(), timeout)

    def close(self) -> None:
        """Stops at once: what is unfinished fails with `Draining`, which says that it can be sent again."""
        with self._changed:
            self._draining = self._stopping = True
            gone = Draining("The service was shut down before this was finished.", "Send it again.", 5)
            self._give_up(gone)
        if self._supervisor is not None:
            self._supervisor.join(30)

    @property
    def facts(self) -> dict[str, Any]:
        """About the model: name, method, world, license, default dials, size_unit (pixels), schedulers."""
        return dict(self._facts)

    def status(self) -> dict[str, Any]:
        """For health checks and metrics: ready, failed, draining, queued, running, identities, results, unfetched (of
        the results), kept_bytes, crashes."""
        with self._changed:
            self._expire()
            states = Counter(job.status for job in self._jobs.values())
            return {
                "ready": self._model is not None and not self._draining,
                "failed": self._failure is not None,
                "draining": self._draining,
                "queued": states[Status.QUEUED],
                "running": states[Status.RUNNING],
                "identities": len(self._people),
                "results": sum(states[s] for s in Status if s.final),
                "unfetched": sum(j.status is Status.DONE and not j.fetched for j in self._jobs.values()),
                "kept_bytes": self._kept_bytes(),
                "crashes": self.counters["crashes"],
            }

    # People

    def find_faces(self, photo: bytes, choose: str = "largest") -> Found:
        """All faces of a photo and the chosen one; runs in the caller's thread, one at a time.

        Args:
            photo: the bytes of an image file.
            choose: `largest`, `center`, `only`, a number, `X,Y` or `X0,Y0,X1,Y1` (pixels of the upright photo).

        Raises:
            ImageError, FaceError, ConfigError: see `FaceFinder.find`.
        """
        from limner.faces import parse_choice

        if not isinstance(photo, bytes):
            raise TypeError("photo must be bytes: a path is never opened here")
        return self._find(photo, parse_choice(choose))

    def enroll(
        self,
        owner: str,
        photos: Sequence[bytes],
        choose: str | Sequence[str] = "largest",
        *,
        ttl: float | None = None,
        timeout: float = 120.0,
    ) -> Person:
        """Enrols the person in one photo or several; waits for its turn. The photos are not kept.

        Args:
            photos: bytes of image files.
            choose: see `find_faces`; one rule for all photos, or one for each.
            ttl: seconds to keep the identity; None: `Limits.keep_identity`.
            timeout: seconds to wait for the worker.

        Raises:
            ImageError, FaceError, ConfigError: about the photos; messages call them photo 1, photo 2, ….
            QueueFull, TooManyJobs, StorageFull, Draining, Unavailable: not now.
        """
        from limner.serve.worker import enroll, gather

        self._demand_open()
        self._demand_room(owner, "identities")
        if not 1 <= len(photos) <= self.limits.photos:
            raise ConfigError(f"{len(photos)} photos were given; allowed: 1 to {self.limits.photos}.")
        rules = [choose] * len(photos) if isinstance(choose, str) else list(choose)
        if len(rules) != len(photos):
            raise ConfigError(f"{len(rules)} choices for {len(photos)} photos; one for all, or one for each.")
        if not self._enrolling.acquire(blocking=False):
            raise QueueFull("Too many people are being enrolled at the moment.", "Try again later.", self._wait())
        try:
            faces, remarks, outside = gather(self.find_faces, photos, rules, str(self._facts.get("world") or ""))
            identity, more = self._call(lambda model: enroll(model, faces, outside), timeout)
        finally:
            self._enrolling.release()
        return self.keep(owner, identity, ttl=ttl, remarks=(*remarks, *more))

    def keep(self, owner: str, identity: Identity, *, ttl: float | None = None, remarks: Sequence[str] = ()) -> Person:
        """Keeps an identity that the caller already has, for instance from the provenance of a PNG.

        Raises:
            ConfigError: ttl out of range.
            TooManyJobs, StorageFull, Draining, Unavailable: not now.
        """
        self._demand_open()
        most = self.limits.keep_identity_at_most
        seconds = self.limits.keep_identity if ttl is None else ttl
        if not 0 < seconds <= most:
            raise ConfigError(f"ttl is {ttl!r}; allowed: more than 0, at most {most:g} seconds.")
        size = sum(t.numel() * t.element_size() for t in identity.tensors.values())
        with self._changed:
            self._expire()
            self._demand_room(owner, "identities", size)
            person = Person(
                id=secrets.token_urlsafe(16),
                digest=identity.digest(),
                expires=time.time() + seconds,
                faces=int(identity.info.get("references", 1)),
                size=size,
                remarks=tuple(dict.fromkeys(remarks)),
            )
            self._people[person.id] = Kept(owner, identity, person)
            self.counters["enrolled"] += 1
        return person

    def person(self, owner: str, person_id: str) -> Person:
        """An identity of this owner; NotFound otherwise."""
        return self._kept(owner, person_id).person

    def persons(self, owner: str) -> list[Person]:
        """All identities of this owner, oldest first."""
        with self._changed:
            self._expire()
            return [k.person for k in self._people.values() if k.owner == owner]

    def identity(self, owner: str, person_id: str) -> Identity:
        """The identity itself; NotFound unless it is this owner's."""
        return self._kept(owner, person_id).identity

    def forget(self, owner: str, person_id: str) -> None:
        """Deletes an identity. Jobs that were accepted before still use it, and drop it when they end."""
        with self._changed:
            self._kept(owner, person_id)
            del self._people[person_id]

    # Jobs

    def submit(self, owner: str, request: PaintRequest, key: str | None = None) -> str:
        """Accepts a job and returns its id.

        Args:
            key: idempotency key: the same key with the same request gives the same job instead of another.

        Raises:
            PromptError, ConfigError: something in the request is wrong.
            NotFound: no such identity of this owner.
            IdempotencyMismatch: the key came with another request.
            QueueFull, TooManyJobs, StorageFull, Draining, Unavailable: not now.
        """
        from limner.serve.worker import make_job

        with self._changed:
            self._expire()
            known = self._jobs.get(self._keys.get((owner, key or ""), "")) if key else None
            if known is not None:
                if known.request != request:
                    raise IdempotencyMismatch(
                        "This idempotency key was used for another request.", "Take a new key for a new request."
                    )
                return known.id
            self._demand_open()
            self._demand_request(request)
            kept = None if request.identity is None else self._kept(owner, request.identity)
            job = make_job(secrets.token_urlsafe(16), owner, request, kept, self._facts, self.limits)
            if sum(not j.status.final for j in self._jobs.values()) >= self.limits.queue:
                raise QueueFull("The queue is full.", "Try again later.", self._wait())
            self._demand_room(owner, "jobs")
            self._jobs[job.id] = job
            if key:
                job.key = key
                self._keys[owner, key] = job.id
            self.counters["accepted"] += 1
            self._changed.notify_all()
            return job.id

    def progress(self, owner: str, job_id: str) -> Progress:
        """How a job stands; NotFound unless it is this owner's."""
        with self._changed:
            job = self._job(owner, job_id)
            return job.progress(self._position(job))

    def watch(self, owner: str, job_id: str, heartbeat: float = 10.0) -> Iterator[Progress]:
        """Progress at every change, and every `heartbeat` seconds, until it is final (which is yielded, too)."""
        while True:
            progress = self.progress(owner, job_id)
            yield progress
            if progress.status.final:
                return
            self._await_change(job_id, progress.version, heartbeat)

    def jobs(self, owner: str) -> list[Progress]:
        """All jobs of this owner that are still known, oldest first."""
        with self._changed:
            self._expire()
            return [j.progress(self._position(j)) for j in self._jobs.values() if j.owner == owner]

    def cancel(self, owner: str, job_id: str) -> Progress:
        """Ends a job; what is painted already stays. Does nothing to a job that has ended."""
        with self._changed:
            job = self._job(owner, job_id)
            if not job.status.final:
                self._finish(job, Status.CANCELLED)
            return job.progress(0)

    def result(self, owner: str, job_id: str, *, peek: bool = False) -> list[Picture]:
        """The pictures of a job that has ended (of a cancelled or failed one, those that were finished).

        Args:
            peek: the pictures themselves are not handed on now, so that a service that shuts down waits for that.

        Raises:
            NotFound: no such job of this owner.
            NotFinished: it has not ended.
        """
        with self._changed:
            job = self._job(owner, job_id)
            if not job.status.final:
                raise NotFinished(f"The job is {job.status}.", "Wait for it to end, or cancel it.", self._wait())
            job.fetched = job.fetched or not peek
            return [job.pictures[i] for i in sorted(job.pictures)]

    def delete(self, owner: str, job_id: str) -> None:
        """Forgets a job and its pictures; one that has not ended is cancelled."""
        with self._changed:
            self.cancel(owner, job_id)
            self._drop(job_id)

    def _paint(self, model: Model, rows: list[tuple[Job, int]]) -> None:
        from limner.serve.worker import paint_job_rows

        paint_job_rows(self, model, rows)

    def _await_change(self, job_id: str, seen: int, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._version(job_id) != seen, timeout)

    def _find(self, image: Any, choice: Choice) -> Found:
        """One picture at a time: detectors keep state, and decoded pictures are large."""
        from limner.faces import FaceFinder

        with self._finder_lock:
            if self._finder is None:
                self._finder = FaceFinder(max_pixels=self.limits.photo_pixels)
            return self._finder.find(image, choice)

"""The engine of every service: one worker owns the models, callers hand it jobs and follow them. Thread-safe.

    engine = Engine(lambda: load_model("faceclip-mini"))
    engine.start()                                        # loads; raises what loading raises
    me = engine.enroll("owner", [photo_bytes])            # → Person; photos are not kept
    job = engine.submit("owner", PaintRequest("a wizard in the snow", identity=me.id, number=4, preview=True))
    for progress in engine.watch("owner", job):           # step, fraction, preview (JPEG), until it is final
        ...
    pictures = engine.result("owner", job)                # list[Picture], PNGs with their provenance
    engine.delete("owner", job); engine.forget("owner", me.id)
    engine.close()

Public methods: `start`, `drain`, `close`, `status`; `offers`, `known`, `prepare`; `find_faces`, `enroll`, `keep`,
`person`, `persons`, `identity`, `forget`; `submit`, `progress`, `watch`, `jobs`, `cancel`, `result`, `picture`,
`delete`. `owner` is any string that tells callers apart; whatever belongs to another owner does not exist (`NotFound`).
Owners that are equal up to the first `/` share what one caller may have. Errors are `LimnerError`s: those of the
pictures and dials, and those of `limner.serve.errors` (QueueFull, TooManyJobs, StorageFull, Draining, … with
`retry_after`).

- Several models can be offered: `Engine([Offer("faceclip-mini", load), …])`. The first is loaded at the start, others
  when they are first asked for, and `Limits.models` of them stay in memory. A person is enrolled for one of them.
- Jobs wait in one bounded queue. Owners take turns; pictures of equal model, size, steps, guidance and scheduler are
  painted in one batch, whoever ordered them.
- A worker that dies is replaced, with a freshly loaded model, and what it had begun is painted again, each job alone
  and picture by picture, so that none takes another down; a job on which workers die several times fails with
  `WorkerCrashed`. The same happens, without a new worker, where memory does not suffice; the error is `OutOfMemory`.
- Everything lives in memory, with a time to live: identities as long as their owner wants, finished jobs for
  `Limits.keep_results` seconds. Nothing is read from or written to the file system.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import ConfigError, WeightsMismatch
from limner.serve.crew import Crew
from limner.serve.errors import (
    Draining,
    IdempotencyMismatch,
    NotFinished,
    NotFound,
    QueueFull,
    UnknownModel,
)
from limner.serve.jobs import Job, Limits, PaintRequest, Person, Picture, Progress, Status
from limner.serve.shelf import Held, Offer, Shelf, described
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
        load: makes the model; called on the worker, again whenever a worker died. Or several models, as offers.
        limits: how much of everything is taken.
        checker: sees every finished picture and may refuse it; one that raises refuses.
        finder: finds faces; None makes one with default settings.
        previews: whether previews are made for those who ask. Not for models whose parts are moved between devices.
        gaze_weights, text_weights: see `limner.serve.shelf.Shelf`.
    """

    def __init__(
        self,
        load: Callable[[], Model] | Sequence[Offer],
        limits: Limits | None = None,
        *,
        checker: Checker | None = None,
        finder: FaceFinder | None = None,
        previews: bool = True,
        gaze_weights: Path | None = None,
        text_weights: Path | None = None,
    ) -> None:
        super().__init__([Offer("", load)] if callable(load) else load, limits)
        self.checker, self.previews = checker, previews
        self.gaze_weights, self.text_weights = gaze_weights, text_weights
        self._finder = finder
        self._finder_lock = threading.Lock()
        self._enrolling = threading.BoundedSemaphore(self.limits.enrolments)

    # Life

    def start(self) -> None:
        """Loads the model and begins to work; returns when it is ready. Raises what loading raises."""
        self._supervisor = threading.Thread(target=self._supervise, name="limner-supervisor", daemon=True)
        self._supervisor.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._failure is not None)
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
        """About the first model: name, method, world, license, weights, default dials, size_unit (pixels), schedulers,
        and what it lacks."""
        return dict(self._facts.get(self._default, {}))

    def status(self) -> dict[str, Any]:
        """For health checks and metrics: ready, failed, draining, queued, running, identities, results, unfetched
        (finished jobs with pictures that were not handed out), kept_bytes, models (in memory), crashes."""
        with self._changed:
            self._expire()
            states = Counter(job.status for job in self._jobs.values())
            return {
                "ready": self._ready and not self._draining,
                "failed": self._failure is not None,
                "draining": self._draining,
                "queued": states[Status.QUEUED],
                "running": states[Status.RUNNING],
                "identities": len(self._people),
                "results": sum(states[s] for s in Status if s.final),
                "unfetched": sum(j.status is Status.DONE and j.unfetched for j in self._jobs.values()),
                "kept_bytes": self._kept_bytes(),
                "models": len(self._loaded),
                "crashes": self.counters["crashes"],
            }

    # Models

    def offers(self) -> list[dict[str, Any]]:
        """What can be asked for, the first one first: name, method, description, default, loaded (now in memory), facts
        (as `facts`; None for what was never loaded)."""
        with self._changed:
            return [
                described(o, self._facts.get(o.name), default=o.name == self._default, loaded=o.name in self._loaded)
                for o in self._offers.values()
            ]

    def known(self, model: str | None = None, method: str | None = None) -> bool:
        """Whether the offer that this means was loaded before, so that `prepare` and `submit` need not wait."""
        with self._changed:
            return self._chosen(model, method) in self._facts

    def prepare(self, model: str | None = None, method: str | None = None, timeout: float = 120.0) -> dict[str, Any]:
        """Facts about an offered model, which is loaded if it never was; see `facts`.

        Args:
            model, method: either may be None; neither given means the first offer.
            timeout: seconds to wait for the worker.

        Raises:
            UnknownModel: no such offer.
            QueueFull, Draining, Unavailable: not now.
        """
        self._demand_open()
        name = self._chosen(model, method)
        self._learn(name, timeout)
        return dict(self._facts[name])

    def _chosen(self, model: str | None, method: str | None, kept: Kept | None = None) -> str:
        """The key of the offer that is meant: that of the enrolled person, if it fits, or else the first that does."""
        offered = dict(zip(self._offers, self.offers(), strict=True))
        fits = [k for k, o in offered.items() if model in (None, o["name"]) and method in (None, o["method"])]
        if not fits:
            asked = " by ".join(repr(v[:80]) for v in (model, method) if v is not None)
            listed = ", ".join(f"{o['name']} ({o['method']})" for o in offered.values())
            raise UnknownModel(
                f"{asked} is not offered here; offered: {listed}.", "Leave it out, or take one of these."
            )
        if kept is None or kept.model in fits:
            return fits[0] if kept is None else kept.model
        name = offered[fits[0]]["name"]
        raise WeightsMismatch(
            f"The person was enrolled for {kept.person.model}; {name} cannot read what was kept of them.",
            f"Enrol the photos for {name}, or paint with {kept.person.model}.",
        )

    def _learn(self, name: str, timeout: float) -> None:
        """Has an offer loaded whose facts are not known. Called without the lock."""
        if name not in self._facts:
            self._call(lambda _model: None, timeout, name)

    def _shelf(self) -> Shelf:
        return Shelf(list(self._offers.values()), self.limits.models, self.gaze_weights, self.text_weights)

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
        model: str | None = None,
        method: str | None = None,
    ) -> Person:
        """Enrols the person in one photo or several; waits for its turn. The photos are not kept.

        Args:
            photos: bytes of image files.
            choose: see `find_faces`; one rule for all photos, or one for each.
            ttl: seconds to keep the identity; None: `Limits.keep_identity`.
            timeout: seconds to wait for the worker.
            model, method: that is to paint the person; see `prepare`.

        Raises:
            UnknownModel: no such offer.
            ImageError, FaceError, ConfigError: about the photos; messages call them photo 1, photo 2, ….
            QueueFull, TooManyJobs, StorageFull, Draining, Unavailable: not now.
        """
        from limner.serve.worker import enroll, gather

        self._demand_open()
        self._demand_room(owner, "identities")
        if not 1 <= len(photos) <= self.limits.photos:
            raise ConfigError(f"{len(photos)} photos were given; allowed: 1 to {self.limits.photos}.")
        name = self._chosen(model, method)
        rules = [choose] * len(photos) if isinstance(choose, str) else list(choose)
        if len(rules) != len(photos):
            raise ConfigError(f"{len(rules)} choices for {len(photos)} photos; one for all, or one for each.")
        if not self._enrolling.acquire(blocking=False):
            raise QueueFull("Too many people are being enrolled at the moment.", "Try again later.", self._wait())
        try:
            self._learn(name, timeout)
            faces, remarks, outside = gather(self.find_faces, photos, rules, str(self._facts[name]["world"]))
            identity, more = self._call(lambda model: enroll(model, faces, outside), timeout, name)
        finally:
            self._enrolling.release()
        return self.keep(owner, identity, ttl=ttl, remarks=(*remarks, *more), model=model, method=method)

    def keep(
        self,
        owner: str,
        identity: Identity,
        *,
        ttl: float | None = None,
        remarks: Sequence[str] = (),
        model: str | None = None,
        method: str | None = None,
    ) -> Person:
        """Keeps an identity that the caller already has, for instance from the provenance of a PNG.

        Args:
            model, method: that made it; see `prepare`.

        Raises:
            ConfigError: ttl out of range.
            UnknownModel: no such offer.
            WeightsMismatch: the identity is of another method.
            TooManyJobs, StorageFull, Draining, Unavailable: not now.
        """
        facts = self.prepare(model, method)
        if identity.method != facts["method"]:
            raise WeightsMismatch(
                f"The person was enrolled by {identity.method}; {facts['name']} paints by {facts['method']}.",
                "Enrol the photos with the model that is to paint them.",
            )
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
                model=facts["name"],
                remarks=tuple(dict.fromkeys(remarks)),
            )
            self._people[person.id] = Kept(owner, identity, person, self._chosen(model, method))
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

    def submit(self, owner: str, request: PaintRequest, key: str | None = None, timeout: float = 120.0) -> str:
        """Accepts a job and returns its id.

        Args:
            key: idempotency key: the same key with the same request gives the same job instead of another.
            timeout: seconds to wait for a model that was never loaded before (see `known`).

        Raises:
            PromptError, ConfigError: something in the request is wrong.
            UnknownModel: no such offer.
            Unsupported: the model cannot do that here.
            WeightsMismatch: the person was enrolled for another model.
            NotFound: no such identity of this owner.
            IdempotencyMismatch: the key came with another request.
            QueueFull, TooManyJobs, StorageFull, Draining, Unavailable: not now.
        """
        from limner.serve.worker import make_job

        with self._changed:
            self._expire()
            if known := self._sent_before(owner, request, key):
                return known
            self._demand_open()
            self._demand_request(request)
            kept = None if request.identity is None else self._kept(owner, request.identity)
            name = self._chosen(request.model, request.method, kept)
        self._learn(name, timeout)
        with self._changed:
            if known := self._sent_before(owner, request, key):
                return known
            self._demand_open()
            job = make_job(secrets.token_urlsafe(16), owner, request, kept, name, self._facts[name], self.limits)
            if sum(not j.status.final for j in self._jobs.values()) >= self.limits.queue:
                raise QueueFull("The queue is full.", "Try again later.", self._wait())
            self._demand_room(owner, "jobs", job.kept_bytes)
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
            if not peek:
                job.fetched.update(job.pictures)
            return [job.pictures[i] for i in sorted(job.pictures)]

    def picture(self, owner: str, job_id: str, index: int) -> Picture:
        """One picture of a job that has ended; raises as `result`, and NotFound if there is none of that number."""
        with self._changed:
            found = {p.index: p for p in self.result(owner, job_id, peek=True)}
            if index not in found:
                raise NotFound(f"The job has no picture number {index}.")
            self._jobs[job_id].fetched.add(index)
            return found[index]

    def delete(self, owner: str, job_id: str) -> None:
        """Forgets a job and its pictures; one that has not ended is cancelled."""
        with self._changed:
            self.cancel(owner, job_id)
            self._drop(job_id)

    def _sent_before(self, owner: str, request: PaintRequest, key: str | None) -> str | None:
        """The id of the job that this key stands for."""
        known = self._jobs.get(self._keys.get((owner, key), "")) if key else None
        if known is not None and known.request != request:
            raise IdempotencyMismatch(
                "This idempotency key was used for another request.", "Take a new key for a new request."
            )
        return known.id if known else None

    def _paint(self, held: Held, rows: list[tuple[Job, int]]) -> None:
        from limner.serve.worker import paint_job_rows

        paint_job_rows(self, held, rows)

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

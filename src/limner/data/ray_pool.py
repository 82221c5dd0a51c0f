"""Units of work on a Ray cluster; see `limner.data.shards`. What a dying machine had begun is done again elsewhere."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from limner.data.shards import Samples, Work
from limner.errors import ConfigError, LimnerError, MissingDependency

_READY: dict[bytes, Work] = {}
"""The work that this process made last: models are loaded once a process, not once a unit."""


class RayPool:
    """A cluster. Limner, its models and their folders must be at the same places on all its machines; results travel
    back through Ray, so that nothing else has to be shared.

    Args:
        address: `local` (this machine alone, or whatever this process is connected to), `auto` (the cluster that is
            already up here), or `HOST:PORT`.
        cpus, gpus: what one painter takes; parts of a GPU are allowed.

    Raises:
        MissingDependency: Ray is not installed.
        ConfigError: no cluster at the address.
    """

    def __init__(self, address: str = "local", cpus: float = 1, gpus: float = 0) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as e:
            raise MissingDependency("A Ray cluster needs the package ray.", "pip install 'limner[ray]'.") from e
        self.ray, self.cpus, self.gpus = ray, cpus, gpus
        if ray.is_initialized():
            return
        try:
            ray.init(
                address=None if address == "local" else address,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError, RuntimeError) as e:
            raise ConfigError(f"There is no Ray cluster at {address!r} ({e}).", "Start one: ray start --head.") from e

    def run(self, make: Callable[[], Work], units: Sequence[Any]) -> Iterator[tuple[int, Samples]]:
        """See `limner.data.shards.Pool`."""
        ray: Any = self.ray
        self._demand_room()
        task = ray.remote(_compute).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=-1, scheduling_strategy="SPREAD"
        )
        recipe = pickle.dumps(make)
        waiting = iter(enumerate(units))
        running: dict[Any, int] = {}

        def fill() -> None:
            slots = 2 * max(1, int(ray.cluster_resources().get("CPU", 1) // max(self.cpus, 0.01)))
            for i, unit in itertools.islice(waiting, max(0, slots - len(running))):
                running[task.remote(recipe, unit)] = i

        try:
            fill()
            while running:
                finished, _ = ray.wait(list(running), num_returns=1)
                for future in finished:
                    at = running.pop(future)
                    try:
                        samples = ray.get(future)
                    except ray.exceptions.RayTaskError as e:
                        raise e.cause if isinstance(e.cause, LimnerError) else e from None
                    yield at, samples
                fill()
        finally:
            for future in running:
                ray.cancel(future)

    def _demand_room(self) -> None:
        """Raises ConfigError where no machine could ever hold a painter: Ray would wait for one for ever."""
        held = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(r.get("CPU", 0) >= self.cpus and r.get("GPU", 0) >= self.gpus for r in held):
            most = max((r.get("CPU", 0) for r in held), default=0)
            raise ConfigError(
                f"A painter takes {self.cpus:g} CPUs and {self.gpus:g} GPUs; no machine of the cluster has as many "
                f"(the largest has {most:g} CPUs).",
                "Give fewer with --threads and --ray-gpus.",
            )


def _compute(recipe: bytes, unit: Any) -> Samples:
    """One unit, on whatever machine."""
    if recipe not in _READY:
        _READY.clear()
        _READY[recipe] = pickle.loads(recipe)()
    return _READY[recipe](unit)

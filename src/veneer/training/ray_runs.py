"""Runs on a Ray cluster that is already there: a way to do the runs of a grid, like `run_here`.

The nodes need this version of Veneer, and models and data under the names that the configurations give: short names,
which each node fetches into its own cache, or paths on a file system that all share. What comes back is a run's results
alone. A run takes processors and no GPU.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

from veneer.errors import ConfigError, VeneerError
from veneer.results import Results, RunRecord
from veneer.training.compare import GRACE_SECONDS, Watcher
from veneer.training.config import RunConfig
from veneer.training.grid import Runner, results_of
from veneer.training.output import run_name
from veneer.training.run import Progress
from veneer.training.workers import LOOK_SECONDS

ANSWER_SECONDS = 5.0
"""How long to wait for an answer at an address; Ray itself tries for more than four minutes."""


@contextmanager
def ray_runner(address: str) -> Iterator[Runner]:
    """Give what does a run on the cluster at `address`.

    There `workers` runs share the processors of all nodes.

    Args:
        address: "host:port" of the cluster's head, or "auto" for the cluster of this machine.

    Raises:
        ConfigError: Ray is not installed, or no cluster can be used at the address.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError("runs on a Ray cluster need Ray; type `pip install ray`") from None
    try:
        host, _, port = address.rpartition(":")
        if host and "/" not in host:
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        ray.init(address=address, logging_level="error")
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        advice = "give host:port of its head, or auto on one of its machines; `ray start --head` starts one"
        raise ConfigError(f"no Ray cluster can be used at {address!r}: {error}; {advice}") from None
    remote = ray.remote(max_retries=0)(_outcome)

    def run_there(config: RunConfig, watcher: Watcher, workers: int, stopped: Event) -> Results:
        try:
            sizes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
            threads = max(1, min(min(filter(None, sizes), default=1), sum(sizes) // workers))
            run = remote.options(num_cpus=threads).remote(config, threads)
            patience = LOOK_SECONDS
            while not ray.wait([run], timeout=patience)[0]:
                if stopped.is_set():
                    ray.cancel(run)  # which interrupts it
                    patience = GRACE_SECONDS  # in which it cleans up after itself
            outcome: Results | VeneerError | OSError = ray.get(run)
        except ray.exceptions.RayError as error:
            name = run_name(config.method, config.seed)
            raise VeneerError(f"the run {name} ended without a result on the Ray cluster: {error}") from None
        if isinstance(outcome, VeneerError | OSError):
            raise outcome
        return outcome

    try:
        yield run_there
    finally:
        ray.shutdown()


class _Unwatched:
    """Shows nothing: nobody looks at a node."""

    def run_started(self, config: RunConfig, number: int, num_runs: int) -> None: ...

    def run_progressed(self, progress: Progress) -> None: ...

    def run_ended(self, record: RunRecord) -> None: ...

    def notify(self, line: str) -> None: ...


def _outcome(config: RunConfig, threads: int) -> Results | VeneerError | OSError:
    """Do a run on a node, and return its results or the error that a run may end with."""
    try:
        return results_of(config, _Unwatched(), threads=threads)
    except (VeneerError, OSError) as error:
        return error

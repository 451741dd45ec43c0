"""A grid on a Ray cluster: the same records in the same folders as with local workers, and the same errors."""

import os
import socket
import sys
from dataclasses import replace

import pytest

from tests.cli.tiny import make_rows, write_csv
from veneer.errors import ConfigError, UnknownNameError, VeneerError
from veneer.results import RESULTS_FILE
from veneer.training import ray_runs as module
from veneer.training.config import RunConfig
from veneer.training.grid import Grid
from veneer.training.ray_runs import ray_runner

MEASURED = {"train_seconds": 0.0, "peak_memory_bytes": 0}
"""What differs from one machine, or moment, to another."""


class Watcher:
    """Notes which runs began and ended, in order."""

    def __init__(self):
        self.lines = []

    def run_started(self, config, number, num_runs):
        self.lines.append(f"began {number}/{num_runs}")

    def run_progressed(self, progress):
        pass

    def run_ended(self, record):
        self.lines.append("ended")

    def notify(self, line):
        pass


@pytest.fixture(scope="module")
def address():
    """A cluster of two nodes with a processor each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def configs(tiny, tmp_path):
    data = write_csv(tmp_path / "rows.csv", make_rows(60, seed=1))
    first = RunConfig(
        model=str(tiny), data=str(data), text="text", label="label", method="head", epochs=1, max_tokens=24,
        precision="float32", attention="eager",
    )  # fmt: skip
    return [replace(first, seed=seed) for seed in range(3)]


def test_a_grid_on_ray_holds_what_local_workers_leave(address, configs, tmp_path):
    here, there, watcher = Grid(folder=tmp_path / "here"), Grid(folder=tmp_path / "there"), Watcher()
    assert len(list(here.fill(lambda: configs, Watcher(), workers=2))) == 3
    with ray_runner(address) as runner:
        assert len(list(there.fill(lambda: configs, watcher, runner=runner, workers=2))) == 3
        assert list(there.fill(lambda: configs, watcher, runner=runner, workers=2)) == []
    assert watcher.lines[:3] == ["began 1/3", "began 2/3", "ended"]
    assert sorted(path.relative_to(here.folder) for path in here.folder.rglob("*")) == sorted(
        path.relative_to(there.folder) for path in there.folder.rglob("*")
    )
    for config in configs:
        local, remote = here.find(config), there.find(config)
        assert replace(remote, **MEASURED) == replace(local, **MEASURED)
        assert [path.name for path in there.place(config).iterdir()] == [RESULTS_FILE]


def test_a_run_that_fails_is_reported_as_with_local_workers_and_the_others_stay(address, configs, tmp_path):
    broken = [configs[0], replace(configs[1], label="nowhere")]
    messages = []
    with ray_runner(address) as runner:
        for name, chosen in (("here", {}), ("there", {"runner": runner})):
            grid = Grid(folder=tmp_path / name)
            with pytest.raises(UnknownNameError) as raised:
                list(grid.fill(lambda: broken, Watcher(), workers=1, **chosen))
            messages.append(str(raised.value))
            assert grid.missing(broken) == broken[1:]
    assert messages[0] == messages[1]


def test_a_worker_that_dies_is_named_with_its_run(address, configs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_outcome", lambda config, threads: os._exit(3))
    reason = "the run head-seed0 ended without a result"
    with ray_runner(address) as runner, pytest.raises(VeneerError, match=reason):
        list(Grid(folder=tmp_path / "runs").fill(lambda: configs[:1], Watcher(), runner=runner))
    assert not (tmp_path / "runs").exists()


def test_a_cluster_that_is_lost_is_named_with_the_run_that_waits_for_it(address, configs, tmp_path, monkeypatch):
    def lost():
        raise ray.exceptions.RayError("it is gone")

    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "nodes", lost)
    reason = "the run head-seed0 ended without a result on the Ray cluster: it is gone"
    with ray_runner(address) as runner, pytest.raises(VeneerError, match=reason):
        list(Grid(folder=tmp_path / "runs").fill(lambda: configs[:1], Watcher(), runner=runner))


def test_an_interrupt_ends_runs_on_the_cluster_as_it_does_here(address, configs, tmp_path):
    """Without it these would go on for hours, and the interrupt would wait for them."""
    long = [replace(config, epochs=100_000) for config in configs]

    class Interrupting(Watcher):
        def run_started(self, config, number, num_runs):
            super().run_started(config, number, num_runs)
            if number == 2:
                raise KeyboardInterrupt

    watcher = Interrupting()
    with ray_runner(address) as runner, pytest.raises(KeyboardInterrupt):
        list(Grid(folder=tmp_path / "runs").fill(lambda: long, watcher, runner=runner, workers=2))
    assert watcher.lines == ["began 1/3", "began 2/3"]
    assert not (tmp_path / "runs").exists()


def test_where_no_cluster_answers_the_address_and_the_way_out_are_named():
    pytest.importorskip("ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there
        for address in (f"127.0.0.1:{taken.getsockname()[1]}", "nonsense", "host:port"):
            with pytest.raises(ConfigError, match=f"{address}.*ray start --head"), ray_runner(address):
                pass


def test_without_ray_what_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install ray"), ray_runner("auto"):
        pass

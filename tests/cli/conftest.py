"""One tiny model, its data and a run by each method, made once and only read by the tests."""

import multiprocessing.util
import tempfile
from pathlib import Path

import pytest

from tests.cli.tiny import BASELINES, COLUMNS, SETTINGS, make_model, make_rows, one_thread, worked, write_csv


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of the model."""
    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """A folder with train.csv (60 rows) and test.csv (21)."""
    folder = tmp_path_factory.mktemp("tables")
    write_csv(folder / "train.csv", make_rows(60, seed=1))
    write_csv(folder / "test.csv", make_rows(21, seed=2))
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny, tables):
    """A function from a method to the folder of its run; the run is made when it is first asked for."""
    runs = tmp_path_factory.mktemp("runs")

    def run_of(method: str) -> Path:
        folder = runs / method
        if not folder.exists():
            files = ("--data", tables / "train.csv", "--test", tables / "test.csv", *COLUMNS)
            chosen = ("--method", method, *BASELINES.get(method, ()))
            worked("train", "--model", tiny, *files, *SETTINGS, *chosen, "--out", folder)
        return folder

    return run_of


@pytest.fixture(autouse=True)
def _nothing_to_fetch(monkeypatch, tmp_path_factory):
    """Downloads go to an empty cache, and would fail: no test of the command may depend on the network."""
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.setenv("VENEER_CACHE", str(empty / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """An empty folder that is also the working folder and holds the system's temporary folder, `temporary`."""
    multiprocessing.util.get_temp_dir()  # lives as long as this process, so it is made before we look
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    return tmp_path

"""Laws of the run folder: never overwritten unasked, and never more deleted than Veneer wrote."""

from pathlib import Path

import pytest

from tests.cli.tiny import contents
from tests.report.records import record
from veneer.errors import OutputExistsError
from veneer.results import Results, write_results
from veneer.training.output import (
    clear_partials,
    clear_results,
    made_folder,
    move_results,
    new_folder,
    partial_folder,
    require_free,
)


def fill(folder, *files):
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    return folder


def fill_run(folder, *runs):
    """Write a run folder with weights for each (checkpoint, method), and its report."""
    for checkpoint, _ in runs:
        fill(folder, f"{checkpoint}/weights")
    records = [record(method, checkpoint=checkpoint) for checkpoint, method in runs]
    write_results(folder, Results(machine={}, versions={}, records=records))
    return fill(folder, "report.html")


FOREIGN = ["notes.txt", "plots/results.txt", "plots/adapter/x", "report.html.bak", ".hidden", "other/adapter/x"]


def test_only_what_veneer_wrote_is_deleted_of_a_run(tmp_path):
    fill(tmp_path, *FOREIGN)
    before = contents(tmp_path)
    fill_run(tmp_path, ("adapter", "lora-qv"))
    clear_results(tmp_path)
    assert contents(tmp_path) == before


def test_only_what_veneer_wrote_is_deleted_of_a_comparison(tmp_path):
    """Runs that this folder's results do not list are somebody else's, and so are files put beside the weights."""
    fill(tmp_path, *FOREIGN, "head-seed0/notes.txt")
    fill_run(tmp_path / "demo", ("adapter", "lora-qv"))
    before = contents(tmp_path)
    fill_run(tmp_path / "head-seed0", ("adapter", "head"))
    fill_run(tmp_path / "full-seed0", ("model", "full"))
    fill_run(tmp_path, ("head-seed0/adapter", "head"), ("full-seed0/model", "full"))
    clear_results(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("checkpoint", ["../outside", "/etc", "notes.txt"])
def test_a_path_out_of_a_results_file_is_never_followed(tmp_path, checkpoint):
    fill(tmp_path, "outside/x", "run/notes.txt")
    records = [record("head", checkpoint=checkpoint)]
    write_results(tmp_path / "run", Results(machine={}, versions={}, records=records))
    clear_results(tmp_path / "run")
    assert {"outside/x", "run/notes.txt"} <= set(contents(tmp_path))


def test_without_a_results_file_a_folder_called_adapter_is_not_veneers(tmp_path):
    fill(tmp_path, "adapter/a", "model/b")
    before = contents(tmp_path)
    clear_results(tmp_path)
    assert contents(tmp_path) == before
    with pytest.raises(OutputExistsError, match="holds adapter, model, which no finished run wrote"):
        require_free(tmp_path, overwrite=True)


def test_a_results_file_of_somebody_elses_is_never_replaced(tmp_path):
    fill(tmp_path, "results.json")
    with pytest.raises(OutputExistsError, match=r"holds results\.json, which no finished run wrote"):
        require_free(tmp_path, overwrite=True)


def test_clearing_what_is_not_there_does_nothing(tmp_path):
    clear_results(tmp_path / "nothing")
    assert contents(tmp_path) == {}


def test_a_finished_run_takes_the_place_of_an_earlier_one(tmp_path):
    target = fill(fill_run(tmp_path / "run", ("model", "full")), "notes.txt")
    source = fill(tmp_path / "new", "results.json", "adapter/a")
    expected = {**contents(source), "notes.txt": b"content of notes.txt"}
    move_results(source, target, overwrite=True)
    assert contents(target) == expected
    assert contents(source) == {}


def test_the_results_file_comes_last(tmp_path, monkeypatch):
    """What stands at the path is a run only once everything is there."""
    source = fill(tmp_path / "new", "results.json", "adapter/a", "zzz")
    moved = []
    original = type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, to: moved.append(self.name) or original(self, to))
    move_results(source, tmp_path / "run", overwrite=False)
    assert moved[-1] == "results.json"
    assert sorted(moved) == ["adapter", "results.json", "zzz"]


def test_a_run_that_comes_second_to_a_path_is_kept_beside_the_first(tmp_path):
    first = fill_run(tmp_path / "run", ("adapter", "head"))
    source = fill(tmp_path / "new", "results.json", "adapter/a")
    before, moved = contents(first), contents(source)
    with pytest.raises(OutputExistsError, match=r"run was filled while .* this run is in (.*)") as caught:
        move_results(source, first, overwrite=False)
    assert contents(first) == before
    assert contents(Path(str(caught.value).rpartition(" ")[2])) == moved


def test_a_folder_that_the_user_put_beside_a_runs_own_is_never_replaced(tmp_path):
    """Training that would end there is refused before it begins."""
    fill(fill_run(tmp_path, ("adapter", "lora-qv")), "model/config.json")
    with pytest.raises(OutputExistsError, match="holds model, which no finished run wrote"):
        require_free(tmp_path, overwrite=True)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden"])
def test_a_folder_with_anything_in_it_is_not_free_unless_it_may_be_overwritten(tmp_path, name):
    fill(tmp_path, name)
    with pytest.raises(OutputExistsError, match=r"is not empty.*--overwrite"):
        require_free(tmp_path, overwrite=False)
    require_free(tmp_path, overwrite=True)


def test_a_run_is_not_overwritten_unasked(tmp_path):
    fill_run(tmp_path, ("adapter", "head"))
    with pytest.raises(OutputExistsError, match=r"already holds a run.*--overwrite"):
        require_free(tmp_path, overwrite=False)
    require_free(tmp_path, overwrite=True)


def test_an_empty_or_absent_folder_is_free(tmp_path):
    require_free(tmp_path, overwrite=False)
    require_free(tmp_path / "a" / "b", overwrite=False)


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
def test_a_file_is_never_taken_for_a_folder(tmp_path, below):
    fill(tmp_path, "file")
    with pytest.raises(OutputExistsError, match="file is a file"):
        require_free(tmp_path / "file" / below, overwrite=True)


def test_a_new_folder_never_takes_the_place_of_the_one_the_user_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputExistsError, match="is the folder that you are in"), new_folder(Path()):
        pytest.fail("nothing is written")
    assert contents(tmp_path) == {}


def test_folders_that_stay_empty_go_again_and_others_stay(tmp_path):
    with made_folder(tmp_path / "a" / "b" / "c"):
        assert (tmp_path / "a" / "b" / "c").is_dir()
    assert contents(tmp_path) == {}
    (tmp_path / "mine").mkdir()
    with made_folder(tmp_path / "mine"):
        pass
    assert contents(tmp_path) == {"mine": None}
    with made_folder(tmp_path / "a" / "b" / "c"):
        fill(tmp_path, "a/kept")
    assert set(contents(tmp_path)) == {"mine", "a", "a/kept"}


def test_what_is_left_in_a_partial_folder_goes_and_so_does_one_whose_process_was_killed(tmp_path):
    target = tmp_path / "deep" / "run"
    with partial_folder(target) as partial:
        fill(partial, "adapter/a")
    assert contents(tmp_path) == {}
    other = fill(tmp_path, "deep/.run.partial-x/adapter/a", "deep/.other.partial-x/a", "deep/run.partial-x")
    clear_partials(target)
    assert {name for name in contents(other) if "run" in name or "other" in name} == {
        "deep/.other.partial-x",
        "deep/.other.partial-x/a",
        "deep/run.partial-x",
    }

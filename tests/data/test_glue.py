"""Laws of GLUE's files: every layout gives the same rows, and what is missing or broken is named."""

import huggingface_hub
import pytest

from tests.glue_files import (
    ARCHIVE_FOLDERS,
    PAIRED,
    TASKS,
    made_rows,
    write_archive,
    write_hub,
    write_msr,
)
from veneer.data import glue
from veneer.data.glue import read_splits
from veneer.data.metrics import METRICS
from veneer.data.sources import DataRequest, load_rows, load_splits
from veneer.errors import DataError, DownloadError, UnknownNameError


def parts_of(task):
    return {"train": made_rows(task, 40, seed=0), "dev": made_rows(task, 15, seed=1)}


@pytest.fixture(autouse=True)
def _no_folder_and_no_hub(monkeypatch):
    def refuse(*given, **named):
        raise ConnectionError("no network here\nand a second line")

    monkeypatch.delenv(glue.VARIABLE, raising=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


def read(task, folder=None):
    return read_splits(glue.TASKS[f"glue/{task}"], None if folder is None else str(folder))


def rows_of(examples):
    """Every row as (first text, second text or none, answer)."""
    pairs = examples.pairs or (None,) * len(examples)
    return list(zip(examples.texts, pairs, examples.answers, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_the_archive_the_hub_layout_and_the_hub_itself_give_the_same_rows(task, tmp_path, monkeypatch):
    archive = read(task, write_archive(tmp_path / "archive", task, parts_of(task)))
    stored = write_hub(tmp_path / "hub", task, parts_of(task))
    assert read(task, stored) == archive
    asked = []

    def download(repo_id, filename, *, repo_type):
        asked.append((repo_id, repo_type, filename))
        return str(stored / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert read(task) == archive
    assert asked == [
        ("nyu-mll/glue", "dataset", f"{task}/{side}-00000-of-00001.parquet") for side in ("train", "validation")
    ]


@pytest.mark.parametrize("task", TASKS)
def test_every_row_of_the_files_is_there_once_and_dev_is_the_test(task, tmp_path):
    parts = parts_of(task)
    splits = read(task, write_archive(tmp_path, task, parts))
    names = glue.TASKS[f"glue/{task}"].labels

    def expected(rows):
        return sorted(
            (first, second if task in PAIRED else None, names[answer] if names else answer)
            for first, second, answer in rows
        )

    assert sorted(rows_of(splits.test)) == expected(parts["dev"])
    assert sorted(rows_of(splits.train) + rows_of(splits.validation)) == expected(parts["train"])
    assert len(splits.validation) == 4
    assert sorted(splits.labels) == sorted(names)


def test_quotation_marks_are_characters(tmp_path):
    rows = [(f'"{n} open', f'say "{n}""', n % 2) for n in range(12)]
    splits = read("rte", write_archive(tmp_path, "rte", {"train": rows, "dev": [('"', '" "', 1)]}))
    assert rows_of(splits.test) == [('"', '" "', "not_entailment")]
    assert len(splits.train) + len(splits.validation) == 12


def test_the_same_rows_validate_every_run(tmp_path):
    folder = str(write_archive(tmp_path, "sst2", parts_of("sst2")))
    requests = [DataRequest(data="glue/sst2", glue=folder, seed=seed) for seed in (0, 3)]
    first, second = map(load_splits, requests)
    assert first == second
    assert load_rows(requests[0], split="validation") == first.validation


def test_microsofts_own_files_of_mrpc_are_read_and_their_test_is_told_apart(tmp_path):
    parts = parts_of("mrpc")
    own = read("mrpc", write_msr(tmp_path / "msr", parts))
    archive = read("mrpc", write_archive(tmp_path / "archive", "mrpc", parts))
    assert (own.train, own.validation, own.test) == (archive.train, archive.validation, archive.test)
    assert any("not GLUE's dev rows" in note for note in own.notes)
    assert not any("not GLUE's dev rows" in note for note in archive.notes)


def test_a_number_of_rows_that_is_not_glues_is_told(tmp_path):
    splits = read("rte", write_archive(tmp_path, "rte", parts_of("rte")))
    assert "rows: 40 and 15 of train and dev, but GLUE has 2,490 and 277" in splits.notes


def test_the_environment_variable_names_the_folder_and_the_option_wins(tmp_path, monkeypatch):
    first = write_archive(tmp_path / "first", "cola", parts_of("cola"))
    second = write_archive(tmp_path / "second", "cola", {**parts_of("cola"), "dev": made_rows("cola", 9, seed=5)})
    monkeypatch.setenv(glue.VARIABLE, str(first))
    assert len(read("cola").test) == 15
    assert len(read("cola", second).test) == 9


def test_without_a_folder_and_without_the_hub_all_three_ways_are_named():
    with pytest.raises(DownloadError) as caught:
        read("rte")
    text = str(caught.value)
    for part in ("glue/rte", "--glue FOLDER", "FOLDER/RTE", "VENEER_GLUE", "nyu-mll/glue: no network here"):
        assert part in text
    assert "second line" not in text


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_without_the_task_names_what_was_looked_for(task, tmp_path):
    (tmp_path / ARCHIVE_FOLDERS[task]).mkdir()
    (tmp_path / ARCHIVE_FOLDERS[task] / "train.tsv").write_text("half of it")
    with pytest.raises(DataError) as caught:
        read(task, tmp_path)
    for part in (f"glue/{task} is not in {tmp_path}", "--glue", f"{ARCHIVE_FOLDERS[task]}/dev.tsv", "parquet"):
        assert part in str(caught.value)
    assert ("msr_paraphrase_train.txt" in str(caught.value)) == (task == "mrpc")


def broken(tmp_path, content):
    """A folder whose RTE has these bytes for train."""
    folder = write_archive(tmp_path, "rte", parts_of("rte"))
    (folder / "RTE" / "train.tsv").write_bytes(content)
    return folder


HEADER = b"index\tsentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (HEADER + b"0\ta\tb\tentailment\n1\ta\tb\n", ["line 3: 3 fields, not 4", "a tab between fields"]),
        (b"index\tsentence1\tlabel\n0\ta\tentailment\n", ["lacks the columns 'sentence2'", "index, sentence1, label"]),
        (HEADER, ["has no rows"]),
        (b"", ["lacks the columns"]),
        (HEADER + b"0\t \tb\tentailment\n", ["column 'sentence1'", "missing or empty", "row 1"]),
        (HEADER + b"0\ta\tb\tperhaps\n", ["unknown labels 'perhaps'", "entailment, not_entailment"]),
        (HEADER + b"0\tcaf\xe9\tb\tentailment\n", ["UTF-8"]),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, content, parts):
    with pytest.raises(DataError) as caught:
        read("rte", broken(tmp_path, content))
    for part in ("train.tsv", *parts):
        assert part in str(caught.value)


def test_a_score_that_is_no_number_is_named_by_its_row(tmp_path):
    folder = write_archive(tmp_path, "stsb", parts_of("stsb"))
    file = folder / "STS-B" / "train.tsv"
    lines = file.read_text().split("\n")
    lines[3] = lines[3].rpartition("\t")[0] + "\thigh"
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match="column 'score': not a number, such as 'high': 1 in all, row 3"):
        read("stsb", folder)


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (DataRequest(data="glue/rte", text="sentence1", label="label"), "leave out --text, --label"),
        (DataRequest(data="glue/rte", task="regression"), "leave out --task"),
        (DataRequest(data="trec", glue="folder"), "--glue goes with glue/sst2"),
        (DataRequest(data="mine.csv", text="a", label="b", glue="folder"), "--glue goes with glue/sst2"),
    ],
)
def test_options_that_do_not_go_with_the_data_are_named(request_, part):
    for load in (load_splits, lambda request: load_rows(request, split="test")):
        with pytest.raises(DataError, match=part):
            load(request_)


def test_an_unknown_task_is_no_hub_id(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="Did you mean 'glue/rte'"):
        load_splits(DataRequest(data="glue/rtee"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue" / "mine").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no train file"):
        load_splits(DataRequest(data="glue/mine", text="a", label="b"))


def test_every_task_is_judged_by_a_metric_that_there_is():
    metrics = {name: task.metric for name, task in glue.TASKS.items()}
    assert set(metrics.values()) <= set(METRICS)
    # Hu et al. 2021, Table 2: "Matthew's correlation for CoLA, Pearson correlation for STS-B, and accuracy for other".
    assert {name: metric for name, metric in metrics.items() if metric != "accuracy"} == {
        "glue/cola": "matthews",
        "glue/stsb": "pearson",
    }

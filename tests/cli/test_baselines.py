"""What LoRA is compared with, by the command: trained, saved, read strictly, shown; refused where it has no place."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.tiny import BASELINES, COLUMNS, METHODS, SETTINGS, make_rows, veneer, worked
from veneer.formats.tensors import read_tensors, write_tensors
from veneer.methods.table import METHODS as ALL_METHODS
from veneer.methods.table import Method

FILE = "method.safetensors"
TEXT, _, _ = make_rows(1, seed=5)[0]
each = pytest.mark.parametrize("method", BASELINES)
HEAD = 3 * (16 + 1)
BLOCK = 4 * (16 * 16 + 16) + 2 * (16 * 24) + 24 + 16 + 2 * 2 * 16
OWN = {
    "top2": BLOCK,
    "houlsby": 2 * 2 * (2 * 16 * 3 + 3 + 16),
    "pfeiffer": 2 * (2 * 16 * 16 + 16 + 16),
    "lin": 2 * (2 * 16 * 16 + 16 + 16 + 2 * 16),
    "adapterdrop": 2 * 16 * 24 + 24 + 16,
    "prefix-embed": 5 * 16,
    "prefix-layer": 2 * 16 * 16,
    "lora-prefix-embed": 12 * 16,
    "lora-prefix-layer": 2 * 8 * 16,
}
"""What each trains of its own, by the shapes of the tiny model: d = 16, two blocks, 24 within."""


def record_of(run):
    [record] = json.loads((run / "results.json").read_text())["records"]
    return record


def altered(run, folder, change):
    """A copy of a run whose tensors went through `change`, with a digest that is right."""
    copy = shutil.copytree(run, folder)
    tensors, metadata = read_tensors(copy / "adapter" / FILE)
    change(tensors)
    write_tensors(copy / "adapter" / FILE, tensors, {k: v for k, v in metadata.items() if k == "veneer_base"})
    return copy


def changed_card(run, folder, **changes):
    copy = shutil.copytree(run, folder)
    card = copy / "adapter" / "veneer.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))
    return copy


def refused(*arguments):
    ended = veneer(*arguments)
    assert ended.code == 2, ended.out
    assert "Traceback" not in ended.err
    return ended.err


def test_every_method_is_tried_and_named_by_the_help():
    assert set(ALL_METHODS) == {*METHODS, *BASELINES}
    text = "".join(worked("train", "--help").out.split())
    assert all(name in text.replace("│", "") for name in ALL_METHODS)


@each
def test_parameters_add_up_with_the_methods_own(trained, method):
    record = record_of(trained(method))
    own = record["trainable_parameters"] - record["lora_parameters"] - record["head_parameters"]
    assert record["head_parameters"] == HEAD
    assert own == OWN.get(method, own) > 0
    assert record["lora_parameters"] == (0 if "lora" not in method else 2 * 2 * 2 * 16 * record["config"]["r"])
    assert record["config"].get("sizes", {}) == {
        name: value for name, value in vars(ALL_METHODS[method].part).items() if type(value) is int
    } | {name: int(number) for name, _, number in (text.partition("=") for text in BASELINES[method]) if number}


@each
def test_the_folder_is_one_file_and_the_card_that_attaches_it(trained, method):
    folder = trained(method) / "adapter"
    assert {path.name for path in folder.iterdir()} == {FILE, "veneer.json"}
    tensors = load_file(folder / FILE)
    assert sum(tensor.numel() for tensor in tensors.values()) == record_of(trained(method))["trainable_parameters"]
    card = json.loads((folder / "veneer.json").read_text())
    assert (card["method"], card["settings"]["method"]) == (method, method)


@each
def test_predict_answers_and_inspect_shows_a_summary(trained, method):
    run = trained(method)
    answer = json.loads(worked("predict", run, TEXT, "--json").out)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    shown = json.loads(worked("inspect", run, "--json").out)
    assert shown["trained_parameters"] == record_of(run)["trainable_parameters"]
    assert shown["task_card"]["settings"]["sizes"] == record_of(run)["config"].get("sizes", {})
    text = worked("inspect", run / "adapter").out
    assert ALL_METHODS[method].about in text
    assert all(name in text for name in shown["trained"])


@each
def test_inspect_counts_beforehand_what_the_run_trains(trained, tiny, method):
    """With two classes where the run had three: a row and a bias less in the head."""
    options = ("--model", tiny, "--method", method, *BASELINES[method])
    shown = json.loads(worked("inspect", *options, "--json").out)
    record = record_of(trained(method))
    assert shown["lora_parameters"] == record["lora_parameters"]
    assert shown["trainable_parameters"] == record["trainable_parameters"] - 17
    assert f"{shown['trainable_parameters']:,} of {shown['total_parameters']:,}" in worked("inspect", *options).out


@each
def test_what_only_lora_can_do_is_refused_with_what_can_be_done(trained, tiny, tmp_path, method):
    run = trained(method)
    assert "veneer evaluate" in refused("merge", run, tmp_path / "merged")
    assert "veneer evaluate" in refused("convert", run / "adapter", tmp_path / "converted")
    assert "leave it out" in refused("inspect", run, "--model", tiny)
    assert not any(tmp_path.iterdir())


def test_every_tensor_must_find_its_place_and_every_place_its_tensor(trained, tmp_path):
    def change(tensors):
        tensors["no.such.weight"] = torch.zeros(1)
        tensors["classifier.bias"] = torch.zeros(4)
        del tensors["classifier.weight"]

    error = refused("predict", altered(trained("houlsby"), tmp_path / "copy", change), TEXT)
    assert "classifier.weight is missing" in error
    assert "no.such.weight is not trained" in error
    assert "classifier.bias has shape (4,)" in error


def test_broken_files_are_refused(trained, tmp_path):
    run = trained("lin")
    nan = altered(run, tmp_path / "nan", lambda tensors: tensors["classifier.bias"].fill_(torch.nan))
    assert "classifier.bias holds NaN" in refused("predict", nan, TEXT)
    without = shutil.copytree(run, tmp_path / "without")
    file = without / "adapter" / FILE
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "damaged or edited" in refused("predict", without, TEXT)
    file.unlink()
    assert f"holds no {FILE}" in refused("predict", without, TEXT)
    assert f"holds no {FILE}" in refused("inspect", without)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "lin", "sizes": {"width": 3}}, "size of the method lin 'width'"),
        ({"method": "hypernet"}, "unknown method 'hypernet'"),
        ({"method": "lin", "colour": 3}, "colour"),
        ({"method": "pfeiffer"}, "its settings are of pfeiffer"),
        ({"method": "lin", "r": 0}, "r is 0"),
        ([], "broken"),
    ],
)
def test_a_card_with_other_settings_is_broken(trained, tmp_path, settings, reason):
    error = refused("predict", changed_card(trained("lin"), tmp_path / "copy", settings=settings), TEXT)
    assert "veneer.json is broken" in error
    assert reason in error


def test_other_weights_under_it_are_refused_unless_asked_for(trained, tiny, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "other")
    weights = {name: tensor + 0.01 for name, tensor in load_file(tiny / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    for method in ("pfeiffer", "bitfit"):
        options = ("predict", trained(method), TEXT, "--model", other)
        error = refused(*options)
        assert "other weights" in error
        assert "--any-base" in error
        worked(*options, "--any-base")


def test_texts_are_cut_to_leave_room_for_the_trained_tokens(tables, tiny, tmp_path):
    files = ("--data", tables / "train.csv", *COLUMNS, *SETTINGS, "--max-tokens", 40, "--epochs", 1)
    run = tmp_path / "run"
    ended = worked("train", "--model", tiny, *files, "--method", "prefix-layer", "--out", run)
    assert "cut to 24 tokens, not 40" in ended.err
    assert "beside 16 trained ones" in ended.err
    assert json.loads((run / "adapter" / "veneer.json").read_text())["max_tokens"] == 24
    worked("predict", run, "soup " * 60)
    for tokens, reason in ((37, "37 trained tokens leave no room"), (40, "leave no room")):
        sizes = ("--size", f"prefix_tokens={tokens}", "--size", "infix_tokens=0")
        out = ("--out", tmp_path / "none")
        assert reason in refused("train", "--model", tiny, *files, "--method", "prefix-layer", *sizes, *out)


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        (("--method", "houlsby", "--size", "r"), ["--size is 'r'", "such as r=16"]),
        (("--method", "houlsby", "--size", "r=x"), ["--size is 'r=x'"]),
        (("--method", "houlsby", "--size", "r=3", "--size", "r=4"), ["names one size twice"]),
        (("--method", "houlsby", "--size", "r=0", "--size", "q=1"), ["r is 0", "'q'", "Known: r, dropped_blocks"]),
        (("--method", "lora-qv", "--weights", "query,x"), ["weights is ('query', 'x')", "query, key, value, output"]),
        (("--weights", "query", "--target", "value"), ["targets and weights are both given"]),
        (("--method", "bitfit", "--weights", "query"), ["weights are given", "'bitfit' adapts no layers"]),
        (("--method", "adapterdrop"), ["dropped_blocks is 2", "has 2 blocks: 1 is the most"]),
    ],
)
def test_settings_that_cannot_be_used_are_named(tables, tiny, tmp_path, options, reasons):
    files = ("--model", tiny, "--data", tables / "train.csv", *COLUMNS, *SETTINGS, "--out", tmp_path / "none")
    error = refused("train", *files, *options)
    assert all(reason in error for reason in reasons)
    assert not (tmp_path / "none").exists()


def test_compare_puts_them_beside_lora_and_asks_first_whether_they_fit(tables, tiny, tmp_path):
    files = ("--model", tiny, "--data", tables / "train.csv", *COLUMNS, *SETTINGS, "--out", tmp_path / "out")
    assert "has 2 blocks: 1 is the most" in refused("compare", *files, "--methods", "head,adapterdrop")
    assert not (tmp_path / "out").exists()
    ended = worked("compare", *files, "--methods", "pfeiffer,lora-qv")
    names = " ".join(line[:16].strip() for line in ended.out.splitlines())
    assert "Pfeiffer adapters r=16" in names
    assert "LoRA r=8, query + value" in names
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{HEAD} head + {OWN['pfeiffer']:,} of its own" in page


def test_a_method_without_a_part_has_none():
    assert all(isinstance(method, Method) for method in ALL_METHODS.values())
    assert {name for name, method in ALL_METHODS.items() if method.part is None} == set(METHODS)

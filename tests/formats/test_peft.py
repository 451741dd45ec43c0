"""PEFT folders: what goes out comes back, and whatever does not fit is refused whole, with every reason."""

import json

import pytest
import safetensors.torch
import torch

import veneer
from veneer import LoraConfig
from veneer.errors import AdapterFormatError, AdapterMismatchError, AdapterStateError
from veneer.formats.peft import CONFIG_FILE, KEY_PREFIX, TENSOR_FILE, read_peft
from veneer.lora.inject import adapted_layers

SETTINGS = {"r": 3, "alpha": 5, "scaling": "rslora", "targets": ["query", "value"]}


@pytest.fixture
def folder(model, tmp_path):
    """An adapter folder of a trained-looking model, and nothing else."""
    veneer.adapt(model, LoraConfig(**SETTINGS), ["classifier"])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    veneer.save(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def base(seed=0):
    from tests.conftest import Classifier

    torch.manual_seed(seed)
    return Classifier().eval()


def change_config(folder, **changes):
    settings = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**settings, **changes}))


def change_tensors(folder, change):
    tensors = dict(safetensors.torch.load_file(folder / TENSOR_FILE))
    change(tensors)
    safetensors.torch.save_file(tensors, folder / TENSOR_FILE)


def test_a_round_trip_gives_the_same_outputs_and_the_same_bytes(model, ids, folder, tmp_path):
    expected = model(ids)
    twin = base()
    veneer.load(twin, folder)
    assert torch.equal(twin(ids), expected)
    veneer.save(twin, tmp_path / "again")
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_FILE, TENSOR_FILE]
    for name in (CONFIG_FILE, TENSOR_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("training", [False, True])
def test_loading_takes_effect_at_once_in_either_mode(model, ids, folder, training):
    """loralib's best-known bug: weights loaded right after `eval()` are silently undone."""
    expected = model(ids)
    twin = base()
    twin.drop.p = 0.0
    twin.train(training)
    veneer.load(twin, folder)
    assert twin.training is training
    assert torch.equal(twin(ids), expected)
    twin.eval()
    assert torch.equal(twin(ids), expected)
    twin.train()
    assert torch.equal(twin(ids), expected)


def test_a_loaded_adapter_is_frozen_unless_asked_for(folder):
    frozen, trainable = base(), base()
    veneer.load(frozen, folder)
    assert not any(p.requires_grad for p in frozen.parameters())
    veneer.load(trainable, folder, trainable=True)
    assert {n.split(".")[-2] for n, p in trainable.named_parameters() if p.requires_grad} == {"update", "classifier"}


def test_removing_a_loaded_adapter_gives_the_base_back(ids, folder):
    twin = base()
    expected = twin(ids)
    veneer.load(twin, folder)
    assert not torch.equal(twin(ids), expected)
    veneer.remove(twin)
    assert torch.equal(twin(ids), expected)


def assert_refused(folder, error, parts, *, model=None):
    twin = base() if model is None else model
    before = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    with pytest.raises(error) as caught:
        veneer.load(twin, folder)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert not adapted_layers(twin)
    assert all(torch.equal(before[name], tensor) for name, tensor in twin.state_dict().items())
    assert all(p.requires_grad for p in twin.parameters())


A_KEY = f"{KEY_PREFIX}blocks.0.query.lora_A.weight"
B_KEY = f"{KEY_PREFIX}blocks.1.value.lora_B.weight"
HEAD_KEY = f"{KEY_PREFIX}classifier.weight"

TENSOR_LIES = {
    "missing A": (lambda t: t.pop(A_KEY), AdapterFormatError, ["blocks.0.query: lora_A is missing"]),
    "missing layer": (
        lambda t: [t.pop(k) for k in list(t) if "blocks.0.query" in k],
        AdapterMismatchError,
        ["blocks.0.query: selected by the adapter's targets, but it holds no A and B"],
    ),
    "extra layer": (
        lambda t: t.update({k.replace("blocks.0", "blocks.7"): v.clone() for k, v in t.items()}),
        AdapterMismatchError,
        ["blocks.7.query: the adapter holds A and B", "blocks.7.value"],
    ),
    "wrong shape": (
        lambda t: t.update({A_KEY: torch.zeros(3, 8)}),
        AdapterMismatchError,
        ["blocks.0.query.A has shape (3, 8), but the model needs (3, 7)"],
    ),
    "wrong rank": (
        lambda t: t.update({B_KEY: torch.zeros(7, 2)}),
        AdapterMismatchError,
        ["blocks.1.value.B has shape (7, 2)"],
    ),
    "NaN": (
        lambda t: t[A_KEY].fill_(torch.nan),
        AdapterMismatchError,
        ["blocks.0.query.A holds NaN or infinity"],
    ),
    "integers": (lambda t: t.update({A_KEY: t[A_KEY].long()}), AdapterFormatError, [A_KEY, "torch.int64"]),
    "DoRA": (
        lambda t: t.update({f"{KEY_PREFIX}blocks.0.query.lora_magnitude_vector": torch.ones(5)}),
        AdapterFormatError,
        ["lora_magnitude_vector", "not supported"],
    ),
    "missing head bias": (
        lambda t: t.pop(f"{KEY_PREFIX}classifier.bias"),
        AdapterMismatchError,
        ["classifier.bias: the model needs it"],
    ),
    "head of other width": (
        lambda t: t.update({HEAD_KEY: torch.zeros(4, 7)}),
        AdapterMismatchError,
        ["classifier.weight has shape (4, 7), but the model needs (3, 7)"],
    ),
    "stray tensor": (
        lambda t: t.update({f"{KEY_PREFIX}embed.weight": torch.zeros(11, 7)}),
        AdapterFormatError,
        ["embed.weight belongs to no module in modules_to_save"],
    ),
    "head of integers": (
        lambda t: t.update({HEAD_KEY: t[HEAD_KEY].long()}),
        AdapterMismatchError,
        ["classifier.weight has dtype torch.int64, but the model needs torch.float32"],
    ),
    "more than float32 holds": (
        lambda t: t.update({A_KEY: torch.full((3, 7), 1e300, dtype=torch.float64)}),
        AdapterMismatchError,
        ["blocks.0.query.A holds", "what torch.float32 cannot hold"],
    ),
    "one name twice": (
        lambda t: t.update({A_KEY.removeprefix(KEY_PREFIX): t[A_KEY].clone()}),
        AdapterFormatError,
        ["a second time under another prefix"],
    ),
    "head gone": (
        lambda t: [t.pop(k) for k in list(t) if "classifier" in k],
        AdapterFormatError,
        ["modules_to_save names 'classifier', but no tensor of it is there"],
    ),
    "no tensors": (lambda t: t.clear(), AdapterFormatError, ["holds no tensors"]),
}


@pytest.mark.parametrize("lie", TENSOR_LIES)
def test_tensors_that_do_not_all_fit_are_refused_and_nothing_changes(folder, lie):
    change, error, parts = TENSOR_LIES[lie]
    change_tensors(folder, change)
    assert_refused(folder, error, parts)


CONFIG_LIES = {
    "other method": ({"peft_type": "LOHA"}, ["peft_type is 'LOHA'"]),
    "DoRA": ({"use_dora": True}, ["use_dora=True is not supported"]),
    "rank pattern": ({"rank_pattern": {"query": 4}}, ["rank_pattern"]),
    "bias": ({"bias": "all"}, ["bias='all' is not supported"]),
    "PiSSA": ({"init_lora_weights": "pissa"}, ["init_lora_weights='pissa'", "changed weights"]),
    "unknown key": ({"use_magic": 3}, ["use_magic=3 is unknown"]),
    "rank 0": ({"r": 0}, ["r is 0"]),
    "alpha null": ({"lora_alpha": None}, ["alpha is None"]),
    "targets of numbers": ({"target_modules": [1]}, ["target_modules"]),
    "rslora as text": ({"use_rslora": "false"}, ["use_rslora='false' must be true or false"]),
    "alpha beyond floats": ({"lora_alpha": 10**400}, ["alpha is 1000"]),
    "two at once": ({"use_dora": True, "lora_bias": True}, ["use_dora", "lora_bias"]),
}


@pytest.mark.parametrize("lie", CONFIG_LIES)
def test_a_setting_that_would_change_the_maths_is_refused_by_name(folder, lie):
    changes, parts = CONFIG_LIES[lie]
    change_config(folder, **changes)
    assert_refused(folder, AdapterFormatError, parts)


def test_unknown_settings_that_are_switched_off_are_let_through(folder):
    change_config(folder, some_later_feature=None, another=False, third={})
    veneer.load(base(), folder)


def test_a_file_cut_anywhere_is_refused(folder):
    path = folder / TENSOR_FILE
    data = path.read_bytes()
    for end in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        assert_refused(folder, AdapterFormatError, ["truncated or not a safetensors file"])


def test_folders_that_are_no_adapters_are_named_for_what_they_are(folder, tmp_path):
    assert_refused(tmp_path / "nowhere", AdapterFormatError, ["no adapter folder at"])
    assert_refused(tmp_path, AdapterFormatError, ["holds no adapter_config.json"])
    (folder / CONFIG_FILE).write_text("{")
    assert_refused(folder, AdapterFormatError, ["not valid JSON"])
    (folder / CONFIG_FILE).write_text('{"architecture": "lora"}')
    assert_refused(folder, AdapterFormatError, ["no 'peft_type'"])


def test_a_setting_that_stands_twice_is_refused(folder):
    text = (folder / CONFIG_FILE).read_text()
    (folder / CONFIG_FILE).write_text(text.replace('"r": 3', '"r": 4, "r": 3'))
    assert_refused(folder, AdapterFormatError, ["a key stands twice"])


def test_a_head_is_missed_also_where_another_module_was_trained_whole(model, tmp_path):
    veneer.adapt(model, LoraConfig(r=3), ["classifier", "blocks.0.norm"])
    veneer.save(model, tmp_path)
    change_tensors(tmp_path, lambda t: [t.pop(k) for k in list(t) if "classifier" in k])
    assert_refused(tmp_path, AdapterFormatError, ["modules_to_save names 'classifier'"])


def test_a_model_without_weights_takes_no_adapter(folder):
    with pytest.raises(AdapterStateError, match="meta device"):
        veneer.load(base().to("meta"), folder)


def test_a_pickle_is_not_read(folder):
    (folder / TENSOR_FILE).rename(folder / "adapter_model.bin")
    assert_refused(folder, AdapterFormatError, ["adapter_model.bin is a pickle"])


def test_an_adapter_is_not_loaded_onto_an_adapted_model(folder):
    twin = base()
    veneer.load(twin, folder)
    with pytest.raises(AdapterStateError, match="adapted already"):
        veneer.load(twin, folder)


def test_a_head_alone_travels_too(model, ids, tmp_path):
    veneer.adapt(model, LoraConfig(targets=[]), ["classifier"])
    with torch.no_grad():
        model.classifier.weight.add_(1)
    veneer.save(model, tmp_path / "head")
    twin = base()
    veneer.load(twin, tmp_path / "head")
    assert torch.equal(twin(ids), model(ids))
    assert read_peft(tmp_path / "head").updates == {}


def test_wrapper_prefixes_are_not_part_of_the_names(model, ids, folder):
    change_tensors(
        folder,
        lambda t: [t.update({k.replace("blocks.", "_orig_mod.blocks."): t.pop(k)}) for k in list(t) if "blocks" in k],
    )
    twin = base()
    veneer.load(twin, folder)
    assert torch.equal(twin(ids), model(ids))


def test_a_read_adapter_does_not_change_with_its_file(folder):
    adapter = read_peft(folder)
    before = adapter.updates["blocks.0.query"].A.clone()
    (folder / TENSOR_FILE).write_bytes(b"\0" * (folder / TENSOR_FILE).stat().st_size)
    assert torch.equal(adapter.updates["blocks.0.query"].A, before)

"""PEFT folders: what goes out comes back, and whatever does not fit is refused whole, with every reason."""

import copy
import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

import veneer
from veneer import LoraConfig
from veneer.errors import AdapterFormatError, AdapterMismatchError, AdapterStateError, ConfigError, OutputExistsError
from veneer.formats.peft import CONFIG_FILE, TENSOR_FILE, read_peft
from veneer.formats.peft_keys import KEY_PREFIX
from veneer.formats.peft_settings import INERT, NEUTRAL, TAKEN, pattern_problems
from veneer.formats.peft_writing import write_peft
from veneer.lora.layers import adapted_slots
from veneer.lora.state import AdapterState, LowRank, TokenRows, config_for, fitted

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft
    from peft.tuners.lora import layer as lora

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
    assert not adapted_slots(twin)
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
        AdapterFormatError,
        ["blocks.1.value: A has shape (3, 5) and B has shape (7, 2)", "r = 3"],
    ),
    "NaN": (
        lambda t: t[A_KEY][1].fill_(torch.nan),
        AdapterFormatError,
        [f"{A_KEY} holds NaN or infinity"],
    ),
    "infinity in the head": (
        lambda t: t[HEAD_KEY][0].fill_(-torch.inf),
        AdapterFormatError,
        [f"{HEAD_KEY} holds NaN or infinity"],
    ),
    "integers": (lambda t: t.update({A_KEY: t[A_KEY].long()}), AdapterFormatError, [A_KEY, "torch.int64"]),
    "DoRA": (
        lambda t: t.update({f"{KEY_PREFIX}blocks.0.query.lora_magnitude_vector": torch.ones(5)}),
        AdapterFormatError,
        ["blocks.0.query: use_dora=False, but lora_magnitude_vector is there"],
    ),
    "bias of B": (
        lambda t: t.update({f"{KEY_PREFIX}blocks.0.query.lora_B.bias": torch.ones(5)}),
        AdapterFormatError,
        ["blocks.0.query.lora_B.bias is of a kind that is not supported"],
    ),
    "8 bits": (
        lambda t: t.update({A_KEY: t[A_KEY].to(torch.float8_e4m3fn)}),
        AdapterFormatError,
        [A_KEY, "torch.float8_e4m3fn", "one of torch.float32"],
    ),
    "an embedding's half": (
        lambda t: t.update({f"{KEY_PREFIX}blocks.0.query.lora_embedding_A": torch.ones(3, 5)}),
        AdapterFormatError,
        ["blocks.0.query: lora_embedding_B is missing", "lora_B is there beside lora_embedding_A"],
    ),
    "rows without ids": (
        lambda t: t.update({f"{KEY_PREFIX}embed.token_adapter.trainable_tokens_delta": torch.ones(2, 7)}),
        AdapterFormatError,
        ["embed: trainable_token_indices gives None for it"],
    ),
    "a bias without a setting": (
        lambda t: t.update({f"{KEY_PREFIX}blocks.0.norm.bias": torch.ones(7)}),
        AdapterFormatError,
        ["blocks.0.norm.bias belongs to no module in modules_to_save", "bias='none'"],
    ),
    "nested layers": (
        lambda t: t.update({k.replace("query.", "query.base_layer."): v.clone() for k, v in t.items() if "query" in k}),
        AdapterFormatError,
        ["blocks.0.query: the file holds A and B of 2 of its parameters, target_parameters names none"],
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
    "DoRA": ({"use_dora": True}, ["use_dora=True, but lora_magnitude_vector is missing", "blocks.1.value"]),
    "DoRA as text": ({"use_dora": "no"}, ["use_dora='no' must be true or false"]),
    "rank pattern": ({"rank_pattern": {"query": 4}}, ["blocks.0.query: A has shape (3, 7)", "r = 4"]),
    "rank pattern of text": ({"rank_pattern": {"query": "4"}}, ["rank_pattern['query']: rank is '4'"]),
    "rank pattern as list": ({"rank_pattern": ["query"]}, ["rank_pattern=['query'] must be an object"]),
    "no regular expression": ({"alpha_pattern": {"qu(": 4}}, ["alpha_pattern['qu(']", "regular expression"]),
    "bias": ({"bias": "some"}, ["bias is 'some'", "lora_only"]),
    "no bias": ({"bias": False}, ["bias is False"]),
    "no dropout": ({"lora_dropout": ""}, ["dropout is ''"]),
    "bias of B": ({"lora_bias": True}, ["lora_bias=True is not supported"]),
    "token ids": ({"trainable_token_indices": {"embed": [1]}}, ["names 'embed', but no rows of it"]),
    "token id list": ({"trainable_token_indices": [1]}, ["trainable_token_indices is set, but no rows are there"]),
    "replication": ({"layer_replication": [[0, 1]]}, ["layer_replication=[[0, 1]] is not supported"]),
    "base model": ({"base_model_name_or_path": 3}, ["base_model_name_or_path=3 must be a text"]),
    "PiSSA": ({"init_lora_weights": "pissa"}, ["init_lora_weights='pissa'", "changed weights"]),
    "unknown key": ({"use_magic": 3}, ["use_magic=3 is unknown"]),
    "rank 0": ({"r": 0}, ["r is 0"]),
    "alpha null": ({"lora_alpha": None}, ["alpha is None"]),
    "targets of numbers": ({"target_modules": [1]}, ["target_modules"]),
    "rslora as text": ({"use_rslora": "false"}, ["use_rslora='false' must be true or false"]),
    "alpha beyond floats": ({"lora_alpha": 10**400}, ["alpha is 1000"]),
    "two at once": ({"use_magic": True, "lora_bias": True}, ["use_magic", "lora_bias"]),
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


def test_a_model_without_weights_takes_an_adapter_with_values(folder):
    model = base().to("meta")
    veneer.load(model, folder)
    assert not any(p.is_meta for name, p in model.named_parameters() if ".update." in name)


def test_a_pickle_is_not_read(folder):
    (folder / TENSOR_FILE).rename(folder / "adapter_model.bin")
    assert_refused(folder, AdapterFormatError, ["adapter_model.bin is a pickle", "veneer convert"])


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


def test_names_without_pefts_prefix_are_understood_too(folder):
    """As transformers and diffusers write them."""
    expected = replace(read_peft(folder), fingerprint={})
    change_tensors(folder, lambda t: [t.update({k.removeprefix(KEY_PREFIX): t.pop(k)}) for k in list(t)])
    assert_same_state(read_peft(folder), expected)


def test_a_read_adapter_does_not_change_with_its_file(folder):
    adapter = read_peft(folder)
    before = adapter.updates["blocks.0.query"].A.clone()
    (folder / TENSOR_FILE).write_bytes(b"\0" * (folder / TENSOR_FILE).stat().st_size)
    assert torch.equal(adapter.updates["blocks.0.query"].A, before)


class Odd(nn.Module):
    """One layer of each kind that PEFT adapts, and a few that it leaves alone. Never run: only its values travel."""

    def __init__(self, *, groups=1, experts=2, is_transposed=False):
        super().__init__()
        self.query = nn.Linear(7, 5)
        self.block = nn.Module()
        self.block.query = nn.Linear(7, 5, bias=False)
        self.block.value = nn.Linear(5, 7)
        self.embed = nn.Embedding(11, 7)
        self.gpt = Conv1D(9, 7)
        self.conv1 = nn.Conv1d(4, 6, 3, groups=groups)
        self.conv2 = nn.Conv2d(4, 6, (3, 2), groups=groups)
        self.conv3 = nn.Conv3d(4, 6, (1, 2, 1))
        self.attention = nn.MultiheadAttention(6, 2)
        self.experts = nn.Module()
        gate, down = (experts, 10, 7), (experts, 7, 5)
        turned = [(E, b, a) if is_transposed else (E, a, b) for E, a, b in (gate, down)]
        self.experts.gate_up_proj = nn.Parameter(torch.zeros(turned[0]))
        self.experts.down_proj = nn.Parameter(torch.zeros(turned[1]))
        self.experts.router = nn.Linear(7, 2)
        self.experts.is_transposed = is_transposed
        self.flat = nn.Module()
        self.flat.matrix = nn.Parameter(torch.zeros(5, 7))
        self.norm = nn.LayerNorm(7)
        self.classifier = nn.Linear(7, 3)


EXPERTS = {"target_modules": ["router"], "target_parameters": ["down_proj", "experts.gate_up_proj"]}
CASES = {
    "names": {"target_modules": ["query", "block.value"], "lora_alpha": 5},
    "rslora": {"target_modules": ["query"], "lora_alpha": 5, "use_rslora": True},
    "a regular expression": {"target_modules": r"block\.(query|value)"},
    "excluded": {"target_modules": ["query", "value"], "exclude_modules": ["block.query"]},
    "patterns": {
        "target_modules": ["query", "value"],
        "rank_pattern": {"query": 2, r"bl.*\.value": 4},
        "alpha_pattern": {"block.query": 3, "query": 7},
    },
    "patterns, rslora": {"target_modules": ["query", "value"], "rank_pattern": {"^query": 2}, "use_rslora": True},
    "one rank by pattern": {"target_modules": ["query"], "rank_pattern": {"query": 2}, "alpha_pattern": {"query": 3}},
    "layers": {"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "DoRA": {"target_modules": ["query", "value", "embed", "gpt", "conv1", "conv2", "conv3"], "use_dora": True},
    "biases of adapted layers": {"target_modules": ["query", "attention", "conv1"], "bias": "lora_only"},
    "all biases": {"target_modules": ["query", "attention"], "bias": "all", "modules_to_save": ["classifier"]},
    "all biases, experts": {**EXPERTS, "bias": "all"},
    "GPT-2": {"target_modules": ["gpt"], "fan_in_fan_out": True},
    "an embedding": {"target_modules": ["embed", "query"], "rank_pattern": {"embed": 4}},
    "convolutions": {"target_modules": ["conv1", "conv2", "conv3"], "alpha_pattern": {"conv2": 3}},
    "attention": {"target_modules": ["attention", "value"], "rank_pattern": {"attention": 2}},
    "experts": EXPERTS,
    "experts, patterns": {**EXPERTS, "rank_pattern": {"down_proj": 4}, "alpha_pattern": {"experts.gate_up_proj": 3}},
    "experts, expression": {**EXPERTS, "target_modules": r"experts\.router|query"},
    "a matrix": {"target_modules": [], "target_parameters": ["flat.matrix"]},
    "token rows": {"target_modules": ["query"], "trainable_token_indices": {"embed": [4, 1]}},
    "orthogonal": {"target_modules": ["query"], "r": 4, "init_lora_weights": "orthogonal"},
    "minor components": {"target_modules": ["query"], "init_lora_weights": "mica"},
}
LAYERED = {"layers"}
"""Cases that need a model with numbered layers."""


def odd(case="", **kwargs):
    torch.manual_seed(0)
    model = Odd(**kwargs)
    if case in LAYERED:
        model.layers = nn.ModuleList([nn.ModuleDict({"query": nn.Linear(7, 5)}) for _ in range(3)])
    return model


def quietly(call, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*arguments)


def in_peft(model, config):
    """Adapt with PEFT and give every trained tensor a value, as training would."""
    theirs = quietly(peft.get_peft_model, model, peft.LoraConfig(**{"r": 3, **config}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator).abs() + 0.1)
    return theirs


def loaded_in_peft(model, folder):
    """Load a folder with PEFT; every tensor of it must find its place."""
    config = peft.LoraConfig.from_pretrained(folder)
    theirs = quietly(peft.get_peft_model, model, config)
    result = quietly(peft.set_peft_model_state_dict, theirs, safetensors.torch.load_file(folder / TENSOR_FILE))
    assert result.unexpected_keys == []
    return theirs


def plain(name):
    return ".".join(p for p in name.removeprefix("base_model.model.").split(".") if p != "base_layer")


def dense(theirs):
    """What PEFT adds to each weight, seen as (out, in), by the names of the plain model."""
    found = {}
    for name, module in quietly(lambda: list(theirs.named_modules())):
        if not isinstance(module, lora.LoraLayer):
            continue
        delta = module.get_delta_weight("default").detach()
        if isinstance(module, lora.MultiheadAttention):
            found[f"{plain(name)}.in_proj_weight"] = delta
        elif isinstance(module, lora.ParamWrapper):
            turned = getattr(module.get_base_layer(), "is_transposed", False)
            found[f"{plain(name)}.{module.parameter_name}"] = delta.mT if turned else delta
        elif isinstance(module, lora.Embedding):
            found[plain(name)] = delta.T
        else:
            is_conv1d = isinstance(module.get_base_layer(), Conv1D)
            found[plain(name)] = delta.T if is_conv1d else delta.flatten(1)
    return found


def magnitudes(theirs):
    vectors = {name: module.lora_magnitude_vector for name, module in theirs.named_modules() if is_dora(module)}
    return {plain(name): vector["default"].weight.detach().flatten() for name, vector in vectors.items()}


def is_dora(module):
    return isinstance(module, lora.LoraLayer) and len(module.lora_magnitude_vector) > 0


def assert_same_updates(state, theirs):
    """PEFT's layers are the state's; more of them only where a name is the end of another, and then they do nothing."""
    expected = {name: delta for name, delta in dense(theirs).items() if name in state.updates or delta.any()}
    assert set(state.updates) == set(expected)
    for name, delta in expected.items():
        torch.testing.assert_close(state.delta(name), delta, rtol=1e-6, atol=1e-6)
    lengths = {name: update.magnitude for name, update in state.updates.items() if update.magnitude is not None}
    assert set(lengths) == set(magnitudes(theirs))
    assert all(torch.equal(lengths[name], vector) for name, vector in magnitudes(theirs).items())


def assert_same_state(one, other):
    assert one.config == other.config
    assert list(one.updates) == list(other.updates)
    for name, update in one.updates.items():
        twin = other.updates[name]
        assert (update.kind, update.groups) == (twin.kind, twin.groups)
        assert all(torch.equal(tensor, twin.tensors()[part]) for part, tensor in update.tensors().items())
        assert one.factor(name) == pytest.approx(other.factor(name), rel=1e-12)
    for field in ("trained", "base_copies"):
        ours, theirs = getattr(one, field), getattr(other, field)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {n: (t.ids.tolist(), t.rows.tolist()) for n, t in one.token_rows.items()} == {
        n: (t.ids.tolist(), t.rows.tolist()) for n, t in other.token_rows.items()
    }
    for field in ("trained_modules", "base_model", "task_type", "fingerprint"):
        assert getattr(one, field) == getattr(other, field)


@pytest.mark.parametrize("case", CASES)
def test_what_peft_wrote_is_read_with_the_same_deltas_and_goes_back(case, tmp_path):
    theirs = in_peft(odd(case), CASES[case])
    quietly(theirs.save_pretrained, tmp_path / "theirs")
    state = read_peft(tmp_path / "theirs")
    assert_same_updates(state, theirs)
    write_peft(state, tmp_path / "ours")
    assert_same_updates(state, loaded_in_peft(odd(case), tmp_path / "ours"))
    again = read_peft(tmp_path / "ours")
    assert_same_state(again, state)
    write_peft(again, tmp_path / "again")
    for name in (CONFIG_FILE, TENSOR_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()


@pytest.mark.parametrize("case", ["names", "a regular expression", "excluded", "patterns", "layers", "attention"])
def test_a_list_of_targets_is_kept_where_it_says_all_and_the_names_stand_for_it_elsewhere(case, tmp_path):
    theirs = in_peft(odd(case), CASES[case])
    quietly(theirs.save_pretrained, tmp_path)
    state = read_peft(tmp_path)
    names = tuple(sorted(name for name in dense(theirs) if not name.endswith("in_proj_weight")))
    assert names != ("block.value", "query") or case == "excluded"
    assert state.config.targets == (("block.value", "query") if case == "names" else names)
    assert not state.config.exclude
    assert state.config.layers is None


@pytest.mark.parametrize("is_transposed", [False, True])
def test_experts_that_hold_their_weights_turned_are_read_as_out_times_in_too(is_transposed, tmp_path):
    theirs = in_peft(odd(is_transposed=is_transposed), EXPERTS)
    quietly(theirs.save_pretrained, tmp_path)
    state = read_peft(tmp_path)
    assert state.updates["experts.gate_up_proj"].A.shape == (2, 3, 7)
    assert state.updates["experts.down_proj"].B.shape == (2, 7, 3)
    assert_same_updates(state, theirs)


def test_trained_biases_and_heads_are_read_by_the_plain_models_names(tmp_path):
    theirs = in_peft(odd(), CASES["all biases"])
    quietly(theirs.save_pretrained, tmp_path)
    state = read_peft(tmp_path)
    assert state.config.bias == "all"
    assert state.trained_modules == ("classifier",)
    parameters = {
        plain(name).replace("modules_to_save.default.", ""): parameter.detach()
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad and "lora_" not in name and "original_module" not in name
    }
    assert {"attention.out_proj.bias", "query.bias", "norm.bias", "classifier.weight"} <= set(parameters)
    assert set(state.trained) == set(parameters)
    assert all(torch.equal(state.trained[name], parameter) for name, parameter in parameters.items())


@pytest.mark.parametrize("indices", [[4, 1], {"embed_tokens": [4, 1], "lm_head": [2]}])
@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "embed_tokens"]])
@pytest.mark.parametrize("tied", [False, True])
def test_token_rows_and_copied_embeddings_of_a_language_model_are_read(indices, targets, tied, tmp_path):
    config = LlamaConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=20, vocab_size=31,
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    embedding = base.model.embed_tokens.weight.detach().clone()
    targeted = "embed_tokens" in targets
    rows = {} if targeted else {"trainable_token_indices": indices}
    theirs = in_peft(copy.deepcopy(base), {"target_modules": targets, "task_type": "CAUSAL_LM", **rows})
    quietly(theirs.save_pretrained, tmp_path / "theirs")
    state = read_peft(tmp_path / "theirs")
    assert_same_updates(state, theirs)
    assert {name: weight.tolist() for name, weight in state.base_copies.items()} == (
        {"model.embed_tokens.weight": embedding.tolist()} if targeted else {}
    )
    expected = {plain(n): m.token_adapter for n, m in theirs.named_modules() if hasattr(m, "token_adapter")}
    saved = {name: adapter for name, adapter in expected.items() if adapter.tied_adapter is None}
    assert set(state.token_rows) == set(saved)
    for name, adapter in saved.items():
        assert state.token_rows[name].ids.tolist() == adapter.token_indices["default"]
        assert torch.equal(state.token_rows[name].rows, adapter.trainable_tokens_delta["default"].detach())
        assert state.config.token_rows[name] == tuple(adapter.token_indices["default"])
    write_peft(state, tmp_path / "ours")
    assert_same_state(read_peft(tmp_path / "ours"), state)
    back = loaded_in_peft(copy.deepcopy(base), tmp_path / "ours")
    assert_same_updates(state, back)
    for name, adapter in ((plain(n), m.token_adapter) for n, m in back.named_modules() if hasattr(m, "token_adapter")):
        assert torch.equal(adapter.trainable_tokens_delta["default"], expected[name].trainable_tokens_delta["default"])


def test_adapters_of_tied_embeddings_are_read_though_their_list_of_targets_leaves_one_out(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=20, vocab_size=31,
        tie_word_embeddings=True,
    )  # fmt: skip
    settings = {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "ensure_weight_tying": True}
    theirs = in_peft(LlamaForCausalLM(config), settings)
    quietly(theirs.save_pretrained, tmp_path)
    state = read_peft(tmp_path)
    assert_same_updates(state, theirs)
    assert "lm_head" in state.config.targets


def test_a_resized_embedding_is_a_copy_of_the_bases(folder):
    weight = torch.randn(13, 7)
    change_tensors(folder, lambda t: t.update({f"{KEY_PREFIX}model.embed_tokens.weight": weight}))
    state = read_peft(folder)
    assert torch.equal(state.base_copies["model.embed_tokens.weight"], weight)
    assert "model.embed_tokens.weight" not in state.trained


def test_magnitudes_of_older_releases_are_read(tmp_path):
    theirs = in_peft(odd(), CASES["DoRA"])
    quietly(theirs.save_pretrained, tmp_path)
    end = "lora_magnitude_vector"
    change_tensors(tmp_path, lambda t: [t.update({f"{k}.weight": t.pop(k)}) for k in list(t) if k.endswith(end)])
    assert_same_updates(read_peft(tmp_path), theirs)


@settings(max_examples=25, deadline=None)
@given(groups=st.integers(2, 4), shares=st.tuples(*[st.integers(1, 3)] * 3), alike=st.booleans())
def test_a_convolution_with_groups_computes_what_peft_computes(groups, shares, alike):
    """PEFT's A sees every channel; a grouped convolution has only the blocks of each group's own."""
    width, height, q = shares
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(groups * width, groups * height, (2, 1), groups=groups))
    theirs = in_peft(copy.deepcopy(base), {"target_modules": ["0"], "r": groups * q, "lora_alpha": 5})
    A = theirs.base_model.model[0].lora_A["default"].weight
    with torch.no_grad():
        blocks = A.view(groups, q, groups, width, 2, 1)
        for g in range(groups):
            blocks[g, :, [other for other in range(groups) if other != g]] = 0
            blocks[g, :, g] = blocks[0, :, 0] if alike else blocks[g, :, g]
    x = torch.randn(2, groups * width, 3, 3)
    with tempfile.TemporaryDirectory() as name:
        quietly(theirs.save_pretrained, name)
        state = read_peft(Path(name))
        write_peft(state, Path(name) / "ours")
        back = loaded_in_peft(copy.deepcopy(base), Path(name) / "ours")
        assert read_peft(Path(name) / "ours").delta("0").equal(state.delta("0"))
    update = state.updates["0"]
    assert (update.groups, update.rank) == (groups, q if alike else groups * q)
    with torch.no_grad():
        weight = base[0].weight + state.delta("0").view(base[0].weight.shape)
        expected = functional.conv2d(x, weight, base[0].bias, groups=groups)
        torch.testing.assert_close(quietly(theirs, x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(quietly(back, x), expected, rtol=1e-5, atol=1e-5)


def test_an_update_across_the_groups_of_a_convolution_is_refused(tmp_path):
    theirs = in_peft(odd(groups=2), {"target_modules": ["conv1"], "r": 4})
    quietly(theirs.save_pretrained, tmp_path)
    with pytest.raises(AdapterFormatError, match="conv1: the update reaches across groups"):
        read_peft(tmp_path)


def state_of(updates, **config):
    """A state whose layers have these updates."""
    factors = config.pop("factors", dict.fromkeys(updates, 1.5))
    like = config_for(updates, factors, LoraConfig(**config))
    ranks = {name: update.rank for name, update in updates.items()}
    return AdapterState(config=fitted(like, ranks, factors), updates=updates)


def matrix(r=3, width=7, out=5, **fields):
    return LowRank(torch.randn(r, width), torch.randn(out, r), **fields)


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
@pytest.mark.parametrize(
    ("inner", "outer"), [((3, 1.5), (3, 1.5)), ((3, 1.5), (2, 0.3)), ((2, 0.7), (4, 1.1)), ((3, 1.5), None)]
)
def test_attention_whose_two_projections_differ_travels_to_peft(inner, outer, scaling, tmp_path):
    torch.manual_seed(0)
    updates = {"attention.in_proj_weight": matrix(inner[0], 6, 18, kind="parameter")}
    factors = {"attention.in_proj_weight": inner[1]}
    if outer:
        updates["attention.out_proj"] = matrix(outer[0], 6, 6)
        factors["attention.out_proj"] = outer[1]
    state = state_of(updates, factors=factors, scaling=scaling)
    write_peft(state, tmp_path)
    found = dense(loaded_in_peft(odd(), tmp_path))
    for name in updates:
        torch.testing.assert_close(found[name], state.delta(name), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(read_peft(tmp_path).delta(name), state.delta(name), rtol=1e-6, atol=1e-6)
    if not outer:
        assert not found["attention.out_proj"].any()


@pytest.mark.parametrize("ranks", [(2, 3, 3), (3, 2, 3), (3, 3, 2), (4, 2, 3)])
@pytest.mark.parametrize("factors", [(1.5, 1.5, 1.5), (0.4, 1.5, 1.5), (1.5, 0.4, 1 / 3)])
def test_a_name_that_is_the_end_of_another_keeps_its_own_rank_and_scaling(ranks, factors, tmp_path):
    torch.manual_seed(0)
    updates = {"query": matrix(ranks[0]), "block.query": matrix(ranks[1]), "block.value": matrix(ranks[2], 5, 7)}
    scalings = dict(zip(updates, factors, strict=True))
    write_peft(state_of(updates, factors=scalings), tmp_path)
    theirs, again = dense(loaded_in_peft(odd(), tmp_path)), read_peft(tmp_path)
    for name, update in updates.items():
        expected = scalings[name] * update.B @ update.A
        torch.testing.assert_close(theirs[name], expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(again.delta(name), expected, rtol=1e-6, atol=1e-6)


@given(r=st.integers(1, 9), alpha=st.floats(1e-3, 1e3), scaling=st.sampled_from(["lora", "rslora"]))
@settings(max_examples=30, deadline=None)
def test_alpha_and_the_scaling_come_back_to_the_last_bit(r, alpha, scaling):
    config = LoraConfig(r=r, alpha=alpha, scaling=scaling, targets=["query"])
    state = AdapterState(config=config, updates={"query": matrix(r)})
    with tempfile.TemporaryDirectory() as name:
        write_peft(state, Path(name))
        assert_same_state(read_peft(Path(name)), state)


def fused_state(slices, r=2, scaling="lora"):
    """Seven to nine in three slices of three rows, of which some are adapted; B has a block for each."""
    torch.manual_seed(0)
    adapted = [index for index, chosen in enumerate(slices) if chosen]
    B = torch.zeros(9, r * len(adapted))
    for position, index in enumerate(adapted):
        B[3 * index : 3 * index + 3, r * position : r * position + r] = torch.randn(3, r)
    config = LoraConfig(r=r, alpha=5, scaling=scaling, targets=["gpt"], fused={"gpt": slices})
    return AdapterState(config=config, updates={"gpt": LowRank(torch.randn(r * len(adapted), 7), B)})


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
@pytest.mark.parametrize("slices", [(True, False, True), (False, True, True), (False, False, True), (True, True, True)])
def test_a_fused_projection_is_one_layer_to_peft_and_its_slices_come_back(slices, scaling, tmp_path):
    state = fused_state(slices, scaling=scaling)
    s = 5 / 2 if scaling == "lora" else 5 / 2**0.5
    expected = s * state.updates["gpt"].B @ state.updates["gpt"].A
    write_peft(state, tmp_path)
    torch.testing.assert_close(dense(loaded_in_peft(odd(), tmp_path))["gpt"], expected, rtol=1e-6, atol=1e-6)
    again = read_peft(tmp_path)
    torch.testing.assert_close(again.delta("gpt"), expected, rtol=1e-6, atol=1e-6)
    assert (again.config.r, again.config.fused) == (2, {"gpt": slices})
    assert again.config.alpha == pytest.approx(5)
    assert again.config.targets == ("gpt",)


def test_slices_that_the_tensors_contradict_are_forgotten(tmp_path):
    state = fused_state((True, False, True))
    state.updates["gpt"].B[4] = 1
    write_peft(state, tmp_path)
    again = read_peft(tmp_path)
    assert (again.config.r, again.config.fused) == (4, {})
    torch.testing.assert_close(again.delta("gpt"), state.delta("gpt"))


def stacks(*names):
    updates = {
        f"experts.{name}": LowRank(torch.randn(2, 3, 7), torch.randn(2, 5, 3), kind="parameter") for name in names
    }
    return state_of(updates)


def test_parameters_of_equal_shape_keep_their_order_in_our_files_and_are_refused_without_it(tmp_path):
    torch.manual_seed(0)
    state = stacks("w1", "v1", "w2")
    write_peft(state, tmp_path)
    assert_same_state(read_peft(tmp_path), state)
    base = odd()
    base.experts = nn.Module()
    for name in ("w1", "v1", "w2"):
        base.experts.register_parameter(name, nn.Parameter(torch.zeros(2, 5, 7)))
    for name, delta in dense(loaded_in_peft(base, tmp_path)).items():
        torch.testing.assert_close(delta, state.delta(name), rtol=1e-6, atol=1e-6)
    change_tensors(tmp_path, lambda t: None)  # as PEFT would have written it, without our digest
    with pytest.raises(AdapterFormatError, match="equal shapes, and does not say which of w1, v1, w2 is which"):
        read_peft(tmp_path)


def test_experts_go_out_in_the_models_order_whatever_theirs_is(tmp_path):
    torch.manual_seed(0)
    gate = LowRank(torch.randn(2, 3, 7), torch.randn(2, 10, 3), kind="parameter")
    down = LowRank(torch.randn(2, 3, 5), torch.randn(2, 7, 3), kind="parameter")
    state = state_of({"experts.down_proj": down, "experts.gate_up_proj": gate}, dropout=0.1)
    write_peft(state, tmp_path)
    found = dense(loaded_in_peft(odd(), tmp_path))
    for name in state.updates:
        torch.testing.assert_close(found[name], state.delta(name), rtol=1e-6, atol=1e-6)
    assert read_peft(tmp_path).config.dropout == 0.1  # which PEFT, where it would have to be 0, passes over


@pytest.mark.parametrize("version", ["0.18.1", "0.17.0.dev0@abc", None, ""])
def test_stacked_experts_of_releases_that_read_them_otherwise_are_refused(version, tmp_path):
    write_peft(stacks("gate_up_proj"), tmp_path)
    read_peft(tmp_path)
    change_config(tmp_path, peft_version=version)
    with pytest.raises(AdapterFormatError, match=r"before 0\.19 stacked experts were laid out otherwise"):
        read_peft(tmp_path)


def test_what_peft_cannot_hold_is_refused_with_every_reason_and_nothing_is_written(tmp_path):
    ones = torch.ones
    state = AdapterState(
        config=LoraConfig(r=3),
        updates={
            "query": matrix(),
            "conv": LowRank(ones(3, 2, 3), ones(6, 3), ones(6), kind="conv", groups=2),
            "embed": matrix(width=11, out=7, kind="embedding"),
            "matrix": matrix(kind="parameter"),
        },
        trained={"norm.weight": ones(7)},
        token_rows={"embed": TokenRows(torch.tensor([1]), ones(1, 7))},
        base_copies={"norm.weight": ones(7)},
    )
    reasons = [
        "DoRA is for all layers or none, but embed, matrix, query have no magnitude",
        "conv: DoRA of a parameter or of a convolution with groups",
        "matrix: a parameter of the model itself",
        "embed: trained rows of an embedding that has an update too",
        "norm.weight: a trained parameter that is neither",
        "norm.weight: a copy of a base weight that is neither",
    ]
    with pytest.raises(AdapterFormatError) as caught:
        write_peft(state, tmp_path / "none")
    assert all(reason in str(caught.value) for reason in reasons), str(caught.value)
    assert not (tmp_path / "none").exists()


def test_what_the_base_was_travels(folder, tmp_path):
    known = {"float32": {"a.b": "0123abcd", "c": "4567cdef"}, "int8": {"c": "89abcdef"}}
    state = replace(read_peft(folder), fingerprint=known)
    write_peft(state, tmp_path / "noted")
    assert_same_state(read_peft(tmp_path / "noted"), state)


def test_what_older_files_say_of_the_base_is_unknown(folder):
    """One digest of all weights together: it says nothing of a layer by itself."""
    tensors = safetensors.torch.load_file(folder / TENSOR_FILE)
    note = json.dumps({"float32": "00112233445566778899aabbccddeeff"})
    safetensors.torch.save_file(tensors, folder / TENSOR_FILE, metadata={"veneer_base": note})
    assert read_peft(folder).fingerprint == {}
    veneer.load(base(seed=5), folder)


def test_an_attention_layers_input_projection_loads_on_its_own_base(tmp_path):
    """PEFT's file gains an output projection of zeros beside it, which was not there when the base was looked at."""

    class Net(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.a, self.o = nn.MultiheadAttention(16, 4), nn.Linear(16, 4)

    model = Net(0)
    veneer.adapt(model, LoraConfig(r=2, targets=["o"], parameters=["in_proj_weight"]))
    veneer.save(model, tmp_path / "adapter")
    assert set(read_peft(tmp_path / "adapter").updates) == {"a.in_proj_weight", "a.out_proj", "o"}
    veneer.load(Net(0), tmp_path / "adapter")
    with pytest.raises(AdapterMismatchError, match="other weights"):
        veneer.load(Net(1), tmp_path / "adapter")


def test_values_go_through_the_public_door_and_saving_is_writing_the_state(model, tmp_path):
    veneer.adapt(model, LoraConfig(**SETTINGS), ["classifier"])
    veneer.save(model, tmp_path / "saved")
    veneer.write_adapter(veneer.state(model), str(tmp_path / "written"))
    for name in (CONFIG_FILE, TENSOR_FILE):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "written" / name).read_bytes()
    assert_same_state(veneer.read_adapter(str(tmp_path / "written")), read_peft(tmp_path / "saved"))
    with pytest.raises(ConfigError, match="adapter is of type Classifier; it must be an AdapterState"):
        veneer.write_adapter(model, tmp_path / "none")


def test_a_file_in_the_way_is_not_overwritten(model, tmp_path):
    veneer.adapt(model, LoraConfig(**SETTINGS), ["classifier"])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputExistsError, match="file is a file; choose another path"):
        veneer.save(model, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("note", ["[]", "3", "{", '{"query": 3}', '{"query": [false, false]}'])
@pytest.mark.parametrize("key", ["veneer_base", "veneer_fused"])
def test_a_malformed_note_is_refused(folder, key, note):
    tensors = safetensors.torch.load_file(folder / TENSOR_FILE)
    safetensors.torch.save_file(tensors, folder / TENSOR_FILE, metadata={key: note})
    if key == "veneer_base" and note.startswith('{"'):
        assert read_peft(folder).fingerprint == {}
        return
    with pytest.raises(AdapterFormatError, match="cannot be used"):
        read_peft(folder)


def test_a_file_that_was_changed_after_writing_is_refused(folder):
    path = folder / TENSOR_FILE
    data = bytearray(path.read_bytes())
    for position in (len(data) - 1, data.index(KEY_PREFIX.encode())):
        changed = bytearray(data)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(AdapterFormatError, match="damaged or edited"):
            read_peft(folder)


def test_every_setting_of_peft_is_known_and_every_one_is_written(folder):
    keys = peft.LoraConfig().to_dict().keys()
    assert TAKEN | INERT.keys() | NEUTRAL.keys() == keys
    assert len(TAKEN) + len(INERT) + len(NEUTRAL) == len(keys)
    assert json.loads((folder / CONFIG_FILE).read_text()).keys() == keys


@pytest.mark.parametrize("key", NEUTRAL)
def test_each_setting_that_is_not_supported_is_refused_by_name(folder, key):
    change_config(folder, **{key: {"some": 1}})
    assert_refused(folder, AdapterFormatError, [f"{key}={{'some': 1}} is not supported"])


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "later"])
def test_starts_that_change_the_base_weights_are_refused(folder, init):
    change_config(folder, init_lora_weights=init)
    assert_refused(folder, AdapterFormatError, [f"init_lora_weights={init!r} needs a base model with changed weights"])


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(?:a|b)*", "((a*)b){4}", "(a?){9}", "(a|aa)" * 20, "a?" * 30, ".*.*.*.*.*", r"(a)\1", "a" * 201],
)
@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_could_take_for_ever_are_refused_unmatched(folder, key, pattern):
    change_config(folder, **{key: {pattern: 3}})
    assert_refused(folder, AdapterFormatError, [f"{key}: {pattern[:200]!r} ", "give the layers' full names"])


def test_a_pattern_is_refused_where_names_are_too_long_for_its_choices():
    """What takes a moment for names as models have them takes hours for one that was made up."""
    settings = {"rank_pattern": {".*.*.*.*b": 4}}
    assert pattern_problems(settings, longest=50) == []
    (problem,) = pattern_problems(settings, longest=200)
    assert "too often for names of 200 letters; give the layers' full names" in problem
    plain = {"rank_pattern": {r".*\.layers\.\d+\.(self_attn|mlp)\.(q|down)_proj": 4}}  # as for a model with two towers
    assert pattern_problems(plain, longest=100) == []
    assert pattern_problems({"rank_pattern": {r".*.*.*(a|b|c)": 4}}, longest=140) != []


@pytest.mark.parametrize(
    "pattern", [r"blocks\.(0|1)\.query", ".*query", r"^blocks\.\d+\.q[a-z]{4}", "(?:blocks.)?.*.query"]
)
def test_patterns_as_people_write_them_are_matched(folder, pattern):
    change_config(folder, alpha_pattern={pattern: 11})
    state = read_peft(folder)
    assert state.factor("blocks.1.query") == pytest.approx(11 / 3**0.5)
    assert state.factor("blocks.1.value") == pytest.approx(5 / 3**0.5)


def test_a_regular_expression_in_the_targets_is_not_evaluated(folder):
    change_tensors(
        folder, lambda t: [t.update({k.replace("query", "a" * 60): t.pop(k)}) for k in list(t) if "query" in k]
    )
    change_config(folder, target_modules=r"(.*a+)+b|((a|aa)+)+$")
    assert set(read_peft(folder).config.targets) == {
        f"blocks.{number}.{name}" for number in (0, 1) for name in ("a" * 60, "value")
    }


def test_an_adapter_whose_A_is_frozen_comes_back_with_A_frozen(tmp_path):
    net = nn.Sequential(nn.Linear(7, 5))
    veneer.adapt(net, LoraConfig(r=3, targets=["0"], train_A=False))
    veneer.save(net, tmp_path / "adapter")
    twin = nn.Sequential(nn.Linear(7, 5))
    twin.load_state_dict({"0.weight": net[0].base.weight, "0.bias": net[0].base.bias})
    veneer.load(twin, tmp_path / "adapter", trainable=True)
    assert [name for name, p in twin.named_parameters() if p.requires_grad] == ["0.update.B"]


def test_loaded_tensors_share_no_memory_and_a_value_stays_its_owners(folder):
    net, twin, adapter = base(), base(), read_peft(folder)
    veneer.load(net, folder, trainable=True)
    veneer.load_state(twin, adapter, trainable=True)
    before = {name: update.A.clone() for name, update in adapter.updates.items()}
    for model in (net, twin):
        tensors = [tensor for slot in adapted_slots(model).values() for tensor in (slot.update.A, slot.update.B)]
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)  # so it is pickled alone
        with torch.no_grad():
            for tensor in tensors:
                tensor.add_(1)
    assert all(torch.equal(before[name], update.A) for name, update in adapter.updates.items())

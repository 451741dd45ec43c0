"""Names that are the ends of other names: what is saved comes back as what it was, or is refused in writing."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from torch import nn

import veneer
from tests.lora.test_inject import filled
from veneer import LoraConfig
from veneer.errors import AdapterFormatError
from veneer.formats.peft import CONFIG_FILE, TENSOR_FILE
from veneer.formats.peft_writing import write_peft
from veneer.formats.vllm import write_vllm
from veneer.lora.selectors import Pattern
from veneer.lora.state import AdapterState, LowRank, config_for

LETTERS = st.sampled_from(["q", "k", "q_proj", "q.proj", "proj", r"q\.proj", "qxproj", "0", "."])
KEYS = st.lists(LETTERS, min_size=1, max_size=3).map(".".join)


def nested(*, seed=0):
    torch.manual_seed(seed)
    inner = nn.ModuleDict({"proj": nn.Linear(7, 7), "classifier": nn.Linear(7, 7), "table": nn.Embedding(11, 7)})
    return nn.ModuleDict(
        {"proj": nn.Linear(7, 7), "classifier": nn.Linear(7, 7), "table": nn.Embedding(11, 7), "enc": inner}
    )


@given(keys=st.lists(KEYS, min_size=1, max_size=4, unique=True), starts=st.lists(st.booleans(), min_size=4), name=KEYS)
def test_a_pattern_gives_a_name_the_value_that_peft_gives_it(keys, starts, name):
    name = name.replace("\\", "")
    entries = {f"{'^' * first}{key}": place for place, (key, first) in enumerate(zip(keys, starts, strict=False))}
    theirs = get_pattern_key(list(entries), name)
    assert Pattern(entries).value_for(name) == entries.get(theirs)


@pytest.mark.parametrize(
    ("settings", "train_also"),
    [
        ({"targets": ["proj"], "exclude": ["enc.proj"]}, []),
        ({"targets": "proj"}, []),
        ({"targets": ["proj"]}, []),
        ({"targets": ["enc.proj"], "bias": "all"}, ["classifier"]),
        ({"targets": ["enc.proj"], "bias": "all"}, ["classifier", "enc.classifier"]),
        ({"targets": "proj", "token_rows": {"enc.table": [3, 1]}}, []),
    ],
    ids=str,
)
def test_a_name_that_is_the_end_of_another_comes_back_as_itself(settings, train_also, tmp_path):
    net = nested()
    base = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    veneer.adapt(net, LoraConfig(r=2, **settings), train_also)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(parameter.requires_grad * 0.1)
    veneer.save(net, tmp_path / "adapter")
    other = nested()
    other.load_state_dict(base)
    veneer.load(other, tmp_path / "adapter")
    expected = net.state_dict()
    assert other.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("init", ["pissa", "kaiming"])
def test_a_state_of_full_names_loads_beside_names_that_end_in_them(init):
    net, other = nested(), nested()
    veneer.adapt(net, LoraConfig(r=2, targets="proj", init=init))
    state = veneer.state(filled(net))
    for adapter in (state, veneer.algebra.combined([state], [1.0])):
        veneer.load_state(other, adapter)
        assert list(veneer.state(other).updates) == ["proj"]
        veneer.remove(other)


def of_layers(names):
    updates = {name: LowRank(torch.ones(2, 7), torch.ones(7, 2)) for name in names}
    return AdapterState(config=config_for(updates, dict.fromkeys(updates, 1.0)), updates=updates)


def rows_of_two_tables():
    net = nn.ModuleDict({"emb": nn.Embedding(11, 7), "tok_emb": nn.Embedding(11, 7)})
    veneer.adapt(net, LoraConfig(targets=(), token_rows={"emb": [1, 2], "tok_emb": [5, 6]}))
    return veneer.state(net)


def with_nan():
    state = of_layers(["proj"])
    state.updates["proj"].B[0, 0] = torch.nan
    return state


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (rows_of_two_tables, r"would be mixed up:\n.*tok_emb \(rows\)"),
        (with_nan, "holds NaN or infinity"),
        (lambda: of_layers(["base_layer.proj"]), "would be mixed up:\n.*base_layer.proj"),
    ],
    ids=["rows of two tables", "NaN", "a name of PEFT's"],
)
def test_what_could_not_be_read_again_is_not_written(make, reason, tmp_path):
    with pytest.raises(AdapterFormatError, match=reason):
        write_peft(make(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_scaling_that_overflows_in_half_precision_is_not_folded(tmp_path):
    updates = {"proj": LowRank(torch.ones(2, 7).half(), torch.full((7, 2), 6e4).half())}
    state = AdapterState(config=config_for(updates, {"proj": 4.0}), updates=updates)
    with pytest.raises(AdapterFormatError, match="NaN or infinity"):
        write_vllm(state, tmp_path / "adapter")


def test_only_a_module_called_like_a_head_is_left_out_for_vllm(tmp_path):
    net = nn.ModuleDict({"proj": nn.Linear(7, 5), "relscore": nn.Linear(5, 3)})
    veneer.adapt(net, LoraConfig(r=2, targets=["proj"]), ["relscore"])
    with pytest.raises(AdapterFormatError, match=r"relscore.weight: a trained parameter that is not of a head"):
        write_vllm(veneer.state(net), tmp_path / "adapter")


def test_where_one_of_two_files_cannot_be_written_both_stay_as_they_were(tmp_path, monkeypatch):
    net = nested()
    veneer.adapt(net, LoraConfig(r=2, targets=["enc.proj"]))
    veneer.save(net, tmp_path / "adapter")
    before = {name: (tmp_path / "adapter" / name).read_bytes() for name in (TENSOR_FILE, CONFIG_FILE)}
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        veneer.save(filled(net), tmp_path / "adapter")
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before
    assert json.loads(before[CONFIG_FILE])["r"] == 2

"""Selecting is pure, complete and loud: a term that selects nothing is an error that names the nearest modules."""

import copy
import re

import pytest
import torch
from torch import nn

import veneer
from veneer import LoraConfig
from veneer.errors import AdapterStateError, ConfigError, TargetError


def names(the_plan):
    return [target.name for target in the_plan.targets]


def test_planning_changes_nothing(model):
    before = copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    text = str(veneer.plan(model, LoraConfig(r=3), ["classifier"]))
    assert "blocks.0.query" in text
    assert "trained whole: classifier" in text
    assert str(model) == str(type(model)().eval())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_name_matches_at_a_dot_and_nowhere_else():
    net = nn.ModuleDict(
        {"query": nn.Linear(7, 5), "subquery": nn.Linear(7, 5), "a": nn.ModuleDict({"query": nn.Linear(5, 7)})}
    )
    assert names(veneer.plan(net, LoraConfig(r=3, targets=["query"]))) == ["query", "a.query"]


def test_a_string_is_a_regular_expression_matched_in_full(model):
    assert names(veneer.plan(model, LoraConfig(r=3, targets=r"blocks\.1\..*"))) == ["blocks.1.query", "blocks.1.value"]
    with pytest.raises(TargetError, match="a list gives names"):
        veneer.plan(model, LoraConfig(r=3, targets="query"))


def test_all_linear_leaves_the_head_out_and_says_so(model):
    the_plan = veneer.plan(model, LoraConfig(r=3))
    assert names(the_plan) == [f"blocks.{i}.{part}" for i in (0, 1) for part in ("query", "value")]
    assert the_plan.left_out == (("classifier", "output head, frozen; train_also would train it"),)
    assert the_plan.config.targets == ("query", "value")
    assert veneer.plan(model, LoraConfig(r=3), ["classifier"]).left_out == (("classifier", "trained whole"),)


def test_exclude_wins_over_targets_and_the_written_out_targets_select_the_same(model):
    the_plan = veneer.plan(model, LoraConfig(r=3, targets=["query", "value"], exclude=["blocks.0"]))
    assert names(the_plan) == ["blocks.1.query", "blocks.1.value"]
    assert names(veneer.plan(model, the_plan.config)) == names(the_plan)
    assert the_plan.config.exclude == ()


def test_counts_are_those_of_the_formula(model):
    the_plan = veneer.plan(model, LoraConfig(r=3), ["classifier"])
    assert the_plan.lora_parameters == 4 * 3 * (7 + 5)
    assert the_plan.trained_parameters == 7 * 3 + 3
    assert the_plan.base_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "train_also", "expected"),
    [
        ({"targets": ["query", "valeu"]}, [], ["'valeu' matches no module", "nearest", "value"]),
        ({"targets": ["quer", "valu"]}, [], ["'quer'", "'valu'"]),
        ({"targets": ["norm"]}, [], ["only what cannot be adapted", "LayerNorm"]),
        ({"targets": ["drop"]}, [], ["Dropout", "can be adapted"]),
        ({"targets": ["query", "norm"]}, [], ["'norm' selects only what cannot be adapted"]),
        ({"targets": ".*drop"}, [], ["Dropout"]),
        ({"targets": ["blocks"]}, [], ["ModuleList"]),
        ({"targets": ["query"], "exclude": ["qury"]}, [], ["exclude 'qury' matches no module"]),
        ({"targets": ["query"], "exclude": ["query"]}, [], ["selects only what is excluded"]),
        ({"targets": ["query"]}, ["klassifier"], ["train_also 'klassifier' matches no module", "classifier"]),
        ({"targets": ["query"], "r": 6}, [], ["r=6 is larger than 'blocks.0.query' allows: at most 5"]),
        ({"targets": []}, [], ["nothing is left to train"]),
        ({"targets": ["valeu"], "exclude": ["nope"]}, ["nobody"], ["'valeu'", "'nope'", "'nobody'"]),
    ],
)
def test_a_selector_that_does_not_fit_is_refused_with_the_reason(model, config, train_also, expected):
    with pytest.raises(TargetError) as caught:
        veneer.plan(model, LoraConfig(**{"r": 3, **config}), train_also)
    assert all(part in str(caught.value) for part in expected), str(caught.value)
    assert isinstance(caught.value, LookupError)


def test_an_adapted_model_is_not_adapted_again(model):
    veneer.adapt(model, LoraConfig(r=3))
    with pytest.raises(AdapterStateError, match="adapted already"):
        veneer.plan(model, LoraConfig(r=3))


def test_what_is_trained_whole_is_not_adapted_as_well_and_the_plan_says_so(model):
    the_plan = veneer.plan(model, LoraConfig(r=3, targets=["query", "classifier"]), ["blocks.0", "classifier"])
    assert names(the_plan) == ["blocks.1.query"]
    assert the_plan.left_out == (("blocks.0.query", "trained whole"), ("classifier", "trained whole"))


def test_all_linear_on_a_model_without_linear_layers_is_an_error_that_names_its_layers():
    with pytest.raises(TargetError, match=r"selects nothing.*Conv1d"):
        veneer.plan(nn.Sequential(nn.Conv1d(3, 5, 2)), LoraConfig(r=3))


def test_a_module_tied_to_one_that_stays_frozen_is_not_trained_whole():
    net = nn.ModuleDict({"embed": nn.Embedding(9, 7), "query": nn.Linear(7, 7), "lm_head": nn.Linear(7, 9, bias=False)})
    net["lm_head"].weight = net["embed"].weight
    with pytest.raises(TargetError, match="'lm_head' is trained whole, but shares a parameter with 'embed'"):
        veneer.plan(net, LoraConfig(r=3, targets=["query"]), ["lm_head"])
    assert veneer.plan(net, LoraConfig(r=3, targets=["query"]), ["lm_head", "embed"]).trained_modules


def test_a_regular_expression_that_also_meets_containers_is_written_out_as_names(model):
    the_plan = veneer.plan(model, LoraConfig(r=3, targets=r"blocks\.1.*"))
    assert the_plan.config.targets == ("blocks.1.query", "blocks.1.value")
    assert names(veneer.plan(model, the_plan.config)) == names(the_plan)


@pytest.mark.parametrize("value", [None, 5])
def test_targets_that_are_no_selector_are_refused(value):
    with pytest.raises(ConfigError, match="targets is"):
        LoraConfig(targets=value)


class Nested(nn.Module):
    """Names of the outer modules are the ends of those of the inner ones."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 7)
        self.head = nn.Linear(7, 3)
        self.weights = nn.Module()
        self.weights.wide = nn.Parameter(torch.randn(7, 5))
        self.inner = nn.ModuleDict({"table": nn.Embedding(11, 7), "head": nn.Linear(7, 3)})
        self.inner["weights"] = copy.deepcopy(self.weights)


@pytest.mark.parametrize(
    ("settings", "train_also"),
    [
        ({"targets": ["inner.head"]}, ["table"]),
        ({"targets": (), "parameters": ["weights.wide"]}, []),
        ({"targets": ["inner.head"], "token_rows": {"table": (1, 4)}}, []),
    ],
    ids=str,
)
def test_a_full_name_means_itself_alone_and_comes_back_from_a_file(settings, train_also, tmp_path):
    torch.manual_seed(0)
    net = Nested()
    twin = copy.deepcopy(net)
    the_plan = veneer.adapt(net, LoraConfig(r=2, **settings), train_also)
    assert the_plan.trained_modules == tuple(train_also)
    assert not any(p.requires_grad for name, p in net.named_parameters() if "inner.table" in name)
    veneer.save(net, tmp_path / "adapter")
    veneer.load(twin, tmp_path / "adapter")
    for name, tensor in net.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor)


@pytest.mark.parametrize("train_also", [None, "head", "(", ["head", 3], 7])
def test_what_is_no_list_of_names_is_refused(train_also):
    with pytest.raises(ConfigError, match="must be a list of names"):
        veneer.plan(Nested(), LoraConfig(r=2), train_also)


def test_what_is_no_config_is_refused():
    with pytest.raises(ConfigError, match="must be a LoraConfig"):
        veneer.adapt(Nested(), {"r": 2})


@pytest.mark.parametrize("key", ["^inner.head", "^head$", "^nothing"])
def test_a_pattern_for_what_is_not_adapted_is_refused(key):
    with pytest.raises(TargetError, match="matches no layer that is adapted"):
        veneer.plan(Nested(), LoraConfig(r=2, targets=["table"], rank_pattern={key: 1}))


def test_a_frozen_head_is_mentioned_whatever_the_targets(model):
    for targets in ("all-linear", ["query"], r".*\.value"):
        assert [name for name, _ in veneer.plan(model, LoraConfig(r=2, targets=targets)).left_out] == ["classifier"]
    assert veneer.plan(model, LoraConfig(r=2, targets=["query", "classifier"])).left_out == ()


def test_the_printed_plan_tells_every_rank_and_scaling(model):
    config = LoraConfig(
        r=3, alpha=6, rank_pattern={"blocks.0.query": 2}, alpha_pattern={"value": 600}, train_A=False, init="gaussian"
    )
    text = str(veneer.plan(model, config))
    rows = {line.split()[0]: line.split()[1:3] for line in text.splitlines() if line.startswith("blocks")}
    assert rows == {
        "blocks.0.query": ["2", "3"],
        "blocks.0.value": ["3", "200"],
        "blocks.1.query": ["3", "2"],
        "blocks.1.value": ["3", "200"],
    }
    assert "4 layers at r=2 to 3, scaling 2 to 200, init gaussian, A frozen: " in text


def test_layer_numbers_that_no_name_holds_are_refused(model):
    for targets in ("all-linear", ["query"]):
        with pytest.raises(TargetError, match=r"layers \[7\] match no module; those in the names are \[0, 1\]"):
            veneer.plan(model, LoraConfig(r=2, targets=targets, layers=[0, 7]))


@pytest.mark.parametrize(
    ("targets", "hint"),
    [
        (["in_proj_weight"], "'0' has a parameter of that name: name it in `parameters`"),
        (["0"], "its own in_proj_weight by `parameters`"),
        (["all-linear"], "targets='all-linear', a text by itself"),
        ("all_linear", "targets='all-linear', a text by itself"),
    ],
    ids=str,
)
def test_what_was_probably_meant_is_said(targets, hint):
    with pytest.raises(TargetError, match=re.escape(hint)):
        veneer.plan(nn.Sequential(nn.MultiheadAttention(8, 2)), LoraConfig(r=2, targets=targets))


def test_all_linear_says_what_a_module_computes_with_itself():
    net = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    assert veneer.plan(net, LoraConfig(r=2)).left_out == (
        ("0", "computes with in_proj_weight itself: a matter of `parameters`"),
    )
    assert veneer.plan(net, LoraConfig(r=2, parameters=["in_proj_weight"])).left_out == ()


def test_a_model_with_pefts_layers_is_refused(model):
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"]))
    for each in (theirs, model):
        with pytest.raises(AdapterStateError, match="unload"):
            veneer.plan(each, LoraConfig(r=2))
    veneer.plan(theirs.unload(), LoraConfig(r=2))

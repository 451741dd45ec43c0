"""The laws of the groups: every trainable parameter once, B at its own rate, vectors not decayed."""

import warnings

import pytest
import torch
from torch import nn

import veneer
from veneer import LoraConfig
from veneer.errors import ConfigError
from veneer.lora.optimizer import optimizer_groups

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from peft.optimizers import create_loraplus_optimizer


@pytest.fixture
def adapted(model):
    veneer.adapt(model, LoraConfig(r=3), ["classifier", "blocks.0.norm"])
    return model


def grouped(model, **settings):
    return {group["name"]: group for group in optimizer_groups(model, lr=1e-3, **settings)}


def names_of(model, group):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter] for parameter in group["params"]}


def test_every_trainable_parameter_is_in_one_group_and_no_frozen_one(adapted):
    listed = [id(p) for group in optimizer_groups(adapted, lr=1e-3) for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in adapted.parameters() if p.requires_grad}
    assert any(not p.requires_grad for p in adapted.parameters())


def test_each_group_holds_what_its_name_says(adapted):
    groups = grouped(adapted)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert list(groups) == ["A", "B", "other", "no_decay"]
    assert names_of(adapted, groups["A"]) == {name for name in trained if name.endswith(".A")}
    assert names_of(adapted, groups["B"]) == {name for name in trained if name.endswith(".B")}
    assert names_of(adapted, groups["other"]) == {"classifier.weight"}
    norms = {"blocks.0.norm.weight", "blocks.0.norm.bias"}
    assert names_of(adapted, groups["no_decay"]) == {"classifier.bias"} | norms


def test_B_alone_learns_faster_and_vectors_alone_are_not_decayed(adapted):
    groups = grouped(adapted, ratio=8.0, weight_decay=0.1)
    assert {name: group["lr"] for name, group in groups.items()} == {
        "A": 1e-3,
        "B": 8e-3,
        "other": 1e-3,
        "no_decay": 1e-3,
    }
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "A": 0.1,
        "B": 0.1,
        "other": 0.1,
        "no_decay": 0.0,
    }


def test_a_step_moves_B_by_the_ratio(adapted, ids):
    """Sign descent moves each element by its learning rate."""
    groups = optimizer_groups(adapted, lr=1e-3, ratio=8.0)
    optimizer = torch.optim.Rprop(groups, etas=(0.5, 1.2))
    update = adapted.blocks[0].query.update
    adapted(ids).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(update.B.detach().abs(), torch.full_like(update.B, 8e-3))


def test_empty_groups_are_left_out(model):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert optimizer_groups(model, lr=1e-3) == []
    model.classifier.bias.requires_grad_(True)
    assert list(grouped(model)) == ["no_decay"]


def test_A_and_B_of_other_modules_are_ordinary_parameters():
    net = nn.Module()
    net.A, net.B = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
    groups = grouped(net)
    assert groups["other"]["params"] == [net.A]
    assert groups["no_decay"]["params"] == [net.B]


def test_a_shared_parameter_is_listed_once():
    net = nn.Sequential(nn.Embedding(9, 7), nn.Linear(7, 9, bias=False))
    net[1].weight = net[0].weight
    assert [len(group["params"]) for group in optimizer_groups(net, lr=1e-3)] == [1]


def test_a_layer_used_under_two_names_is_listed_once():
    layer = nn.Linear(7, 7)
    net = nn.Sequential(layer, nn.Tanh(), layer)
    veneer.adapt(net, LoraConfig(r=3))
    assert {name: len(group["params"]) for name, group in grouped(net).items()} == {"A": 1, "B": 1}


def test_frozen_A_has_no_group(adapted):
    for name, parameter in adapted.named_parameters():
        if name.endswith(".A"):
            parameter.requires_grad_(False)
    assert "A" not in grouped(adapted)


def test_a_magnitude_is_not_decayed(model):
    veneer.adapt(model, LoraConfig(r=3, variant="dora"))
    groups = grouped(model, weight_decay=0.1)
    assert {name.rsplit(".", 1)[1] for name in names_of(model, groups["no_decay"])} == {"magnitude"}
    assert set(groups) == {"A", "B", "no_decay"}


def test_matrices_get_pefts_rates_and_decay(ids):
    """PEFT also gives vectors the rate of B; they are left out here."""
    from tests.conftest import Classifier

    ours, theirs = Classifier(), Classifier()
    targets = ["query", "value"]
    veneer.adapt(ours, LoraConfig(r=3, targets=targets), ["classifier"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(theirs, PeftConfig(r=3, target_modules=targets, modules_to_save=["classifier"]))
    settings = {"lr": 1e-3, "loraplus_lr_ratio": 16.0, "loraplus_weight_decay": 0.1}
    optimizer = create_loraplus_optimizer(wrapped, torch.optim.AdamW, **settings)

    def rates(groups, model, rename):
        names = {parameter: name for name, parameter in model.named_parameters()}
        return {
            rename(names[p]): (group["lr"], group["weight_decay"])
            for group in groups
            for p in group["params"]
            if p.dim() > 1
        }

    def plain(name):
        for old, new in (
            ("base_model.model.", ""),
            ("lora_A.default.weight", "A"),
            ("lora_B.default.weight", "B"),
            ("update.", ""),
            ("modules_to_save.default.", ""),
        ):
            name = name.replace(old, new)
        return name

    expected = rates(optimizer.param_groups, wrapped, plain)
    assert len(expected) == 9
    assert rates(optimizer_groups(ours, lr=1e-3, weight_decay=0.1), ours, plain) == expected


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf"), "1e-3", None, True])
def test_bad_numbers_are_refused_together(model, bad):
    with pytest.raises(ConfigError) as caught:
        optimizer_groups(model, lr=bad, ratio=bad, weight_decay=-0.1)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["lr", "ratio", "weight_decay"]
    assert all(repr(bad) in line for line in lines[:2])

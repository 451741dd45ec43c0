"""What shares a weight or stands beside the updates: tied layers, token rows, biases, parameters, batch norms."""

import copy

import pytest
import torch
from torch import nn

import veneer
from veneer import LoraConfig
from veneer.errors import AdapterMismatchError, AdapterStateError, ConfigError, TargetError
from veneer.lora.layers import adapted_slots

from .test_kinds import Experts, stir


class Tied(nn.Module):
    """An embedding whose weight is the output layer's too."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 7)
        self.body = nn.Linear(7, 7)
        self.lm_head = nn.Linear(7, 11)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids):
        return self.lm_head(torch.tanh(self.body(self.embed(ids))))


@pytest.fixture
def tied():
    torch.manual_seed(0)
    return Tied()


IDS = torch.tensor([[1, 4, 2], [4, 10, 0]])


@pytest.mark.parametrize("targets", [["embed"], ["lm_head"], ["embed", "lm_head"]])
@pytest.mark.parametrize("init", ["kaiming", "pissa"])
def test_tied_layers_share_one_update_and_one_merged_weight(tied, targets, init):
    before = tied(IDS)
    the_plan = veneer.adapt(tied, LoraConfig(r=3, targets=targets, init=init))
    assert [t.tied_to for t in the_plan.targets] == [None, "embed"]
    assert sum(p.numel() for p in tied.parameters() if p.requires_grad) == the_plan.trainable_parameters == 3 * 18
    stir(tied)
    output = tied(IDS)
    change = adapted_slots(tied)["embed"].merged_weight() - tied.embed.base.weight
    torch.testing.assert_close(adapted_slots(tied)["lm_head"].merged_weight() - tied.lm_head.base.weight, change)
    adapter = veneer.state(tied)
    with veneer.merged(tied):
        assert tied.embed.weight is tied.lm_head.weight
        torch.testing.assert_close(tied(IDS), output, rtol=1e-5, atol=1e-5)
    output.sum().backward()
    veneer.remove(tied)
    assert torch.equal(tied(IDS), before)
    veneer.load_state(tied, adapter)
    torch.testing.assert_close(tied(IDS), output, rtol=1e-5, atol=1e-5)
    veneer.merge(tied)
    assert tied.embed.weight is tied.lm_head.weight
    torch.testing.assert_close(tied(IDS), output, rtol=1e-5, atol=1e-5)


def test_a_tie_that_an_update_cannot_follow_is_refused(tied):
    for settings, reason in (
        ({"targets": ["embed"], "exclude": ["lm_head"]}, "is excluded"),
        ({"targets": ["embed"], "variant": "dora"}, "DoRA scales rows"),
    ):
        with pytest.raises(TargetError, match=reason):
            veneer.plan(tied, LoraConfig(r=3, **settings))


@pytest.mark.parametrize("settings", [{"targets": ["embed"]}, {"targets": ["body"], "token_rows": {"embed": (1, 2)}}])
def test_a_weight_that_is_shared_under_another_name_is_refused(tied, settings):
    tied.lm_head = nn.Module()
    tied.lm_head.w = tied.embed.weight
    with pytest.raises(TargetError, match=r"'lm_head'.*holds it under another name"):
        veneer.plan(tied, LoraConfig(r=3, **settings))


def test_what_an_adapter_does_to_one_of_two_that_share_a_weight_is_refused_until_they_are_untied(tied, tmp_path):
    """As PEFT leaves it: an update of the embedding alone; both trained whole, each to its own value."""
    untied = copy.deepcopy(tied)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    for config, train_also, reason in (
        (LoraConfig(r=3, targets=["embed"]), [], "lm_head shares its weight with embed, which the adapter changes"),
        (LoraConfig(r=3, targets=["lm_head"]), [], "embed shares its weight with lm_head, which the adapter changes"),
        (LoraConfig(r=3, targets=["body"]), ["embed", "lm_head"], "holds two different values"),
    ):
        trained = copy.deepcopy(untied)
        veneer.adapt(trained, config, train_also)
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(torch.randn_like(parameter) * parameter.requires_grad)
        veneer.save(trained, tmp_path / "adapter")
        before = copy.deepcopy(tied.state_dict())
        with pytest.raises(AdapterMismatchError, match=f"{reason}.*; untie them first"):
            veneer.load(tied, tmp_path / "adapter")
        assert all(torch.equal(before[name], tensor) for name, tensor in tied.state_dict().items())
        plain = copy.deepcopy(untied)
        veneer.load(plain, tmp_path / "adapter")
        assert torch.equal(plain(IDS), trained(IDS))


def test_two_updates_for_one_weight_are_refused(tied):
    veneer.adapt(tied, LoraConfig(r=3, targets=["embed"]))
    stir(tied)
    adapter = veneer.state(tied)
    other = copy.copy(adapter.updates["lm_head"])
    object.__setattr__(other, "B", other.B + 1)
    forged = veneer.AdapterState(config=adapter.config, updates={**adapter.updates, "lm_head": other})
    veneer.remove(tied)
    with pytest.raises(AdapterMismatchError, match="changes the two differently"):
        veneer.load_state(tied, forged)


def test_nan_in_the_update_of_a_shared_weight_is_told_once_and_not_as_a_difference(tied):
    veneer.adapt(tied, LoraConfig(r=3, targets=["embed"]))
    adapter = veneer.state(tied)
    broken = copy.copy(adapter.updates["lm_head"])
    object.__setattr__(broken, "B", torch.full_like(broken.B, float("nan")))
    forged = veneer.AdapterState(config=adapter.config, updates={**adapter.updates, "lm_head": broken})
    veneer.remove(tied)
    with pytest.raises(AdapterMismatchError, match=r"lm_head\.B") as told:
        veneer.load_state(tied, forged)
    assert str(told.value).count("lm_head") == 1
    assert not adapted_slots(tied)


def test_linear_layers_that_share_a_weight_share_the_update():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 7))
    net[1].weight = net[0].weight
    x = torch.randn(2, 7)
    veneer.adapt(net, LoraConfig(r=3, targets=["1"]))
    assert net[0].update is net[1].update
    output = stir(net)(x)
    with veneer.merged(net):
        torch.testing.assert_close(net(x), output, rtol=1e-5, atol=1e-5)


def test_token_rows_change_these_tokens_and_no_others(tied):
    before, weight = tied(IDS), tied.embed.weight.detach().clone()
    plan = veneer.adapt(tied, LoraConfig(r=2, targets=["body"], token_rows={"embed": (10, 4)}))
    assert torch.equal(tied.embed(IDS), tied.embed.base(IDS))
    torch.testing.assert_close(tied(IDS), before)
    assert plan.trainable_parameters == sum(p.numel() for p in tied.parameters() if p.requires_grad) == 2 * 14 + 2 * 7
    stir(tied)
    merged = adapted_slots(tied)["embed"].merged_weight()
    assert ((merged != weight).any(dim=1).nonzero().squeeze() == torch.tensor([4, 10])).all()
    output = tied(IDS)
    output.sum().backward()
    assert tied.embed.update.rows.grad is not None
    with veneer.merged(tied):
        torch.testing.assert_close(tied(IDS), output, rtol=1e-5, atol=1e-5)
    adapter = veneer.state(tied)
    assert adapter.token_rows["embed"].ids.tolist() == [4, 10]
    veneer.remove(tied)
    assert torch.equal(tied(IDS), before)
    veneer.load_state(tied, adapter)
    assert torch.equal(tied(IDS), output)
    veneer.set_strength(tied, 0)
    assert torch.equal(tied(IDS), before)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [({"embed": [11]}, "has 11 rows"), ({"body": [1]}, "matches 0 embeddings"), ({"emb": [1]}, "nearest: 'embed'")],
)
def test_token_rows_that_do_not_exist_are_refused(tied, rows, reason):
    with pytest.raises(TargetError, match=reason):
        veneer.plan(tied, LoraConfig(r=2, targets=["body"], token_rows=rows))


@pytest.mark.parametrize(("bias", "trained"), [("all", {"body.bias", "lm_head.bias"}), ("lora_only", {"body.bias"})])
def test_biases_are_trained_saved_disabled_and_removed(tied, bias, trained):
    before = tied(IDS)
    the_plan = veneer.adapt(tied, LoraConfig(r=2, targets=["body"], bias=bias))
    assert set(the_plan.trained_biases) == trained
    assert the_plan.trainable_parameters == sum(p.numel() for p in tied.parameters() if p.requires_grad)
    stir(tied)
    output = tied(IDS)
    with veneer.disabled(tied):
        assert torch.equal(tied(IDS), before)
    assert torch.equal(tied(IDS), output)
    adapter = veneer.state(tied)
    assert set(adapter.trained) == trained
    veneer.remove(tied)
    assert torch.equal(tied(IDS), before)
    veneer.load_state(tied, adapter)
    assert torch.equal(tied(IDS), output)


def test_parameters_of_one_module_are_adapted_together_and_its_layers_besides():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    net = nn.ModuleDict({"attention": attention})
    x = torch.randn(2, 3, 8)
    before = net["attention"](x, x, x)[0].detach()
    config = LoraConfig(r=3, targets=["out_proj"], parameters=["in_proj_weight"])
    the_plan = veneer.adapt(net, config)
    assert [target.name for target in the_plan.targets] == ["attention.out_proj", "attention.in_proj_weight"]
    assert torch.equal(net["attention"](x, x, x)[0], before)
    output = stir(net)["attention"](x, x, x)[0]
    adapter = veneer.state(net)
    assert list(adapter.updates) == ["attention.in_proj_weight", "attention.out_proj"]
    with veneer.merged(net):
        torch.testing.assert_close(net["attention"](x, x, x)[0], output, rtol=1e-5, atol=1e-5)
    veneer.remove(net)
    assert net["attention"] is attention
    assert torch.equal(attention(x, x, x)[0], before)
    veneer.load_state(net, adapter)
    torch.testing.assert_close(net["attention"](x, x, x)[0], output, rtol=1e-5, atol=1e-5)


def test_parameters_that_cannot_be_adapted_are_refused():
    net = nn.ModuleDict({"experts": Experts()})
    for settings, reason in (
        ({"parameters": ["upp"]}, "'upp' matches no floating-point parameter"),
        ({"parameters": ["up"], "variant": "dora"}, "parameter of its own"),
        ({"parameters": ["up"], "init": "pissa"}, "use init='kaiming'"),
    ):
        with pytest.raises(TargetError, match=reason):
            veneer.plan(net, LoraConfig(r=2, targets=[], **settings))
    with pytest.raises(TargetError, match="the model's own"):
        veneer.plan(Experts(), LoraConfig(r=2, targets=[], parameters=["up"]))


def test_the_statistics_of_a_frozen_batch_norm_stay_frozen_and_its_momentum_comes_back():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    veneer.adapt(net, LoraConfig(r=2))
    for _ in range(3):
        net.train()(torch.randn(4, 7) + 5)
    assert torch.equal(net[1].running_mean, before["1.running_mean"])
    veneer.remove(net)
    assert net[1].momentum == 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    net(torch.randn(4, 7) + 5)
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])


def test_an_adapter_of_another_base_is_refused_unless_asked_for(tied):
    veneer.adapt(tied, LoraConfig(r=2, targets=["body"]))
    adapter = veneer.state(stir(tied))
    torch.manual_seed(1)
    other = Tied()
    with pytest.raises(AdapterMismatchError, match="other weights"):
        veneer.load_state(other, adapter)
    veneer.load_state(other, adapter, any_base=True)
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        veneer.load_state(Tied().to(dtype), adapter)
        torch.manual_seed(0)


def test_token_rows_named_twice_are_refused(tied):
    tied.deep = nn.ModuleDict({"table": nn.Embedding(5, 7)})
    with pytest.raises(TargetError, match="a second time"):
        veneer.plan(tied, LoraConfig(r=3, targets=["body"], token_rows={"table": (1,), "deep.table": (2,)}))


def test_a_fused_projection_takes_another_adapter_in_place():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 12))
    config = LoraConfig(r=2, targets=["0"], fused={"0": (True, False, True)})
    states = []
    for _ in range(2):
        veneer.adapt(net, config)
        states.append(veneer.state(stir(net)))
        veneer.remove(net)
    veneer.load_state(net, states[0])
    veneer.swap(net, states[1])
    torch.testing.assert_close(
        adapted_slots(net)["0"].merged_weight(), net[0].base.weight + states[1].delta("0"), rtol=1e-6, atol=1e-6
    )


def test_what_is_no_state_is_refused(tied):
    with pytest.raises(ConfigError, match="it must be an AdapterState"):
        veneer.load_state(tied, {"A": 1})
    veneer.adapt(tied, LoraConfig(r=3, targets=["body"]))
    with pytest.raises(ConfigError, match="it must be an AdapterState"):
        veneer.swap(tied, "a path")


def test_swapping_in_what_does_not_fit_changes_nothing(tied):
    veneer.adapt(tied, LoraConfig(r=2, targets=["body"]))
    output = stir(tied)(IDS)
    twin = Tied()
    twin.load_state_dict(
        {name.replace(".base", ""): t for name, t in tied.state_dict().items() if "update" not in name}
    )
    veneer.adapt(twin, LoraConfig(r=3, targets=["body"]))
    with pytest.raises(AdapterMismatchError, match="shape"):
        veneer.swap(tied, veneer.state(twin))
    assert torch.equal(tied(IDS), output)
    veneer.remove(tied)
    with pytest.raises(AdapterStateError, match="not adapted"):
        veneer.swap(tied, veneer.state(twin))


@pytest.mark.parametrize("pattern", [{"alpha_pattern": {"embed": 2.0}}, {"rank_pattern": {"embed": 2}}])
def test_a_twin_has_the_rank_and_the_scaling_of_the_layer_it_is_tied_to(tied, pattern):
    veneer.adapt(tied, LoraConfig(r=4, targets=["embed"], **pattern))
    output = stir(tied)(IDS)
    adapter = veneer.state(tied)
    torch.testing.assert_close(adapter.delta("embed").t(), adapter.delta("lm_head"))
    veneer.swap(tied, adapter)
    torch.testing.assert_close(tied(IDS), output)


def test_rows_of_an_embedding_that_is_adapted_through_its_tie_are_refused(tied):
    with pytest.raises(TargetError, match="is adapted or trained as well"):
        veneer.plan(tied, LoraConfig(r=4, targets=["lm_head"], token_rows={"embed": [1]}))


def test_what_would_be_lost_is_refused(tied):
    with pytest.raises(AdapterStateError, match="compiled already"):
        veneer.adapt(torch.compile(tied, backend="eager"), LoraConfig(r=2, targets=["body"]))
    with pytest.raises(AdapterStateError, match="inference_mode"), torch.inference_mode():
        veneer.adapt(tied, LoraConfig(r=2, targets=["body"]))


def test_a_second_derivative_is_refused_and_not_wrong(tied):
    veneer.adapt(tied, LoraConfig(r=2, targets=["body"]))
    x = torch.randn(2, 7, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(stir(tied).body(x).sum(), x, create_graph=True)


def test_the_row_norms_of_dora_do_not_overflow_in_float16():
    net = nn.Sequential(nn.Linear(512, 3))
    nn.init.constant_(net[0].weight, 20.0)
    veneer.adapt(net, LoraConfig(r=2, targets=["0"], variant="dora"))
    x = torch.full((1, 512), 1e-3)
    expected = net(x)
    torch.testing.assert_close(net.half()(x.half()).float(), expected, rtol=1e-2, atol=1e-2)

"""What stands around an adapted layer has its say: somebody's forward, hooks, autocast, modes, names, other devices."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import veneer
from tests.lora.test_inject import assert_same, filled, snapshot
from veneer import LoraConfig
from veneer.errors import AdapterMismatchError, AdapterStateError, ConfigError, TargetError
from veneer.lora.layers import adapted_slots
from veneer.lora.state import TokenRows


def linear(*, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))


def adapted_linear():
    net = nn.Sequential(nn.Linear(7, 5))
    veneer.adapt(net, LoraConfig(r=2))
    return net


@pytest.mark.parametrize("grad", [True, False])
def test_a_forward_put_on_the_layer_itself_is_called_with_and_without_gradients(grad):
    net, x = linear(), torch.randn(4, 7)
    own = net[0].forward
    net[0].forward = lambda x: 2 * own(x)
    expected = net(x)
    veneer.adapt(net, LoraConfig(r=2, targets=["0"]))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("grad", [True, False])
def test_a_hook_on_the_update_is_called_with_and_without_gradients(grad):
    net, calls = linear(), []
    veneer.adapt(net, LoraConfig(r=2, targets=["0"]))
    net[0].update.register_forward_hook(lambda *_: calls.append(1))
    with torch.set_grad_enabled(grad):
        net(torch.randn(4, 7))
    assert len(calls) == 1


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_autocast_rounds_no_merged_weight(variant):
    net = linear()
    veneer.adapt(net, LoraConfig(r=2, targets=["0"], variant=variant))
    twin = copy.deepcopy(filled(net))
    veneer.merge(twin)
    state = veneer.state(net)
    with torch.autocast("cpu", torch.bfloat16):
        veneer.merge(net)
        assert state.delta("0").dtype == torch.float32
    assert torch.equal(net[0].weight, twin[0].weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_a_layer_can_be_differentiated_forward():
    net, x = linear(), torch.randn(4, 7)
    veneer.adapt(net, LoraConfig(r=2, targets=["0"]))
    filled(net)
    expected, direction = net(x), torch.randn(4, 7)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(net(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(tangent, net(x + direction) - expected, rtol=1e-4, atol=1e-5)  # the net is affine


@pytest.mark.parametrize("context", [veneer.disabled, veneer.merged])
def test_a_context_leaves_the_modes_of_modules_inside_a_base_alone(context):
    net = nn.ModuleDict({"experts": nn.TransformerEncoderLayer(8, 2, 12)})
    veneer.adapt(net, LoraConfig(r=2, targets=(), parameters=["in_proj_weight"]))
    net.train()["experts"].self_attn.out_proj.eval()
    before = {name: module.training for name, module in net.named_modules()}
    with context(net):
        pass
    assert {name: module.training for name, module in net.named_modules()} == before


def test_reading_an_adapted_parameter_gives_the_adapted_one_with_gradients():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.holder = nn.Module()
            self.holder.table = nn.Parameter(torch.randn(5, 7))

        def forward(self, x):
            return x @ self.holder.table.T

    net, x = Reader(), torch.randn(4, 7)
    veneer.adapt(net, LoraConfig(r=2, targets=(), parameters=["table"]))
    output = filled(net)(x)
    output.sum().backward()
    assert net.holder.updates.table.B.grad is not None
    veneer.merge(net)
    torch.testing.assert_close(output, net(x))


@pytest.mark.parametrize("name", ["keys", "values", "update"])
def test_a_parameter_may_have_any_name(name):
    net = nn.ModuleDict({"inner": nn.Module()})
    net["inner"].register_parameter(name, nn.Parameter(torch.randn(5, 7)))
    veneer.adapt(net, LoraConfig(r=2, targets=(), parameters=[f"inner.{name}"]))
    assert list(veneer.state(net).updates) == [f"inner.{name}"]


def odd_parameters():
    net = nn.ModuleDict({"inner": nn.Module(), "list": nn.ParameterList([nn.Parameter(torch.randn(3, 4))])})
    net["inner"].whole = nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
    net["inner"].scaled = nn.Parameter(torch.ones(3, 4).to(torch.float8_e4m3fn), requires_grad=False)
    net["inner"].deep = nn.Parameter(torch.randn(2, 3, 4, 5))
    net["inner"].linear = nn.Linear(3, 4)
    return net


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"parameters": ["whole"]}, "'whole' matches no floating-point parameter of two or three dimensions"),
        ({"parameters": ["scaled"]}, "'scaled' matches no floating-point parameter of two or three dimensions"),
        ({"parameters": ["deep"]}, "'deep' matches no floating-point parameter of two or three dimensions"),
        ({"parameters": ["list.0"]}, "'list.0' is in a list"),
        ({"targets": ["linear"], "parameters": ["linear.weight"]}, "is of a layer that is adapted as well"),
    ],
)
def test_parameters_that_no_update_can_change_are_refused(settings, reason):
    with pytest.raises(TargetError, match=reason):
        veneer.plan(odd_parameters(), LoraConfig(r=2, **{"targets": (), **settings}))


def test_an_embedding_is_adapted_in_one_way_only():
    net = nn.ModuleDict({"table": nn.Embedding(11, 7)})
    with pytest.raises(TargetError, match="is adapted or trained as well"):
        veneer.plan(net, LoraConfig(r=2, targets=(), parameters=["table.weight"], token_rows={"table": [1]}))
    by_frequency = nn.ModuleDict({"table": nn.Embedding(11, 7, scale_grad_by_freq=True)})
    with pytest.raises(TargetError, match="scaled gradients"):
        veneer.plan(by_frequency, LoraConfig(r=2, targets=["table"]))


def test_a_model_whose_sizes_are_not_known_yet_is_refused():
    net = nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3))
    with pytest.raises(AdapterStateError, match=r"sizes of '0.weight', '0.bias' are not known yet"):
        veneer.plan(net, LoraConfig(r=2, targets=["1"]))


def test_a_child_called_update_is_the_bases_own():
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 7, 7
            self.update = nn.Linear(7, 7)

        def forward(self, x):
            return self.update(x)

    net = nn.Sequential(Foreign())
    veneer.adapt(net, LoraConfig(r=2, targets=["0"]), ["0.update"])
    assert set(veneer.state(net).trained) == {"0.update.weight", "0.update.bias"}


def test_whole_numbers_in_a_module_trained_whole_stay_as_they_are():
    net = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    net[1].register_parameter("table", nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False))
    the_plan = veneer.adapt(net, LoraConfig(r=2, targets=["0"]), ["1"])
    assert the_plan.trainable_parameters == sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_complex_numbers_in_a_module_trained_whole_are_trained():
    net = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    net[1].register_parameter("table", nn.Parameter(torch.ones(3, dtype=torch.complex64)))
    the_plan = veneer.adapt(net, LoraConfig(r=2, targets=["0"]), ["1"])
    assert net[1].table.requires_grad
    assert the_plan.trainable_parameters == sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_the_base_is_not_to_be_had_where_a_frozen_norm_was_replaced_and_nothing_is_lost():
    net = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
    veneer.adapt(net, LoraConfig(r=2))
    norm, before = net[1], snapshot(net)
    net[1] = nn.Identity()
    with pytest.raises(AdapterStateError, match="modules were replaced after it went in"), veneer.disabled(net):
        pass
    net[1] = norm
    assert_same(net, before, [p.requires_grad for p in net.parameters()])
    veneer.merge(net)
    assert norm.momentum == nn.BatchNorm1d(5).momentum


@pytest.mark.parametrize("place", [1, 2])
def test_what_was_replaced_since_is_left_as_it_is_by_a_merge(place):
    net = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    veneer.adapt(net, LoraConfig(r=2, targets=["0"]), ["2"])
    filled(net)
    net[place] = successor = nn.Linear(5, 5)
    flags, x = [p.requires_grad for p in successor.parameters()], torch.randn(3, 7)
    output = net.eval()(x)
    veneer.merge(net)
    assert net[place] is successor
    assert [p.requires_grad for p in successor.parameters()] == flags
    assert not adapted_slots(net)
    torch.testing.assert_close(net(x), output)


def test_a_rank_that_a_start_cannot_have_is_refused_by_the_plan_for_every_layer():
    net = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 6))
    with pytest.raises(TargetError, match=r"'0': r is 3; .*even\n.*'1': r is 3"):
        veneer.plan(net, LoraConfig(r=3, init="orthogonal"))


@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_is_checked_in_the_form_in_which_it_is_matched(pattern):
    with pytest.raises(ConfigError, match=r"'\(\?i\)query'.*not a valid regular expression"):
        LoraConfig(**{pattern: {"(?i)query": 2}})


@pytest.mark.parametrize("wrapper", [nn.DataParallel, nn.parallel.DistributedDataParallel])
def test_a_model_in_a_wrapper_that_spreads_gradients_is_refused(wrapper):
    wrapped = wrapper.__new__(wrapper)
    nn.Module.__init__(wrapped)
    wrapped.module = linear()
    with pytest.raises(AdapterStateError, match="adapt the model first and wrap it then"):
        veneer.plan(wrapped, LoraConfig(r=2))


def test_a_module_with_adapted_parameters_can_be_called_by_several_threads():
    """Each call puts the adapted weight in the module's place of its own and takes it out again."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2)}).eval()
    veneer.adapt(net, LoraConfig(r=2, targets=(), parameters=["attention.in_proj_weight"]))
    filled(net)
    x, base = torch.randn(5, 3, 16), net["attention"].base.in_proj_weight
    before = base.clone()

    def called(_):
        with torch.no_grad():
            return net["attention"](x, x, x)[0]

    expected, interval = called(0), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            outputs = list(pool.map(called, range(400)))
    finally:
        sys.setswitchinterval(interval)
    for output in outputs:
        torch.testing.assert_close(output, expected)
    assert net["attention"].base.in_proj_weight is base
    assert torch.equal(base, before)


def test_modules_with_adapted_parameters_do_not_wait_for_each_other():
    """As they must not where each of several threads computes one of a model's parts and all meet in the middle."""
    both = threading.Barrier(2, timeout=30)

    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5, 7))

        def forward(self, x):
            both.wait()
            return x @ self.weight.T

    net = nn.ModuleList([Meeting(), Meeting()])
    veneer.adapt(net, LoraConfig(r=2, targets=(), parameters=["0.weight", "1.weight"]))
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda module: module(torch.ones(1, 7)), net))
    assert all(torch.equal(output, torch.full((1, 5), 7.0)) for output in outputs)


def test_what_moves_in_inference_mode_can_be_changed_outside():
    net = filled(adapted_linear())
    with torch.inference_mode():
        net.to("cpu")
    veneer.set_strength(net, 0.0)
    x = torch.randn(3, 7)
    assert torch.equal(net(x), net[0].base(x))


@pytest.mark.parametrize("rows", [False, True])
def test_an_adapter_narrower_than_its_base_rounds_nothing_of_the_base(rows):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(11, 7) if rows else nn.Linear(7, 5, bias=False))
    weight = net[0].weight.detach().clone()
    settings = {"targets": (), "token_rows": {"0": [4, 1]}} if rows else {"targets": ["0"]}
    veneer.adapt(net, LoraConfig(r=2, **settings))
    for parameter in net[0].update.parameters():
        parameter.data = parameter.data.bfloat16()
    if not rows:
        filled(net)
    veneer.set_strength(net, 0.0)
    assert torch.equal(net[0].weight, weight)
    veneer.set_strength(net, 1.0)
    x = torch.arange(11) if rows else torch.randn(3, 7)
    output = net(x)
    veneer.merge(net)
    torch.testing.assert_close(net(x), output, rtol=1e-2, atol=1e-2)
    if rows:
        untouched = [token for token in range(11) if token not in (1, 4)]
        assert torch.equal(net[0].weight[untouched], weight[untouched])


def test_a_layers_output_has_a_shape_on_the_meta_device():
    with torch.device("meta"):
        bare = nn.Sequential(nn.Linear(7, 5))
    veneer.adapt(bare, LoraConfig(r=2))
    assert bare(torch.empty(3, 7, device="meta")).shape == (3, 5)


def test_removing_is_refused_where_a_trained_module_was_replaced_and_nothing_is_lost():
    net = linear()
    before, flags = snapshot(net), [p.requires_grad for p in net.parameters()]
    veneer.adapt(net, LoraConfig(r=2, targets=["0"]), ["1"])
    head = net[1]
    net[1] = nn.Linear(5, 4)
    with pytest.raises(AdapterStateError, match=r"modules were replaced after it went in \(1.weight, 1.bias\)"):
        veneer.remove(net)
    assert adapted_slots(net)
    net[1] = head
    veneer.remove(net)
    assert_same(net, before, flags)


def test_a_frozen_norm_comes_back_also_after_a_batch_that_overflowed():
    net = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
    before, flags = snapshot(net), [p.requires_grad for p in net.parameters()]
    veneer.adapt(net, LoraConfig(r=2))
    net.train()(torch.full((3, 7), float("inf")))
    veneer.remove(net)
    assert_same(net, before, flags)


def test_token_rows_come_onto_a_model_without_weights():
    net = nn.ModuleDict({"table": nn.Embedding(11, 7)})
    veneer.adapt(net, LoraConfig(targets=(), token_rows={"table": [4, 1]}))
    with torch.no_grad():
        net["table"].update.rows.add_(1)
    saved = veneer.state(net)
    with torch.device("meta"):
        bare = nn.ModuleDict({"table": nn.Embedding(11, 7)})
    veneer.load_state(bare, saved, any_base=True)
    again = veneer.state(bare).token_rows["table"]
    assert isinstance(again, TokenRows)
    assert torch.equal(again.ids, torch.tensor([1, 4]))
    assert torch.equal(again.rows, saved.token_rows["table"].rows)


@pytest.mark.parametrize("strength", [1e300, -1e300, float("inf"), float("nan"), True, "1"])
def test_a_strength_beyond_any_use_is_refused_before_anything_changes(strength):
    net, x = linear(), torch.randn(4, 7)
    veneer.adapt(net, LoraConfig(r=2))
    expected = filled(net)(x)
    with pytest.raises(ConfigError, match="strength is"):
        veneer.set_strength(net, strength)
    assert torch.equal(net(x), expected)


def test_dropout_may_be_as_near_to_one_as_it_likes():
    net = linear()
    veneer.adapt(net, LoraConfig(r=2, dropout=0.999_999_9))
    output = filled(net).train()(torch.randn(4, 7))
    output.sum().backward()
    assert output.isfinite().all()


def test_what_is_swapped_in_brings_its_dropout_and_whether_A_is_trained():
    one, other = linear(), linear()
    veneer.adapt(one, LoraConfig(r=2))
    veneer.adapt(other, LoraConfig(r=2, dropout=0.5, train_A=False))
    veneer.swap(one, veneer.state(other))
    assert veneer.state(one).config == veneer.state(other).config
    assert {slot.update.dropout for slot in adapted_slots(one).values()} == {0.5}
    assert not any(slot.update.A.requires_grad for slot in adapted_slots(one).values())


def test_a_convolution_of_other_groups_is_refused():
    one = nn.ModuleDict({"conv": nn.Conv1d(4, 6, 3)})
    other = nn.ModuleDict({"conv": nn.Conv1d(8, 6, 3, groups=2)})
    veneer.adapt(one, LoraConfig(r=2, targets=["conv"]))
    with pytest.raises(AdapterMismatchError, match="conv has 2 groups, but the adapter's update of it has 1"):
        veneer.load_state(other, veneer.state(one), any_base=True)


def test_an_update_of_a_layer_of_buffers_alone_lies_where_they_lie():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 7, 5
            self.register_buffer("codes", torch.zeros(5, 7, dtype=torch.uint8, device="meta"))

    net = nn.ModuleDict({"packed": Packed()})
    veneer.adapt(net, LoraConfig(r=2, targets=["packed"]))
    assert {p.device.type for p in net.parameters()} == {"meta"}


def test_a_config_does_not_change_with_what_it_was_made_from():
    pattern = {"0": 3}
    config = LoraConfig(rank_pattern=pattern)
    pattern["0"] = 0
    assert config.rank_of("0") == 3

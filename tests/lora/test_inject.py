"""The laws of adapting: start exact, merge exact, undo exact, restore after failure."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import veneer
from veneer import LoraConfig
from veneer.errors import AdapterStateError, TargetError
from veneer.lora.layers import adapted_slots

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}


def filled(model, *, seed=0):
    """Give every adapter a B that is not zero, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted_slots(model).values():
            layer.update.B.copy_(torch.randn(layer.update.B.shape, generator=generator) * 0.3)
    return model


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model, before, flags):
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
@pytest.mark.parametrize("autocast", [False, True])
def test_with_B_zero_the_output_is_the_base_output_exactly(model, ids, scaling, autocast):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = model(ids)
        veneer.adapt(model, LoraConfig(r=3, scaling=scaling), ["classifier"])
        assert torch.equal(model(ids), expected)


def test_the_update_keeps_the_base_layers_dtype_under_autocast():
    net = nn.Sequential(nn.Linear(7, 5))
    veneer.adapt(net, LoraConfig(r=3, targets=["0"]))
    assert filled(net)(torch.randn(2, 7)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        output = net(torch.randn(2, 7))
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("shape", [(7,), (0, 7), (2, 7), (2, 3, 7), (2, 0, 7)])
def test_any_number_of_batch_dimensions_will_do(shape):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5))
    veneer.adapt(net, LoraConfig(r=3, targets=["0"]))
    x = torch.randn(shape)
    output = filled(net)(x)
    with veneer.merged(net):
        torch.testing.assert_close(output, net(x), rtol=1e-5, atol=1e-5)


def test_only_the_updates_and_the_named_modules_are_trained(model, ids):
    the_plan = veneer.adapt(model, LoraConfig(r=3), ["classifier"])
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(".update." in name or name.startswith("classifier.") for name in trainable)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == the_plan.trainable_parameters
    assert sum(p.numel() for p in model.parameters()) == the_plan.total_parameters
    filled(model)(ids).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    bias=st.booleans(),
    scaling=st.sampled_from(["lora", "rslora"]),
    dtype=st.sampled_from(list(DTYPES)),
)
def test_the_adapted_layer_computes_the_papers_equation_and_equals_its_merge(sizes, bias, scaling, dtype):
    in_features, out_features, rank = sizes
    r = min(rank, in_features, out_features)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(in_features, out_features, bias=bias)).to(dtype)
    x = torch.randn(2, 3, in_features, dtype=dtype)
    W, b = net[0].weight.detach().double(), net[0].bias
    config = LoraConfig(r=r, alpha=5, scaling=scaling, targets=["0"])
    veneer.adapt(net, config)
    update = filled(net)[0].update
    s = 5 / r if scaling == "lora" else 5 / r**0.5
    expected = x.double() @ (W + s * update.B.detach().double() @ update.A.detach().double()).T
    if b is not None:
        expected = expected + b.detach().double()
    output = net(x)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])
    veneer.merge(net)
    assert type(net[0]) is nn.Linear
    torch.testing.assert_close(net(x), output, rtol=DTYPES[dtype], atol=DTYPES[dtype])


def test_a_merged_bf16_weight_is_the_float32_sum_rounded_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5)).to(torch.bfloat16)
    W = net[0].weight.detach().float()
    veneer.adapt(net, LoraConfig(r=3, targets=["0"]))
    update = filled(net)[0].update
    exact = W + (16 / 3) * (update.B @ update.A).detach()
    veneer.merge(net)
    assert torch.equal(net[0].weight, exact.to(torch.bfloat16))


def test_gradients_of_A_and_B_agree_with_finite_differences():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5)).double()
    veneer.adapt(net, LoraConfig(r=3, targets=["0"]))
    update = filled(net)[0].update
    x = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, A, B: net(x), (x, update.A, update.B))


def test_dropout_acts_in_training_mode_only_and_keeps_the_mean():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5))
    veneer.adapt(net, LoraConfig(r=3, dropout=0.5, targets=["0"]))
    filled(net).eval()
    x = torch.randn(1, 7)
    assert torch.equal(net(x), net(x))
    net.train()
    many = net(x.expand(20_000, 7))
    assert many.std(dim=0).min() > 0
    torch.testing.assert_close(many.mean(dim=0), net.eval()(x)[0], atol=0.1, rtol=0)


def test_remove_gives_back_the_very_modules_bit_for_bit_even_after_training(model, ids):
    model.embed.weight.requires_grad_(False)
    before, flags, expected = snapshot(model), [p.requires_grad for p in model.parameters()], model(ids)
    modules = dict(model.named_modules())
    veneer.adapt(model, LoraConfig(r=3), ["classifier"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(ids).square().sum().backward()
        optimizer.step()
    assert not torch.equal(model(ids), expected)
    veneer.remove(model)
    assert_same(model, before, flags)
    assert all(dict(model.named_modules())[name] is module for name, module in modules.items())
    assert torch.equal(model(ids), expected)


@pytest.mark.parametrize("context", [veneer.disabled, veneer.merged])
@pytest.mark.parametrize("fails", [False, True])
def test_a_context_restores_everything_also_after_an_exception(model, ids, context, fails):
    base_output = model(ids)
    veneer.adapt(model, LoraConfig(r=3), ["classifier"])
    filled(model)
    with torch.no_grad():
        model.classifier.weight.add_(1)
    before, flags, adapted_output = snapshot(model), [p.requires_grad for p in model.parameters()], model(ids)
    parameters = list(model.parameters())
    try:
        with context(model):
            inside = model(ids)
            assert not adapted_slots(model)
            if fails:
                raise RuntimeError("user's own error")
    except RuntimeError as error:
        assert fails
        assert "own error" in str(error)  # noqa: PT017
    if context is veneer.disabled:
        assert torch.equal(inside, base_output)
    else:
        torch.testing.assert_close(inside, adapted_output, rtol=1e-5, atol=1e-5)
    assert_same(model, before, flags)
    assert all(old is new for old, new in zip(parameters, model.parameters(), strict=True))
    assert torch.equal(model(ids), adapted_output)


def test_merge_is_all_or_nothing(model, ids):
    veneer.adapt(model, LoraConfig(r=3))
    filled(model)
    with torch.no_grad():
        model.blocks[1].value.update.A[0, 0] = torch.nan
    before, flags = snapshot(model), [p.requires_grad for p in model.parameters()]
    with pytest.raises(AdapterStateError, match=r"blocks\.1\.value\.weight would not be finite"):
        veneer.merge(model)
    after = model.state_dict()
    assert all(torch.equal(after[n].nan_to_num(7), before[n].nan_to_num(7)) for n in before)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_a_layer_used_under_two_names_is_adapted_once_and_everywhere():
    torch.manual_seed(0)
    layer = nn.Linear(7, 7)
    net = nn.Sequential(layer, nn.Tanh(), layer)
    veneer.adapt(net, LoraConfig(r=3))
    filled(net)
    assert net[0] is net[2]
    x = torch.randn(2, 7)
    expected = net(x)
    veneer.merge(net)
    assert net[0] is net[2] is layer
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)


def test_a_failed_adapt_changes_nothing(model):
    before, flags, text = snapshot(model), [p.requires_grad for p in model.parameters()], str(model)
    with pytest.raises(TargetError):
        veneer.adapt(model, LoraConfig(r=3, targets=["query", "valeu"]))
    assert_same(model, before, flags)
    assert str(model) == text


@pytest.mark.parametrize("verb", [veneer.remove, veneer.merge, veneer.state])
def test_a_plain_model_is_refused_where_an_adapted_one_is_needed(model, verb):
    with pytest.raises(AdapterStateError, match="not adapted"):
        verb(model)


def test_the_seed_decides_A_and_the_global_random_state_is_left_alone(model):
    state = torch.get_rng_state()
    twin = copy.deepcopy(model)
    other = copy.deepcopy(model)
    for net, seed in ((model, 4), (twin, 4), (other, 5)):
        veneer.adapt(net, LoraConfig(r=3, seed=seed))
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (net.blocks[0].query.update.A for net in (model, twin, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.abs().max() <= 7**-0.5


def test_copies_and_pickles_are_whole(model, ids):
    veneer.adapt(model, LoraConfig(r=3), ["classifier"])
    expected = filled(model)(ids)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(ids), expected)
        veneer.remove(twin)
        assert not adapted_slots(twin)
    assert torch.equal(model(ids), expected)


def test_the_verbs_work_from_outside_a_wrapper(model, ids):
    veneer.adapt(model, LoraConfig(r=3))
    outer = nn.Sequential(filled(model))
    assert list(veneer.state(outer).updates) == list(veneer.state(model).updates)
    with veneer.disabled(outer):
        assert not adapted_slots(outer)
    veneer.merge(outer)
    assert not adapted_slots(model)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "chosen",
    [{"targets": ["out_proj", "linear1", "linear2"]}, {"targets": [], "parameters": ["in_proj_weight"]}],
    ids=str,
)
def test_modules_that_read_the_weight_themselves_get_the_adapted_weight(mode, chosen):
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    veneer.adapt(net, LoraConfig(r=3, **chosen))
    filled(net).train(mode == "train")
    x = torch.randn(2, 5, 8)
    with torch.no_grad():  # in eval mode this takes the fused path, which never calls the layers
        output = net(x)
        with veneer.merged(net):
            torch.testing.assert_close(output, net(x), rtol=1e-5, atol=1e-5)
        with veneer.disabled(net):
            assert not torch.allclose(output, net(x), atol=1e-3)


def test_the_meta_device_is_enough_to_adapt():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 7))
    veneer.adapt(net, LoraConfig(r=3))
    assert all(p.is_meta for p in net.parameters())
    veneer.remove(net)


@pytest.mark.parametrize("targets", [["query", "value"], []])
@pytest.mark.parametrize("context", [veneer.disabled, veneer.merged])
@pytest.mark.parametrize(
    "verb",
    [
        veneer.remove,
        veneer.merge,
        veneer.state,
        lambda model: veneer.disabled(model).__enter__(),
        lambda model: veneer.merged(model).__enter__(),
        lambda model: veneer.adapt(model, LoraConfig(r=2), ["classifier"]),
    ],
)
def test_within_a_context_every_verb_is_refused_and_nothing_is_lost(model, ids, targets, context, verb):
    veneer.adapt(model, LoraConfig(r=3, targets=targets), ["classifier"])
    expected, before = filled(model)(ids), snapshot(model)
    with context(model), pytest.raises(AdapterStateError):
        verb(model)
    assert torch.equal(model(ids), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("context", [veneer.disabled, veneer.merged])
def test_a_copy_taken_within_a_context_is_a_plain_model(model, ids, context):
    veneer.adapt(model, LoraConfig(r=3))
    filled(model)
    with context(model):
        twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        inside = model(ids)
    for twin in twins:
        assert torch.equal(twin(ids), inside)
        with pytest.raises(AdapterStateError, match="not adapted"):
            veneer.state(twin)
        veneer.adapt(twin, LoraConfig(r=3))
        assert torch.equal(twin(ids), inside)


def test_what_is_merged_in_inference_mode_can_be_trained_afterwards(model, ids):
    veneer.adapt(model, LoraConfig(r=3))
    filled(model)
    with torch.inference_mode():
        veneer.merge(model)
    model.requires_grad_(True)(ids).sum().backward()
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_a_model_with_a_trained_head_alone_counts_as_adapted(model):
    veneer.adapt(model, LoraConfig(targets=[]), ["classifier"])
    with pytest.raises(AdapterStateError, match="adapted already"):
        veneer.adapt(model, LoraConfig(r=3))


@pytest.mark.parametrize("context", [veneer.disabled, veneer.merged])
def test_a_graph_recorded_before_a_context_stays_valid(model, ids, context):
    """A penalty on the distance to the base model needs both outputs in one backward pass."""
    veneer.adapt(model, LoraConfig(r=3), ["classifier"])
    output = filled(model)(ids)
    with context(model), torch.no_grad():
        reference = model(ids)
    (output - reference).square().sum().backward()
    assert model.classifier.weight.grad is not None
    assert model.blocks[0].query.update.A.grad is not None


@pytest.mark.parametrize("context", [veneer.disabled, veneer.merged])
def test_a_mode_set_within_a_context_holds_afterwards(model, context):
    veneer.adapt(model, LoraConfig(r=3, dropout=0.5))
    model.train()
    with context(model):
        model.eval()
    assert not any(module.training for module in model.modules())


def test_a_float64_model_is_left_alone_by_autocast_with_its_adapter():
    net = nn.Sequential(nn.Linear(7, 5)).double()
    x = torch.randn(2, 7, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        expected = net(x)
        veneer.adapt(net, LoraConfig(r=3, targets=["0"]))
        assert torch.equal(net(x), expected)

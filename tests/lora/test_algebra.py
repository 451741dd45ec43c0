"""The laws of adapter arithmetic, on dense deltas in float64, and agreement with PEFT where PEFT is right."""

import copy
import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import veneer
from veneer import LoraConfig
from veneer.errors import AdapterMismatchError, ConfigError
from veneer.lora.algebra import combined, dare, extracted, scaled, shrunk, ties
from veneer.lora.state import AdapterState, LowRank, TokenRows, config_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

SHAPES = {  # kind -> shape of A and of B without the rank, groups
    "linear": ((7,), (5,), 1),
    "embedding": ((7,), (5,), 1),
    "conv": ((2, 3, 1), (6,), 2),
    "parameter": ((7,), (5,), 1),
    "stack": ((7,), (5,), 1),
}


def update(kind, r, generator, dtype=torch.float64):
    inside, out, groups = SHAPES[kind]
    experts = (4,) if kind == "stack" else ()
    A = torch.randn(*experts, r, *inside, generator=generator, dtype=torch.float64).to(dtype)
    B = torch.randn(*experts, *out, r, generator=generator, dtype=torch.float64).to(dtype)
    return LowRank(A, B, kind="parameter" if kind == "stack" else kind, groups=groups)


def adapter(seed, kinds=("linear",), *, r=2, scaling="lora", dtype=torch.float64, **fields):
    """An adapter with layers named for their kinds, ranks r, r + 1, ... and a scaling of its own for each."""
    generator = torch.Generator().manual_seed(seed)
    updates = {f"net.{kind}": update(kind, r + i % 2, generator, dtype) for i, kind in enumerate(kinds)}
    factors = {name: 0.5 + 0.25 * i + 0.1 * seed for i, name in enumerate(updates)}
    config = config_for(updates, factors, LoraConfig(scaling=scaling))
    return AdapterState(config=config, updates=updates, **fields)


def assert_deltas(state, expected, tolerance=1e-12):
    assert all(tensor.is_contiguous() for update in state.updates.values() for tensor in update.tensors().values())
    assert list(state.updates) == list(expected)
    for name, delta in expected.items():
        torch.testing.assert_close(state.delta(name), delta, rtol=tolerance, atol=tolerance)


def deltas(state):
    return {name: state.delta(name) for name in state.updates}


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
def test_an_adapter_of_weight_one_is_itself(scaling):
    state = adapter(1, SHAPES, scaling=scaling)
    result = combined([state], [1.0])
    assert_deltas(result, deltas(state))
    assert [u.rank for u in result.updates.values()] == [u.rank for u in state.updates.values()]
    assert [u.A.shape for u in result.updates.values()] == [u.A.shape for u in state.updates.values()]
    assert result.config.scaling == scaling
    assert all(result.factor(name) == pytest.approx(1, rel=1e-14) for name in result.updates)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_combined_delta_is_the_weighted_sum_of_the_deltas(kind):
    states = [
        adapter(seed, (kind,), r=r, scaling=s) for seed, r, s in ((1, 2, "lora"), (2, 1, "rslora"), (3, 1, "lora"))
    ]
    weights = [0.7, -1.3, 2.0]
    name = f"net.{kind}"
    expected = sum(w * s.delta(name) for w, s in zip(weights, states, strict=True))
    result = combined(states, weights)
    assert_deltas(result, {name: expected})
    assert result.updates[name].rank == 4
    assert (result.updates[name].kind, result.updates[name].groups) == (states[0].updates[name].kind, SHAPES[kind][2])


@pytest.mark.parametrize("kind", SHAPES)
def test_ranks_beyond_the_smaller_side_are_multiplied_out(kind):
    states = [adapter(seed, (kind,), r=4) for seed in (1, 2)]
    name = f"net.{kind}"
    result = combined(states, [1, -2])
    assert_deltas(result, {name: states[0].delta(name) - 2 * states[1].delta(name)})
    assert result.updates[name].rank == min(states[0].delta(name).shape[-2:]) < 8
    assert result.updates[name].A.ndim == states[0].updates[name].A.ndim


def test_a_layer_that_some_adapters_lack_has_only_the_others_terms_and_order_is_kept():
    first, second = adapter(1, ("conv", "linear")), adapter(2, ("embedding", "linear"))
    result = combined([first, second], [2, 3])
    expected = {
        "net.conv": 2 * first.delta("net.conv"),
        "net.linear": 2 * first.delta("net.linear") + 3 * second.delta("net.linear"),
        "net.embedding": 3 * second.delta("net.embedding"),
    }
    assert_deltas(result, expected)
    assert result.updates["net.conv"].rank == first.updates["net.conv"].rank


def test_patterns_and_fused_ranks_of_the_given_configs_are_honoured():
    A, B = torch.randn(6, 7, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    updates = {"a.c_attn": LowRank(A, B), "b.query": LowRank(A[:2], B[:, :2]), "b.key": LowRank(A[:3], B[:, :3])}
    config = LoraConfig(
        r=3,
        alpha=6,
        targets=["c_attn", "query", "key"],
        fused={"c_attn": (True, False, True)},
        rank_pattern={"query": 2},
        alpha_pattern={"b.*": 5},
    )
    result = combined([AdapterState(config=config, updates=updates)], [1])
    assert_deltas(
        result,
        {"a.c_attn": 6 / 3 * B @ A, "b.query": 5 / 2 * B[:, :2] @ A[:2], "b.key": 5 / 3 * B[:, :3] @ A[:3]},
    )
    assert result.config.fused == {}


@pytest.mark.parametrize("weights", [(3, 0.5), (-1, -1), (0.1, 10), (2, 0)])
def test_scaling_composes_and_negates(weights):
    state = adapter(1, SHAPES)
    first, second = weights
    expected = {name: first * second * delta for name, delta in deltas(state).items()}
    assert_deltas(scaled(scaled(state, first), second), expected)
    assert_deltas(combined([state], [first * second]), expected)
    assert_deltas(scaled(state, first * second), expected)


def test_a_weight_of_one_or_minus_one_is_exact_and_keeps_the_config():
    state = adapter(1, SHAPES, scaling="rslora")
    for weight in (1, -1):
        assert scaled(state, weight).config == state.config
        assert all(torch.equal(scaled(state, weight).delta(name), weight * state.delta(name)) for name in state.updates)


def test_the_inputs_stay_as_they_are():
    states = [adapter(seed, SHAPES) for seed in (1, 2)]
    before = copy.deepcopy(states)
    combined(states, [2, 3])
    shrunk(states[0], rank=1)
    ties(states, [1, 1], density=0.5, rank=2)
    for state, old in zip(states, before, strict=True):
        assert state.config == old.config
        assert all(torch.equal(state.updates[n].A, old.updates[n].A) for n in old.updates)
        assert all(torch.equal(state.updates[n].B, old.updates[n].B) for n in old.updates)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_of_narrow_tensors_are_in_float32(dtype):
    state = adapter(1, dtype=dtype)
    for result in (scaled(state, 0.3), combined([state], [0.3]), shrunk(state, energy=1.0)[0]):
        assert {tensor.dtype for tensor in result.updates["net.linear"].tensors().values()} == {torch.float32}
    assert_deltas(scaled(state, 0.3), {"net.linear": 0.3 * state.delta("net.linear")}, 1e-6)


HEAD = {"head.weight": torch.ones(3, 5)}


def test_what_was_trained_whole_is_taken_over_and_scaling_leaves_it_alone():
    rows = TokenRows(torch.tensor([2, 4]), torch.ones(2, 5))
    headed = adapter(1, trained=HEAD, trained_modules=("head",), base_model="base", task_type="SEQ_CLS")
    rowed = replace(adapter(2, base_model="base"), token_rows={"net.embed": rows})
    result = combined([headed, rowed, headed], [1, 2, 3])
    assert list(result.trained) == ["head.weight"]
    assert torch.equal(result.trained["head.weight"], HEAD["head.weight"])
    assert result.trained_modules == ("head",)
    assert result.config.token_rows == {"net.embed": (2, 4)}
    assert result.token_rows["net.embed"] is rows
    assert (result.base_model, result.task_type) == ("base", None)
    assert torch.equal(scaled(headed, 7).trained["head.weight"], HEAD["head.weight"])


def test_adapters_without_layers_are_added_too():
    head = AdapterState(config=LoraConfig(targets=[]), updates={}, trained=HEAD, trained_modules=("head",))
    for result in (combined([head, head], [1, 1]), shrunk(head, rank=2)[0], ties([head], [1], density=1.0, rank=1)[0]):
        assert (result.updates, result.config.targets, result.trained_modules) == ({}, (), ("head",))
    assert_deltas(combined([head, adapter(1)], [2, 3]), {"net.linear": 3 * adapter(1).delta("net.linear")})


def test_where_wholes_clash_the_caller_says_whose_are_taken():
    first = adapter(1, trained=HEAD, trained_modules=("head",))
    second = adapter(2, trained={"head.weight": torch.zeros(3, 5), "b": torch.ones(1)}, trained_modules=("head", "b"))
    with pytest.raises(
        AdapterMismatchError, match=r"head\.weight: trained to different values; name one by trained_from"
    ):
        combined([first, second], [1, 1])
    for index, state in enumerate((first, second)):
        result = combined([first, second], [1, 1], trained_from=index)
        assert result.trained.keys() == state.trained.keys()
        assert torch.equal(result.trained["head.weight"], state.trained["head.weight"])
        assert result.trained_modules == state.trained_modules
        assert_deltas(result, {"net.linear": first.delta("net.linear") + second.delta("net.linear")})


def with_magnitude(state):
    return replace(state, updates={n: replace(u, magnitude=torch.ones(5)) for n, u in state.updates.items()})


def with_nan(state):
    broken = state.updates["net.linear"].A.clone()
    broken[0, 0] = torch.nan
    return replace(state, updates={"net.linear": replace(state.updates["net.linear"], A=broken)})


def with_bias(state):
    return replace(state, config=replace(state.config, bias="all"))


def token_rows(value):
    return {"net.embed": TokenRows(torch.tensor([1]), torch.full((1, 5), value))}


MISFITS = {
    "DoRA": (adapter(1), with_magnitude(adapter(2)), ["net.linear: adapter 1 has a DoRA update", "`extracted`"]),
    "NaN": (with_nan(adapter(1)), adapter(2), ["net.linear.A: adapter 0 holds NaN"]),
    "kinds": (
        adapter(1, ("linear",)),
        replace(
            adapter(2, ("embedding",)), updates={"net.linear": adapter(2, ("embedding",)).updates["net.embedding"]}
        ),
        ["net.linear: the layers differ", "embedding", "linear"],
    ),
    "base copies": (
        adapter(1, base_copies={"tok": torch.ones(2)}),
        adapter(2, base_copies={"tok": torch.zeros(2)}),
        ["tok: the adapters carry different weights of the base"],
    ),
    "bases": (
        adapter(1, fingerprint={"float32": {"net.linear": "a"}, "bfloat16": {"net.linear": "b"}}),
        adapter(2, ("conv", "linear"), fingerprint={"bfloat16": {"net.conv": "b", "net.linear": "c"}}),
        ["fingerprints are of different base weights, in net.linear", "any_base=True"],
    ),
    "base models": (
        adapter(1, base_model="one"),
        adapter(2, ("conv",), base_model="two"),
        ["the base models are 'one' and 'two'", "any_base=True"],
    ),
    "biases": (adapter(1), with_bias(adapter(2)), ["bias: set to all and none"]),
    "rows": (
        adapter(1, token_rows=token_rows(1.0)),
        adapter(2, token_rows=token_rows(2.0)),
        ["net.embed (token rows): trained to different values"],
    ),
    "whole and adapted": (
        adapter(1),
        adapter(2, ("conv",), trained={"net.linear.weight": torch.ones(5, 7)}, trained_modules=("net.linear",)),
        ["net.linear: has an update, but is trained whole as well"],
    ),
    "two at once": (with_nan(adapter(1)), with_bias(adapter(2)), ["holds NaN", "bias: set to"]),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_adapters_that_cannot_be_added_are_refused_with_every_reason(misfit):
    *states, parts = MISFITS[misfit]
    for verb in (
        lambda: combined(states, [1, 1]),
        lambda: ties(states, [1, 1], density=0.5, rank=2),
        lambda: dare(states, [1, 1], density=0.5, rank=2, seed=0),
    ):
        with pytest.raises(AdapterMismatchError) as caught:
            verb()
        assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("verb", [lambda s: scaled(s, 2), lambda s: shrunk(s, rank=1)])
@pytest.mark.parametrize(("broken", "part"), [(with_magnitude, "DoRA"), (with_nan, "NaN")])
def test_one_adapter_is_checked_too(verb, broken, part):
    with pytest.raises(AdapterMismatchError, match=part):
        verb(broken(adapter(1)))


def test_a_sum_knows_of_the_base_what_any_of_its_terms_knows():
    full = adapter(1, fingerprint={"float32": {"net.linear": "a"}, "bfloat16": {"net.linear": "b"}})
    narrow = adapter(2, fingerprint={"bfloat16": {"net.linear": "b"}})
    widened = adapter(2, fingerprint={"float32": {"net.linear": "c"}, "bfloat16": {"net.linear": "b"}})
    other = adapter(3, ("conv",), fingerprint={"bfloat16": {"net.conv": "d"}})
    both = {"net.linear": "b", "net.conv": "d"}
    assert combined([full], [2]).fingerprint == full.fingerprint
    assert combined([full, narrow], [1, 1]).fingerprint == full.fingerprint
    assert combined([full, widened], [1, 1]).fingerprint == narrow.fingerprint
    for verb in (
        lambda states: combined(states, [1, 1]),
        lambda states: ties(states, [1, 1], density=0.5, rank=2)[0],
        lambda states: dare(states, [1, 1], density=0.5, rank=2, seed=0)[0],
    ):
        assert verb([full, other]).fingerprint == {"float32": {"net.linear": "a"}, "bfloat16": both}


def test_adapters_of_different_bases_are_added_only_on_request():
    copies = [{"tok": torch.ones(2), "pos": torch.ones(3)}, {"tok": torch.zeros(2), "pos": torch.ones(3)}]
    states = [
        adapter(seed, base_model=name, fingerprint={"float32": {"net.linear": name}}, base_copies=copy)
        for seed, name, copy in ((1, "one", copies[0]), (2, "two", copies[1]))
    ]
    for verb in (
        lambda **more: combined(states, [1, 1], **more),
        lambda **more: ties(states, [1, 1], density=0.5, rank=2, **more)[0],
        lambda **more: dare(states, [1, 1], density=0.5, rank=2, seed=0, **more)[0],
    ):
        with pytest.raises(AdapterMismatchError, match="fingerprints"):
            verb()
        result = verb(any_base=True)
        assert (result.base_model, result.fingerprint, list(result.base_copies)) == (None, {}, ["pos"])


class Branches(nn.Module):
    """Two layers and nothing else, so that two adapters can have one each."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.left, self.right = nn.Linear(7, 5), nn.Linear(7, 5)


def test_a_sum_over_two_bases_is_refused_by_both_and_a_sum_over_one_is_loaded():
    parts = {}
    for seed, layer in itertools.product((1, 2), ("left", "right")):
        model = Branches(seed)
        veneer.adapt(model, LoraConfig(r=2, targets=[layer]))
        parts[seed, layer] = veneer.state(model)
    for other in (1, 2):
        mixed = combined([parts[1, "left"], parts[other, "right"]], [1, 1])
        for seed in (1, 2):
            if seed == other == 1:
                veneer.load_state(Branches(seed), mixed)
            else:
                with pytest.raises(AdapterMismatchError, match="other weights"):
                    veneer.load_state(Branches(seed), mixed)
                veneer.load_state(Branches(seed), mixed, any_base=True)


BAD_SETTINGS = {
    "no adapter": (lambda s: combined([], []), ["0 adapters and 0 weights"]),
    "weights": (lambda s: combined([s, s], [1]), ["2 adapters and 1 weights"]),
    "not finite": (lambda s: combined([s, s], [math.inf, math.nan]), ["weights[0] is inf", "weights[1] is nan"]),
    "no number": (lambda s: scaled(s, "2"), ["weights[0] is '2'"]),
    "trained_from": (lambda s: combined([s], [1], trained_from=1), ["trained_from is 1"]),
    "neither": (shrunk, ["give exactly one"]),
    "both": (lambda s: shrunk(s, rank=2, energy=0.5), ["give exactly one"]),
    "rank 0": (lambda s: shrunk(s, rank=0), ["rank is 0"]),
    "rank True": (lambda s: shrunk(s, rank=True), ["rank is True"]),
    "energy 0": (lambda s: shrunk(s, energy=0), ["energy is 0"]),
    "energy nan": (lambda s: shrunk(s, energy=math.nan), ["energy is nan"]),
    "density": (lambda s: ties([s], [1], density=1.5, rank=0), ["density is 1.5", "rank is 0"]),
    "seed": (lambda s: dare([s], [1], density=0, rank=1, seed=-1), ["density is 0", "seed is -1"]),
    "extraction": (lambda s: extracted({}, {}, rank=1.5), ["rank is 1.5"]),
    "a state for a list": (lambda s: combined(s, [1.0]), ["states is of type AdapterState; it must be a Sequence"]),
    "a number for a list": (lambda s: combined([s], 1.0), ["weights is of type float; it must be a Collection"]),
    "modules": (
        lambda s: ties([nn.Linear(1, 1), s, None], [1, 1, 1], density=1.0, rank=1),
        ["states[0] is of type Linear; it must be an AdapterState", "states[2] is of type NoneType", "veneer.state("],
    ),
    "a module to scale": (lambda s: scaled(nn.Linear(1, 1), 2.0), ["state is of type Linear"]),
    "a module to shrink": (lambda s: shrunk(nn.Linear(1, 1), rank=1), ["state is of type Linear"]),
    "modules to extract from": (
        lambda s: extracted(nn.Linear(1, 1), nn.ReLU(), rank=8),
        ["base is of type Linear; it must be a Mapping", "tuned is of type ReLU", "model.state_dict()"],
    ),
    "no tensors": (lambda s: extracted({"a": 1}, {}, rank=8), ["'a' of base is of type int; it must be a Tensor"]),
}


@pytest.mark.parametrize("bad", BAD_SETTINGS)
def test_settings_outside_what_is_allowed_are_refused_by_name(bad):
    call, parts = BAD_SETTINGS[bad]
    with pytest.raises(ConfigError) as caught:
        call(adapter(1))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("rank", [4, 99])
def test_shrinking_to_the_full_rank_changes_nothing(rank):
    state = adapter(1, SHAPES, r=3)
    result, errors = shrunk(state, rank=rank)
    assert_deltas(result, deltas(state))
    assert list(errors.values()) == [0.0] * len(SHAPES)
    assert [u.rank for u in result.updates.values()] == [u.rank for u in state.updates.values()]


@pytest.mark.parametrize("kind", SHAPES)
def test_the_shrunk_delta_is_the_truncated_decomposition_of_the_dense_one(kind):
    state = adapter(2, (kind,), r=4)
    name = f"net.{kind}"
    U, S, Vh = torch.linalg.svd(state.delta(name), full_matrices=False)
    result, errors = shrunk(state, rank=2)
    assert_deltas(result, {name: U[..., :2] @ (S[..., :2, None] * Vh[..., :2, :])})
    assert errors[name] == pytest.approx(float(S[..., 2:].norm() / S.norm()), rel=1e-12)
    direct = (state.delta(name) - result.delta(name)).norm() / state.delta(name).norm()
    assert errors[name] == pytest.approx(float(direct), rel=1e-9)
    assert result.updates[name].A.shape[1:] == state.updates[name].A.shape[1:] or kind == "stack"


def test_each_layer_finds_the_smallest_rank_that_keeps_the_energy():
    values = {"a": [4.0, 2.0, 1.0], "b": [3.0, 3.0, 3.0], "c": [9.0, 0.25, 0.25], "d": [6.0, 1.5, 1.5], "e": [0.0] * 3}
    B = {name: torch.eye(5, 3).double() * torch.tensor(value).double() for name, value in values.items()}
    updates = {name: LowRank(torch.eye(3, 7).double(), B[name]) for name in values}
    state = AdapterState(config=config_for(updates, dict.fromkeys(updates, 2.0)), updates=updates)
    result, errors = shrunk(state, energy=0.9)  # 20 of 21; 27 of 27; 81 of 81.125; 38.25 of 40.5 (36 are too few); 0
    assert [u.rank for u in result.updates.values()] == [2, 3, 1, 2, 1]
    expected = {"a": math.sqrt(1 / 21), "b": 0.0, "c": math.sqrt(0.125 / 81.125), "d": math.sqrt(2.25 / 40.5), "e": 0.0}
    assert errors == pytest.approx(expected, rel=1e-12)
    assert result.config.rank_of("b") == 3


def test_energy_one_keeps_everything_however_small():
    A, B = torch.eye(3, 7).double(), torch.eye(5, 3).double() * torch.tensor([1.0, 1e-5, 1e-11])
    state = AdapterState(config=config_for({"a": LowRank(A, B)}, {"a": 1.0}), updates={"a": LowRank(A, B)})
    result, errors = shrunk(state, energy=1.0)
    assert result.updates["a"].rank == 3
    assert errors == {"a": 0.0}
    torch.testing.assert_close(result.delta("a"), B @ A, rtol=1e-9, atol=0)


def test_shrinking_undoes_the_rank_that_adding_an_adapter_to_itself_costs():
    state = adapter(1)
    doubled = combined([state, state], [1, 1])
    assert doubled.updates["net.linear"].rank == 4
    result, errors = shrunk(doubled, rank=2)
    assert_deltas(result, {"net.linear": 2 * state.delta("net.linear")})
    assert errors["net.linear"] < 1e-12


def weights_with(state):
    """Base weights, and the same with the deltas of an adapter's three two-dimensional kinds added."""
    generator = torch.Generator().manual_seed(9)
    base = {
        "net.linear.weight": torch.randn(5, 7, generator=generator, dtype=torch.float64),
        "net.embedding.weight": torch.randn(7, 5, generator=generator, dtype=torch.float64),
        "net.parameter": torch.randn(5, 7, generator=generator, dtype=torch.float64),
        "net.linear.bias": torch.randn(5, generator=generator, dtype=torch.float64),
        "net.kernel.weight": torch.randn(5, 7, 3, generator=generator, dtype=torch.float64),
        "net.same.weight": torch.randn(5, 7, generator=generator, dtype=torch.float64),
        "net.steps": torch.tensor(3),
    }
    tuned = dict(base)
    tuned["net.linear.weight"] = base["net.linear.weight"] + state.delta("net.linear")
    tuned["net.embedding.weight"] = base["net.embedding.weight"] + state.delta("net.embedding").T
    tuned["net.parameter"] = base["net.parameter"] + state.delta("net.parameter")
    return base, tuned


def test_extraction_gives_back_the_very_deltas_that_were_added():
    state = adapter(1, ("linear", "embedding", "parameter"))
    base, tuned = weights_with(state)
    names = ["net.linear.weight", "net.embedding.weight", "net.parameter", "net.same.weight"]
    found = extracted(base, tuned, rank=3, names=names, embeddings=["net.embedding.weight"])
    assert_deltas(found.state, deltas(state))
    assert {name: u.kind for name, u in found.state.updates.items()} == {n: n[4:] for n in state.updates}
    assert found.state.updates["net.embedding"].A.shape == (3, 7)
    assert found.not_held == ()
    assert all(error < 1e-12 for error in found.errors.values())
    assert found.state.config.parameters == ("net.parameter",)


def test_extraction_holds_matrices_called_weight_and_names_whatever_else_differs():
    base, tuned = weights_with(adapter(1, ("linear", "embedding", "parameter")))
    tuned["net.linear.bias"] = tuned["net.linear.bias"] + 1
    tuned["net.kernel.weight"] = tuned["net.kernel.weight"] * 2
    tuned["net.steps"] = torch.tensor(4)
    tuned["net.same.weight"] = torch.zeros(6, 7)
    tuned["score.weight"] = torch.zeros(3, 7)
    base["pooler.weight"] = torch.zeros(3, 7)
    found = extracted(base, tuned, rank=3)
    assert list(found.state.updates) == ["net.linear", "net.embedding"]
    rest = ["parameter", "linear.bias", "kernel.weight", "same.weight", "steps"]
    assert set(found.not_held) == {*(f"net.{name}" for name in rest), "score.weight", "pooler.weight"}


@pytest.mark.parametrize("rank", [1, 3, 5, 99])
def test_the_extraction_error_is_what_the_rank_leaves_out(rank):
    base, tuned = {"a.weight": torch.zeros(5, 7)}, {"a.weight": torch.randn(5, 7, generator=torch.manual_seed(0))}
    found = extracted(base, tuned, rank=rank)
    S = torch.linalg.svdvals(tuned["a.weight"].double())
    assert found.errors["a"] == pytest.approx(float(S[rank:].norm() / S.norm()), abs=1e-6)
    assert found.state.updates["a"].rank == min(rank, 5)
    direct = (tuned["a.weight"] - found.state.delta("a")).norm() / tuned["a.weight"].norm()
    assert found.errors["a"] == pytest.approx(float(direct), abs=1e-6)


@pytest.mark.parametrize("tuned", [{}, {"a.bias": torch.ones(5)}])
def test_weights_without_a_difference_to_hold_are_refused(tuned):
    base = {"a.weight": torch.ones(5, 7), "a.bias": torch.zeros(5)}
    with pytest.raises(AdapterMismatchError, match=rf"none of the 1 matrices .* {'a.bias' if tuned else 'the same'}"):
        extracted(base, base | tuned, rank=2)


def test_a_state_prints_as_one_line_without_its_tensors():
    state = adapter(1, ("linear", "conv"), trained=HEAD, trained_modules=("head",), base_model="some/model")
    expected = "2 layers; ranks 2 to 3; lora; trained whole: head.weight; base_model='some/model'"
    assert repr(state) == f"AdapterState({expected})"
    assert repr(adapter(1)) == "AdapterState(1 layer; rank 2; lora; base_model=None)"


def test_a_transposed_layer_is_seen_as_out_in():
    tuned = {"c_attn.weight": torch.randn(7, 5)}
    found = extracted({"c_attn.weight": torch.zeros(7, 5)}, tuned, rank=5, transposed=["c_attn.weight"])
    assert_deltas(found.state, {"c_attn": tuned["c_attn.weight"].T}, 1e-5)
    assert found.state.updates["c_attn"].kind == "linear"


def test_bf16_weights_are_subtracted_in_float32():
    base = {"a.weight": torch.ones(5, 7, dtype=torch.bfloat16)}
    tuned = {"a.weight": torch.full((5, 7), 1.0 + 2**-20)}
    found = extracted(base, tuned, rank=1)
    torch.testing.assert_close(found.state.delta("a"), torch.full((5, 7), 2.0**-20), rtol=1e-4, atol=0)


def test_extraction_refuses_what_it_cannot_use_with_every_reason():
    base, tuned = weights_with(adapter(1, ("linear", "embedding", "parameter")))
    tuned["net.linear.weight"] = tuned["net.linear.weight"] / 0
    names = ["net.linear.weight", "net.linear.bias", "net.lost"]
    with pytest.raises(AdapterMismatchError) as caught:
        extracted(base, tuned, rank=2, names=names, embeddings=["net.embed.weight"])
    for part in (
        "net.linear.weight: holds NaN",
        "net.linear.bias: is not a matrix",
        "net.lost: is not",
        "net.embed.weight",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("merge", [ties, lambda *a, **k: dare(*a, **k, seed=3)])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_merging_one_adapter_at_density_one_only_scales_it(merge, weight):
    state = adapter(1, SHAPES)
    result, errors = merge([state], [weight], density=1.0, rank=4)
    assert_deltas(result, {name: weight * delta for name, delta in deltas(state).items()})
    assert [u.A.ndim for u in result.updates.values()] == [u.A.ndim for u in state.updates.values()]
    assert all(error < 1e-12 for error in errors.values())


def dense(value):
    """An adapter whose delta is this matrix."""
    matrix = torch.tensor(value, dtype=torch.float64)
    updates = {"a": LowRank(matrix, torch.eye(len(value), dtype=torch.float64))}
    return AdapterState(config=config_for(updates, {"a": 1.0}), updates=updates)


def test_ties_trims_elects_and_takes_the_mean_of_those_that_agree():
    """By hand: trimming keeps 3 of 6 entries; columns: one agrees, two agree, they disagree and the larger sum wins."""
    first = dense([[5.0, 4.0, -3.0], [0.1, 0.2, 0.3]])
    second = dense([[0.1, 2.0, 7.0], [0.2, -6.0, 0.1]])
    result, _ = ties([first, second], [1, 1], density=0.5, rank=2)
    assert_deltas(result, {"a": torch.tensor([[5.0, 3.0, 7.0], [0.0, -6.0, 0.0]], dtype=torch.float64)})
    result, _ = ties([first, second], [4, 1], density=0.5, rank=2)  # now -12 beats 7, and (16 + 2) / 2 = 9
    assert_deltas(result, {"a": torch.tensor([[20.0, 9.0, -12.0], [0.0, -6.0, 0.0]], dtype=torch.float64)})


def test_ties_of_opposites_is_nothing_and_of_equals_is_the_same():
    state = adapter(1)
    opposite = scaled(state, -1)
    assert_deltas(ties([state, opposite], [1, 1], density=1.0, rank=2)[0], {"net.linear": torch.zeros(5, 7).double()})
    assert_deltas(ties([state, state], [1, 1], density=1.0, rank=2)[0], deltas(state))


def test_a_weight_negates_before_the_signs_are_elected():
    state = adapter(1)
    assert_deltas(ties([state, scaled(state, -1)], [1, -1], density=1.0, rank=2)[0], deltas(state))


def test_dare_at_density_one_is_the_weighted_sum():
    states = [adapter(seed, SHAPES) for seed in (1, 2)]
    result, _ = dare(states, [0.4, -2], density=1.0, rank=99, seed=0)
    assert_deltas(result, deltas(combined(states, [0.4, -2])))


def test_dare_keeps_the_mean_and_its_seed_decides():
    states, weights, density = [adapter(1), adapter(2)], [1.0, -0.5], 0.3
    draws = torch.stack(
        [dare(states, weights, density=density, rank=5, seed=s)[0].delta("net.linear") for s in range(400)]
    )
    terms = [w * s.delta("net.linear") for w, s in zip(weights, states, strict=True)]
    spread = sum(t.square() for t in terms).mul((1 - density) / density / 400).sqrt()
    assert ((draws.mean(dim=0) - sum(terms)).abs() < 5 * spread + 1e-9).all()
    torch.testing.assert_close(draws.std(dim=0) / 20, spread, rtol=0.25, atol=0)
    assert torch.equal(draws[0], dare(states, weights, density=density, rank=5, seed=0)[0].delta("net.linear"))
    assert not torch.allclose(draws[0], draws[1])


def test_dare_drops_whole_entries_of_the_delta_and_rescales_the_others():
    state = adapter(1)
    result = dare([state], [1], density=0.5, rank=5, seed=1)[0].delta("net.linear")
    delta = state.delta("net.linear")
    dropped = result.abs() < 1e-9
    assert 0 < dropped.sum() < dropped.numel()
    torch.testing.assert_close(result[~dropped], 2 * delta[~dropped], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("merge", [ties, lambda *a, **k: dare(*a, **k, seed=3)])
def test_the_error_of_a_merge_is_what_its_rank_leaves_out(merge):
    states = [adapter(seed, SHAPES) for seed in (1, 2)]
    full, _ = merge(states, [1, 1], density=0.5, rank=99)
    result, errors = merge(states, [1, 1], density=0.5, rank=2)
    for name in result.updates:
        direct = (full.delta(name) - result.delta(name)).norm() / full.delta(name).norm()
        assert errors[name] == pytest.approx(float(direct), rel=1e-9)
        assert errors[name] > 0.05
        assert result.updates[name].rank == 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 7)
        self.up = nn.Linear(7, 5)
        self.conv = nn.Conv1d(4, 6, 3, groups=2)


def with_peft(ranks, *, rslora=False, targets=("embed", "up")):
    """A PEFT model with adapters "0", "1", ... filled at random, and the same adapters as our values."""
    torch.manual_seed(0)
    settings = {"lora_alpha": 5, "use_rslora": rslora, "target_modules": list(targets)}
    model = peft.get_peft_model(Net().double(), peft.LoraConfig(r=ranks[0], **settings), adapter_name="0")
    for i, r in enumerate(ranks[1:], start=1):
        model.add_adapter(str(i), peft.LoraConfig(r=r, **settings))
    states = []
    for i in range(len(ranks)):
        updates = {}
        for name in targets:
            layer = model.get_submodule(f"base_model.model.{name}")
            A, B = (
                (layer.lora_embedding_A[str(i)], layer.lora_embedding_B[str(i)])
                if name == "embed"
                else (layer.lora_A[str(i)].weight, layer.lora_B[str(i)].weight)
            )
            nn.init.normal_(A)
            nn.init.normal_(B)
            updates[name] = LowRank(A.detach(), B.detach().clone(), kind={"embed": "embedding"}.get(name, "linear"))
        factors = dict.fromkeys(updates, 5 / ranks[i] ** (0.5 if rslora else 1))
        config = config_for(updates, factors, LoraConfig(scaling="rslora" if rslora else "lora"))
        states.append(AdapterState(config=config, updates=copy.deepcopy(updates)))
    return model, states


def in_peft(model, adapter_name):
    delta = {n: model.get_submodule(f"base_model.model.{n}").get_delta_weight(adapter_name) for n in ("embed", "up")}
    return {"embed": delta["embed"].detach().T, "up": delta["up"].detach()}


def merged_by_peft(model, kind, weights, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapters = [str(i) for i in range(len(weights))]
        model.base_model.add_weighted_adapter(adapters, weights, "merged", combination_type=kind, **settings)
    return in_peft(model, "merged")


def test_the_adapters_given_to_peft_mean_the_same_there():
    for rslora in (False, True):
        model, states = with_peft([2, 3], rslora=rslora)
        for i, state in enumerate(states):
            assert_deltas(state, in_peft(model, str(i)))


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, -1.5]])
def test_cat_agrees_with_peft(weights):
    model, states = with_peft([2, 3])
    assert_deltas(combined(states, weights), merged_by_peft(model, "cat", weights))


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, -1.5]])
def test_shrinking_a_sum_agrees_with_peft(weights):
    model, states = with_peft([2, 2])
    result, _ = shrunk(combined(states, weights), rank=2)
    assert_deltas(result, merged_by_peft(model, "svd", weights, svd_rank=2), 1e-6)  # PEFT's weights are float32


def test_ties_on_deltas_agrees_with_peft():
    model, states = with_peft([2, 2])
    result, _ = ties(states, [1, 1], density=0.4, rank=3)
    assert_deltas(result, merged_by_peft(model, "ties_svd", [1.0, 1.0], svd_rank=3, density=0.4), 1e-9)


def test_pefts_linear_sum_has_cross_terms_that_no_adapter_was_trained_with():
    """Two adapters of scaling 1 and weight 1: PEFT computes (B1 + B2)(A1 + A2), which is not B1 A1 + B2 A2."""
    model, states = with_peft([5, 5])
    (A1, B1), (A2, B2) = (state.updates["up"].matrices for state in states)
    theirs = merged_by_peft(model, "linear", [1.0, 1.0])["up"]
    ours = combined(states, [1, 1]).delta("up")
    torch.testing.assert_close(ours, B1 @ A1 + B2 @ A2)
    torch.testing.assert_close(theirs - ours, B1 @ A2 + B2 @ A1)


def test_pefts_cat_of_rslora_adapters_is_too_large_by_the_root_of_the_new_rank():
    model, states = with_peft([8, 8], rslora=True, targets=("embed", "up"))
    theirs = merged_by_peft(model, "cat", [1.0, 1.0])
    ours = combined(states, [1, 1])
    assert_deltas(ours, {n: states[0].delta(n) + states[1].delta(n) for n in ours.updates})
    assert_deltas(ours, {name: delta / 4 for name, delta in theirs.items()})

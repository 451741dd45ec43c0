"""The laws of the starts: the weight is only read, the draws are the generator's, and each start is its paper's."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from veneer.errors import ConfigError, DataError, UnknownNameError
from veneer.lora.config import CHOICES
from veneer.lora.delta import delta_weight
from veneer.lora.init import INITS, MIN_DIRECTIONS, SPARE_DIRECTIONS, InputDirections, input_directions, kaiming, start

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

S = 1.7
FLOATS = (torch.float64, torch.float32, torch.bfloat16)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_weight(*shape, dtype=torch.float64, seed=3):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def rank_for(name):
    return 2 if name == "orthogonal" else 3


def projection(rows):
    """Return the projection onto the space of orthonormal rows: the same for every basis of it."""
    return rows.mT @ rows


def top_directions(x, r):
    return torch.linalg.svd(x.flatten(0, -2).double(), full_matrices=False).Vh[:r]


def test_the_table_has_the_names_of_the_config():
    assert tuple(INITS) == CHOICES["init"]


@pytest.mark.parametrize("name", INITS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stack", [(), (4,)])
def test_a_start_has_its_shapes_in_float32_or_wider_and_leaves_the_weight_as_it_was(name, dtype, stack):
    weight = nn.Parameter(random_weight(*stack, 5, 7, dtype=dtype))
    before, r = weight.detach().clone(), rank_for(name)
    A, B = start(name, weight, r, S, seeded())
    assert A.shape == (*stack, r, 7)
    assert B.shape == (*stack, 5, r)
    assert A.dtype == B.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert A.is_contiguous()
    assert B.is_contiguous()
    assert not A.requires_grad
    assert not B.requires_grad
    assert A.untyped_storage().nbytes() == A.numel() * A.element_size()
    assert torch.equal(weight, before)
    assert INITS[name].subtracted or not B.any()


@pytest.mark.parametrize("name", INITS)
def test_a_stack_of_weights_starts_with_the_law_of_each(name):
    weight = random_weight(4, 5, 7)
    r = rank_for(name)
    stacked = delta_weight(*start(name, weight, r, S, seeded()), S)
    for layer, product in zip(weight, stacked, strict=True):
        if INITS[name].needs_weight:
            torch.testing.assert_close(product, delta_weight(*start(name, layer, r, S, seeded()), S))
        else:
            assert product.abs().max() < 1e-6


@pytest.mark.parametrize("name", [name for name, init in INITS.items() if not init.needs_weight])
def test_the_generator_alone_decides_the_draws(name):
    weight, r, state = random_weight(5, 7, dtype=torch.float32), rank_for(name), torch.get_rng_state()
    first, again, other = (start(name, weight, r, S, seeded(seed)).A for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(start(name, weight.double(), r, S, seeded(1)).A, first.double())
    with torch.device("meta"):
        assert torch.equal(start(name, weight, r, S, seeded(1)).A, first)


@pytest.mark.parametrize("name", INITS)
def test_the_meta_device_will_do_unless_the_weight_is_needed(name):
    weight = torch.empty(5, 7, device="meta")
    if INITS[name].needs_weight:
        with pytest.raises(ConfigError, match="meta device"):
            start(name, weight, rank_for(name), S, seeded())
    else:
        made = start(name, weight, rank_for(name), S, seeded())
        assert made.A.is_meta
        assert made.B.is_meta
        assert made.B.shape == (5, rank_for(name))


def test_kaiming_is_uniform_within_one_over_the_root_of_in():
    A = kaiming(300, 7, seeded())
    assert A.abs().max() <= 7**-0.5
    torch.testing.assert_close(A.var(), torch.tensor(1 / (3 * 7)), rtol=0.1, atol=0)
    assert torch.equal(kaiming(3, 7, seeded(1)), torch.empty(3, 7).uniform_(-(7**-0.5), 7**-0.5, generator=seeded(1)))


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, r=st.integers(1, 9), scaling=st.sampled_from([0.25, 1.0, 8.0]))
def test_pissa_takes_the_truncated_svd_in_two_equal_halves(shape, r, scaling):
    weight = random_weight(*shape)
    r = min(r, *shape)
    A, B = start("pissa", weight, r, scaling, seeded())
    U, singular, Vh = torch.linalg.svd(weight)
    principal = U[:, :r] @ singular[:r].diag() @ Vh[:r]
    torch.testing.assert_close(delta_weight(A, B, scaling), principal, rtol=0, atol=1e-10)
    torch.testing.assert_close(A @ A.T, (singular[:r] / scaling).diag(), rtol=0, atol=1e-10)
    torch.testing.assert_close(B.T @ B, (singular[:r] / scaling).diag(), rtol=0, atol=1e-10)
    residual = torch.linalg.matrix_norm(weight - delta_weight(A, B, scaling))
    torch.testing.assert_close(residual, singular[r:].square().sum().sqrt(), rtol=0, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, r=st.integers(1, 9))
def test_olora_spans_the_first_columns_and_leaves_nothing_of_them(shape, r):
    weight = random_weight(*shape)
    r = min(r, *shape)
    A, B = start("olora", weight, r, S, seeded())
    torch.testing.assert_close(B.T @ B, torch.eye(r, dtype=torch.float64))
    torch.testing.assert_close((B @ A)[:, :r], weight[:, :r])
    torch.testing.assert_close(B @ A, B @ (B.T @ weight))


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, half=st.integers(1, 3))
def test_orthogonal_is_neither_zero_nor_of_any_effect(shape, half):
    A, B = start("orthogonal", torch.zeros(shape), 2 * half, S, seeded())
    assert A.any()
    assert B.any()
    torch.testing.assert_close(B @ A, torch.zeros(shape), rtol=0, atol=1e-6)


def peft_layer(weight, name, r, alpha):
    net = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    net[0].weight.data.copy_(weight)
    config = PeftConfig(r=r, lora_alpha=alpha, target_modules=["0"], init_lora_weights=name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(net, config).base_model.model[0]


@pytest.mark.parametrize("name", ["pissa", "olora"])
@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6)])
@pytest.mark.parametrize("r", [1, 3, 5])
def test_the_weight_peft_leaves_is_what_is_subtracted_here(name, shape, r):
    weight, alpha = random_weight(*shape, dtype=torch.float32), 4
    layer = peft_layer(weight, name, r, alpha)
    A, B = start(name, weight, r, alpha / r, seeded())
    theirs = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(B @ A, theirs.detach(), rtol=1e-5, atol=1e-5)
    left = weight - delta_weight(A, B, alpha / r)
    torch.testing.assert_close(left, layer.base_layer.weight.detach(), rtol=1e-5, atol=1e-5)


PEFT_DRAWS = {
    "kaiming": lambda layer: layer.reset_lora_parameters("default", True),
    "gaussian": lambda layer: layer.reset_lora_parameters("default", "gaussian"),
    "orthogonal": lambda layer: layer.orthogonal_init("default"),
}


@pytest.mark.parametrize("name", PEFT_DRAWS)
def test_the_draws_are_pefts_for_the_same_seed(name):
    weight = random_weight(5, 7, dtype=torch.float32)
    layer = peft_layer(weight, True, 4, 4)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        PEFT_DRAWS[name](layer)
    A, B = start(name, weight, 4, S, seeded(11))
    torch.testing.assert_close(A, layer.lora_A["default"].weight.detach())
    torch.testing.assert_close(B, layer.lora_B["default"].weight.detach())


@pytest.mark.parametrize(
    ("name", "weight", "r", "part"),
    [
        ("orthogonal", torch.ones(5, 7), 3, "r is 3; .* even"),
        ("pissa", torch.ones(5, 7), 6, r"r is 6; a weight of shape \(5, 7\) has no more than 5"),
        ("olora", torch.ones(7, 5), 6, "no more than 5"),
        ("olora", torch.full((5, 7), torch.nan), 3, "NaN or infinity"),
        ("pissa", torch.full((5, 7), torch.inf), 3, "NaN or infinity"),
    ],
)
def test_what_cannot_start_is_refused_with_the_reason(name, weight, r, part):
    with pytest.raises(ConfigError, match=part):
        start(name, weight, r, S, seeded())


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'pissa'\? Known: kaiming, gaussian"):
        start("pisa", torch.ones(5, 7), 3, S, seeded())


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5), r=st.integers(1, 4), dtype=st.sampled_from(FLOATS))
def test_the_directions_are_the_right_singular_vectors_of_all_inputs_together(sizes, r, dtype):
    batches = [(random_weight(n, 2, 7, seed=k) + 0.5).to(dtype) for k, n in enumerate(sizes)]
    seen = InputDirections(kept=7)
    for batch in batches:
        seen.update(batch)
    if not sum(sizes):
        with pytest.raises(DataError, match="span 0 dimensions, but r is"):
            seen.directions(r)
        return
    r = min(r, 2 * sum(sizes))
    found, expected = seen.directions(r).double(), top_directions(torch.cat(batches), r)
    torch.testing.assert_close(found @ found.T, torch.eye(r, dtype=torch.float64), rtol=0, atol=1e-5)
    for rank in range(1, r + 1):  # each direction up to its sign
        torch.testing.assert_close(projection(found[:rank]), projection(expected[:rank]), rtol=0, atol=2e-3)


def test_few_directions_are_enough_where_the_inputs_span_few():
    """5 of 40 dimensions, 12 batches: exact with 5 directions held, although 40 do not fit."""
    basis = random_weight(5, 40)
    batches = [random_weight(9, 5, seed=k) @ basis for k in range(12)]
    seen = InputDirections(kept=5)
    for batch in batches:
        seen.update(batch)
    expected = top_directions(torch.cat(batches), 3)
    torch.testing.assert_close(projection(seen.directions(3)), projection(expected), rtol=0, atol=1e-10)


def test_no_more_is_held_between_batches_than_was_asked_for():
    seen = InputDirections(kept=4)
    for seed in range(5):
        seen.update(random_weight(30, 40, seed=seed))
        held = [value for value in vars(seen).values() if isinstance(value, torch.Tensor)]
        assert [tensor.untyped_storage().nbytes() for tensor in held] == [4 * 40 * 8]
    with pytest.raises(DataError, match="span 4 dimensions, but r is 5"):
        seen.directions(5)


def test_inputs_that_span_too_little_or_hold_nan_are_refused_by_name():
    seen = InputDirections(kept=7, name="blocks.0.query")
    with pytest.raises(DataError, match=r"blocks\.0\.query: saw no input"):
        seen.directions(1)
    seen.update(random_weight(9, 2) @ random_weight(2, 7))
    with pytest.raises(DataError, match=r"blocks\.0\.query: its inputs span 2 dimensions, but r is 3"):
        seen.directions(3)
    with pytest.raises(DataError, match=r"blocks\.0\.query: an input holds NaN"):
        seen.update(torch.tensor([[torch.nan] * 7]))


def ids_batches(count=4):
    return [torch.randint(0, 11, (4, 6), generator=seeded(k)) for k in range(count)]


def layers_of(model, *names):
    return {name: model.get_submodule(name) for name in names}


NAMES = ("blocks.0.query", "blocks.1.value")


@pytest.mark.parametrize("form", [lambda ids: ids, lambda ids: (ids,), lambda ids: [ids], lambda ids: {"ids": ids}])
def test_a_model_gives_each_layer_the_directions_of_its_own_inputs(model, form):
    ranks = {"blocks.0.query": 3, "blocks.1.value": 2}
    recorded = {name: [] for name in NAMES}
    twin = copy.deepcopy(model)
    for name in NAMES:
        twin.get_submodule(name).register_forward_hook(lambda _m, args, _o, name=name: recorded[name].append(args[0]))
    with torch.no_grad():
        for ids in ids_batches():
            twin(ids)
    found = input_directions(model, layers_of(model, *NAMES), [form(ids) for ids in ids_batches()], r=ranks)
    assert {name: A.shape for name, A in found.items()} == {"blocks.0.query": (3, 7), "blocks.1.value": (2, 5)}
    for name, A in found.items():
        assert A.is_contiguous()
        expected = top_directions(torch.cat(recorded[name]), ranks[name])
        torch.testing.assert_close(projection(A.double()), projection(expected), rtol=0, atol=1e-4)


def test_a_layer_called_with_a_keyword_is_seen_too():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(7, 5)

        def forward(self, x):
            return self.inner(input=x)

    net, x = Wrapper(), random_weight(9, 7, dtype=torch.float32)
    found = input_directions(net, {"inner": net.inner}, [x], r={"inner": 3})["inner"]
    torch.testing.assert_close(projection(found.double()), projection(top_directions(x, 3)), rtol=0, atol=1e-4)


def failing_batches():
    yield from ids_batches(1)
    torch.rand(3)
    raise RuntimeError("user's own error")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_model_is_left_as_it_was_also_after_an_exception(model, fails, autocast):
    model.train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    before, state = {name: t.clone() for name, t in model.state_dict().items()}, torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if fails:
            with pytest.raises(RuntimeError, match="own error"):
                input_directions(model, layers_of(model, *NAMES), failing_batches(), r=dict.fromkeys(NAMES, 2))
        else:
            found = input_directions(model, layers_of(model, *NAMES), ids_batches(), r=dict.fromkeys(NAMES, 2))
            assert not any(A.requires_grad for A in found.values())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_the_model_observes_in_eval_mode(model):
    """Dropout before the head would otherwise zero inputs at random."""
    names = ("classifier",)
    first, again = (
        input_directions(model.train(), layers_of(model, *names), ids_batches(), r={"classifier": 2}) for _ in range(2)
    )
    found = input_directions(model.eval(), layers_of(model, *names), ids_batches(), r={"classifier": 2})
    assert torch.equal(first["classifier"], again["classifier"])
    assert torch.equal(first["classifier"], found["classifier"])


def test_all_layers_that_saw_too_little_are_named(model):
    layers = layers_of(model, *NAMES) | {"unused": nn.Linear(7, 5)}
    ranks = {"blocks.0.query": 3, "blocks.1.value": 4, "unused": 1}
    with pytest.raises(DataError) as caught:
        input_directions(model, layers, [torch.zeros(1, 1, dtype=torch.long)], r=ranks)
    assert "blocks.0.query: its inputs span 1 dimensions, but r is 3" in str(caught.value)
    assert "blocks.1.value: its inputs span 1 dimensions, but r is 4" in str(caught.value)
    assert "unused: saw no input" in str(caught.value)


@pytest.mark.parametrize(("in_features", "r"), [(MIN_DIRECTIONS, 1), (SPARE_DIRECTIONS * 20, 20)])
def test_more_is_held_than_asked_for_so_that_late_batches_count(in_features, r):
    """A direction that is weak in the first batch and strong in the last is found: it was not thrown away."""
    net = nn.Sequential(nn.Linear(in_features, 5)).double()
    x = random_weight(176, in_features) * torch.linspace(1, 3, 176).unsqueeze(-1)
    found = input_directions(net, {"0": net[0]}, x.split(11), r={"0": r})["0"]
    torch.testing.assert_close(projection(found), projection(top_directions(x, r)), rtol=0, atol=1e-8)


def test_the_model_runs_without_gradients(model):
    graphs = []
    model.classifier.register_forward_hook(lambda _module, _args, output: graphs.append(output.requires_grad))
    input_directions(model, layers_of(model, *NAMES), ids_batches(2), r=dict.fromkeys(NAMES, 2))
    assert graphs == [False, False]

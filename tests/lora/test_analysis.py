"""Reports on adapters against values worked out on paper and against dense decompositions."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import veneer
from veneer import LoraConfig
from veneer.errors import AdapterMismatchError, ConfigError
from veneer.lora.analysis import effective_rank, intruder_dimensions, layer_report, singular_values, thin_svd
from veneer.lora.layers import adapted_slots
from veneer.lora.state import AdapterState, LowRank, config_for


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows, columns, seed=0):
    return torch.linalg.qr(random(rows, columns, seed=seed)).Q


def state_of(update, factor=1.0, name="a"):
    return AdapterState(config=config_for({name: update}, {name: factor}), updates={name: update})


UPDATES = {
    "linear": LowRank(random(3, 7), random(5, 3, seed=1)),
    "rank beyond a side": LowRank(random(6, 7), random(5, 6, seed=1)),
    "conv": LowRank(random(3, 2, 3, 1), random(5, 3, seed=1), kind="conv"),
    "stack": LowRank(random(4, 3, 7), random(4, 5, 3, seed=1), kind="parameter"),
    "zero": LowRank(random(3, 7), torch.zeros(5, 3, dtype=torch.float64)),
}


@pytest.mark.parametrize("case", UPDATES)
@pytest.mark.parametrize("factor", [2.5, -0.5])
def test_the_thin_decomposition_is_that_of_the_dense_delta(case, factor):
    A, B = UPDATES[case].matrices
    U, S, Vh = thin_svd(UPDATES[case], factor)
    torch.testing.assert_close(U @ (S.unsqueeze(-1) * Vh), factor * B @ A, rtol=1e-12, atol=1e-12)
    expected = torch.linalg.svdvals(factor * B @ A)[..., : S.shape[-1]]
    torch.testing.assert_close(singular_values(UPDATES[case], factor), expected, rtol=1e-12, atol=1e-12)
    unit = torch.eye(S.shape[-1], dtype=torch.float64).expand(*S.shape, -1)
    torch.testing.assert_close(U.mT @ U, unit, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(Vh @ Vh.mT, unit, rtol=1e-12, atol=1e-12)


def test_the_whole_delta_is_never_formed():
    side = 2**17  # a dense delta would take 137 GB
    update = LowRank(torch.ones(1, side), torch.ones(side, 1))
    torch.testing.assert_close(singular_values(update, 0.5), torch.tensor([0.5 * side], dtype=torch.float64))


@pytest.mark.parametrize("r", [1, 2, 3, 5])
def test_the_effective_rank_of_an_orthonormal_update_is_its_rank(r):
    update = LowRank(orthonormal(7, r).T, orthonormal(5, r, seed=1))
    (report,) = layer_report(state_of(update, 2.0))
    assert report.effective_rank == pytest.approx(r, rel=1e-12)
    assert report.spectral_norm == pytest.approx(2.0, rel=1e-12)
    assert report.delta_norm == pytest.approx(2.0 * math.sqrt(r), rel=1e-12)
    assert (report.name, report.rank) == ("a", r)
    assert (report.base_norm, report.relative_norm, report.intruders) == (None, None, None)


def test_the_effective_rank_by_hand():
    """p = (1/2, 1/4, 1/4): H = 1.5 ln 2, so exp(H) = 2^1.5."""
    assert effective_rank(torch.tensor([2.0, 1.0, 1.0, 0.0]).double()) == pytest.approx(2**1.5, rel=1e-12)
    assert effective_rank(torch.zeros(3)) == 0


def test_a_stack_counts_as_one_block_diagonal_matrix():
    update, factor = UPDATES["stack"], 0.5
    (report,) = layer_report(state_of(update, factor))
    A, B = update.matrices
    block = torch.block_diag(*(factor * B @ A))
    values = torch.linalg.svdvals(block)
    assert report.delta_norm == pytest.approx(float(block.norm()), rel=1e-12)
    assert report.spectral_norm == pytest.approx(float(values[0]), rel=1e-12)
    assert report.effective_rank == pytest.approx(effective_rank(values), rel=1e-9)
    (report,) = layer_report(state_of(update, factor), {"a": torch.ones(4, 5, 7)})
    assert report.relative_norm == pytest.approx(float(block.norm()) / math.sqrt(4 * 5 * 7), rel=1e-12)


def with_direction(out, inside, r, strength):
    """W0 of shape (out, in) whose range leaves r directions of the output out, and an update along those."""
    frame = orthonormal(out, inside + r)
    W0 = frame[:, :inside] @ torch.diag(torch.linspace(1, 2, inside).double()) @ orthonormal(inside, inside, seed=1).T
    return W0, LowRank(orthonormal(inside, r, seed=2).T, strength * frame[:, inside:])


@pytest.mark.parametrize("r", [1, 2])
def test_a_strong_update_outside_the_range_makes_as_many_intruders_as_its_rank(r):
    W0, update = with_direction(9, 5, r, 50.0)
    (report,) = layer_report(state_of(update), {"a": W0})
    assert report.intruders == r
    assert report.base_norm == pytest.approx(math.sqrt(sum((1 + i / 4) ** 2 for i in range(5))), rel=1e-12)
    assert report.relative_norm == pytest.approx(50 * math.sqrt(r) / report.base_norm, rel=1e-12)


def test_only_the_top_k_vectors_are_looked_at():
    W0, update = with_direction(9, 5, 2, 50.0)
    tuned = W0 + update.B @ update.A
    assert [intruder_dimensions(W0, tuned, k=k) for k in (1, 2, 3, 99)] == [1, 2, 2, 2]


def test_the_threshold_is_on_the_cosine():
    """W0 = e1 e1^T and W = (cos t, sin t, 0)^T e1^T: the one left vector of W has the cosine cos t."""
    W0, W = torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.float64)
    W0[0, 0], W[0, 0], W[1, 0] = 1.0, math.cos(1.0), math.sin(1.0)
    assert intruder_dimensions(W0, W, eps=math.cos(1.0) - 1e-6) == 0
    assert intruder_dimensions(W0, W, eps=math.cos(1.0) + 1e-6) == 1


@pytest.mark.parametrize("change", [lambda W: W, lambda W: -3 * W, lambda W: W @ orthonormal(7, 7, seed=3)])
def test_a_weight_with_the_same_left_vectors_has_no_intruders(change):
    W0 = random(5, 7)
    assert intruder_dimensions(W0, change(W0), eps=0.999) == 0


def test_directions_that_a_weight_lacks_are_not_known_to_it():
    """A decomposition completes the left vectors of a rank-deficient W0 arbitrarily; those must not hide intruders."""
    W0 = torch.zeros(5, 7, dtype=torch.float64)
    W0[0, 0] = 1.0
    W = W0.clone()
    W[1, 1], W[2, 2] = 3.0, 0.5
    assert intruder_dimensions(W0, W) == 2
    assert intruder_dimensions(W, W0) == 0


def test_intruders_of_a_stack_are_counted_together():
    one, update = with_direction(9, 5, 1, 50.0)
    W0 = torch.stack([one, one])
    W = torch.stack([one, one + update.B @ update.A])
    assert intruder_dimensions(W0, W) == 1
    assert intruder_dimensions(W0, W.flip(0)) == 1
    assert intruder_dimensions(W0, torch.stack([W[1], W[1]])) == 2


def test_doras_magnitude_counts_for_the_intruders():
    """W0 has (e1 + e2) / sqrt 2 and nothing else; row 2 scaled up by DoRA turns that into e2, at a cosine of 0.71."""
    W0 = torch.zeros(5, 7, dtype=torch.float64)
    W0[0, 0] = W0[1, 0] = 1.0
    update = LowRank(torch.zeros(1, 7).double(), torch.zeros(5, 1).double(), magnitude=torch.ones(5).double())
    strong = torch.tensor([1e-3, 9.0, 1.0, 1.0, 1.0]).double()
    assert layer_report(state_of(update), {"a": W0}, eps=0.9)[0].intruders == 0
    dora = replace(update, magnitude=strong)
    assert layer_report(state_of(dora), {"a": W0}, eps=0.9)[0].intruders == 1
    assert layer_report(state_of(dora), {"a": W0}, eps=0.6)[0].intruders == 0


class Doras(nn.Module):
    """A layer of each kind that DoRA has."""

    def __init__(self):
        super().__init__()
        self.linear, self.embedding, self.conv = nn.Linear(7, 5), nn.Embedding(11, 7), nn.Conv1d(5, 4, 3)


def test_doras_figures_are_those_of_merging_and_subtracting():
    torch.manual_seed(0)
    model = Doras().double()
    veneer.adapt(model, LoraConfig(r=2, targets=["linear", "embedding", "conv"], variant="dora"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + torch.rand_like(parameter)).add_(torch.randn_like(parameter) / 9)
    state, slots = veneer.state(model), adapted_slots(model)
    weights = {name: slot.kind.matrix(slot.base).detach() for name, slot in slots.items()}
    alone, reports = layer_report(state), layer_report(state, weights)
    veneer.merge(model)
    for plain, report in zip(alone, reports, strict=True):
        slot = slots[report.name]
        delta = slot.kind.matrix(model.get_submodule(report.name)).detach() - weights[report.name]
        values = torch.linalg.svdvals(delta)
        assert report.magnitude_applied is True
        assert report.delta_norm == pytest.approx(float(delta.norm()), rel=1e-9)
        assert report.spectral_norm == pytest.approx(float(values[0]), rel=1e-9)
        assert report.effective_rank == pytest.approx(effective_rank(values), rel=1e-9)
        assert report.relative_norm == pytest.approx(float(delta.norm() / weights[report.name].norm()), rel=1e-9)
        assert plain.magnitude_applied is False
        assert plain.delta_norm == pytest.approx(float(state.delta(report.name).norm()), rel=1e-12)
    assert layer_report(state_of(UPDATES["linear"]))[0].magnitude_applied is None


@pytest.mark.parametrize("bad", [(nn.Linear(7, 5),), (state_of(UPDATES["linear"]), nn.Linear(7, 5))])
def test_a_module_is_refused_by_name(bad):
    with pytest.raises(ConfigError, match=r"(state|base_weights) is of type Linear; it must be an? \w+"):
        layer_report(*bad)


def test_a_base_of_zeros_has_an_infinite_relative_norm():
    (report,) = layer_report(state_of(UPDATES["linear"]), {"a": torch.zeros(5, 7)})
    assert (report.base_norm, report.relative_norm, report.intruders) == (0.0, math.inf, 3)


def test_base_weights_that_do_not_fit_are_refused_with_every_reason():
    updates = dict.fromkeys("abc", UPDATES["linear"])
    state = AdapterState(config=config_for(updates, dict.fromkeys(updates, 1.0)), updates=updates)
    with pytest.raises(AdapterMismatchError) as caught:
        layer_report(state, {"b": torch.zeros(7, 5), "c": torch.full((5, 7), torch.nan)})
    for part in (
        "a: no base weight",
        "b: the base weight has shape (7, 5), the delta (5, 7)",
        "c: the base weight holds",
    ):
        assert part in str(caught.value)


def test_intruder_settings_and_shapes_are_checked():
    W = random(5, 7)
    for settings in ({"k": 0}, {"eps": 0.0}, {"eps": 1.5}, {"eps": math.nan}):
        with pytest.raises(ConfigError, match="k is"):
            intruder_dimensions(W, W, **settings)
    for other in (W.T, W / 0):
        with pytest.raises(AdapterMismatchError, match="one shape"):
            intruder_dimensions(W, other)


def test_reports_keep_the_order_of_the_adapter():
    updates = {"z": UPDATES["linear"], "a": UPDATES["conv"]}
    state = AdapterState(config=config_for(updates, {"z": 1.0, "a": 3.0}), updates=updates)
    reports = layer_report(state)
    assert [report.name for report in reports] == ["z", "a"]
    for report in reports:
        assert report.delta_norm == pytest.approx(float(state.delta(report.name).norm()), rel=1e-12)

"""The laws of subspace similarity and amplification; the analytic random baselines against Monte Carlo."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veneer.paper.subspace import (
    left_directions,
    projected_norm,
    random_projected_norm,
    random_similarity,
    right_directions,
    similarities,
)

D = 24


def basis(columns: int, seed: int, d: int = D) -> torch.Tensor:
    """Random orthonormal columns."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, columns, generator=generator, dtype=torch.float64))[0]


def similarity(U: torch.Tensor, V: torch.Tensor) -> float:
    """Of the whole spans."""
    return float(similarities(U, V)[-1, -1])


dimensions = st.integers(min_value=1, max_value=D)
seeds = st.integers(min_value=0, max_value=10_000)


@given(i=dimensions, j=dimensions, seed=seeds)
def test_similarity_lies_between_0_and_1_and_is_symmetric(i, j, seed):
    U, V = basis(i, seed), basis(j, seed + 1)
    phi = similarity(U, V)
    assert -1e-12 <= phi <= 1 + 1e-12
    assert phi == pytest.approx(similarity(V, U))


@given(i=dimensions, j=dimensions, seed=seeds)
def test_a_span_within_another_has_similarity_1(i, j, seed):
    whole = basis(max(i, j), seed)
    assert similarity(whole[:, :i], whole[:, :j]) == pytest.approx(1)


@given(i=st.integers(1, D // 2), seed=seeds)
def test_orthogonal_spans_have_similarity_0(i, seed):
    whole = basis(2 * i, seed)
    assert similarity(whole[:, :i], whole[:, i:]) == pytest.approx(0, abs=1e-12)


@given(i=dimensions, j=dimensions, seed=seeds)
def test_similarity_is_of_spans_not_of_their_bases(i, j, seed):
    U, V = basis(i, seed), basis(j, seed + 1)
    assert similarity(U @ basis(i, seed + 2, d=i), V @ basis(j, seed + 3, d=j)) == pytest.approx(similarity(U, V))


@given(i=dimensions, j=dimensions, seed=seeds)
def test_similarity_is_one_minus_the_projection_metric_over_p(i, j, seed):
    U, V = basis(i, seed), basis(j, seed + 1)
    p = min(i, j)
    squared = torch.linalg.svdvals(U.T @ V).square()
    assert similarity(U, V) == pytest.approx(1 - float(p - squared.sum()) / p)


def test_all_similarities_at_once_are_equation_4_one_by_one():
    U, V = basis(5, 1), basis(9, 2)
    grid = similarities(U, V)
    assert grid.shape == (5, 9)
    for i in range(1, 6):
        for j in range(1, 10):
            assert grid[i - 1, j - 1].item() == pytest.approx(
                float(torch.linalg.matrix_norm(U[:, :i].T @ V[:, :j]) ** 2 / min(i, j))
            )


@pytest.mark.parametrize(("i", "j"), [(1, 1), (2, 7), (7, 2), (6, 6), (D, 3)])
def test_random_spans_have_the_similarity_that_the_formula_expects(i, j):
    drawn = [similarity(basis(i, 2 * n), basis(j, 2 * n + 1)) for n in range(400)]
    mean, error = torch.tensor(drawn).mean().item(), torch.tensor(drawn).std().item() / 20
    assert mean == pytest.approx(random_similarity(i, j, D), abs=5 * error + 1e-9)


@pytest.mark.parametrize("r", [1, 4, 9])
def test_random_directions_have_as_much_of_a_weight_as_the_formula_expects(r):
    W = torch.randn(D, 15, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    drawn = [projected_norm(basis(r, 2 * n), W, basis(r, 2 * n + 1, d=15)) ** 2 for n in range(600)]
    mean, error = torch.tensor(drawn).mean().item(), torch.tensor(drawn).std().item() / 600**0.5
    assert mean == pytest.approx(random_projected_norm(W, r) ** 2, abs=5 * error)


@pytest.mark.parametrize(("r", "printed"), [(4, 0.02), (64, 0.32)])
def test_the_random_column_of_table_7_is_the_formula(r, printed):
    # |W_q| = 61.95 and d = 12,288 in the paper, which drew its random matrix once and prints 0.33 for r = 64
    W = torch.full((48, 48), 61.95 / 48)
    assert random_projected_norm(W, r) * 48 / 12_288 == pytest.approx(printed, abs=0.005)


def test_most_of_a_weight_lies_between_its_own_top_directions():
    W = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    U, V = left_directions(W, D), right_directions(W, D)
    values = torch.linalg.svdvals(W)
    assert projected_norm(U[:, :2], W, V[:, :2]) == pytest.approx(values[:2].norm().item())
    assert projected_norm(U[:, -2:], W, V[:, -2:]) == pytest.approx(values[-2:].norm().item())


def test_directions_are_orthonormal_and_those_of_the_largest_values_first():
    matrix = torch.diag(torch.tensor([1.0, 5.0, 3.0]))
    assert right_directions(matrix, 2).abs().tolist() == [[0, 0], [1, 0], [0, 1]]
    assert left_directions(matrix, 1).abs().tolist() == [[0], [1], [0]]

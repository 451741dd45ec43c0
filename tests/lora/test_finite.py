"""Finite or not: the quick answer is that of a look at each element."""

import pytest
import torch

from veneer.lora.finite import is_finite

REALS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FLOATS = (*REALS, torch.complex64, torch.complex128, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_one_broken_element_is_found_wherever_it_stands(dtype, broken):
    for place in (0, 17, 34):
        values = torch.linspace(-3, 4, 35).to(dtype)
        assert is_finite(values.view(5, 7))
        values[place] = broken
        assert not is_finite(values.view(5, 7).t())


def test_infinities_of_both_signs_are_found():
    assert not is_finite(torch.tensor([float("inf"), 1.0, float("-inf")]))


@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_a_sum_that_overflows_is_no_infinity(dtype):
    greatest = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(greatest)
    assert is_finite(-greatest)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.bool], ids=str)
def test_nothing_at_all_is_finite(dtype):
    assert is_finite(torch.empty(0, 7, dtype=dtype))


def test_integers_are_finite():
    assert is_finite(torch.tensor([[2**62, -(2**62)]]))

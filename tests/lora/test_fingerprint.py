"""Fingerprints of a base: what files on disk hold stays what it is, and a base is told from another one."""

import hashlib
import struct

import pytest
import torch
from torch import nn

from veneer.lora.fingerprint import compared, differs, fingerprint

FORMATS = {torch.float64: "d", torch.float32: "f", torch.float16: "e"}
WIDE = torch.randn(19, 31, generator=torch.Generator().manual_seed(0))  # 589 values, of which 256 are looked at


def reference(weight, dtype):
    """The digest by its definition: sha256 of the shape and of values evenly spread over the rows."""
    values = [value for row in weight.tolist() for value in row]
    count = min(256, len(values))
    sample = [values[i * (len(values) - 1) // max(count - 1, 1)] for i in range(count)]
    data = struct.pack(f"={count}{FORMATS[dtype]}", *sample)
    return hashlib.sha256(repr(tuple(weight.shape)).encode() + data).hexdigest()[:8]


@pytest.mark.parametrize("weight", [WIDE, WIDE.t(), WIDE[::2, ::3], WIDE[:1, :1], WIDE[:, :0]], ids=str)
def test_a_digest_is_that_of_its_definition(weight):
    known = fingerprint({"layer": nn.Parameter(weight.double())})
    for dtype in FORMATS:
        assert known[str(dtype).removeprefix("torch.")] == {"layer": reference(weight.to(dtype), dtype)}


@pytest.mark.parametrize("trained_on", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loaded_in", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", [0.0, 0.5])
def test_differs_says_what_comparing_whole_fingerprints_says(trained_on, loaded_in, change):
    given = fingerprint({"a": WIDE.to(trained_on), "b": WIDE.t().to(trained_on), "gone": WIDE})
    present = {"a": WIDE.to(loaded_in), "b": (WIDE.t() + change).to(loaded_in), "new": WIDE + 1}
    assert differs(given, present) == (not all(compared(given, fingerprint(present)).values()))


def test_a_base_is_the_same_rounded_and_widened_again_and_another_once_it_is_changed():
    given = fingerprint({"a": WIDE, "b": WIDE})
    assert not differs(given, {"a": WIDE.bfloat16(), "b": WIDE.bfloat16().float()})
    assert differs(given, {"a": WIDE, "b": WIDE * 1.5})
    assert not differs(given, {"c": WIDE * 1.5})
    assert not differs({}, {"a": WIDE})


def test_what_has_no_values_or_is_no_float_is_passed_over():
    given = fingerprint({"a": WIDE})
    assert not differs(given, {"a": WIDE.to("meta")})
    assert not differs(given, {"a": WIDE.to(torch.int8)})

"""LoraConfig refuses what makes no sense, and names everything that is wrong at once."""

import math

import pytest

from veneer import LoraConfig
from veneer.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", -1),
        ("r", 1.5),
        ("r", True),
        ("alpha", math.nan),
        ("alpha", math.inf),
        ("alpha", 0),
        ("alpha", "16"),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", math.nan),
        ("scaling", "cosine"),
        ("seed", -1),
        ("targets", "que(ry"),
        ("targets", ""),
        ("targets", ["query", ""]),
        ("exclude", [3]),
    ],
)
def test_a_senseless_value_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field) as caught:
        LoraConfig(**{field: value})
    assert isinstance(caught.value, ValueError)


def test_all_problems_are_named_together():
    with pytest.raises(ConfigError) as caught:
        LoraConfig(r=0, alpha=math.nan, dropout=2.0)
    assert all(name in str(caught.value) for name in ("r is 0", "alpha is nan", "dropout is 2.0"))


@pytest.mark.parametrize(("scaling", "factor"), [("lora", 16 / 4), ("rslora", 16 / 2)])
def test_the_factor_is_alpha_over_r_or_over_its_root(scaling, factor):
    assert LoraConfig(r=4, alpha=16, scaling=scaling).factor == factor


def test_a_config_is_frozen_and_keyword_only():
    with pytest.raises(AttributeError):
        LoraConfig().r = 3
    with pytest.raises(TypeError):
        LoraConfig(8)

"""Laws of a run's settings."""

import math
from dataclasses import fields, replace

import pytest

from veneer.errors import ConfigError, UnknownNameError
from veneer.training.config import RunConfig

GOOD = RunConfig(model="m", data="d")
BAD = {
    "seed": [-1, 2**32, 1.5],
    "epochs": [0, 1.5, True],
    "batch_size": [0],
    "max_tokens": [3],
    "max_train_rows": [9],
    "max_eval_rows": [9],
    "learning_rate": [0.0, 1.0, -1e-3, math.nan],
    "warmup_ratio": [-0.1, 1.0],
    "weight_decay": [-0.1, math.inf],
    "validation_share": [0.0, 1.0, math.nan],
    "test_share": [-0.1, 1.0],
    "precision": ["int8"],
    "attention": ["flash"],
    "r": [0, -1],
    "alpha": [0.0, math.nan, math.inf],
    "dropout": [1.0, -0.1],
    "scaling": ["dora"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_setting_outside_what_is_allowed_is_named_once_with_its_value(name, value):
    with pytest.raises(ConfigError) as caught:
        replace(GOOD, **{name: value})
    [problem] = [line for line in str(caught.value).splitlines() if line.startswith(f"  - {name} is")]
    assert repr(value) in problem
    assert "must be" in problem


def test_all_problems_are_named_together():
    with pytest.raises(ConfigError) as caught:
        replace(GOOD, **{name: values[0] for name, values in BAD.items()}, method="full", targets=("query",))
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == len(BAD) + 1
    assert all(any(line.startswith(f"  - {name} is ") for line in lines) for name in BAD)
    assert "the method 'full' adapts no layers" in lines[-1]


def test_an_unknown_method_lists_the_known():
    with pytest.raises(UnknownNameError, match="head, lora-qv, lora-all, full"):
        replace(GOOD, method="bitfit")


def test_resolved_settings_leave_nothing_open_and_change_nothing_that_was_chosen():
    resolved = GOOD.resolved()
    assert resolved.precision in {"float32", "bfloat16"}
    assert resolved.attention in {"eager", "sdpa"}
    assert resolved.learning_rate == GOOD.peak_learning_rate()
    assert resolved.resolved() == resolved
    chosen = replace(GOOD, precision="bfloat16", attention="sdpa", learning_rate=0.25)
    assert chosen.resolved() == chosen


def test_the_split_of_a_comparison_does_not_depend_on_the_runs_seed():
    assert replace(GOOD, seed=7).data_request() == GOOD.data_request()
    assert replace(GOOD, split_seed=7).data_request() != GOOD.data_request()


def test_settings_survive_json():
    config = replace(GOOD, targets=("query", "value"), dropout=0.1)
    assert RunConfig(**config.to_json()) == config
    assert set(config.to_json()) == {field.name for field in fields(RunConfig)}

"""Laws of a run's settings."""

import json
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
    "task": ["ranking"],
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
        replace(GOOD, method="hypernet")


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
    assert RunConfig(**json.loads(json.dumps(config.to_json()))) == config
    config = replace(GOOD, method="lora-prefix-layer", weights=("output", "key"), sizes=(("prefix_tokens", 3),))
    assert RunConfig(**json.loads(json.dumps(config.to_json()))) == config
    config = replace(config, task="regression", watch_test=True)
    assert RunConfig(**json.loads(json.dumps(config.to_json()))) == config
    assert set(config.to_json()) == {field.name for field in fields(RunConfig)} - {"glue"}


def test_sizes_and_weights_are_settings_of_their_own_only_where_they_are_used():
    """So that runs done before there were any keep their places in a grid."""
    for method in ("head", "lora-qv", "lora-all", "full", "bitfit"):
        assert not {"sizes", "weights"} & replace(GOOD, method=method).resolved().to_json().keys()


def test_a_run_is_the_same_wherever_the_files_of_glue_lie_and_classification_is_no_setting():
    """Runs done before there was a choice of tasks keep their places too."""
    config = replace(GOOD, data="glue/rte")
    assert replace(config, glue="/somewhere").to_json() == config.to_json()
    assert "task" not in config.to_json()
    assert replace(config, task="regression").to_json() != config.to_json()
    assert replace(config, glue="/somewhere").data_request().glue == "/somewhere"


def test_sizes_and_weights_given_in_another_order_or_as_they_are_anyway_are_the_same_run():
    config = replace(GOOD, method="lora-prefix-embed", weights=("query", "value"))
    sizes = (("prefix_tokens", 8), ("infix_tokens", 4))
    others = [
        replace(config, weights=("value", "query"), sizes=sizes),
        replace(config, sizes=sizes[::-1]),
        replace(config, sizes=sizes[:1]),
    ]
    assert {json.dumps(other.resolved().to_json()) for other in others} == {json.dumps(config.resolved().to_json())}
    assert config.resolved().resolved() == config.resolved()


def test_problems_of_sizes_and_weights_stand_among_the_others():
    with pytest.raises(ConfigError) as caught:
        replace(GOOD, method="lin", epochs=0, sizes=(("r", 0), ("width", 3)), weights=("q",))
    lines = "\n".join(str(caught.value).splitlines()[1:])
    for part in ("epochs is 0", "r is 0", "'width'. Known: r, dropped_blocks", "weights is ('q',)", "adapts no layers"):
        assert part in lines
    with pytest.raises(ConfigError, match="sizes is 5; it must be pairs"):
        replace(GOOD, method="lin", sizes=5)

"""A missing run is named by what tells it from the shared setting, then by its folder, the same on every machine."""

import pytest

from veneer.paper.exhibit import Contents, Exhibit
from veneer.paper.protocol import run_of
from veneer.training import config as settings
from veneer.training.grid import Grid


def missing(grid, config):
    exhibit = Exhibit(name="e", title="E", shows="", contents=lambda *_: Contents(tables=()), runs=lambda _: [config])
    return exhibit.sheet(grid).missing


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("lora-qv", {}, "trec, lora-qv, seed 2 ("),
        ("lora-qv", {"r": 64, "learning_rate": 0.003}, "trec, lora-qv, seed 2, r=64, rate 0.003 ("),
        ("lora-qv", {"weights": ("query", "value"), "r": 4}, "trec, lora-qv, seed 2, r=4, weights=query + value ("),
        ("houlsby", {"sizes": (("r", 16),)}, "trec, houlsby, seed 2, r=16 ("),
        ("full", {"max_train_rows": 100, "epochs": 40}, "trec, full, seed 2, max train rows=100, epochs=40 ("),
    ],
)
def test_a_missing_run_is_named_in_words(tmp_path, monkeypatch, method, changes, words):
    grid, config = Grid(folder=tmp_path), run_of("trec", method, 2, changes)
    named = []
    for has_units in (True, False):
        monkeypatch.setattr(settings, "has_bfloat16", lambda has_units=has_units: has_units)
        named += missing(grid, config)
    assert named[0] == named[1] == f"{words}{grid.places(config)[0].name})"

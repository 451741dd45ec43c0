"""The README tells the truth: its figures are the committed run's, its names and options exist."""

import importlib.util
import re
from pathlib import Path

import veneer
from veneer.results import read_results

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def script():
    specification = importlib.util.spec_from_file_location("update_readme", ROOT / "scripts" / "update_readme.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_results_and_file_tree_are_made_from_the_committed_run_and_the_source():
    assert script().filled(README) == README, "run: .venv/bin/python scripts/update_readme.py"


def test_the_committed_run_has_every_method_with_at_least_three_seeds():
    records = read_results(ROOT / "results" / "first-light").records
    methods = {record.method for record in records}
    assert methods == {"head", "lora-qv", "lora-all", "full"}
    assert all(len({r.seed for r in records if r.method == method}) >= 3 for method in methods)
    assert not any(record.config["quick"] for record in records)


def test_every_make_target_and_every_option_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in re.findall(r"`?make (\w+)", README))
    source = "".join(path.read_text() for path in (ROOT / "src" / "veneer" / "cli").glob("*.py"))
    parameters = {name.replace("_", "-") for name in re.findall(r"^    (\w+): ", source, flags=re.MULTILINE)}
    explicit = set(re.findall(r'"--([a-z-]+)"', source))
    assert set(re.findall(r"(?<!-)--([a-z][a-z-]*)", README)) <= parameters | explicit | {"help"}


def test_every_library_name_used_exists():
    assert set(re.findall(r"veneer\.(\w+)\(", README)) <= set(veneer.__all__)

"""The page of what is supported says what the tests and the tables say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_compatibility_page_is_current():
    spec = importlib.util.spec_from_file_location("update_docs", ROOT / "scripts" / "update_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "compatibility.md").read_text() == module.page(), "run scripts/update_docs.py"
    assert all(thread for _, thread in module.faults())

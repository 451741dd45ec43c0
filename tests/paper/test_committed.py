"""What is committed is what the committed records give."""

from pathlib import Path

from veneer.paper.table_of_contents import all_sheets
from veneer.report.paper_files import write_paper
from veneer.results import read_results

ROOT = Path(__file__).parents[2]
RUNS, PAPER = ROOT / "results" / "runs", ROOT / "results" / "paper"


def test_the_page_and_its_tables_are_made_from_the_committed_records(tmp_path):
    write_paper(all_sheets(RUNS, PAPER), tmp_path)
    made = {file.relative_to(tmp_path): file.read_text() for file in tmp_path.rglob("*.*")}
    kept = {name: (PAPER / name).read_text() for name in made if (PAPER / name).is_file()}
    different = sorted(str(name) for name in made if kept.get(name) != made[name])
    assert not different, "run: .venv/bin/veneer reproduce all --render-only"


def test_every_record_lies_where_its_configuration_is_looked_for():
    for folder in RUNS.iterdir():
        (record,) = read_results(folder).records
        assert folder.name.startswith(f"{Path(record.data).stem}-{record.method}-seed{record.seed}-")
        assert not record.config["quick"]

"""Every exhibit, in the order in which the page shows them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from veneer.errors import ConfigError, unknown_name
from veneer.paper import counts, data, figure2, glue, latency, modern, ranks, roberta, subspaces, table2, table18
from veneer.paper.exhibit import Exhibit, Sheet
from veneer.paper.measurements import read_measurement
from veneer.training.grid import Grid

EXHIBITS: Mapping[str, Exhibit] = {
    exhibit.name: exhibit
    for exhibit in (
        table2.EXHIBIT,
        glue.EXHIBIT,
        roberta.EXHIBIT,
        figure2.EXHIBIT,
        ranks.EXHIBIT,
        table18.EXHIBIT,
        data.EXHIBIT,
        subspaces.EXHIBIT,
        latency.EXHIBIT,
        modern.EXHIBIT,
        counts.EXHIBIT,
    )
}
ALL = "all"
ARITHMETIC = counts.EXHIBIT.name
"""Its verdicts rest on no run."""
LATER_WORK = modern.EXHIBIT.name
"""Its claims are not the paper's."""
ALSO_CALLED: Mapping[str, str] = {
    "table15": "figure2",
    **dict.fromkeys(("table5", "table6"), "ranks"),
    "table16": "data",
    **dict.fromkeys(("table7", "figure3", "figure4", "figure6", "figure7", "figure8"), "subspaces"),
    **dict.fromkeys(("table1", "figure5"), "latency"),
    **dict.fromkeys(("table3", "table4"), "counts"),
}
"""A table or figure of the paper -> the exhibit that has it, where that is called otherwise."""
NOT_ATTEMPTED = (
    "Generation: Tables 3, 13 and 14 (GPT-2 on E2E, WebNLG and DART) and Table 4's WikiSQL and SAMSum; of Tables 3 and "
    "4 only the counts are here.",
    "MNLI, QNLI and QQP, and what starts from an adapter trained on MNLI.",
    "RoBERTa large, DeBERTa XXL, GPT-2 and GPT-3 as models that are trained; Table 8, few-shot prompting.",
    "What training saves on a large model: up to two thirds of the memory, a quarter of the time (section 4.2); "
    "`veneer compare` tells both for its own runs.",
    "The base's masked-word loss after fine-tuning: no pretrained model at hand has that head. What it keeps of its "
    "sentence embeddings is measured instead.",
)
"""What no exhibit here has, by name."""


def all_sheets(runs: Path, folder: Path) -> list[Sheet]:
    """Return what the records in `runs` and the measurements in `folder` make of every exhibit."""
    grid = Grid(folder=runs)
    return [exhibit.sheet(grid, read_measurement(folder, exhibit.name)) for exhibit in EXHIBITS.values()]


def find_exhibits(names: Sequence[str]) -> list[Exhibit]:
    """Return the exhibits called so, by their own names or by a table or figure of the paper's; every one for "all".

    Raises:
        ConfigError: there is no name.
        UnknownNameError: a name is not known; those that are stand in the message.
    """
    known = [*EXHIBITS, ALL]
    if not names:
        raise ConfigError(f"name one or more exhibits: {', '.join(known)}")
    for name in names:
        if own_name(name) not in known:
            also = ", ".join(f"{other} ({own})" for other, own in ALSO_CALLED.items())
            raise unknown_name("exhibit", name, known, advice=f"Of the paper's tables and figures also {also}.")
    called = {own_name(name) for name in names}
    return [exhibit for name, exhibit in EXHIBITS.items() if name in called or ALL in called]


def own_name(name: str) -> str:
    """Return what an exhibit that a user called so is called here; a comma after it is none of its name."""
    plain = name.strip(",").lower()
    return ALSO_CALLED.get(plain, plain)

"""The records of one command, brought down to one value per method.

A collapsed run (see `RunRecord.collapsed`) says that training failed, not how good the method is. So it is left out of
every mean, counted, and the mean with it is kept beside the other one. Where every run of a method collapsed, the mean
is over all of them and `all_collapsed` marks it.

The spread is the sample standard deviation over runs, with n - 1 below the line; one run has none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from veneer.data.metrics import Metric, judged_by
from veneer.errors import ConfigError, gathered
from veneer.report.formatting import plain
from veneer.results import AnyScores, RunRecord

METHOD_LABELS: Mapping[str, str] = {
    "head": "Head only",
    "bitfit": "BitFit",
    "houlsby": "Houlsby adapters{r}",
    "pfeiffer": "Pfeiffer adapters{r}",
    "lin": "Lin adapters{r}",
    "adapterdrop": "AdapterDrop{r}",
    "prefix-embed": "Prefix-embedding{tokens}",
    "prefix-layer": "Prefix-layer{tokens}",
    "lora-qv": "LoRA{rank}, {layers}",
    "lora-all": "LoRA{rank}, {layers}",
    "lora-prefix-embed": "LoRA{rank}, {layers}, prefix-embedding{tokens}",
    "lora-prefix-layer": "LoRA{rank}, {layers}, prefix-layer{tokens}",
    "top2": "Last {num_blocks} blocks",
    "full": "Full fine-tuning",
}
"""Names for the reader, in the order of every table; `{rank}` becomes ` r=8` where the configuration says it."""
MOST_LAYERS = 4
"""More names of adapted layers than these are not listed in a label."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over several runs."""

    mean: float
    sd: float | None
    """Sample standard deviation; None with one run."""


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """Every figure of one method; the means are over `scored`."""

    method: str
    label: str
    split: str
    """What the scores are measured on: `test`, or `validation` where no test rows were given."""
    metric: Metric
    """What the task is judged by: accuracy, or what its paper reports."""
    second_metric: Metric
    """What is told beside it."""
    records: tuple[RunRecord, ...]
    """All runs of the method, by seed."""
    score: Spread
    """By `metric`."""
    second_score: Spread
    score_with_collapsed: Spread
    second_score_with_collapsed: Spread
    validation_choice: float
    """The mean `choice` on validation. Methods are chosen by it: choosing by the test would make the test lean high."""
    num_examples: int
    """Rows of the split."""
    train_seconds: float
    peak_memory_bytes: float
    checkpoint_bytes: float
    trainable_parameters: int
    lora_parameters: int
    head_parameters: int
    other_parameters: int
    total_parameters: int

    @property
    def scored(self) -> tuple[RunRecord, ...]:
        """The runs that the means are over: those that did not collapse, or all where every one did."""
        return _scored(self.records)

    @property
    def num_runs(self) -> int:
        """All runs, the collapsed ones included."""
        return len(self.records)

    @property
    def num_collapsed(self) -> int:
        """Runs that learnt nothing; see `RunRecord.collapsed`."""
        return sum(record.collapsed for record in self.records)

    @property
    def all_collapsed(self) -> bool:
        """Whether every run collapsed, so that the means say nothing about the method."""
        return self.num_collapsed == self.num_runs

    @property
    def has_own_part(self) -> bool:
        """Whether the method trains a part of the model, or added to it, besides low-rank updates and the head."""
        return self.other_parameters > 0 and self.trainable_parameters < self.total_parameters

    @property
    def trainable_share(self) -> float:
        """Trainable parameters over all parameters of the model in training, 0 to 1."""
        return self.trainable_parameters / self.total_parameters


def summarize(records: Sequence[RunRecord]) -> list[MethodSummary]:
    """Return one summary per method: those of `METHOD_LABELS` in their order, then the others alphabetically.

    Scores are on the test rows where every record has them, else on the validation rows.

    Raises:
        ConfigError: the records are not of one model and one data set, or one method has two sizes.
    """
    _check_comparable(records)
    split = "test" if all(record.test is not None for record in records) else "validation"
    known = [method for method in METHOD_LABELS if any(record.method == method for record in records)]
    others = sorted({record.method for record in records} - set(known))
    return [_summary([record for record in records if record.method == method], split) for method in known + others]


def split_scores(record: RunRecord, split: str) -> AnyScores:
    """Return the record's scores on `test` where that is asked for and there, else on `validation`."""
    return record.test if split == "test" and record.test is not None else record.validation


def split_figure(record: RunRecord, split: str, metric: Metric) -> float:
    """Return one figure of the record's scores on a split."""
    return split_scores(record, split).figures[metric.key]


def is_lora(summary: MethodSummary) -> bool:
    """Return whether the method trains low-rank updates."""
    return summary.lora_parameters > 0


def best_by_validation(summaries: Sequence[MethodSummary]) -> MethodSummary | None:
    """Return the summary with the best choice on validation, a collapsed one last; the first among equals."""
    return max(summaries, key=lambda s: (not s.all_collapsed, s.validation_choice), default=None)


def _check_comparable(records: Sequence[RunRecord]) -> None:
    aspects: dict[str, Callable[[RunRecord], object]] = {
        "model": lambda record: record.model,
        "data": lambda record: record.data,
        "labels": lambda record: tuple(record.labels),
    }
    problems = [
        f"{name}: {listing}"
        for name, aspect in aspects.items()
        if len(given := dict.fromkeys(aspect(record) for record in records)) > 1
        for listing in [" and ".join(repr(value) for value in given)]
    ]
    for method in dict.fromkeys(record.method for record in records):
        sizes = {(r.trainable_parameters, r.total_parameters) for r in records if r.method == method}
        if len(sizes) > 1:
            problems.append(f"method {method!r}: (trainable, total) parameters {sorted(sizes)}")
    if problems:
        raise ConfigError(gathered("only runs of one command can be compared, but these differ in", problems))


def _summary(records: list[RunRecord], split: str) -> MethodSummary:
    """Return the summary of the runs of one method."""
    runs = tuple(sorted(records, key=lambda record: record.seed))
    scored, first = _scored(runs), runs[0]
    metric, second_metric = judged_by(first.data, first.validation)

    def spread(records: Sequence[RunRecord], metric: Metric) -> Spread:
        return _spread([split_figure(record, split, metric) for record in records])

    return MethodSummary(
        method=first.method,
        label=_label(first),
        split=split,
        records=runs,
        metric=metric,
        second_metric=second_metric,
        score=spread(scored, metric),
        second_score=spread(scored, second_metric),
        score_with_collapsed=spread(runs, metric),
        second_score_with_collapsed=spread(runs, second_metric),
        validation_choice=fmean(record.validation.choice for record in runs),
        num_examples=split_scores(first, split).num_examples,
        train_seconds=fmean(record.train_seconds for record in scored),
        peak_memory_bytes=fmean(record.peak_memory_bytes for record in scored),
        checkpoint_bytes=fmean(record.checkpoint_bytes for record in scored),
        trainable_parameters=first.trainable_parameters,
        lora_parameters=first.lora_parameters,
        head_parameters=first.head_parameters,
        other_parameters=first.other_parameters,
        total_parameters=first.total_parameters,
    )


def _scored(records: tuple[RunRecord, ...]) -> tuple[RunRecord, ...]:
    return tuple(record for record in records if not record.collapsed) or records


def _spread(values: list[float]) -> Spread:
    return Spread(mean=fmean(values), sd=stdev(values) if len(values) > 1 else None)


def _label(record: RunRecord) -> str:
    if record.method not in METHOD_LABELS:
        return plain(record.method)
    rank, sizes = record.config.get("r"), record.config.get("sizes") or {}
    tokens = [str(sizes[name]) for name in ("prefix_tokens", "infix_tokens") if name in sizes]
    return METHOD_LABELS[record.method].format(
        rank=f" r={rank}" if isinstance(rank, int) else "",
        layers=_layers(record),
        r=f" r={sizes['r']}" if "r" in sizes else "",
        tokens=f" {' + '.join(tokens)}" if tokens else "",
        num_blocks=sizes.get("num_blocks", 2),
    )


def _layers(record: RunRecord) -> str:
    """Return what low-rank updates are of: what the configuration names, or else the method's own choice."""
    named = record.config.get("weights") or record.config.get("targets")
    if isinstance(named, list):
        return plain(" + ".join(named)) if len(named) <= MOST_LAYERS else f"{len(named)} layers by name"
    return "all linear" if record.method == "lora-all" else "query + value"

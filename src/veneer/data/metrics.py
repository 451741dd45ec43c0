"""Scoring what a model answers against what is true, and by which figure a task is judged."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from scipy.stats import pearsonr, spearmanr  # type: ignore[import-untyped]  # scipy ships no types
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import Tensor

from veneer.data import glue
from veneer.results import AnyScores, RegressionScores, Scores

COLLAPSE_SHARE = 0.99
"""A model that gives this share of its answers to one class has learnt nothing but the class frequencies."""
COLLAPSE_SPREAD = 0.01
"""A model whose numbers spread by less than this share of the true ones' spread has learnt nothing but their mean."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of `figures` and what a reader must know of it; more is better, 1 is perfect."""

    key: str
    name: str
    """Inside a sentence."""
    short: str
    """In a table."""
    lowest: float
    """The worst there is: 0 for a share, -1 for a correlation."""
    meaning: str
    """A sentence on what it measures."""
    standard_error: Callable[[float, int], float]
    """From the figure and the number of rows to its standard error: how far it lies from that on endless rows."""
    formula: str
    """The standard error of a figure p on n rows, as text."""

    @property
    def heading(self) -> str:
        """`short` as the first word of a heading."""
        return self.short[0].upper() + self.short[1:]

    def padded(self, value: float, num_examples: int) -> float:
        """Return the figure with one success and one failure added to the rows, so that it is never quite perfect."""
        return (num_examples * value + 1 + self.lowest) / (num_examples + 2)


def _error_of_share(share: float, num_examples: int) -> float:
    return math.sqrt(share * (1 - share) / num_examples)


def _error_of_matthews(correlation: float, num_examples: int) -> float:
    """With two equally frequent classes Matthews's correlation is 2 p - 1, p the accuracy; an estimate otherwise."""
    return 2 * _error_of_share((1 + correlation) / 2, num_examples)


def _error_of_correlation(correlation: float, num_examples: int) -> float:
    """Large-sample formula for two normal variables (Kendall and Stuart, "The Advanced Theory of Statistics", 26)."""
    return (1 - correlation**2) / math.sqrt(num_examples)


METRICS: Mapping[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            key="accuracy",
            name="accuracy",
            short="accuracy",
            lowest=0.0,
            meaning="The share of rows whose class is predicted right.",
            standard_error=_error_of_share,
            formula="√(p(1 - p)/n)",
        ),
        Metric(
            key="macro_f1",
            name="macro-F1",
            short="macro-F1",
            lowest=0.0,
            meaning="F1, the harmonic mean of precision and recall, taken for each class and averaged, so that a rare "
            "class counts as much as a frequent one.",
            standard_error=_error_of_share,
            formula="√(p(1 - p)/n)",
        ),
        Metric(
            key="matthews",
            name="Matthews correlation",
            short="Matthews",
            lowest=-1.0,
            meaning="The correlation of true and predicted classes, from -1 to 1: 0 is what guessing gives, however "
            "frequent each class is.",
            standard_error=_error_of_matthews,
            formula="√((1 - p²)/n)",
        ),
        Metric(
            key="pearson",
            name="Pearson correlation",
            short="Pearson",
            lowest=-1.0,
            meaning="The correlation of true and predicted numbers, from -1 to 1: how well they lie on one line.",
            standard_error=_error_of_correlation,
            formula="(1 - p²)/√n",
        ),
        Metric(
            key="spearman",
            name="Spearman correlation",
            short="Spearman",
            lowest=-1.0,
            meaning="The correlation of the ranks of true and predicted numbers, from -1 to 1: how well their order "
            "is met.",
            standard_error=_error_of_correlation,
            formula="(1 - p²)/√n",
        ),
    )
}


def judged_by(data: str, scores: AnyScores) -> tuple[Metric, Metric]:
    """Return what a task is judged by, and what is told beside it.

    Args:
        data: its name, as the user typed it; GLUE's tasks have metrics of their own.
        scores: any of its scores, which tell classes from numbers.
    """
    if isinstance(scores, RegressionScores):
        return METRICS["pearson"], METRICS["spearman"]
    task = glue.TASKS.get(data)
    return METRICS[task.metric if task else "accuracy"], METRICS["macro_f1"]


def in_words(scores: AnyScores, metrics: Iterable[Metric]) -> str:
    """Return some of the scores' figures by name, for a line of text."""
    return ", ".join(f"{metric.name} {scores.figures[metric.key]:.4f}" for metric in metrics)


def score(outputs: Float[Tensor, "rows outputs"], answers: Shaped[Tensor, " rows"]) -> AnyScores:
    """Return how well a model's outputs fit.

    Args:
        outputs: logits of classes, or one predicted number a row.
        answers: class numbers, of an integer dtype, or the true numbers, of a floating one.
    """
    return score_numbers(outputs[:, 0], answers) if answers.is_floating_point() else score_classes(outputs, answers)


def score_classes(logits: Float[Tensor, "rows classes"], labels: Shaped[Tensor, " rows"]) -> Scores:
    """Return how well the arg-max of `logits` fits `labels`, by scikit-learn's definitions.

    Macro-F1 averages over the classes that are true or predicted somewhere; one without a right answer counts 0.
    """
    num_classes = logits.shape[1]
    predicted = logits.argmax(dim=1)
    counts = torch.bincount(labels, minlength=num_classes)
    return Scores(
        accuracy=float(accuracy_score(labels, predicted)),
        macro_f1=float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        loss=float(torch.nn.functional.cross_entropy(logits.float(), labels)),
        num_examples=len(labels),
        majority_share=int(counts.max()) / len(labels),
        confusion=confusion_matrix(labels, predicted, labels=range(num_classes)).tolist(),
    )


def score_numbers(predicted: Float[Tensor, " rows"], targets: Float[Tensor, " rows"]) -> RegressionScores:
    """Return how well predicted numbers fit the true ones, by scipy's definitions; constants correlate with nothing."""
    predicted, targets = predicted.double(), targets.double()
    varied = all(bool(numbers.isfinite().all() and numbers.min() < numbers.max()) for numbers in (targets, predicted))
    return RegressionScores(
        pearson=float(pearsonr(targets, predicted).statistic) if varied else 0.0,
        spearman=float(spearmanr(targets, predicted).statistic) if varied else 0.0,
        loss=float(torch.nn.functional.mse_loss(predicted, targets)),
        num_examples=len(targets),
        target_sd=float(targets.std(correction=0)),
        predicted_sd=float(predicted.std(correction=0)),
    )


def is_collapsed(scores: AnyScores) -> bool:
    """Return whether nearly all answers are one class, or one number, while nearly all of the rows are not."""
    if isinstance(scores, RegressionScores):
        return scores.predicted_sd < COLLAPSE_SPREAD * scores.target_sd
    answers = [sum(column) for column in zip(*scores.confusion, strict=True)]
    return max(answers) >= COLLAPSE_SHARE * scores.num_examples and scores.majority_share < COLLAPSE_SHARE

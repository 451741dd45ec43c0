"""Scoring predictions against true labels."""

import torch
from jaxtyping import Float, Int
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import Tensor

from veneer.results import Scores

COLLAPSE_SHARE = 0.99
"""A model that gives this share of its answers to one class has learnt nothing but the class frequencies."""


def score(logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]) -> Scores:
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


def is_collapsed(scores: Scores) -> bool:
    """Return whether nearly all answers are one class while that class is not nearly all of the rows."""
    answers = [sum(column) for column in zip(*scores.confusion, strict=True)]
    return max(answers) >= COLLAPSE_SHARE * scores.num_examples and scores.majority_share < COLLAPSE_SHARE

"""Which epoch of a run is kept: the best on validation rows, its weights copied in memory."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from veneer.data.metrics import score
from veneer.results import AnyScores


class KeepBest(TrainerCallback):
    """Keeps the trained weights of the epoch with the best `choice` on validation, the earliest among equals.

    An epoch whose loss is no finite number ends the training: nothing is learnt from there on. Where that is the first,
    the weights as they began are kept, and `best` is None.

    Args:
        model: what is trained.
        score_test: scores the test rows after each epoch, for the record alone; None leaves them to the end.
    """

    def __init__(self, model: nn.Module, score_test: Callable[[], AnyScores] | None = None) -> None:
        self.score_test = score_test
        self.test_history: list[dict[str, float]] = []
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.latest: AnyScores | None = None
        self.best: AnyScores | None = None
        self.best_epoch = 0
        self.history: list[dict[str, float]] = []
        self._weights: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Copy the weights as they begin, where the Trainer has put them."""
        self._weights = {name: p.detach().clone() for name, p in self.trained.items()}

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Score the validation rows and remember the scores; the Trainer sees what more of is better."""
        logits, labels = prediction.predictions, prediction.label_ids
        if isinstance(logits, tuple):  # encoder-decoders hand out their hidden states as well
            logits = logits[0]
        self.latest = score(torch.as_tensor(logits).float(), torch.as_tensor(labels))
        return self.latest.figures

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Copy the weights if they are the best so far. The Trainer passes more than is used here."""
        assert self.latest is not None
        epoch = round(state.epoch or 0)
        latest = self.latest
        if not math.isfinite(latest.loss):
            control.should_training_stop = True
            return
        self.history.append({"epoch": epoch, "loss": latest.loss, **latest.figures})
        if self.score_test is not None:
            test = self.score_test()
            self.test_history.append({"epoch": epoch, "loss": test.loss, **test.figures})
        if self.best is None or latest.choice > self.best.choice:
            self.best, self.best_epoch = latest, epoch
            for name, kept in self._weights.items():
                kept.copy_(self.trained[name].detach())

    def restore(self) -> None:
        """Put the best weights back into the model."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self._weights[name])

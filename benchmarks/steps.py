"""A training step: ours against PEFT's and against the frozen base alone, on the same model and batch.

A step is forward, backward, gradient clipping and AdamW, which is what `transformers.Trainer` does by default. Every
contender starts from the same weights, sees the same batch and trains equally many parameters, which is checked; with
equal numerics their first loss is equal too. The frozen base has nothing to update: forward and backward only.
"""

from collections.abc import Callable, Mapping

import torch
from peft import LoraConfig as PeftConfig
from peft import TaskType, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

import veneer
from benchmarks.harness import Bar, Comparison, Options, UnequalWorkError, compare, device, interleave, seconds
from benchmarks.models import Workload, find_workload
from veneer.training.config import resolve_attention, resolve_precision
from veneer.training.machine import has_bfloat16
from veneer.training.recipe import narrow_frozen, without_base_dropout

RANK, ALPHA = 8, 16
LEARNING_RATE = 5e-4
MAX_GRADIENT_NORM = 1.0
"""The Trainer's default."""
LOSS_TOLERANCE = 1e-4
ROUNDS, WARM_UP = 15, 3

DEFAULT, SAME_NUMERICS = "veneer, default recipe", "veneer, float32 as PEFT"
PEFT_DEFAULT, PEFT_BFLOAT16 = "PEFT, default (float32)", "PEFT, bfloat16 autocast"
WITH_DROPOUT = "veneer, --base-dropout"
FROZEN = "frozen base without dropout"
PAIRS = (
    (DEFAULT, PEFT_DEFAULT),
    (DEFAULT, PEFT_BFLOAT16),
    (DEFAULT, FROZEN),
    (WITH_DROPOUT, PEFT_DEFAULT),
    (WITH_DROPOUT, PEFT_BFLOAT16),
    (SAME_NUMERICS, PEFT_DEFAULT),
)
"""Which contender is held against which."""

BARS: Mapping[tuple[str, int], tuple[float | None, ...]] = {
    ("minilm", 32): (0.40, 0.60, 1.15, None, None, 0.88),
    ("minilm", 128): (0.35, 0.55, None, None, None, None),
    ("mpnet", 64): (0.38, 0.72, None, None, None, 1.0),
    ("smollm2", 64): (0.52, 0.78, None, None, None, 1.0),
}
"""(model, tokens) -> the ratio that each of `PAIRS` may reach on a CPU."""


class TrainStep:
    """One step on a fixed batch; each call trains once.

    Args:
        model: the classifier, what is to be trained marked by `requires_grad`; put into training mode.
        batch: its arguments, labels included.
        autocast: whether forward and loss run under bfloat16 autocast.
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, Tensor], *, autocast: bool) -> None:
        self.model, self.batch, self.autocast = model.train(), batch, autocast
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, fused=True) if self.trained else None

    def __call__(self) -> None:
        """Do one step."""
        self.loss().backward()
        if self.optimizer is not None:
            nn.utils.clip_grad_norm_(self.trained, MAX_GRADIENT_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def loss(self) -> Tensor:
        """Return the loss of the batch, a scalar."""
        with torch.autocast(device().type, torch.bfloat16, enabled=self.autocast):
            loss: Tensor = self.model(**self.batch).loss
        return loss

    @property
    def num_trained(self) -> int:
        """Parameters that a step changes."""
        return sum(parameter.numel() for parameter in self.trained)


def recipe_base(workload: Workload) -> tuple[PreTrainedModel, bool]:
    """Return the base as `veneer train` prepares it, and whether it computes under autocast.

    The one place that follows the tool: what `veneer.training` does to a base before it is adapted belongs here, and
    both the default recipe and the frozen base it is held against take it from here.
    """
    return workload.build(resolve_attention("auto")), resolve_precision("auto") == "bfloat16"


def recipe_step(workload: Workload, *, base_dropout: bool) -> TrainStep:
    """Return the step that `veneer train` takes, with or without the pretrained layers' dropout."""
    model, autocast = recipe_base(workload)
    if not base_dropout:
        without_base_dropout(model)
    veneer.adapt(model, veneer.LoraConfig(r=RANK, alpha=ALPHA), [workload.head])
    narrow_frozen(model, resolve_precision("auto"))
    return TrainStep(model, workload.batch(), autocast=autocast)


def frozen_base(workload: Workload) -> TrainStep:
    """Return forward and backward through the base without dropout, down to the output of its input embeddings."""
    model, autocast = recipe_base(workload)
    without_base_dropout(model)
    model.requires_grad_(False)
    narrow_frozen(model, resolve_precision("auto"))
    model.enable_input_require_grads()
    return TrainStep(model, workload.batch(), autocast=autocast)


def same_numerics(workload: Workload) -> TrainStep:
    """Return our step with PEFT's default numerics: float32, transformers' own attention, the base's dropout."""
    model = workload.build(workload.usual_attention)
    veneer.adapt(model, veneer.LoraConfig(r=RANK, alpha=ALPHA), [workload.head])
    return TrainStep(model, workload.batch(), autocast=False)


def peft_step(workload: Workload, *, autocast: bool) -> TrainStep:
    """Return PEFT's step as its documentation has it."""
    config = PeftConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type=TaskType.SEQ_CLS)
    return TrainStep(
        get_peft_model(workload.build(workload.usual_attention), config), workload.batch(), autocast=autocast
    )


STEPS: Mapping[str, Callable[[Workload], TrainStep]] = {
    DEFAULT: lambda workload: recipe_step(workload, base_dropout=False),
    WITH_DROPOUT: lambda workload: recipe_step(workload, base_dropout=True),
    PEFT_DEFAULT: lambda workload: peft_step(workload, autocast=False),
    PEFT_BFLOAT16: lambda workload: peft_step(workload, autocast=True),
    FROZEN: frozen_base,
    SAME_NUMERICS: same_numerics,
}


def train_step(options: Options) -> list[Comparison]:
    """Compare the time of a training step.

    Raises:
        UnknownNameError: there is no such workload.
        UnequalWorkError: the contenders do not do the same work.
    """
    workload = find_workload(options.model, options.tokens)
    contenders = [name for name in STEPS if name != PEFT_BFLOAT16 or has_bfloat16()]
    steps = {name: STEPS[name](workload) for name in contenders}
    require_same_work(steps)
    measures = {name: (lambda step=step: seconds(step)) for name, step in steps.items()}
    times = interleave(measures, rounds=options.rounds or ROUNDS, warm_up=WARM_UP)
    limits = dict(zip(PAIRS, BARS.get((options.model, workload.tokens), ()), strict=False))
    title = f"train step, {workload.title}, {workload.rows} x {workload.tokens} tokens"
    return [
        compare(title, times, ours, theirs, _bar(ours, limits.get((ours, theirs))))
        for ours, theirs in PAIRS
        if theirs in times
    ]


def _bar(ours: str, limit: float | None) -> Bar | None:
    """Return the bar where it was set for a machine like this one: those of the default recipe are for bfloat16."""
    is_alike = not torch.cuda.is_available() and (ours == SAME_NUMERICS or has_bfloat16())
    return Bar(of="ratio", at_most=limit) if is_alike and limit is not None else None


def require_same_work(steps: Mapping[str, TrainStep]) -> None:
    """Check that all train equally many parameters, and that equal numerics give an equal first loss.

    Raises:
        UnequalWorkError: they do not.
    """
    counts = {name: step.num_trained for name, step in steps.items() if name != FROZEN}
    if len(set(counts.values())) != 1:
        raise UnequalWorkError(f"the contenders train different numbers of parameters: {counts}")
    losses = []
    for name in (SAME_NUMERICS, PEFT_DEFAULT):
        torch.manual_seed(0)  # the same dropout
        with torch.no_grad():
            losses.append(float(steps[name].loss()))
    if not abs(losses[0] - losses[1]) <= LOSS_TOLERANCE:
        raise UnequalWorkError(f"the first losses differ: ours is {losses[0]:.6f}, PEFT's is {losses[1]:.6f}")

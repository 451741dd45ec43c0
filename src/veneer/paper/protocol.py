"""The setting that all runs of the exhibits share, and what it leaves of the paper's.

Attention is written out, not left to the machine, so that a record is found again anywhere. Precision is the machine's:
a processor without units for bfloat16 takes many times as long in it. Records of either are found, and counted on
each sheet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from veneer.data.glue import TASKS as TASKS_OF_GLUE
from veneer.training.config import RunConfig
from veneer.training.grid import Grid

MODEL = "minilm"
TASKS = ("trec", "rotten-tomatoes")
"""The cheap one first."""
SETTINGS: Mapping[str, Any] = {
    "model": MODEL,
    "precision": "auto",
    "attention": "eager",
    "base_dropout": False,
    "epochs": 3,
    "batch_size": 32,
    "max_tokens": 128,
    "r": 8,
    "alpha": 16.0,
}
OF_TASK: Mapping[str, Mapping[str, Any]] = {
    **{task: {"watch_test": True} for task in TASKS_OF_GLUE},
    "glue/sst2": {"watch_test": True, "max_train_rows": 10_000, "max_eval_rows": 2_000},
}
"""Task to its own settings: on GLUE the paper's statistic is taken too; of SST-2 a stratified sample is enough."""
SCALE = (
    "What was trained is MiniLM, 22.7 million parameters, and in part MPNet, 109 million, on sentences and "
    "pairs of them, most for three epochs, where the paper has RoBERTa, DeBERTa and GPT-3 with up to 175 billion: the "
    "claims are tested at that scale and no other."
)
"""What is scaled down, in a sentence."""
PRETRAINING = (
    "Pretraining: these are sentence-transformers' all-MiniLM-L6-v2 and all-mpnet-base-v2, fine-tuned on a billion "
    "pairs of sentences, MNLI's and SNLI's among them (their model cards). No run starts from an adapter for MNLI, as "
    "the paper's do on MRPC, RTE and STS-B."
)
SMALL_MODEL = (
    "Model: MiniLM (sentence-transformers/all-MiniLM-L6-v2), 22.7 million parameters in 6 blocks of width 384, instead "
    "of RoBERTa, DeBERTa and GPT-3: it trains on two processor cores in minutes."
)
SHORT_TRAINING = (
    "Training: 3 epochs in batches of 32, without dropout in the pretrained layers whatever the method "
    "(results/recipe.md has both: without it LoRA on all linear layers comes about half a point nearer to full "
    "fine-tuning, though the seeds leave open whether at all); "
    "each method's learning rate is the best of three or more on validation rows with seed 0, whose run then "
    "counts as one of the seeds. The paper sweeps rates too and trains for 2 to 80 epochs. Most runs are best in their "
    "last epoch, so that longer training might change the order."
)
SCORED_ON = (
    "Score: what the task is judged by, which is accuracy but for some of GLUE's, on test rows. They choose no rate "
    "and no epoch; validation rows do, the rate by the same score and the epoch by macro-F1, or where the answer is a "
    "number by Pearson's correlation. The paper reports the best epoch on the rows it is chosen by."
)
ON_TREC = (
    SMALL_MODEL,
    "Task: question types (TREC, 6 classes), which come without a hub, instead of GLUE, WikiSQL and SAMSum.",
    SHORT_TRAINING,
    SCORED_ON,
)
"""What is scaled down where TREC is the one task."""
ON_BOTH = (
    SMALL_MODEL,
    "Tasks: question types (TREC, 6 classes) and film reviews (Rotten Tomatoes, 2 classes, the sentences that most of "
    "SST-2 is made of) instead of GLUE, WikiSQL and SAMSum: they come without a hub.",
    SHORT_TRAINING,
    SCORED_ON,
)
"""The same where both tasks are trained on."""


class ForeseenGrid(Grid):
    """The same records, looked at as if every sweep had ended: tells which runs will follow.

    A sweep that is not complete counts as having chosen a rate that no other run has.
    """


def run_of(data: str, method: str, seed: int, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """Return one run in the shared setting, with `changes` to its other settings."""
    return RunConfig(**{**SETTINGS, **OF_TASK.get(data, {}), **(changes or {})}, data=data, method=method, seed=seed)


def on_model(task: str, model: str) -> str:
    """Return what a task is called where a model is fine-tuned on it; the small one goes without saying."""
    return task if model == MODEL else f"{task} with {model}"


def by_seed(runs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return each run once, one seed of everything first, in the given order within a seed."""
    return sorted(dict.fromkeys(runs), key=lambda config: config.seed)

"""Whole runs: three epochs of rotten-tomatoes with MiniLM and rank 8 on all linear layers, scored after each epoch.

Ours is what `veneer train` does. PEFT's is what its users write: `get_peft_model` and transformers' Trainer with
dynamic padding, once in float32 and once with `bf16=True` and batches of like length. Rows, batch size, learning rate,
schedule and seed are the same; the time is that of `Trainer.train`, the evaluations included. Each run has a process of
its own, and round k is seed k of all of them. A round takes a quarter of an hour on two cores, so each run is noted in
results/whole-run.jsonl as it ends, and those that a machine like this one has done are not done again.

    python -m benchmarks.runs CONTENDER SEED     prints {"seconds": ..., "accuracy": ...} of one run
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import TaskType, get_peft_model
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from benchmarks.harness import Bar, Comparison, Options, compare, describe, rotated
from veneer.data.sources import find_model
from veneer.training.config import RunConfig
from veneer.training.encoding import encode, predict_logits
from veneer.training.machine import has_bfloat16
from veneer.training.models import load_classifier
from veneer.training.run import prepare_data, run

OURS, PEFT_DEFAULT, PEFT_BFLOAT16 = "veneer", "PEFT, default (float32)", "PEFT, bfloat16, batches of like length"
CONFIG = RunConfig(model="minilm", data="rotten-tomatoes", method="lora-all")
NOTED = Path(__file__).parent / "results" / "whole-run.jsonl"
Outcome = dict[str, float]


def whole_run(options: Options) -> list[Comparison]:
    """Compare fine-tuning from the first step to the last, in time and in test accuracy."""
    names = [OURS, PEFT_DEFAULT, *([PEFT_BFLOAT16] if has_bfloat16() else [])]
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    for seed in range(options.rounds or 1):
        for name in rotated(names, seed):
            outcomes[name].append(_noted(name, seed) or _measured(name, seed))
    times, scores = ({name: [o[key] for o in outcomes[name]] for name in names} for key in ("seconds", "accuracy"))
    title, bars = f"{CONFIG.epochs} epochs of {CONFIG.data}", {PEFT_DEFAULT: 0.25, PEFT_BFLOAT16: 0.65}
    as_good = Bar(of="shortfall", at_most=1.0) if len(scores[OURS]) > 1 else None
    return [
        *(compare(title, times, OURS, other, _bar(bars[other])) for other in names[1:]),
        *(compare(f"{title}, test accuracy", scores, OURS, other, as_good, unit="share") for other in names[1:]),
    ]


def _bar(at_most: float) -> Bar | None:
    """Return the bar, which was set for a machine that computes in bfloat16."""
    return Bar(of="ratio", at_most=at_most) if has_bfloat16() else None


def _noted(name: str, seed: int) -> Outcome | None:
    """Return what an earlier call measured of this run on a machine like this one."""
    lines = NOTED.read_text(encoding="utf-8").splitlines() if NOTED.is_file() else []
    for entry in map(json.loads, lines):
        if (entry["contender"], entry["seed"], entry["machine"]) == (name, seed, _machine()):
            return Outcome(entry["outcome"])
    return None


def _machine() -> dict[str, Any]:
    machine, _ = describe()
    return {key: machine[key] for key in ("cpu", "instructions", "cores", "threads", "accelerator")}


def _measured(name: str, seed: int) -> Outcome:
    command = [sys.executable, "-m", "benchmarks.runs", name, str(seed)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    outcome: Outcome = json.loads(printed.splitlines()[-1])
    entry = {"contender": name, "seed": seed, "machine": _machine(), "outcome": outcome}
    with NOTED.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    return outcome


def ours(seed: int) -> Outcome:
    """Return what `veneer train` reaches."""
    with tempfile.TemporaryDirectory() as folder:
        record = run(replace(CONFIG, seed=seed), Path(folder) / "run")
    assert record.test is not None
    return {"seconds": record.train_seconds, "accuracy": record.test.figures["accuracy"]}


def peft_run(seed: int, *, bfloat16: bool) -> Outcome:
    """Return what PEFT and the Trainer reach; the weights of the last epoch are tested."""
    set_seed(seed)
    splits = prepare_data(CONFIG)
    loaded = load_classifier(find_model(CONFIG.model), splits.labels, seed=seed, attention="sdpa")
    lora = PeftConfig(r=CONFIG.r, lora_alpha=int(CONFIG.alpha), target_modules="all-linear", task_type=TaskType.SEQ_CLS)
    model = get_peft_model(loaded.model, lora)
    parts = {
        name: encode(part, loaded.tokenizer, labels=splits.labels, max_tokens=CONFIG.max_tokens)
        for name, part in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
        if part is not None
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=CONFIG.epochs,
                per_device_train_batch_size=CONFIG.batch_size,
                learning_rate=CONFIG.peak_learning_rate(),
                warmup_steps=CONFIG.warmup_ratio,
                weight_decay=CONFIG.weight_decay,
                eval_strategy="epoch",
                save_strategy="no",
                seed=seed,
                bf16=bfloat16,
                train_sampling_strategy="group_by_length" if bfloat16 else "random",
                use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=torch.cuda.is_available(),
                remove_unused_columns=False,
                disable_tqdm=True,
                report_to="none",
            ),
            data_collator=DataCollatorWithPadding(loaded.tokenizer),
            train_dataset=parts["train"],
            eval_dataset=parts["validation"],
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    logits = predict_logits(model, parts["test"], loaded.tokenizer, precision="float32")
    hits = logits.argmax(1) == torch.tensor([row["labels"] for row in parts["test"]])
    return {"seconds": seconds, "accuracy": float(hits.float().mean())}


RUNS: Mapping[str, Callable[[int], Outcome]] = {
    OURS: ours,
    PEFT_DEFAULT: lambda seed: peft_run(seed, bfloat16=False),
    PEFT_BFLOAT16: lambda seed: peft_run(seed, bfloat16=True),
}

if __name__ == "__main__":
    print(json.dumps(RUNS[sys.argv[1]](int(sys.argv[2]))))

"""Peak memory of a training step, each contender in a process of its own.

What counts is the largest resident set during the first steps less the resident set just before them, the model
loaded: activations, gradients and the optimiser's state. On a GPU it is the same of what torch has allocated.

    python -m benchmarks.memory CONTENDER MODEL TOKENS     prints the bytes of one contender
"""

import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import Bar, Comparison, Options, compare, interleave
from benchmarks.models import find_workload
from benchmarks.steps import DEFAULT, PEFT_BFLOAT16, PEFT_DEFAULT, SAME_NUMERICS, STEPS
from veneer.training.machine import has_bfloat16

ROUNDS, NUM_STEPS = 5, 3


def peak_memory(options: Options) -> list[Comparison]:
    """Compare the peak memory of a training step.

    Raises:
        UnknownNameError: there is no such workload.
    """
    workload = find_workload(options.model, options.tokens)

    def measure(name: str) -> Callable[[], float]:
        command = [sys.executable, "-m", "benchmarks.memory", name, options.model, str(workload.tokens)]
        return lambda: float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    names = [DEFAULT, SAME_NUMERICS, PEFT_DEFAULT, *([PEFT_BFLOAT16] if has_bfloat16() else [])]
    peaks = interleave({name: measure(name) for name in names}, rounds=options.rounds or ROUNDS, warm_up=0)
    title = f"peak memory of a step, {workload.title}, {workload.rows} x {workload.tokens} tokens"
    return [
        compare(title, peaks, DEFAULT, PEFT_DEFAULT, Bar(of="ratio", at_most=0.60), unit="bytes"),
        compare(title, peaks, SAME_NUMERICS, PEFT_DEFAULT, unit="bytes"),
        *(compare(title, peaks, DEFAULT, other, unit="bytes") for other in names[3:]),
    ]


def step_bytes(step: Callable[[], None]) -> int:
    """Return by how many bytes the first steps raise the peak over what is in use before them.

    Raises:
        OSError: this is neither Linux nor a machine with a GPU.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
            library.malloc_trim(0)  # else what loading has freed would hide part of what the step takes
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present: man 5 proc
        before = _resident_bytes("VmRSS")
    for _ in range(NUM_STEPS):
        step()
    return (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident_bytes("VmHWM")) - before


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


if __name__ == "__main__":
    contender, model, tokens = sys.argv[1:]
    print(step_bytes(STEPS[contender](find_workload(model, int(tokens)))))

"""The command: `python -m benchmarks` lists, `python -m benchmarks NAME` measures, `python -m benchmarks all` all."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import Comparison, Options, Report, describe, markdown, watched, write_report
from benchmarks.memory import peak_memory
from benchmarks.models import find_workload
from benchmarks.runs import whole_run
from benchmarks.saved import saved
from benchmarks.steps import train_step
from benchmarks.verbs import dora, imports, inject, inject_many, load, merge
from veneer.errors import VeneerError, unknown_name
from veneer.training.machine import has_bfloat16

RESULTS = Path(__file__).parent / "results"
BENCHMARKS: Mapping[str, Callable[[Options], list[Comparison]]] = {
    "train-step": train_step,
    "peak-memory": peak_memory,
    "saved-bytes": saved,
    "inject": inject,
    "inject-many": inject_many,
    "import": imports,
    "load": load,
    "merge": merge,
    "dora": dora,
    "whole-run": whole_run,
}
OF_A_MODEL = ("train-step", "peak-memory")
"""The benchmarks that `--model` and `--tokens` choose the work of."""
LARGE = ("inject", "inject-many", "load", "merge")
"""Those of `--layers`."""
STANDARD: tuple[tuple[str, ...], ...] = (
    ("train-step", "--model", "minilm", "--tokens", "32"),
    ("train-step", "--model", "minilm", "--tokens", "128"),
    ("train-step", "--model", "mpnet", "--tokens", "64"),
    ("train-step", "--model", "smollm2", "--tokens", "64"),
    ("peak-memory", "--model", "minilm", "--tokens", "32"),
    ("peak-memory", "--model", "minilm", "--tokens", "128"),
    *((name,) for name in BENCHMARKS if name not in OF_A_MODEL),
)
"""What `all` measures, each in a process of its own."""


def main(
    name: Annotated[str | None, typer.Argument(help="What to measure, or `all`; nothing lists.")] = None,
    *,
    model: Annotated[str, typer.Option(help="minilm, mpnet or smollm2.")] = "minilm",
    tokens: Annotated[int | None, typer.Option(help="Tokens of each row; the model's own if not given.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Measurements of each contender.", min=1)] = None,
    layers: Annotated[int, typer.Option(help="Layers of the large models; fewer only to try.", min=1)] = 24,
    out: Annotated[Path, typer.Option(help="Folder of the JSON and the table.")] = RESULTS,
) -> None:
    """Measure Veneer side by side with PEFT; write the figures as JSON and as a Markdown table."""
    if name is None:
        for known, function in BENCHMARKS.items():
            print(f"{known:<12} {(function.__doc__ or '').splitlines()[0]}")
        return
    if name == "all":
        again = ("--out", str(out), "--layers", str(layers), *(("--rounds", str(rounds)) if rounds else ()))
        for arguments in STANDARD:
            subprocess.run([sys.executable, "-m", "benchmarks", *arguments, *again], check=True)
        return
    try:
        report = measured(name, Options(model=model, tokens=tokens, rounds=rounds, layers=layers))
    except VeneerError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    write_report(report, out)
    print(markdown(report))


def measured(name: str, options: Options) -> Report:
    """Return the report of one benchmark.

    Raises:
        UnknownNameError: there is no such benchmark or model.
        UnequalWorkError: the contenders do not do the same work.
    """
    if name not in BENCHMARKS:
        raise unknown_name("benchmark", name, [*BENCHMARKS, "all"])
    with watched() as conditions:
        comparisons = BENCHMARKS[name](options)
    title, command, notes = name, f"python -m benchmarks {name}", []
    if name in OF_A_MODEL:
        workload = find_workload(options.model, options.tokens)
        title += f"-{options.model}-{workload.rows}x{workload.tokens}" + ("" if has_bfloat16() else "-float32")
        command += f" --model {options.model} --tokens {workload.tokens}"
        notes += [workload.note] if workload.note else []
    if options.rounds:
        command += f" --rounds {options.rounds}"
    if name in LARGE and options.layers != Options.layers:
        command += f" --layers {options.layers}"
        notes.append(f"Tried out with {options.layers} of {Options.layers} layers: not a measurement.")
    machine, versions = describe()
    return Report(
        name=title,
        command=command,
        machine=machine,
        versions=versions,
        conditions=conditions(),
        comparisons=comparisons,
        notes=notes,
    )


if __name__ == "__main__":
    typer.run(main)

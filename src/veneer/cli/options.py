"""The options that several commands share, each defined once."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from veneer.errors import ConfigError, gathered

UPDATE_OPTIONS = ("r", "alpha", "dropout", "scaling")
"""What is said of low-rank updates alone."""

Model = Annotated[str, typer.Option("--model", help="Pretrained model: a short name, a local folder or a hub id.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="Labelled text: a short name, a .csv, .tsv, .jsonl or .parquet file, a folder of them, or a hub id.",
    ),
]
Text = Annotated[str | None, typer.Option("--text", help="Column with the text.")]
Label = Annotated[str | None, typer.Option("--label", help="Column with the class, or with the number to predict.")]
TextPair = Annotated[str | None, typer.Option("--text-pair", help="Column with the second text of each row.")]
Task = Annotated[str, typer.Option("--task", help="What the labels of a table are: classification or regression.")]
Glue = Annotated[
    str | None,
    typer.Option(
        "--glue", help="Folder of GLUE's files, for --data glue/rte and the like; else VENEER_GLUE or the hub."
    ),
]
Validation = Annotated[
    str | None,
    typer.Option("--validation", help="File with validation rows; else the data's own, or a share of it is held out."),
]
Test = Annotated[str | None, typer.Option("--test", help="File with test rows.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the (first) run.")]
Epochs = Annotated[int, typer.Option("--epochs", help="Passes over the training rows.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Rows of one training step.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Longer texts are cut.")]
Rank = Annotated[int, typer.Option("--r", help="Rank of the low-rank updates.")]
Alpha = Annotated[float, typer.Option("--alpha", help="Scaling is alpha / r.")]
Dropout = Annotated[float, typer.Option("--dropout", help="Dropout before A.")]
BaseDropout = Annotated[
    bool,
    typer.Option("--base-dropout", help="Dropout in the pretrained layers; slower on a CPU."),
]
Precision = Annotated[str, typer.Option("--precision", help="auto, float32 or bfloat16.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results at the output path.")]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        help="head, lora-qv, lora-all or full; or what LoRA is compared with: bitfit, top2, houlsby, pfeiffer, lin, "
        "adapterdrop, prefix-embed, prefix-layer, lora-prefix-embed, lora-prefix-layer.",
    ),
]
Target = Annotated[list[str] | None, typer.Option("--target", help="Layer to adapt, by name; repeat for more.")]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="Adapt these of query, key, value, output; comma-separated, instead of --target."),
]
Size = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        help="NAME=NUMBER, a size of a method other than LoRA: r, dropped_blocks, prefix_tokens, infix_tokens or "
        "num_blocks; repeat for more.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Trained = Annotated[Path, typer.Argument(help="An adapter folder, a fully fine-tuned model folder, or a run folder.")]
BaseModel = Annotated[
    str | None, typer.Option("--model", help="Put the adapter on this base model, not the one it was trained on.")
]
AnyBase = Annotated[
    bool, typer.Option("--any-base", help="Accept also a base with other weights than the adapter was trained on.")
]
Fused = Annotated[
    list[str] | None,
    typer.Option(
        "--fused", help="For loralib: NAME=101, a 1 for each adapted slice of a fused projection; repeat for more."
    ),
]
Embedding = Annotated[list[str] | None, typer.Option("--embedding", help="For loralib: an embedding, by name.")]


def slices(given: Iterable[str] | None) -> dict[str, tuple[bool, ...]]:
    """Return the adapted slices by the name of each fused projection, from `Fused`: NAME=101."""
    found = {}
    for text in given or ():
        name, _, digits = text.rpartition("=")
        if not name or not digits or set(digits) - {"0", "1"}:
            raise ConfigError(f"--fused is {text!r}; it must be a name and a digit for each slice, such as c_attn=101")
        found[name] = tuple(digit == "1" for digit in digits)
    return found


def sizes(given: Iterable[str] | None) -> tuple[tuple[str, int], ...]:
    """Return the pairs of `Size`: NAME=NUMBER."""
    found = []
    for text in given or ():
        name, _, digits = text.rpartition("=")
        if not name or not digits.isdecimal():
            raise ConfigError(f"--size is {text!r}; it must be a name and a whole number, such as r=16")
        found.append((name, int(digits)))
    return tuple(found)


def names(given: str | None) -> tuple[str, ...]:
    """Return the names in a comma-separated list."""
    return tuple(name.strip() for name in (given or "").split(",") if name.strip())


def require_acting(context: typer.Context, *, data: str, methods: Iterable[str]) -> None:
    """Raise a `ConfigError` that names each option the user typed that would change nothing.

    Args:
        context: of the command.
        data: `--data`.
        methods: what is run.

    Raises:
        UnknownNameError: there is no such method.
    """
    from veneer.data.sources import SHORT_NAMES
    from veneer.methods.table import find_method, sizes_of

    known = [find_method(name) for name in methods]
    problems = []
    if not any(method.has_updates for method in known) and (idle := typed(context, UPDATE_OPTIONS)):
        idlers, verb = ", ".join(method.name for method in known), "trains" if len(known) == 1 else "train"
        has_sizes = "size" in context.params and any(map(sizes_of, known))
        advice = "; sizes of its own are given by --size" if has_sizes else ""
        problems.append(f"{idle}: {idlers} {verb} no low-rank updates{advice}")
    shares = [f"{side}_share" for side in ("validation", "test")]
    if data in SHORT_NAMES and (idle := typed(context, shares)):
        problems.append(f"{idle}: {data} brings its own splits")
    problems += [
        f"{idle}: --{side} names the rows already"
        for side in ("validation", "test")
        if typed(context, [side]) and (idle := typed(context, [f"{side}_share"]))
    ]
    if problems:
        raise ConfigError(gathered("these options would change nothing; leave them out:", problems))


def typed(context: typer.Context, names: Iterable[str]) -> str:
    """Return those of a command's options that the user gave, as they are typed."""
    sources = {name: context.get_parameter_source(name) for name in names}
    typed = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return ", ".join(f"--{name.replace('_', '-')}" for name in typed)

"""`veneer inspect`: what is in an adapter, alone or beside its base; or what a method would adapt in a model."""

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli import options
from veneer.cli.console import note, print_json, stdout
from veneer.errors import ConfigError


def inspect(
    adapter: Annotated[
        Path | None, typer.Argument(help="An adapter's folder or file, or a run folder that holds one.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="A model: with ADAPTER, its base; alone, to see what would be adapted in it."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="For a model alone: any of `veneer train --help`, except full.")
    ] = None,
    target: options.Target = None,
    weights: options.Weights = None,
    size: options.Size = None,
    from_format: Annotated[
        str | None,
        typer.Option(
            "--from", help="Format of ADAPTER: peft, adapter-hub, kohya, loralib or diffusers; opens pickles."
        ),
    ] = None,
    component: Annotated[
        str | None, typer.Option(help="Of a file for several models: which; see veneer convert.")
    ] = None,
    r: Annotated[int | None, typer.Option(help="Rank, for a model alone (8) or a loralib file.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Scaling is alpha / r; as --r (16).")] = None,
    fused: options.Fused = None,
    embedding: options.Embedding = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what an adapter holds and does to its base, or what would be adapted in a model."""
    from veneer.formats.convert import ReadOptions
    from veneer.methods.settings import MethodSettings
    from veneer.training.inspection import Description, describe_adapter, describe_plan

    description: Description
    if adapter is not None:
        if method is not None or target or weights or size:
            raise ConfigError(
                "--method, --target, --weights and --size are for a model alone (veneer inspect --model NAME); "
                "leave them out"
            )
        given = ReadOptions(
            alpha=alpha,
            r=r,
            fused=options.slices(fused),
            embeddings=tuple(embedding or ()),
            component=component,
            pickles=from_format is not None,
        )
        description = describe_adapter(adapter, file_format=from_format, options=given, model=model, notify=note)
    elif model is not None:
        if from_format is not None or component is not None:
            raise ConfigError("--from and --component are for an adapter (veneer inspect ADAPTER); leave them out")
        settings = MethodSettings(
            method=method or "lora-all",
            targets=tuple(target) if target else None,
            weights=options.names(weights),
            sizes=options.sizes(size),
            r=8 if r is None else r,
            alpha=16.0 if alpha is None else alpha,
        )
        description = describe_plan(model, settings, notify=note)
    else:
        raise ConfigError(
            "give either an adapter folder (veneer inspect ADAPTER) or a model (veneer inspect --model NAME), or both"
        )
    if as_json:
        print_json(description.to_json())
    else:
        stdout.print(str(description), markup=False, soft_wrap=True)

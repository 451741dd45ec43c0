"""`veneer inspect`: what is in an adapter folder, or what a method would adapt in a model."""

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli import options
from veneer.cli.console import note, print_json, stdout
from veneer.errors import ConfigError


def inspect(
    adapter: Annotated[Path | None, typer.Argument(help="An adapter folder or a run folder that holds one.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="A model, to see what would be adapted in it.")] = None,
    method: Annotated[str, typer.Option(help="head, lora-qv or lora-all.")] = "lora-all",
    target: Annotated[list[str] | None, typer.Option(help="Layer to adapt, by name; repeat for more.")] = None,
    r: options.Rank = 8,
    alpha: options.Alpha = 16.0,
    as_json: options.AsJson = False,
) -> None:
    """Show what an adapter holds, or what would be adapted in a model."""
    from veneer.training.inspection import AdapterDescription, PlanDescription, describe_adapter, describe_plan

    if (adapter is None) == (model is None):
        raise ConfigError(
            "give either an adapter folder (veneer inspect ADAPTER) or a model (veneer inspect --model NAME)"
        )
    description: AdapterDescription | PlanDescription
    if adapter is not None:
        description = describe_adapter(adapter)
    else:
        assert model is not None
        targets = tuple(target) if target else None
        description = describe_plan(model, method=method, targets=targets, r=r, alpha=alpha, notify=note)
    if as_json:
        print_json(description.to_json())
    else:
        stdout.print(str(description), markup=False, soft_wrap=True)

"""`veneer merge`: an adapter and its base model made into one model folder."""

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli import options
from veneer.cli.console import note, stdout


def merge(
    adapter: Annotated[Path, typer.Argument(help="An adapter folder, or a run folder that holds one.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet.")],
    model: options.BaseModel = None,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16, which is half the size.")] = "float32",
    any_base: options.AnyBase = False,
) -> None:
    """Write the model that an adapter and its base make together: plain weights that transformers loads."""
    from veneer.training.merging import write_merged
    from veneer.training.output import new_folder

    with new_folder(output) as partial:
        line = write_merged(adapter, partial, model=model, dtype=dtype, any_base=any_base, notify=note)
    stdout.print(f"{line}\nsaved: {output}", markup=False, soft_wrap=True)

"""`veneer convert`: an adapter in any format, made into a folder that PEFT, vLLM and Veneer load."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veneer.cli import options
from veneer.cli.console import note, stdout

if TYPE_CHECKING:
    from veneer.lora.state import AdapterState


def convert(
    source: Annotated[Path, typer.Argument(help="The adapter: a folder or a file, pickles included.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet.")],
    from_format: Annotated[
        str | None,
        typer.Option("--from", help="peft, adapter-hub, kohya, loralib or diffusers; else told by its look."),
    ] = None,
    to: Annotated[str, typer.Option(help="peft, which Veneer reads too, or vllm.")] = "peft",
    alpha: Annotated[float | None, typer.Option(help="For loralib: the scaling is alpha / r.")] = None,
    r: Annotated[int | None, typer.Option(help="For loralib: the rank, to be checked.")] = None,
    fused: options.Fused = None,
    embedding: options.Embedding = None,
    model: Annotated[
        str | None, typer.Option(help="For kohya: the model, or the safetensors file of its weights; names are read.")
    ] = None,
    component: Annotated[
        str | None,
        typer.Option(help="Of a file for several models: unet, transformer, text_encoder; for kohya lora_unet, ..."),
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id or path of the base model, to be noted.")] = None,
    scale: Annotated[float, typer.Option(help="Multiply the update by this.")] = 1.0,
    add: Annotated[
        list[str] | None,
        typer.Option(help="OTHER or OTHER:WEIGHT, the folder of an adapter whose update is added; repeat for more."),
    ] = None,
    shrink_rank: Annotated[int | None, typer.Option(help="Bring every layer to at most this rank.")] = None,
    shrink_energy: Annotated[
        float | None, typer.Option(help="Keep this share of each layer's squared singular values.")
    ] = None,
) -> None:
    """Read an adapter in any format and write it as a folder, scaled, added to others or shrunk on the way."""
    from veneer.errors import unknown_name
    from veneer.formats.adapter import read_adapter
    from veneer.formats.convert import WRITERS, ReadOptions, models_in, read_any, sniff
    from veneer.training.output import new_folder

    if to not in WRITERS:
        raise unknown_name("format to write", to, WRITERS)
    with new_folder(output) as partial:
        given = ReadOptions(
            alpha=alpha,
            r=r,
            fused=options.slices(fused),
            embeddings=tuple(embedding or ()),
            model=_module_names(model),
            component=component,
            pickles=True,
        )
        found = from_format or sniff(source, pickles=True)
        state = read_any(source, file_format=found, options=given)
        lines = [f"read {source} ({found}): {_summary(state)}"]
        others = models_in(source, found, pickles=True) if component is not None else ()
        lines += [f"left out {name}: updates of another model" for name in others if name != component]
        state, summed = _summed(_noted(state, base_model), scale, add or (), base_model)
        state, shrunk = _shrunk(state, shrink_rank, shrink_energy)
        lines += [*summed, *shrunk, *(WRITERS[to](state, partial) or ())]
        lines.append(f"wrote {output} ({to}): {_summary(read_adapter(partial))}")
    for line in lines:
        stdout.print(line, markup=False, soft_wrap=True)


def _module_names(model: str | None) -> tuple[str, ...]:
    if model is None:
        return ()
    from veneer.training.merging import module_names

    return module_names(model, note)


def _noted(state: "AdapterState", base_model: str | None) -> "AdapterState":
    """Return the adapter with the base model that the user names, if one is named."""
    return state if base_model is None else replace(state, base_model=base_model)


def _summed(
    state: "AdapterState", scale: float, others: Sequence[str], base_model: str | None
) -> tuple["AdapterState", list[str]]:
    """Return `scale` times the adapter plus the others, and what was done; what is trained whole is the adapter's."""
    from veneer.formats.adapter import read_adapter
    from veneer.lora.algebra import combined, scaled

    if not others:
        return (state, []) if scale == 1 else (scaled(state, scale), [f"scaled by {scale:g}"])
    terms = [_weighted(text) for text in others]
    states = [_noted(read_adapter(path), base_model) for path, _ in terms]
    weights = [scale, *(weight for _, weight in terms)]
    lines = [f"multiplied by {scale:g}"] if scale != 1 else []
    for (path, weight), other in zip(terms, states, strict=True):
        lines.append(f"added {path}, multiplied by {weight:g}: {_summary(other)}")
        lines += [f"left out {name} of {path}: it was trained whole" for name in (*other.trained, *other.token_rows)]
    return combined([state, *states], weights, trained_from=0), lines


def _weighted(text: str) -> tuple[Path, float]:
    """Return path and weight of OTHER or OTHER:WEIGHT."""
    path, _, weight = text.rpartition(":")
    try:
        return (Path(path), float(weight)) if path else (Path(text), 1.0)
    except ValueError:  # the colon is part of the path
        return Path(text), 1.0


def _shrunk(state: "AdapterState", rank: int | None, energy: float | None) -> tuple["AdapterState", list[str]]:
    """Return the adapter at lower ranks, and what it costs."""
    if rank is None and energy is None:
        return state, []
    from veneer.lora.algebra import shrunk

    result, errors = shrunk(state, rank=rank, energy=energy)
    if not errors:
        return result, []
    worst = max(errors, key=errors.__getitem__)
    ranks = f"rank {_span(update.rank for update in state.updates.values())} brought to"
    return result, [
        f"{ranks} {_span(update.rank for update in result.updates.values())}: each layer's change is off by "
        f"{_span(errors.values())} of its norm, the most in {worst}"
    ]


def _summary(state: "AdapterState") -> str:
    """Return how many layers there are, of what kinds, ranks and scalings, and what is there besides."""
    kinds = [update.kind for update in state.updates.values()]
    parts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)] or ["no"]
    text = f"{' + '.join(parts)} layer{'s' * (len(kinds) != 1)}"
    if kinds:
        text += (
            f", rank {_span(u.rank for u in state.updates.values())}, scaling {_span(map(state.factor, state.updates))}"
        )
    if any(update.magnitude is not None for update in state.updates.values()):
        text += ", DoRA"
    whole = [*state.trained, *(f"{len(entry.ids)} rows of {name}" for name, entry in state.token_rows.items())]
    return f"{text}; trained whole: {', '.join(whole)}" if whole else text


def _span(values: Iterable[float]) -> str:
    """Return the range of some numbers, or the number that they all are."""
    least, most = min(known := list(values)), max(known)
    return f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"

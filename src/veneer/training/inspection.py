"""What `veneer inspect` shows: what a trained folder holds, alone or beside its base; or the plan for a model alone."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from veneer.data.sources import Notify, find_model
from veneer.errors import ConfigError
from veneer.formats.convert import METHOD_FILE, ReadOptions, read_any, sniff
from veneer.lora.analysis import LayerReport, layer_report
from veneer.lora.fingerprint import compared, fingerprint
from veneer.lora.layers import adapted_slots, plain_weights
from veneer.lora.plan import Plan
from veneer.lora.state import AdapterState
from veneer.lora.targets import plan
from veneer.lora.transfer import load_state
from veneer.methods.settings import MethodSettings
from veneer.methods.table import Counts, sizes_of
from veneer.training.merging import load_base, module_names
from veneer.training.method_folder import read_method
from veneer.training.models import existing_head, loading_error, quieten
from veneer.training.saved import CARD_FILE, TaskCard, find_trained, read_card

VERDICTS: Mapping[bool | None, str] = {
    True: "has the weights that the adapter was trained on",
    False: "has other weights than those that the adapter was trained on",
    None: "may have other weights: the adapter does not say what it was trained on",
}
DORA_NOTES: Mapping[bool, str] = {
    True: "the figures are of DoRA's whole change D = W' - W, W' = m (W + s B A) / |W + s B A|",
    False: "the figures are of s B A alone; what DoRA's magnitude does besides, only the base model tells (--model)",
}
"""Whether the base model is at hand -> what the figures of DoRA's layers are."""


@dataclass(frozen=True, kw_only=True)
class BaseComparison:
    """What was found out about a base model."""

    model: str
    fits: bool | None
    """Whether its weights are those that the adapter was trained on; None where the adapter does not say."""


@dataclass(frozen=True, kw_only=True)
class AdapterDescription:
    """The contents of an adapter; prints as a summary and a table."""

    path: Path
    file_format: str
    adapter: AdapterState
    card: TaskCard | None
    layers: tuple[LayerReport, ...]
    base: BaseComparison | None = None

    def to_json(self) -> dict[str, object]:
        """Return everything but the tensors as plain values."""
        adapter = self.adapter
        return {
            "path": str(self.path),
            "format": self.file_format,
            "config": asdict(adapter.config),
            "base_model": adapter.base_model,
            "task_type": adapter.task_type,
            "task_card": self.card and self.card.to_json(),
            "base": None if self.base is None else asdict(self.base),
            "layers": [self._row(report) for report in self.layers],
            "trained_whole": {name: list(tensor.shape) for name, tensor in adapter.trained.items()},
            "trained_rows": {name: len(entry.ids) for name, entry in adapter.token_rows.items()},
            "lora_parameters": self._count(),
        }

    def __str__(self) -> str:
        config = self.adapter.config
        layers = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)}"
        lines = [
            f"adapter: {self.path} ({self.file_format})",
            f"base model: {self.adapter.base_model}",
            f"{config.variant} r={config.r}, alpha={config.alpha:g}, s={config.factor:g} ({config.scaling}), "
            f"dropout={config.dropout:g}; {layers}, {self._count():,} low-rank parameters",
        ]
        if self.card is not None:
            lines.append(f"trained by {self.card.method} {self.card.purpose}")
        lines += [f"trained whole: {name} {tuple(tensor.shape)}" for name, tensor in self.adapter.trained.items()]
        lines += [f"trained rows: {len(entry.ids)} of {name}" for name, entry in self.adapter.token_rows.items()]
        if self.base is not None:
            lines.append(f"{self.base.model} {VERDICTS[self.base.fits]}")
        return "\n".join([*lines, *self._table()])

    def _table(self) -> list[str]:
        """Return a line for each layer, under a line of headings."""
        if not self.layers:
            return []
        width = max(len("module"), *(len(report.name) for report in self.layers))
        is_dora = any(report.magnitude_applied is not None for report in self.layers)
        delta = "|D|" if is_dora and self.base else "|s B A|"
        head = f"{'module':<{width}}  {'kind':<9} {'r':>4} {'in':>7} {'out':>7} {'s':>7} {delta:>9} {'eff. rank':>9}"
        rows = [f"{head} {f'{delta}/|W|':>11} {'intruders':>9}" if self.base else head]
        if is_dora:
            rows.insert(0, DORA_NOTES[self.base is not None])
        for report in self.layers:
            row = self._row(report)
            line = f"{report.name:<{width}}  {row['kind']:<9} {report.rank:>4} {row['in']:>7} {row['out']:>7}"
            line += f" {row['scaling']:>7.4g} {report.delta_norm:>9.4f} {report.effective_rank:>9.2f}"
            rows.append(f"{line} {report.relative_norm:>11.4f} {report.intruders:>9}" if self.base else line)
        return rows

    def _row(self, report: LayerReport) -> dict[str, object]:
        update = self.adapter.updates[report.name]
        A, B = update.matrices
        values = {name: value for name, value in asdict(report).items() if name not in ("name", "rank")}
        sizes = {"kind": update.kind, "r": report.rank, "in": A.shape[-1], "out": B.shape[-2]}
        known = {name: value for name, value in values.items() if value is not None}
        return {"name": report.name, **sizes, "scaling": self.adapter.factor(report.name), **known}

    def _count(self) -> int:
        return sum(tensor.numel() for update in self.adapter.updates.values() for tensor in update.tensors().values())


@dataclass(frozen=True, kw_only=True)
class PlanDescription:
    """What a method would adapt in a model; prints as the plan does."""

    model: str
    plan: Plan

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain values."""
        counts = {
            name: getattr(self.plan, name) for name in ("lora_parameters", "trainable_parameters", "total_parameters")
        }
        return {"model": self.model, **asdict(self.plan), **counts}

    def __str__(self) -> str:
        return str(self.plan)


@dataclass(frozen=True, kw_only=True)
class MethodPlan:
    """What a method that is not LoRA alone would train in a model; prints as sentences."""

    model: str
    settings: MethodSettings
    counts: Counts

    def to_json(self) -> dict[str, object]:
        """Return the settings and the counts as plain values."""
        return {"model": self.model, **self.settings.to_json(), **self._counts()}

    def __str__(self) -> str:
        counts, added = self.counts, self.settings.chosen.added_tokens
        parts = [(counts.lora, "low-rank"), (counts.other, "of its own"), (counts.head, "of the head")]
        summands = " + ".join(f"{number:,} {name}" for number, name in parts if number)
        lines = [_sentence(self.settings), *([f"every text grows by {added} tokens"] if added else [])]
        share = counts.trainable / max(counts.total, 1)
        total = f"{counts.trainable:,} of {counts.total:,} parameters trainable ({share:.3%})"
        return "\n".join([*lines, f"{summands} = {total}"])

    def _counts(self) -> dict[str, int]:
        names = ("lora", "head", "other", "trainable", "total")
        return {f"{name}_parameters": getattr(self.counts, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class MethodDescription:
    """What a method that is not LoRA alone has trained; prints as a summary."""

    path: Path
    card: TaskCard
    settings: MethodSettings
    shapes: Mapping[str, tuple[int, ...]]
    """Name of each trained tensor -> its shape."""

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained, those of the head included."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def to_json(self) -> dict[str, object]:
        """Return everything but the tensors as plain values."""
        return {
            "path": str(self.path),
            "format": "veneer",
            "task_card": self.card.to_json(),
            "trained": {name: list(shape) for name, shape in self.shapes.items()},
            "trained_parameters": self.num_parameters,
        }

    def __str__(self) -> str:
        lines = [
            f"method: {self.path} ({METHOD_FILE})",
            f"base model: {self.card.base_model}",
            _sentence(self.settings),
            f"{len(self.shapes)} tensors, {self.num_parameters:,} parameters, the head's included",
            f"trained {self.card.purpose}",
        ]
        return "\n".join([*lines, *(f"trained: {name} {shape}" for name, shape in self.shapes.items())])


Description = AdapterDescription | MethodDescription | PlanDescription | MethodPlan


def _sentence(settings: MethodSettings) -> str:
    """Return what a method trains, with its sizes."""
    sizes = ", ".join(f"{name}={value}" for name, value in sizes_of(settings.chosen).items())
    return f"{settings.method}: {settings.chosen.about}" + f" ({sizes})" * bool(sizes)


def describe_adapter(
    path: Path,
    *,
    file_format: str | None = None,
    options: ReadOptions | None = None,
    model: str | None = None,
    notify: Notify | None = None,
) -> AdapterDescription | MethodDescription:
    """Return what is in an adapter's folder or file, or in the run folder that holds one.

    Args:
        path: the folder or file.
        file_format: a name in `FORMATS`; None means what the files look like.
        options: what the files do not say themselves.
        model: the base model, to compare each layer's change with its weight; that takes two singular value
            decompositions of every adapted weight.
        notify: takes one line for the user when something has to be fetched.

    Raises:
        AdapterFormatError: there is no adapter, or a broken one, or one that would have to be unpickled.
        AdapterMismatchError: it does not fit the base model. Other weights in it are no error here, but a finding.
        UnknownNameError, ConfigError, DataError, DownloadError: see `read_any` and `load_base`.
    """
    found = find_trained(path) if path.is_dir() else path
    card = read_card(found) if (found / CARD_FILE).is_file() else None
    if card is not None and card.settings is not None:
        return _describe_method(found, card, card.settings, model)
    given = ReadOptions() if options is None else options
    name = file_format or sniff(found, pickles=given.pickles)
    if name == "kohya" and model is not None:
        given = replace(given, model=module_names(model, notify))
    adapter = read_any(found, file_format=name, options=given)
    if model is None:
        return AdapterDescription(
            path=found, file_format=name, adapter=adapter, card=card, layers=layer_report(adapter)
        )
    network = load_base(adapter, find_model(model, notify), card)
    load_state(network, adapter, any_base=True)
    slots = adapted_slots(network)
    with torch.no_grad():
        weights = {layer: slots[layer].kind.matrix(slots[layer].base) for layer in adapter.updates}
    known = compared(adapter.fingerprint, fingerprint(plain_weights(slots)))
    fits = all(known.values()) if known else None
    return AdapterDescription(
        path=found,
        file_format=name,
        adapter=adapter,
        card=card,
        layers=layer_report(adapter, weights),
        base=BaseComparison(model=model, fits=fits),
    )


def _describe_method(folder: Path, card: TaskCard, settings: MethodSettings, model: str | None) -> MethodDescription:
    if model is not None:
        raise ConfigError(f"--model compares low-rank updates with their base; leave it out for {settings.method!r}")
    tensors, _ = read_method(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return MethodDescription(path=folder, card=card, settings=settings, shapes=shapes)


def describe_plan(
    model: str, settings: MethodSettings, *, notify: Notify | None = None
) -> PlanDescription | MethodPlan:
    """Return what a method would train in a model with two classes.

    Only the model's configuration is read; its weights stay on the meta device.

    Raises:
        UnknownNameError, DataError, DownloadError: there is no such model, or it cannot be had.
        ConfigError, TargetError: the settings do not fit the model.
    """
    if settings.chosen.trains_every_weight:
        raise ConfigError(f"the method {settings.method!r} trains every weight: there is nothing to plan")
    source = find_model(model, notify)
    quieten()
    try:
        config = AutoConfig.from_pretrained(source.location, trust_remote_code=False, num_labels=2)
        with torch.device("meta"):
            network = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # for a broken folder transformers raises many kinds, none of them ours
        raise loading_error(source, error) from None
    family, head = str(config.model_type), existing_head(network)
    if settings.chosen.part is None:
        return PlanDescription(model=model, plan=plan(network, settings.updates(family), head))
    return MethodPlan(model=model, settings=settings, counts=settings.attach(network, model_type=family, head=head))

"""What `veneer inspect` shows: the contents of an adapter folder, or the plan for a model whose weights stay unread."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from veneer.data.sources import Notify, find_model
from veneer.errors import AdapterFormatError, ConfigError, gathered
from veneer.formats.adapter import read_adapter
from veneer.lora.config import LoraConfig
from veneer.lora.delta import delta_weight
from veneer.lora.state import AdapterState
from veneer.lora.targets import Plan, plan
from veneer.methods.table import find_method
from veneer.training.models import existing_head, loading_error
from veneer.training.saved import CARD_FILE, TaskCard, find_trained, read_card


@dataclass(frozen=True, kw_only=True)
class AdapterDescription:
    """The contents of an adapter folder; prints as a table."""

    path: Path
    adapter: AdapterState
    card: TaskCard | None

    def to_json(self) -> dict[str, object]:
        """Return everything but the tensors as plain values."""
        return {
            "path": str(self.path),
            "config": asdict(self.adapter.config),
            "base_model": self.adapter.base_model,
            "task_type": self.adapter.task_type,
            "task_card": None if self.card is None else asdict(self.card),
            "layers": [
                {"name": name, "r": len(A), "in": A.shape[1], "out": len(B), "delta_norm": self._norm(name)}
                for name, (A, B) in self.adapter.updates.items()
            ],
            "trained_whole": {name: list(tensor.shape) for name, tensor in self.adapter.trained.items()},
            "lora_parameters": self._count(),
        }

    def __str__(self) -> str:
        config = self.adapter.config
        lines = [
            f"adapter: {self.path}",
            f"base model: {self.adapter.base_model}",
            f"r={config.r}, alpha={config.alpha:g}, s={config.factor:g} ({config.scaling}), dropout={config.dropout:g}",
        ]
        if self.card is not None:
            lines.append(f"trained by {self.card.method} for the labels: {', '.join(self.card.labels)}")
        width = max([len(name) for name in self.adapter.updates] + [len("module")])
        lines.append(f"{'module':<{width}}  {'r':>4} {'in':>7} {'out':>7}  |s B A| (Frobenius)")
        lines += [
            f"{name:<{width}}  {len(A):>4} {A.shape[1]:>7} {len(B):>7}  {self._norm(name):.4f}"
            for name, (A, B) in self.adapter.updates.items()
        ]
        lines += [f"trained whole: {name} {tuple(tensor.shape)}" for name, tensor in self.adapter.trained.items()]
        lines.append(f"{len(self.adapter.updates)} layers, {self._count():,} low-rank parameters")
        return "\n".join(lines)

    def _norm(self, name: str) -> float:
        A, B = self.adapter.updates[name]
        return float(delta_weight(A.float(), B.float(), self.adapter.config.factor).norm())

    def _count(self) -> int:
        return sum(A.numel() + B.numel() for A, B in self.adapter.updates.values())


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


def describe_adapter(path: Path) -> AdapterDescription:
    """Return what is in an adapter folder, or in the run folder that holds one.

    Raises:
        AdapterFormatError: the folder is not an adapter, or is broken.
    """
    folder = find_trained(path)
    card = read_card(folder) if (folder / CARD_FILE).is_file() else None
    adapter = read_adapter(folder)
    tensors = {f"{name}.{part}": t for name, pair in adapter.updates.items() for part, t in pair._asdict().items()}
    broken = [name for name, t in {**tensors, **adapter.trained}.items() if not bool(torch.isfinite(t).all())]
    if broken:
        headline = f"{folder} holds NaN or infinity and cannot be used; train it again, or take another copy. In:"
        raise AdapterFormatError(gathered(headline, broken))
    return AdapterDescription(path=folder, adapter=adapter, card=card)


def describe_plan(
    model: str, *, method: str, targets: tuple[str, ...] | None, r: int, alpha: float, notify: Notify | None = None
) -> PlanDescription:
    """Return what `method`, or a choice of `targets`, would adapt in a model with two classes.

    Only the model's configuration is read; its weights stay on the meta device.

    Raises:
        UnknownNameError, DataError, DownloadError: there is no such model or method, or it cannot be had.
        ConfigError, TargetError: the settings do not fit the model.
    """
    chosen = find_method(method)
    if chosen.targets is None:
        raise ConfigError(f"the method {method!r} trains every weight: there is nothing to plan")
    source = find_model(model, notify)
    try:
        config = AutoConfig.from_pretrained(source.location, trust_remote_code=False, num_labels=2)
        with torch.device("meta"):
            network = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # for a broken folder transformers raises many kinds, none of them ours
        raise loading_error(source, error) from None
    settings = LoraConfig(r=r, alpha=alpha)
    wanted = targets if targets is not None else chosen.targets(config.model_type)
    return PlanDescription(model=model, plan=plan(network, replace(settings, targets=wanted), existing_head(network)))

"""What would be adapted, as a value that prints as a table."""

from dataclasses import dataclass

from veneer.lora.config import LoraConfig
from veneer.lora.state import KindName


@dataclass(frozen=True, kw_only=True)
class Target:
    """One weight that is to be adapted."""

    name: str
    """Full name of the layer, or of the parameter where a module computes with it itself."""
    kind: KindName
    in_features: int
    out_features: int
    r: int
    """Rank; of each adapted slice in a fused projection."""
    scaling: float
    parameters: int
    """Size of what is trained of the update; 0 where it is another layer's."""
    slices: tuple[bool, ...] | None = None
    """Which slices of a fused projection are adapted."""
    experts: int | None = None
    """Number of stacked matrices of the parameter."""
    tied_to: str | None = None
    """The layer whose weight this one shares, and so its update."""

    @property
    def rank(self) -> int:
        """Rows of A: r for each adapted slice."""
        return self.r * (sum(self.slices) if self.slices else 1)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `adapt` would do to a model; prints as a table."""

    config: LoraConfig
    """The settings, with the targets written out as a list: "all-linear" is resolved to names."""
    targets: tuple[Target, ...]
    left_out: tuple[tuple[str, str], ...]
    """(name, reason) of what the targets select and the plan does not adapt."""
    trained_modules: tuple[str, ...]
    """Full names of the modules that are trained whole."""
    trained_biases: tuple[str, ...]
    """Full names of the biases that are trained besides."""
    trained_parameters: int
    """Parameters of `trained_modules`, of `trained_biases` and of token rows."""
    base_parameters: int
    """Parameters of the model as it is."""

    @property
    def lora_parameters(self) -> int:
        """Parameters of all updates together."""
        return sum(target.parameters for target in self.targets)

    @property
    def trainable_parameters(self) -> int:
        """Parameters that training will change."""
        return self.lora_parameters + self.trained_parameters

    @property
    def total_parameters(self) -> int:
        """Parameters of the base and those of the updates that are trained; token rows stand for rows of the base's."""
        return self.base_parameters + self.lora_parameters

    def __str__(self) -> str:
        width = max([len(target.name) for target in self.targets] + [len("module")])
        lines = [f"{'module':<{width}}  {'r':>5} {'scaling':>8} {'in':>7} {'out':>7} {'parameters':>12}"]
        for t in self.targets:
            tie = f"  (the update of {t.tied_to})" if t.tied_to else ""
            rank = f"{sum(t.slices)} x {t.r}" if t.slices else str(t.r)
            sizes = f"{t.in_features:>7} {t.out_features:>7} {t.parameters:>12,}"
            lines.append(f"{t.name:<{width}}  {rank:>5} {t.scaling:>8.4g} {sizes}{tie}")
        lines += [f"left out: {name} ({reason})" for name, reason in self.left_out]
        lines += [f"trained whole: {name}" for name in (*self.trained_modules, *self.trained_biases)]
        lines += [f"trained rows: {len(ids)} of {name}" for name, ids in self.config.token_rows.items()]
        share = self.trainable_parameters / max(self.total_parameters, 1)
        layers = "1 layer" if len(self.targets) == 1 else f"{len(self.targets)} layers"
        lines.append(
            f"{layers}{self._settings()}: "
            f"{self.lora_parameters:,} low-rank + {self.trained_parameters:,} other = "
            f"{self.trainable_parameters:,} of {self.total_parameters:,} parameters trainable ({share:.3%})"
        )
        return "\n".join(lines)

    def _settings(self) -> str:
        """Return what the updates have in common, and their ranges of rank and scaling."""
        if not self.targets:
            return ""
        values = (
            ("r=", {target.r for target in self.targets}),
            (", scaling ", {target.scaling for target in self.targets}),
        )
        text = " at " + "".join(
            f"{label}{min(known):.4g}" + (f" to {max(known):.4g}" if len(known) > 1 else "") for label, known in values
        )
        if self.config.variant != "lora":
            text += f", {self.config.variant}"
        if self.config.init != "kaiming":
            text += f", init {self.config.init}"
        return text if self.config.train_A else text + ", A frozen"

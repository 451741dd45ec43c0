"""The time of one forward pass of GPT-2 medium, plain and with each kind of adapter: the numbers behind `latency.py`.

Weights are random: time does not depend on them. The pass is that of the backbone, without the output layer over the
vocabulary. Methods take turns within each trial, in an order that changes, so that whatever else the machine does meets
all of them alike.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from veneer.methods.settings import MethodSettings
from veneer.paper.architectures import gpt2_shape
from veneer.paper.exhibit import Measurement
from veneer.training.compare import Watcher
from veneer.training.config import resolve_precision
from veneer.training.grid import Grid
from veneer.training.machine import describe_machine, describe_versions

TRIALS, FEWEST_TRIALS, QUICK_TRIALS = 100, 6, 2
SECONDS = 300.0
"""A setting is given no further trial after this time, once it has the fewest: a pass may take minutes on a CPU."""
PLAIN = "plain"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One column of Table 1, or one square of Figure 5."""

    batch: int
    tokens: int
    adapters: str = ""
    """Trainable parameters of the adapters, as Table 1 prints them."""
    lin: int
    """Width of Adapter^L's bottlenecks."""
    houlsby: int
    """Width of Adapter^H's."""


SETTINGS = (
    Setting(batch=1, tokens=128, adapters="11M", lin=224, houlsby=112),
    Setting(batch=16, tokens=256, adapters="11M", lin=224, houlsby=112),
    Setting(batch=32, tokens=512, adapters="0.5M", lin=9, houlsby=5),
)
"""The paper's three, the cheapest first; the widths are those that give the printed parameters."""
SWEEP = tuple(
    Setting(batch=batch, tokens=tokens, lin=r, houlsby=r)
    for r in (16, 128)
    for batch in (1, 4)
    for tokens in (16, 64, 256)
)
"""Figure 5, coarsely: the paper's own axes are in its picture only."""
SWEEP_TRIALS = 9
QUICK_SETTINGS = tuple(Setting(batch=batch, tokens=16, adapters="tiny", lin=4, houlsby=2) for batch in (1, 2))
SHAPE, QUICK_SHAPE = (1024, 24, 16), (64, 2, 2)
"""Width, blocks and heads: GPT-2 medium's, and a toy's."""


def measure(watcher: Watcher, grid: Grid, quick: bool) -> Measurement:
    """Return the times of every trial, in milliseconds, by setting and method; no record is needed."""
    at_hand: dict[tuple[int, int], dict[str, nn.Module]] = {}
    """The models of one width, made once: drawing their weights takes longer than most passes."""

    def times(setting: Setting, trials: int) -> dict[str, Any]:
        watcher.notify(f"latency: batch {setting.batch}, {setting.tokens} tokens, at most {trials} trials")
        widths = (setting.lin, setting.houlsby)
        if widths not in at_hand:
            at_hand.clear()
            at_hand[widths] = {name: model_with(setting, part, quick=quick) for name, part in methods(setting).items()}
        return {**asdict(setting), "ms": interleaved(at_hand[widths], setting, trials)}

    settings, sweep, trials = (QUICK_SETTINGS, (), QUICK_TRIALS) if quick else (SETTINGS, SWEEP, TRIALS)
    return {
        "quick": quick,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "threads": torch.get_num_threads(),
        "precision": resolve_precision("auto"),
        "settings": [times(setting, trials) for setting in settings],
        "sweep": [times(setting, SWEEP_TRIALS) for setting in sweep],
    }


def methods(setting: Setting) -> Mapping[str, MethodSettings | None]:
    """Return what is timed; merged LoRA is the plain model."""
    return {
        PLAIN: None,
        "lora": MethodSettings(method="lora-qv", r=4),
        "lin": MethodSettings(method="lin", sizes=(("r", setting.lin),)),
        "houlsby": MethodSettings(method="houlsby", sizes=(("r", setting.houlsby),)),
    }


def model_with(setting: Setting, method: MethodSettings | None, *, quick: bool) -> nn.Module:
    """Return the model with the method attached, its backbone in `base_model`, in eval mode."""
    torch.manual_seed(0)
    config = gpt2_shape(*(QUICK_SHAPE if quick else SHAPE))
    model: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    if method is not None:
        method.attach(model, model_type="gpt2", head=("score",))
    backbone: nn.Module = model.base_model
    dtype = torch.bfloat16 if resolve_precision("auto") == "bfloat16" else torch.float32
    return backbone.eval().to("cuda" if torch.cuda.is_available() else "cpu", dtype)


def interleaved(models: Mapping[str, nn.Module], setting: Setting, trials: int) -> dict[str, list[float]]:
    """Return the times of each model, in milliseconds: one of each per trial, in an order drawn anew.

    There are `trials` of them, or fewer where they take long.
    """
    device = next(next(iter(models.values())).parameters()).device
    vocabulary = 50_000
    ids = torch.randint(vocabulary, (setting.batch, setting.tokens), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device)
    order, drawn = list(models), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for model in models.values():  # the first pass of each is not counted
            model(ids, use_cache=False)
        started = time.monotonic()
        for trial in range(trials):
            if trial >= FEWEST_TRIALS and time.monotonic() - started > SECONDS:
                break
            drawn.shuffle(order)
            for name in order:
                times[name].append(_milliseconds(lambda model=models[name]: model(ids, use_cache=False), device))  # type: ignore[misc]
    return times


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return round(1000 * (time.perf_counter() - started), 4)


def _wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()

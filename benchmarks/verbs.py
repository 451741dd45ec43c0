"""What is done to a model once: import, inject, load, merge; and DoRA's forward pass."""

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import veneer
from benchmarks.harness import Bar, Comparison, Options, UnequalWorkError, compare, device, interleave, seconds
from benchmarks.models import PROJECTIONS, SPECIAL_TOKENS, large_encoder, many_layers

RANK, ALPHA = 8, 16
CONFIG = veneer.LoraConfig(r=RANK, alpha=ALPHA)
OURS, PEFT = "veneer", "PEFT"
PEFT_SAFE = "PEFT, safe_merge=True"
"""Refuses weights that are not finite, as ours always does."""
ROUNDS = 7
LOADS, LAST = 100, 10
"""Adapters loaded one after the other, and how many at either end are compared."""
FLAT = 1.2
"""What the last loads may take of the first ones' time and still count as equal."""
DORA_WIDTH, DORA_TOKENS, DORA_CALLS = 1024, 4, 50
START = 0.02
"""Standard deviation of A and B where they must not be the start: there B is zero, and nothing would be merged."""


def imports(options: Options) -> list[Comparison]:
    """Compare a fresh process that imports veneer with one that imports torch alone, and with PEFT's."""

    def measure(name: str) -> float:
        wanted = "from veneer import *" if name == "veneer" else f"import {name}"  # else ours would import nothing yet
        command = [sys.executable, "-c", wanted]
        return seconds(lambda: subprocess.run(command, check=True, capture_output=True))

    names = {f"import {name}": name for name in ("veneer", "torch", "peft")}
    measures = {title: (lambda name=name: measure(name)) for title, name in names.items()}
    times = interleave(measures, rounds=options.rounds or 2 * ROUNDS)
    title, bar = "import in a fresh process", Bar(of="difference", at_most=0.15)
    return [
        compare(title, times, "import veneer", "import torch", bar),
        compare(title, times, "import veneer", "import peft"),
    ]


def inject(options: Options) -> list[Comparison]:
    """Compare adapting every linear layer of a large BERT on the meta device.

    Raises:
        UnequalWorkError: not equally many parameters become trainable.
    """
    verbs = {
        OURS: lambda model: veneer.adapt(model, CONFIG),
        PEFT: lambda model: get_peft_model(model, _peft_config(), low_cpu_mem_usage=True),
    }
    times = _time_verbs(lambda: large_encoder(options.layers, on=torch.device("meta")), verbs, options)
    title = f"inject all-linear, BERT {options.layers} x 1024 on meta"
    return [compare(title, times, OURS, PEFT, Bar(of="ratio", at_most=0.1))]


def inject_many(options: Options) -> list[Comparison]:
    """Compare planning and adapting 2,688 small linear layers.

    Raises:
        UnequalWorkError: not equally many parameters become trainable.
    """
    plan, adapt = "veneer.plan", "veneer.adapt"
    config, names = replace(CONFIG, targets=PROJECTIONS), list(PROJECTIONS)
    verbs = {
        adapt: lambda model: veneer.adapt(model, config),
        PEFT: lambda model: get_peft_model(model, _peft_config(names)),
    }
    times = _time_verbs(lambda: many_layers(options.layers), verbs, options)
    model = many_layers(options.layers)
    times |= interleave({plan: lambda: seconds(lambda: veneer.plan(model, config))}, rounds=len(times[PEFT]))
    num_layers = sum(isinstance(module, nn.Linear) for module in model.modules())
    title, bar = f"inject into {num_layers:,} linear layers", Bar(of="value", at_most=0.5)
    return [compare(title, times, ours, PEFT, bar) for ours in (plan, adapt)]


def dora(options: Options) -> list[Comparison]:
    """Compare DoRA's forward pass with plain LoRA's and with PEFT's DoRA, without gradients."""
    x = torch.randn(DORA_TOKENS, DORA_WIDTH, device=device())

    def layer() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(DORA_WIDTH, DORA_WIDTH)).to(device())

    models = {"veneer, DoRA": layer(), "veneer, LoRA": layer(), "PEFT, LoRA": layer(), "PEFT, DoRA": layer()}
    veneer.adapt(models["veneer, DoRA"], replace(CONFIG, targets=["0"], variant="dora"))
    veneer.adapt(models["veneer, LoRA"], replace(CONFIG, targets=["0"]))
    get_peft_model(models["PEFT, LoRA"], _peft_config(["0"]))
    get_peft_model(models["PEFT, DoRA"], _peft_config(["0"], use_dora=True))
    measures = {
        name: (lambda model=model: seconds(lambda: model(x), calls=DORA_CALLS)) for name, model in models.items()
    }
    with torch.no_grad():
        times = interleave(measures, rounds=options.rounds or 2 * ROUNDS)
    title = f"forward, {DORA_WIDTH} x {DORA_WIDTH} on {DORA_TOKENS} tokens"
    return [
        compare(title, times, "veneer, DoRA", "veneer, LoRA", Bar(of="ratio", at_most=3.0)),
        compare(title, times, "veneer, DoRA", "PEFT, DoRA"),
        compare(title, times, "veneer, LoRA", "PEFT, LoRA"),
    ]


def load(options: Options) -> list[Comparison]:
    """Compare loading an adapter onto a plain model, and going from one adapter to the next a hundred times.

    Ours holds one adapter and replaces it: `remove`, then `load`, both timed. PEFT keeps the earlier ones beside it.

    Raises:
        UnequalWorkError: the loaded models do not compute the same.
    """
    bare, base = large_encoder(options.layers), large_encoder(options.layers)
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = _write_adapter(bare, Path(folder))
        first = {OURS: lambda: _first_load(bare, folder), PEFT: lambda: _first_peft_load(base, folder)}
        times = interleave(first, rounds=options.rounds or ROUNDS)
        veneer.load(bare, folder)
        model = PeftModel.from_pretrained(base, folder)
        later = {OURS: lambda: _next_load(bare, folder), PEFT: lambda: _next_peft_load(model, folder)}
        _require_equal_outputs(bare, model)
        loads = LOADS if options.rounds is None else min(LOADS, 2 * options.rounds + 2)
        later_times = interleave(later, rounds=loads - 1, warm_up=0)
    count = min(LAST, (loads - 1) // 2)
    last = {f"{name}, last {count}": times[-count:] for name, times in later_times.items()}
    last |= {f"{name}, first {count}": times[:count] for name, times in later_times.items()}
    title, tenth = f"load a {num_bytes / 1e6:.0f} MB adapter", Bar(of="ratio", at_most=0.1)
    flat = Bar(of="ratio", at_most=FLAT)
    return [
        compare(f"{title}, the 1st", times, OURS, PEFT, tenth),
        compare(f"{title}, {loads} in a row", last, f"{OURS}, last {count}", f"{PEFT}, last {count}", tenth),
        compare(f"{title}, {loads} in a row", last, f"{OURS}, last {count}", f"{OURS}, first {count}", flat),
        compare(f"{title}, {loads} in a row", last, f"{PEFT}, last {count}", f"{PEFT}, first {count}"),
    ]


def merge(options: Options) -> list[Comparison]:
    """Compare merging the adapter of a large BERT: the time, and how many weights are not the rounded float32 sum."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        bare, base = large_encoder(options.layers, dtype=dtype), large_encoder(options.layers, dtype=dtype)
        measures = {
            OURS: lambda bare=bare: _merge(bare),
            PEFT: lambda base=base: _peft_merge(base, safe=False),
            PEFT_SAFE: lambda base=base: _peft_merge(base, safe=True),
        }
        times = interleave(measures, rounds=options.rounds or ROUNDS)
        title = f"merge, BERT {options.layers} x 1024, {_name(dtype)} base"
        found.append(compare(title, times, OURS, PEFT, Bar(of="ratio", at_most=1.0)))
        found.append(compare(title, times, OURS, PEFT_SAFE))
    return [*found, _merge_exactness(options)]


def _peft_config(targets: str | list[str] = "all-linear", *, use_dora: bool = False) -> PeftConfig:
    """Return PEFT's settings, new each time: injecting writes the found names into them."""
    return PeftConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, use_dora=use_dora)


def _time_verbs(
    build: Callable[[], nn.Module], verbs: Mapping[str, Callable[[nn.Module], object]], options: Options
) -> dict[str, list[float]]:
    """Return the times of each verb, every time on a new model, and check that all leave equally much to train."""
    counts: dict[str, int] = {}

    def measure(name: str) -> float:
        model = build()
        taken = seconds(lambda: verbs[name](model))
        counts[name] = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return taken

    measures = {name: (lambda name=name: measure(name)) for name in verbs}
    times = interleave(measures, rounds=options.rounds or ROUNDS)
    if len(set(counts.values())) != 1:
        raise UnequalWorkError(f"the contenders leave different numbers of parameters to train: {counts}")
    return times


def _first_load(model: nn.Module, folder: str) -> float:
    taken = seconds(lambda: veneer.load(model, folder))
    veneer.remove(model)
    return taken


def _first_peft_load(model: nn.Module, folder: str) -> float:
    loaded: list[PeftModel] = []
    taken = seconds(lambda: loaded.append(PeftModel.from_pretrained(model, folder)))
    loaded[0].unload()
    return taken


def _next_load(model: nn.Module, folder: str) -> float:
    def remove_and_load() -> None:
        veneer.remove(model)
        veneer.load(model, folder)

    return seconds(remove_and_load)


def _next_peft_load(model: PeftModel, folder: str) -> float:
    name = f"adapter_{len(model.peft_config)}"
    return seconds(lambda: model.load_adapter(folder, adapter_name=name))


def _require_equal_outputs(ours: nn.Module, theirs: nn.Module) -> None:
    ids = torch.arange(SPECIAL_TOKENS, SPECIAL_TOKENS + 14, device=device()).view(2, 7)
    with torch.no_grad():
        our_output, their_output = (model(input_ids=ids).last_hidden_state for model in (ours, theirs))
    if not torch.allclose(our_output, their_output, atol=1e-4):
        distance = float((our_output - their_output).abs().max())
        raise UnequalWorkError(f"with the same adapter loaded, the outputs differ by up to {distance:.2g}")


def _merge(model: nn.Module) -> float:
    """Return the time of merging a new adapter; the model is plain again afterwards."""
    veneer.adapt(model, CONFIG)
    _randomise(model)
    return seconds(lambda: veneer.merge(model))


def _peft_merge(model: nn.Module, *, safe: bool) -> float:
    adapted = get_peft_model(model, _peft_config())
    _randomise(adapted)
    return seconds(lambda: adapted.merge_and_unload(safe_merge=safe))


def _merge_exactness(options: Options) -> Comparison:
    """Count the merged bfloat16 weights that differ from W0 + (alpha / r) B A, summed in float32 and rounded once."""
    dtype, wrong = torch.bfloat16, {}
    bare = large_encoder(options.layers, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        _write_adapter(bare, Path(folder))
        adapted = PeftModel.from_pretrained(large_encoder(options.layers, dtype=dtype), folder)
        veneer.load(bare, folder)
    updates = veneer.state(bare).updates
    plain = large_encoder(options.layers, dtype=dtype).state_dict()
    expected: dict[str, Tensor] = {}
    for name, update in updates.items():
        A, B, weight = update.A.to(device()), update.B.to(device()), plain[f"{name}.weight"]
        expected[name] = (weight.float() + (ALPHA / RANK) * (B @ A)).to(dtype)
    veneer.merge(bare)
    for name, model in {OURS: bare, PEFT: adapted.merge_and_unload()}.items():
        weights = {layer: model.get_submodule(layer).weight for layer in expected}
        wrong[name] = [float(sum((weights[layer] != expected[layer]).sum().item() for layer in expected))]
    total = sum(math.prod(weight.shape) for weight in expected.values())
    title = f"merge, {_name(dtype)} base: weights of {total:,} that are not the rounded float32 sum"
    return compare(title, wrong, OURS, PEFT, Bar(of="value", at_most=0), unit="elements")


def _write_adapter(model: nn.Module, folder: Path) -> int:
    """Write an adapter whose B is not zero, leave `model` as it was, and return the bytes of the tensors' file."""
    veneer.adapt(model, CONFIG)
    _randomise(model)
    veneer.save(model, folder)
    veneer.remove(model)
    return (folder / "adapter_model.safetensors").stat().st_size


def _randomise(model: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=START)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

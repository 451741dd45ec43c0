"""Writes docs/compatibility.md from the tests and the tables of the formats; tests/test_docs.py says it is current."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.lora.test_kinds import LAYERS, VARIANTS, unsupported  # noqa: E402

from veneer.formats.convert import FORMATS, WRITERS  # noqa: E402
from veneer.formats.peft_settings import INERT, NEUTRAL, TAKEN  # noqa: E402

PAGE = ROOT / "docs" / "compatibility.md"
FAULTS = ROOT / "tests" / "oracles" / "test_peers_faults.py"


def faults() -> Iterator[tuple[str, str]]:
    """Yield (fault, its thread) of each test that a fault of another library does not occur here."""
    for node in ast.parse(FAULTS.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name.removeprefix("test_").replace("_", " "), " ".join((ast.get_docstring(node) or "").split())


def page() -> str:
    """Return the text of docs/compatibility.md."""
    lines = [
        "# What is supported, refused, or different",
        "",
        "Written by `scripts/update_docs.py`: the tables of layers, files and faults from the tests and from the",
        "tables that the file formats work by.",
        "",
        "## Layer kinds and variants",
        "",
        "Each `yes` is a law in `tests/lora/test_kinds.py`, in float64, float32 and bfloat16, with and without bias:",
        "the start is the base's output, forward equals merged, removal restores every bit, copies are whole.",
        "",
        f"| | {' | '.join(VARIANTS)} |",
        f"|---|{'---|' * len(VARIANTS)}",
    ]
    for kind in LAYERS:
        cells = ["refused" if unsupported(kind, variant) else "yes" for variant in VARIANTS]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines += [
        "",
        '`init="eva"` starts from the inputs of a few batches, `adapt(model, config, batches=...)`; embeddings and',
        "convolutions have no such inputs and are refused (`tests/lora/test_init.py`).",
        "",
        "Quantised and foreign linear layers (anything with `in_features` and `out_features` that can be called) take",
        "LoRA, rsLoRA and LoRA-FA; they are merged on request only (`tests/lora/test_quantized.py`).",
        "",
        "## Adapter files",
        "",
        f"Read: {', '.join(FORMATS)}. Written: {', '.join(WRITERS)}. Every key and tensor is understood or the file is",
        "refused, with all problems named (`tests/formats/`).",
        "",
        "The keys of PEFT's `adapter_config.json`:",
        "",
        "| | keys |",
        "|---|---|",
        f"| read and written | {', '.join(f'`{key}`' for key in sorted(TAKEN))} |",
        f"| no effect on a trained adapter, any value | {', '.join(f'`{key}`' for key in sorted(INERT))} |",
        f"| refused unless switched off | {', '.join(f'`{key}`' for key in sorted(NEUTRAL))} |",
        "",
        "## Names, for those who come from PEFT",
        "",
        "| PEFT | Veneer |",
        "|---|---|",
        *(f"| {theirs} | {ours} |" for theirs, ours in NAMES),
        "",
        "## Faults of PEFT and loralib that do not occur here",
        "",
        "Each row is a test of `tests/oracles/test_peers_faults.py` that passes: the fault as users met it and where",
        "it is reported.",
        "",
        "| fault | reported |",
        "|---|---|",
    ]
    lines += [f"| {fault} | {thread} |" for fault, thread in faults()]
    lines += [
        "",
        "## Where Veneer differs from PEFT on purpose",
        "",
        "| | PEFT | Veneer |",
        "|---|---|---|",
        *(f"| {what} | {theirs} | {ours} |" for what, theirs, ours in DIFFERENCES),
        "",
    ]
    return "\n".join(lines)


DIFFERENCES = (
    ("dropout with DoRA", "also drops x of the base product", "acts before A alone, as in LoRA"),
    ("several adapters in one layer", "named adapters, switched", "one; sums are algebra on adapter values"),
    ("convolutions with groups", "A sees all channels; cannot be merged", "B A is the kernel's matrix; merges"),
    ("PiSSA and OLoRA", "write the base's weights", "subtract the start; saved as a plain LoRA of rank 2 r"),
    ("rank above a layer's smaller side", "accepted", "refused by `adapt`, accepted by `load`"),
    ("`layers`", "last number in the name", "first number in the name, so experts are not taken for layers"),
    ("a name in `modules_to_save`", "any module whose name ends in it", "matched at a `.` boundary"),
    ("output projection of `nn.MultiheadAttention`", "0.21.2 adds its update twice (peft#3774)", "once"),
    ("LoRA+ rates for vectors", "the rate of B", "the base rate"),
    (
        "convolutions with `dilation` or a `padding_mode`",
        "A pads and dilates in its own way: another function, so adapters of such layers do not interchange",
        "B A is the kernel's matrix; merges",
    ),
    (
        "layers that share a weight",
        "an update each, or of one alone; a merge unties or changes both",
        "one update for both, or refused with how to untie",
    ),
    (
        "`state_dict()` of a model in training",
        "keys begin with `base_model.model.`",
        "keys of an adapted layer hold `.base.` and `.update.`: for the same adapted model; `save` is for all else",
    ),
)
NAMES = (
    ("`r`, `bias`, `rank_pattern`, `alpha_pattern`", "the same"),
    ("`lora_alpha`", "`alpha`"),
    ("`lora_dropout`", "`dropout`"),
    ("`target_modules`", "`targets`"),
    ("`exclude_modules`", "`exclude`"),
    ("`layers_to_transform`", "`layers`"),
    ("`target_parameters`", "`parameters`"),
    ("`trainable_token_indices`", "`token_rows`"),
    ("`use_dora=True`", '`variant="dora"`'),
    ("`use_rslora=True`", '`scaling="rslora"`'),
    ("`init_lora_weights`", "`init`"),
    ("loralib's `enable_lora`", "`fused`"),
    ("`modules_to_save`", "`adapt(model, config, train_also=[...])`"),
    ("`get_peft_model(model, config)`", "`adapt(model, config)`, in place"),
    ("`model.save_pretrained(path)`", "`save(model, path)`"),
    ("`PeftModel.from_pretrained(model, path)`", "`load(model, path)`, in place"),
    ("`model.merge_and_unload()`", "`merge(model)`"),
    ("`model.unload()`", "`remove(model)`"),
    ("`with model.disable_adapter()`", "`with disabled(model)`"),
    ("`model.add_weighted_adapter(...)`", "`algebra.combined(states, weights)`"),
    ("`hotswap_adapter(...)`", "`swap(model, state)`"),
    ("`create_loraplus_optimizer(...)`", "`optimizer_groups(model, lr=...)`"),
)
"""PEFT's names and Veneer's."""

if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())

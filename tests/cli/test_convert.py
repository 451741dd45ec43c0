"""Converting: whatever the format, the change of each weight is what its library computes; refusals leave nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import veneer as library
from tests.cli.test_bad_input import assert_refused
from tests.cli.tiny import contents, veneer, worked
from veneer.errors import AdapterFormatError
from veneer.formats import convert as formats
from veneer.formats.adapter import read_adapter
from veneer.formats.peft import read_peft

ALPHA, R, OUT, IN = 5, 3, 5, 7
NAME = "block.query"
FLAT = "lora_unet_block_query"


def matrices(seed=0, r=R, rows=OUT):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(r, IN, generator=generator), torch.randn(rows, r, generator=generator)


A, B = matrices()
CHANGE = ALPHA / R * (B.double() @ A.double())


def loralib_file(folder):
    torch.save({f"{NAME}.lora_A": A, f"{NAME}.lora_B": B}, folder / "given.pt")
    return folder / "given.pt"


def weights_file(folder, name=NAME):
    """What names the modules of a model that is not there: the file of its weights."""
    save_file({f"{name}.weight": torch.zeros(OUT, IN)}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def kohya_file(folder, prefix="lora_unet", **more):
    flat = f"{prefix}_block_query"
    tensors = {f"{flat}.lora_down.weight": A, f"{flat}.lora_up.weight": B, f"{flat}.alpha": torch.tensor(float(ALPHA))}
    save_file({**tensors, **more}, folder / "given.safetensors")
    return folder / "given.safetensors"


def diffusers_file(folder, **more):
    start = f"unet.{NAME}"
    tensors = {f"{start}.lora_A.weight": A, f"{start}.lora_B.weight": B, f"{start}.alpha": torch.tensor(float(ALPHA))}
    save_file({**tensors, **more}, folder / "given.safetensors")
    return folder / "given.safetensors"


def adapterhub_folder(folder):
    lora = {"architecture": "lora", "r": R, "alpha": ALPHA, "attn_matrices": ["q"], "composition_mode": "add"}
    (folder / "given").mkdir()
    (folder / "given" / "adapter_config.json").write_text(json.dumps({"config": {**lora, "use_gating": False}}))
    start = f"{NAME}.loras.task"
    save_file({f"{start}.lora_A": A, f"{start}.lora_B": B}, folder / "given" / "adapter.safetensors")
    return folder / "given"


def peft_folder(folder, *, pickled=False, name="given", factors=(A, B), **more):
    path = folder / name
    path.mkdir()
    settings = {"peft_type": "LORA", "r": len(factors[0]), "lora_alpha": ALPHA, "target_modules": ["query"], **more}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    start = f"base_model.model.{NAME}"
    tensors = {f"{start}.lora_A.weight": factors[0], f"{start}.lora_B.weight": factors[1]}
    if "modules_to_save" in more:
        tensors["base_model.model.classifier.weight"] = torch.full((2, OUT), float(len(name)))
    save = torch.save if pickled else save_file
    save(tensors, path / f"adapter_model.{'bin' if pickled else 'safetensors'}")
    return path


MADE = {  # name -> format, a function that makes it in a folder, the options it needs
    "loralib": ("loralib", loralib_file, lambda folder: ("--alpha", ALPHA)),
    "kohya": ("kohya", kohya_file, lambda folder: ("--model", weights_file(folder))),
    "diffusers": ("diffusers", diffusers_file, lambda folder: ()),
    "adapter-hub": ("adapter-hub", adapterhub_folder, lambda folder: ()),
    "peft": ("peft", peft_folder, lambda folder: ()),
    "pickled peft": ("peft", lambda folder: peft_folder(folder, pickled=True), lambda folder: ()),
}


def change(path):
    """The change of the one layer's weight that a PEFT folder holds."""
    state = read_peft(path)
    assert list(state.updates) == [NAME]
    return state.delta(NAME).double()


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", MADE)
def test_every_format_becomes_a_folder_with_the_same_change_of_the_weight(scratch, case):
    file_format, make, options = MADE[case]
    source = make(scratch)
    said = worked("convert", source, "new", *options(scratch)).out
    assert_close(change(Path("new")), CHANGE)
    assert f"({file_format}): 1 linear layer, rank 3, scaling 1.667" in said
    worked("convert", source, "again", *options(scratch), "--from", file_format)
    assert contents(Path("again")) == contents(Path("new"))


@pytest.mark.parametrize("case", MADE)
def test_loading_reads_folders_without_pickles_and_names_the_command_for_all_else(scratch, case):
    file_format, make, _ = MADE[case]
    source = make(scratch)
    if case in ("peft", "adapter-hub"):
        assert_close(read_adapter(source).delta(NAME).double(), CHANGE)
        return
    with pytest.raises(AdapterFormatError) as caught:
        library.load(torch.nn.ModuleDict({"block": torch.nn.ModuleDict({"query": torch.nn.Linear(IN, OUT)})}), source)
    assert f"veneer convert {source} OUTPUT" in str(caught.value)
    assert ("pickle" if case in ("loralib", "pickled peft") else file_format) in str(caught.value)


def test_a_kohya_file_finds_its_names_in_a_models_configuration(scratch, tiny):
    layer = "encoder_layer_0_attention_self_query"
    A16, B16 = torch.randn(R, 16), torch.randn(16, R)
    file = scratch / "given.safetensors"
    save_file({f"lora_te_{layer}.lora_down.weight": A16, f"lora_te_{layer}.lora_up.weight": B16}, file)
    bare = shutil.copytree(tiny, scratch / "bare")
    (bare / "model.safetensors").unlink()
    worked("convert", file, "new", "--model", bare)
    state = read_peft(Path("new"))
    assert_close(state.delta("encoder.layer.0.attention.self.query"), B16 @ A16)


def test_of_a_file_for_several_models_one_is_chosen_and_the_others_are_named(scratch):
    more = {f"text_encoder.x.lora_{part}.weight": torch.ones(1, 1) for part in "AB"}
    said = worked("convert", diffusers_file(scratch, **more), "new", "--component", "unet").out
    assert "left out text_encoder: " in said
    assert_close(change(Path("new")), CHANGE)
    more = {f"lora_te1_x.lora_{part}.weight": torch.ones(1, 1) for part in ("down", "up")}
    source = kohya_file(scratch, **more)
    said = worked("convert", source, "other", "--model", weights_file(scratch), "--component", "lora_unet").out
    assert "left out lora_te1: " in said
    assert_close(change(Path("other")), CHANGE)


def test_the_slices_of_a_fused_projection_are_those_said(scratch):
    tensors = {"c_attn.lora_A": torch.randn(2 * R, IN), "c_attn.lora_B": torch.randn(2 * OUT, R)}
    torch.save(tensors, "given.pt")
    worked("convert", "given.pt", "new", "--alpha", ALPHA, "--fused", "c_attn=101")
    first, second, third = read_peft(Path("new")).delta("c_attn").chunk(3)
    down, up = tensors["c_attn.lora_A"], tensors["c_attn.lora_B"]
    assert_close(first, ALPHA / R * up[:OUT] @ down[:R])
    assert not second.any()
    assert_close(third, ALPHA / R * up[OUT:] @ down[R:])


def test_an_embedding_is_one_where_it_is_named(scratch):
    worked("convert", loralib_file(scratch), "new", "--alpha", ALPHA, "--embedding", "query")
    assert read_peft(Path("new")).updates[NAME].kind == "embedding"


def test_scaling_multiplies_the_change(scratch):
    worked("convert", peft_folder(scratch), "new", "--scale", -0.25)
    assert_close(change(Path("new")), -0.25 * CHANGE)


def test_adding_is_the_weighted_sum_of_the_changes(scratch):
    second, third = matrices(1, r=2), matrices(2)
    paths = [peft_folder(scratch, name=n, factors=f) for n, f in (("second:x", second), ("third", third))]
    added = ("--add", paths[0], "--add", f"{paths[1]}:-0.5")
    worked("convert", peft_folder(scratch), "new", "--scale", 2, *added)
    expected = (
        2 * CHANGE + ALPHA / 2 * (second[1] @ second[0]).double() - ALPHA / R / 2 * (third[1] @ third[0]).double()
    )
    assert_close(change(Path("new")), expected)


def test_what_others_trained_whole_is_left_out_and_said_so(scratch):
    source, other = (peft_folder(scratch, name=name, modules_to_save=["classifier"]) for name in ("source", "another"))
    said = worked("convert", source, "new", "--add", other).out
    assert f"left out classifier.weight of {other}" in said
    assert torch.equal(read_peft(Path("new")).trained["classifier.weight"], torch.full((2, OUT), float(len("source"))))


@pytest.mark.parametrize("how", [("--shrink-rank", 2), ("--shrink-energy", 0.9)])
def test_shrinking_keeps_the_largest_singular_values_and_says_what_is_lost(scratch, how):
    values = torch.linalg.svdvals(CHANGE)
    shares = values.square().cumsum(0) / values.square().sum()
    rank = 2 if how[0] == "--shrink-rank" else 1 + int((shares < 0.9).sum())
    assert rank < R
    said = worked("convert", peft_folder(scratch), "new", *how).out
    lost = float(values[rank:].norm() / values.norm())
    assert f"rank 3 brought to {rank}: each layer's change is off by {lost:.4g} of its norm" in said
    assert float((change(Path("new")) - CHANGE).norm() / CHANGE.norm()) == pytest.approx(lost, rel=1e-4)


def test_for_vllm_nothing_is_left_to_scale_and_the_head_is_dropped_aloud(scratch):
    source = peft_folder(scratch, modules_to_save=["classifier"])
    said = worked("convert", source, "new", "--to", "vllm").out
    settings = json.loads(Path("new/adapter_config.json").read_text())
    assert settings["lora_alpha"] == settings["r"] == R
    assert_close(change(Path("new")), CHANGE)
    assert "dropped classifier.weight" in said
    assert "wrote new (vllm): 1 linear layer, rank 3, scaling 1\n" in said


def test_the_base_model_is_noted_also_on_a_sum(scratch):
    source = peft_folder(scratch, base_model_name_or_path="old/one")
    other = peft_folder(scratch, name="other", base_model_name_or_path="old/two")
    refused = veneer("convert", source, "new", "--add", other)
    assert refused.code == 2
    assert "the base models are 'old/one' and 'old/two'; name one for all (--base-model)" in refused.err
    worked("convert", source, "new", "--add", other, "--base-model", "some/model")
    assert read_peft(Path("new")).base_model == "some/model"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def evil_file(folder):
    torch.save({f"{NAME}.lora_A": Evil()}, folder / "evil.pt")
    return folder / "evil.pt"


def in_the_way(folder, *, file):
    (folder / "new").write_text("mine") if file else (folder / "new").mkdir()
    if not file:
        (folder / "new" / "mine").touch()
    return peft_folder(folder)


def several(folder):
    return diffusers_file(folder, **{f"text_encoder.x.lora_{part}.weight": torch.ones(1, 1) for part in "AB"})


def tensor_file(folder, names):
    save_file({name: torch.ones(1, 1) for name in names}, folder / "given.safetensors")
    return folder / "given.safetensors"


def text_file(folder):
    (folder / "given.txt").write_text("A")
    return folder / "given.txt"


REFUSED = {  # what is wrong -> a function from a folder to the arguments after the command, parts of the message
    "a source that is not there": (lambda f: (f / "no.safetensors", "new"), ["no.safetensors", "give the path"]),
    "an empty folder": (lambda f: ((f / "empty").mkdir() or f / "empty", "new"), ["holds no adapter_config.json"]),
    "a file of another kind": (lambda f: (text_file(f), "new"), ["'.txt'", ".safetensors"]),
    "names of no format": (lambda f: (tensor_file(f, ["x.weight"]), "new"), ["x.weight", "loralib", "kohya"]),
    "the file of a PEFT folder": (
        lambda f: (peft_folder(f) / "adapter_model.safetensors", "new"),
        ["PEFT", "give the folder"],
    ),
    "LoHa": (
        lambda f: (tensor_file(f, ["lora_unet_x.hada_w1_a"]), "new", "--model", weights_file(f)),
        ["LoHa", "only plain LoRA"],
    ),
    "a truncated file": (
        lambda f: ((p := kohya_file(f)).write_bytes(p.read_bytes()[:-10]) and p, "new"),
        ["truncated", "given.safetensors"],
    ),
    "a pickle with a program": (lambda f: (evil_file(f), "new", "--alpha", 1), ["mkdir", "not opened"]),
    "an output that is a file": (lambda f: (in_the_way(f, file=True), "new"), ["new is a file", "another path"]),
    "an output with something in it": (lambda f: (in_the_way(f, file=False), "new"), ["new is not empty"]),
    "an unknown format to read": (lambda f: (kohya_file(f), "new", "--from", "khoya"), ["'khoya'", "Did you mean"]),
    "an unknown format to write": (lambda f: (peft_folder(f), "new", "--to", "onnx"), ["'onnx'", "peft, vllm"]),
    "another format than it is": (
        lambda f: (diffusers_file(f), "new", "--from", "loralib", "--alpha", 1),
        ["none of loralib's"],
    ),
    "options that the file answers": (
        lambda f: (peft_folder(f), "new", "--alpha", 0, "--component", "unet", "--model", weights_file(f)),
        ["alpha is for loralib", "component is for kohya, diffusers", "model is for kohya"],
    ),
    "loralib without alpha": (lambda f: (loralib_file(f), "new"), ["alpha is not in the file"]),
    "loralib of another rank": (lambda f: (loralib_file(f), "new", "--alpha", 1, "--r", 4), ["rank 3", "r=4"]),
    "slices that are no digits": (
        lambda f: (loralib_file(f), "new", "--alpha", 1, "--fused", "query=102"),
        ["'query=102'", "c_attn=101"],
    ),
    "kohya without a model": (lambda f: (kohya_file(f), "new"), ["underscores", "--model"]),
    "kohya for another model": (
        lambda f: (kohya_file(f), "new", "--model", weights_file(f, name="block.value")),
        ["lora_unet_block_query", "no module"],
    ),
    "a model that is not there": (lambda f: (kohya_file(f), "new", "--model", "no.safetensors"), ["no.safetensors"]),
    "several models, none chosen": (lambda f: (several(f), "new"), ["text_encoder, unet", "--component"]),
    "a component that is not there": (
        lambda f: (diffusers_file(f), "new", "--component", "transformer"),
        ["no transformer", "unet"],
    ),
    "a sum with nothing": (lambda f: (peft_folder(f), "new", "--add", "nothing:0.5"), ["nothing"]),
    "a sum with a file": (
        lambda f: (peft_folder(f), "new", "--add", loralib_file(f)),
        ["pickle", "veneer convert"],
    ),
    "a sum of layers of other sizes": (
        lambda f: (peft_folder(f), "new", "--add", peft_folder(f, name="b", factors=matrices(rows=6))),
        [NAME, "layers differ"],
    ),
    "a scale that is no number": (lambda f: (peft_folder(f), "new", "--scale", "nan"), ["nan", "finite"]),
    "rank 0": (lambda f: (peft_folder(f), "new", "--shrink-rank", 0), ["rank is 0", "at least 1"]),
    "both ways to shrink": (
        lambda f: (peft_folder(f), "new", "--shrink-rank", 1, "--shrink-energy", 0.5),
        ["exactly one"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_gives_one_message_and_leaves_nothing_behind(scratch, name):
    make, parts = REFUSED[name]
    arguments = make(scratch)
    before = contents(scratch)
    assert_refused(veneer("convert", *arguments), parts)
    assert contents(scratch) == before


def test_a_failure_while_writing_leaves_nothing_behind(scratch, monkeypatch):
    def write(state, folder):
        (folder / "half").touch()
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(formats, "WRITERS", {"peft": write})
    source = peft_folder(scratch)
    before = contents(scratch)
    assert_refused(veneer("convert", source, "deep/new"), ["No space left"], code=1)
    assert contents(scratch) == before


def test_an_empty_folder_may_be_filled(scratch):
    Path("new").mkdir()
    worked("convert", peft_folder(scratch), "new")
    assert_close(change(Path("new")), CHANGE)

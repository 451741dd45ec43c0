"""loralib's files: each layer's change of the weight, as loralib computes it, is the state's; the rest is refused."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from veneer.errors import AdapterFormatError, ConfigError
from veneer.formats.loralib import read_loralib

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import loralib

SIZES = st.integers(1, 5)
TFT = (True, False, True)


class Model(nn.Module):
    """One of each layer that can be read."""

    def __init__(self):
        super().__init__()
        self.embed = loralib.Embedding(11, 7, r=3, lora_alpha=5)
        self.c_attn = loralib.MergedLinear(7, 15, r=3, lora_alpha=5, enable_lora=list(TFT), fan_in_fan_out=True)
        self.block = nn.ModuleDict({"query": loralib.Linear(7, 5, r=3, lora_alpha=5), "other": nn.Linear(7, 5)})
        self.norm = nn.LayerNorm(7)
        self.classifier = nn.Linear(7, 2)


def filled(module, seed=0):
    """Give every parameter values, B too, which starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def change_of(layer):
    """Return what the layer's own merging adds to its weight, as (out, in)."""
    merging = copy.deepcopy(layer).double()
    before = merging.weight.detach().clone()
    merging.train(False)
    change = merging.weight.detach() - before
    return change.T if isinstance(layer, loralib.Embedding) or layer.fan_in_fan_out else change


def checkpoint(path, module, bias="none", extra=None):
    torch.save({**loralib.lora_state_dict(module, bias), **(extra or {})}, path)
    return path


def read_model(path, **changes):
    arguments = {"alpha": 5, "fused": {"c_attn": TFT}, "embeddings": ["embed"]}
    return read_loralib(path, **{**arguments, **changes})


def assert_change(state, name, layer):
    assert torch.allclose(state.delta(name).double(), change_of(layer), rtol=1e-5, atol=1e-5)


@pytest.fixture
def model():
    return filled(Model())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("loralib") / "x.pt"


@settings(max_examples=25, deadline=None)
@given(r=SIZES, rows=SIZES, columns=SIZES, alpha=st.integers(1, 40), turned=st.booleans())
def test_a_linear_layer_changes_by_what_loralib_merges(path, r, rows, columns, alpha, turned):
    layer = filled(loralib.Linear(columns, rows, r=r, lora_alpha=alpha, fan_in_fan_out=turned))
    state = read_loralib(checkpoint(path, nn.ModuleDict({"a": layer})), alpha=alpha, r=r)
    assert_change(state, "a", layer)
    assert (state.config.r, state.config.alpha, state.config.targets) == (r, alpha, ("a",))


@settings(max_examples=25, deadline=None)
@given(r=SIZES, tokens=SIZES, width=SIZES, alpha=st.integers(1, 40))
def test_an_embedding_changes_by_what_loralib_merges(path, r, tokens, width, alpha):
    layer = filled(loralib.Embedding(tokens, width, r=r, lora_alpha=alpha))
    state = read_loralib(checkpoint(path, nn.ModuleDict({"a": layer})), alpha=alpha, embeddings=["a"])
    assert_change(state, "a", layer)
    assert state.updates["a"].kind == "embedding"


@settings(max_examples=40, deadline=None)
@given(
    r=SIZES,
    height=SIZES,
    columns=SIZES,
    alpha=st.integers(1, 40),
    slices=st.lists(st.booleans(), min_size=2, max_size=4).filter(any),
    turned=st.booleans(),
)
def test_a_fused_projection_changes_by_what_loralib_merges(path, r, height, columns, alpha, slices, turned):
    rows = height * len(slices)
    arguments = {"r": r, "lora_alpha": alpha, "enable_lora": slices, "fan_in_fan_out": turned}
    layer = filled(loralib.MergedLinear(columns, rows, **arguments))
    state = read_loralib(checkpoint(path, nn.ModuleDict({"a": layer})), alpha=alpha, r=r, fused={"a": slices})
    assert_change(state, "a", layer)
    assert state.factor("a") == alpha / r
    assert state.config.r == r
    assert state.config.fused == {"a": tuple(slices)}
    off = [not adapted for adapted in slices for _ in range(height)]
    assert not state.delta("a")[off].any()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_model_is_read_with_every_layer_in_its_place(model, tmp_path, wrapped):
    state_dict = loralib.lora_state_dict(model)
    torch.save({"model_state_dict": state_dict} if wrapped else state_dict, tmp_path / "x.pt")
    state = read_model(tmp_path / "x.pt", r=3)
    layers = {"block.query": model.block["query"], "c_attn": model.c_attn, "embed": model.embed}
    assert list(state.updates) == list(layers)
    for name, layer in layers.items():
        assert_change(state, name, layer)
    assert {name: update.kind for name, update in state.updates.items()} == {
        "block.query": "linear",
        "c_attn": "linear",
        "embed": "embedding",
    }
    assert state.config.rank_pattern == {}
    assert (state.config.bias, dict(state.trained), state.trained_modules) == ("none", {}, ())


def test_safetensors_and_wrapper_infixes_are_read_the_same(model, tmp_path):
    tensors = loralib.lora_state_dict(model)
    save_file(
        {f"_orig_mod.{name}": tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "x.safetensors"
    )
    state = read_model(tmp_path / "x.safetensors")
    assert_change(state, "c_attn", model.c_attn)


def test_layers_of_two_ranks_have_one_alpha_and_each_its_own_scaling(tmp_path):
    model = nn.ModuleDict({"a": loralib.Linear(7, 5, r=3, lora_alpha=5), "b": loralib.Linear(7, 5, r=2, lora_alpha=5)})
    state = read_loralib(checkpoint(tmp_path / "x.pt", filled(model)), alpha=5)
    for name, layer in model.items():
        assert_change(state, name, layer)
    assert state.config.alpha == 5
    assert state.config.alpha_pattern == {}


def test_lora_only_biases_are_trained_tensors(model, tmp_path):
    state = read_model(checkpoint(tmp_path / "x.pt", model, "lora_only"))
    assert state.config.bias == "lora_only"
    assert set(state.trained) == {"block.query.bias", "c_attn.bias"}
    assert torch.equal(state.trained["c_attn.bias"], model.c_attn.bias)
    assert state.trained_modules == ()


def test_all_biases_are_trained_tensors_and_a_head_is_a_module_trained_whole(model, tmp_path):
    head = {"classifier.weight": model.classifier.weight.detach()}
    state = read_model(checkpoint(tmp_path / "x.pt", model, "all", head))
    assert state.config.bias == "all"
    assert set(state.trained) == {name for name, _ in model.named_parameters() if "bias" in name} | set(head)
    assert state.trained_modules == ("classifier",)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_full_state_dict_is_refused_because_it_may_be_merged(model, tmp_path, mode):
    torch.save(model.train(mode == "train").state_dict(), tmp_path / "x.pt")
    assert_refused(tmp_path / "x.pt", ["embed.weight is there beside embed.lora_A", "eval()", "lora_state_dict"])


def assert_refused(path, parts, **changes):
    with pytest.raises(AdapterFormatError) as caught:
        read_model(path, **changes)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


A, B = "block.query.lora_A", "block.query.lora_B"
LIES = {
    "missing A": (lambda t: t.pop(A), ["block.query: A is missing"]),
    "missing B": (lambda t: t.pop(B), ["block.query: B is missing"]),
    "ranks differ": (lambda t: t.update({A: torch.ones(4, 7)}), ["block.query: A has 4 rows and B 3 columns"]),
    "integers": (lambda t: t.update({A: t[A].long()}), ["block.query: A has shape (3, 7) and torch.int64"]),
    "a vector": (lambda t: t.update({B: torch.ones(3)}), ["block.query: B has shape (3,)"]),
    "no rows": (lambda t: t.update({A: torch.ones(0, 7), B: torch.ones(5, 0)}), ["shape (0, 7)", "shape (5, 0)"]),
    "NaN": (lambda t: t[A].fill_(torch.nan), [f"{A} holds NaN"]),
    "PEFT's name": (lambda t: t.update({f"{A}.weight": t.pop(A)}), [f"{A}.weight is none of loralib's"]),
    "no module": (lambda t: t.update({"lora_A": torch.ones(3, 7)}), ["lora_A is none of loralib's"]),
    "loose tensor": (lambda t: t.update(scale=torch.ones(3)), ["scale belongs to no module"]),
    "mask as bias": (lambda t: t.update({"attn.bias": torch.ones(1, 1, 4, 4)}), ["attn.bias has shape (1, 1, 4, 4)"]),
    "name twice": (lambda t: t.update({f"_orig_mod.{A}": t[A]}), [f"{A} is there a second time"]),
    "unsaid slices": (
        lambda t: t.update({"w.lora_A": torch.ones(6, 7), "w.lora_B": torch.ones(8, 3)}),
        ["w: A has 6 rows and B 3 columns", "2 slices adapted", "fused={'c_attn': (True, False, True)}"],
    ),
    "wrong slices": (lambda t: t.update({"c_attn.lora_A": torch.ones(9, 7), "c_attn.lora_B": torch.ones(15, 3)}),
                     ["c_attn: A has 9 rows and B 3 columns: 3 slices are adapted, but fused gives 2"]),
    "uneven slices": (lambda t: t.update({"c_attn.lora_B": torch.ones(9, 3)}), ["c_attn: A has 6 rows"]),
    "nothing": (lambda t: [t.pop(k) for k in list(t) if "lora" in k], ["no lora_A and lora_B"]),
    "two at once": (lambda t: (t.pop(A), t[B].fill_(1), t.update({"c_attn.lora_A": torch.ones(4, 7)})),
                    ["block.query: A is missing", "c_attn: A has 4 rows"]),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_tensors_that_do_not_fit_are_refused_by_name(model, tmp_path, lie):
    change, parts = LIES[lie]
    tensors = {name: tensor.clone() for name, tensor in loralib.lora_state_dict(model).items()}
    tensors["classifier.weight"] = torch.ones(2, 7)
    change(tensors)
    torch.save(tensors, tmp_path / "x.pt")
    assert_refused(tmp_path / "x.pt", parts)


@pytest.mark.parametrize("bias", ["none", "all"])
def test_a_convolution_is_refused_where_its_name_shows(tmp_path, bias):
    model = nn.ModuleDict({"a": loralib.Conv2d(7, 5, 3, r=2, lora_alpha=5)})
    tensors = loralib.lora_state_dict(model, bias) if bias == "all" else model.state_dict()
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(AdapterFormatError, match="a is a convolution"):
        read_loralib(tmp_path / "x.pt", alpha=5)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"alpha": None}, ["alpha is not in the file: give alpha="]),
        ({"r": 4}, ["block.query has rank 3, but r=4 is given", "c_attn has rank 3"]),
        ({"fused": {}}, ["c_attn: A has 6 rows and B 3 columns: a fused projection"]),
        ({"fused": {"c_attn": TFT, "c_atn": TFT}}, ["fused names 'c_atn'", "nearest: 'c_attn'"]),
        ({"fused": {"attn": TFT}}, ["fused names 'attn'"]),  # not at a `.`
        ({"embeddings": ["embedding"]}, ["embeddings names 'embedding'"]),
        ({"alpha": None, "r": 4}, ["alpha is not in the file", "r=4 is given"]),
    ],
)
def test_arguments_that_do_not_fit_the_file_are_refused(model, tmp_path, changes, parts):
    assert_refused(checkpoint(tmp_path / "x.pt", model), parts, **changes)


@pytest.mark.parametrize("changes", [{"alpha": 0}, {"alpha": float("nan")}, {"r": 0}, {"fused": {"c_attn": (True,)}}])
def test_arguments_that_mean_nothing_are_refused_as_settings(model, tmp_path, changes):
    with pytest.raises(ConfigError):
        read_model(checkpoint(tmp_path / "x.pt", model), **changes)

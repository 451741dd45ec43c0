"""AdapterHub folders, built by hand as its library lays them out: alpha / r B A, and q, k, v of a fused projection."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from veneer.errors import AdapterFormatError
from veneer.formats.adapterhub import CONFIG_FILE, TENSOR_FILES, read_adapterhub

SIZES = st.integers(1, 5)
LORA = {
    "alpha": 5,
    "architecture": "lora",
    "attn_matrices": ["q", "v"],
    "composition_mode": "add",
    "dropout": 0.1,
    "dtype": None,
    "init_weights": "lora",
    "intermediate_lora": False,
    "leave_out": [],
    "output_lora": False,
    "r": 3,
    "selfattn_lora": True,
    "use_gating": False,
    "vera_b": None,
    "vera_d": None,
}
SETTINGS = {"config": LORA, "hidden_size": 7, "model_class": "M", "model_name": "some/model", "model_type": "m"}
PATH = "roberta.encoder.layer.0.attention.self.query"
A, B = (f"{PATH}.loras.task.lora_{part}" for part in "AB")


def tensors_of(r=3, rows=5, columns=7, slices=1):
    generator = torch.Generator().manual_seed(r)
    return {
        A: torch.randn(r * slices, columns, generator=generator),
        B: torch.randn(rows * slices, r, generator=generator),
    }


def written(folder, tensors, pickled=False, **changes):
    folder.mkdir(exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps({**SETTINGS, "config": {**LORA, **changes}}))
    safe, pickle = (folder / name for name in TENSOR_FILES)
    safe.unlink(missing_ok=True)
    torch.save(tensors, pickle) if pickled else save_file(tensors, safe)
    return folder


def assert_refused(folder, *parts, adapter=None):
    with pytest.raises(AdapterFormatError) as caught:
        read_adapterhub(folder, adapter=adapter)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("adapterhub") / "adapter"


@settings(max_examples=25, deadline=None)
@given(r=SIZES, rows=SIZES, columns=SIZES, alpha=st.integers(1, 40), pickled=st.booleans())
def test_the_change_of_the_weight_is_alpha_over_r_times_B_times_A(place, r, rows, columns, alpha, pickled):
    tensors = tensors_of(r, rows, columns)
    state = read_adapterhub(written(place, tensors, pickled, r=r, alpha=alpha))
    exact = alpha / r * tensors[B].double() @ tensors[A].double()
    assert torch.allclose(state.delta(PATH).double(), exact, rtol=1e-5, atol=1e-5)
    assert (state.config.r, state.config.alpha, state.config.dropout) == (r, alpha, 0.1)
    assert state.config.targets == (PATH,)
    assert state.base_model == "some/model"


@settings(max_examples=25, deadline=None)
@given(r=SIZES, height=SIZES, columns=SIZES, matrices=st.lists(st.sampled_from("qkv"), min_size=2, unique=True))
def test_a_fused_projection_is_changed_in_the_slices_named(place, r, height, columns, matrices):
    """The oracle is the grouped convolution that the library computes with."""
    tensors = tensors_of(r, height, columns, slices=len(matrices))
    state = read_adapterhub(written(place, tensors, r=r, attn_matrices=matrices))
    dense = torch.conv1d(tensors[A].double()[None], tensors[B].double()[..., None], groups=len(matrices))[0]
    exact = torch.zeros(3, height, columns, dtype=torch.float64)
    exact[[letter in matrices for letter in "qkv"]] = 5 / r * dense.view(len(matrices), height, columns)
    assert torch.allclose(state.delta(PATH).double(), exact.flatten(0, 1), rtol=1e-5, atol=1e-5)
    assert state.config.fused == {PATH: tuple(letter in matrices for letter in "qkv")}
    assert state.config.r == r


def test_one_of_several_adapters_is_read_by_its_name(tmp_path):
    other = {key.replace(".task.", ".other."): tensor + 1 for key, tensor in tensors_of().items()}
    folder = written(tmp_path / "x", {**tensors_of(), **other})
    assert_refused(folder, "adapter=None must be one of those in the file: other, task")
    assert_refused(folder, "adapter='third'", adapter="third")
    assert torch.equal(read_adapterhub(folder, adapter="other").updates[PATH].A, tensors_of()[A] + 1)


LIES = {
    "missing A": (lambda t: t.pop(A), [f"{PATH}: A is missing"]),
    "other rank": (lambda t: t.update({A: torch.ones(2, 7), B: torch.ones(5, 2)}), [f"{PATH} has rank 2, but r is 3"]),
    "ranks differ": (lambda t: t.update({A: torch.ones(4, 7)}), ["A has 4 rows and B 3 columns"]),
    "three slices": (
        lambda t: t.update({A: torch.ones(9, 7), B: torch.ones(15, 3)}),
        ["3 slices are adapted, but fused gives 2"],
    ),
    "a vector": (lambda t: t.update({A: torch.ones(3)}), ["A has shape (3,)"]),
    "integers": (lambda t: t.update({A: t[A].long()}), ["torch.int64"]),
    "NaN": (lambda t: t[A].fill_(torch.nan), [f"{A} holds NaN"]),
    "DoRA": (lambda t: t.update({f"{PATH}.loras.task.m.weight": torch.ones(5)}), ["task.m.weight is not supported"]),
    "gate": (lambda t: t.update({f"{PATH}.loras.task.gate.bias": torch.ones(1)}), ["task.gate.bias is not supported"]),
    "bottleneck": (lambda t: t.update({"layer.adapters.task.up": torch.ones(1)}), ["adapters.task.up is no part"]),
    "nothing": (lambda t: t.clear(), ["holds no tensors"]),
    "two at once": (lambda t: (t.pop(A), t.update({"x": torch.ones(1)})), ["A is missing", "x is no part"]),
}


@pytest.mark.parametrize("lie", LIES)
def test_tensors_that_are_not_plain_lora_are_refused_by_name(tmp_path, lie):
    change, parts = LIES[lie]
    tensors = tensors_of()
    change(tensors)
    assert_refused(written(tmp_path / "x", tensors), *parts)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"architecture": "ia3"}, "architecture is 'ia3'; only 'lora'"),
        ({"architecture": None}, "architecture is None"),
        ({"composition_mode": "scale"}, "composition_mode is 'scale'; only 'add'"),
        ({"use_gating": True}, "use_gating is True"),
        ({"vera_d": 0.1}, "vera_d=0.1 is unknown"),
        ({"r": 0}, "r is 0"),
        ({"r": None}, "r is None"),
        ({"alpha": "8"}, "alpha is '8'"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": 10**400}, "alpha is 1000"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"attn_matrices": []}, "attn_matrices is []"),
        ({"attn_matrices": ["q", "o"]}, "attn_matrices is ['q', 'o']"),
        ({"attn_matrices": [["q"]]}, "attn_matrices is [['q']]"),
        ({"attn_matrices": 3}, "attn_matrices is 3"),
    ],
)
def test_a_setting_that_would_change_the_maths_is_refused_by_name(tmp_path, changes, part):
    assert_refused(written(tmp_path / "x", tensors_of(), **changes), part)


@pytest.mark.parametrize("head", ["head_config.json", "pytorch_model_head.bin", "model_head.safetensors"])
def test_a_prediction_head_is_not_left_out_unsaid(tmp_path, head):
    folder = written(tmp_path / "x", tensors_of())
    (folder / head).write_bytes(b"{}")
    assert_refused(folder, head, "prediction head")


def test_folders_that_are_something_else_are_named_for_what_they_are(tmp_path):
    folder = written(tmp_path / "x", tensors_of())
    assert_refused(tmp_path / "nowhere", "holds no adapter_config.json")
    for text, part in (
        ("{", "not valid JSON"),
        ("[" * 10**5, "not valid JSON"),
        ('{"config": {}, "config": {}}', "stands twice"),
        ("[]", "not AdapterHub's"),
        ('{"peft_type": "LORA", "r": 3}', "PEFT's has 'peft_type'"),
    ):
        (folder / CONFIG_FILE).write_text(text)
        assert_refused(folder, part)
    (folder / CONFIG_FILE).write_bytes(b"\xff\xfe")
    assert_refused(folder, "not valid JSON")
    written(tmp_path / "x", tensors_of())
    (folder / TENSOR_FILES[0]).unlink()
    assert_refused(folder, "none of adapter.safetensors, pytorch_adapter.bin")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = written(tmp_path / "x", tensors_of()) / TENSOR_FILES[0]
    data = path.read_bytes()
    for end in range(0, len(data), 11):
        path.write_bytes(data[:end])
        assert_refused(tmp_path / "x", str(path))

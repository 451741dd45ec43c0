"""diffusers' files, built by hand and by peft: every naming gives the same change; settings in the metadata count."""

import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from veneer.errors import AdapterFormatError
from veneer.formats.diffusers import COMPONENTS, METADATA_KEY, read_diffusers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

SIZES = st.integers(1, 5)
NAMINGS = {  # naming -> (A's key, B's key) of the module "blocks.0.attn.to_q"
    "new": ("blocks.0.attn.to_q.lora_A.weight", "blocks.0.attn.to_q.lora_B.weight"),
    "lora": ("blocks.0.attn.to_q.lora.down.weight", "blocks.0.attn.to_q.lora.up.weight"),
    "linear layer": (
        "blocks.0.attn.to_q.lora_linear_layer.down.weight",
        "blocks.0.attn.to_q.lora_linear_layer.up.weight",
    ),
    "old": ("blocks.0.attn.to_q_lora.down.weight", "blocks.0.attn.to_q_lora.up.weight"),
    "processor": ("blocks.0.attn.processor.to_q_lora.down.weight", "blocks.0.attn.processor.to_q_lora.up.weight"),
}
NAME = "blocks.0.attn.to_q"


def pair(naming="new", r=3, rows=5, columns=(7,), component="unet", dtype=torch.float32):
    generator = torch.Generator().manual_seed(r)
    start = f"{component}." if component else ""
    A, B = NAMINGS[naming]
    return {
        start + A: torch.randn(r, *columns, generator=generator, dtype=dtype),
        start + B: torch.randn(rows, r, *[1] * (len(columns) - 1), generator=generator, dtype=dtype),
    }


def written(path, tensors, config=None):
    save_file(tensors, path, metadata=None if config is None else {METADATA_KEY: json.dumps(config)})
    return path


def product(A, B):
    return B.double().flatten(1) @ A.double().flatten(1)


def close(a, b):
    return torch.allclose(a.double(), b, rtol=1e-5, atol=1e-5)


def assert_refused(path, *parts, **arguments):
    with pytest.raises(AdapterFormatError) as caught:
        read_diffusers(path, **arguments)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("diffusers") / "pytorch_lora_weights.safetensors"


@settings(max_examples=40, deadline=None)
@given(
    naming=st.sampled_from(list(NAMINGS)),
    r=SIZES,
    rows=SIZES,
    columns=st.lists(SIZES, min_size=1, max_size=3),
    component=st.sampled_from(["", "unet"]),
    alpha=st.none() | st.floats(0.01, 100),
)
def test_every_naming_gives_alpha_over_r_times_B_times_A(path, naming, r, rows, columns, component, alpha):
    tensors = pair(naming, r, rows, columns, component)
    exact = product(*tensors.values())
    if alpha is not None:
        stem = f"{component}." if component else ""
        tensors[f"{stem}{NAME}.alpha"] = torch.tensor(alpha, dtype=torch.float64)
    state = read_diffusers(written(path, tensors))
    assert close(state.delta(NAME), exact * (1 if alpha is None else alpha / r))
    assert list(state.updates) == [NAME]
    assert state.updates[NAME].kind == ("linear" if len(columns) == 1 else "conv")


@pytest.mark.parametrize(
    ("component", "old", "module"),
    [
        ("unet", "to_out_lora", "to_out.0"),
        ("unet", "to_k_lora", "to_k"),
        ("transformer", "to_out_lora", "to_out.0"),
        ("text_encoder", "to_out_lora", "out_proj"),
        ("text_encoder", "to_q_lora", "q_proj"),
        ("text_encoder_2", "to_v_lora", "v_proj"),
    ],
)
def test_old_projections_have_the_names_of_their_model(tmp_path, component, old, module):
    tensors = {f"{component}.a.{old}.{part}.weight": torch.ones(3, 3) for part in ("down", "up")}
    tensors[f"{component}.a.{old}.alpha"] = torch.tensor(6.0)
    state = read_diffusers(written(tmp_path / "x.safetensors", tensors), component=component)
    assert list(state.updates) == [f"a.{module}"]
    assert state.factor(f"a.{module}") == 2


def test_layers_of_different_ranks_without_alphas_all_have_the_scaling_1(tmp_path):
    other = {key.replace("to_q", "to_k"): tensor for key, tensor in pair(r=2).items()}
    state = read_diffusers(written(tmp_path / "x.safetensors", {**pair(r=4), **other}))
    assert state.factor(NAME) == state.factor("blocks.0.attn.to_k") == 1
    assert close(state.delta("blocks.0.attn.to_k"), product(*other.values()))


def test_alphas_may_be_given_beside_the_file(tmp_path):
    path = written(tmp_path / "x.safetensors", pair())
    assert read_diffusers(path, alphas={NAME: 6}).factor(NAME) == 2
    assert_refused(path, "blocks.0.attn.to_k has an alpha, but no A and B", alphas={"blocks.0.attn.to_k": 6})
    assert_refused(path, f"alphas['{NAME}'] is nan", alphas={NAME: float("nan")})


def test_one_component_is_read_and_the_others_are_left_out(tmp_path):
    tensors = {**pair(r=2), **pair(r=3, component="text_encoder")}
    path = written(tmp_path / "x.safetensors", tensors)
    assert read_diffusers(path).updates[NAME].rank == 2
    assert read_diffusers(path, component="text_encoder").updates[NAME].rank == 3
    assert_refused(path, "holds no transformer, only text_encoder, unet", component="transformer")
    assert_refused(path, "component is 'vae'", *COMPONENTS, component="vae")


def test_a_pickled_file_is_read_the_same(tmp_path):
    torch.save(pair("processor", component=""), tmp_path / "pytorch_lora_weights.bin")
    state = read_diffusers(tmp_path / "pytorch_lora_weights.bin")
    assert close(state.delta(NAME), product(*pair().values()))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(7, 5), nn.Linear(7, 5)
        self.proj = nn.Conv2d(7, 5, 3)


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"attn.to_q": 9}}])
def test_the_settings_in_the_metadata_give_the_change_that_peft_computes(tmp_path, prefixed, rslora, patterns):
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["to_q", "to_k", "proj"],
        use_rslora=rslora,
        init_lora_weights=False,
        **patterns,
    )
    model = peft.inject_adapter_in_model(config, nn.ModuleDict({"attn": Attention()}))
    start = "transformer." if prefixed else ""
    tensors = {start + key: tensor for key, tensor in peft.get_peft_model_state_dict(model).items()}
    stored = {start + key: list(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    state = read_diffusers(written(tmp_path / "x.safetensors", tensors, stored), component="transformer")
    assert list(state.updates) == ["attn.proj", "attn.to_k", "attn.to_q"]
    for name in state.updates:
        with torch.no_grad():
            exact = model.get_submodule(name).get_delta_weight("default").flatten(1).double()
        assert close(state.delta(name), exact), name
    assert state.config.scaling == ("rslora" if rslora else "lora")


def test_settings_of_another_component_do_not_count(tmp_path):
    path = written(tmp_path / "x.safetensors", pair(), {"text_encoder.r": 3, "text_encoder.lora_alpha": 30})
    assert read_diffusers(path).factor(NAME) == 1


GOOD = {"unet.r": 3, "unet.lora_alpha": 5}
A, B = (f"unet.{key}" for key in NAMINGS["new"])
LIES = {
    "missing A": (lambda t: t.pop(A), None, [f"{NAME}: A is missing"]),
    "ranks differ": (lambda t: t.update({A: torch.ones(4, 7)}), None, ["A (4, 7) and B (5, 3) do not fit"]),
    "NaN": (lambda t: t[A].fill_(torch.nan), None, [f"{A} holds NaN"]),
    "integers": (lambda t: t.update({A: t[A].short()}), None, ["torch.int16"]),
    "twice": (lambda t: t.update(pair("processor")), None, ["there a second time under another name"]),
    "DoRA": (
        lambda t: t.update({f"unet.{NAME}.lora_magnitude_vector": torch.ones(5)}),
        None,
        ["lora_magnitude_vector is no part of a plain LoRA"],
    ),
    "bias": (lambda t: t.update({f"unet.{NAME}.lora_B.bias": torch.ones(5)}), None, ["lora_B.bias is no part"]),
    "adapter name": (
        lambda t: t.update({A.replace("weight", "d.weight"): torch.ones(3, 7)}),
        None,
        ["lora_A.d.weight"],
    ),
    "no component": (
        lambda t: t.update({"vae.x.lora_A.weight": torch.ones(3, 7)}),
        None,
        ["vae.x", "none of the comp"],
    ),
    "alpha alone": (lambda t: t.update({"unet.x.alpha": torch.tensor(1.0)}), None, ["x has an alpha, but no A and B"]),
    "two places": (lambda t: t.update({f"unet.{NAME}.alpha": torch.tensor(1.0)}), GOOD, ["alphas stand in two places"]),
    "other rank": (lambda _: None, {**GOOD, "unet.r": 4}, [f"{NAME} has rank 3, but the metadata says 4"]),
    "no alpha": (lambda _: None, {"unet.r": 3}, ["lora_alpha is missing (in the metadata)"]),
    "DoRA said": (
        lambda _: None,
        {**GOOD, "unet.use_dora": True},
        ["use_dora=True is not supported (in the metadata)"],
    ),
    "a hard pattern": (
        lambda _: None,
        {**GOOD, "unet.rank_pattern": {"(a+)+$": 3}},
        ["rank_pattern: '(a+)+$' repeats a group that itself repeats"],
    ),
    "any pattern": (
        lambda _: None,
        {**GOOD, "unet.rank_pattern": {"(a|b)": 3}},
        ["patterns in the metadata must be plain names; (a|b) is not"],
    ),
    "another start": (lambda _: None, {**GOOD, "unet.init_lora_weights": "pissa"}, ["init_lora_weights='pissa'"]),
    "another method": (lambda _: None, {**GOOD, "unet.peft_type": "LOHA"}, ["peft_type is 'LOHA'"]),
    "unknown": (lambda _: None, {**GOOD, "unet.frobnicate": True}, ["frobnicate=True is unknown"]),
    "no patterns": (lambda _: None, {**GOOD, "unet.alpha_pattern": [3]}, ["alpha_pattern=[3] must be an object"]),
    "no settings": (lambda _: None, [3], ["holds no settings"]),
    "two at once": (lambda t: t.pop(A), {**GOOD, "unet.use_dora": True}, ["A is missing", "use_dora"]),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_plain_lora_is_refused_by_name(tmp_path, lie):
    change, config, parts = LIES[lie]
    tensors = pair()
    change(tensors)
    assert_refused(written(tmp_path / "x.safetensors", tensors, config), *parts)


@pytest.mark.parametrize("text", ["{", "[" * 10**5, '{"unet.r": 3, "unet.r": 4}'])
def test_metadata_that_is_no_json_is_refused(tmp_path, text):
    save_file(pair(), tmp_path / "x.safetensors", metadata={METADATA_KEY: text})
    assert_refused(tmp_path / "x.safetensors", METADATA_KEY, "not valid JSON")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    data = written(tmp_path / "x.safetensors", pair(), GOOD).read_bytes()
    for end in range(0, len(data), 11):
        (tmp_path / "x.safetensors").write_bytes(data[:end])
        assert_refused(tmp_path / "x.safetensors", "x.safetensors")

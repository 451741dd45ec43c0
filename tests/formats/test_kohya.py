"""kohya and LyCORIS files: names come from the model, alpha from the file; what is not plain LoRA is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from veneer.errors import AdapterFormatError
from veneer.formats.kohya import read_kohya

SIZES = st.integers(1, 5)
NAMES = ["", "down", "down.0", "down.0.attn_1", "down.0.attn_1.to_q", "down.0.attn_1.to_out.0", "conv_in"]
Q, OUT, CONV = "down_0_attn_1_to_q", "down_0_attn_1_to_out_0", "conv_in"


def layer(name, prefix="lora_unet", *, r=3, rows=5, columns=(7,), alpha=None, dtype=torch.float32):
    """Return the tensors of one layer; a convolution where `columns` holds a kernel too."""
    generator = torch.Generator().manual_seed(len(name))
    kernel = len(columns) - 1
    tensors = {
        f"{prefix}_{name}.lora_down.weight": torch.randn(r, *columns, generator=generator, dtype=dtype),
        f"{prefix}_{name}.lora_up.weight": torch.randn(rows, r, *[1] * kernel, generator=generator, dtype=dtype),
    }
    return tensors if alpha is None else {**tensors, f"{prefix}_{name}.alpha": torch.tensor(alpha)}


def expected(tensors, name, scaling, prefix="lora_unet"):
    """Return s B A of one layer, entry by entry as the format says."""
    down, up = (tensors[f"{prefix}_{name}.lora_{part}.weight"].double() for part in ("down", "up"))
    return scaling * torch.einsum("or,ri->oi", up.reshape(up.shape[0], -1), down.reshape(down.shape[0], -1))


def written(path, tensors, **metadata):
    save_file(tensors, path, metadata=metadata or None)
    return path


def close(a, b):
    return torch.allclose(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("kohya") / "x.safetensors"


@settings(max_examples=40, deadline=None)
@given(
    r=SIZES,
    rows=SIZES,
    columns=st.lists(SIZES, min_size=1, max_size=4),
    alpha=st.none() | st.just(0.0) | st.floats(0.01, 100) | st.integers(1, 64),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_change_of_the_weight_is_alpha_over_r_times_up_times_down(path, r, rows, columns, alpha, dtype):
    tensors = layer(Q, r=r, rows=rows, columns=columns, alpha=alpha, dtype=dtype)
    state = read_kohya(written(path, tensors), names=NAMES)
    name = "down.0.attn_1.to_q"
    assert close(state.delta(name), expected(tensors, Q, alpha / r if alpha else 1.0))
    assert state.updates[name].kind == ("linear" if len(columns) == 1 else "conv")
    assert state.updates[name].A.shape == (r, *columns)
    assert state.config.r == r


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_each_layer_has_its_own_rank_and_alpha(tmp_path, ending):
    tensors = {**layer(Q, r=3, alpha=5), **layer(OUT, r=2, rows=7, alpha=0.5), **layer(CONV, r=4, columns=(7, 3, 3))}
    path = tmp_path / f"x{ending}"
    (save_file if ending == ".safetensors" else torch.save)(tensors, path)
    state = read_kohya(path, names=NAMES)
    assert list(state.updates) == ["conv_in", "down.0.attn_1.to_out.0", "down.0.attn_1.to_q"]
    for name, flat, scaling in (
        ("down.0.attn_1.to_q", Q, 5 / 3),
        ("down.0.attn_1.to_out.0", OUT, 0.25),
        (CONV, CONV, 1),
    ):
        assert close(state.delta(name), expected(tensors, flat, scaling))
        assert state.config.rank_of(name) == state.updates[name].rank


def test_a_convolution_by_down_then_up_is_the_convolution_with_the_change(tmp_path):
    """The oracle is torch: kohya computes up(down(x)), with the kernel in the first and 1 x 1 in the second."""
    tensors = layer(CONV, r=3, rows=5, columns=(7, 3, 3), alpha=2)
    state = read_kohya(written(tmp_path / "x.safetensors", tensors), names=NAMES)
    x = torch.randn(2, 7, 6, 6)
    down, up, _ = tensors.values()
    in_two_steps = torch.conv2d(torch.conv2d(x, down, padding=1), up) * (2 / 3)
    in_one = torch.conv2d(x, state.delta("conv_in").view(5, 7, 3, 3), padding=1)
    torch.testing.assert_close(in_one, in_two_steps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["lora_unet", "lora_te", "lora_te1", "lora_te2", "lycoris"])
def test_every_usual_prefix_is_found(tmp_path, prefix):
    path = written(tmp_path / "x.safetensors", layer(Q, prefix), ss_network_module="networks.lora")
    assert list(read_kohya(path, names=NAMES).updates) == ["down.0.attn_1.to_q"]


def test_of_several_models_one_is_chosen_by_its_prefix(tmp_path):
    tensors = {**layer(Q, alpha=5), **layer("text_q", "lora_te1", alpha=2)}
    path = written(tmp_path / "x.safetensors", tensors)
    with pytest.raises(AdapterFormatError, match=r"several models: lora_te1, lora_unet; choose one with prefix="):
        read_kohya(path, names=[*NAMES, "text.q"])
    assert list(read_kohya(path, names=NAMES, prefix="lora_unet").updates) == ["down.0.attn_1.to_q"]
    state = read_kohya(path, names=["text.q"], prefix="lora_te1")
    assert close(state.delta("text.q"), expected(tensors, "text_q", 2 / 3, "lora_te1"))
    with pytest.raises(AdapterFormatError, match="holds nothing under lora_te2_"):
        read_kohya(path, names=NAMES, prefix="lora_te2")


def test_a_prefix_of_ones_own_can_be_given(tmp_path):
    path = written(tmp_path / "x.safetensors", layer(Q, "my_own"))
    assert_refused(path, ["my_own_down_0", "give its own as prefix="])
    assert list(read_kohya(path, names=NAMES, prefix="my_own").updates) == ["down.0.attn_1.to_q"]


def assert_refused(path, parts, names=NAMES):
    with pytest.raises(AdapterFormatError) as caught:
        read_kohya(path, names=names)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_names_that_are_the_same_with_underscores_are_refused_if_the_file_uses_them(tmp_path):
    names = [*NAMES, "down_0.attn_1.to_q"]
    assert_refused(
        written(tmp_path / "x.safetensors", layer(Q)),
        [f"lora_unet_{Q}", "may be any of down.0.attn_1.to_q, down_0.attn_1.to_q"],
        names,
    )
    assert list(read_kohya(written(tmp_path / "x.safetensors", layer(CONV)), names=names).updates) == ["conv_in"]


DOWN, UP, ALPHA = (f"lora_unet_{Q}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha"))
STEM = f"lora_unet_{Q}"
LIES = {
    "unknown module": ({"lora_unet_down_0_attn_1_to_qq.alpha": torch.tensor(1.0)}, ["to_qq: no module", "nearest"]),
    "no down": ({DOWN: None}, ["down.0.attn_1.to_q: A is missing"]),
    "no up": ({UP: None}, ["down.0.attn_1.to_q: B is missing"]),
    "alpha alone": ({DOWN: None, UP: None}, ["down.0.attn_1.to_q has an alpha, but no A and B"]),
    "two alphas": ({ALPHA: torch.ones(2)}, [ALPHA, "of shape (2,)"]),
    "negative alpha": ({ALPHA: torch.tensor(-1.0)}, [f"{ALPHA} is -1.0"]),
    "alpha beyond use": ({ALPHA: torch.tensor(1e30)}, [f"{ALPHA} is 1.0"]),
    "NaN alpha": ({ALPHA: torch.tensor(torch.nan)}, [f"{ALPHA} holds NaN"]),
    "infinite up": ({UP: torch.full((5, 3), torch.inf)}, [f"{UP} holds NaN or infinity"]),
    "ranks differ": ({UP: torch.ones(5, 2)}, ["A (3, 7) and B (5, 2) do not fit"]),
    "kernel in one": ({UP: torch.ones(5, 3, 1, 1)}, ["A (3, 7) and B (5, 3, 1, 1) do not fit"]),
    "kernel in up": ({DOWN: torch.ones(3, 7, 3, 3), UP: torch.ones(5, 3, 3, 3)}, ["do not fit"]),
    "integers": ({DOWN: torch.ones(3, 7, dtype=torch.int32)}, ["A has shape (3, 7) and torch.int32"]),
    "8 bit floats": ({DOWN: torch.ones(3, 7).to(torch.float8_e4m3fn)}, [f"{DOWN} is of torch.float8_e4m3fn"]),
    "Tucker": ({f"{STEM}.lora_mid.weight": torch.ones(3, 3, 3, 3)}, ["lora_mid.weight is a Tucker decomposition"]),
    "DoRA": ({f"{STEM}.dora_scale": torch.ones(5, 1)}, ["dora_scale is DoRA"]),
    "LoHa": ({f"{STEM}.hada_w1_a": torch.ones(5, 3)}, ["hada_w1_a is LoHa"]),
    "LoKr": ({f"{STEM}.lokr_w1": torch.ones(5, 3)}, ["lokr_w1 is LoKr"]),
    "full": ({f"{STEM}.diff": torch.ones(5, 7), f"{STEM}.diff_b": torch.ones(5)}, ["diff is a full", "diff_b is a"]),
    "split": ({f"{STEM}.lora_up.0.weight": torch.ones(5, 3)}, ["lora_up.0.weight is unknown"]),
    "PEFT's": ({"base_model.model.x.lora_A.weight": torch.ones(3, 7)}, ["none of the prefixes lora_unet"]),
    "two at once": ({DOWN: None, f"{STEM}.dora_scale": torch.ones(5, 1)}, ["A is missing", "is DoRA"]),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_plain_low_rank_is_refused_by_name(tmp_path, lie):
    changes, parts = LIES[lie]
    tensors = {key: value for key, value in {**layer(Q, alpha=5), **changes}.items() if value is not None}
    assert_refused(written(tmp_path / "x.safetensors", tensors), parts)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    data = written(tmp_path / "x.safetensors", layer(Q, alpha=5)).read_bytes()
    for end in range(0, len(data), 11):
        (tmp_path / "x.safetensors").write_bytes(data[:end])
        assert_refused(tmp_path / "x.safetensors", ["x.safetensors"])

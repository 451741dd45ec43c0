"""Folders for vLLM: one scaling of 1 for all layers, whatever the adapter had, and nothing vLLM would pass over."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veneer import LoraConfig
from veneer.errors import AdapterFormatError
from veneer.formats.peft import CONFIG_FILE, TENSOR_FILE, read_peft
from veneer.formats.vllm import write_vllm
from veneer.lora.state import AdapterState, LowRank, TokenRows

PREFIX = "base_model.model."


def state_of(ranks, factors, *, scaling="lora", dtype=torch.float32, seed=0):
    """Layers a.0.query, a.1.query ... of 7 -> 5 with these ranks and scalings."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"a.{number}.query" for number in range(len(ranks))]
    updates = {
        name: LowRank(
            torch.randn(r, 7, generator=generator).to(dtype), torch.randn(5, r, generator=generator).to(dtype)
        )
        for name, r in zip(names, ranks, strict=True)
    }
    power = 1 if scaling == "lora" else 0.5
    config = LoraConfig(
        targets=["query"],
        scaling=scaling,
        rank_pattern=dict(zip(names, ranks, strict=True)),
        alpha_pattern={n: s * r**power for n, s, r in zip(names, factors, ranks, strict=True)},
    )
    return AdapterState(config=config, updates=updates)


def served(folder, name):
    """What vLLM up to 0.30 adds to a weight: one alpha / r for all, ranks as stored."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    tensors = safetensors.torch.load_file(folder / TENSOR_FILE)
    A, B = tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"]
    assert A.shape[0] <= config["r"]
    return config["lora_alpha"] / config["r"] * B.float() @ A.float()


@settings(max_examples=25, deadline=None)
@given(
    layers=st.lists(st.tuples(st.integers(1, 5), st.floats(0.01, 30)), min_size=1, max_size=4),
    scaling=st.sampled_from(["lora", "rslora"]),
)
def test_one_scaling_for_all_serves_each_layer_its_own(layers, scaling, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    ranks, factors = zip(*layers, strict=True)
    state = state_of(ranks, factors, scaling=scaling)
    write_vllm(state, folder)
    for (name, update), factor in zip(state.updates.items(), factors, strict=True):
        expected = factor * update.B @ update.A
        torch.testing.assert_close(served(folder, name), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(read_peft(folder).delta(name), expected, rtol=1e-5, atol=1e-5)
    config = json.loads((folder / CONFIG_FILE).read_text())
    assert config["r"] == config["lora_alpha"] == max(ranks)
    assert not any(config[key] for key in ("rank_pattern", "alpha_pattern", "use_rslora"))
    assert config["bias"] == "none"


def test_an_adapter_that_needs_nothing_is_written_as_it_is_without_a_note(tmp_path):
    state = state_of((3, 3), (1.0, 1.0))
    assert write_vllm(state, tmp_path) == ()
    again = read_peft(tmp_path)
    for name, update in state.updates.items():
        assert torch.equal(again.updates[name].A, update.A)
        assert torch.equal(again.updates[name].B, update.B)


def test_the_dtype_stays_and_b_is_rounded_once(tmp_path):
    state = state_of((3,), (1.7,), dtype=torch.bfloat16)
    write_vllm(state, tmp_path)
    B = state.updates["a.0.query"].B
    assert torch.equal(read_peft(tmp_path).updates["a.0.query"].B, (B.double() * 1.7).bfloat16())


def test_the_notes_say_what_was_folded_filled_up_and_left_out(tmp_path):
    state = replace(
        state_of((2, 24), (1.0, 0.5)),
        trained={"classifier.weight": torch.ones(3, 7), "classifier.bias": torch.ones(3)},
        trained_modules=("classifier",),
        base_copies={"lm_head.weight": torch.ones(11, 7)},
    )
    notes = "\n".join(write_vllm(state, tmp_path))
    for part in (
        "folded the scaling (0.5) into B of 1 layers",
        "filled up to rank 24 with zeros: a.0.query (2)",
        "dropped classifier.weight (vLLM reads no head)",
        "dropped classifier.bias",
        "dropped lm_head.weight (a copy of the base's)",
        "--max-lora-rank of at least 24",
    ):
        assert part in notes, notes
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["modules_to_save"] is None
    assert all(".lora_" in key for key in safetensors.torch.load_file(tmp_path / TENSOR_FILE))


def test_a_fused_projection_is_served_as_one_layer(tmp_path):
    B = torch.zeros(9, 4)
    B[:3, :2], B[6:, 2:] = torch.randn(3, 2), torch.randn(3, 2)
    config = LoraConfig(r=2, alpha=5, targets=["a.0.query"], fused={"query": (True, False, True)})
    state = AdapterState(config=config, updates={"a.0.query": LowRank(torch.randn(4, 7), B)})
    write_vllm(state, tmp_path)
    expected = 2.5 * B @ state.updates["a.0.query"].A
    torch.testing.assert_close(served(tmp_path, "a.0.query"), expected, rtol=1e-5, atol=1e-5)


def test_an_embedding_goes_along(tmp_path):
    A, B = torch.randn(3, 11), torch.randn(7, 3)
    config = LoraConfig(r=3, alpha=6, targets=["embed_tokens"])
    write_vllm(AdapterState(config=config, updates={"embed_tokens": LowRank(A, B, kind="embedding")}), tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / TENSOR_FILE)
    found = tensors[f"{PREFIX}embed_tokens.lora_embedding_B"] @ tensors[f"{PREFIX}embed_tokens.lora_embedding_A"]
    torch.testing.assert_close(found, 2 * B @ A, rtol=1e-5, atol=1e-5)


def test_what_vllm_cannot_serve_is_refused_with_every_reason_and_nothing_is_written(tmp_path):
    ones = torch.ones
    state = AdapterState(
        config=LoraConfig(r=3),
        updates={
            "a.query": LowRank(ones(3, 7), ones(5, 3), ones(5)),
            "a.conv": LowRank(ones(3, 2, 3), ones(6, 3), kind="conv"),
            "a.experts": LowRank(ones(2, 3, 7), ones(2, 5, 3), kind="parameter"),
        },
        trained={"a.query.bias": ones(5), "norm.weight": ones(7)},
        trained_modules=("norm",),
        token_rows={"embed": TokenRows(torch.tensor([1]), ones(1, 7))},
    )
    reasons = [
        "a.query has a DoRA magnitude",
        "a.conv is a conv",
        "a.experts is a parameter",
        "a.query.bias: a trained parameter that is not of a head",
        "norm.weight: a trained parameter that is not of a head",
        "embed: trained rows of an embedding",
    ]
    with pytest.raises(AdapterFormatError) as caught:
        write_vllm(state, tmp_path / "none")
    assert all(reason in str(caught.value) for reason in reasons), str(caught.value)
    assert not (tmp_path / "none").exists()
    with pytest.raises(AdapterFormatError, match="it has no layers"):
        write_vllm(AdapterState(config=LoraConfig(targets=[]), updates={}), tmp_path / "none")

"""Faults that users of other LoRA libraries have reported, each as a law that holds here, named after the fault.

Held elsewhere: a change of strength or adapter compiles nothing again (tests/lora/test_torch.py); convolutions with
dilation, padding mode and groups (test_peft_differential.py); the seed decides the start (tests/lora/test_inject.py).
"""

import copy
import json
import pickle
import socket
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

import veneer
from veneer import LoraConfig
from veneer.errors import AdapterFormatError, AdapterMismatchError, AdapterStateError, ConfigError, TargetError
from veneer.lora.algebra import combined
from veneer.lora.init import INITS
from veneer.lora.layers import adapted_slots

TENSORS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(7, 5), nn.Linear(5, 7)

    def forward(self, x):
        return x + self.value(torch.tanh(self.query(x)))


class Net(nn.Module):
    """Blocks of 7 -> 5 -> 7 and two heads, one named as the end of the other."""

    def __init__(self, blocks=2):
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        self.score, self.aux_score = nn.Linear(7, 3), nn.Linear(7, 4)

    def forward(self, x):
        hidden = self.blocks(x)
        return torch.cat([self.score(hidden), self.aux_score(hidden)], dim=-1)


class Tied(nn.Module):
    """An embedding and an output layer with one weight."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.lm_head = nn.Embedding(11, 7), nn.Linear(7, 7), nn.Linear(7, 11, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids):
        return self.lm_head(torch.tanh(self.mix(self.embed(ids))))


def stir(model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)
    return model


def adapted(make=Net, train_also=(), dtype=torch.float32, **config):
    torch.manual_seed(0)
    model = make().to(dtype)
    veneer.adapt(model, LoraConfig(**{"r": 3, "alpha": 5, "targets": ["query", "value"]} | config), train_also)
    return stir(model)


def x_of(model, *shape):
    return torch.randn(shape or (4, 7), generator=torch.Generator().manual_seed(1)).to(next(model.parameters()).dtype)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def near(given, expected, tolerance=1e-5):
    torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)


# 1. Selectors


@pytest.mark.parametrize(
    ("targets", "train_also", "message"),
    [
        (["query", "valeu"], (), r"target 'valeu' matches no module; nearest: .*value"),
        (["query"], ["klassifier", "score"], r"train_also 'klassifier' matches no module"),
    ],
)
def test_a_misspelt_name_is_silent_if_another_one_matches(targets, train_also, message):
    """https://github.com/huggingface/peft/issues/1959"""
    model = Net()
    before = snapshot(model)
    with pytest.raises(TargetError, match=message):
        veneer.adapt(model, LoraConfig(r=3, targets=targets), train_also)
    assert same(model, before)


def test_a_name_to_train_whole_grabs_every_module_that_ends_in_it():
    """https://github.com/huggingface/peft/pull/3603"""
    assert veneer.plan(Net(), LoraConfig(r=3), ["score"]).trained_modules == ("score",)


# 2. Files


def renamed(tensors):
    return {name.replace("blocks", "layers"): tensor for name, tensor in tensors.items()}


def halved(tensors):
    return dict(sorted(tensors.items())[::2])


def with_one_more(tensors):
    return {**tensors, "base_model.model.blocks.2.query.lora_A.weight": torch.zeros(3, 7)}


def with_nan(tensors):
    return {name: tensor * torch.nan for name, tensor in tensors.items()}


@pytest.mark.parametrize("edit", [renamed, halved, with_one_more, with_nan])
def test_wrong_missing_and_extra_keys_load_silently(edit, tmp_path):
    """https://github.com/huggingface/peft/issues/1932 and https://github.com/huggingface/transformers/pull/46766"""
    veneer.save(adapted(), tmp_path)
    save_file(edit(load_file(tmp_path / TENSORS)), tmp_path / TENSORS)
    model = Net()
    before = snapshot(model)
    with pytest.raises((AdapterFormatError, AdapterMismatchError)):
        veneer.load(model, tmp_path)
    assert same(model, before)


@pytest.mark.parametrize("other", [lambda: Net(blocks=1), lambda: Net(blocks=3), lambda: nn.Sequential(Net())])
def test_an_adapter_for_another_model_loads_silently(other):
    """https://github.com/huggingface/peft/pull/2118"""
    adapter, model = veneer.state(adapted()), other()
    before = snapshot(model)
    with pytest.raises(AdapterMismatchError):
        veneer.load_state(model, adapter, any_base=True)
    assert same(model, before)


def test_an_adapter_loads_silently_onto_other_base_weights():
    """https://github.com/huggingface/sentence-transformers/pull/3865"""
    adapter = veneer.state(adapted())
    torch.manual_seed(1)
    with pytest.raises(AdapterMismatchError, match="other weights"):
        veneer.load_state(Net(), adapter)
    veneer.load_state(Net(), adapter, any_base=True)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-5], lambda _: b""]
)
def test_a_damaged_file_loads_or_fails_once_the_model_is_wrapped(damage, tmp_path):
    """One flipped bit of the values loads in PEFT; https://github.com/huggingface/peft/issues/1932"""
    veneer.save(adapted(), tmp_path)
    (tmp_path / TENSORS).write_bytes(damage((tmp_path / TENSORS).read_bytes()))
    model = Net()
    before = snapshot(model)
    with pytest.raises(AdapterFormatError):
        veneer.load(model, tmp_path)
    assert same(model, before)


@pytest.mark.parametrize("setting", [{"unheard_of": 1}, {"layer_replication": [[0, 1], [0, 2]]}, {"lora_bias": True}])
def test_a_setting_that_is_not_understood_is_ignored(setting, tmp_path):
    """https://github.com/huggingface/peft/issues/1932"""
    veneer.save(adapted(), tmp_path)
    path = tmp_path / SETTINGS
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    with pytest.raises(AdapterFormatError, match=next(iter(setting))):
        veneer.load(Net(), tmp_path)


# 3. Merging


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_unmerging_does_not_restore_the_weights(dtype, variant):
    """https://github.com/huggingface/peft/issues/1388 and https://github.com/huggingface/peft/issues/2502"""
    model = adapted(dtype=dtype, variant=variant)
    before = snapshot(model)
    for _ in range(50):
        with veneer.merged(model):
            pass
    assert same(model, before)


def test_merging_rounds_more_than_once():
    """https://github.com/huggingface/transformers/issues/31293"""
    model = adapted(dtype=torch.bfloat16)
    slot = adapted_slots(model)["blocks.1.value"]
    exact = slot.weight.float() + 5 / 3 * (slot.update.B @ slot.update.A)
    veneer.merge(model)
    assert torch.equal(model.blocks[1].value.weight, exact.to(torch.bfloat16))


def test_a_merge_that_fails_midway_leaves_layers_merged():
    """https://github.com/huggingface/peft/issues/2502"""
    model = adapted()
    with torch.no_grad():
        adapted_slots(model)["blocks.1.query"].update.B[0, 0] = torch.inf
    weights = [slot.weight.clone() for slot in adapted_slots(model).values()]
    with pytest.raises(AdapterStateError, match=r"blocks\.1\.query\.weight would not be finite"):
        veneer.merge(model)
    assert all(map(torch.equal, weights, [slot.weight for slot in adapted_slots(model).values()]))


# 4. Memory


@pytest.mark.parametrize("make", [lambda: nn.Linear(256, 32), lambda: Conv1D(32, 256)], ids=["linear", "transposed"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("variant", ["lora", "lora-fa"])
def test_a_float32_copy_of_every_input_is_saved_for_each_target(make, layers, variant):
    """https://github.com/huggingface/peft/issues/2196 and https://github.com/AgileRL/AgileRL/pull/623"""
    torch.manual_seed(0)
    model = nn.ModuleList(make() for _ in range(layers)).to(torch.bfloat16)
    veneer.adapt(model, LoraConfig(r=2, train_A=variant == "lora"))
    x = torch.randn(512, 256, dtype=torch.bfloat16)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes(), tensor  # kept, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = [layer(x) for layer in model]
    assert len(outputs) == layers
    assert (x.untyped_storage().data_ptr() in saved) == (variant == "lora")
    allowed = {"lora": 1.0, "lora-fa": 0.0}[variant] + 0.1 * layers
    assert sum(size for size, _ in saved.values()) <= allowed * x.nbytes


# 7. Many layers


def test_disabling_an_adapter_of_thousands_of_layers_and_back_leaves_traces():
    """https://github.com/huggingface/diffusers/issues/8953"""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(2688)))
    inside = model[:40]
    x = torch.randn(2, 3)
    expected = inside(x)
    veneer.adapt(model, LoraConfig(r=1))
    adapted_layers, before = list(stir(model)), snapshot(model)
    with veneer.disabled(model):
        assert torch.equal(model[:40](x), expected)
    assert same(model, before)
    assert all(map(lambda old, new: old is new, adapted_layers, model))


# 8. Tied weights


@pytest.mark.parametrize("targets", [["embed"], ["lm_head"], ["embed", "lm_head"]])
def test_merging_one_of_two_tied_layers_changes_the_other(targets):
    """https://github.com/huggingface/peft/issues/2018 and https://github.com/huggingface/transformers/issues/45127"""
    model, ids = adapted(Tied, targets=targets), torch.randint(0, 11, (2, 5))
    assert list(adapted_slots(model)) == ["embed", "lm_head"]
    expected = model(ids)
    veneer.merge(model)
    assert model.lm_head.weight is model.embed.weight
    near(model(ids), expected)


def test_a_tied_layer_that_must_stay_as_it_is_changes_all_the_same():
    """https://github.com/unslothai/unsloth/pull/9331"""
    with pytest.raises(TargetError, match="shares its weight with 'lm_head', which is excluded"):
        veneer.adapt(Tied(), LoraConfig(r=2, targets=["embed"], exclude=["lm_head"]))


# 9. Saving


def test_saving_guesses_what_to_save_and_asks_the_network(tmp_path, monkeypatch):
    """https://github.com/huggingface/peft/issues/1452 and https://github.com/hiyouga/LlamaFactory/issues/2793"""
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, lambda *_args, **_kwargs: pytest.fail("the network was asked"))
    model = adapted(Tied, ["lm_head", "embed"], targets=["mix"])
    veneer.save(model, tmp_path, base_model="somebody/some-model")
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == [SETTINGS, TENSORS]
    with safe_open(tmp_path / TENSORS, "pt") as file:
        names = {name.removeprefix("base_model.model.") for name in file.keys()}  # noqa: SIM118 - not a mapping
    assert names == {"mix.lora_A.weight", "mix.lora_B.weight", "lm_head.weight", "embed.weight"}
    torch.manual_seed(0)
    veneer.load(Tied(), tmp_path)


# 10. Starts


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_start_changes_the_base_model(init, dtype):
    """https://github.com/huggingface/peft/issues/2184 and https://github.com/huggingface/transformers/issues/34468"""
    torch.manual_seed(0)
    model = Net().to(dtype)
    x, before, expected = x_of(model), snapshot(model), model(x_of(model))
    batches = [x] if init == "eva" else None
    veneer.adapt(model, LoraConfig(r=2, targets=["query", "value"], init=init), batches=batches)
    near(model(x), expected, {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype])
    assert all(torch.equal(slot.weight, before[f"{name}.weight"]) for name, slot in adapted_slots(model).items())
    with veneer.disabled(stir(model)):
        assert torch.equal(model(x), expected)
    veneer.remove(model)
    assert same(model, before)


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal"])
def test_an_adapter_with_such_a_start_needs_the_changed_base_to_be_loaded(init, tmp_path):
    """https://github.com/huggingface/peft/issues/2270"""
    model = adapted(init=init, r=2)
    veneer.save(model, tmp_path)
    torch.manual_seed(0)
    twin = Net()
    veneer.load(twin, tmp_path)
    near(twin(x_of(twin)), model(x_of(model)))


def test_the_start_is_rounded_through_the_dtype_of_the_base():
    """Measured in PEFT 0.21.2 on a bfloat16 base: float32 factors hold bfloat16 values."""
    model = Net().to(torch.bfloat16)
    veneer.adapt(model, LoraConfig(r=3))
    A = model.blocks[0].query.update.A
    assert A.dtype == torch.float32
    assert not torch.equal(A, A.bfloat16().float())


# 11. Algebra


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
def test_a_single_adapter_of_weight_one_is_not_itself(scaling):
    """https://github.com/huggingface/peft/issues/3761"""
    model = adapted(scaling=scaling)
    adapter = veneer.state(model)
    torch.manual_seed(0)
    twin = Net()
    veneer.load_state(twin, combined([adapter], [1.0]))
    near(twin(x_of(twin)), model(x_of(model)))


def test_a_weighted_sum_of_adapters_has_cross_terms():
    """https://github.com/huggingface/peft/pull/3013 and https://github.com/huggingface/peft/pull/3111"""
    first, second = (veneer.state(adapted(seed=seed, r=seed, alpha=seed + 3)) for seed in (2, 3))
    mixed = combined([first, second], [0.3, -0.7])
    for name in first.updates:
        near(mixed.delta(name), 0.3 * first.delta(name) - 0.7 * second.delta(name))


def test_dora_is_added_as_if_it_were_a_low_rank_delta():
    """https://github.com/huggingface/peft/issues/3761"""
    with pytest.raises(AdapterMismatchError, match="DoRA"):
        combined([veneer.state(adapted(variant="dora"))], [1.0])


# 12. Heads


def test_a_trained_head_is_not_saved_or_not_loaded(tmp_path):
    """https://github.com/huggingface/peft/issues/577 and https://github.com/huggingface/transformers/issues/26160"""
    model = adapted(train_also=["score", "aux_score"])
    assert {n for n, p in model.named_parameters() if p.requires_grad and "score" in n} == {
        f"{head}.{leaf}" for head in ("score", "aux_score") for leaf in ("weight", "bias")
    }
    veneer.save(model, tmp_path)
    torch.manual_seed(0)
    twin = Net()
    veneer.load(twin, tmp_path)
    assert torch.equal(twin(x_of(twin)), model(x_of(model)))


def test_a_frozen_head_is_not_mentioned():
    """https://github.com/huggingface/peft/issues/876"""
    for targets in ("all-linear", ["query"]):
        said = str(veneer.plan(Net(), LoraConfig(r=3, targets=targets)))
        assert "left out: score (output head, frozen; train_also would train it)" in said


# 13. What is trained


def test_an_adapter_loaded_frozen_becomes_trainable_by_being_used():
    """https://github.com/huggingface/peft/issues/2759 and https://github.com/huggingface/peft/issues/3580"""
    adapter = veneer.state(adapted(train_also=["score"]))
    torch.manual_seed(0)
    model = Net()
    veneer.load_state(model, adapter)
    for use in (veneer.disabled, veneer.merged):
        with use(model):
            pass
    veneer.set_strength(model, 0.5)
    veneer.swap(model, adapter)
    model.train()
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("use", [veneer.disabled, veneer.merged])
def test_choosing_what_acts_chooses_what_is_trained(use):
    """https://github.com/huggingface/peft/issues/3487"""
    model = adapted(train_also=["score"], bias="lora_only")
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with use(model):
        pass
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert any(flags.values())


# 14. Layers


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


ATTENTION = {"targets": ["out_proj"], "parameters": ["in_proj_weight"]}


@pytest.mark.parametrize("train", [True, False])
def test_attention_adds_the_update_of_its_output_projection_twice(train):
    """https://github.com/huggingface/peft/pull/3774"""
    model = adapted(SelfAttention, **ATTENTION).train(train)
    torch.manual_seed(0)
    plain = SelfAttention()
    for name, slot in adapted_slots(model).items():
        weight = plain.get_parameter(name if name.endswith("weight") else f"{name}.weight")
        weight.data += 5 / 3 * (slot.update.B @ slot.update.A).detach()
    x = x_of(model, 2, 3, 8)
    near(model(x), plain(x))
    veneer.merge(model)
    near(model(x), plain(x))


def test_a_forward_pass_of_attention_changes_its_frozen_weights():
    """https://github.com/huggingface/peft/issues/2549"""
    model = adapted(SelfAttention, dtype=torch.bfloat16, **ATTENTION)
    before = snapshot(model)
    for _ in range(20):
        model(x_of(model, 2, 3, 8)).sum().backward()
    assert same(model, before)


def test_attention_ignores_dropout():
    """https://github.com/huggingface/peft/issues/2549"""
    with pytest.raises(TargetError, match="dropout"):
        veneer.adapt(SelfAttention(), LoraConfig(r=3, dropout=0.1, targets=["out_proj"]))


@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("options", [{"padding_mode": "reflect"}, {"groups": 2}, {"dilation": 2}])
def test_a_merged_convolution_computes_something_else(cls, options):
    """https://github.com/huggingface/peft/issues/3697; loralib's Conv1d and Conv3d cannot run at all"""
    model = adapted(lambda: nn.Sequential(cls(4, 6, 3, padding=2, **options)), targets=["0"])
    x = x_of(model, 2, 4, *[7] * (model[0].weight.ndim - 2))
    expected = model(x)
    veneer.merge(model)
    near(model(x), expected)


# loralib


def test_loralibs_eval_returns_nothing():
    """`loralib/layers.py`, `train` of each layer; https://github.com/microsoft/LoRA"""
    layer = adapted().blocks[0].query
    assert layer.eval() is layer
    assert layer.train() is layer


def test_loralibs_state_dict_taken_in_eval_mode_is_merged_twice_on_reload():
    """`loralib/layers.py`, `train`; https://github.com/microsoft/LoRA"""
    model = adapted()
    taken = snapshot(model.eval())
    assert same(model.train(), taken)
    twin = adapted().train()
    twin.load_state_dict(taken)
    assert torch.equal(twin.eval()(x_of(twin)), model.eval()(x_of(model)))


def test_loralibs_model_without_dropout_cannot_be_pickled():
    """`loralib/layers.py`, `LoRALayer`: a lambda; https://github.com/microsoft/LoRA"""
    model = adapted(dropout=0.0)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x_of(model)), model(x_of(model)))


def test_loralibs_merged_linear_crashes_where_no_slice_is_adapted():
    """`loralib/layers.py`, `MergedLinear.forward`; https://github.com/microsoft/LoRA"""
    with pytest.raises(ConfigError, match="one of them True"):
        LoraConfig(fused={"qkv": (False, False, False)})


# 15. Ranks and what is noted of them


@pytest.mark.parametrize("setting", [{"r": 2}, {"r": 6}, {"rank_pattern": {"query": 4}}])
def test_the_settings_say_another_rank_than_the_tensors(setting, tmp_path):
    """https://github.com/huggingface/peft/issues/3738"""
    veneer.save(adapted(), tmp_path)
    path = tmp_path / SETTINGS
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    with pytest.raises(AdapterFormatError, match="with r ="):
        veneer.load(Net(), tmp_path)


def test_swapping_adapters_leaves_stale_settings(tmp_path):
    """https://github.com/huggingface/peft/issues/3581"""
    model, other = adapted(), adapted(r=3, alpha=9, seed=4)
    with pytest.raises(AdapterMismatchError, match="shape"):
        veneer.swap(model, veneer.state(adapted(r=2)))
    veneer.swap(model, veneer.state(other))
    veneer.save(model, tmp_path)
    torch.manual_seed(0)
    twin = Net()
    veneer.load(twin, tmp_path)
    assert torch.equal(model(x_of(model)), other(x_of(model)))
    near(twin(x_of(twin)), other(x_of(other)))


# Runners-up


def test_with_gradient_checkpointing_nothing_is_trained():
    """https://github.com/locuslab/open-unlearning/issues/178, https://github.com/huggingface/transformers/issues/42489"""
    shape = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**shape, **no_dropout, vocab_size=31)).train()
    ids = torch.randint(0, 31, (2, 5))
    veneer.adapt(model, LoraConfig(r=3))
    stir(model)
    gradients = []
    for enable in (lambda: None, model.activation_checkpointing_enable):
        enable()
        model.zero_grad()
        model(ids).logits.square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    assert model.is_gradient_checkpointing
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        near(gradients[1][name], gradient)


@pytest.mark.parametrize("setting", [{"r": 0}, {"r": -1}, {"r": 1.5}, {"dropout": 1.5}, {"r": True}, {"alpha": 0}])
def test_a_setting_that_makes_no_sense_fails_later_or_never(setting):
    """Measured in PEFT 0.21.2: refused at injection at best."""
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is"):
        LoraConfig(**setting)


def test_a_rank_above_the_smaller_side_is_accepted():
    """Measured in PEFT 0.21.2: r=512 on a layer of 64 x 64."""
    with pytest.raises(TargetError, match="r=6 is larger"):
        veneer.adapt(Net(), LoraConfig(r=6))


def test_the_adapted_model_is_no_longer_of_its_class_and_its_keys_have_changed():
    """https://github.com/huggingface/peft/issues/932 and https://github.com/huggingface/peft/issues/2945"""
    keys = list(Net().state_dict())
    for undo in (veneer.merge, veneer.remove):
        model = adapted()
        assert type(model) is Net
        undo(model)
        assert list(model.state_dict()) == keys
        assert {type(module) for module in model.modules()} == {Net, Block, nn.Sequential, nn.Linear}


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_statistics_of_frozen_batch_norms_drift(momentum):
    """Documented in PEFT as a limit: they move in training and are not in the adapter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5, momentum=momentum), nn.Linear(5, 7))
    model(x_of(model))  # some statistics
    before, expected = snapshot(model), copy.deepcopy(model).eval()(x_of(model))
    statistics = {name: model[1].get_buffer(name).clone() for name in ("running_mean", "running_var")}
    veneer.adapt(model, LoraConfig(r=3))
    for _ in range(3):
        model.train()(x_of(model) + 5)
    assert all(torch.equal(model[1].get_buffer(name), value) for name, value in statistics.items())
    veneer.remove(model)
    assert same(model, before)
    assert model[1].momentum == momentum
    assert torch.equal(model.eval()(x_of(model)), expected)


def test_a_model_on_the_meta_device_gets_an_adapter_without_values():
    """https://github.com/huggingface/peft/issues/3039"""
    trained = adapted()
    with torch.device("meta"):
        model = Net()
    veneer.load_state(model, veneer.state(trained))
    torch.manual_seed(0)
    base = Net().state_dict()
    for name, slot in adapted_slots(model).items():
        slot.base.load_state_dict({leaf: base[f"{name}.{leaf}"] for leaf in ("weight", "bias")}, assign=True)
    for head in ("score", "aux_score"):
        model.get_submodule(head).load_state_dict(
            {leaf: base[f"{head}.{leaf}"] for leaf in ("weight", "bias")}, assign=True
        )
    assert torch.equal(model(x_of(model)), trained(x_of(trained)))

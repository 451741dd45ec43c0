"""Parameter counts of the paper's models (arXiv 2106.09685v2, Tables 2 to 4 and 15), on the meta device.

LoRA's, and those of the methods it is compared with.
"""

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, DebertaV2Config, GPT2Config, RobertaConfig

import veneer
from veneer import LoraConfig
from veneer.methods.settings import MethodSettings

ROBERTA_BASE = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
ROBERTA_LARGE = {
    **ROBERTA_BASE,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
DEBERTA_XXL = {
    "vocab_size": 128100,
    "hidden_size": 1536,
    "num_hidden_layers": 48,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
}


def on_meta(config):
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def plan_of(model, targets, r):
    return veneer.plan(model, LoraConfig(r=r, targets=targets), ["classifier"])


@pytest.mark.parametrize(
    ("shape", "num_labels", "r", "lora", "trainable", "base"),
    [
        (ROBERTA_BASE, 2, 8, 294_912, 887_042, 124_647_170),
        (ROBERTA_BASE, 3, 8, 294_912, 887_811, 124_647_939),
        (ROBERTA_BASE, 2, 1, 36_864, 628_994, 124_647_170),
        (ROBERTA_BASE, 2, 4, 147_456, 739_586, 124_647_170),
        (ROBERTA_BASE, 2, 16, 589_824, 1_181_954, 124_647_170),
        (ROBERTA_LARGE, 2, 8, 786_432, 786_432 + 1_051_650, 355_361_794),
    ],
)
def test_roberta_with_query_and_value(shape, num_labels, r, lora, trainable, base):
    model = on_meta(RobertaConfig(**shape, num_labels=num_labels))
    the_plan = plan_of(model, ["query", "value"], r)
    assert the_plan.lora_parameters == lora
    assert the_plan.trainable_parameters == trainable
    assert the_plan.base_parameters == base
    veneer.adapt(model, LoraConfig(r=r, targets=["query", "value"]), ["classifier"])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert sum(p.numel() for p in model.parameters()) == base + lora


@pytest.mark.parametrize(("r", "lora"), [(16, 4_718_592), (8, 2_359_296)])
def test_deberta_xxl_needs_rank_16_for_the_papers_4_7_million(r, lora):
    """Table 2 prints 4.7M; Table 10's r=8 would give half of it. The scripts use r=16."""
    model = on_meta(DebertaV2Config(**DEBERTA_XXL, num_labels=2))
    assert plan_of(model, ["query_proj", "value_proj"], r).lora_parameters == lora


class SplitAttention(nn.Module):
    """GPT-2's attention with query, key and value apart, as loralib's MergedLinear treats c_attn."""

    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))


@pytest.mark.parametrize(("layers", "width", "lora"), [(24, 1024, 393_216), (36, 1280, 737_280)])
def test_gpt2_medium_and_large_by_the_formula(layers, width, lora):
    """Table 3 prints 0.35M and 0.77M; r=4 on query and value gives these counts instead (2 L d r per matrix)."""
    with torch.device("meta"):
        model = nn.ModuleList([SplitAttention(width) for _ in range(layers)])
    assert veneer.plan(model, LoraConfig(r=4, targets=["query", "value"])).lora_parameters == lora


@pytest.mark.parametrize(
    ("targets", "r", "lora"),
    [
        (["value"], 2, 4_718_592),
        (["query", "value"], 1, 4_718_592),
        (["query", "value"], 4, 18_874_368),
        (["query"], 8, 18_874_368),
        (["query", "value"], 8, 37_748_736),
        (["query", "value"], 64, 301_989_888),
    ],
)
def test_gpt3_by_the_formula(targets, r, lora):
    """Tables 4, 5 and 15: d = 12288, 96 layers."""
    with torch.device("meta"):
        model = nn.ModuleList([SplitAttention(12288) for _ in range(96)])
    assert veneer.plan(model, LoraConfig(r=r, targets=targets)).lora_parameters == lora


ROBERTA_HEAD, GPT_HEAD = ("classifier",), ("score",)
BASE, LARGE = (RobertaConfig(**shape, num_labels=2) for shape in (ROBERTA_BASE, ROBERTA_LARGE))
MEDIUM, GPT2_LARGE, GPT3 = (
    GPT2Config(n_layer=layers, n_embd=width, n_head=heads, n_positions=2048, pad_token_id=0, num_labels=2)
    for layers, width, heads in ((24, 1024, 16), (36, 1280, 20), (96, 12288, 96))
)


def counts_of(config, name, sizes, r=8):
    head = ROBERTA_HEAD if config.model_type == "roberta" else GPT_HEAD
    settings = MethodSettings(method=name, sizes=tuple(sizes.items()), r=r)
    return settings.attach(on_meta(config), model_type=config.model_type, head=head)


@pytest.mark.parametrize(
    ("config", "name", "sizes", "parameters"),
    [
        (LARGE, "pfeiffer", {"r": 16}, 811_392),  # Table 2: 0.8M
        (LARGE, "houlsby", {"r": 8}, 835_968),  # 0.8M
        (BASE, "pfeiffer", {"r": 48}, 894_528),  # 0.9M
        (BASE, "adapterdrop", {"r": 48, "dropped_blocks": 8}, 298_176),  # 0.3M
        (BASE, "bitfit", {}, 102_144),  # 0.1M
        (MEDIUM, "lin", {"r": 6}, 368_784),  # Table 3: 0.37M
        (MEDIUM, "lin", {"r": 224}, 11_089_152),  # 11.09M
        (GPT2_LARGE, "lin", {"r": 8}, 875_808),  # 0.88M
        (GPT2_LARGE, "lin", {"r": 248}, 23_002_848),  # 23.00M
        (MEDIUM, "top2", {}, 25_192_448),  # 25.19M
        (GPT3, "prefix-embed", {"prefix_tokens": 256, "infix_tokens": 8}, 3_244_032),  # Table 4: 3.2M
        (GPT3, "prefix-layer", {"prefix_tokens": 8, "infix_tokens": 8}, 18_874_368),  # 20.2M in print
        (GPT3, "houlsby", {"r": 1}, 7_078_080),  # Tables 4 and 15: 7.1M
        (GPT3, "houlsby", {"r": 4}, 21_234_432),
        (GPT3, "houlsby", {"r": 8}, 40_109_568),  # 40.1M
        (GPT3, "houlsby", {"r": 16}, 77_859_840),
        (GPT3, "houlsby", {"r": 64}, 304_361_472),
    ],
)
def test_the_methods_that_lora_is_compared_with(config, name, sizes, parameters):
    """The head is trained besides and not counted, as in the paper."""
    assert counts_of(config, name, sizes).other == parameters


def test_bitfit_with_the_biases_of_the_head():
    model = on_meta(BASE)
    in_head = sum(p.numel() for name, p in model.classifier.named_parameters() if name.endswith("bias"))
    assert counts_of(BASE, "bitfit", {}).other + in_head == 102_914


@pytest.mark.parametrize(("r", "parameters"), [(8, 37_896_192), (64, 302_137_344)])
def test_lora_with_prefix_embedding_on_gpt3(r, parameters):
    """Table 15 prints 37.8M and 302.1M; query and value of its fused projection have rank r each."""
    counts = counts_of(GPT3, "lora-prefix-embed", {"prefix_tokens": 8, "infix_tokens": 4}, r)
    assert counts.lora + counts.other == parameters
    assert counts.other == 12 * 12288

"""The models that the paper adapts, as shapes without weights, and what our methods train in them.

Everything happens on the meta device: no value exists, so even 1.5 billion parameters are counted in a second. GPT-3
was never published; its counts come from formulas.
"""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from transformers import (
    AutoModelForSequenceClassification,
    DebertaV2Config,
    GPT2Config,
    PretrainedConfig,
    RobertaConfig,
)

from veneer.lora.targets import HEAD_NAMES
from veneer.methods.settings import MethodSettings


def _roberta(width: int, blocks: int) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=50_265,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
    )


def _deberta_xxl() -> DebertaV2Config:
    return DebertaV2Config.from_dict(
        {
            "vocab_size": 128_100,
            "hidden_size": 1536,
            "num_hidden_layers": 48,
            "num_attention_heads": 24,
            "intermediate_size": 6144,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "max_relative_positions": -1,
        }
    )


def gpt2_shape(width: int, blocks: int, heads: int) -> GPT2Config:
    """Return GPT-2's configuration: 1024, 24, 16 is GPT-2 medium."""
    return GPT2Config(n_embd=width, n_layer=blocks, n_head=heads)


CONFIGS: Mapping[str, Callable[[], PretrainedConfig]] = {
    "RoBERTa base": lambda: _roberta(768, 12),
    "RoBERTa large": lambda: _roberta(1024, 24),
    "DeBERTa XXL": _deberta_xxl,
    "GPT-2 medium": lambda: gpt2_shape(1024, 24, 16),
    "GPT-2 large": lambda: gpt2_shape(1280, 36, 20),
}
"""Name to configuration; the sizes are those of the published checkpoints."""


@cache
def counted(model: str, method: MethodSettings) -> int:
    """Return how many parameters the method trains, without those of the head, as the paper counts."""
    config = CONFIGS[model]()
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    head = [name for name, _ in classifier.named_children() if name in {*HEAD_NAMES, "pooler"}]
    counts = method.attach(classifier, model_type=str(config.model_type), head=head)
    return counts.trainable - counts.head

"""The models and batches that are measured. Nothing here is trained or timed.

MiniLM comes with its pretrained weights. The others are built from their configuration, with random weights of the
same shapes: the time of a step does not depend on what the weights are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    LlamaConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from benchmarks.harness import device
from veneer.data.sources import find_model
from veneer.errors import unknown_name
from veneer.training.models import load_classifier

LABELS = ("negative", "positive")
HEAD: Mapping[str, Any] = {"num_labels": len(LABELS)}
"""What a configuration without a checkpoint is told of the head."""
SPECIAL_TOKENS = 5
"""Ids below are padding and marks in every vocabulary used here."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A classifier and the batch it is trained on."""

    title: str
    head: str
    """Name of the newly initialised module, trained whole."""
    rows: int
    tokens: int
    vocabulary: int
    load: Callable[[str], PreTrainedModel]
    """The model on the CPU in float32, for a kind of attention."""
    usual_attention: str = "sdpa"
    """What transformers takes where it is not told: "sdpa", or "eager" for the families that have nothing else."""
    note: str = ""
    """What a reader must know of the weights."""

    def build(self, attention: str) -> PreTrainedModel:
        """Return the classifier in float32, equal at each call, with "eager" or "sdpa" attention."""
        torch.manual_seed(0)
        model: PreTrainedModel = self.load(attention).to(device())  # type: ignore[arg-type]  # wrapped without types
        return model

    def batch(self) -> dict[str, Tensor]:
        """Return the batch, equal at each call: token ids and mask (rows, tokens), labels (rows,)."""
        dice = torch.Generator().manual_seed(0)
        ids = torch.randint(SPECIAL_TOKENS, self.vocabulary, (self.rows, self.tokens), generator=dice)
        labels = torch.randint(len(LABELS), (self.rows,), generator=dice)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return {name: tensor.to(device()) for name, tensor in batch.items()}


def _random(config: PretrainedConfig) -> Callable[[str], PreTrainedModel]:
    def load(attention: str) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
        return model

    return load


def _minilm(attention: str) -> PreTrainedModel:
    return load_classifier(find_model("minilm"), LABELS, seed=0, attention=attention).model


def find_workload(name: str, tokens: int | None) -> Workload:
    """Return the workload of this short name, with its own number of tokens or the one given.

    Raises:
        UnknownNameError: there is no such workload.
    """
    if name not in _WORKLOADS:
        raise unknown_name("workload", name, _WORKLOADS)
    return _WORKLOADS[name](tokens)


_WORKLOADS: Mapping[str, Callable[[int | None], Workload]] = {
    "minilm": lambda tokens: Workload(
        title="MiniLM-L6 (22.7 M)", head="classifier", rows=32, tokens=tokens or 32, vocabulary=30522, load=_minilm
    ),
    "mpnet": lambda tokens: Workload(
        title="MPNet-base (110 M)",
        head="classifier",
        rows=16,
        tokens=tokens or 64,
        vocabulary=30527,
        load=_random(MPNetConfig(vocab_size=30527, max_position_embeddings=514, **HEAD)),
        usual_attention="eager",
        note="MPNet-base has random weights of the published model's shapes.",
    ),
    "smollm2": lambda tokens: Workload(
        title="SmolLM2-135M (134 M)",
        head="score",
        rows=8,
        tokens=tokens or 64,
        vocabulary=49152,
        load=_random(
            LlamaConfig(
                vocab_size=49152,
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                max_position_embeddings=8192,
                tie_word_embeddings=True,
                pad_token_id=0,
                **HEAD,
            )
        ),
        note="SmolLM2-135M has random weights of the published model's shapes, and is a classifier, as the tool "
        "trains it: no output layer over the vocabulary.",
    ),
}


def large_encoder(layers: int, *, dtype: torch.dtype = torch.float32, on: torch.device | None = None) -> BertModel:
    """Return a BERT of width 1024, in eval mode: 335 M parameters with 24 layers; equal at each call."""
    config = BertConfig(
        hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=4096, vocab_size=30522
    )
    torch.manual_seed(0)
    with on or device():
        model: BertModel = BertModel(config).to(dtype).eval()  # type: ignore[arg-type]  # wrapped without its types
    return model


def many_layers(layers: int, *, width: int = 64, experts: int = 16) -> nn.Module:
    """Return `layers` x `experts` x 7 small linear layers, named as a mixture of experts' are; no forward pass."""

    def expert() -> nn.Module:
        return nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in PROJECTIONS})

    stack = nn.ModuleList(
        nn.ModuleDict({"experts": nn.ModuleList(expert() for _ in range(experts))}) for _ in range(layers)
    )
    return nn.ModuleDict({"layers": stack}).to(device())

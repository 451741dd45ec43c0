"""From text to batches of token ids, and from batches to logits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from veneer.data.splits import Examples

Features = dict[str, list[int] | int | float]
"""`input_ids`, the tokenizer's other inputs, and `labels` where the class, or the number to predict, is known."""

BATCH_SIZE = 64
"""Rows of one forward pass where nothing is trained."""


def encode(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str], max_tokens: int
) -> list[Features]:
    """Return one entry a row, unpadded, cut to `max_tokens`; classes become their place in `labels`."""
    pairs = None if examples.pairs is None else list(examples.pairs)
    encoded = tokenizer(list(examples.texts), pairs, truncation=True, max_length=max_tokens, padding=False)
    rows: list[Features] = [
        {key: encoded[key][row] for key in encoded if key != "attention_mask"} for row in range(len(examples))
    ]
    if examples.labels is not None:
        number_of = {label: number for number, label in enumerate(labels)}
        for row, label in zip(rows, examples.labels, strict=True):
            row["labels"] = number_of[label]
    if examples.targets is not None:
        for row, target in zip(rows, examples.targets, strict=True):
            row["labels"] = target
    return rows


def collator(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Features]], dict[str, Tensor]]:
    """Return a function that pads rows to the longest of their batch."""

    def collate(rows: list[Features]) -> dict[str, Tensor]:
        inputs = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
        batch: dict[str, Tensor] = dict(tokenizer.pad(inputs, return_tensors="pt"))  # type: ignore[arg-type]
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch

    return collate


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass computes in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def predict_logits(
    model: nn.Module, rows: Sequence[Features], tokenizer: PreTrainedTokenizerBase, *, precision: str
) -> Float[Tensor, "rows classes"]:
    """Return the logits of every row in float32, in the given order; the model is in eval mode afterwards.

    Rows of like length share a batch, so little is padded. Equal rows on one machine give equal logits.
    """
    model.eval()
    device = next(model.parameters()).device
    outputs: dict[int, Tensor] = {}
    for indices, batch in _batches(rows, tokenizer):
        inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
        with torch.inference_mode(), autocast(device, precision):
            logits = model(**inputs).logits.float().cpu()
        outputs.update(zip(indices, logits, strict=True))
    return torch.stack([outputs[index] for index in range(len(rows))])


def _batches(
    rows: Sequence[Features], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], Mapping[str, Tensor]]]:
    collate = collator(tokenizer)
    by_length = sorted(range(len(rows)), key=lambda index: _length(rows[index]))
    for start in range(0, len(rows), BATCH_SIZE):
        indices = by_length[start : start + BATCH_SIZE]
        yield indices, collate([rows[index] for index in indices])


def _length(row: Features) -> int:
    tokens = row["input_ids"]
    assert isinstance(tokens, list)
    return len(tokens)

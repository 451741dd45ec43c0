"""Laws of encoding and scoring: what is cut, what is padded, and that neither order nor company of rows matters."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.cli.tiny import KEYWORDS, make_rows, make_tokenizer
from veneer.data.splits import Examples
from veneer.training.encoding import BATCH_SIZE, collator, encode, predict_logits

LABELS = sorted(KEYWORDS)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def classifier(tiny):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=3, dtype=torch.float32)


def examples(num_rows):
    texts, pairs, labels = zip(*make_rows(num_rows, seed=1), strict=True)
    return Examples(texts=texts, pairs=pairs, labels=labels)


@pytest.mark.parametrize("max_tokens", [4, 7, 100])
def test_rows_are_cut_to_the_tokens_asked_for_and_not_padded(tokenizer, max_tokens):
    rows = examples(12)
    for pairs in (None, rows.pairs):
        given = Examples(texts=rows.texts, pairs=pairs, labels=rows.labels)
        encoded = encode(given, tokenizer, labels=LABELS, max_tokens=max_tokens)
        whole = [
            tokenizer(text, None if pairs is None else pairs[number])["input_ids"]
            for number, text in enumerate(rows.texts)
        ]
        assert [len(row["input_ids"]) for row in encoded] == [min(len(ids), max_tokens) for ids in whole]
        assert all(row["input_ids"][0] == tokenizer.cls_token_id for row in encoded)
        assert [row["input_ids"] for row in encoded if max_tokens == 100] == [ids for ids in whole if max_tokens == 100]


def test_classes_become_their_place_among_the_labels(tokenizer):
    rows = examples(9)
    for labels in (LABELS, LABELS[::-1]):
        encoded = encode(rows, tokenizer, labels=labels, max_tokens=9)
        assert [labels[row["labels"]] for row in encoded] == list(rows.labels)
    unlabelled = Examples(texts=rows.texts)
    assert all("labels" not in row for row in encode(unlabelled, tokenizer, labels=LABELS, max_tokens=9))


def test_a_batch_is_padded_to_its_longest_row_and_says_where(tokenizer):
    rows = encode(examples(6), tokenizer, labels=LABELS, max_tokens=30)
    batch = collator(tokenizer)(rows)
    lengths = [len(row["input_ids"]) for row in rows]
    assert batch["input_ids"].shape == (6, max(lengths))
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert batch["labels"].tolist() == [row["labels"] for row in rows]


def test_logits_depend_on_neither_the_order_nor_the_company_of_rows(classifier, tokenizer):
    """More rows than a batch, of many lengths: shuffled, and one at a time, each row keeps its logits."""
    rows = encode(examples(BATCH_SIZE + 7), tokenizer, labels=LABELS, max_tokens=30)
    classifier.train()
    logits = predict_logits(classifier, rows, tokenizer, precision="float32")
    assert not classifier.training
    assert logits.dtype == torch.float32
    assert torch.equal(predict_logits(classifier, rows, tokenizer, precision="float32"), logits)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = predict_logits(classifier, [rows[index] for index in order], tokenizer, precision="float32")
    torch.testing.assert_close(shuffled, logits[order], rtol=1e-5, atol=1e-6)
    alone = torch.cat([predict_logits(classifier, [row], tokenizer, precision="float32") for row in rows[:9]])
    torch.testing.assert_close(alone, logits[:9], rtol=1e-5, atol=1e-6)


def test_logits_are_the_models_own(classifier, tokenizer):
    rows = examples(5)
    encoded = encode(Examples(texts=rows.texts), tokenizer, labels=LABELS, max_tokens=30)
    with torch.inference_mode():
        expected = classifier.eval()(**tokenizer(list(rows.texts), padding=True, return_tensors="pt")).logits
    logits = predict_logits(classifier, encoded, tokenizer, precision="float32")
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)

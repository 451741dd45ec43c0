"""Laws of loading: what counts as the head, what cannot be a classifier, and how much a model can read."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from tests.cli.tiny import make_tokenizer
from veneer.data.sources import ModelSource
from veneer.errors import ConfigError, DataError
from veneer.training.models import load_classifier, new_modules, readable_tokens

SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
TOKENIZER = make_tokenizer()
BERT = BertConfig(**SIZES, vocab_size=len(TOKENIZER), max_position_embeddings=33)
ROBERTA = RobertaConfig(**SIZES, vocab_size=len(TOKENIZER), max_position_embeddings=33, pad_token_id=1)
BERT_3 = BertConfig(**SIZES, vocab_size=len(TOKENIZER), max_position_embeddings=33, num_labels=3)


@pytest.fixture
def load(tmp_path):
    """A function that saves a model and loads it as a classifier of three classes."""

    def saved_and_loaded(model, seed=0):
        model.save_pretrained(tmp_path)
        TOKENIZER.save_pretrained(tmp_path)
        source = ModelSource(name="mine", location=str(tmp_path), hub_id="mine")
        return load_classifier(source, ("a", "b", "c"), seed=seed, attention="eager")

    return saved_and_loaded


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (BertModel(BERT), ("classifier",)),
        (BertModel(BERT, add_pooling_layer=False), ("bert.pooler", "classifier")),
        (RobertaModel(ROBERTA, add_pooling_layer=False), ("classifier",)),
        (BertForSequenceClassification(BERT_3), ("classifier",)),  # a head of the right size that came with the model
        (BertForSequenceClassification(BERT), ("classifier",)),  # for two classes: of no use for three
    ],
    ids=["bert", "bert without pooler", "roberta", "its own head", "a head for other classes"],
)
def test_the_head_is_the_topmost_modules_that_are_new(load, model, head):
    classifier = load(model)
    assert classifier.head == head
    assert classifier.model.config.num_labels == 3
    assert not classifier.model.training
    assert {parameter.dtype for parameter in classifier.model.parameters()} == {torch.float32}


def test_a_head_that_came_with_the_model_is_kept_and_the_seed_draws_the_others(load):
    own = BertForSequenceClassification(BERT_3)
    kept = load(own)
    assert not kept.is_head_new
    assert torch.equal(kept.model.classifier.weight, own.classifier.weight)
    encoder = BertModel(BERT)
    first, again, other = (load(encoder, seed=seed) for seed in (1, 1, 2))
    assert first.is_head_new
    assert torch.equal(first.model.classifier.weight, again.model.classifier.weight)
    assert not torch.equal(first.model.classifier.weight, other.model.classifier.weight)
    assert torch.equal(first.model.bert.pooler.dense.weight, encoder.pooler.dense.weight)


def test_new_modules_are_never_inside_one_another():
    model = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 5)), nn.ReLU())
    names = {name for name, _ in model.named_parameters()}
    assert new_modules(model, names - {"0.weight"}) == ("1",)
    assert new_modules(model, {"1.0.weight", "1.0.bias", "1.1.weight"}) == ("1.0",)
    assert new_modules(model, names) == ("0", "1")
    assert new_modules(model, set()) == ()


def test_a_model_most_of_whose_weights_are_missing_is_refused(load, tmp_path):
    with pytest.raises(DataError, match="weights are missing"):
        load(nn_of_another_family(tmp_path))


def nn_of_another_family(folder):
    """A model that claims to be BERT, and holds none of its weights."""

    class Pretender(BertModel):
        def save_pretrained(self, path):
            super().save_pretrained(path)
            from safetensors.torch import save_file

            save_file({"something.else": torch.zeros(3)}, path / "model.safetensors", metadata={"format": "pt"})

    return Pretender(BERT)


@pytest.mark.parametrize(
    ("model", "positions"),
    [
        (BertForSequenceClassification(BERT), 33),
        (RobertaForSequenceClassification(ROBERTA), 33 - 2),  # its positions begin behind the padding's, 1
        (
            DistilBertForSequenceClassification(
                DistilBertConfig(dim=12, n_layers=1, n_heads=3, hidden_dim=20, vocab_size=31, max_position_embeddings=9)
            ),
            9,
        ),
        (nn.Linear(3, 2), 1000),
    ],
    ids=["bert", "roberta", "distilbert", "no table"],
)
def test_a_model_reads_up_to_its_last_position_and_no_further(model, positions):
    assert readable_tokens(model, 1000) == positions
    assert readable_tokens(model, 5) == 5
    if positions < 1000:
        ids = torch.full((1, positions), 3)
        model.eval()(input_ids=ids)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, positions + 1), 3))


def test_trained_tokens_leave_less_room_for_text_and_must_leave_some():
    model = BertForSequenceClassification(BERT)
    assert readable_tokens(model, 1000, added=29) == 4
    assert readable_tokens(model, 3, added=29) == 3
    with pytest.raises(ConfigError, match="30 trained tokens leave no room for text in the model's 33 positions"):
        readable_tokens(model, 3, added=30)
    assert readable_tokens(nn.Linear(3, 2), 5, added=99) == 5

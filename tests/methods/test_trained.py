"""Laws of every method on every family: what changes, what trains, what is saved, and the way back."""

import copy
import pickle

import pytest
import torch

import veneer
from tests.methods.families import (
    BASELINES,
    CASES,
    CLASSES,
    HEADS,
    PADDING,
    UNCHANGED_AT_THE_START,
    attached,
    ids,
    shaken,
    tiny,
)
from veneer.errors import AdapterMismatchError, AdapterStateError
from veneer.methods.trained import detach, load_trained_state, trained_state

each_case = pytest.mark.parametrize(("name", "family"), CASES)
ONE_EACH = [("bert", "houlsby"), ("mpnet", "pfeiffer"), ("gpt2", "lora-prefix-layer"), ("llama", "prefix-embed")]


@each_case
def test_the_output_at_the_start_is_the_plain_models_but_for_trained_tokens(name, family):
    model = tiny(family)
    before = model(ids()).logits
    attached(model, name, family)
    after = model(ids()).logits
    assert after.shape == before.shape == (4, CLASSES)
    assert torch.equal(after, before) == (name in UNCHANGED_AT_THE_START)


@each_case
def test_gradients_flow_to_all_that_is_trained_and_to_nothing_else(name, family):
    model = tiny(family)
    counts = attached(model, name, family)
    names = trained_state(model)
    shaken(model)(ids()).logits.logsumexp(1).sum().backward()
    reached = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    unread = set() if family != "deberta-v2" else {"deberta.embeddings.position_embeddings.weight"}
    assert reached <= trainable <= reached | unread
    assert len(names) == len(trainable)
    assert counts.trainable == sum(tensor.numel() for tensor in names.values())
    assert counts.trainable == counts.lora + counts.head + counts.other


@each_case
def test_detach_puts_the_very_modules_back_and_every_value_but_full_fine_tunings(name, family):
    model = tiny(family)
    next(model.parameters()).requires_grad_(False)
    modules = dict(model.named_modules())
    flags = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    before = model(ids()).logits
    attached(model, name, family)
    shaken(model)(ids())
    detach(model)
    assert {key: id(module) for key, module in model.named_modules()} == {key: id(m) for key, m in modules.items()}
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == flags
    if name != "full":
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in model.state_dict().items())
        assert torch.equal(model(ids()).logits, before)
    attached(model, name, family)  # as often as one likes


@each_case
def test_what_is_trained_goes_into_a_fresh_model_and_gives_the_same_output(name, family):
    model, fresh = tiny(family), tiny(family)
    attached(model, name, family)
    shaken(model)
    attached(fresh, name, family, seed=5)
    state = trained_state(model)
    load_trained_state(fresh, state)
    shaken(model, seed=8)  # what was taken out is a copy
    load_trained_state(model, state)
    assert torch.equal(fresh(ids()).logits, model(ids()).logits)


@each_case
def test_names_are_the_plain_models_where_it_has_them(name, family):
    plain, model = dict(tiny(family).named_parameters()), tiny(family)
    attached(model, name, family)
    new = {key for key in trained_state(model) if key not in plain}
    assert all(any(part in key for part in (".update.", ".bottleneck.", ".rows")) for key in new)
    assert not any(".base." in key for key in trained_state(model))
    assert set(HEADS[family]) <= {key.split(".")[0] for key in trained_state(model)}


@each_case
def test_a_deep_copy_and_a_pickle_act_alone_and_can_be_detached(name, family):
    model = tiny(family)
    plain = model(ids()).logits
    attached(model, name, family)
    shaken(model)
    before = model(ids()).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        shaken(twin, seed=9)
        assert not torch.equal(twin(ids()).logits, before)
        assert torch.equal(model(ids()).logits, before)
        detach(twin)
        assert torch.equal(twin(ids()).logits, plain) or name == "full"
        assert torch.equal(model(ids()).logits, before)


@each_case
def test_state_dict_goes_round(name, family):
    model, fresh = tiny(family), tiny(family, seed=3)
    for each in (model, fresh):
        attached(each, name, family)
    fresh.load_state_dict(shaken(model).state_dict())
    assert torch.equal(fresh(ids()).logits, model(ids()).logits)


@each_case
def test_bfloat16_autocast_runs_near_float32_and_trains_in_float32(name, family):
    model = tiny(family)
    attached(model, name, family)
    exact = shaken(model)(ids()).logits
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(ids()).logits
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max() + 0.1
    rounded.float().logsumexp(1).sum().backward()
    assert {p.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_base_in_bfloat16_stays_so_and_what_is_added_is_float32(name, family):
    model, exact = tiny(family, dtype=torch.bfloat16), tiny(family)
    exact.load_state_dict(model.state_dict())
    attached(model, name, family)
    attached(exact, name, family)
    state = trained_state(shaken(exact))
    load_trained_state(model, state)
    logits, expected = model(ids()).logits, exact(ids()).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max() + 0.1
    plain = dict(tiny(family).named_parameters())
    added = {t.dtype for key, t in trained_state(model).items() if key not in plain}
    assert added == (set() if name in {"bitfit", "top2"} else {torch.float32})


@each_case
def test_a_right_padded_batch_gives_each_row_what_it_gets_alone(name, family):
    model = tiny(family, dtype=torch.float64)
    attached(model, name, family)
    shaken(model)
    lengths, tolerance = (7, 3, 5, 1), 1e-5 if family == "llama" else 1e-10  # whose norms compute in float32
    batch, mask = ids(), torch.zeros(4, 7, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        batch[row, length:] = PADDING
    together = model(batch, attention_mask=mask).logits
    for row, length in enumerate(lengths):
        alone = model(input_ids=batch[row : row + 1, :length]).logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_gradient_checkpointing_changes_no_gradient(name, family):
    gradients = []
    for checkpointed in (False, True):
        model = tiny(family).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        attached(model, name, family)
        shaken(model)
        if checkpointed:
            model.activation_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model(ids()).logits.logsumexp(1).sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(("family", "name"), ONE_EACH)
def test_the_mode_reaches_the_new_modules(family, name):
    model = tiny(family)
    attached(model, name, family)
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("family", "name"), ONE_EACH)
def test_every_problem_with_loaded_weights_is_named_and_nothing_is_written(family, name):
    model = tiny(family)
    attached(model, name, family)
    before = trained_state(model)
    first, second, *_ = before
    wrong = {**before, "no.such.weight": torch.zeros(1), second: torch.zeros(99)}
    del wrong[first]
    with pytest.raises(AdapterMismatchError) as caught:
        load_trained_state(model, {key: tensor + 1 for key, tensor in wrong.items()})
    assert f"{first} is missing" in str(caught.value)
    assert "no.such.weight is not trained" in str(caught.value)
    assert f"{second} has shape (99,)" in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in trained_state(model).items())


@pytest.mark.parametrize("name", ["houlsby", "prefix-embed", "lora-prefix-layer"])
def test_verbs_of_lora_refuse_a_model_with_other_parts(name, tmp_path):
    model = tiny("bert")
    attached(model, name, "bert")
    before = shaken(model)(ids()).logits

    def disable():
        with veneer.disabled(model):
            pass

    for verb in (
        lambda: veneer.save(model, tmp_path / "adapter"),
        lambda: veneer.state(model),
        lambda: veneer.merge(model),
        lambda: veneer.remove(model),
        disable,
    ):
        with pytest.raises(AdapterStateError, match=r"parts of a method that is not LoRA alone.*trained_state"):
            verb()
    assert torch.equal(model(ids()).logits, before)
    assert not any(tmp_path.iterdir())
    detach(model)


def test_detach_within_disabled_is_refused_and_changes_nothing():
    model = tiny("bert")
    attached(model, "lora-qv", "bert")
    before = shaken(model)(ids()).logits
    with veneer.disabled(model), pytest.raises(AdapterStateError, match="leave the block first"):
        detach(model)
    assert torch.equal(model(ids()).logits, before)
    detach(model)


@pytest.mark.parametrize("name", ["full", "head", "houlsby"])
def test_a_model_that_is_adapted_already_is_refused(name):
    model = tiny("bert")
    veneer.adapt(model, veneer.LoraConfig(r=2, targets=["query"]))
    before = trained_names(model)
    with pytest.raises(
        AdapterStateError, match=r"adapted already; call veneer\.remove\(model\) or veneer\.merge\(model\)"
    ):
        attached(model, name, "bert")
    assert trained_names(model) == before


def trained_names(model):
    return [key for key, parameter in model.named_parameters() if parameter.requires_grad]


def test_one_method_at_a_time():
    model = tiny("bert")
    for verb in (trained_state, detach):
        with pytest.raises(AdapterStateError, match="no method is attached"):
            verb(model)
    attached(model, "lin", "bert")
    with pytest.raises(AdapterStateError, match="detach first"):
        attached(model, "bitfit", "bert")

"""Trained tokens against plain models that are handed the embeddings, and against PEFT's prompt and prefix tuning."""

import threading
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch

from tests.methods.families import (
    BLOCKS,
    CLASSES,
    HEADS,
    HIDDEN,
    PADDING,
    POSITIONS,
    PREFIXES,
    WITHOUT_POSITIONS,
    WORDS,
    attached,
    ids,
    shaken,
    tiny,
    tiny_settings,
)
from veneer.errors import ConfigError
from veneer.methods.anatomy import ANATOMIES, block_names
from veneer.methods.prefix import PrefixConfig, _sampled_words
from veneer.methods.trained import detach, trained_state

LP, LI = 4, 3


def rows_of(model):
    """The trained rows by block: the word embedding's first."""
    return [tensor for name, tensor in trained_state(model).items() if name.endswith(".rows")]


def around(text, own, family):
    """Embeddings (rows, tokens, d) with the trained ones in their places."""
    before, after = (part.expand(len(text), -1, -1) for part in (own[:LP], own[LP:]))
    split = 1 if ANATOMIES[family].pools_first else 0
    return torch.cat([text[:, :split], before, text[:, split:], after], dim=1)


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize(("name", "blocks"), [("prefix-embed", 1), ("prefix-layer", BLOCKS)])
def test_the_count_is_the_papers_formula(name, blocks, family):
    counts = attached(tiny(family), name, family, prefix_tokens=LP, infix_tokens=LI)
    assert counts.other == blocks * HIDDEN * (LP + LI)
    assert tiny_settings(name, prefix_tokens=LP, infix_tokens=LI).chosen.added_tokens == LP + LI


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("name", ["prefix-embed", "prefix-layer"])
def test_the_output_is_the_plain_models_with_these_embeddings_and_block_inputs(name, family):
    model, plain = tiny(family, dtype=torch.float64), tiny(family, dtype=torch.float64)
    attached(model, name, family, prefix_tokens=LP, infix_tokens=LI)
    shaken(model)
    first, *deeper = rows_of(model)
    plain.load_state_dict(
        {key: t for key, t in trained_state(model).items() if not key.endswith(".rows")}, strict=False
    )

    def put(rows):
        def hook(block, args):
            text = args[0][:, [0, *range(LP + 1, LP + 7)]] if ANATOMIES[family].pools_first else args[0][:, LP : LP + 7]
            return (around(text, rows, family), *args[1:])

        return hook

    for block, rows in zip(block_names(plain, ANATOMIES[family])[1:], deeper, strict=False):
        plain.get_submodule(block).register_forward_pre_hook(put(rows))
    embedded = around(plain.get_input_embeddings()(ids()), first, family)
    expected = plain(inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long)).logits
    torch.testing.assert_close(model(ids()).logits, expected)


def beside_peft(name, family, config):
    """A decoder with a trained prefix, and PEFT's on the same model with the same head; its prefix is still its own."""
    model, plain = tiny(family), tiny(family)
    attached(model, name, family, prefix_tokens=LP, infix_tokens=0)
    shaken(model)
    plain.score.load_state_dict(model.score.state_dict())
    return model, peft.get_peft_model(plain, config(task_type="SEQ_CLS", num_virtual_tokens=LP)).eval()


def beside_prompt_tuning(family):
    """The same with PEFT's prompt tuning of our rows. In an encoder it is another: its prompt stands before [CLS]."""
    model, theirs = beside_peft("prefix-embed", family, peft.PromptTuningConfig)
    theirs.prompt_encoder["default"].embedding.load_state_dict({"weight": rows_of(model)[0]})
    return model, theirs


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prompt_tuning_is_pefts(family):
    model, theirs = beside_prompt_tuning(family)
    logits, expected = model(ids()).logits, theirs(ids(), attention_mask=torch.ones_like(ids())).logits
    torch.testing.assert_close(logits, expected)
    for each in (logits, expected):
        each.square().sum().backward()
    gradient = model.get_input_embeddings().rows.grad
    torch.testing.assert_close(gradient, theirs.prompt_encoder["default"].embedding.weight.grad)


@pytest.mark.parametrize(("family", "side"), [("gpt2", "right"), ("llama", "right"), ("llama", "left")])
def test_a_padded_batch_is_pefts_prompt_tuning_of_each_text_alone(family, side):
    """PEFT's own padded batch is no oracle: its prompt stands before left padding, and its head reads right padding.

    Left padding shifts GPT-2's positions, with a prefix or without.
    """
    model, theirs = beside_prompt_tuning(family)
    mask = torch.arange(7) < torch.tensor([[7], [5], [3], [1]])
    mask = mask if side == "right" else mask.flip(1)
    texts = [row[kept][None] for row, kept in zip(ids(), mask, strict=True)]
    expected = torch.cat([theirs(text, attention_mask=torch.ones_like(text)).logits for text in texts])
    logits = model(ids().where(mask, PADDING), attention_mask=mask.long()).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_prefix_layer_is_pefts_prefix_tuning_with_the_keys_and_values_of_its_rows():
    """Prefix tuning (Li and Liang) trains keys and values, of which those that blocks make of rows are some."""
    model, theirs = beside_peft("prefix-layer", "gpt2", peft.PrefixTuningConfig)
    first, *deeper = rows_of(model)
    decoder = theirs.base_model.transformer
    inputs = [first + decoder.wpe.weight[:LP], *deeper]
    made = [block.attn.c_attn(block.ln_1(rows))[:, HIDDEN:] for block, rows in zip(decoder.h, inputs, strict=True)]
    theirs.prompt_encoder["default"].embedding.load_state_dict({"weight": torch.cat(made, dim=1)})
    mask = torch.ones_like(ids())
    mask[1, 3:] = 0
    text = ids().where(mask.bool(), PADDING)
    logits, expected = (each(text, attention_mask=mask).logits for each in (model, theirs))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prefix_layer_starts_where_prefix_embed_does_in_a_decoder(family):
    """Tokens in front see no text, so what the model makes of them alone is what it makes of them before a text."""
    outputs = []
    for name in ("prefix-embed", "prefix-layer"):
        model = tiny(family, dtype=torch.float64)
        attached(model, name, family, prefix_tokens=LP, infix_tokens=0)
        outputs.append(model(ids()).logits)
    torch.testing.assert_close(outputs[1], outputs[0])


def test_the_start_is_the_same_from_a_model_in_training_whose_mode_and_generator_are_left_alone():
    starts = []
    for training in (False, True):
        model = tiny("bert").train(training)
        block = model.bert.encoder.layer[1]
        block.output.dropout.train(not training)
        before = torch.get_rng_state()
        attached(model, "prefix-layer", "bert")
        assert torch.equal(torch.get_rng_state(), before)
        assert model.bert.training == training
        assert block.training == training
        assert block.output.dropout.training != training
        starts.append(rows_of(model))
    assert all(torch.equal(one, other) for one, other in zip(*starts, strict=True))


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("name", PREFIXES)
def test_every_row_is_trained_also_in_a_padded_batch(name, family):
    model = tiny(family)
    attached(model, name, family)
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[1, 3:] = 0
    model(ids(), attention_mask=mask).logits.logsumexp(1).sum().backward()
    for key, parameter in model.named_parameters():
        if key.endswith(".rows"):
            assert (parameter.grad.abs().sum(1) > 0).all(), key


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_both_implementations_of_attention_agree(family):
    model = tiny(family)
    attached(model, "lora-prefix-layer", family)
    shaken(model)
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[2, 4:] = 0
    eager = model(ids(), attention_mask=mask).logits
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(ids(), attention_mask=mask).logits, eager, rtol=1e-4, atol=1e-5)


def test_left_padding_gives_what_no_padding_gives():
    model = tiny("llama")  # in float64 transformers' own mask of left padding gives NaN
    attached(model, "lora-prefix-layer", "llama", infix_tokens=2)
    shaken(model)
    padded = torch.cat([torch.full((4, 3), PADDING), ids()], dim=1)
    mask = (torch.arange(10) >= 3).long().expand(4, -1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits, model(ids()).logits, rtol=1e-4, atol=1e-5)


def test_segments_are_those_of_the_tokens_beside():
    model, plain = tiny("bert", dtype=torch.float64), tiny("bert", dtype=torch.float64)
    attached(model, "prefix-embed", "bert", prefix_tokens=LP, infix_tokens=LI)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1]]).expand(4, -1)
    with_own = torch.tensor([[0] * (LP + 3) + [1] * (4 + LI)]).expand(4, -1)
    embedded = around(plain.get_input_embeddings()(ids()), rows_of(model)[0], "bert")
    expected = plain(inputs_embeds=embedded, token_type_ids=with_own).logits
    torch.testing.assert_close(model(ids(), token_type_ids=segments).logits, expected)
    torch.testing.assert_close(model(ids(), None, segments).logits, expected)


def test_the_start_is_words_of_the_vocabulary_but_the_padding():
    model = tiny("bert")
    words = model.get_input_embeddings()
    attached(model, "prefix-embed", "bert", prefix_tokens=6, infix_tokens=4)
    found = [(words.weight == row).all(1).nonzero().flatten().tolist() for row in rows_of(model)[0]]
    assert all(len(each) == 1 for each in found)
    drawn = _sampled_words(words, 2000, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == set(range(WORDS)) - {PADDING}


@pytest.mark.parametrize("family", [family for family in HEADS if family not in WITHOUT_POSITIONS])
def test_texts_may_fill_the_positions_and_no_more(family):
    model = tiny(family)
    attached(model, "prefix-layer", family, prefix_tokens=LP, infix_tokens=LI)
    assert model(ids(2, POSITIONS - LP - LI)).logits.shape == (2, CLASSES)
    with pytest.raises(ConfigError, match=r"17 tokens and 7 trained ones exceed.*23 positions; cut texts to 16 tokens"):
        model(ids(2, POSITIONS - LP - LI + 1))


def test_a_model_without_a_table_of_positions_has_no_such_limit():
    for family in ("llama", "deberta-v2"):
        model = tiny(family)
        attached(model, "prefix-embed", family)
        assert model(ids(2, POSITIONS)).logits.shape == (2, CLASSES)


def test_inputs_without_ids_or_with_positions_are_refused_with_every_reason():
    model = tiny("bert")
    attached(model, "prefix-embed", "bert")
    with pytest.raises(
        ConfigError, match=r"inputs_embeds is given(.|\n)*position_ids is given(.|\n)*input_ids is missing"
    ):
        model(inputs_embeds=torch.zeros(1, 2, HIDDEN), position_ids=torch.arange(2)[None])
    with pytest.raises(ConfigError, match=r"attention_mask has shape \(4, 7, 7\)"):
        model(ids(), attention_mask=torch.ones(4, 7, 7))
    model(ids())


def test_the_encoder_called_by_itself_is_the_plain_one():
    model = tiny("bert")
    before = model.bert(ids()).last_hidden_state
    attached(model, "prefix-layer", "bert")
    model(ids())
    assert torch.equal(model.bert(ids()).last_hidden_state, before)


def test_the_encoder_is_the_plain_one_also_after_a_call_that_failed():
    model = tiny("bert")
    before = model.bert(ids()).last_hidden_state
    attached(model, "prefix-layer", "bert")
    hook = model.classifier.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids())
    hook.remove()
    assert torch.equal(model.bert(ids()).last_hidden_state, before)


def test_threads_do_not_see_each_others_places():
    """One thread stands still inside its call while another makes a whole one, of other lengths."""
    model = tiny("bert")
    attached(model, "prefix-layer", "bert")
    shaken(model)
    mask = (torch.arange(9) < 4).long().expand(2, -1)
    expected = model(ids(2, 9)).logits
    inside, go_on = threading.Event(), threading.Event()

    def stop(module, args):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert go_on.wait(60)

    hook = model.bert.encoder.layer[0].register_forward_pre_hook(stop)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: model(ids(2, 9)).logits)
        assert inside.wait(60)
        model(ids(2, 9), attention_mask=mask)
        go_on.set()
        torch.testing.assert_close(waiting.result(60), expected)
    hook.remove()


@pytest.mark.parametrize("name", ["prefix-embed", "prefix-layer"])
def test_ids_beyond_the_vocabulary_are_errors_as_in_the_plain_model(name):
    model = tiny("bert")
    attached(model, name, "bert")
    for beyond in (0, 2, 100):
        text = ids()
        text[0, 3] = WORDS + beyond
        with pytest.raises(IndexError):
            model(text)


def test_settings_that_leave_no_token_or_no_room_are_refused_and_the_model_is_as_it_was():
    with pytest.raises(ConfigError, match="both 0"):
        PrefixConfig(prefix_tokens=0, infix_tokens=0, every_block=False)
    with pytest.raises(ConfigError, match="infix_tokens is -1"):
        PrefixConfig(prefix_tokens=1, infix_tokens=-1, every_block=False)
    model = tiny("bert")
    before = model(ids()).logits
    with pytest.raises(ConfigError, match=r"23 trained tokens leave no room.*23 positions; .*can be 22 at most"):
        attached(model, "lora-prefix-embed", "bert", prefix_tokens=20, infix_tokens=3)
    assert torch.equal(model(ids()).logits, before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_lora_and_prefix_are_both_there_and_both_act():
    model = tiny("bert")
    counts = attached(model, "lora-prefix-embed", "bert")
    assert counts.lora == 2 * BLOCKS * 3 * 2 * HIDDEN
    assert counts.other == 5 * HIDDEN
    shaken(model)
    before = model(ids()).logits
    for part in (".update.", ".rows"):
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.data.mul_(1.5)
        after = model(ids()).logits
        assert not torch.equal(after, before)
        before = after
    detach(model)

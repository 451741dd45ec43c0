"""Trained tokens around the text: prefix-embedding and prefix-layer tuning (LoRA paper, section 5.1).

l_p tokens stand before the text, the prefix, and l_i after it, the infix. They are none of the vocabulary's:

- PreEmbed trains their word embeddings: d (l_p + l_i) parameters.
- PreLayer trains what they are at the input of every block: L d (l_p + l_i). What a block makes of them is dropped.

A hook on the model puts ids beyond the vocabulary into `input_ids`, and lengthens `attention_mask` and
`token_type_ids` with them; the word embedding, wrapped, knows the rows of those ids. So positions, masks and pooling
stay the model's own business. In front of the text means before its first real token, or right behind it in an encoder,
whose classifier reads the first; behind the text means right after the last real token. Padding may be on either side.

Start: rows of the word embedding drawn evenly from the vocabulary (Lester et al., arXiv 2104.08691, section 3.2,
"sampled vocabulary"; they draw from the 5,000 most frequent tokens, which a model does not tell). Deeper inputs start
as what the model itself makes of those words alone (Li and Liang, arXiv 2101.00190, section 7.4, "activations of real
words"). Neither has the reparametrising network of Li and Liang: the LoRA paper counts none.

Only calls of the model itself get the tokens: calls of the encoder inside it are as they were.
"""

import inspect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.hooks import RemovableHandle

from veneer.errors import ConfigError, gathered
from veneer.lora.delta import trained_dtype
from veneer.lora.layers import AdaptedModule
from veneer.methods.anatomy import Anatomy, block_names, hidden_size, num_positions, part_name
from veneer.methods.sizes import require_counts


@dataclass(frozen=True, kw_only=True)
class PrefixConfig:
    """How many tokens are trained, and where.

    Raises:
        ConfigError: a number is outside what is allowed, or there is no token at all.
    """

    prefix_tokens: int
    """l_p, tokens before the text."""
    infix_tokens: int
    """l_i, tokens after the text."""
    every_block: bool
    """Whether they are trained at the input of every block (PreLayer), or of the first alone (PreEmbed)."""

    def __post_init__(self) -> None:
        require_counts(self, {"prefix_tokens": 0, "infix_tokens": 0})
        if not self.num_tokens:
            raise ConfigError("prefix_tokens and infix_tokens are both 0; there must be one token at least")

    @property
    def num_tokens(self) -> int:
        """How many tokens a text grows by."""
        return self.prefix_tokens + self.infix_tokens


class Places(threading.local):
    """Where the trained tokens stand in the call that a thread is in: calls in several threads know nothing of another.

    Attributes:
        now: (rows, l_p + l_i), the place of each; None while the model does not run.
    """

    now: Tensor | None = None

    def __reduce__(self) -> tuple[type["Places"], tuple[()]]:
        """Become new places in a copy."""
        return Places, ()


class Insertion:
    """The hooks on a model: they put the trained tokens into its inputs, and know where for as long as it runs.

    Args:
        config: how many tokens.
        first_id: id of the first trained token: the size of the vocabulary.
        after_first: whether the prefix stands behind the text's first token, which the model pools.
        max_positions: number of tokens that the model has positions for; None if it has no table of them.
    """

    def __init__(self, config: PrefixConfig, *, first_id: int, after_first: bool, max_positions: int | None) -> None:
        self.num_prefix, self.num_infix, self.num_own = config.prefix_tokens, config.infix_tokens, config.num_tokens
        self.first_id = first_id
        self.after_first = after_first
        self.max_positions = max_positions
        self.places = Places()

    def insert(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        """Return the model's inputs with the trained tokens among them: a forward pre-hook.

        Raises:
            ConfigError: the inputs are such that tokens cannot be put in, or too long with them.
        """
        given = {**kwargs, **dict(zip(inspect.signature(model.forward).parameters, args, strict=False))}
        self._require_insertable(given)
        ids: Tensor = given["input_ids"]
        mask, types = given.get("attention_mask"), given.get("token_type_ids")
        mask = torch.ones_like(ids) if mask is None else mask
        num_rows, num_tokens = ids.shape
        first = mask.ne(0).int().argmax(1, keepdim=True)
        last = num_tokens - 1 - mask.ne(0).int().flip(1).argmax(1, keepdim=True)
        before = (first + (0.25 if self.after_first else -0.25)).expand(-1, self.num_prefix)
        after = (last + 0.5).expand(-1, self.num_infix)
        column = torch.arange(num_tokens, device=ids.device).expand(num_rows, -1)
        order = torch.cat([column, before, after], dim=1).argsort(dim=1, stable=True)
        self.places.now = order.argsort(dim=1)[:, num_tokens:]
        own = self.first_id + torch.arange(self.num_own, device=ids.device).expand(num_rows, -1)
        ids = torch.where(ids < self.first_id, ids, ids + self.num_own)  # what no word has, no trained row has either
        given["input_ids"] = torch.cat([ids, own], dim=1).gather(1, order)
        given["attention_mask"] = torch.cat([mask, mask.new_ones(own.shape)], dim=1).gather(1, order)
        if types is not None:
            beside = [types.gather(1, first).expand_as(before), types.gather(1, last).expand_as(after)]
            given["token_type_ids"] = torch.cat([types, *beside], dim=1).gather(1, order)
        return (), given

    def forget(self, model: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Forget where the tokens stood: a forward hook."""
        self.places.now = None

    def _require_insertable(self, given: Mapping[str, Any]) -> None:
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        problems = [
            f"{name} is given; leave it to the model, which must count the trained tokens too"
            for name in ("inputs_embeds", "position_ids", "past_key_values")
            if given.get(name) is not None
        ]
        if ids is None:
            problems.append("input_ids is missing: the trained tokens stand among ids")
        elif mask is not None and mask.shape != ids.shape:
            problems.append(f"attention_mask has shape {tuple(mask.shape)}; it must be input_ids', {tuple(ids.shape)}")
        if ids is not None and self.max_positions is not None and ids.shape[1] + self.num_own > self.max_positions:
            problems.append(
                f"{ids.shape[1]} tokens and {self.num_own} trained ones exceed the model's {self.max_positions} "
                f"positions; cut texts to {self.max_positions - self.num_own} tokens"
            )
        if problems:
            raise ConfigError(gathered("trained tokens cannot be put into these inputs:", problems))


class TrainedTokens(AdaptedModule):
    """A word embedding with trained rows for the ids beyond its own.

    Args:
        base: the embedding of V words; it is not changed.
        rows: (l_p + l_i, d), the trained part.
    """

    def __init__(self, base: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.base = base
        self.rows = nn.Parameter(rows)
        self.follow_mode()

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (...) to embeddings (..., d)."""
        num_words: int = self.base.num_embeddings  # type: ignore[assignment]
        is_own = ids >= num_words
        words: Tensor = self.base(ids.masked_fill(is_own, 0))
        own = nn.functional.embedding((ids - num_words).clamp_min(0), self.rows)
        return torch.where(is_own.unsqueeze(-1), own.to(words.dtype), words)


class TrainedInputs(AdaptedModule):
    """A block whose inputs are trained where the trained tokens stand; as the block alone where none are put in.

    Args:
        base: the block.
        rows: (l_p + l_i, d), the trained part.
        insertion: knows the places.
    """

    def __init__(self, base: nn.Module, rows: Tensor, insertion: Insertion) -> None:
        super().__init__()
        self.base = base
        self.rows = nn.Parameter(rows)
        self.insertion = insertion
        self.follow_mode()

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the base's own signature
        """Map (rows, tokens, d) to what the base makes of it."""
        places = self.insertion.places.now
        if places is not None:
            index = places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
            hidden = hidden.scatter(1, index, self.rows.to(hidden.dtype).expand(index.shape))
        return self.base(hidden, *args, **kwargs)


def insert_tokens(
    model: nn.Module, anatomy: Anatomy, config: PrefixConfig, generator: Generator
) -> tuple[RemovableHandle, ...]:
    """Wrap the word embedding, and for PreLayer the blocks, in place; return the handles of the hooks.

    Raises:
        ConfigError: the model's table of positions has no room. Nothing has changed then.
    """
    words_name, blocks = part_name(model, anatomy.words), block_names(model, anatomy)
    words, num_own = model.get_submodule(words_name), config.num_tokens
    positions = num_positions(model)
    if positions is not None and num_own >= positions:
        raise ConfigError(
            f"{num_own} trained tokens leave no room for text in {positions} positions; prefix_tokens and infix_tokens "
            f"together can be {positions - 1} at most"
        )
    insertion = Insertion(
        config,
        first_id=int(words.num_embeddings),  # type: ignore[arg-type]
        after_first=anatomy.pools_first,
        max_positions=positions,
    )
    ids = _sampled_words(words, num_own, generator)
    deeper = blocks[1:] if config.every_block else []
    inputs = _block_inputs(model, [model.get_submodule(name) for name in deeper], ids)
    weight = words.weight
    assert isinstance(weight, Tensor)
    for name, rows in zip(deeper, inputs, strict=True):
        model.set_submodule(name, TrainedInputs(model.get_submodule(name), _start(rows, weight), insertion))
    model.set_submodule(words_name, TrainedTokens(words, _start(weight.detach()[ids], weight)))
    return (
        model.register_forward_pre_hook(insertion.insert, with_kwargs=True),
        model.register_forward_hook(insertion.forget, always_call=True),
    )


def _sampled_words(words: nn.Module, number: int, generator: Generator) -> Tensor:
    """Return `number` ids, any but the padding's."""
    weight, padding = words.weight, words.padding_idx
    assert isinstance(weight, Tensor)
    if not isinstance(padding, int):
        return torch.randint(weight.shape[0], (number,), generator=generator).to(weight.device)
    drawn = torch.randint(weight.shape[0] - 1, (number,), generator=generator)
    return (drawn + (drawn >= padding)).to(weight.device)


def _block_inputs(model: nn.Module, blocks: Sequence[nn.Module], ids: Tensor) -> list[Tensor]:
    """Return what each block is given, (tokens, d), when the model reads `ids` and nothing else."""
    if not blocks or ids.is_meta:  # on the meta device models cannot run, and values do not matter
        return [torch.empty(len(ids), hidden_size(model), device=ids.device) for _ in blocks]
    seen: list[Tensor] = []
    handles = [block.register_forward_pre_hook(lambda block, args: seen.append(args[0][0])) for block in blocks]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(input_ids=ids[None], attention_mask=torch.ones_like(ids[None]))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return seen


def _start(rows: Tensor, weight: Tensor) -> Tensor:
    """Return a copy of `rows` in the dtype that beside `weight` is trained in."""
    return rows.detach().to(trained_dtype(weight), copy=True)

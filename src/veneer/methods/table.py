"""The methods that are compared: each turns a pretrained classifier into one that trains only its own part.

All of them train the head, the newly initialised output layer. Learning rates are each method's own. LoRA's is ten to
twenty times full fine-tuning's, where its optimum lies over many models ("LoRA Without Regret", Thinking Machines 2025;
"LoRA Learns Less and Forgets Less", arXiv 2405.09673); the head alone is small and starts from nothing. With
MiniLM on rotten-tomatoes' validation rows these did better than 5e-3, 1e-3 (lora-all), 1e-4 (full), 3e-4 and 3e-3
(lora-qv).

The baselines' rates are where a search begins, and their sizes fit a MiniLM of six blocks, d = 384. The bottlenecks are
as large as LoRA with r = 8 on query and value, 73,728, within a tenth; the prefixes' sizes are among those of the LoRA
paper's Table 15. Rates: bottlenecks LoRA's, as in the paper's Table 9; prefixes 2.5 and 0.5 times LoRA's, as in its
Table 12; BitFit that of its authors' script (run_glue.py in benzakenelad/BitFit); the last blocks full fine-tuning's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from torch import Generator, nn
from torch.utils.hooks import RemovableHandle

from veneer.errors import AdapterStateError, ConfigError, unknown_name
from veneer.lora.config import ALL_LINEAR, LoraConfig
from veneer.lora.inject import adapt, remove
from veneer.lora.selectors import Terms
from veneer.lora.targets import require_plain
from veneer.lora.walk import named_modules
from veneer.methods.anatomy import Anatomy, anatomy_of, query_value
from veneer.methods.bottleneck import BottleneckConfig, insert_bottlenecks
from veneer.methods.prefix import PrefixConfig, insert_tokens
from veneer.methods.selective import BiasConfig, LastBlocksConfig, last_blocks, with_biases
from veneer.methods.trained import RECORD, Attached, named_weights

Part = BottleneckConfig | PrefixConfig | BiasConfig | LastBlocksConfig
"""What a method trains besides low-rank updates and the head, with its sizes."""
PROJECTIONS = ("query", "key", "value", "output")
"""Names of attention's projections in every family; see `low_rank`."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to fine-tune. Without targets and without a part of its own it trains every weight."""

    name: str
    about: str
    """What it trains besides the head, as the object of a sentence."""
    learning_rate: float
    """Peak learning rate if the user names none."""
    targets: Callable[[str], Terms] | None = None
    """Model family to the layers that get a low-rank update; None adapts no layer."""
    part: Part | None = None

    @property
    def trains_every_weight(self) -> bool:
        """Whether it is full fine-tuning."""
        return self.targets is None and self.part is None

    @property
    def has_updates(self) -> bool:
        """Whether low-rank updates are among what it trains."""
        return self.targets is not None and self.name != "head"

    @property
    def added_tokens(self) -> int:
        """By how many tokens it lengthens every text."""
        return self.part.num_tokens if isinstance(self.part, PrefixConfig) else 0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Parameters of a model that a method was attached to."""

    trainable: int
    lora: int
    head: int
    total: int

    @property
    def other(self) -> int:
        """What is trained besides low-rank updates and the head."""
        return self.trainable - self.lora - self.head


_EMBEDDED = PrefixConfig(prefix_tokens=32, infix_tokens=8, every_block=False)
_LAYERED = PrefixConfig(prefix_tokens=8, infix_tokens=8, every_block=True)
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(name="head", about="nothing more", learning_rate=2e-2, targets=lambda model_type: ()),
        Method(name="lora-qv", about="low-rank updates of query and value", learning_rate=1e-3, targets=query_value),
        Method(
            name="lora-all",
            about="low-rank updates of every linear layer",
            learning_rate=5e-4,
            targets=lambda model_type: ALL_LINEAR,
        ),
        Method(name="full", about="every weight", learning_rate=5e-5),
        Method(name="bitfit", about="every bias", learning_rate=1e-3, part=BiasConfig()),
        Method(name="top2", about="the last blocks, whole", learning_rate=5e-5, part=LastBlocksConfig()),
        Method(
            name="houlsby",
            about="two bottlenecks in each block, after attention and after the feed-forward",
            learning_rate=1e-3,
            part=BottleneckConfig(variant="houlsby", r=8),
        ),
        Method(
            name="pfeiffer",
            about="one bottleneck in each block, after the feed-forward",
            learning_rate=1e-3,
            part=BottleneckConfig(variant="pfeiffer", r=16),
        ),
        Method(
            name="lin",
            about="one bottleneck in each block, on its output, with a norm of its own",
            learning_rate=1e-3,
            part=BottleneckConfig(variant="lin", r=16),
        ),
        Method(
            name="adapterdrop",
            about="one bottleneck in each block but the first ones, after the feed-forward",
            learning_rate=1e-3,
            part=BottleneckConfig(variant="pfeiffer", r=24, dropped_blocks=2),
        ),
        Method(
            name="prefix-embed",
            about="the word embeddings of tokens before and after the text",
            learning_rate=2.5e-3,
            part=_EMBEDDED,
        ),
        Method(
            name="prefix-layer",
            about="what tokens before and after the text are at the input of every block",
            learning_rate=5e-4,
            part=_LAYERED,
        ),
        Method(
            name="lora-prefix-embed",
            about="low-rank updates, and the word embeddings of tokens before and after the text",
            learning_rate=1e-3,
            targets=query_value,
            part=replace(_EMBEDDED, prefix_tokens=8, infix_tokens=4),
        ),
        Method(
            name="lora-prefix-layer",
            about="low-rank updates, and what prefix-layer trains",
            learning_rate=1e-3,
            targets=query_value,
            part=replace(_LAYERED, infix_tokens=4),
        ),
    )
}
"""LoRA and what it is compared with by default, then what the LoRA paper compares it with and two combinations."""

INSERT: Mapping[type, Callable[[nn.Module, Anatomy, Any, Generator], tuple[RemovableHandle, ...]]] = {
    BottleneckConfig: insert_bottlenecks,
    PrefixConfig: insert_tokens,
}
"""Settings of a part that adds modules to what puts them in."""


def find_method(name: str) -> Method:
    """Return the method called `name`, or raise an `UnknownNameError` that lists all."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def sizes_of(method: Method) -> dict[str, int]:
    """Return the sizes of a method's own part by name; a method without such a part has none."""
    values = {field.name: getattr(method.part, field.name) for field in fields(method.part)} if method.part else {}
    return {name: value for name, value in values.items() if isinstance(value, int) and not isinstance(value, bool)}


def resized(method: Method, sizes: Mapping[str, Any]) -> Method:
    """Return `method` with other sizes of its own part, such as {"r": 16} or {"prefix_tokens": 64}.

    Raises:
        UnknownNameError: the part has no such size.
        ConfigError: a size is outside what is allowed.
    """
    known = sizes_of(method)
    for name in sizes:
        if name not in known:
            raise unknown_name(f"size of the method {method.name}", name, known)
    return replace(method, part=replace(method.part, **sizes)) if method.part and sizes else method


def low_rank(config: LoraConfig, model_type: str, weights: Sequence[str]) -> LoraConfig:
    """Return `config` with updates on these of `PROJECTIONS`.

    Where query, key and value are one layer, each that is chosen gets an update of rank r of its own (loralib's
    MergedLinear). Every linear layer is `LoraConfig`'s own default.

    Raises:
        ConfigError: the family is not known.
        UnknownNameError: there is no such projection.
    """
    anatomy = anatomy_of(model_type)
    places = (anatomy.query, anatomy.key, anatomy.value, anatomy.attention_output)
    names = dict(zip(PROJECTIONS, places, strict=True))
    for weight in weights:
        if weight not in names:
            raise unknown_name("projection", weight, names)
    targets = tuple(dict.fromkeys(names[weight] for weight in weights))
    slices = tuple(weight in weights for weight in PROJECTIONS[:3])
    fused = {anatomy.query: slices} if anatomy.is_fused and any(slices) else {}
    return replace(config, targets=targets, fused=fused)


def attach(model: nn.Module, method: Method, *, model_type: str, head: Sequence[str], config: LoraConfig) -> Counts:
    """Make `model` train by `method`, in place: `MethodSettings.attach` calls it, `trained.py` has the way back.

    Args:
        model: the pretrained classifier.
        method: what to train.
        model_type: the model's family, as in its config.json.
        head: names of the newly initialised modules.
        config: which layers get a low-rank update, none where the method has none, and its rank, scaling and so on;
            its seed draws every start.

    Raises:
        TargetError, ConfigError: the layers, or a module of the head, cannot be found or adapted. The model is as it
            was.
        AdapterStateError: a method is attached already, or an adapter is in the model.
    """
    if RECORD in vars(model):
        raise AdapterStateError("a method is attached to this model already; call detach first")
    modules = named_modules(model)
    require_plain(modules.values())
    if missing := [name for name in head if name not in modules]:
        raise ConfigError(f"the head names {', '.join(missing)}, which {type(model).__name__} has not; give full names")
    was_trainable = {name: weight.requires_grad for name, weight in named_weights(model).items()}
    lora = 0
    hooks: tuple[RemovableHandle, ...] = ()
    if method.trains_every_weight:
        model.requires_grad_(True)
    else:
        lora, hooks = _attach_parts(model, method.part, model_type=model_type, head=head, config=config)
    weights = named_weights(model)
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    setattr(model, RECORD, Attached(names=tuple(trained), was_trainable=was_trainable, hooks=hooks))
    return Counts(
        trainable=sum(weight.numel() for weight in trained.values()),
        lora=lora,
        head=sum(p.numel() for name in head for p in modules[name].parameters()),
        total=sum(weight.numel() for weight in weights.values()),
    )


def _attach_parts(
    model: nn.Module, part: Part | None, *, model_type: str, head: Sequence[str], config: LoraConfig
) -> tuple[int, tuple[RemovableHandle, ...]]:
    """Freeze the model, adapt its targets and put in the part; return LoRA's parameters and the handles of hooks."""
    insert = None
    if isinstance(part, BiasConfig):
        config = with_biases(model, head, config)
    elif isinstance(part, LastBlocksConfig):
        head = [*head, *last_blocks(model, model_type, part)]
    elif part is not None:
        insert = partial(INSERT[type(part)], model, anatomy_of(model_type), part)
    lora = adapt(model, config, head).lora_parameters
    if insert is None:
        return lora, ()
    try:
        return lora, insert(Generator().manual_seed(config.seed))
    except Exception:  # the start of deeper prefixes runs the model, which may raise anything
        remove(model)
        raise

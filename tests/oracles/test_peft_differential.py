"""Veneer beside the installed `peft`: outputs, gradients, merged weights and files, for every layer kind and variant.

Both libraries adapt copies of one small model. PEFT's values are carried over by hand, in the layout each kind has
there, so nothing of Veneer's own file reader stands between the two; the files have tests of their own below.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

import veneer
from veneer import LoraConfig
from veneer.lora.layers import adapted_slots

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft
    from peft.tuners.lora.layer import ParamWrapper

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:peft", "ignore::RuntimeWarning:peft", "ignore::FutureWarning:peft"
)

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2}
"""Allowed |ours - theirs| / |theirs|, Frobenius norms; bfloat16 has 8 bits, and PEFT rounds at other places."""
VARIANTS: Mapping[str, tuple[dict, dict]] = {
    "lora": ({}, {}),
    "rslora": ({"scaling": "rslora"}, {"use_rslora": True}),
    "dora": ({"variant": "dora"}, {"use_dora": True}),
}
"""Variant -> our settings, PEFT's."""


@dataclass(frozen=True)
class Sizes:
    """What hypothesis draws."""

    inside: int
    out: int
    r: int
    alpha: int
    batch: int
    kernel: int
    stride: int
    padding: int
    patterned: bool


SIZES = st.builds(
    Sizes,
    inside=st.integers(3, 9),
    out=st.integers(3, 9),
    r=st.integers(1, 3),
    alpha=st.integers(1, 9),
    batch=st.integers(1, 4),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    patterned=st.booleans(),
)


class Experts(nn.Module):
    """Three stacked pairs of matrices, inside -> out -> inside, each used by some of the rows."""

    def __init__(self, sizes, *, is_transposed):
        super().__init__()
        self.is_transposed = is_transposed
        up, down = (3, sizes.out, sizes.inside), (3, sizes.inside, sizes.out)
        self.gate_up_proj = nn.Parameter(torch.randn(down if is_transposed else up))
        self.down_proj = nn.Parameter(torch.randn(up if is_transposed else down))

    def forward(self, x):
        up, down = self.gate_up_proj, self.down_proj
        if self.is_transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        return torch.stack([torch.tanh(row @ up[i % 3].T) @ down[i % 3].T for i, row in enumerate(x)])


class SelfAttention(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.attention = nn.MultiheadAttention(size, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Shift(nn.Module):
    """A bias of a module that is not adapted."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1))

    def forward(self, x):
        return x + self.bias


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.tail = Shift()

    def forward(self, x):
        return self.tail(self.layer(x))


def flat(tensor):
    return tensor.flatten(1)


def stack_A(tensor):
    return tensor.view(3, -1, tensor.shape[1])


def stack_B(tensor):
    return tensor.view(tensor.shape[0], -1, 3).permute(2, 0, 1)


@dataclass(frozen=True)
class Case:
    """One layer kind: how it is built, fed, selected in both libraries, and laid out by PEFT."""

    make: Callable[[Sizes], nn.Module]
    feed: Callable[[Sizes], Tensor]
    ours: Mapping[str, object] = field(default_factory=lambda: {"targets": ["layer"]})
    theirs: Mapping[str, object] = field(default_factory=lambda: {"target_modules": ["layer"]})
    variants: tuple[str, ...] = tuple(VARIANTS)
    A: Callable[[Tensor], Tensor] = lambda tensor: tensor
    B: Callable[[Tensor], Tensor] = lambda tensor: tensor
    delta: Callable[[Tensor], Tensor] = lambda tensor: tensor


def conv(cls, dimensions):
    return Case(
        lambda s: cls(s.inside, s.out, (s.kernel + 1, *[s.kernel] * (dimensions - 1)), s.stride, s.padding),
        lambda s: torch.randn(s.batch, s.inside, *[5] * dimensions),
        A=flat,
        B=flat,
        delta=flat,
    )


def experts(*, is_transposed):
    leaves = ["layer.gate_up_proj", "layer.down_proj"]
    return Case(
        partial(Experts, is_transposed=is_transposed),
        lambda s: torch.randn(s.batch + 3, 2, s.inside),
        ours={"targets": [], "parameters": leaves},
        theirs={"target_modules": [], "target_parameters": leaves},
        variants=("lora", "rslora"),
        A=stack_A,
        B=stack_B,
        delta=(lambda delta: delta.transpose(1, 2)) if is_transposed else lambda delta: delta,
    )


CASES: Mapping[str, Case] = {
    "linear": Case(lambda s: nn.Linear(s.inside, s.out), lambda s: torch.randn(s.batch, 2, s.inside)),
    "linear without bias": Case(lambda s: nn.Linear(s.inside, s.out, bias=False), lambda s: torch.randn(2, s.inside)),
    "transposed": Case(
        lambda s: Conv1D(s.out, s.inside),
        lambda s: torch.randn(s.batch, 2, s.inside),
        theirs={"target_modules": ["layer"], "fan_in_fan_out": True},
        delta=lambda delta: delta.T,
    ),
    "embedding": Case(
        lambda s: nn.Embedding(s.inside, s.out, padding_idx=1),
        lambda s: torch.randint(0, s.inside, (s.batch, 3)),
        delta=lambda delta: delta.T,
    ),
    "conv1": conv(nn.Conv1d, 1),
    "conv2": conv(nn.Conv2d, 2),
    "conv3": conv(nn.Conv3d, 3),
    "experts": experts(is_transposed=False),
    "experts transposed": experts(is_transposed=True),
    "attention": Case(
        lambda s: SelfAttention(2 * s.inside),
        lambda s: torch.randn(s.batch, 3, 2 * s.inside),
        ours={"targets": ["layer.attention.out_proj"], "parameters": ["layer.attention.in_proj_weight"]},
        theirs={"target_modules": ["layer.attention"]},
        variants=("lora", "rslora"),
    ),
}
"""`target_modules=[]` beside `target_parameters` keeps PEFT from choosing modules itself."""

FEW = settings(max_examples=2, deadline=None, derandomize=True, phases=[Phase.generate])
"""Few for each cell of a large grid; shrinking would take longer than the whole of it."""

GRID = [
    (kind, variant, bias)
    for kind, case in CASES.items()
    for variant in case.variants
    for bias in ("none", "all", "lora_only")
]


def configs(kind, variant, bias, sizes):
    """Return our config and PEFT's; rank and alpha by pattern or directly."""
    case, (ours, theirs) = CASES[kind], VARIANTS[variant]
    r, alpha = (1, 2) if sizes.patterned else (sizes.r, sizes.alpha)
    chosen = [*case.ours["targets"], *case.ours.get("parameters", [])] if sizes.patterned else []
    keys = case.theirs.get("target_parameters", case.theirs["target_modules"]) if sizes.patterned else []
    our_patterns = {"rank_pattern": dict.fromkeys(chosen, sizes.r), "alpha_pattern": dict.fromkeys(chosen, sizes.alpha)}
    their_patterns = {"rank_pattern": dict.fromkeys(keys, sizes.r), "alpha_pattern": dict.fromkeys(keys, sizes.alpha)}
    return (
        LoraConfig(r=r, alpha=alpha, bias=bias, **our_patterns, **case.ours, **ours),
        peft.LoraConfig(r=r, lora_alpha=alpha, bias=bias, **their_patterns, **case.theirs, **theirs),
    )


def adapted_by_both(kind, variant, bias, sizes, dtype=torch.float32):
    """Return one base, a copy adapted here and one by PEFT, PEFT's trainable values random, and an input."""
    torch.manual_seed(0)
    base = Net(CASES[kind].make(sizes)).to(dtype)
    x = CASES[kind].feed(sizes)
    our_config, their_config = configs(kind, variant, bias, sizes)
    ours = copy.deepcopy(base)
    veneer.adapt(ours, our_config)
    theirs = randomise(peft.get_peft_model(copy.deepcopy(base), their_config))
    return base, ours, theirs, x.to(dtype) if x.is_floating_point() else x


def randomise(model):
    """Move everything trainable; attention's output projection is left without effect, see below."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)
            if "out_proj.lora_B" in name:
                parameter.zero_()
    return model


def wrappers(theirs):
    """Return PEFT's wrapper of each weight, by the name that we have for it."""
    found = {}
    for path, module in theirs.base_model.model.named_modules():
        name = path.replace(".base_layer", "")
        if isinstance(module, ParamWrapper):
            found[f"{name}.{module.parameter_name}"] = module
        elif isinstance(module, peft.tuners.lora.LoraLayer):
            found[f"{name}.in_proj_weight" if isinstance(module.get_base_layer(), nn.MultiheadAttention) else name] = (
                module
            )
    return found


def their_tensors(kind, theirs):
    """Return PEFT's parameters in pairs with a function that lays one out as ours, by our names for them."""
    case, found = CASES[kind], {}
    for name, wrapper in wrappers(theirs).items():
        if "default" in wrapper.lora_embedding_A:
            found[f"{name}.A"] = wrapper.lora_embedding_A["default"], case.A
            found[f"{name}.B"] = wrapper.lora_embedding_B["default"], case.B
        else:
            found[f"{name}.A"] = wrapper.lora_A["default"].weight, case.A
            found[f"{name}.B"] = wrapper.lora_B["default"].weight, case.B
        if wrapper.lora_magnitude_vector:
            found[f"{name}.magnitude"] = wrapper.lora_magnitude_vector["default"].weight, torch.flatten
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad and name.endswith("bias"):
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            found[plain] = parameter, lambda tensor: tensor
    return found


def our_tensors(ours):
    found = {
        f"{name}.{part}": parameter
        for name, slot in adapted_slots(ours).items()
        for part, parameter in slot.update.named_parameters()
    }
    biases = {name.replace(".base.", "."): p for name, p in ours.named_parameters() if "bias" in name}
    return found | {name: p for name, p in biases.items() if p.requires_grad}


def assert_near(ours, theirs, dtype):
    assert_all_near({"": (ours, theirs)}, dtype)


def assert_all_near(pairs, dtype):
    """In bfloat16 a small gradient is what larger terms leave of each other: the largest gives the scale."""
    sizes = {name: max(float(theirs.detach().double().norm()), 1e-2) for name, (_, theirs) in pairs.items()}
    for name, (ours, theirs) in pairs.items():
        assert ours.shape == theirs.shape
        size = max(sizes.values()) if dtype == torch.bfloat16 else sizes[name]
        relative = float((ours.double() - theirs.double()).detach().norm()) / size
        assert relative <= TOLERANCE[dtype], f"{name}: |difference| / |expected| = {relative:.2e}"


def output_and_gradients(model, x):
    """Return the output and the gradient at x; those of the parameters are left where they are."""
    model.zero_grad()
    inputs = x.clone().requires_grad_(x.is_floating_point())
    output = model(inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    return output.detach(), inputs.grad


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("kind", "variant", "bias"), GRID)
@FEW
@given(sizes=SIZES)
def test_outputs_gradients_and_merged_weights_are_pefts(kind, variant, bias, dtype, sizes):
    """In PEFT 0.21.2 attention adds the update of its output projection twice (pull request 3774), so that update is
    zero here, with its gradient compared all the same; `test_peers_faults.py` has the dense oracle for it."""
    _, ours, theirs, x = adapted_by_both(kind, variant, bias, sizes, dtype)
    counterparts, own = their_tensors(kind, theirs), our_tensors(ours)
    assert own.keys() == counterparts.keys()
    with torch.no_grad():
        for name, (parameter, laid_out) in counterparts.items():
            own[name].copy_(laid_out(parameter))
    for mode in (True, False):
        (output, at_x), (expected, expected_at_x) = (
            output_and_gradients(model.train(mode), x) for model in (ours, theirs)
        )
        assert output.dtype == expected.dtype
        assert_near(output, expected, dtype)
        gradients = {name: (own[name].grad, laid_out(p.grad)) for name, (p, laid_out) in counterparts.items()}
        if at_x is not None:
            gradients["x"] = at_x, expected_at_x
        assert_all_near(gradients, dtype)
    adapter = veneer.state(ours)
    for name, wrapper in wrappers(theirs).items():
        delta = CASES[kind].delta(wrapper.get_delta_weight("default").detach())
        assert_near(adapter.delta(name), delta, dtype)
    veneer.merge(ours)
    merged = dict(theirs.merge_and_unload().named_parameters())
    assert merged.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert_near(parameter.detach(), merged[name].detach(), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("kind", "variant", "bias"), GRID)
@FEW
@given(sizes=SIZES)
def test_files_go_both_ways(kind, variant, bias, dtype, sizes):
    base, _, theirs, x = adapted_by_both(kind, variant, bias, sizes, dtype)
    expected = theirs.eval()(x)
    ours = copy.deepcopy(base)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        veneer.load(ours, folder)
        assert_near(ours(x), expected, dtype)
        veneer.save(ours, f"{folder}/ours")
        again = peft.PeftModel.from_pretrained(copy.deepcopy(base), f"{folder}/ours").eval()
    assert_near(again(x), expected, dtype)  # attention drifts by a rounding with each of PEFT's own calls


class Classifier(nn.Module):
    """Embedding, two blocks of two layers, a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 7)
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(7, 5), "down": nn.Linear(5, 7)}) for _ in range(2))
        self.norm = nn.LayerNorm(7)
        self.classifier = nn.Linear(7, 3)

    def forward(self, ids):
        hidden = self.embed(ids)
        for block in self.blocks:
            hidden = hidden + block["down"](torch.tanh(block["up"](hidden)))
        return self.classifier(self.norm(hidden))


def tied_llama():
    shape = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
    return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=31, tie_word_embeddings=True, pad_token_id=0))


def bert():
    shape = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
    return BertForSequenceClassification(BertConfig(**shape, vocab_size=31, num_labels=3))


def logits(model, ids):
    output = model(ids)
    return output if isinstance(output, Tensor) else output.logits


EXTRAS = {
    "token rows": (Classifier, {"trainable_token_indices": {"embed": [2, 9]}, "target_modules": ["up"]}),
    "token rows out of order": (Classifier, {"trainable_token_indices": {"embed": [9, 2]}, "target_modules": ["up"]}),
    "token rows of tied embeddings": (
        tied_llama,
        {"trainable_token_indices": {"embed_tokens": [4, 30]}, "target_modules": ["q_proj"]},
    ),
    "a module whole": (Classifier, {"modules_to_save": ["classifier"], "target_modules": ["up", "down"]}),
    "modules whole, biases": (
        Classifier,
        {"modules_to_save": ["classifier", "norm"], "target_modules": ["up"], "bias": "all"},
    ),
    "an embedding whole": (
        Classifier,
        {"modules_to_save": ["embed"], "target_modules": r".*\.1\.up", "use_dora": True},
    ),
    "excluded": (Classifier, {"target_modules": ["up", "down"], "exclude_modules": r"blocks\.0\.down"}),
    "layers": (Classifier, {"target_modules": ["up"], "layers_to_transform": [1], "layers_pattern": "blocks"}),
    "patterns": (
        Classifier,
        {
            "target_modules": ["up", "down"],
            "rank_pattern": {r"blocks\.1\.up": 2, "down": 4},
            "alpha_pattern": {r"1\..*": 3},
            "use_rslora": True,
        },
    ),
    "all linear layers": (bert, {"target_modules": "all-linear", "task_type": "SEQ_CLS"}),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_file_of_pefts_computes_and_trains_here_as_there(name, tmp_path):
    make, chosen = EXTRAS[name]
    torch.manual_seed(0)
    base, ids = make(), torch.randint(0, 11, (3, 6))
    theirs = randomise(peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=3, lora_alpha=5, **chosen))).eval()
    theirs.save_pretrained(tmp_path)
    ours = copy.deepcopy(base).eval()
    the_plan = veneer.load(ours, tmp_path, trainable=True)
    expected = logits(theirs, ids)
    assert_near(logits(ours, ids), expected, torch.float32)
    assert the_plan.trainable_parameters == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    for model in (ours, theirs):
        logits(model, ids).square().mean().backward()
    total = [
        sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) for model in (ours, theirs)
    ]
    assert total[0] == pytest.approx(total[1], rel=1e-4)  # each gradient by name: see above and test_peft_agreement.py
    veneer.save(ours, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
    assert_near(logits(again, ids), expected, torch.float32)
    veneer.merge(ours)
    assert_near(logits(ours, ids), expected, torch.float32)
    assert_near(logits(theirs.merge_and_unload(), ids), expected, torch.float32)


@pytest.mark.parametrize(
    "ours",
    [
        {"targets": "all-linear"},
        {"targets": "all-linear", "exclude": ["query"]},
        {"targets": ["query", "dense"], "exclude": [r"layer.1.attention.self.query"]},
        {"targets": r".*\.(query|key)", "exclude": r".*layer\.0.*"},
        {"targets": ["output.dense", "word_embeddings"]},
    ],
    ids=str,
)
def test_the_same_selectors_select_the_same_layers(ours):
    torch.manual_seed(0)
    model = bert()
    chosen = [target.name for target in veneer.plan(model, LoraConfig(r=3, **ours), ["classifier"]).targets]
    config = peft.LoraConfig(
        r=3, target_modules=ours["targets"], exclude_modules=ours.get("exclude"), task_type="SEQ_CLS"
    )
    assert chosen == list(wrappers(peft.get_peft_model(model, config)))


@pytest.mark.parametrize(
    "options", [{"dilation": 2}, {"padding_mode": "reflect"}, {"groups": 3}, {"dilation": 2, "groups": 3}]
)
@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_convolutions_that_peft_gets_wrong_are_the_dense_ones(cls, options, variant):
    """PEFT's A has neither the dilation nor the padding mode of its base, and with groups another meaning than the
    merged kernel (issues 2549 and 3697 of huggingface/peft), so the oracle is a convolution with the dense kernel."""
    torch.manual_seed(0)
    net = Net(cls(6, 9, 3, padding=2, **options))
    plain = copy.deepcopy(net)
    veneer.adapt(net, LoraConfig(r=2, alpha=5, targets=["layer"], variant=variant))
    update = adapted_slots(randomise(net))["layer"].update
    kernel = plain.layer.weight + 5 / 2 * (update.B @ update.A).view(plain.layer.weight.shape).detach()
    if variant == "dora":
        rows = kernel.flatten(1)
        kernel = (update.magnitude.detach() / rows.norm(dim=1)).unsqueeze(1).mul(rows).view(kernel.shape)
    plain.layer.weight = nn.Parameter(kernel)
    x = torch.randn(2, 6, *[7] * (kernel.ndim - 2))
    assert_near(net(x), plain(x), torch.float32)
    veneer.merge(net)
    assert_near(net.layer.weight, kernel, torch.float32)

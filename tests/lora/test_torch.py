"""An adapted model is an ordinary module: compile, autocast, checkpointing, DDP, moves, state_dict, meta."""

import copy
import gc
import os
import pickle

import jaxtyping
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import veneer
from veneer import LoraConfig
from veneer.lora import kinds
from veneer.lora.layers import adapted_slots

from .test_kinds import stir

VARIANTS = [{}, {"variant": "dora"}, {"init": "pissa"}, {"fused": {"wide": (True, False, True)}}, {"train_A": False}]


class Net(nn.Module):
    """One of each common kind."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 7)
        self.wide = nn.Linear(7, 12)
        self.conv = nn.Conv1d(12, 6, 3, padding=1)
        self.out = nn.Linear(6, 5)

    def forward(self, ids):
        hidden = torch.tanh(self.wide(self.embed(ids)))
        hidden = torch.tanh(self.conv(hidden.transpose(1, 2)).transpose(1, 2))
        return self.out(hidden)


TARGETS = ["embed", "wide", "conv", "out"]


def adapted(**settings):
    torch.manual_seed(0)
    net = Net()
    veneer.adapt(net, LoraConfig(**{"r": 2, "targets": TARGETS, **settings}))
    return stir(net), torch.randint(0, 11, (3, 6))


def gradients(net):
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.fixture
def without_shape_checks():
    """The checks of the tests' shape annotations are no code that can be compiled."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_it_compiles_whole_and_neither_strength_nor_another_adapter_compiles_it_again(settings, mode):
    net, ids = adapted(**settings)
    net.train(mode == "train")
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(ids), net(ids))
    net.zero_grad()
    compiled(ids).square().sum().backward()
    ours = gradients(net)
    net.zero_grad()
    net(ids).square().sum().backward()
    assert ours.keys() == gradients(net).keys()
    assert all(torch.allclose(ours[name], g, rtol=1e-3, atol=1e-4) for name, g in gradients(net).items())
    veneer.set_strength(net, 0.5)
    torch.testing.assert_close(compiled(ids), net(ids))
    veneer.set_strength(net, 1)
    if settings.get("init") != "pissa":
        other = veneer.state(stir(copy.deepcopy(net), seed=3))
        before = compiled(ids)
        veneer.swap(net, other)
        assert not torch.allclose(before, compiled(ids), atol=1e-3)
        torch.testing.assert_close(compiled(ids), net(ids))
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own
@pytest.mark.usefixtures("without_shape_checks")
def test_a_layer_compiles_alone_under_autocast_whatever_made_its_input():
    torch.manual_seed(0)
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(7, 5))
    veneer.adapt(net, LoraConfig(r=2))
    x = 2 * torch.randn(4, 7, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = net(x)
        net[0].compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_trains_the_adapter_without_extra_calls(settings, reentrant):
    net, ids = adapted(**settings)
    net(ids).square().sum().backward()
    expected = gradients(net)
    net.zero_grad()
    hidden = net.embed(ids)  # adapted, so it carries gradients into the checkpointed part
    part = nn.Sequential(net.wide, nn.Tanh())
    hidden = checkpoint(part, hidden, use_reentrant=reentrant)
    hidden = torch.tanh(net.conv(hidden.transpose(1, 2)).transpose(1, 2))
    net.out(hidden).square().sum().backward()
    assert gradients(net).keys() == expected.keys()
    for name, gradient in expected.items():
        rounding = 1e-5 * float(gradient.abs().max())  # of sums of terms of either sign
        torch.testing.assert_close(gradients(net)[name], gradient, rtol=1e-5, atol=rounding)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_under_autocast_the_gradients_are_those_of_float32_within_its_rounding(settings):
    net, ids = adapted(**settings)
    net(ids).square().mean().backward()
    expected = gradients(net)
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        net(ids).float().square().mean().backward()
    for name, gradient in gradients(net).items():
        assert gradient.dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0) > 0.95


class Siblings(nn.Module):
    """Three layers that read one input, which is made in float32."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 7)
        self.q, self.k, self.v = (nn.Linear(7, 5) for _ in range(3))

    def forward(self, x):
        x = self.first(x).float() * 2
        return self.q(x) * self.k(x) + self.v(x)


def test_under_autocast_layers_that_read_one_input_keep_one_copy_of_it():
    torch.manual_seed(0)
    net = Siblings()
    veneer.adapt(net, LoraConfig(r=2, targets=["first", "q", "k", "v"]))
    stir(net)
    inputs = torch.randn(11, 6)
    copies = {}

    def note(tensor):
        if tensor.dtype == torch.bfloat16 and tensor.shape == (11, 7):
            copies[tensor.data_ptr()] = tensor
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        output = net(inputs)
    assert len(copies) == 1
    output.float().sum().backward()
    shared = gradients(net)
    net.zero_grad()
    for layer in (net.q, net.k, net.v):
        layer.register_forward_pre_hook(lambda layer, args: (args[0].clone(),))
    with torch.autocast("cpu", torch.bfloat16):
        apart = net(inputs)
    assert torch.equal(apart, output)
    apart.float().sum().backward()
    for name, gradient in gradients(net).items():
        torch.testing.assert_close(shared[name], gradient, rtol=0.02, atol=0.02)


def test_the_shared_copy_outlives_neither_its_input_nor_its_graph():
    net = Siblings()
    veneer.adapt(net, LoraConfig(r=2, targets=["q", "k"]))
    x = torch.randn(11, 7, requires_grad=True) * 1
    gc.collect()
    before = len(kinds._CASTS)
    with torch.autocast("cpu", torch.bfloat16):
        output = net.q(x)
        assert len(kinds._CASTS) == before + 1
        pickle.loads(pickle.dumps(x.detach()))
        del output
        assert kinds._CASTS[x][1]() is None
        del x
    assert len(kinds._CASTS) == before


def test_an_input_that_is_changed_in_place_or_leaves_the_graph_is_cast_again():
    torch.manual_seed(0)
    net = Siblings()
    veneer.adapt(net, LoraConfig(r=2, targets=["q", "k"]))
    stir(net)
    leaf = torch.randn(11, 7, requires_grad=True)
    x, plain = leaf * 1, torch.randn(11, 7)
    with torch.autocast("cpu", torch.bfloat16):
        kept = [net.q(x), net.q(plain)]
        x.mul_(-1)
        plain.numpy()[:] *= -1  # of which no counter tells
        for changed in (x, plain):
            assert torch.equal(net.k(changed), net.k(changed.clone()))
        graph = leaf * 1
        with torch.no_grad():
            net.q(graph)
        net.k(graph).sum().backward()
    assert leaf.grad is not None
    assert all(output.requires_grad for output in kept)


def test_the_transforms_of_torch_func_see_the_adapter_as_autograd_does():
    """Gradients for each row by vmap, against a backward pass for each row."""
    net, _ = adapted(targets=["wide", "out"])
    net.eval()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    ids = torch.randint(0, 11, (3, 6))

    def loss(parameters, row):
        return torch.func.functional_call(net, parameters, (row.unsqueeze(0),)).square().sum()

    per_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(
        {n: p.detach() for n, p in trained.items()}, ids
    )
    for index, row in enumerate(ids):
        net.zero_grad()
        net(row.unsqueeze(0)).square().sum().backward()
        for name, p in trained.items():
            torch.testing.assert_close(per_row[name][index], p.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_a_state_dict_restores_an_adapted_twin(settings):
    net, ids = adapted(**settings)
    torch.manual_seed(0)
    twin = Net()
    veneer.adapt(twin, LoraConfig(**{"r": 2, "targets": TARGETS, "seed": 9, **settings}))
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(ids), net(ids))


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_to_dtype_and_back_keeps_the_scaling_exact(settings):
    net, ids = adapted(alpha=5 / 3, **settings)
    expected = copy.deepcopy(net).double()(ids)
    for slot in adapted_slots(net.bfloat16().double()).values():
        assert slot.update.factor.item() == slot.update._constants()["factor"]
    assert net(ids).dtype == torch.float64
    assert expected.dtype == torch.float64


def test_what_meta_held_is_loaded_real_and_fits_the_base_that_comes_later(tmp_path):
    net, ids = adapted()
    expected = net(ids)
    adapter = veneer.state(net)
    veneer.remove(net)
    with torch.device("meta"):
        empty = Net()
    veneer.load_state(empty, adapter)
    updates = [p for name, p in empty.named_parameters() if ".update." in name]
    assert updates
    assert not any(p.is_meta for p in updates)
    for name, slot in adapted_slots(empty).items():
        slot.base.load_state_dict(net.get_submodule(name).state_dict(), assign=True)
    assert torch.equal(empty(ids), expected)


def _train_on_one_of_two(rank, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{path}/meet")
    torch.set_num_threads(1)
    net, _ = adapted()
    model = nn.parallel.DistributedDataParallel(net)
    ids = torch.arange(12).view(2, 6)[rank : rank + 1] % 11
    model(ids).square().mean().backward()
    torch.save(gradients(net), f"{path}/{rank}.pt")
    veneer.save(model, f"{path}/adapter{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_adapter(tmp_path):
    torch.multiprocessing.start_processes(_train_on_one_of_two, (str(tmp_path),), nprocs=2, start_method="spawn")
    net, _ = adapted()
    net(torch.arange(12).view(2, 6) % 11).square().mean().backward()
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt")
        assert shared.keys() == gradients(net).keys()
        assert all(torch.allclose(shared[name], g, rtol=1e-5, atol=1e-5) for name, g in gradients(net).items())
    one, two = ((tmp_path / f"adapter{rank}" / "adapter_model.safetensors").read_bytes() for rank in range(2))
    assert one == two

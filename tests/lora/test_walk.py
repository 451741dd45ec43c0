"""One walk over a model finds what torch's own generators find, in their order."""

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from veneer.lora.walk import named_modules, named_parameters


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from("abc")), max_size=12))
def test_modules_and_parameters_are_those_of_torch_also_where_they_are_shared_or_missing(edges):
    nodes: list[nn.Module] = [nn.Linear(2, 1, bias=bool(number % 2)) for number in range(6)]
    nodes[5].weight = nodes[3].weight
    nodes[4].register_module("none", None)
    for parent, child, name in edges:
        if parent < child:
            nodes[parent].register_module(name, nodes[child])
    assert list(named_modules(nodes[0]).items()) == list(nodes[0].named_modules())
    found, expected = named_parameters(nodes[0]), dict(nodes[0].named_parameters())
    assert list(found) == list(expected)
    assert all(found[name] is expected[name] for name in expected)


def test_a_model_within_itself_is_walked_once():
    net = nn.Sequential(nn.Linear(2, 1))
    net[0].outer = net
    assert list(named_modules(net)) == ["", "0"]
    del net[0].outer

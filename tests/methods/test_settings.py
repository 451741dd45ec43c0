"""What settings of a method are refused, and which layers they choose."""

import pytest

from tests.methods.families import HEADS, HIDDEN, tiny
from veneer.errors import ConfigError
from veneer.methods.settings import MethodSettings


@pytest.mark.parametrize("given", [{"targets": ("query",)}, {"weights": ("query",)}])
@pytest.mark.parametrize("method", ["head", "full", "bitfit", "houlsby", "prefix-embed"])
def test_layers_for_a_method_that_adapts_none_are_refused(method, given):
    with pytest.raises(ConfigError, match=f"{next(iter(given))} are given, but the method {method!r} adapts no layers"):
        MethodSettings(method=method, **given)


@pytest.mark.parametrize("method", ["lora-qv", "lora-prefix-embed"])
def test_query_and_value_are_found_also_where_they_are_one_layer(method):
    """GPT-2's c_attn: an update of rank r for query and one for value, as many parameters as in layers of their own."""
    sizes = (("infix_tokens", 1), ("prefix_tokens", 2)) if "prefix" in method else ()
    counts = {
        family: MethodSettings(method=method, r=3, sizes=sizes).attach(
            tiny(family), model_type=family, head=HEADS[family]
        )
        for family in ("bert", "gpt2")
    }
    assert counts["gpt2"].lora == counts["bert"].lora == 3 * 2 * 3 * (HIDDEN + HIDDEN)

"""How many parameters each method trains: the formulas of the paper's section 5.1, the head never counted.

Legend: d width of the model, L its blocks, r rank or bottleneck.
"""

import math


def lora(matrices: int, d: int, r: int) -> int:
    """Return 2 L_LoRA d r: A and B of each adapted d x d matrix."""
    return 2 * matrices * d * r


def bottlenecks(adapters: int, d: int, r: int, *, norms: int = 0) -> int:
    """Return L_Adpt (2 d r + r + d) + 2 L_LN d: both matrices and biases of each adapter, and trained LayerNorms."""
    return adapters * (2 * d * r + r + d) + 2 * norms * d


def prefix_embedding(d: int, prefix: int, infix: int) -> int:
    """Return d (l_p + l_i)."""
    return d * (prefix + infix)


def prefix_layers(blocks: int, d: int, prefix: int, infix: int) -> int:
    """Return L d (l_p + l_i)."""
    return blocks * prefix_embedding(d, prefix, infix)


def biases(blocks: int, d: int) -> int:
    """Return 11 d L of a transformer with an MLP of 4 d, norms included; those outside the blocks are not counted."""
    return 11 * d * blocks


def last_blocks(number: int, d: int) -> int:
    """Return 12 d^2 + 13 d for each block, an MLP of 4 d, biases and two norms included."""
    return number * (12 * d * d + 13 * d)


def shown_as(number: int, printed: str, *, cut: bool = False) -> bool:
    """Return whether `number` rounds to a count as the paper prints it: "0.3M", "175,255.8M".

    Args:
        number: the exact count.
        printed: the paper's.
        cut: whether cutting the number off will do too: the paper cuts LoRA's counts on GPT-3 (18.874M is "18.8M").
    """
    digits = printed.removesuffix("M").replace(",", "")
    scale = 10 ** len(digits.partition(".")[2])
    units = number * scale / 1e6
    shown = {math.floor(units + 0.5)} | ({math.floor(units)} if cut else set())
    return round(float(digits) * scale) in shown

"""Small models with odd sizes, so that a transposed matrix fails loudly; and what several folders' tests share."""

import signal
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn


class Block(nn.Module):
    """7 -> 5 -> 7 with a residual, its projections named as an attention layer's are."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(7, 5)
        self.value = nn.Linear(5, 7, bias=False)
        self.norm = nn.LayerNorm(7)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.value(torch.tanh(self.query(x))))


class Classifier(nn.Module):
    """Embedding, two blocks and a head: everything a selector can get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 7)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(7, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for block in self.blocks:
            hidden = block(hidden)
        return self.classifier(self.drop(hidden.mean(dim=1)))


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier().eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Interrupts end what runs here and is started from here, also where a shell's "&" has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

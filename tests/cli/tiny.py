"""A pretrained model and labelled text so small that a run takes a second, and the command called in this process."""

import contextlib
import csv
import io
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from veneer.cli.main import main

KEYWORDS = {
    "food": ["bread", "cheese", "soup", "apple", "butter", "salt"],
    "sport": ["ball", "goal", "team", "race", "coach", "medal"],
    "weather": ["rain", "snow", "wind", "cloud", "storm", "frost"],
}
FILLERS = ["the", "a", "we", "saw", "had", "much", "today", "again", "very", "and", "of", "it", "was", "then"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
POSITIONS = 40
PRETRAINING_STEPS = 60

COLUMNS = ("--text", "text", "--label", "label")
METHODS = ("head", "lora-qv", "lora-all", "full")
BASELINES: dict[str, tuple[str, ...]] = {
    "bitfit": (),
    "top2": ("--size", "num_blocks=1"),
    "houlsby": ("--size", "r=3"),
    "pfeiffer": (),
    "lin": (),
    "adapterdrop": ("--size", "dropped_blocks=1"),
    "prefix-embed": ("--size", "prefix_tokens=3", "--size", "infix_tokens=2"),
    "prefix-layer": (),
    "lora-prefix-embed": ("--weights", "value,query", "--r", "3"),
    "lora-prefix-layer": (
        "--size",
        "infix_tokens=0",
    ),
}
"""The other methods, and what they need to fit a model of two blocks and 40 positions, or are given to be tried."""
SETTINGS = ("--epochs", "2", "--batch-size", "8", "--max-tokens", "24", "--precision", "float32")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a call of the command ended."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Matrices of 16 x 16 are not worth a second thread, here and in the processes of `compare`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


def veneer(*arguments: object) -> Ended:
    """Call the command with `arguments`, as a shell would, but in this process."""
    out, err = io.StringIO(), io.StringIO()
    given = sys.argv
    sys.argv = ["veneer", *map(str, arguments)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = given
    return Ended(code=code, out=out.getvalue(), err=err.getvalue())


def worked(*arguments: object) -> Ended:
    """Call the command, which must end well."""
    ended = veneer(*arguments)
    assert ended.code == 0, ended.err
    return ended


def make_tokenizer() -> BertTokenizerFast:
    words = [*SPECIAL, *FILLERS, *(word for words in KEYWORDS.values() for word in words)]
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})


def make_model(folder: Path, *, hidden_size: int = 16) -> Path:
    """Save a BERT encoder without a head, and its tokenizer; a moment of training has taught it what the words mean."""
    tokenizer = make_tokenizer()
    torch.manual_seed(7)
    sizes = {**SIZES, "hidden_size": hidden_size}
    config = BertConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, num_labels=3)
    model = BertForSequenceClassification(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rows = make_rows(96, seed=3)
    batch = tokenizer([text for text, _, _ in rows], padding=True, return_tensors="pt")
    batch["labels"] = torch.tensor([list(KEYWORDS).index(label) for _, _, label in rows])
    for _ in range(PRETRAINING_STEPS):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentence(generator: random.Random, label: str) -> str:
    """A few fillers around three key words of the class."""
    words = generator.choices(FILLERS, k=generator.randint(2, 6)) + generator.choices(KEYWORDS[label], k=3)
    generator.shuffle(words)
    return " ".join(words)


def make_rows(num_rows: int, *, seed: int, labels: Sequence[str] = tuple(KEYWORDS)) -> list[tuple[str, str, str]]:
    """Rows of (text, second text, label), all different, the classes in turn."""
    generator = random.Random(seed)
    turns = [labels[number % len(labels)] for number in range(num_rows)]
    return [(sentence(generator, label), sentence(generator, label), label) for label in turns]


def write_csv(path: Path, rows: Iterable[Sequence[str]], header: Sequence[str] = ("text", "second", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder` with its bytes, None for a folder: equal before and after means untouched."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}

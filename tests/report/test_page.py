"""The page: self-contained, escaped, valid as a whole, the same each time."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from tests.report.records import collapsed, record, regression, results, scores
from veneer.errors import ConfigError
from veneer.report.page import render_page
from veneer.report.summary import summarize
from veneer.report.terminal import results_table
from veneer.results import read_results, write_results

METHODS = {"head": 0.70, "lora-qv": 0.79, "lora-all": 0.803, "full": 0.814}
OUTSIDE = ("http://", "https://", "src=", "@import", "<script", "url(http")
VOID = {"meta", "br", "!doctype"}


class Balanced(HTMLParser):
    """Checks that every element is closed in order, and gathers ids and what refers to them."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references = [], [], []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            self.references += re.findall(r"^(?:url\()?#([^)]+)", value or "") if name in ("href", "clip-path") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def one_seed(**changes):
    return results(*[record(method, accuracy, **changes) for method, accuracy in METHODS.items()])


def three_seeds():
    runs = [record(method, accuracy + seed / 500, seed) for method, accuracy in METHODS.items() for seed in (0, 1)]
    return results(*runs, record("head", 0.71, 2), collapsed("full", 2))


def many_classes(number, label="class {}"):
    labels = [label.format(i) for i in range(number)]
    return one_seed(labels=labels, test=scores(0.7, number * 10, num_labels=number))


def text_of(page):
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def numbers_predicted():
    return results(*[regression(method, score) for method, score in METHODS.items()])


@pytest.mark.parametrize("made", [one_seed(), three_seeds(), many_classes(20), many_classes(50), numbers_predicted()])
def test_the_page_is_whole_and_needs_nothing_else(made):
    page = render_page(made)
    for part in OUTSIDE:
        assert part not in page
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert set(parser.references) == set(parser.ids)
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) >= 3
    for svg in svgs:
        ElementTree.fromstring(svg)


def test_the_same_results_give_the_same_bytes_also_from_disk(tmp_path):
    page = render_page(three_seeds())
    assert render_page(three_seeds()) == page
    assert render_page(read_results(write_results(tmp_path, three_seeds()))) == page


def test_hostile_text_is_shown_and_never_read_as_markup():
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    labels = [f"{evil} {i} $y_{i}$ 中\x00" for i in range(30)]
    runs = [
        record(
            method, 0.7 + index / 100, labels=labels, test=scores(0.7, 300, num_labels=30), model=evil, data=evil,
            checkpoint=f"runs/{evil}", config={"r": 8, "base_model": evil, evil: [evil], "learning_rate": index},
        )
        for index, method in enumerate(["lora-all", evil])
    ]  # fmt: skip
    made = replace(results(*runs, notes=[evil]), machine={evil: evil}, versions={evil: evil})
    page = render_page(made)
    page.encode("utf-8")
    assert "<script" not in page
    assert "<img" not in page
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert evil in text_of(page)


def test_the_parts_come_in_order():
    page = render_page(replace(one_seed(), notes=["Quick run: not for conclusions."]))
    parts = [
        "<h1>minilm", "reached 98.6", "Quick run: not for", 'class="results"', "Accuracy against trainable",
        "Learning curves", "Which classes are confused", "What it was measured on", "Recipe", "Using the adapter",
        "How to read the figures",
    ]  # fmt: skip
    places = [page.index(part) for part in parts]
    assert places == sorted(places)


def test_the_table_and_the_facts():
    text = text_of(render_page(one_seed()))
    for shown in (
        "74,498", "73,728 LoRA + 770 head", "1.29\xa0%", "5e-4", "2e-5", "scores 0.500 accuracy",
        "8,530 train, 1,000 validation and 1,000 test", "One run per method", "8.20 GB", "torch 2.13.0", "Seeds 0",
        "query, value",
    ):  # fmt: skip
        assert " ".join(shown.split()) in text, shown
    assert "collapsed" not in text


def test_collapsed_runs_are_marked():
    text = text_of(render_page(three_seeds()))
    assert "3 1 collapsed" in text
    assert "over all" in text


def test_every_run_collapsed():
    text = text_of(render_page(results(collapsed("full", 0), collapsed("full", 1))))
    assert "2 all collapsed" in text
    assert "Using the adapter" not in text


def test_validation_takes_the_place_of_test():
    text = text_of(render_page(one_seed(test=None)))
    assert "Validation accuracy" in text
    assert "Test accuracy" not in text
    assert "No test rows were given" in text


def test_the_adapter_is_the_one_that_validation_likes_best():
    best = record("lora-qv", 0.6, 4, validation=scores(0.95), checkpoint="runs/my best/adapter")
    broken = record("lora-qv", 0.5, 5, validation=scores(0.99), collapsed=True)
    text = text_of(render_page(results(record("lora-all", 0.9), best, broken)))
    assert "veneer predict 'runs/my best/adapter' \"some text\"" in text
    assert 'veneer.load(model, "runs/my best/adapter")' in text
    assert 'PeftModel.from_pretrained(model, "runs/my best/adapter")' in text
    assert 'from_pretrained("sentence-transformers/all-MiniLM-L6-v2", num_labels=2)' in text
    pairs = text_of(render_page(results(record("lora-all", config={"text_pair": "second"}))))
    assert '"some text" --pair "another"' in pairs
    assert "--text COLUMN --text-pair COLUMN --label COLUMN" in pairs
    fallback = text_of(render_page(results(record("lora-all", config={}))))
    assert 'from_pretrained("minilm", num_labels=2)' in fallback


def test_the_adapter_to_load_is_one_that_is_lora_alone():
    combined = record("lora-prefix-embed", 0.99, trainable_parameters=12_000, checkpoint="runs/combined/adapter")
    text = text_of(render_page(results(combined, record("lora-all", 0.8))))
    assert "runs/combined" not in text
    assert 'veneer.load(model, "runs/lora-all-seed0/adapter")' in text
    assert "10,000 LoRA + 770 head + 1,230 of its own" in text
    assert "veneer.load" not in text_of(render_page(results(combined)))


def test_beyond_twenty_classes_pairs_take_the_place_of_the_matrix():
    assert "Confusion matrix of Head only" in render_page(many_classes(20))
    page = render_page(many_classes(21))
    assert "Confusion matrix" not in page
    assert "class 3 class 4 3 30.0" in text_of(page)


def test_runs_without_curves_have_no_plot_of_them():
    assert "Learning curves" not in render_page(one_seed(train_curve=[], validation_curve=[]))


def test_results_without_runs_are_refused():
    with pytest.raises(ConfigError, match="hold no run"):
        render_page(results())


def printed(runs, width):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(results_table(summarize(runs)))
    return capture.get()


def test_the_console_table_fits_eighty_columns():
    text = printed(three_seeds().records, 80)
    for shown in ("Full fine-tuning", "0.804", "± 0.001", "1.29 %", "1.18 MB", "929 MB", "collapsed"):
        assert shown in text
    assert "…" not in text


def test_the_console_table_shows_names_as_they_are():
    assert "[red]mine[/]" in printed([record("[red]mine[/]")], 100)
    assert "all collapsed" in printed([collapsed("full", 0), collapsed("full", 1)], 100)
    assert printed([], 80) is not None


def test_of_numbers_the_page_tells_their_correlations_and_nothing_of_classes():
    text = text_of(render_page(numbers_predicted()))
    for part in ("Pearson", "Spearman", "always answering the mean has a mean squared error of 2.25", "num_labels=1"):
        assert part in text
    for part in ("ccuracy", "acro-F1", "confused", "classes "):
        assert part not in text

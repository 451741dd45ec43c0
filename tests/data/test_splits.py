"""The laws of dividing labelled text."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veneer.data.splits import Examples, Splits, make_splits, sample
from veneer.errors import ConfigError, DataError


def examples(*rows: tuple[str, str]) -> Examples:
    return Examples(texts=tuple(text for text, _ in rows), labels=tuple(label for _, label in rows))


def numbered(sizes: dict[str, int], prefix: str = "") -> Examples:
    return examples(*((f"{prefix}{label} {row}", label) for label, size in sizes.items() for row in range(size)))


def split(train: Examples, validation: Examples | None = None, test: Examples | None = None, **options) -> Splits:
    return make_splits(train, validation=validation, test=test, **{"seed": 0, "name": "reviews", **options})


def sides(splits: Splits) -> list[Examples]:
    return [part for part in (splits.train, splits.validation, splits.test) if part is not None]


def rows(part: Examples) -> list[tuple[str, str, str]]:
    return list(zip(part.texts, part.pairs or part.texts, part.labels or (), strict=True))


@st.composite
def repetitive_tables(draw: st.DrawFn) -> Examples:
    """Tables in which texts repeat and every class has three different ones."""
    classes = draw(st.lists(st.sampled_from("abcde"), min_size=2, max_size=4, unique=True))
    own = [(f"{label} {number}", label) for label in classes for number in range(3)] + [("one more", classes[0])] * 4
    copies = draw(st.lists(st.sampled_from(own), max_size=20))
    return examples(*draw(st.permutations(own + copies)))


@settings(max_examples=50, deadline=None)
@given(repetitive_tables(), st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.05, 0.2, 0.5]), st.integers(0, 9))
def test_no_text_is_on_two_sides_and_together_the_sides_are_everything(train, test_share, validation_share, seed):
    splits = split(train, test_share=test_share, validation_share=validation_share, seed=seed)
    parts = sides(splits)
    assert len(parts) == (3 if test_share else 2)
    assert sum(len(set(part.texts)) for part in parts) == len(set(train.texts))
    assert sum((Counter(rows(part)) for part in parts), Counter()) == Counter(rows(train))
    assert all(set(part.labels) == set(splits.labels) == set(train.labels) for part in parts)
    assert splits == split(train, test_share=test_share, validation_share=validation_share, seed=seed)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_texts_with_several_labels_are_kept_together_and_every_class_is_on_every_side(data):
    own = [(f"{label} {number}", label) for label in "abc" for number in range(4)]
    mixed = data.draw(st.lists(st.tuples(st.sampled_from(["m1", "m2", "m3"]), st.sampled_from("abc")), max_size=12))
    train = examples(*data.draw(st.permutations(own + mixed)))
    parts = sides(split(train, test_share=0.2))
    assert sum(len(set(part.texts)) for part in parts) == len(set(train.texts))
    assert all(set(part.labels) == set("abc") for part in parts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(40, 400), min_size=2, max_size=6), st.sampled_from([0.1, 0.15, 0.33]), st.integers(0, 9))
def test_each_class_is_held_out_in_proportion_to_within_one_row(sizes, share, seed):
    train = numbered({f"class {number}": size for number, size in enumerate(sizes)})
    splits = split(train, test_share=share, validation_share=share, seed=seed)
    for part in (splits.validation, splits.test):
        assert len(part) == round(share * len(train))
        counts = Counter(part.labels)
        assert all(abs(counts[f"class {number}"] - share * size) <= 1 for number, size in enumerate(sizes))


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    train = numbered({"a": 50, "b": 30})
    assert split(train, seed=1) == split(train, seed=1)
    assert len({split(train, seed=seed).validation for seed in range(5)}) == 5


def test_rows_keep_their_order_on_each_side():
    train = numbered({"a": 20, "b": 20})
    place = {text: index for index, text in enumerate(train.texts)}
    for part in sides(split(train, test_share=0.2)):
        assert [place[text] for text in part.texts] == sorted(place[text] for text in part.texts)


def test_a_pair_is_the_same_text_only_where_both_texts_are():
    train = Examples(
        texts=("premise",) * 12, pairs=tuple(f"claim {row}" for row in range(12)), labels=("yes", "no") * 6
    )
    splits = split(train, validation_share=0.25)
    assert (len(splits.train), len(splits.validation)) == (9, 3)
    assert set(splits.train.pairs).isdisjoint(splits.validation.pairs)


def test_one_text_that_fills_most_of_a_class_does_not_keep_the_class_from_being_split():
    train = examples(*[("again", "a")] * 90, ("other", "a"), *((f"b {row}", "b") for row in range(30)))
    splits = split(train)
    assert set(splits.validation.labels) == set(splits.train.labels) == {"a", "b"}
    assert len(splits.validation) < 20


def test_given_parts_are_left_as_they_are():
    train, validation, test = numbered({"a": 2, "b": 1}), numbered({"a": 1}, "v "), numbered({"b": 1}, "t ")
    splits = split(train, validation, test, test_share=0.5)
    assert (splits.train, splits.validation, splits.test) == (train, validation, test)
    assert splits.notes == ("validation: 1 row, as given", "test: 1 row, as given")


def test_only_what_is_missing_is_held_out():
    train, given_part = numbered({"a": 40, "b": 40}), numbered({"a": 3, "b": 3}, "given ")
    assert split(train).test is None
    assert split(train, given_part).train == train
    with_test = split(train, None, given_part, test_share=0.2)
    assert with_test.test == given_part
    assert len(with_test.train) + len(with_test.validation) == 80


def test_classes_that_look_like_numbers_sort_by_number_and_before_others():
    names = ["10", "9", "-1", "2.5", "b", "B", "nan1", "1e3"]
    train = numbered(dict.fromkeys(names, 4))
    assert split(train).labels == ("-1", "2.5", "9", "10", "1e3", "B", "b", "nan1")


def test_notes_say_how_rows_were_held_out():
    notes = split(numbered({"a": 600, "b": 600}), test_share=0.2).notes
    assert notes == (
        "validation: 120 rows (10 %), held out of train, stratified by label, seed 0",
        "test: 240 rows (20 %), held out of train, stratified by label, seed 0",
    )


def test_notes_count_repeats_contradictions_and_texts_shared_with_given_parts():
    train = examples(*[("twice", "a")] * 2, ("mixed", "a"), ("mixed", "b"), *rows_of("a", 8), *rows_of("b", 8))
    test = examples(("twice", "a"), ("mixed", "a"), ("new", "b"))
    notes = split(train, test, test).notes
    assert any(note.startswith("labels: 1 different texts stand with more than one label") for note in notes)
    assert any(note.startswith("train: the text of an earlier row is repeated in 2 rows") for note in notes)
    assert any(note.startswith("test: 2 rows with a text that train has too") for note in notes)
    assert any(note.startswith("validation: 2 rows with a text that train has too") for note in notes)
    assert any(note.startswith("test: 3 rows with a text that validation has too") for note in notes)


def rows_of(label: str, count: int) -> list[tuple[str, str]]:
    return [(f"{label} {row}", label) for row in range(count)]


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        (numbered({"good": 20}), None, ["'good'", "at least two classes"]),
        (numbered({"a": 4, "b": 5}), None, ["9 rows", "at least 10"]),
        (numbered({"a": 20, "rare": 1}), None, ["'rare' (1 row, 1 different)", "merge", "drop"]),
        (examples(*rows_of("a", 20), *[("same", "b")] * 5), None, ["'b' (5 rows, 1 different)"]),
        (numbered({"a": 9, "b": 9}), numbered({"a": 2, "c": 2, "d": 1}), ["validation", "'c' (2 rows)", "'d' (1 row)"]),
        (Examples(texts=("x",) * 12), None, ["train: the rows have no labels"]),
        (numbered({"a": 9, "b": 9}), Examples(texts=(), labels=()), ["validation: there are no rows"]),
        (Examples(texts=(), labels=()), None, ["train: there are no rows"]),
    ],
    ids=[
        "one class",
        "few rows",
        "rare class",
        "one text",
        "foreign labels",
        "unlabelled",
        "empty part",
        "empty train",
    ],
)
def test_data_that_cannot_be_used_is_refused_and_the_message_says_why(train, validation, expected):
    with pytest.raises(DataError) as caught:
        split(train, validation)
    assert all(part in str(caught.value) for part in ["reviews", *expected])


def test_all_problems_are_raised_together():
    with pytest.raises(DataError) as caught:
        split(numbered({"only": 3}), None, numbered({"other": 1}))
    assert all(part in str(caught.value) for part in ("'only'", "3 rows", "test: labels that train lacks: 'other'"))


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.0, 1.0), (-0.1, 0.1), (1.0, 0.1), (0.5, 0.5), (0.0, float("nan"))])
def test_shares_outside_what_is_allowed_are_refused(shares):
    with pytest.raises(ConfigError, match="both together below 1"):
        split(numbered({"a": 20, "b": 20}), test_share=shares[0], validation_share=shares[1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 150), st.integers(0, 9))
def test_a_sample_has_the_size_asked_for_keeps_every_class_and_the_order(sizes, count, seed):
    whole = numbered({f"class {number}": size for number, size in enumerate(sizes)})
    part = sample(whole, count, seed=seed)
    assert len(part) == min(len(whole), max(count, len(sizes)))
    assert set(part.labels) == set(whole.labels)
    assert part == sample(whole, count, seed=seed)
    order = [whole.texts.index(text) for text in part.texts]
    assert order == sorted(set(order))


def test_a_sample_no_smaller_than_the_rows_is_the_rows_themselves():
    whole = numbered({"a": 3, "b": 3})
    assert sample(whole, 6, seed=0) is whole


def test_a_sample_of_unlabelled_text_has_the_size_asked_for():
    assert len(sample(Examples(texts=tuple("abcdefgh")), 3, seed=0)) == 3


def test_a_sample_of_no_rows_is_refused():
    with pytest.raises(ConfigError, match="0 rows"):
        sample(numbered({"a": 3}), 0, seed=0)


def test_selected_rows_keep_text_pair_and_label_together():
    whole = Examples(texts=("a", "b", "c"), pairs=("x", "y", "z"), labels=("0", "1", "0"))
    assert whole.select([2, 0]) == Examples(texts=("c", "a"), pairs=("z", "x"), labels=("0", "0"))


def test_columns_of_different_length_are_refused():
    with pytest.raises(DataError, match="2 texts but 1 labels"):
        Examples(texts=("a", "b"), labels=("x",))


def scaled(num_rows):
    """Rows of different texts, each with a number of its own."""
    return Examples(texts=tuple(f"text {n}" for n in range(num_rows)), targets=tuple(n / 4 for n in range(num_rows)))


def test_rows_with_numbers_are_held_out_at_random_and_have_no_classes():
    train = scaled(40)
    splits = make_splits(train, validation=None, test=None, test_share=0.2, validation_share=0.1, seed=3, name="mine")
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [28, 4, 8]
    assert splits.labels == ()
    rows = [row for part in parts for row in zip(part.texts, part.targets, strict=True)]
    assert sorted(rows) == sorted(zip(train.texts, train.targets, strict=True))
    assert "at random" in " ".join(splits.notes)
    assert len(sample(train, 7, seed=0)) == 7


def test_one_number_for_all_rows_is_nothing_to_learn():
    train = Examples(texts=tuple("abcdefghijkl"), targets=(2.5,) * 12)
    with pytest.raises(DataError, match=r"the one label 2\.5; at least two numbers"):
        make_splits(train, validation=None, test=None, seed=0, name="mine")

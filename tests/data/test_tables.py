"""What files of labelled text give, and what is said about files that cannot be used."""

import csv
import gzip
import io
import json
import zipfile
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veneer.data.splits import Examples
from veneer.data.tables import FILE_ENDINGS, read_examples
from veneer.errors import DataError, UnknownNameError, VeneerError

TINY = Examples(
    texts=("plain", 'say "no", twice', " two\nlines\twith a tab ", "naïve 🦊 \u2028 end", "NA"),
    pairs=("a", "b, c", "x\n", "d", "e"),
    labels=("pos", "neg", "NA", "007", "1.0"),
)


def write(path, columns: dict[str, list]):
    """Write columns in the format the path's ending says, with the format's own library."""
    rows = list(zip(*columns.values(), strict=True))
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writerows([list(columns), *rows])
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        pq.write_table(pa.table(columns), path)
    return path


def refusal(path, text="text", label="label", text_pair=None, *, repeating=False) -> str:
    """Return the one message a file is refused with; it is free of the vocabulary of the libraries beneath."""
    with pytest.raises(VeneerError) as caught:
        read_examples(path, text=text, label=label, text_pair=text_pair, repeating=repeating)
    message = str(caught.value)
    assert isinstance(caught.value, DataError | UnknownNameError)
    assert str(path) in message
    assert not any(word in message for word in ("Traceback", "Error tokenizing", "codec", "pandas", "Arrow", "Errno"))
    return message


@pytest.mark.parametrize("ending", FILE_ENDINGS)
def test_a_table_comes_back_from_every_format_as_it_was_written(tmp_path, ending):
    columns = {"text": list(TINY.texts), "pair": list(TINY.pairs), "label": list(TINY.labels)}
    path = write(tmp_path / f"tiny{ending}", columns)
    assert read_examples(path, text="text", label="label", text_pair="pair") == TINY


@pytest.mark.parametrize("ending", FILE_ENDINGS)
def test_text_without_labels_needs_no_label_column(tmp_path, ending):
    path = write(tmp_path / f"only{ending}", {"text": [f"text {row}" for row in range(12)]})
    assert read_examples(path, text="text", label=None) == Examples(texts=tuple(f"text {row}" for row in range(12)))


odd_texts = st.text(
    st.one_of(
        st.sampled_from("\"',\t\n\r;\\ \ufeff\u2028é🦊"), st.characters(exclude_categories=["Cs"], min_codepoint=1)
    ),
    min_size=1,
).filter(lambda text: not text.isspace())


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_any_text_survives_a_round_trip(tmp_path_factory, ending):
    path = tmp_path_factory.mktemp("round") / f"odd{ending}"

    @settings(max_examples=50, deadline=None)
    @given(st.lists(odd_texts, min_size=1, max_size=5))
    def check(texts):
        write(path, {"text": texts, "label": ["same"] * len(texts)})
        assert read_examples(path, text="text", label="label").texts == tuple(texts)

    check()


def test_sixty_rows_with_newlines_quotes_and_commas_stay_sixty_rows(tmp_path):
    texts = [f'row {row}, with "quotes"\nand\r\nlines, {"," * (row % 4)}' for row in range(60)]
    path = write(tmp_path / "sixty.csv", {"text": texts, "label": [str(row % 3) for row in range(60)]})
    found = read_examples(path, text="text", label="label")
    assert (found.texts, found.labels) == (tuple(texts), ("0", "1", "2") * 20)


def test_a_text_longer_than_the_csv_modules_limit_is_read_and_the_limit_restored(tmp_path):
    limit = csv.field_size_limit()
    path = write(tmp_path / "long.csv", {"text": ["x" * (limit + 1)], "label": ["a"]})
    assert len(read_examples(path, text="text", label="label").texts[0]) == limit + 1
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_a_utf8_mark_windows_line_ends_and_blank_lines_are_accepted(tmp_path, ending):
    path = write(tmp_path / f"mark{ending}", {"text": ["a", "b"], "label": ["x", "y"]})
    lines = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + lines)
    assert read_examples(path, text="text", label="label") == Examples(texts=("a", "b"), labels=("x", "y"))


def test_an_upper_case_ending_is_known(tmp_path):
    path = tmp_path / "DATA.CSV"
    path.write_text("text,label\na,x\n")
    assert len(read_examples(path, text="text", label="label")) == 1


def test_column_and_class_names_lose_surrounding_space_and_texts_keep_it(tmp_path):
    path = tmp_path / "spaces.csv"
    path.write_text("text , label\n  a , x \n")
    assert read_examples(path, text=" text", label="label") == Examples(texts=("  a ",), labels=("x",))


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("values", "names"),
    [([True, False], ("true", "false")), ([3, -1], ("3", "-1")), ([2.0, 0.0], ("2", "0")), ([" a", "b "], ("a", "b"))],
)
def test_typed_labels_become_class_names(tmp_path, ending, values, names):
    path = write(tmp_path / f"typed{ending}", {"text": ["a", "b"], "label": values})
    assert read_examples(path, text="text", label="label").labels == names


def test_a_dictionary_encoded_parquet_column_gives_its_names(tmp_path):
    path = tmp_path / "categories.parquet"
    label = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"a.b": ["a", "b", "c"], "label": label, "a": [{"b": 1}] * 3}), path)
    assert read_examples(path, text="a.b", label="label") == Examples(texts=("a", "b", "c"), labels=("x", "y", "x"))


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.csv", "text,label\na,x\n")
    return buffer.getvalue()


def parquet(columns) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


PARQUET = parquet({"text": ["a"], "label": ["x"]})
CSV = b"text,label\nfine,x\nalso fine,y\n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("data.txt", CSV, ["'.txt'", ".csv, .tsv, .jsonl, .parquet"]),
        ("data", CSV, ["ending ''", ".csv, .tsv, .jsonl, .parquet"]),
        ("data.csv.gz", CSV, ["'.gz'", "unpack"]),
        ("zero.csv", b"", ["empty"]),
        ("zero.jsonl", b"", ["empty"]),
        ("zero.parquet", b"", ["empty"]),
        ("blank.tsv", b"\xef\xbb\xbf \r\n\n", ["empty"]),
        ("header.csv", b"text,label\n", ["empty", "no rows"]),
        (
            "header.parquet",
            parquet({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}),
            ["no rows"],
        ),
        ("really.csv", PARQUET, ["a Parquet file, not .csv text"]),
        ("really.jsonl", PARQUET, ["a Parquet file, not .jsonl text"]),
        ("zip.csv", zipped(), ["a zip archive"]),
        ("gzip.csv", gzip.compress(CSV), ["a gzip archive"]),
        ("pointer.csv", b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer"]),
        ("picture.csv", b"\x89PNG\r\n\x1a\n\x00\x00", ["line 1, byte offset 0", "UTF-8"]),
        ("really.parquet", CSV, ["not Parquet"]),
        ("cut.parquet", PARQUET[:-9], ["only a part of a Parquet file"]),
        ("damaged.parquet", b"PAR1" + b"\x07" * 40 + b"PAR1", ["damaged Parquet"]),
        ("damaged pages.parquet", PARQUET[:4] + b"\xff" * 40 + PARQUET[44:], ["damaged Parquet"]),
        ("really.jsonl", CSV, ["line 1: 'text,label'", "line 2: ", "one JSON object"]),
        ("broken.jsonl", b'{"text": "a", "label": "x"}\n\n{"text": "b", "label": \n', ["line 3: "]),
        ("list.jsonl", b'{"text": "a", "label": "x"}\n["b", "y"]\n', ["line 2: ", "one JSON object"]),
        ("null.jsonl", b'{"text": "a", "label": "x"}\nnull\n', ["line 2: 'null'"]),
        ("deep.jsonl", b"[" * 100_000 + b"\n", ["line 1: "]),
        ("long number.jsonl", b'{"text": "a", "label": ' + b"1" * 5_000 + b"}\n", ["line 1: "]),
        ("latin.csv", "text,label\nfine,x\ncafé,y\n".encode("latin-1"), ["line 3, byte offset 21", "0xe9", "UTF-8"]),
        ("latin.jsonl", '{"text": "café", "label": "y"}'.encode("latin-1"), ["line 1, byte offset 13", "UTF-8"]),
        ("wide.csv", CSV.decode().encode("utf-16"), ["UTF-16"]),
        ("wide.tsv", b"\xfe\xff" + CSV.decode().encode("utf-16-be"), ["UTF-16"]),
        ("unmarked.csv", CSV.decode().encode("utf-16-le"), ["NUL", "UTF-16"]),
        ("nul.csv", b"text,label\na\x00b,x\n", ["NUL", "line 2, byte offset 12"]),
        ("ragged.csv", b'text,label\n"two\nlines",x\na,b,y\nc,d,e,z\n', ["line 4: 3 fields", "line 5: 4 fields"]),
        ("twice.csv", b"text,label, text\na,x,b\n", ["several columns are named 'text'"]),
        ("open.csv", b'text,label\na,x\n"never closed,y\nb,x\n', ["line 3", "double quote"]),
        ("stray.tsv", b'text\tlabel\n"stray" quote\ty\n', ["line 2", "double quote"]),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert [part for part in expected if part not in message] == []


def test_a_missing_file_is_refused_and_named_in_full(tmp_path, monkeypatch):
    assert "no file" in refusal(tmp_path / "missing.csv")
    assert "no file" in refusal(tmp_path / "missing.xyz")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="looked for /"):
        read_examples(tmp_path.relative_to(tmp_path) / "missing.csv", text="text", label="label")


def test_a_folder_is_refused(tmp_path):
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    assert "is a folder" in refusal(folder)


@pytest.mark.parametrize("name", ["file.csv/inside.csv", "n" * 300 + ".csv"])
def test_a_path_the_system_refuses_is_refused_in_its_words(tmp_path, name):
    (tmp_path / "file.csv").write_bytes(CSV)
    assert "cannot be read" in refusal(tmp_path / name)


@pytest.mark.parametrize("ending", FILE_ENDINGS)
def test_all_unknown_columns_are_named_at_once_with_the_nearest(tmp_path, ending):
    path = write(tmp_path / f"columns{ending}", {"text": ["a"], "label": ["x"]})
    message = refusal(path, text="texd", label="lable", text_pair="zzz")
    assert "unknown column 'texd'. Did you mean 'text'? Known: text, label. It was given as the text column" in message
    assert "unknown column 'lable'. Did you mean 'label'?" in message
    assert "unknown column 'zzz'. Known: text, label. It was given as the text pair column" in message


@pytest.mark.parametrize(
    ("name", "separator", "found"),
    [("a.tsv", ",", "commas"), ("a.csv", "\t", "tabs"), ("a.csv", ";", "semicolons")],
)
def test_a_file_with_another_separator_is_an_unknown_column_with_advice(tmp_path, name, separator, found):
    path = tmp_path / name
    path.write_text(f'text{separator}label\n"a{separator} b"{separator}x\n')
    message = refusal(path)
    assert "unknown column 'text'" in message
    assert f"it has {found}" in message
    assert "commas between them in a .csv, tabs in a .tsv" in message


def test_one_column_for_two_purposes_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", {"text": ["a"], "label": ["x"]})
    assert "label = 'text'" in refusal(path, label="text")


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        (
            "labels.csv",
            {"text": ["t"] * 9, "label": ["x", "", " ", "nan", "NaN", "NAN", "y", "\t", "x"]},
            ["column 'label': missing or empty: 6 in all, row 2, 3, 4, 5, 6, ..."],
        ),
        ("labels.jsonl", {"text": ["t"] * 3, "label": ["x", None, float("nan")]}, ["'label'", "2 in all, row 2, 3"]),
        ("labels.parquet", {"text": ["t"] * 3, "label": [1.0, None, float("nan")]}, ["'label'", "2 in all, row 2, 3"]),
        ("texts.csv", {"text": ["t", "", " \n"], "label": ["x"] * 3}, ["'text': missing or empty: 2 in all, row 2, 3"]),
        (
            "texts.jsonl",
            {"text": ["t", None, ""], "label": ["x"] * 3},
            ["'text': missing or empty: 2 in all, row 2, 3"],
        ),
        ("nan.jsonl", {"text": ["t", float("nan")], "label": ["x"] * 2}, ["'text': missing or empty: 1 in all, row 2"]),
        (
            "types.jsonl",
            {"text": ["t", 3, [1]], "label": ["x"] * 3},
            ["not int: 1 in all, row 2", "not list: 1 in all, row 3"],
        ),
        (
            "types.parquet",
            {"text": [1, 2], "label": ["x"] * 2},
            ["'text': must be a string, not int: 2 in all, row 1, 2"],
        ),
        ("bytes.parquet", {"text": [b"a", b"b"], "label": ["x"] * 2}, ["must be a string, not bytes"]),
        ("fraction.jsonl", {"text": ["t", "u"], "label": [0.5, 1.0]}, ["regression target", "class names", "row 1"]),
        ("infinite.jsonl", {"text": ["t", "u"], "label": [float("inf"), 1]}, ["regression target", "row 1"]),
        ("objects.jsonl", {"text": ["t", "u"], "label": [{"a": 1}, ["x"]]}, ["not dict", "not list"]),
        ("ids.csv", {"text": ["t"] * 10, "label": list("abcdefghij")}, ["10 different labels in 10 rows", "ids"]),
        ("many.csv", {"text": ["t"] * 2002, "label": [*range(1001)] * 2}, ["1,001 different labels", "1,000 at most"]),
    ],
)
def test_rows_that_cannot_be_used_are_counted_and_the_first_five_named(tmp_path, name, columns, expected):
    path = write(tmp_path / name, columns)
    message = refusal(path, repeating=True)
    assert [part for part in expected if part not in message] == []
    assert "the header not counted" in message


def test_all_row_problems_of_a_file_are_raised_together(tmp_path):
    path = tmp_path / "several.csv"
    path.write_text("text,pair,label\na,b,x\n,b,y\na, ,x\na\n")
    message = refusal(path, text_pair="pair")
    for expected in ("'text': missing or empty: 1 in all, row 2", "'pair': missing or empty: 2 in all, row 3, 4"):
        assert expected in message
    assert "'label': missing or empty: 1 in all, row 4" in message


def test_a_key_that_some_json_rows_lack_is_missing_in_those_rows(tmp_path):
    path = tmp_path / "keys.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n\n{"text": "b"}\n{"label": "x"}\n')
    message = refusal(path)
    assert "'label': missing or empty: 1 in all, row 2" in message
    assert "'text': missing or empty: 1 in all, row 3" in message


@pytest.mark.parametrize("column", ["text", "label"])
def test_half_a_character_is_refused(tmp_path, column):
    path = tmp_path / "half.jsonl"
    path.write_text(json.dumps({"text": "a", "label": "x", column: "\ud83e alone"}) + "\n")
    assert f"'{column}': half a character" in refusal(path)


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "invalid.parquet"
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"text": broken, "label": ["x"]}), path)
    assert "damaged Parquet" in refusal(path)


@pytest.mark.parametrize("count", [2, 9])
def test_a_small_file_may_hold_one_row_of_each_class(tmp_path, count):
    names = [f"class {row}" for row in range(count)]
    path = write(tmp_path / "small.csv", {"text": names, "label": names})
    assert read_examples(path, text="text", label="label").labels == tuple(names)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_labels_are_numbers_where_the_task_is_regression(tmp_path, ending):
    table = pd.DataFrame({"text": ["a", "b", "c"], "label": [3, -0.25, 1e3]})
    path = tmp_path / f"numbers{ending}"
    {
        ".csv": lambda: table.to_csv(path, index=False),
        ".tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda: table.to_json(path, orient="records", lines=True),
        ".parquet": lambda: table.to_parquet(path, index=False),
    }[ending]()
    read = read_examples(path, text="text", label="label", task="regression")
    assert read == Examples(texts=("a", "b", "c"), targets=(3.0, -0.25, 1000.0))


def test_labels_that_are_no_numbers_are_named_by_kind_and_row(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("text,label\na,1\nb,\nc,high\nd,nan\ne,inf\nf,high\n")
    with pytest.raises(DataError) as caught:
        read_examples(path, text="text", label="label", task="regression")
    lines = str(caught.value).splitlines()[1:]
    assert [line.partition(": ")[2] for line in lines] == [
        "missing or empty: 1 in all, row 2",
        "not a number, such as 'high': 2 in all, row 3, 6",
        "missing, or not finite: 2 in all, row 4, 5",
    ]


def test_a_truth_value_is_no_number(tmp_path):
    path = tmp_path / "numbers.jsonl"
    path.write_text('{"text": "a", "label": true}\n{"text": "b", "label": [1]}\n')
    with pytest.raises(DataError, match="not a number, such as 'True': 2 in all, row 1, 2"):
        read_examples(path, text="text", label="label", task="regression")


def test_rows_to_score_on_may_hold_one_row_of_each_class(tmp_path):
    path = write(tmp_path / "test.csv", {"text": ["t"] * 12, "label": list("abcdefghijkl")})
    assert len(read_examples(path, text="text", label="label").labels) == 12


def test_a_decimal_of_parquet_is_a_number(tmp_path):
    table = pa.table({"text": ["a", "b"], "price": pa.array([Decimal("4.22"), Decimal("-1.50")])})
    pq.write_table(table, tmp_path / "prices.parquet")
    rows = read_examples(tmp_path / "prices.parquet", text="text", label="price", task="regression")
    assert rows.targets == (4.22, -1.5)

import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.reading.shards import records
from tuninglab.data.reading import tables
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.tables import text_table
from tuninglab.errors import UserError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_rows_are_records_and_empty_cells_are_absent(tmp_path):
    text = 'image,question,answer\r\na.jpg,"What, ""this""?",Käfer\r\n,"two\nlines",x\r\n\r\n,,\r\n'
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbf" + text.encode())
    assert list(text_table(path).records(Reading())) == [
        (f"{path}, line 2", {"image": "a.jpg", "question": 'What, "this"?', "answer": "Käfer"}),
        (f"{path}, line 3", {"question": "two\nlines", "answer": "x"}),
    ]


@pytest.mark.parametrize(
    "text", ["a\tb\n1,5\t2;5\n", 'a,b\n"1,5",2;5\n', 'a;b\n1,5;"2;5"\n', "a\tb\r1,5\t2;5\r"]
)
def test_the_first_line_tells_what_separates_cells(tmp_path, text):
    assert records(text_table(write(tmp_path / "a", text))) == [{"a": "1,5", "b": "2;5"}]


def test_a_column_without_a_name_is_a_row_number_and_lists_are_json(tmp_path):
    text = ',answers,text\n0,"[""a"", ""b""]",[x]\n1,[a,y\n'
    good, bad = records(text_table(write(tmp_path / "a.csv", text)))
    assert good == {"answers": ["a", "b"], "text": "[x]"}
    assert "broken JSON" in bad


def test_a_row_of_another_length_is_one_bad_record(tmp_path):
    found = records(text_table(write(tmp_path / "a.csv", "a,b\n1\n1,2,3\n1,2\n")))
    assert "has 1 cells, the first line names 2" in found[0] and "has 3 cells" in found[1]
    assert found[2] == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n1,2\n\xff,2\n", "line 3: byte 0xff is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (b'a,b\n1,2\n"x"y,2\n', "line 3: .*quotation marks"),
        (b'a,b\n1,2\n"x,2\n', "line 3: .*quotation marks"),
        (b"a,a\n1,2\n", "names 'a' twice"),
        (b"\n1,2\n", "has 0 names"),
    ],
)
def test_what_breaks_the_rest_of_a_table_names_the_line(tmp_path, content, said):
    with pytest.raises(UserError, match=rf"a\.csv.*{said}"):
        records(text_table(write(tmp_path / "a.csv", content)))


def test_records_have_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_RECORD", 2**20)
    large = "x" * 2**19  # more than the csv module's own bound for a cell
    assert records(text_table(write(tmp_path / "a.csv", f"a\n{large}\n"))) == [{"a": large}]
    for text in ('a\n"' + "x\n" * 2**19 + '"\n', 'a\n"' + '\n","' * 2**18):
        with pytest.raises(UserError, match="begins in line 2 has more than"):
            records(text_table(write(tmp_path / "a.csv", text)))
    monkeypatch.setattr(tables.text_lines, "__defaults__", (2**20,))
    with pytest.raises(UserError, match="line 2 has more than 1 MiB"):
        records(text_table(write(tmp_path / "a.csv", "a\n" + "x" * 2**21)))


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    st.lists(st.tuples(CELL, CELL, CELL).filter(any), max_size=6),
    st.sampled_from(["\r\n", "\n"]),
    st.sampled_from(",\t;"),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_rows_are_those_of_the_csv_module(tmp_path, rows, end, separator, quoting):
    if quoting == csv.QUOTE_MINIMAL:  # Python does not put quotation marks around such cells
        rows = [tuple(cell.replace("\r", "") + "x" for cell in row) for row in rows]
    text = io.StringIO()
    settings = {"delimiter": separator, "quoting": quoting, "lineterminator": end}
    csv.writer(text, **settings).writerows([("k", "l", "m"), *rows])
    path = write(tmp_path / "a.csv", text.getvalue())
    expected = [
        {name: cell for name, cell in row.items() if cell}
        for row in csv.DictReader(io.StringIO(text.getvalue(), newline=""), delimiter=separator)
    ]
    assert (
        records(text_table(path))
        == expected
        == [{name: cell for name, cell in zip("klm", row, strict=True) if cell} for row in rows]
    )

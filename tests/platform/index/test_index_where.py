import numpy as np
import pyarrow as pa
import pytest

from farreach.errors import DataError
from farreach.index.where import selected

# Two chunks, as two parts give them.
TABLE = {
    "section": pa.chunked_array([["devel", "web"], [None, "devel"]]),
    "lang": pa.chunked_array([["de", "en"], ["fr", None]]),
    "year": pa.chunked_array([["2019", "2020"], ["2021", None]]),
    "in": pa.chunked_array([["it's", "1"], ["2", "3"]]),
}


def rows(text):
    return np.flatnonzero(selected(text, TABLE.__getitem__, 4)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("section = 'devel'", [0, 3]),
        ("section == 'devel' and lang != 'de'", [3]),
        ("SECTION = 'web' OR lang = 'fr'".replace("SECTION", "section"), [1, 2]),
        ("section = 'web' or section = 'devel' and lang = 'de'", [0, 1]),
        ("(section = 'web' or section = 'devel') and lang = 'de'", [0]),
        ("lang in ('de', 'fr')", [0, 2]),
        ("lang not in ('de', 'fr')", [1, 3]),
        ("not lang = 'de'", [1, 2, 3]),
        ("not not lang = 'de'", [0]),
        ("not (lang = 'de' or lang = 'en')", [2, 3]),
        ("year >= 2020", [1, 2]),
        ("year < 2.02e3", [0]),
        ("year in (2019, '2021')", [0, 2]),
        ("year >= '2020'", [1, 2]),
        ("lang<'en'", [0]),
        ("\"in\" = 'it''s'", [0]),
        ("section <> 'devel'", [1, 2]),
    ],
)
def test_a_filter_selects(text, expected):
    assert rows(text) == expected


def test_what_a_document_lacks_equals_nothing_and_is_not_less_either():
    assert rows("lang != 'de'") == [1, 2, 3]
    assert rows("lang >= ''") == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "its end stands where a name was expected"),
        ("section", "its end stands where a comparison was expected"),
        ("section = devel", "'devel' stands where a text or number was expected"),
        ("section = 'devel' lang = 'de'", "'lang' stands where the end was expected"),
        ("section = 'devel' and", "its end stands where a name was expected"),
        ("(section = 'devel'", r"its end stands where '\)' was expected"),
        ("section in 'devel'", r"\"'devel'\" stands where '\(' was expected"),
        ("section in ()", r"'\)' stands where a text or number was expected"),
        ("section not = 'devel'", "'=' stands where 'in' was expected"),
        ("section ~ 'devel'", "cannot read \"~ 'devel'\" .at 8."),
        ("section = 'devel", "cannot read"),
        ("section = 5", "section is not a number in every document: .*'(devel|web)'"),
        ("(" * 60 + "year = 1" + ")" * 60, "is in more than 50 brackets"),
        ("__import__('os')", r"'\(' stands where a comparison was expected"),
    ],
)
def test_a_malformed_filter_is_refused_with_the_place(text, problem):
    with pytest.raises(DataError, match=problem):
        rows(text)


def test_an_empty_table_has_no_rows():
    empty = {"lang": pa.chunked_array([], pa.string())}
    assert selected("lang = 'de'", empty.__getitem__, 0).tolist() == []

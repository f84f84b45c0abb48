"""Described tables, and queries that write their names without quotes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.ml.evaluation.sql import Table, described_table, is_ordered, tokens_of, written_out

CROPS = Table(
    "1-105-2", ("Crop (kilotonnes)", "New South Wales", "No", "No. in season", "% Total", "#", "2001", "Order")
)


def test_a_description_is_found_in_a_prompt():
    text = "Answer in SQL.\ntable: 1-105-2\ncolumns: Crop (kilotonnes), Tone (a, b), 1,000 m, No, no\nQ: Which?"
    assert described_table(text) == Table("1-105-2", ("Crop (kilotonnes)", "Tone (a, b)", "1,000 m", "No"))
    assert described_table("table: x\nQ: columns: a, b") is None
    assert described_table("columns: a, b") is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT No FROM 1-105-2", 'SELECT "No" FROM "1-105-2"'),
        ("select no. in  season from 1-105-2", 'select "No. in season" from "1-105-2"'),
        ("SELECT COUNT Crop (kilotonnes) FROM 1-105-2", 'SELECT COUNT ("Crop (kilotonnes)") FROM "1-105-2"'),
        ("SELECT COUNT(No), MAX # FROM 1-105-2", 'SELECT COUNT("No"), MAX ("#") FROM "1-105-2"'),
        ("SELECT # FROM 1-105-2 WHERE % Total = '5%'", 'SELECT "#" FROM "1-105-2" WHERE "% Total" = \'5%\''),
        ("SELECT 2001 FROM 1-105-2 WHERE No = 2001", 'SELECT "2001" FROM "1-105-2" WHERE "No" = 2001'),
        ("SELECT Order FROM 1-105-2 ORDER BY No", 'SELECT "Order" FROM "1-105-2" ORDER BY "No"'),
        ("SELECT \"No\" FROM 1-105-2 WHERE # = 'No'", 'SELECT "No" FROM "1-105-2" WHERE "#" = \'No\''),
        ("SELECT # FROM 1-105-2 WHERE No = 'O'Brien'", 'SELECT "#" FROM "1-105-2" WHERE "No" = \'O\'\'Brien\''),
        ("SELECT # FROM 1-105-2 WHERE No = 'O''Brien'", 'SELECT "#" FROM "1-105-2" WHERE "No" = \'O\'\'Brien\''),
        ("SELECT # FROM 1-105-2 WHERE No = '' AND # = 1", 'SELECT "#" FROM "1-105-2" WHERE "No" = \'\' AND "#" = 1'),
        ("SELECT # WHERE No = '\"Poppin' Tags\"'", 'SELECT "#" WHERE "No" = \'"Poppin\'\' Tags"\''),
        ("SELECT Nobody FROM 1-105-2", 'SELECT Nobody FROM "1-105-2"'),
        ("SELECT # WHERE No = 'never closed", 'SELECT "#" WHERE "No" = \'never closed'),
    ],
)
def test_names_are_put_into_quotes(query, expected):
    assert written_out(query, CROPS) == expected


def test_columns_called_like_words_of_sql():
    table = Table("t", ("Count", "From", "Score"))
    assert written_out("SELECT Count FROM t WHERE Count = 3", table) == 'SELECT "Count" FROM "t" WHERE "Count" = 3'
    assert written_out("SELECT COUNT Score FROM t", table) == 'SELECT COUNT ("Score") FROM "t"'


@settings(deadline=None)
@given(st.text(alphabet="aN#'\"`[]() =,%o.0-\n", max_size=40))
def test_any_text_is_written_out_and_what_is_written_out_stays_so(text):
    done = written_out(text, CROPS)
    assert isinstance(done, str)
    assert "".join(token.text for token in tokens_of(text)) == text


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 1", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT 'ORDER BY' FROM t", False),
        ('SELECT "ORDER", BY FROM t', False),
    ],
)
def test_whether_the_order_counts(query, expected):
    assert is_ordered(query) is expected

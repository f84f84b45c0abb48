"""What a path is, is known by its field: rows keep their words, references become names, our sentences lose paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import DataError, RowProblem
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import (
    ROW_TEXT,
    home_paths,
    redact_page,
    redact_paths,
    redacted_errors,
    shown_reference,
)

PLACES = {"/srv/home/": "", "/srv/home": "the home", "/srv/home/cache/file.jsonl": "file-1", "file.jsonl": "mine.jsonl"}


def test_text_of_rows_is_never_changed() -> None:
    said = "/imagine cats/dogs and /srv/home/luthier.db"
    document = {
        "findings": [{"examples": [{"row": "file.jsonl:17", "excerpt": said, "note": said}]}],
        "samples": [said],
    }
    found = redact_paths(document, PLACES)
    assert found["findings"][0]["examples"] == [{"row": "mine.jsonl:17", "excerpt": said, "note": said}]
    assert found["samples"] == [said]


def test_references_are_known_by_their_field() -> None:
    document = {
        "base_model": "/models/tiny",
        "adapter_path": "/srv/home/runs/r/adapter",
        "file": "/srv/home/cache/file.jsonl",
        "systems": [{"name": "/models/tiny + 4 examples", "model": "6@/models/tiny"}],
        "figures": {"/models/tiny + 4 examples": {"word": "/models/tiny"}},
        "headline": "r is better than /models/tiny + 4 examples, not than /models/tiny-two or /imagine.",
        "plan_values": [{"name": "base_model.path", "value": "/models/tiny"}],
    }
    assert redact_paths(document, PLACES) == {
        "base_model": "tiny",
        "adapter_path": "runs/r/adapter",
        "file": "file-1",
        "systems": [{"name": "tiny + 4 examples", "model": "6@tiny"}],
        "figures": {"tiny + 4 examples": {"word": "tiny"}},
        "headline": "r is better than tiny + 4 examples, not than /models/tiny-two or /imagine.",
        "plan_values": [{"name": "base_model.path", "value": "tiny"}],
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [("tiny", "tiny"), ("/a/b.jsonl", "b.jsonl"), ("hub:a/b@main", "hub:a/b@main"), ("/", "/"), ("\ud800", "\\ud800")],
)
def test_a_reference_is_its_last_part(value: str, shown: str) -> None:
    assert shown_reference(value) == shown


def test_errors_keep_what_they_carry() -> None:
    problem = RowProblem("file.jsonl", 3, "prompt", "/srv/home/x", "is not text in /srv/home/cache/file.jsonl")
    with pytest.raises(DataError) as caught, redacted_errors(PLACES):
        raise DataError(
            "/srv/home/cache/file.jsonl is wrong", expected="rows in /srv/home", do="see", problems=[problem]
        )
    assert caught.value.came.startswith("file-1 is wrong")
    assert caught.value.expected == "rows in the home"
    (kept,) = caught.value.problems
    assert (kept.file, kept.value, kept.reason) == ("mine.jsonl", "/srv/home/x", "is not text in file-1")


def test_a_page_loses_paths_as_html_and_as_links() -> None:
    page = '<a href="file:///srv/home/studies/s/report.html">/srv/a&amp;b/rows.jsonl</a>'
    found = redact_page(page, PLACES | {"/srv/a&b/rows.jsonl": "rows.jsonl"})
    assert found == '<a href="file://studies/s/report.html">rows.jsonl</a>'


def test_the_home_is_one_of_the_places(context: Context) -> None:
    assert redact_paths({"came": f"{context.home}/a is not in {context.home}."}, home_paths(context)) == {
        "came": "a is not in the home."
    }


@given(st.text(st.characters(codec="utf-8")), st.sampled_from(sorted(ROW_TEXT)))
def test_any_text_of_a_row_comes_back_as_it_is(said: str, field: str) -> None:
    quoting = f"{said} /srv/home/cache/file.jsonl file.jsonl /imagine cats/dogs"
    for text in (said, quoting):
        assert redact_paths({"findings": [{field: text}]}, PLACES) == {"findings": [{field: text}]}


def test_a_sentence_keeps_the_bare_name_of_a_file() -> None:
    said = "the row says file.jsonl, in /srv/home/cache/file.jsonl"
    assert redact_paths({"message": said}, PLACES) == {"message": "the row says file.jsonl, in file-1"}

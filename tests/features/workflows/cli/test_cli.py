"""`luthier pipelines`: what it lists, shows and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.homes import (
    AUTO_ID,
    HEADLINE,
    RETRAIN_ID,
    SHOWDOWN_ID,
    add_auto,
    add_model_comparison,
    add_retrain,
)

from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context


@pytest.fixture
def filled(home: Path) -> Path:
    """One of each kind, and one of another project."""
    with Context.open(home) as context:
        add_model_comparison(context)
        add_auto(context, {"status": "failed", "reason": "its \x1b[31mrows have changed"})
        add_retrain(context, {"status": "running"}, project_id=create_project(context, "other").project_id)
    return home


def test_a_fresh_home_has_none(luthier, home):
    assert "luthier compare-models, luthier automl and luthier retrain" in luthier("pipelines", "list").out
    assert luthier("pipelines", "list", "--json").document == []


def test_the_list_tells_where_each_stands(luthier, filled):
    listed = luthier("pipelines", "list", "--json").document
    assert [(one["pipeline_id"], one["kind"], one["status"], one["stage"]) for one in listed] == [
        (AUTO_ID, "auto", "failed", "tune"),
        (SHOWDOWN_ID, "showdown", "done", None),
    ]
    assert [one["part_of"] for one in listed] == [None, AUTO_ID]
    text = luthier("pipelines", "list", "--kind", "showdown").out
    assert SHOWDOWN_ID in text
    assert AUTO_ID not in text
    other = luthier("pipelines", "list", "--project", "other", "--json").document
    assert [(one["pipeline_id"], one["status"]) for one in other] == [(RETRAIN_ID, "interrupted")]


@pytest.mark.parametrize(
    ("name", "stored", "shown"), [("compare-models", "showdown", SHOWDOWN_ID), ("automl", "auto", AUTO_ID)]
)
def test_a_kind_has_the_name_of_its_command_and_keeps_its_stored_one(luthier, filled, name, stored, shown):
    by_name, by_stored = (luthier("pipelines", "list", "--kind", kind, "--json").document for kind in (name, stored))
    assert [one["pipeline_id"] for one in by_name] == [shown]
    assert by_name == by_stored


def test_one_is_shown_with_its_stages_its_reason_and_how_it_goes_on(luthier, filled):
    text = luthier("pipelines", "show", AUTO_ID).out
    assert f"{AUTO_ID}: an automl run, failed" in text
    assert "  2/7 repair: done, 2.4 s\n      800 rows of grade A\n" in text
    assert "  5/7 tune: failed, 12 s\n      its \u241b[31mrows have changed\n" in text
    assert f"showdown {SHOWDOWN_ID}" in text
    assert f"resume it: luthier automl --resume {AUTO_ID}" in text
    shown = luthier("pipelines", "show", AUTO_ID, "--json").document
    assert (shown["answer"], shown["stages"][4]["status"], shown["stages"][6]["seconds"]) == (None, "failed", None)
    assert shown["asked"]["goal"] == "Answer with one SQL query."


def test_the_page_of_one_that_is_done_is_written_anew(luthier, filled):
    shown = luthier("pipelines", "show", SHOWDOWN_ID, "--json").document
    assert shown["answer"] == HEADLINE
    assert "<!DOCTYPE html>" in Path(shown["report_path"]).read_text()
    assert f"report: {shown['report_path']}" in luthier("pipelines", "show", SHOWDOWN_ID).out


def test_where_the_result_is_gone_too_the_stages_still_say_what_came_of_it(luthier, home):
    with Context.open(home) as context:
        add_model_comparison(context, is_kept=False)
    gone = luthier("pipelines", "show", SHOWDOWN_ID, "--json").document
    assert gone["report_path"] is None
    assert gone["answer"].startswith("One of them, tuned, is better")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "--kind", "study"], "one of compare-models, automl, retrain"),
        (["list", "--project", "nobodys"], "nobodys"),
        (["show", RETRAIN_ID], "luthier pipelines list"),
        (["show", SHOWDOWN_ID, "--project", "other"], "no workflow"),
    ],
)
def test_what_is_not_there_is_refused(luthier, filled, words, said):
    refused = luthier("pipelines", *words)
    assert refused.code == 2
    assert said in refused.err


@pytest.mark.parametrize("verb", ["compare-models", "automl", "retrain"])
def test_the_commands_that_begin_them_name_it(luthier, verb):
    assert "luthier pipelines" in luthier(verb, "--help").out.replace("\n", " ").replace("  ", " ")

"""Words of rating: what cannot be is refused, and a table that was written is read back as it was."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from luthier.core.errors import DataError, RequestError
from luthier.core.results.human_eval import AttentionCheck, Rating, RatingPanel, RatingRow, RatingsTable


def row(**values: Any) -> RatingRow:
    facts = {"panel_id": "panel-1", "kind": "pairwise", "item": 0, "row_id": "r:1", "rater": "Ada", "prompt": "Why?"}
    texts = {"system_a": "base", "answer_a": "so", "system_b": "tuned", "answer_b": "", "preference": "a"}
    return RatingRow.model_validate(facts | texts | values)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_rating_says_something_and_only_one_thing() -> None:
    with pytest.raises(ValidationError, match="a preference, or scores"):
        Rating(item=0, rater_id="r")
    with pytest.raises(ValidationError, match="a preference, or scores"):
        Rating(item=0, rater_id="r", preference="a", scores={"relevance": 3})
    with pytest.raises(ValidationError):
        Rating(item=0, rater_id="r", scores={"relevance": 6})


def test_checks_are_passed_by_saying_just_what_they_ask_for() -> None:
    pair, scores = AttentionCheck(how="garbled", preference="a"), AttentionCheck(how="instructed", score=2)
    assert Rating(item=0, rater_id="r", preference="a").passes(pair)
    assert not Rating(item=0, rater_id="r", preference="tie").passes(pair)
    assert Rating(item=0, rater_id="r", scores={"relevance": 2, "accuracy": 2}).passes(scores)
    assert not Rating(item=0, rater_id="r", scores={"relevance": 2, "accuracy": 3}).passes(scores)


def test_a_pairwise_panel_has_two_systems_of_different_names() -> None:
    facts = {"panel_id": "p", "name": "n", "kind": "pairwise", "source": "s", "seed": 1, "num_items": 1}
    for systems in (["base"], ["base", "base"]):
        with pytest.raises(ValidationError, match="different names"):
            RatingPanel.model_validate(facts | {"systems": systems})


def test_a_csv_is_read_back_as_it_was_with_empty_texts_and_line_breaks(tmp_path: Path) -> None:
    rows = (row(), row(item=1, answer_b='two\nlines, "quoted"', comment="", is_check=True, passed=False, seconds=1.5))
    path = write(tmp_path / "r.csv", [one.model_dump() for one in rows])
    assert RatingsTable.read(path).rows == rows


def test_views_of_a_table() -> None:
    table = RatingsTable((row(), row(rater="Ben", item=3), row(item=4, is_check=True, system_a="attention check")))
    assert table.raters == ("Ada", "Ben")
    assert table.systems == ("base", "tuned"), "checks are written by no system"
    assert len(table.real.rows) == 2
    assert table.without(["Ada"]).raters == ("Ben",)
    assert sorted(table.by_item()) == [0, 3, 4]


@pytest.mark.parametrize("name", ["ratings.txt", "missing.csv"])
def test_files_that_are_none_are_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / "ratings.txt").write_text("x")
    with pytest.raises(RequestError, match="luthier human-eval export"):
        RatingsTable.read(tmp_path / name)


def test_wrong_rows_are_named_by_their_line(tmp_path: Path) -> None:
    good = row().model_dump()
    path = write(tmp_path / "r.csv", [good, good | {"preference": "c"}, good | {"item": "x"}])
    with pytest.raises(DataError) as caught:
        RatingsTable.read(path)
    assert [problem.line for problem in caught.value.problems] == [3, 4]
    assert caught.value.problems[0].field == "preference"
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="Parquet"):
        RatingsTable.read(tmp_path / "bad.parquet")
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="CSV"):
        RatingsTable.read(tmp_path / "bad.csv")

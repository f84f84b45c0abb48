"""What a home keeps of a person beside rows, review and feedback: all of it is found, and removed where it can be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Text, select, update
from tests import homes
from tests.assessed import make_panel
from tests.full_home import QUOTED, fill_home
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.ports import Generation
from luthier.core.records.traffic import Exchange
from luthier.core.results.human_eval import Rating
from luthier.features.lineage.forget import forget_row, preview_forget
from luthier.features.lineage.other_texts import find_other_texts, holds_of
from luthier.features.traffic import service as traffic
from luthier.features.traffic.stored_completions import StoredCompletion
from luthier.platform.audit_log.service import newest_entries
from luthier.platform.auth.service import create_project
from luthier.platform.db.stored_texts import FORGOTTEN, TEXT_TABLES, WITHOUT_TEXTS, find_stored_texts, parsed
from luthier.platform.db.tables import generations, metadata
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.testing.records import make_plan, make_record

ME = Caller()
SECRET = "Ann Example lives at 4 Mill Lane"
NOT_SEARCHED = {
    "eval_runs.totals", "exports.source", "generations.engine", "runs.base_model", "runs.report_path",
    "stored_responses.earlier_ids", "webhook_deliveries.last_answer",
}  # fmt: skip
"""Columns of searched tables with paths, names and counts alone."""
NEVER_FILLED = {
    "alert", "answer to a repeated request", "decision about a row", "message to a webhook", "name or note of a run",
    "rating", "saved view of runs", "setting or mail of the project", "stored generation", "tag of a run",
    "trial of a study",
}  # fmt: skip
"""What the full home may have none of; these are planted by the tests below or have the same form as others."""


@pytest.fixture
def full(tmp_path: Path, tiny_model: Path) -> Iterator[Context]:
    """A home with one of everything."""
    folder = tmp_path / "rows"
    folder.mkdir()
    with Context.open(tmp_path / "home") as context:
        fill_home(context, folder, tiny_model)
        yield context


def completion(completion_id: str, text: str, project_id: str = "default") -> StoredCompletion:
    asked = {"messages": [{"role": "user", "content": text}]}
    said = {"id": completion_id, "object": "chat.completion"}
    return StoredCompletion(
        completion_id=completion_id, project_id=project_id, model="m", user_digest="", labels={},
        document={"request": asked, "response": said},
    )  # fmt: skip


def holding(context: Context, words: str) -> dict[str, int]:
    """Rows of each table that contain words, however they are written there."""
    found = {}
    with context.database.read() as connection:
        for name, table in metadata.tables.items():
            rows = connection.execute(select(table)).mappings().all()
            if num := sum(any(words in str(value) for value in row.values()) for row in rows):
                found[name] = num
    return found


def actions(found: Any) -> dict[str, str]:
    return {one.what: one.action for one in found}


def test_every_table_is_searched_or_has_a_reason_not_to_be() -> None:
    searched = [one.table.name for one in TEXT_TABLES]
    assert sorted([*searched, *WITHOUT_TEXTS]) == sorted(metadata.tables)
    for one in nonempty(TEXT_TABLES):
        texts = {column.name for column in one.table.columns if isinstance(column.type, Text)}
        missing = {f"{one.table.name}.{name}" for name in texts - {column.name for column in one.columns}}
        assert missing <= NOT_SEARCHED, one.title
        assert one.action != "blank" or one.spec, one.title


def test_a_name_in_any_column_of_any_table_is_found(full: Context) -> None:
    planted = set[str]()
    for one in nonempty(TEXT_TABLES):
        with full.database.transaction(), full.database.write() as connection:
            row = connection.execute(select(one.table).where(one.of_project("default")).limit(1)).mappings().first()
            if row is None or one.action == "own":
                continue
            is_it = [column == row[column.name] for column in one.table.primary_key]
            for column in nonempty(one.columns):
                document = parsed(row[column.name])
                text = json.dumps(document | {"planted": [SECRET]}) if isinstance(document, dict) else SECRET
                savepoint = connection.begin_nested()
                connection.execute(update(one.table).where(*is_it).values(**{column.name: text}))
                found = [stored.where.title for stored in find_stored_texts(full.database, "default", holds_of(SECRET))]
                savepoint.rollback()
                assert found == [one.title], column
        planted.add(one.title)
    titles = {one.title for one in TEXT_TABLES if one.action != "own"}
    assert titles - planted <= NEVER_FILLED


def test_what_was_written_into_a_home_is_found_and_leaves_it_but_for_what_is_named(full: Context) -> None:
    words = "cats/dogs"
    (one,) = [one for one in full.evaluations.list() if words in one.model_dump_json()]
    before = full.evaluations.read(one.evaluation_id)
    seen = preview_forget(full, ME, QUOTED)
    held = holding(full, words)
    assert {"evaluations", "stored_completions", "stored_responses", "eval_output_items", "eval_runs"} <= set(held)
    titles = {table.table.name: table.title for table in TEXT_TABLES}
    own = {table.table.name for table in TEXT_TABLES if table.action == "own"}
    found = actions(seen.others.stored)
    assert {titles[name] for name in held if name not in own} <= set(found)
    assert found["logged request"] == "blanked"
    assert found["file"] == "kept", "the input of a batch"
    assert holding(full, words) == held, "nothing is changed by looking"

    done = forget_row(full, ME, QUOTED)

    left = {one.what for one in done.stored if one.action == "kept"}
    assert {titles[name] for name in holding(full, words)} <= left
    for name in nonempty(("evaluation", "stored chat completion", "graded item of an eval", "run of an eval")):
        assert name not in left
    kept = [sentence for sentence in done.left if "keeps it" in sentence]
    assert len(kept) >= len(left)
    after = full.evaluations.read(one.evaluation_id)
    assert after.systems[0].samples[0].output == FORGOTTEN
    assert before.systems[0].samples[0].output == QUOTED
    assert [one.metrics for one in after.systems] == [one.metrics for one in before.systems]
    assert after.comparisons == before.comparisons
    again = preview_forget(full, ME, QUOTED)
    assert not again.changes_anything
    entry = newest_entries(full, limit=5)
    assert {"row.forgotten", "traffic.texts_forgotten"} <= {one.action for one in entry}
    assert not any(words in one.document for one in entry)


def test_logged_requests_lose_their_texts_and_keep_the_rest(context: Context) -> None:
    other = create_project(context, "others").project_id
    for number, (project_id, text) in enumerate([("default", SECRET), ("default", "hello"), (other, SECRET)]):
        turns: tuple[dict[str, Any], ...] = ({"role": "user", "content": text},)
        exchange = Exchange(
            exchange_id=f"chatcmpl-{number}", project_id=project_id, at=context.access.now(), model="m",
            messages=turns, answer=f"You said: {text}", num_prompt_tokens=7,
        )  # fmt: skip
        traffic.record(context, exchange)
    assert actions(preview_forget(context, ME, SECRET).others.stored) == {"logged request": "blanked"}
    done = forget_row(context, ME, SECRET)
    assert [(one.what, one.num) for one in done.stored] == [("logged request", 1)]
    first, second = (traffic.exchange(context, "default", f"chatcmpl-{number}") for number in range(2))
    assert (first.messages, first.answer, first.has_text, first.num_prompt_tokens) == (None, None, False, 7)
    assert (second.answer, second.has_text) == ("You said: hello", True)
    assert traffic.exchange(context, other, "chatcmpl-2").answer == f"You said: {SECRET}"
    folder = context.settings.traffic_folder / "files"
    left = [path for path in nonempty(list(folder.rglob("*.parquet"))) if other not in str(path)]
    assert all(SECRET.encode() not in path.read_bytes() for path in nonempty(left))


def test_texts_of_other_projects_stay(context: Context) -> None:
    other = create_project(context, "others").project_id
    for project_id in ("default", other):
        context.stored_completions.add(completion(f"chatcmpl-{project_id}", SECRET, project_id))
        made = Generation(text=SECRET, num_prompt_tokens=1, num_new_tokens=1, finish_reason="stop")
        context.generations.of_project(project_id).keep({"a": made}, engine="e")
    context.generations.keep({"b": made}, engine="e")
    done = forget_row(context, ME, f"  {SECRET.upper()} ")
    assert {one.what: one.num for one in done.stored} == {"stored chat completion": 1, "stored generation": 2}
    with context.database.read() as connection:
        assert connection.execute(select(generations.c.project_id)).scalars().all() == [other]
    assert context.stored_completions.get(other, f"chatcmpl-{other}").document["request"]["messages"]
    assert find_other_texts(context, ME, SECRET).stored == ()


def test_the_beginning_of_an_id_and_words_of_the_api_are_nobodys(context: Context) -> None:
    context.stored_completions.add(completion("chatcmpl-12345", "hello, you"))
    for words in ("chatcmpl-", "chatcmpl-1234", "chat.completion"):
        assert find_other_texts(context, ME, words).stored == (), words
    found = find_other_texts(context, ME, "chatcmpl-12345")
    assert [(one.what, one.ids) for one in found.stored] == [("stored chat completion", ("chatcmpl-12345",))]


def test_files_that_are_no_rows_of_a_dataset_are_named_and_those_that_cannot_be_searched_too(context: Context) -> None:
    def add(name: str, content: bytes) -> str:
        with files.incoming_file(context) as incoming:
            incoming.write(content)
            return files.keep_file(context, "default", incoming, filename=name, purpose="user_data").file_id

    rows = json.dumps({"body": {"messages": [{"role": "user", "content": "Zo\u00eb wohnt hier: 4 M\u00fchlweg"}]}})
    held = add("batch.jsonl", rows.encode())
    noted = add("notes.md", "# Zoë wohnt  hier: 4 MÜHLWEG\n".encode())
    add("other.jsonl", b'{"a": "b"}\n')
    document = add("papers.pdf", b"%PDF-1.7\n\0\0\1")
    found = find_other_texts(context, ME, "Zoë wohnt hier: 4 Mühlweg")
    assert {(one.what, frozenset(one.ids), one.action) for one in found.stored} == {
        ("file", frozenset({held, noted}), "kept")
    }
    assert [document in sentence for sentence in found.unread] == [True]


def test_reports_in_the_folders_of_runs_and_jobs_are_named(context: Context) -> None:
    run_id = homes.add_run(context, "a", "0" * 64)
    folder = context.settings.run_folder(run_id)
    (folder / "report.html").write_text("<p>It&#39;s Zo&euml; &amp; Ann, 4 Mill Lane</p>", encoding="utf-8")
    (folder / "model" / "tokenizer.json").write_text('["It\'s Zoë & Ann, 4 Mill Lane"]', encoding="utf-8")
    elsewhere = context.home / "quickstart" / run_id
    elsewhere.mkdir(parents=True)
    (elsewhere / "log.jsonl").write_text('{"text": "It\'s Zo\\u00eb & Ann, 4 Mill Lane"}\n', encoding="utf-8")
    done = forget_row(context, ME, "It's Zoë & Ann, 4 Mill Lane")
    (one,) = done.stored
    assert (one.what, one.action, one.do) == ("file in the folder of a run", "kept", "delete the run")
    assert set(one.ids) == {f"runs/{run_id}/report.html", f"quickstart/{run_id}/log.jsonl"}
    assert (folder / "report.html").is_file()
    assert any(f"runs/{run_id}/report.html" in sentence for sentence in done.left)


def test_a_panel_loses_the_texts_and_keeps_its_ratings(context: Context) -> None:
    made = make_panel(context, attention=0.0)
    panel_id, rater_id = made.panel.panel_id, made.links[0].rater.rater_id
    said = Rating(item=0, rater_id=rater_id, preference="a", comment=f"As {SECRET} says.")
    context.rating_panels.keep(panel_id, said)
    context.rating_panels.keep(panel_id, said.model_copy(update={"item": 1, "comment": "Fine."}))
    shown = context.rating_panels.item(panel_id, 2)
    words = shown.prompt
    done = forget_row(context, ME, SECRET)
    assert [(one.what, one.num, one.action) for one in done.stored] == [("rating", 1, "blanked")]
    assert [(one.item, one.preference, one.comment) for one in context.rating_panels.ratings(panel_id, rater_id)] == [
        (0, "a", FORGOTTEN), (1, "a", "Fine."),
    ]  # fmt: skip
    assert {one.what: one.num for one in forget_row(context, ME, words).stored} == {"item of a panel": 1}
    after = context.rating_panels.item(panel_id, 2)
    assert after.prompt == FORGOTTEN
    assert (after.item, len(after.answers)) == (2, len(shown.answers))
    assert len(context.rating_panels.items(panel_id)) == made.panel.num_items


def test_caches_lose_what_holds_the_words_and_all_tokens(context: Context) -> None:
    settings = context.settings
    row = json.dumps({"prompt": "Where?", "completion": SECRET}) + "\n"
    other = json.dumps({"prompt": "Where?", "completion": "Here."}) + "\n"

    def plant(path: Path, content: str | bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    gone = [
        plant(settings.mixtures_folder / ("a" * 64) / "rows.jsonl", row),
        plant(settings.remote_data_folder / "files" / ("b" * 64) / "rows.jsonl", row),
        plant(settings.answers_folder / ("c" * 64) / "audit-1.json", json.dumps({"answer": {"quote": [SECRET]}})),
        plant(settings.labels_folder / "d" / "labels.json", json.dumps({"num_rows": 1, "answers": [[SECRET, 1]]})),
    ]
    tokens = plant(settings.tokenised_folder / ("e" * 64), b"\0\1\2")
    stays = [
        plant(settings.mixtures_folder / ("f" * 64) / "rows.jsonl", other),
        plant(settings.answers_folder / ("0" * 64) / "audit-1.json", "{}"),
    ]
    seen = preview_forget(context, ME, SECRET).others
    assert [(one.what, one.num, one.action) for one in seen.stored] == [("entry of a cache", 4, "deleted")]
    assert [sentence for sentence in seen.unread if "tokenised rows cannot be searched" in sentence]
    assert all(path.is_file() for path in (*gone, tokens, *stays))
    done = forget_row(context, ME, SECRET)
    assert [(one.what, one.num, one.action) for one in done.stored] == [
        ("entry of a cache", 4, "deleted"),
        ("file of tokenised rows in the cache", 1, "deleted"),
    ]
    assert [path for path in (*gone, tokens) if path.exists()] == []
    assert [path for path in stays if not path.is_file()] == []


def test_prompts_that_wait_for_a_provider_and_rows_that_a_run_reads_are_named(context: Context) -> None:
    other = create_project(context, "others").project_id
    for folder in (context.settings.teacher_batches_folder, context.settings.teacher_batches_folder / other):
        folder.mkdir(parents=True)
        body = {"messages": [{"role": "user", "content": SECRET}]}
        (folder / "a-1.jsonl").write_text(json.dumps({"url": "/v1", "body": body}) + "\n", encoding="utf-8")
    rows = context.settings.mixtures_folder / "mixed" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text(json.dumps({"prompt": "Where?", "completion": SECRET}) + "\n", encoding="utf-8")
    plan = make_plan()
    train = plan.data.train.model_copy(update={"file": str(rows)})
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"train": train})})
    context.runs.create(make_record(status="paused"), plan)
    done = forget_row(context, ME, SECRET)
    held = {one.what: (one.ids, one.action) for one in done.stored}
    assert held["entry of a cache"] == (("mixed",), "kept")
    assert held["batch of prompts at a provider"] == (("teacher_batches/a-1.jsonl",), "kept")
    assert rows.is_file()
    assert any("teacher_batches/a-1.jsonl" in sentence for sentence in done.left)

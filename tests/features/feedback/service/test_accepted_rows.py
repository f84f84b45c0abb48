"""Accepted answers become the next version of a dataset: in its columns, once, and never what is held out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.records.traffic import ReviewItem, answer_of_calls
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.store import DatasetStore, DatasetVersion
from luthier.features.feedback import accepted_rows
from luthier.features.feedback import review as review_queue
from luthier.features.feedback.accepted_rows import add_accepted, add_to_new_dataset, targets
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

ME = Caller(name="ann")


def accept(
    context: Context, number: int, *, prompt: str = "", answer: str = "", before: tuple[dict[str, str], ...] = ()
) -> str:
    item = ReviewItem(
        review_id=f"review-20261125-0930{number:02}-aaaaaa",
        project_id="default",
        model="shop-bot",
        source="correction",
        exchange_id=f"chatcmpl-{number}",
        messages=(
            *before,
            {"role": "user", "content": prompt or f"What is the price of the walnut board number {number}?"},
        ),
        answer="I do not know.",
        correction=answer or f"It costs {number} euros and is sent within two days.",
    )
    context.review_items.add([item])
    review_queue.decide(context, ME, context.review_items.get(item.review_id, "default"), "accept")
    return item.review_id


def dataset(context: Context, name: str, content: str, filename: str = "rows.jsonl", **details: Any) -> str:
    file = dataset_versions.keep_rows(context, ME, [content.encode()], filename)
    origin = "split" if details else "upload"
    made, _ = dataset_versions.create_dataset(context, ME, name, file, origin=origin, details=details)  # type: ignore[arg-type]
    return made.dataset_id


def indexed(context: Context, dataset_id: str) -> None:
    """Index a table here, which a child process would do otherwise."""
    from luthier.ml.data.rows.row_index import build_index
    from luthier.platform.files import service as files

    version = dataset_versions.get_version(context, ME, dataset_id)
    place = files.place_of(context, files.get_file(context, ME.project_id, version.file_id))
    build_index(dataset_versions.path_of(context, ME, version), place.with_name(f"rows-{place.name}"))


def rows_of(context: Context, dataset_id: str) -> list[dict[str, Any]]:
    newest = dataset_versions.get_version(context, ME, dataset_id)
    text = dataset_versions.path_of(context, ME, newest).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


CHAT = '{"messages":[{"role":"user","content":"Hello?"},{"role":"assistant","content":"Hi."}]}\n'


def test_accepted_answers_are_added_once_and_earlier_rows_stay_byte_for_byte(context: Context) -> None:
    faq = dataset(context, "faq", CHAT)
    first = accept(context, 1, before=({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}))
    (target,) = targets(context, ME)
    assert (target.dataset.name, target.version.number, target.num_new) == ("faq", 1, 1)
    made = add_accepted(context, ME, faq)
    assert (made.version.number, made.num_added, made.num_replaced, dict(made.left_out)) == (2, 1, 0, {})
    assert made.cautions == ("the project has no held-out rows, so none were compared",)
    assert (made.version.origin, made.version.parent, made.version.details["review_ids"]) == ("review", 1, [first])
    path = dataset_versions.path_of(context, ME, made.version)
    assert path.read_text(encoding="utf-8").startswith(CHAT)
    turns = rows_of(context, faq)[1]["messages"]
    assert [(one["role"], one.get("weight")) for one in turns] == [
        ("user", None),
        ("assistant", 0),
        ("user", None),
        ("assistant", None),
    ]
    assert targets(context, ME)[0].num_new == 0
    with pytest.raises(ConflictError, match="of 0 accepted answers none can be added"):
        add_accepted(context, ME, faq)
    accept(context, 2)
    assert add_accepted(context, ME, faq, "shop-bot").version.number == 3
    assert len(rows_of(context, faq)) == 3


def test_a_correction_replaces_the_row_with_its_prompt(context: Context) -> None:
    old = '{"messages":[{"role":"user","content":"what is THE price?"},{"role":"assistant","content":"Free."}]}\n'
    faq = dataset(context, "faq", CHAT + old)
    accept(context, 1, prompt="What is the price?", answer="9 euros.")
    accept(context, 2, prompt="Hello?", answer="Hi.")
    made = add_accepted(context, ME, faq)
    assert (made.num_added, made.num_replaced) == (1, 1)
    assert dict(made.left_out) == {"is in the dataset already": 1}
    assert [row["messages"][-1]["content"] for row in rows_of(context, faq)] == ["Hi.", "9 euros."]


def test_an_answer_that_is_corrected_again_after_it_was_added_replaces_its_row(context: Context) -> None:
    faq = dataset(context, "faq", CHAT)
    review_id = accept(context, 1, answer="9 euros.")
    assert add_accepted(context, ME, faq).num_added == 1
    review_queue.undo(context, ME, review_id)
    again = context.review_items.get(review_id, "default")
    review_queue.decide(context, ME, again, "accept", edited="10 euros.")
    assert targets(context, ME)[0].num_new == 1
    made = add_accepted(context, ME, faq)
    assert (made.version.number, made.num_added, made.num_replaced) == (3, 1, 1)
    assert [row["messages"][-1]["content"] for row in rows_of(context, faq)] == ["Hi.", "10 euros."]
    assert targets(context, ME)[0].num_new == 0


def test_answers_of_a_version_that_the_newest_one_was_not_made_of_are_added_to_that(context: Context) -> None:
    faq = dataset(context, "faq", CHAT)
    accept(context, 1)
    assert add_accepted(context, ME, faq).version.number == 2
    # Somebody has gone through the rows of version 1 meanwhile.
    file = dataset_versions.keep_rows(context, ME, [CHAT.replace("Hi.", "Hi!").encode()], "rows.jsonl")
    dataset_versions.add_version(context, ME, faq, file, origin="annotation", parent=1)
    assert targets(context, ME)[0].num_new == 1
    assert add_accepted(context, ME, faq).version.number == 4
    assert [row["messages"][-1]["content"] for row in rows_of(context, faq)] == [
        "Hi!",
        "It costs 1 euros and is sent within two days.",
    ]
    assert targets(context, ME)[0].num_new == 0


@pytest.mark.parametrize("origin", ["split", "import", "documents"])
def test_a_version_whose_rows_come_from_elsewhere_has_none_of_the_answers_before(
    context: Context, origin: Literal["split", "import", "documents"]
) -> None:
    faq = dataset(context, "faq", CHAT)
    accept(context, 1)
    assert add_accepted(context, ME, faq).version.number == 2
    file = dataset_versions.keep_rows(context, ME, [CHAT.encode()], "rows.jsonl")
    dataset_versions.add_version(context, ME, faq, file, origin=origin, parent=2)
    assert targets(context, ME)[0].num_new == 1
    assert len(rows_of(context, faq)) == 1
    assert add_accepted(context, ME, faq).num_added == 1
    assert len(rows_of(context, faq)) == 2


def test_versions_of_earlier_releases_hold_what_they_name(context: Context) -> None:
    review_id = accept(context, 1)
    file = dataset_versions.keep_rows(context, ME, [CHAT.encode()], "rows.jsonl")
    dataset_versions.create_dataset(context, ME, "faq", file, origin="review", details={"review_ids": [review_id]})
    assert [(one.dataset.name, one.num_new) for one in targets(context, ME)] == [("faq", 0)]


def test_held_out_rows_and_what_is_nearly_one_are_not_added(context: Context) -> None:
    faq = dataset(context, "faq", CHAT)
    long = "Please tell me in one sentence how many days it takes until a walnut board arrives in the north of Norway"
    held = [
        {"messages": [{"role": "user", "content": "Which wood is it?"}, {"role": "assistant", "content": "Oak."}]},
        {
            "messages": [
                {"role": "user", "content": f"{long}?"},
                {"role": "assistant", "content": "It takes nine days."},
            ]
        },
    ]
    lines = "".join(json.dumps(row) + "\n" for row in held)
    of = {"dataset_id": "data-20261125-093000-aaaaaa", "name": "all", "version": 1}
    side = dataset(context, "all-held-out", lines, of=of, side="held_out", split={})
    accept(context, 1, prompt="which  wood is IT?", answer="Walnut.")
    accept(context, 2, prompt=f"{long}, please?", answer="It takes nine days.")
    accept(context, 3)
    made = add_accepted(context, ME, faq)
    assert made.num_added == 1
    assert dict(made.left_out) == {"is a held-out row of all-held-out, or nearly so": 2}
    assert made.cautions == ()
    with pytest.raises(ConflictError, match="is the held-out side of a split"):
        add_accepted(context, ME, side)
    assert [one.dataset.name for one in targets(context, ME)] == ["faq"]


def test_a_held_out_side_is_known_after_many_changes_and_read_at_once(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = {"dataset_id": "data-20261125-093000-aaaaaa", "name": "all", "version": 1}
    side = dataset(context, "all-held-out", CHAT, of=of, side="held_out", split={})
    file = dataset_versions.keep_rows(context, ME, [CHAT.encode()], "rows.jsonl")
    for parent in range(1, 6):
        dataset_versions.add_version(context, ME, side, file, origin="annotation", parent=parent)
    read: list[str] = []
    versions = DatasetStore.versions

    def counted(store: DatasetStore, dataset_id: str) -> Sequence[DatasetVersion]:
        read.append(dataset_id)
        return versions(store, dataset_id)

    monkeypatch.setattr(DatasetStore, "versions", counted)
    assert targets(context, ME) == []
    assert read == [side]


def test_answers_take_the_columns_of_the_dataset(context: Context) -> None:
    table = dataset(context, "table", "Question,Answer\nHello?,Hi.\nBye?,Bye.\n", "rows.csv")
    indexed(context, table)
    accept(context, 1)
    accept(context, 2, before=({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}))
    accept(context, 3, before=({"role": "system", "content": "Be brief."},))
    made = add_accepted(context, ME, table)
    assert made.num_added == 1
    assert dict(made.left_out) == {
        "is a conversation of several turns, for which the dataset has no columns": 1,
        "has a system prompt, for which the dataset has no column": 1,
    }
    rows = rows_of(context, table)
    assert [row["Answer"] for row in rows] == ["Hi.", "Bye.", "It costs 1 euros and is sent within two days."]
    alpaca = dataset(context, "alpaca", '{"instruction":"Hello?","input":"","output":"Hi."}\n')
    assert add_accepted(context, ME, alpaca).num_added == 1
    assert rows_of(context, alpaca)[1]["input"] == ""
    text = dataset(context, "texts", '{"text":"Hello."}\n')
    with pytest.raises(ConflictError, match="the shape text"):
        add_accepted(context, ME, text)


@pytest.mark.parametrize("said", ["", "I look it up."])
def test_an_answer_of_tool_calls_is_left_out_with_a_reason(said: str, context: Context) -> None:
    """The log keeps calls as JSON in the place of the answer: a model would learn to write that."""
    function = {"name": "price", "arguments": '{"wood": "maple"}'}
    logged = answer_of_calls([{"id": "call_1", "type": "function", "function": function}], said)
    faq = dataset(context, "faq", CHAT)
    accept(context, 1, answer=logged)
    accept(context, 2, answer='{"tool_calls": "is a word of ours"}')
    made = add_accepted(context, ME, faq)
    assert (made.num_added, dict(made.left_out)) == (1, {accepted_rows.CALLS_TOOLS: 1})
    assert "tool_calls" in rows_of(context, faq)[1]["messages"][-1]["content"]


def test_of_one_prompt_the_later_decision_is_added(context: Context) -> None:
    faq = dataset(context, "faq", CHAT)
    accept(context, 1, prompt="Same?", answer="First.")
    accept(context, 2, prompt="same?", answer="Second.")
    made = add_accepted(context, ME, faq)
    assert dict(made.left_out) == {"the same prompt was decided again later": 1}
    assert rows_of(context, faq)[1]["messages"][-1]["content"] == "Second."


def test_a_new_dataset_is_made_and_other_projects_are_out_of_reach(context: Context) -> None:
    with pytest.raises(ConflictError, match="none can be added"):
        add_to_new_dataset(context, ME, "reviewed")
    accept(context, 1)
    made = add_to_new_dataset(context, ME, "reviewed", "shop-bot")
    assert (made.version.number, made.version.num_rows, made.num_added) == (1, 1, 1)
    with pytest.raises(ConflictError, match="exists already"):
        add_to_new_dataset(context, ME, "reviewed")
    with pytest.raises(RequestError, match="printable"):
        add_to_new_dataset(context, ME, " ")
    other = Caller(project_id=create_project(context, "other").project_id)
    with pytest.raises(NotFoundError):
        add_accepted(context, other, made.version.dataset_id)
    assert targets(context, other) == []


def test_chosen_columns_count_for_the_dataset_and_for_held_out_rows(context: Context) -> None:
    chosen = {"prompt": "Frage", "completion": "Antwort"}
    row = {"Frage": "Which wood is it?", "Notiz": "x y z, from an old list of all boards", "Antwort": "Oak."}
    faq = dataset(context, "faq", json.dumps(row | {"Frage": "Hello?"}) + "\n")
    context.datasets.choose_columns(faq, 1, chosen)
    of = {"dataset_id": "data-20261125-093000-aaaaaa", "name": "all", "version": 1}
    side = dataset(context, "all-held-out", json.dumps(row) + "\n", of=of, side="held_out", split={})
    context.datasets.choose_columns(side, 1, chosen)
    accept(context, 1, prompt="which  wood is IT?", answer="Walnut.")
    accept(context, 2)
    made = add_accepted(context, ME, faq)
    assert dict(made.left_out) == {"is a held-out row of all-held-out, or nearly so": 1}
    assert made.cautions == ()
    assert rows_of(context, faq)[1] == {
        "Frage": "What is the price of the walnut board number 2?",
        "Antwort": "It costs 2 euros and is sent within two days.",
    }


def test_held_out_rows_whose_prompts_are_not_known_are_named(context: Context) -> None:
    faq = dataset(context, "faq", CHAT)
    of = {"dataset_id": "data-20261125-093000-aaaaaa", "name": "all", "version": 1}
    dataset(context, "all-held-out", '{"Frage":"Who?","Antwort":"Ann."}\n', of=of, side="held_out", split={})
    accept(context, 1)
    assert add_accepted(context, ME, faq).cautions == (
        "all-held-out has no columns that are known as prompts: equal prompts were not searched",
    )


def test_two_people_who_add_answers_together_lose_none(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    faq = dataset(context, "faq", CHAT)
    accept(context, 1)
    lock = accepted_rows.file_lock

    @contextmanager
    def behind_another(*given: Any, **more: Any) -> Iterator[None]:
        monkeypatch.setattr(accepted_rows, "file_lock", lock)
        assert add_accepted(context, ME, faq).version.number == 2
        accept(context, 2)
        with lock(*given, **more):
            yield

    monkeypatch.setattr(accepted_rows, "file_lock", behind_another)
    made = add_accepted(context, ME, faq)
    assert (made.version.number, made.version.parent, made.num_added) == (3, 2, 1)
    assert [row["messages"][-1]["content"] for row in rows_of(context, faq)] == [
        "Hi.",
        "It costs 1 euros and is sent within two days.",
        "It costs 2 euros and is sent within two days.",
    ]


def test_answers_are_not_added_to_a_version_that_is_not_the_newest_any_more(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    faq = dataset(context, "faq", CHAT)
    accept(context, 1)
    keep = dataset_versions.keep_rows

    def meanwhile(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(dataset_versions, "keep_rows", keep)
        file = keep(context, ME, [CHAT.encode() * 2], "rows.jsonl")
        dataset_versions.add_version(context, ME, faq, file, origin="upload", parent=1)
        return keep(*given, **more)

    monkeypatch.setattr(dataset_versions, "keep_rows", meanwhile)
    with pytest.raises(ConflictError, match="version 2 was added"):
        add_accepted(context, ME, faq)
    assert add_accepted(context, ME, faq).version.number == 3
    assert len(rows_of(context, faq)) == 3

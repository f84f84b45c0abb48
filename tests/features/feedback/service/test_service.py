"""What people say of answers: the newest word counts, unknown answers are refused, corrections are looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.records.traffic import Exchange, TrafficPolicy
from luthier.features.feedback import review as review_queue
from luthier.features.feedback import service as feedback
from luthier.features.feedback.service import FeedbackInput
from luthier.features.traffic import service as traffic
from luthier.features.traffic.policy import set_traffic_policy
from luthier.platform.home.context import Context

CALLER = Caller(name="ann")
HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e'; drop table feedback; --\x00"


def asked(context: Context, number: int = 1, *, words: bool = True, **fields: object) -> str:
    values: dict[str, object] = {
        "exchange_id": f"chatcmpl-{number}",
        "project_id": DEFAULT_PROJECT,
        "at": 1_790_000_000.0 + number,
        "model": "shop-bot",
    }
    if words:
        values |= {"messages": ({"role": "user", "content": f"Question {number}?"},), "answer": f"Answer {number}."}
    exchange = Exchange(**(values | fields))
    traffic.record(context, exchange)
    return exchange.exchange_id


def give(context: Context, exchange_id: str, **said: object) -> feedback.FeedbackResult:
    return feedback.give(context, CALLER, FeedbackInput.model_validate({"exchange_id": exchange_id} | said))


def items(context: Context) -> list[tuple[str | None, str]]:
    return [(one.correction, one.status) for one in context.review_items.list(DEFAULT_PROJECT)]


def test_duplicates_replace_and_the_same_again_changes_nothing(context: Context) -> None:
    one = asked(context)
    first = give(context, one, thumb="up", author="u1")
    again = give(context, one, thumb="up", author="u1")
    assert (first.outcome, again.outcome) == ("new", "same")
    assert again.feedback == first.feedback
    other = give(context, one, thumb="down", score=0.2, author="u1")
    assert (other.outcome, other.feedback.feedback_id) == ("replaced", first.feedback.feedback_id)
    assert give(context, one, thumb="up", author=" u2 ").outcome == "new", "another author"
    kept = feedback.feedback_of(context, DEFAULT_PROJECT, [one])
    assert [(said.author, said.thumb, said.score) for said in kept] == [("u1", "down", 0.2), ("u2", "up", None)]
    assert feedback.list_feedback(context, DEFAULT_PROJECT, model="other") == []
    assert feedback.list_feedback(context, "other") == []


def test_an_unknown_answer_is_refused_and_so_is_another_projects(context: Context) -> None:
    for unknown in ("chatcmpl-none", "x\x00", "x y", "ä", asked(context, project_id="other")):
        with pytest.raises(NotFoundError):
            give(context, unknown, thumb="up")
    assert feedback.list_feedback(context, DEFAULT_PROJECT) == []


@pytest.mark.parametrize("said", [{}, {"comment": "hm"}, {"correction": "  "}])
def test_what_says_nothing_is_refused(context: Context, said: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="empty feedback"):
        give(context, asked(context), **said)


@pytest.mark.parametrize("said", [{"score": 1.1}, {"score": float("nan")}, {"thumb": "sideways"}, {"more": 1}])
def test_what_cannot_be_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FeedbackInput.model_validate({"exchange_id": "x"} | said)


def test_a_correction_waits_for_review_once(context: Context) -> None:
    one = asked(context)
    given = give(context, one, correction="Better.", author="u1")
    assert given.is_queued
    assert items(context) == [("Better.", "waiting")]
    assert give(context, one, correction="Better.", author="u1").is_queued
    assert give(context, one, correction="Best.", author="u1").is_queued
    assert items(context) == [("Best.", "waiting")], "the newest word of an author"
    give(context, one, correction="Other.", author="u2")
    assert items(context) == [("Best.", "waiting"), ("Other.", "waiting")]
    give(context, one, thumb="down", author="u1")
    assert items(context) == [("Other.", "waiting")], "taken back"


def test_a_correction_that_was_decided_waits_again_only_when_it_changes(context: Context) -> None:
    one = asked(context)
    give(context, one, correction="Better.", author="u1")
    (item,) = context.review_items.list(DEFAULT_PROJECT)
    review_queue.decide(context, CALLER, item, "accept", edited="Better indeed.")
    again = give(context, one, correction="Better.", thumb="up", author="u1")
    assert not again.is_queued
    assert "reviewed before" in again.why_not
    assert items(context) == [("Better indeed.", "accepted")]
    give(context, one, thumb="up", author="u1")
    assert items(context) == [("Better indeed.", "accepted")], "what was decided stays"
    assert give(context, one, correction="No: worse.", author="u1").is_queued
    assert items(context) == [("No: worse.", "waiting")]


def test_without_the_words_of_the_answer_it_says_why_nobody_can_review(context: Context) -> None:
    given = give(context, asked(context, words=False), correction="Better.")
    assert not given.is_queued
    assert "was not stored" in given.why_not
    assert given.feedback.correction == "Better."
    assert items(context) == []


def test_personal_data_is_masked_as_the_policy_says(context: Context) -> None:
    one = asked(context)
    text = "Write to anna.miller@gmail.com."
    masked = give(context, one, correction=text, comment=text, author="u1").feedback
    assert "anna.miller" not in f"{masked.correction} {masked.comment}"
    set_traffic_policy(context, CALLER, TrafficPolicy(keep="full", mask_personal_data=False))
    assert give(context, one, correction=text, author="u2").feedback.correction == text


def test_hostile_text_is_kept_as_text(context: Context) -> None:
    given = give(context, asked(context), correction=HOSTILE, comment=HOSTILE, author="<b>")
    (kept,) = feedback.list_feedback(context, DEFAULT_PROJECT)
    assert kept == given.feedback
    assert (kept.correction, kept.author) == (HOSTILE.strip(), "<b>")


def test_a_file_is_taken_line_by_line(context: Context, tmp_path: Path) -> None:
    one, two = asked(context, 1), asked(context, 2)
    lines = [
        json.dumps({"exchange_id": one, "thumb": "up", "author": "u"}),
        "",
        json.dumps({"exchange_id": one, "thumb": "up", "author": "u"}),
        json.dumps({"exchange_id": one, "thumb": "down", "author": "u"}),
        json.dumps({"exchange_id": two, "correction": "Better."}),
        json.dumps({"exchange_id": "chatcmpl-none", "thumb": "up"}),
        "{not json",
        "[1]",
        json.dumps({"exchange_id": two, "score": 7}),
        "[" * 100_000,
    ]
    path = tmp_path / "said.jsonl"
    path.write_bytes("\ufeff".encode() + "\n".join(lines).encode() + b'\n{"exchange_id": "\xff", "thumb": "up"}\n')
    came = feedback.import_feedback(context, CALLER, path)
    assert came.num_by_outcome == {"new": 2, "replaced": 1, "same": 1}
    assert came.num_queued == 1
    assert [number for number, _ in came.refused] == [6, 7, 8, 9, 10, 11]
    with pytest.raises(RequestError, match="cannot be read"):
        feedback.import_feedback(context, CALLER, tmp_path / "none")


def test_a_sample_is_drawn_of_answers_with_words_and_never_twice(context: Context) -> None:
    for number in range(6):
        asked(context, number)
    asked(context, 7, words=False)
    asked(context, 8, status=500)
    asked(context, 9, model="other")
    made = review_queue.queue_sample(context, CALLER, "shop-bot", 4, seed=1)
    assert (made.num_queued, made.num_wordless) == (4, 1)
    made = review_queue.queue_sample(context, CALLER, "shop-bot", 4)
    assert (made.num_queued, made.num_known) == (2, 4)
    assert len(items(context)) == 6
    with pytest.raises(RequestError):
        review_queue.queue_sample(context, CALLER, "shop-bot", 0)


def test_answers_that_people_liked_are_queued(context: Context) -> None:
    ids = [asked(context, number) for number in range(5)]
    give(context, ids[0], thumb="up", author="a")
    give(context, ids[1], thumb="up", author="a")
    give(context, ids[1], thumb="down", author="b")
    give(context, ids[2], score=0.9)
    give(context, ids[3], score=0.5, thumb="up")
    give(context, asked(context, 9, words=False), thumb="up")
    made = review_queue.queue_liked(context, CALLER, "shop-bot")
    assert (made.num_queued, made.num_wordless) == (2, 1)
    queued = {one.exchange_id: one.source for one in context.review_items.list(DEFAULT_PROJECT)}
    assert queued == {ids[0]: "rating", ids[2]: "rating"}
    assert review_queue.queue_exchange(context, CALLER, ids[0]).num_known == 1
    assert review_queue.queue_exchange(context, CALLER, ids[4]).num_queued == 1


def test_what_is_accepted_comes_out(context: Context) -> None:
    for number in range(3):
        asked(context, number)
    review_queue.queue_sample(context, CALLER, "shop-bot", 3)
    one, two, three = context.review_items.list(DEFAULT_PROJECT)
    review_queue.decide(context, CALLER, one, "accept")
    review_queue.decide(context, CALLER, two, "accept", edited=" Corrected. ")
    review_queue.decide(context, CALLER, three, "reject")
    assert [item.learned for item in review_queue.accepted(context, DEFAULT_PROJECT, "shop-bot")] == [
        one.answer, "Corrected.",
    ]  # fmt: skip
    assert list(review_queue.accepted(context, DEFAULT_PROJECT, "other")) == []
    assert list(review_queue.accepted(context, "other")) == []
    last = review_queue.last_of(context, CALLER)
    assert last is not None
    assert last.review_id == three.review_id
    assert review_queue.undo(context, CALLER, three.review_id).status == "waiting"
    with pytest.raises(ConflictError):
        review_queue.undo(context, CALLER, three.review_id)


def test_who_was_later_is_told_and_an_empty_answer_cannot_be_learned(context: Context) -> None:
    asked(context, 1)
    asked(context, 2, answer="")
    review_queue.queue_sample(context, CALLER, "shop-bot", 2)
    seen, empty = sorted(context.review_items.list(DEFAULT_PROJECT), key=lambda one: not one.answer)
    review_queue.decide(context, Caller(name="bob"), seen, "reject")
    with pytest.raises(ConflictError, match="bob"):
        review_queue.decide(context, CALLER, seen, "accept")
    with pytest.raises(RequestError, match="empty answer"):
        review_queue.decide(context, CALLER, empty, "accept")
    with pytest.raises(RequestError):
        review_queue.decide(context, CALLER, empty, "accept", edited="  ")
    for unknown in ("review-20261126-000000-000000", "../x"):
        with pytest.raises(NotFoundError):
            review_queue.show_item(context, DEFAULT_PROJECT, unknown)


def test_the_way_through_the_queue(context: Context) -> None:
    for number in range(3):
        asked(context, number)
    review_queue.queue_sample(context, CALLER, "shop-bot", 3)
    ids = list(context.review_items.ids(DEFAULT_PROJECT))
    item = context.review_items.get(ids[1], DEFAULT_PROJECT)
    review_queue.decide(context, CALLER, item, "accept")
    where = {"model": None, "status": "waiting"}
    assert review_queue.neighbours(context, DEFAULT_PROJECT, None, **where) == (None, ids[0])  # type: ignore[arg-type]
    assert review_queue.neighbours(context, DEFAULT_PROJECT, ids[1], **where) == (ids[0], ids[2])  # type: ignore[arg-type]
    assert review_queue.neighbours(context, DEFAULT_PROJECT, ids[2], **where) == (ids[0], None)  # type: ignore[arg-type]


def test_liked_answers_without_their_text_take_no_place_of_older_ones(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review_queue, "MAX_QUEUED", 1)
    ids = [asked(context, number) for number in (0, 1)]
    for exchange_id in (*ids, *(asked(context, number, words=False) for number in (2, 3))):
        give(context, exchange_id, thumb="up")
    made = [review_queue.queue_liked(context, CALLER, "shop-bot") for _ in range(3)]
    assert [(one.num_queued, one.num_known, one.num_wordless) for one in made] == [(1, 0, 2), (1, 1, 2), (0, 2, 2)]
    assert [one.exchange_id for one in context.review_items.list(DEFAULT_PROJECT)] == [ids[1], ids[0]]

"""Many rows are tokenised in batches and by several processes as they are one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import DataError, TemplateError
from luthier.core.ports import SilentProgress
from luthier.ml.data.files.process_workers import ProcessWorkers, process_workers
from luthier.ml.data.files.row_workers import RowWorkers
from luthier.ml.data.tokenise import tokenised_rows
from luthier.ml.data.tokenise.loss_mask import Learning, render_sides, tokenise_sides
from luthier.ml.data.tokenise.tokenised_rows import in_this_process, tokenise_all
from luthier.ml.inference.models.templates.chat_template import ChatTemplate

StartWorkers = Callable[[], AbstractContextManager[RowWorkers]]


def _chat(number: int, *texts: str) -> Example:
    roles = ("user", "assistant")
    turns = tuple(Message.model_validate({"role": roles[at % 2], "content": text}) for at, text in enumerate(texts))
    return Example(id=f"rows.jsonl:{number}", conversation=Conversation(messages=turns))


def _rows() -> list[Example]:
    """Chats of one and two answers, an answer that merges with its prompt, plain texts, and preference pairs."""
    rows = [
        _chat(1, "Which wood?", "Spruce."),
        _chat(2, "Which wood?", "Spruce.", "And the back?", "Maple, häufig."),
        _chat(3, "Say nothing", " x"),
        Example(id="rows.jsonl:4", text="A plain text of some words."),
        Example(id="rows.jsonl:5", text="A piece", goes_on=True),
    ]
    return [
        row.model_copy(update={"id": f"rows.jsonl:{5 * turn + at}"}) for turn in range(9) for at, row in enumerate(rows)
    ]


def _pairs() -> list[Example]:
    return [
        Example(id=f"rows.jsonl:{at}", conversation=better.conversation, rejected=worse.conversation)
        for at in range(30)
        for better, worse in [(_chat(at, f"Question {at}", "Good."), _chat(at, f"Question {at}", f"Bad {at}."))]
    ]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessWorkers]:
    with process_workers(2, tmp_path_factory.mktemp("parts")) as made:
        # Until both have their libraries this process does the work itself.
        while not all(worker.is_ready for worker in made._workers):
            made._receive(None)
        yield made


@pytest.fixture(params=["here", "two processes"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StartWorkers:
    """Small batches, so that there are several."""
    monkeypatch.setattr(tokenised_rows, "_BATCH_ROWS", 7)
    if request.param == "here":
        return in_this_process
    workers: RowWorkers = request.getfixturevalue("two_processes")
    return lambda: nullcontext(workers)


@pytest.mark.parametrize("rows", [_rows(), _pairs()], ids=["chats and texts", "pairs"])
@pytest.mark.parametrize("learning", [Learning(), Learning(reasoning=True, only_last=True)], ids=["all", "last"])
def test_many_rows_are_those_of_each_example_by_itself(
    chat: ChatTemplate, start: StartWorkers, rows: list[Example], learning: Learning
) -> None:
    made = tokenise_all(
        rows,
        chat,
        max_length_tokens=500,
        overlong="error",
        progress=SilentProgress(),
        learning=learning,
        start_workers=start,
    )

    assert list(made.examples) == [row for example in rows for row in tokenise_sides(example, chat, learning)]
    assert list(made.kept) == list(range(len(rows)))


def test_all_wrong_rows_are_named_in_order(chat: ChatTemplate, start: StartWorkers) -> None:
    rows = [_chat(at, "Say it", "<|im_end|>" if at in (4, 11, 23) else "Yes.") for at in range(30)]

    with pytest.raises(DataError, match="3 of 30 rows cannot be trained on") as error:
        tokenise_all(
            rows, chat, max_length_tokens=500, overlong="error", progress=SilentProgress(), start_workers=start
        )

    assert [problem.line for problem in error.value.problems] == [4, 11, 23]


def test_the_first_row_without_a_proved_mask_ends_the_work(chat: ChatTemplate, start: StartWorkers) -> None:
    rows = [_chat(at, "Question", "Answer.") for at in range(20)]
    for at in (9, 16):
        rows[at] = Example(
            id=f"rows.jsonl:{at}",
            conversation=Conversation(messages=(Message(role="assistant", content="An answer to nothing."),)),
        )

    with pytest.raises(TemplateError, match=r"^rows\.jsonl:9, turn 1 of 1"):
        tokenise_all(
            rows, chat, max_length_tokens=500, overlong="error", progress=SilentProgress(), start_workers=start
        )


def test_batches_end_where_there_is_much_text(monkeypatch: pytest.MonkeyPatch, chat: ChatTemplate) -> None:
    monkeypatch.setattr(tokenised_rows, "_BATCH_CHARACTERS", 100)
    sizes = []
    whole = tokenised_rows.tokenise_batch
    monkeypatch.setattr(
        tokenised_rows, "tokenise_batch", lambda rows, *how: sizes.append(len(rows)) or whole(rows, *how)
    )

    tokenise_all(
        [_chat(at, "x" * 40, "Yes.") for at in range(8)],
        chat,
        max_length_tokens=500,
        overlong="error",
        progress=SilentProgress(),
    )

    assert sizes == [3, 3, 2]


def test_texts_of_conversations_of_many_turns_are_encoded_some_at_a_time(
    chat: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text before each answer is one of them: together they are many times as long as the rows."""
    rows = [_chat(n, *(f"Turn {n} of {turn}, which says a little." for turn in range(20))) for n in range(8)]
    texts = [list(dict.fromkeys(render_sides(row, chat, Learning()).texts(chat))) for row in rows]
    of_rows = [sum(map(len, some)) for some in texts]
    assert min(of_rows) > 5 * tokenised_rows.num_characters_of(rows[0])
    how: dict[str, Any] = {"max_length_tokens": 5_000, "overlong": "error", "progress": SilentProgress()}
    expected = tokenise_all(rows, chat, **how)
    num_characters: list[int] = []
    real = ChatTemplate.encode_all

    def counted(self: ChatTemplate, some: Sequence[str]) -> list[list[int]]:
        num_characters.append(sum(map(len, some)))
        return real(self, some)

    limit = 2 * max(of_rows)
    monkeypatch.setattr(ChatTemplate, "encode_all", counted)
    monkeypatch.setattr(tokenised_rows, "_ENCODED_CHARACTERS", limit)
    assert tokenise_all(rows, chat, **how) == expected
    assert sum(num_characters) >= sum(of_rows)
    assert max(num_characters) < limit + max(of_rows)

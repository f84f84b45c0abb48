"""Instructions for rows that hold none: what they say, where there is none to say, and where they are put."""

from __future__ import annotations

import pytest
from tests.vacuous import nonempty

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.ml.prompting.instructions import derive_instruction, with_instruction

LABELS = ("bad", "good", "great")


def row(number: int, prompt: str, answer: str, system: str = "") -> Example:
    opening = (Message(role="system", content=system),) if system else ()
    turns = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(id=f"train.jsonl:{number}", conversation=Conversation(messages=(*opening, *turns)))


def test_labels_are_listed_once_in_their_commonest_spelling() -> None:
    answers = [*LABELS, "Great", "great "]
    rows = [row(n, f"Violin {n} from {n * 7}", answers[n % 5]) for n in range(40)]
    found = derive_instruction(rows)
    assert found is not None
    assert (found.task, found.needs_examples) == ("labels", False)
    assert found.text.startswith("Answer with one of: bad, good, great.")
    assert all("bad, good, great" in text for text in nonempty(found.variants))


def test_labels_with_commas_are_told_apart() -> None:
    answers = ["soft, warm", "loud"]
    found = derive_instruction([row(n, f"Violin {n} of {n * 3}", answers[n % 2]) for n in range(20)])
    assert found is not None
    assert '"soft, warm"' in found.text


def test_rows_that_name_their_labels_hold_an_instruction() -> None:
    rows = [row(n, f"Violin {n}: bad, good or great?", LABELS[n % 3]) for n in range(30)]
    assert derive_instruction(rows) is None
    in_system = [row(n, f"Violin {n}", LABELS[n % 3], system="Say bad, good or great.") for n in range(30)]
    assert derive_instruction(in_system) is None
    # A shared question that names no label leaves a model to guess them.
    asked = [row(n, f"Violin {n}: how is it?", LABELS[n % 3]) for n in range(30)]
    assert derive_instruction(asked) is not None


def test_numbers_are_shown_as_the_rows_write_them() -> None:
    found = derive_instruction([row(n, f"Cello {n} has {n} strings by {n}", f"${n}.50") for n in range(10, 40)])
    assert found is not None
    assert found.task == "numbers"
    assert "$10.50" in found.text


def test_words_of_the_prompt_are_to_be_copied() -> None:
    names = [f"Ada {first}{last}" for first in "bcdfg" for last in "aeiou"]
    rows = [row(n, f"{n} sold to {name} of Lyon on {n}", name) for n, name in enumerate(names)]
    found = derive_instruction(rows)
    assert found is not None
    assert found.task == "extraction"


def test_what_is_nothing_of_these_needs_examples() -> None:
    rows = [row(n, f"wood {n} with {n * 3}", f"a long answer about {n * n} and more of it") for n in range(30)]
    found = derive_instruction(rows)
    assert found is not None
    assert (found.task, found.needs_examples) == ("examples", True)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Example(id="a:1", text="plain")],
        [row(n, f"Which wood is number {n}?", f"an answer of its own {n * n}", system="You know.") for n in range(9)],
        [row(n, f"Translate to French: word {n}", f"mot {n * n} et plus") for n in range(9)],
    ],
)  # fmt: skip
def test_rows_without_prompts_or_with_an_instruction_get_none(rows: list[Example]) -> None:
    assert derive_instruction(rows) is None


def test_one_label_alone_is_no_label() -> None:
    found = derive_instruction([row(n, f"Violin {n} of {n * 3}", "great") for n in range(30)])
    assert found is not None
    assert found.task == "examples"


def test_it_is_put_before_all_else_and_behind_a_system_prompt_of_the_row() -> None:
    plain = with_instruction(row(1, "Violin", "good"), "Say it.", as_system=True)
    assert plain.conversation is not None
    assert [(m.role, m.content) for m in plain.conversation.messages[:2]] == [("system", "Say it."), ("user", "Violin")]
    own = with_instruction(row(1, "Violin", "good", system="Hello."), "Say it.", as_system=True)
    assert own.conversation is not None
    assert own.conversation.messages[0].content == "Hello.\n\nSay it."
    user = with_instruction(row(1, "Violin", "good"), "Say it.", as_system=False)
    assert user.conversation is not None
    assert [m.content for m in user.conversation.messages] == ["Say it.\n\nViolin", "good"]
    assert user.reference == "good"
    assert with_instruction(row(1, "a", "b"), "", as_system=True) == row(1, "a", "b")


def test_json_answers_are_asked_for_in_their_form() -> None:
    rows = [
        row(n, f"{n} boxes from Lyon {n}", f'{{"boxes": {n}, "from": {{"city": "Lyon {n}"}}, "paid": true, "of": [1]}}')
        for n in range(30)
    ]
    found = derive_instruction(rows)
    assert found is not None
    assert found.task == "extraction"
    form = '{"boxes": 0, "from": {"city": "..."}, "paid": true, "of": []}'
    assert all(text.endswith(form) for text in nonempty(found.variants))
    long = [row(n, f"{n} boxes", "{" + ", ".join(f'"key {k}": "{n}"' for k in range(90)) + "}") for n in range(30)]
    other = derive_instruction(long)
    assert other is not None
    assert other.needs_examples

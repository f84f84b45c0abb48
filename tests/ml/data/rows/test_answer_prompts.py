"""What is asked of a teacher, row by row, and which of its answers are kept."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.conversation import Message
from luthier.core.dataset import Row
from luthier.core.errors import OverlongError
from luthier.core.ports import Generation, Prompt, SilentProgress
from luthier.ml.data.files.bad_field import BadFieldError
from luthier.ml.data.rows.answer_prompts import AnswerOptions, answered_row, answers, question_of, refused_row
from luthier.ml.data.rows.formats import example_of


def row(**fields: Any) -> Row:
    return Row("rows.jsonl", 3, fields)


def turns(**fields: Any) -> list[tuple[str, str | None, int | None]]:
    return [(m.role, m.content, m.weight) for m in question_of(row(**fields), {}).prompt.messages]


def test_a_prompt_is_read_from_every_shape_with_or_without_an_answer() -> None:
    asked = [("user", "Why?", None)]
    assert turns(prompt="Why?") == turns(prompt="Why?", completion="So.") == asked
    assert turns(prompt="Why?", completion="", label=True) == asked
    assert turns(instruction="Why?", output="") == turns(instruction="Why?") == asked
    assert turns(messages=[{"role": "user", "content": "Why?"}]) == asked
    answered = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    assert turns(messages=answered) == asked
    assert turns(conversations=[{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]) == asked
    assert turns(conversations=[{"from": "human", "value": "Why?"}]) == asked
    assert turns(conversations=answered) == turns(conversations=answered[:1]) == asked, "turns with roles are read, too"
    assert turns(prompt="Why?", system="Be brief.") == [("system", "Be brief.", None), *asked]


def test_earlier_answers_are_context_and_are_not_learned() -> None:
    told = [("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    messages = [{"role": role, "content": content} for role, content in told]
    assert turns(messages=messages) == [("user", "A", None), ("assistant", "B", 0), ("user", "C", None)]


def test_a_mapping_names_the_fields() -> None:
    found = question_of(row(question="Why?", reply="So."), {"prompt": "question"})
    assert found.prompt.messages == (Message(role="user", content="Why?"),)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x"},
        {"prompt": " "},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": "x"},
        {"messages": [{"role": "usr", "content": "x"}]},
    ],
)
def test_a_row_without_a_prompt_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadFieldError):
        question_of(row(**fields), {})


class Teacher:
    """Answers from a table; what is not in it is over the context."""

    name = "teacher"

    def __init__(self, table: dict[str, Generation]) -> None:
        self.table, self.asked = table, list[list[Prompt]]()

    def generate_each(self, prompts: list[Prompt], progress: SilentProgress) -> list[Generation | OverlongError]:
        self.asked.append(prompts)
        contents = [prompt.conversation.messages[-1].content for prompt in prompts]  # type: ignore[union-attr]
        return [self.table.get(str(c)) or OverlongError("600 tokens", expected="512", do="shorten") for c in contents]


def said(text: str, reason: str = "stop") -> Generation:
    return Generation(text=text, num_prompt_tokens=1, num_new_tokens=9, finish_reason=reason)  # type: ignore[arg-type]


def test_answers_that_end_are_kept_and_the_rest_is_refused_with_its_reason() -> None:
    teacher = Teacher({"a": said("good"), "b": said("half", "length"), "c": said(" \n")})
    questions = [question_of(row(prompt=text, provenance={"file": "x.md"}), {}) for text in "abcd"]
    found = list(answers(questions, teacher, AnswerOptions(), SilentProgress()))  # type: ignore[arg-type]
    assert [one.reason for one in found] == [None, "cut_off", "empty", "too_long"]
    kept = answered_row(found[0], AnswerOptions(), teacher="t")
    assert kept["messages"] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "good"}]
    assert kept["provenance"] == {
        "file": "x.md", "synthetic": True, "teacher": "t", "kind": "answer", "source_row": "rows.jsonl:3",
        "temperature": 0.0, "seed": 0,
    }  # fmt: skip
    learned = example_of(Row("answers.jsonl", 1, kept), "chat", {}, None)
    assert learned.reference == "good"
    refused = refused_row(found[1], AnswerOptions(), teacher="t")
    assert (refused["reason"], refused["reply"], refused["source_row"]) == ("cut_off", "half", "rows.jsonl:3")
    assert "after 9 tokens" in refused["explanation"]
    assert "600 tokens" in found[3].explanation


def test_tools_go_along() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    question = question_of(row(messages=[{"role": "user", "content": "a"}], tools=[tool]), {})
    (found,) = answers([question], Teacher({"a": said("good")}), AnswerOptions(), SilentProgress())  # type: ignore[arg-type]
    assert answered_row(found, AnswerOptions(), teacher="t")["tools"] == [tool]


def test_draws_depend_on_the_prompt_and_the_seed_and_not_on_the_line() -> None:
    def seeds(options: AnswerOptions, *texts: str) -> dict[str, int]:
        teacher = Teacher({})
        list(answers([question_of(row(prompt=t), {}) for t in texts], teacher, options, SilentProgress()))  # type: ignore[arg-type]
        prompts = [prompt for batch in teacher.asked for prompt in batch]
        return {str(p.conversation.messages[-1].content): p.seed for p in prompts}  # type: ignore[union-attr]

    drawn = AnswerOptions(temperature=0.7)
    first, second = seeds(drawn, "a", "b"), seeds(drawn, "c", "b", "a")
    assert first["a"] == second["a"] != first["b"] == second["b"]
    assert seeds(AnswerOptions(temperature=0.7, seed=1), "a")["a"] != first["a"]
    assert seeds(AnswerOptions(seed=1), "a") == seeds(AnswerOptions(), "a")


def test_questions_are_asked_in_batches_that_are_told_of() -> None:
    teacher, done = Teacher({"a": said("good")}), list[int]()
    questions = (question_of(row(prompt="a"), {}) for _ in range(70))
    found = answers(questions, teacher, AnswerOptions(), SilentProgress(), batch_done=done.append)  # type: ignore[arg-type]
    assert len(list(found)) == 70
    assert done == [32, 32, 6]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_teachers_thought_is_kept_only_where_it_is_asked_for_and_said_either_way(keeps: bool) -> None:
    question = question_of(Row("rows.jsonl:1", 1, {"prompt": "a", "completion": "b"}), {})
    told = said("good").model_copy(update={"reasoning": "so", "num_thinking_tokens": 3})
    options = AnswerOptions(keeps_thoughts=keeps)
    (found,) = answers([question], Teacher({"a": told}), options, SilentProgress())  # type: ignore[arg-type]
    row = answered_row(found, options, teacher="t")
    assert row["messages"][-1]["content"] == "good"
    assert row["messages"][-1].get("reasoning_content") == ("so" if keeps else None)
    assert row["provenance"]["thought"] == ("kept" if keeps else "left out")


def test_a_thought_that_was_cut_off_is_no_answer() -> None:
    question = question_of(Row("rows.jsonl:1", 1, {"prompt": "a", "completion": "b"}), {})
    cut = said("").model_copy(update={"reasoning": "so", "ends_in_thought": True, "finish_reason": "length"})
    (found,) = answers([question], Teacher({"a": cut}), AnswerOptions(), SilentProgress())  # type: ignore[arg-type]
    assert found.reason == "cut_off"
    assert "within its thought" in found.explanation


def test_calls_of_the_teacher_are_learned_with_its_text_and_without() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
    cut = {"id": "c2", "type": "function", "function": {"name": "look", "arguments": '{"at": '}}

    def calling(text: str, one: dict[str, Any]) -> Generation:
        return said(text).model_copy(update={"tool_calls": (one,)})

    teacher = Teacher({"a": calling("", call), "b": calling("I look.", call), "c": calling("I look.", cut)})
    questions = [question_of(row(messages=[{"role": "user", "content": text}], tools=[tool]), {}) for text in "abc"]
    found = list(answers(questions, teacher, AnswerOptions(), SilentProgress()))  # type: ignore[arg-type]
    assert [one.reason for one in found] == [None, None, "bad_call"]
    assert "is not JSON" in found[2].explanation
    kept = [answered_row(one, AnswerOptions(), teacher="t") for one in found[:2]]
    assert [one["messages"][-1] for one in kept] == [
        {"role": "assistant", "content": content, "tool_calls": [call]} for content in (None, "I look.")
    ]
    for number, content in enumerate((None, "I look.")):
        learned = example_of(Row("answers.jsonl", 1, kept[number]), "chat", {}, None).conversation
        assert learned is not None
        assert (learned.messages[-1].content, learned.messages[-1].tool_calls) == (content, (call,))

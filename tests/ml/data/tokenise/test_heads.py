"""What a task head learns of rows: classes, numbers, and the tokens that it reads."""

from __future__ import annotations

import copy

import pytest

from luthier.core.conversation import Conversation, Message, OptedTurns
from luthier.core.dataset import Example
from luthier.core.errors import DataError, RecipeError, TemplateError
from luthier.core.task_head import TaskHead
from luthier.ml.data.tokenise.heads import (
    canonical_answer,
    class_matrix,
    class_numbers,
    fit_task_head,
    target_text,
    targets_of,
    tokenise_prompt,
    with_targets,
)
from luthier.ml.data.tokenise.preview import preview_head_row
from luthier.ml.inference.engine_prompts import ToolFormat, rewritten_examples
from luthier.ml.inference.models.templates.chat_template import ChatTemplate


def _examples(*answers: str) -> list[Example]:
    return [
        Example(
            id=f"f:{n}",
            conversation=Conversation(
                messages=(Message(role="user", content=f"q {n}"), Message(role="assistant", content=answer))
            ),
        )
        for n, answer in enumerate(answers)
    ]


def test_classes_are_ordered_by_frequency_then_text_and_written_as_most_rows_write_them() -> None:
    rows = _examples("No", "yes", "no", "Yes", "no ", "maybe", "yes", "No", "also")
    fitted = fit_task_head("classify", {"train": rows}, 8, multi_label=False)
    assert fitted.head.labels == ("No", "yes", "also", "maybe")
    assert fitted.head.label_counts == (4, 3, 1, 1)
    assert "'No' = 'no' = 'no '; 'Yes' = 'yes'" in fitted.notes[0]
    assert "2 classes have a single training row" in fitted.notes[1]
    backwards = fit_task_head("classify", {"train": rows[::-1]}, 8, multi_label=False)
    assert backwards.head.label_counts == fitted.head.label_counts
    assert targets_of(_examples("NO", "Maybe", "other"), fitted.head) == [(0,), (3,), None]


def test_five_thousand_classes() -> None:
    fitted = fit_task_head("classify", {"train": _examples(*(f"label {n}" for n in range(5000)))}, 8, multi_label=False)
    assert fitted.head.num_outputs == 5000
    assert "5,000 classes have a single training row" in fitted.notes[0]
    assert "and 4,995 more" in fitted.notes[0]


@pytest.mark.parametrize(
    ("answers", "separator"),
    [(("a, b", "b", "c, a"), ", "), (("a;b", "c"), ";"), (("a\nb", "c, d"), "\n"), (('["a", "b"]', "[]", '["c"]'), "")],
)
def test_several_labels_are_separated_as_the_rows_do_it(answers: tuple[str, ...], separator: str) -> None:
    head = fit_task_head("classify", {"train": _examples(*answers)}, 8, multi_label=True).head
    assert head.label_separator == separator
    assert head.is_multi_label
    found = class_matrix(answers, head)
    assert found.sum(axis=1).tolist()[0] == 2
    assert class_numbers(answers[0], head) == tuple(found[0].nonzero()[0].tolist())


@pytest.mark.parametrize(
    ("answers", "same", "other"),
    [
        (("b, a", "a", "a, c"), ("A,  B", "b, a, b", "a,b"), ("a", "a; b", "a, d", "")),
        (('["b", "a"]', '["a"]', "[]"), ('["A","b"]', '["b", "a", "b"]'), ("[]", '["a"]', '["a", "d"]', "a, b")),
    ],
)
def test_equal_sets_of_labels_have_one_canonical_form(
    answers: tuple[str, ...], same: tuple[str, ...], other: tuple[str, ...]
) -> None:
    head = fit_task_head("classify", {"train": _examples(*answers)}, 8, multi_label=True).head
    form = canonical_answer(answers[0], head)
    assert {canonical_answer(one, head) for one in same} == {form}
    assert form not in {canonical_answer(one, head) for one in other}
    assert canonical_answer(other[2], head) == other[2]


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        (("[3, 10]", "[3]", "[]"), ("3", "10")),
        (("['b c', \"it's\"]", '["it\'s"]', "[]"), ("it's", "b c")),
        (('["b, c", "a"]', "['a']"), ("a", "b, c")),
    ],
)
def test_lists_of_numbers_and_lists_as_python_writes_them_are_lists(
    answers: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    head = fit_task_head("classify", {"train": _examples(*answers)}, 8, multi_label=True).head
    assert (head.labels, head.label_separator) == (labels, "")
    assert class_numbers(answers[0], head) == (0, 1)
    assert class_numbers(answers[1], head) == (0,)


@pytest.mark.parametrize("other", ["c", "a, b", '["a", "b"', '["a", null]', ""])
def test_an_answer_that_is_no_list_among_lists_has_no_known_labels(other: str) -> None:
    head = fit_task_head("classify", {"train": _examples('["a", "b"]', '["c"]')}, 8, multi_label=True).head
    assert class_numbers(other, head) is None
    assert class_numbers("[]", head) == ()


def test_a_sign_within_one_label_separates_no_labels_where_other_rows_have_another() -> None:
    rows = _examples(*["tools, music"] * 9, "R&D; tests, music")
    head = fit_task_head("classify", {"train": rows}, 8, multi_label=True).head
    assert (head.label_separator, head.labels) == (", ", ("music", "tools", "R&D; tests"))
    often = _examples(*["arts, music; sport"] * 3, *["arts, music"] * 3)
    assert fit_task_head("classify", {"train": often}, 8, multi_label=True).head.labels == ("arts, music", "sport")


def test_lists_among_other_answers_are_refused_and_not_cut_at_their_commas() -> None:
    rows = _examples('["a", "b"]', "c", '["c"]')
    with pytest.raises(DataError, match='2 of 3 answers are lists of labels, and others are not, such as "c"'):
        fit_task_head("classify", {"train": rows}, 8, multi_label=True)


def test_rows_that_say_nothing_are_refused() -> None:
    for rows, match in (
        (_examples("a", "A "), "all 2 training rows have 'a'"),
        (_examples("a", " "), "1 of 2 rows has no answer in words"),
    ):
        with pytest.raises(DataError, match=match):
            fit_task_head("classify", {"train": rows}, 8, multi_label=False)
    with pytest.raises(RecipeError, match="none of 2 answers has several labels"):
        fit_task_head("classify", {"train": _examples("a", "b")}, 8, multi_label=True)


def test_numbers_as_text_are_read_with_their_units() -> None:
    head = fit_task_head("regress", {"train": _examples("$1,200.50", "$10.00", "$30.00")}, 8, multi_label=False).head
    assert (head.lowest, head.highest) == (10.0, 1200.5)
    assert head.number_format is not None
    assert (head.number_format.before, head.number_format.decimals, head.number_format.has_commas) == ("$", 2, True)
    targets = targets_of(_examples("$1,200.50", "$10.00", "$30.00"), head)
    numbers = [target[0] for target in targets if target is not None]
    assert sum(numbers) == pytest.approx(0, abs=1e-9)
    assert sum(one**2 for one in numbers) / 3 == pytest.approx(1)
    with pytest.raises(DataError, match="1 of 2 answers are not numbers"):
        fit_task_head("regress", {"train": _examples("7", "about 7 or 8")}, 8, multi_label=False)


def test_numbers_with_decimal_commas_are_read_and_written_so_and_the_head_says_it() -> None:
    rows = _examples("1.200,50 €", "10,00 €", "30,00 €", "2.000 €")
    fitted = fit_task_head("regress", {"train": rows, "held_out": _examples("5,50 €", "5.5 €")}, 8, multi_label=False)
    head = fitted.head
    assert (head.lowest, head.highest) == (10.0, 2000.0)
    assert any("decimal comma" in note and "'2.000 €' is 2000" in note for note in fitted.notes)
    assert any("1 of 2 held-out rows" in note and "5.5 €" in note for note in fitted.notes)
    targets = targets_of(rows, TaskHead.model_validate_json(head.model_dump_json()))
    assert [round(head.offset + head.scale * one[0], 6) for one in targets if one] == [1200.5, 10.0, 30.0, 2000.0]
    assert target_text(targets[0] or (), head) == "1.200,50 €"
    plain = fit_task_head("regress", {"train": _examples("$1,200.50", "$10.00")}, 8, multi_label=False)
    assert plain.notes == ()


def test_a_head_of_an_older_version_reads_numbers_with_a_decimal_point() -> None:
    old = {"before": "", "after": " kg", "decimals": 1, "has_commas": True}
    head = TaskHead.model_validate({"kind": "regress", "width": 8, "number_format": old, "offset": 1.0, "scale": 2.0})
    assert targets_of(_examples("1,003.0 kg"), head) == [(501.0,)]
    assert target_text((501.0,), head) == "1,003.0 kg"


def test_a_head_reads_the_prompt_of_inference_and_no_token_of_the_answer(chat: ChatTemplate) -> None:
    one, other = (tokenise_prompt(example, chat) for example in _examples("yes", "no")[:1] * 2)
    example = _examples("a long answer about nothing")[0]
    assert example.prompt is not None
    prompt = chat.ids(chat.render(example.prompt, add_generation_prompt=True))
    row = tokenise_prompt(example, chat)
    assert list(row.input_ids)[:-1] == prompt
    assert row.loss_mask == bytes(len(prompt)) + b"\1"
    assert one.input_ids == other.input_ids == row.input_ids


def test_a_preview_shows_what_is_read_and_what_the_head_should_give(chat: ChatTemplate) -> None:
    rows = _examples("yes", "no", "no")
    head = fit_task_head("classify", {"train": rows}, 8, multi_label=False).head
    (row,) = with_targets(rows[:1], [tokenise_prompt(rows[0], chat)], head)
    shown = preview_head_row(rows[0], row, chat, head)
    assert rows[0].prompt is not None
    assert shown.text == chat.render(rows[0].prompt, add_generation_prompt=True) + "\N{RIGHTWARDS ARROW} yes"
    assert shown.target == "yes"
    assert [span.learned for span in shown.spans].count(True) == 1
    assert shown.spans[-1].learned


@pytest.mark.parametrize("lost", ["tools", "system", None])
def test_a_row_whose_tools_or_turns_the_template_drops_is_refused(chat: ChatTemplate, lost: str | None) -> None:
    """The server would describe the tools in the prompt, so that the head would read what it never learned."""
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages if m.role != 'system' or not drops %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = ChatTemplate(tokenizer, "chat", options={"drops": lost == "system"})
    (example,) = _examples("yes")
    assert example.conversation is not None
    tools = ({"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}},)
    messages = (Message(role="system", content="You build guitars."), *example.conversation.messages)
    conversation = Conversation(messages=messages, tools=tools if lost == "tools" else ())
    row = example.model_copy(update={"conversation": conversation})
    if lost is None:
        assert tokenise_prompt(row, template).num_tokens > 10
        return
    with pytest.raises(TemplateError, match={"tools": "1 tools", "system": "drops or changes"}[lost]):
        tokenise_prompt(row, template)
    opted = OptedTurns(tools_as_text=True, folds_system=True)
    (changed,) = rewritten_examples(opted, [row], template)
    assert changed.prompt is not None
    ids = tokenise_prompt(changed, template).input_ids[:-1]
    served = ToolFormat.of(template).written(conversation.up_to(2), opted)
    assert list(ids) == template.ids(template.render(served, add_generation_prompt=True))

"""Graders by OpenAI's names: strings, similarities and formulas."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from luthier.core.errors import RequestError
from luthier.core.graders import Grader, MultiGrader, OneGrader
from luthier.ml.evaluation.graders import (
    Formula,
    fields_of,
    filled,
    fuzzy_match,
    gleu,
    item_fields,
    make_grader,
    similarity,
)
from luthier.ml.evaluation.judge.replies import label_in, score_in

ITEM = {"reference": "Spruce", "answer": {"wood": "spruce", "age": 12}}


def grade(output: str, **grader: Any) -> float:
    return make_grader(TypeAdapter(Grader).validate_python(grader))(output, ITEM)


@pytest.mark.parametrize(
    ("operation", "output", "wanted"),
    [
        ("eq", "Spruce", 1.0),
        ("eq", "spruce", 0.0),
        ("ne", "spruce", 1.0),
        ("like", "The Spruce.", 1.0),
        ("like", "the spruce", 0.0),
        ("ilike", "the SPRUCE", 1.0),
        ("ilike", "maple", 0.0),
    ],
)
def test_strings_are_checked(operation: str, output: str, wanted: float) -> None:
    found = grade(
        output,
        type="string_check",
        input="{{sample.output_text}}",
        reference="{{ item.reference }}",
        operation=operation,
    )
    assert found == wanted


@pytest.mark.parametrize("text", ["{{" + " " * 100_000, "{{ " * 50_000, "{{ a\nb\n" * 50_000 + "}}", "{{" * 50_000])
def test_a_template_without_an_end_is_text_and_is_read_in_one_pass(text: str) -> None:
    # A search that goes back would take hours.
    assert item_fields(text) == ()
    assert filled(text, "", {}) == text


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{{item.n}}{{ item.n }}", "77"),
        ("{{\n item.n \n}}", "7"),
        ("{{ a \n {{item.n}}", "{{ a \n 7"),
        ("{{ a \n b }} {{item.n}}", "{{ a \n b }} 7"),
        ('{"a": {{item.n}}}', '{"a": 7}'),
    ],
)
def test_placeholders_begin_and_end_on_one_line(template: str, wanted: str) -> None:
    assert filled(template, "", {"n": 7}) == wanted


def test_a_field_that_is_named_thousands_of_times_does_not_fill_the_memory() -> None:
    with pytest.raises(RequestError, match="more than 4,194,304 characters"):
        filled("{{item.x}}" * 10_000, "", {"x": "a" * 1_000_000})


def test_places_are_filled_from_the_row_and_the_answer() -> None:
    template = "{{item.answer.wood}}/{{item.answer}}/{{sample.output_text}}"
    assert filled(template, "{{item.reference}}", ITEM) == 'spruce/{"wood": "spruce", "age": 12}/{{item.reference}}'
    assert item_fields(template) == ("answer",)
    with pytest.raises(RequestError, match="no 'colour'"):
        filled("{{item.colour}}", "", ITEM)
    with pytest.raises(RequestError, match=r"sample\.tools"):
        item_fields("{{sample.tools}}")


def test_several_graders_and_a_formula() -> None:
    part = {"type": "string_check", "input": "{{sample.output_text}}", "operation": "ilike"}
    graders = {"right": part | {"reference": "{{item.reference}}"}, "polite": part | {"reference": "please"}}
    grader = {"type": "multi", "graders": graders, "calculate_output": "0.75 * right + max(polite, 0) / 4"}
    assert grade("spruce", **grader) == 0.75
    assert grade("spruce, please", **grader) == 1.0
    assert fields_of(TypeAdapter(Grader).validate_python(grader)) == ("reference",)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a + 2 * b", 8.0),
        ("2 * a ^ b + 1", 17.0),
        ("-(a - b) ** 2 / 2", -0.5),
        ("min(a, b, 1)", 1.0),
        ("sqrt(exp(log(4)) + abs(-5))", 3.0),
    ],
)
def test_a_formula_is_arithmetic(text: str, wanted: float) -> None:
    assert Formula(text, ["a", "b"])({"a": 2.0, "b": 3.0}) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "text",
    [
        *("c", "__import__('os')", "a.real", "[a]", "a if b else 1", "a @ b", "min()", "min(a, key=b)", "'a'", "True"),
        *("a,b", "", "a +", "(" * 300 + "a" + ")" * 300, "(lambda: a)()"),
    ],
)
def test_a_formula_is_nothing_but_arithmetic(text: str) -> None:
    with pytest.raises(RequestError, match="calculate_output"):
        Formula(text, ["a", "b"])


@pytest.mark.parametrize(
    "text", ["1 / a", "log(a)", "(a - 1) ** 0.5", "9.0 ** 9 ** 9", "exp(9 ** 9)", "floor(exp(700)) ** floor(exp(700))"]
)
def test_a_formula_without_a_finite_result_says_so(text: str) -> None:
    with pytest.raises(RequestError, match="calculate_output"):
        Formula(text, ["a"])({"a": 0.0})


def test_graders_that_are_computed_in_this_process_run_no_code() -> None:
    code = {"type": "python", "source": "def grade(sample, item): return 1.0"}
    for kind in (OneGrader, MultiGrader):
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python(code)
    multi = {"type": "multi", "graders": {"a": code}, "calculate_output": "a"}
    with pytest.raises(ValidationError):
        TypeAdapter(MultiGrader).validate_python(multi)


def longest_common(one: str, other: str) -> int:
    @cache
    def at(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return 0
        return 1 + at(i + 1, j + 1) if one[i] == other[j] else max(at(i + 1, j), at(i, j + 1))

    return at(0, 0)


@given(st.text("abcß", max_size=12), st.text("abcß", max_size=12))
def test_fuzzy_match_rests_on_the_longest_common_subsequence(one: str, other: str) -> None:
    wanted = 2 * longest_common(one, other) / (len(one) + len(other)) if one or other else 1.0
    assert fuzzy_match(one, other) == pytest.approx(wanted)


def test_gleu_is_the_smaller_of_precision_and_recall() -> None:
    # n-grams of "a b c": 3 + 2 + 1; of "a b": 2 + 1, all of them in the other
    assert gleu("a b", "a b c") == gleu("a b c", "a b") == pytest.approx(3 / 6)
    assert gleu("a b c d e", "a b c d e") == 1.0
    assert gleu("x", "a") == 0.0


@pytest.mark.parametrize(
    "kind", ["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]
)
def test_similarities_lie_between_unlike_and_equal(kind: Any) -> None:
    measure, text = similarity(kind), "the front of a violin is spruce"
    assert measure(text, text) == pytest.approx(1.0)
    assert measure("", text) == pytest.approx(0.0)
    assert 0.0 <= measure("the back of a violin is maple", text) < 1.0


@pytest.mark.parametrize(
    ("said", "labels", "passes"),
    [
        ("Correct.", ["correct", "wrong"], 1.0),
        ("The answer is correct, I think.", ["correct", "wrong"], 1.0),
        ("wrong", ["correct", "wrong"], 0.0),
        ("This is incorrect.", ["correct", "wrong"], None),
        ("It is unsafe.", ["safe", "unsafe"], 0.0),
        ("It is **safe**: nothing unsafely said.", ["safe", "unsafe"], 1.0),
        ("correct or wrong?", ["correct", "wrong"], None),
        ("label_1", ["label_1", "label_10"], 1.0),
        ("I choose label_10", ["label_1", "label_10"], 0.0),
        ("INCORRECT, so not correct", ["correct", "wrong"], 1.0),
        ("答案正确。", ["正确", "错误"], 1.0),
        ("", ["correct", "wrong"], None),
    ],
)
def test_a_label_is_a_word_of_its_own(said: str, labels: list[str], passes: float | None) -> None:
    assert (
        label_in(said, labels, [label for label in labels if label in ("correct", "safe", "label_1", "正确")]) == passes
    )


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ('{"result": 7}', 7.0),
        ("7.5 of 10", 7.5),
        ("11", None),
        ("none", None),
        # What a judge writes that repeats itself: a whole number beyond any float, and brackets that never end.
        ("1" * 400, None),
        (f'{{"result": {"1" * 400}}}', None),
        ("[" * 100_000, None),
    ],
    ids=["field", "first number", "outside", "no number", "long number", "long field", "brackets"],
)
def test_a_score_is_a_number_of_its_scale_or_none(said: str, score: float | None) -> None:
    assert score_in(said, 0.0, 10.0) == score


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ('```json\n{"steps": [{"description": "2 faults"}], "result": 7}\n```', 7.0),
        ('First 3 checks.\n{"conclusion": "of 10", "result": "6.5"}', 6.5),
        ("<think>3 or 4? No, better.</think>8", 8.0),
        ("It is worth 2.</think>\n8", 8.0),
        ("<think>I would give 3 for", None),
        ('{"result": "good", "faults": 2}', None),
        ('{"faults": 2, "result": "8/10"}', 8.0),
        ('{"faults": 2, "result": "8,5 of 10"}', 8.5),
        ('{"faults": 2, "result": [8]}', None),
        ("Bewertung: 8,5 von 10", 8.5),
        ("0,5", 0.5),
        ("Score: .5", 0.5),
        ("Answer No.5", 5.0),
        ("3,4,5", 3.0),
        ("7, 8 at most", 7.0),
        ("1,234 is too much", None),
    ],
)
def test_a_score_is_read_from_the_verdict_and_not_from_what_leads_to_it(said: str, score: float | None) -> None:
    assert score_in(said, 0.0, 10.0) == score


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("The answer meets 2 of 3 criteria. Score: 9", 9.0),
        ("All 3 facts are there, so I give it 9.", 9.0),
        ("It names 4 of the 5 causes. I would rate this answer a **7**.", 7.0),
        ("With 2 faults in 3 sentences this is 8 out of 10.", 8.0),
        ("Of 12 words 3 are wrong: 6/10", 6.0),
        ("Clarity score: 3. Style score: 4.\nOverall score: 7", 7.0),
        ("Stil: 3, Inhalt: 2\nGesamtnote: 2", 2.0),
        ("1. It is right.\n2. It is short.\n\nRating: 8", 8.0),
        ("3 of 4 facts are missing.\n\n2", 2.0),
        ("Reasons: 2 faults and 1 gap.\n\n**6**", 6.0),
        ("8\nIt lists 3 causes.", 8.0),
        ("**7**, since 2 of 3 are named", 7.0),
        ("I give it 6 points, 6/10.", 6.0),
        # Any of several numbers could be meant: no score is better than the first one.
        ("I checked 3 claims and 2 sources.", None),
        ("Clarity score: 3. Style score: 4.", None),
        ("On a rating scale from 1 to 10, it is better than 5 others.", None),
        ("It is right in 3 of 4 cases.", None),
        ("4/5", None),
        ("Score " + "1" * 20_000, None),
        ("total " * 20_000 + "score", None),
    ],
    ids=lambda one: str(one)[:50],
)
def test_numbers_of_reasons_are_no_scores(said: str, score: float | None) -> None:
    assert score_in(said, 0.0, 10.0) == score


def test_a_label_is_read_from_the_result_and_without_thoughts() -> None:
    labels, passing = ["correct", "wrong"], ["correct"]
    assert label_in('{"steps": ["not wrong"], "result": "correct"}', labels, passing) == 1.0
    assert label_in('```json\n{"steps": ["correct so far"], "result": "wrong"}\n```', labels, passing) == 0.0
    assert label_in("<think>Is it wrong? No.</think>\ncorrect", labels, passing) == 1.0
    assert label_in("<think>It looks correct, but", labels, passing) is None
    assert label_in('{"result": "neither"}', labels, passing) is None

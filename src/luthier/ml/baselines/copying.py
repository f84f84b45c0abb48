"""Answers that are part of the prompt: rules that copy what follows certain words, learned from the training rows.

A rule is "after these one to three words, up to that word" or "after these words, that many words". The rules form a
decision list: the first that finds its words in a prompt copies from it.

Answers that are JSON objects, as of an invoice, are copied field by field and put together in the form of the rows.

Sources: Kushmerick, "Wrapper induction: Efficiency and expressiveness", 2000 (extraction by the text to the left and to
the right); Rivest, "Learning Decision Lists", 1987.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from luthier.core.text.written_numbers import NumberMarks, marks_in_texts, read_number
from luthier.ml.baselines.json_fields import FieldPath, Raw, dumped, fields_of, style_of, written
from luthier.ml.baselines.labels import commonest_answer, linear_classifier
from luthier.ml.baselines.rows import NotApplicable, TaskRow, evenly, same_label, within

_TOKEN: Final = re.compile(r"\w+|[^\w\s]|\n")
_END: Final = "\0"
"""Marks the end of the prompt, and its start."""
_LONGEST: Final = 60
"""Tokens of an answer that is copied."""
_MAX_ROWS: Final = 1_000
_MAX_CHARACTERS: Final = 400_000
_LEAST_CHARACTERS: Final = 50_000
"""Of prompts for the rules of one of many fields."""
_MAX_FIELDS: Final = 20
_LOOKED_AT: Final = 200
"""Rows by which it is decided whether answers are JSON, equally spaced."""
_JSON_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_MAX_CANDIDATES: Final = 150
_MAX_RULES: Final = 20
_LEAST_PRECISION: Final = 0.5


class _Rule(NamedTuple):
    """Copy what follows `left`: up to `right` where that is given, else `length` tokens."""

    left: tuple[str, ...]
    right: str | None
    length: int


class _Text(NamedTuple):
    """A prompt in tokens; `folded` for comparing, `spans` in the text itself."""

    text: str
    folded: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


def rows_for_rules(rows: Sequence[TaskRow]) -> Sequence[TaskRow]:
    """The rows that rules are learned from: equally spaced ones where prompts are long, at most 1,000.

    Of JSON answers with many fields fewer, since each has its own rules.
    """
    num_fields = len(commonest_fields(rows)) or 1
    return evenly(within(rows, max(_MAX_CHARACTERS // num_fields, _LEAST_CHARACTERS)), _MAX_ROWS)


def copied_answers(rows: Sequence[TaskRow], prompts: Sequence[str]) -> list[str]:
    """What rules copy from each prompt; where answers are JSON objects, of each field by its own rules.

    Raises:
        NotApplicable: answers are rarely in their prompts, repeat as labels do, or follow no common words; of JSON
            answers, all fields are so, or most answers have other fields.
    """
    fields = commonest_fields(rows)
    return _copied_objects(rows_for_rules(rows), prompts, fields) if fields else copied_texts(rows, prompts)


def commonest_fields(rows: Sequence[TaskRow]) -> tuple[FieldPath, ...]:
    """The fields of the JSON objects that the answers are; none where most are no objects."""
    some = [fields_of(row.answer) for row in evenly(rows, _LOOKED_AT)]
    shapes = Counter(tuple(fields) for fields in some if fields)
    if shapes.total() <= 0.9 * len(some):
        return ()
    return shapes.most_common(1)[0][0]


def _copied_objects(rows: Sequence[TaskRow], prompts: Sequence[str], paths: tuple[FieldPath, ...]) -> list[str]:
    """JSON objects for the prompts, with the fields of most rows."""
    parsed = [(row, fields_of(row.answer)) for row in rows]
    own = [(row, fields) for row, fields in parsed if fields is not None and tuple(fields) == paths]
    if len(own) < 0.5 * len(rows) or len(paths) > _MAX_FIELDS:
        raise NotApplicable("the JSON answers have different fields, or more than 20")
    marks = marks_in_texts(row.prompt for row, _ in own)
    columns, num_copied = {}, 0
    for path in paths:
        values = [fields[path] for _, fields in own]
        columns[path], is_copied = _column([row.prompt for row, _ in own], values, prompts, marks)
        num_copied += is_copied
    if not num_copied:
        raise NotApplicable("no field of the JSON answers is copied from the prompt")
    style = style_of([row.answer for row, _ in own])
    return [written({path: column[place] for path, column in columns.items()}, style) for place in range(len(prompts))]


def _column(
    seen: Sequence[str], values: Sequence[Any], prompts: Sequence[str], marks: NumberMarks
) -> tuple[list[Any], bool]:
    """A field for each prompt, and whether rules copy it.

    Another one is answered by a linear classifier if its values repeat as labels do, else with the commonest value.
    """
    texts = [one if isinstance(one, str) else dumped(one) for one in values]
    rows = [TaskRow(prompt, text) for prompt, text in zip(seen, texts, strict=True)]
    is_text = 2 * sum(isinstance(one, str) and not isinstance(one, Raw) for one in values) >= len(values)
    # Of values that are no texts the rows' own spelling is JSON; what is copied need not be.
    known = dict(zip(texts, values, strict=True))
    found, is_copied = _texts_of_field(rows, prompts)
    return [known.get(text, text if is_text else _number(text, marks)) for text in found], is_copied


def _texts_of_field(rows: Sequence[TaskRow], prompts: Sequence[str]) -> tuple[list[str], bool]:
    with suppress(NotApplicable):
        return copied_texts(rows, prompts), True
    with suppress(NotApplicable):
        return linear_classifier(rows, prompts).outputs, False
    with suppress(NotApplicable):
        return commonest_answer(rows, len(prompts)), False
    return [rows[0].answer] * len(prompts), False


def _number(text: str, marks: NumberMarks) -> Raw:
    """A copied text as a JSON number; null where it is none.

    Args:
        text: that was copied.
        marks: of the numbers in prompts: `1.250` is a thousand and more where they have a decimal comma.
    """
    found = read_number(text, marks)
    if _JSON_NUMBER.fullmatch(text) and (found is None or marks.decimal == "."):
        return Raw(text)
    return Raw("null" if found is None else f"{found.value:.15g}")


def copied_texts(rows: Sequence[TaskRow], prompts: Sequence[str]) -> list[str]:
    """What the first rule that applies copies from each prompt; the commonest answer, or nothing, where none does.

    Raises:
        NotApplicable: answers are rarely in their prompts, repeat as labels do, or follow no common words.
    """
    used = evenly(within(rows, _MAX_CHARACTERS), _MAX_ROWS)
    texts = [_tokens(row.prompt) for row in used]
    found = [_occurrences(text, row.answer) for text, row in zip(texts, used, strict=True)]
    if sum(map(bool, found)) < 0.5 * len(used) or not used:
        raise NotApplicable("fewer than half of the answers are in their prompts")
    if len({same_label(row.answer) for row in used}) < 0.2 * len(used):
        raise NotApplicable("the answers repeat, as labels do")
    rules = _learn(used, texts, found)
    if not rules:
        raise NotApplicable("no words come before the answers regularly")
    try:
        otherwise = commonest_answer(used, 1)[0]
    except NotApplicable:
        otherwise = ""
    return [_apply(rules, _tokens(prompt), otherwise) for prompt in prompts]


def _tokens(text: str) -> _Text:
    matches = list(_TOKEN.finditer(text))
    return _Text(text, tuple(m[0].casefold() for m in matches), tuple(m.span() for m in matches))


def _occurrences(text: _Text, answer: str) -> list[tuple[int, int]]:
    """Token spans [start, end) of the prompt that read as the answer."""
    wanted = tuple(m[0].casefold() for m in _TOKEN.finditer(answer))
    size = len(wanted)
    if not size or size > _LONGEST:
        return []
    return [
        (start, start + size)
        for start in range(len(text.folded) - size + 1)
        if text.folded[start] == wanted[0] and text.folded[start : start + size] == wanted
    ]


def _learn(rows: Sequence[TaskRow], texts: Sequence[_Text], found: Sequence[list[tuple[int, int]]]) -> list[_Rule]:
    support: Counter[_Rule] = Counter()
    for text, spans in zip(texts, found, strict=True):
        # A row counts once for each rule, however often its answer occurs. No set: of equally good rules the first is
        # taken, and the order of a set of texts differs from process to process.
        support.update(list(dict.fromkeys(rule for start, end in spans for rule in _rules_of(text, start, end))))
    candidates = [rule for rule, count in support.most_common(_MAX_CANDIDATES) if count >= 2]
    answers = [same_label(row.answer) for row in rows]
    outcomes = {
        rule: [None if (copied := _copy(rule, text)) is None else same_label(copied) == answer
               for text, answer in zip(texts, answers, strict=True)]
        for rule in candidates
    }  # fmt: skip
    rules: list[_Rule] = []
    left = set(range(len(rows)))
    while left and len(rules) < _MAX_RULES:
        best, best_gain = None, 0
        for rule, marks in outcomes.items():
            applied = [marks[number] for number in left if marks[number] is not None]
            right = sum(map(bool, applied))
            # Laplace: two of two are no better than nine of ten. Rules are ranked by right answers less wrong ones.
            gain = 2 * right - len(applied)
            if applied and (right + 1) / (len(applied) + 2) >= _LEAST_PRECISION and gain > best_gain:
                best, best_gain = rule, gain
        if best is None:
            break
        rules.append(best)
        left = {number for number in left if outcomes[best][number] is None}
    return rules


def _rules_of(text: _Text, start: int, end: int) -> list[_Rule]:
    before = (_END, *text.folded[:start])
    right = text.folded[end] if end < len(text.folded) else _END
    return [
        rule
        for size in (1, 2, 3)
        if size <= len(before)
        for rule in (_Rule(before[-size:], right, 0), _Rule(before[-size:], None, end - start))
    ]


def _copy(rule: _Rule, text: _Text) -> str | None:
    """What the rule copies; None where its words are not in the prompt."""
    folded, size = (_END, *text.folded, _END), len(rule.left)
    for start in range(len(folded) - size):
        if folded[start] != rule.left[0] or folded[start : start + size] != rule.left:
            continue
        first = start + size
        if rule.right is None:
            end = first + rule.length
            if end >= len(folded):
                continue
        else:
            try:
                end = folded.index(rule.right, first, first + _LONGEST + 1)
            except ValueError:
                continue
        if end > first:
            # Tokens of `folded` are one behind those of the text, because of the mark of its start.
            return text.text[text.spans[first - 1][0] : text.spans[end - 2][1]]
    return None


def _apply(rules: Sequence[_Rule], text: _Text, otherwise: str) -> str:
    return next((copied for rule in rules if (copied := _copy(rule, text)) is not None), otherwise)

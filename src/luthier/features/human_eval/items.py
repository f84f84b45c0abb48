"""The items of a rating panel: answers of systems to the same rows, shown as pairs or individually in random order.

Answers are generated now or taken from an evaluation. An attention check is an item whose right answer is known. Where
the row has its own answer, that is shown with another row's answer in random order; where not, and where single
answers are rated, the text itself says what to choose.

Sources: Meade and Craig, "Identifying Careless Responses in Survey Data", 2012, table 1 (instructed response items).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.conversation import Message, text_with_calls
from luthier.core.dataset import Example
from luthier.core.defaults import RATED_TOKENS
from luthier.core.errors import RequestError
from luthier.core.evaluation import Evaluation, Sample
from luthier.core.ports import Generation, Prompt
from luthier.core.results.human_eval import AttentionCheck, RatedAnswer, RatingItem, RatingKind
from luthier.features.models.prompts import readable
from luthier.features.recipes.checks import column_map
from luthier.ml.evaluation.sampling import choose_by_hash, choose_samples
from luthier.platform.db.stored_texts import FORGOTTEN, is_forgotten_text, value_holds
from luthier.platform.home.context import Context

USUAL_NUM_ROWS: Final = 40
"""As many as one person rates in a sitting; more by `--most-rows`."""


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row with the answers of all systems.

    Attributes:
        row_id: The id of the row.
        prompt: The prompt as a person reads it.
        messages: The turns of the prompt; empty where it is a single turn of a user.
        reference: The row's own answer, or empty.
        answers: The answer of each system.
    """

    row_id: str
    prompt: str
    messages: tuple[Message, ...]
    reference: str
    answers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """Rows that all systems have answered.

    Attributes:
        systems: The systems, in order.
        source: The file, or the id of the evaluation.
        rows: The rows.
        num_left_out: Rows that are too long for one of the systems.
        num_forgotten: Rows whose texts were forgotten.
    """

    systems: tuple[str, ...]
    source: str
    rows: tuple[AnsweredRow, ...]
    num_left_out: int = 0
    num_forgotten: int = 0


def answer_rows(
    context: Context,
    systems: Sequence[str],
    data: Path,
    *,
    mapping: Mapping[str, str] | None = None,
    most_rows: int = USUAL_NUM_ROWS,
    max_new_tokens: int = RATED_TOKENS,
    allow_leakage: bool = False,
) -> AnsweredRows:
    """Have each system answer the rows of a file; earlier answers come from the home's cache.

    Args:
        context: The home.
        systems: Base models, runs, or `http(s)://host:port/v1#MODEL`.
        data: The file of the rows.
        mapping: As in `evaluations.evaluate`.
        most_rows: How many rows at most, chosen by a hash of their content.
        max_new_tokens: Limit of an answer, in tokens.
        allow_leakage: Accept rows that a run was trained on.

    Raises:
        RequestError: Rows without a prompt, or no row that all systems have answered.
        DataError: Rows that cannot be read.
        NotFoundError: No such file or system.
        LeakageError: Rows that a run was trained on.
    """
    from luthier.features.evaluations.leakage import check_leakage
    from luthier.features.generation.engines import find_teacher
    from luthier.features.models.names import runs_of
    from luthier.ml.data.rows.formats import load_file

    _check_names(systems)
    loaded = load_file(data, mapping=column_map(context, runs_of(context, systems), data, mapping).mapping)
    without = next((example.id for example in loaded.examples if example.prompt is None), None)
    if without is not None:
        raise RequestError(
            f"row {without} has no prompt that could be answered",
            expected="rows with a question or an instruction, and an answer",
            do="give a file of conversations, or of prompts and completions",
        )
    check_leakage(context, systems, loaded.examples, allowed=allow_leakage)
    examples = choose_samples(loaded.examples, most_rows)
    prompts = [Prompt(conversation=example.prompt, max_new_tokens=max_new_tokens) for example in examples]
    written: dict[str, list[Generation | None]] = {}
    for name in systems:
        # One system after the other, each closed before the next: only one model is in memory.
        with closing(find_teacher(context, name)) as engine:
            # `generate_each` returns an OverlongError in place of an answer, so one long row does not end the panel.
            found = engine.generate_each(prompts, context.progress)
        written[name] = [one if isinstance(one, Generation) else None for one in found]
    rows = []
    for place, example in enumerate(examples):
        made = {name: one for name in systems if (one := written[name][place]) is not None}
        texts = {name: text_with_calls(one.text, one.tool_calls) for name, one in made.items()}
        # A row that one system could not answer would have no pair; blind rating needs all of them.
        if len(texts) == len(systems):
            rows.append(_row(example, texts))
    return _checked(AnsweredRows(tuple(systems), str(data), tuple(rows), len(examples) - len(rows)))


def answers_of(
    evaluation: Evaluation, systems: Sequence[str] | None = None, *, most_rows: int = USUAL_NUM_ROWS
) -> AnsweredRows:
    """The answers of an evaluation.

    Args:
        evaluation: The evaluation with its samples.
        systems: By their names there; None takes all models that have written.
        most_rows: How many rows at most.

    Raises:
        RequestError: A system that is not there or has written nothing.
    """
    with_texts = {system.name: system for system in evaluation.systems if system.samples}
    models = tuple(name for name, system in with_texts.items() if system.is_model)
    chosen = models if systems is None else tuple(systems)
    _check_names(chosen)
    if unknown := [name for name in chosen if name not in with_texts]:
        raise RequestError(
            f"{', '.join(unknown)} has no answers in evaluation {evaluation.evaluation_id}",
            expected=f"systems among {', '.join(with_texts)}" if with_texts else "an evaluation with written answers",
            do="name systems of the evaluation, or give rows to be answered: --data FILE",
        )
    samples = {name: {sample.row_id: sample for sample in with_texts[name].samples} for name in chosen}
    first = samples[chosen[0]] if chosen else {}
    shared = [row_id for row_id in first if all(row_id in samples[name] for name in chosen)]
    # Nobody can rate what was forgotten, nor what was written about it.
    gone = {row_id for row_id in shared if any(_is_forgotten(samples[name][row_id]) for name in chosen)}
    shared = [row_id for row_id in shared if row_id not in gone]
    if gone and not shared:
        raise RequestError(
            f"the texts of all rows of {evaluation.evaluation_id} that these systems have answered were forgotten",
            expected="at least one row with its texts",
            do="give rows to be answered: --data FILE",
        )
    # By hash, so that the sample does not favour the start of the file.
    kept = choose_by_hash(shared, most_rows, lambda row_id: f"{row_id} {first[row_id].prompt}".encode())
    rows = tuple(
        AnsweredRow(
            row_id=row_id,
            prompt=first[row_id].prompt,
            messages=(),
            reference="" if first[row_id].reference == FORGOTTEN else first[row_id].reference,
            answers={name: samples[name][row_id].shown for name in chosen},
        )
        for row_id in kept
    )
    return _checked(AnsweredRows(chosen, evaluation.evaluation_id, rows, num_forgotten=len(gone)))


def _is_forgotten(sample: Sample) -> bool:
    return FORGOTTEN in (sample.prompt, sample.output) or value_holds(sample.tool_calls, is_forgotten_text)


def has_forgotten_text(item: RatingItem) -> bool:
    """Whether the prompt or an answer of an item was forgotten since the panel was made."""
    turns = [message.model_dump(mode="json") for message in item.messages]
    return value_holds([item.prompt, turns, [answer.text for answer in item.answers]], is_forgotten_text)


def _row(example: Example, texts: Mapping[str, str]) -> AnsweredRow:
    turns = () if example.prompt is None else example.prompt.messages
    # A single user turn is shown as its text; only conversations need their roles.
    is_plain = len(turns) == 1 and turns[0].role == "user"
    return AnsweredRow(
        row_id=example.id,
        prompt=readable(example.prompt),
        messages=() if is_plain else turns,
        reference=example.reference or "",
        answers=texts,
    )


def _check_names(systems: Sequence[str]) -> None:
    if not systems or len(set(systems)) < len(systems):
        raise RequestError(
            f"systems {', '.join(systems) or 'none'}",
            expected="at least one, each named once",
            do="name them with commas between: --systems run-...,gpt2",
        )


def _checked(found: AnsweredRows) -> AnsweredRows:
    if not found.rows:
        raise RequestError(
            f"none of the rows of {found.source} has an answer of all of {', '.join(found.systems)}",
            expected="at least one row that every system has answered",
            do="choose other systems or shorter rows",
        )
    return found


CHECK_SYSTEM: Final = "attention check"
MIN_CHECKS: Final = 2
_MIN_WORDS: Final = 8
"""Fewer words in no order may still make sense."""


def make_items(
    kind: RatingKind, answered: AnsweredRows, *, attention: float, seed: int
) -> tuple[list[RatingItem], int]:
    """All items of a panel, and how many pairs are not shown because both answers are the same text.

    Args:
        kind: Pairs, or single answers with scores.
        answered: The rows with the answers of each system.
        attention: Attention checks as a share of the real items, rounded up, and two at least unless it is 0.
        seed: Of the order and the sides: the same seed makes the same panel.
    """
    # One generator for all draws in a fixed order: the same seed makes the same panel.
    drawn = random.Random(seed)  # noqa: S311 - an order that can be made again
    if kind == "pairwise":
        pairs = [
            (row, (first, second))
            for row in answered.rows
            for first, second in itertools.combinations(answered.systems, 2)
        ]
        shown = [(row, names) for row, names in pairs if row.answers[names[0]].strip() != row.answers[names[1]].strip()]
        num_same = len(pairs) - len(shown)
    else:
        shown = [(row, (name,)) for row in answered.rows for name in answered.systems]  # type: ignore[misc]
        num_same = 0
    made = [_item(row, [RatedAnswer(system=name, text=row.answers[name]) for name in names]) for row, names in shown]
    if attention > 0 and made:
        # Two at least: one failed check may be a slip, two are a pattern.
        num_checks = max(MIN_CHECKS, math.ceil(attention * len(made)))
        make = _pairwise_checks if kind == "pairwise" else _likert_checks
        made += make(answered.rows, num_checks, drawn)
    # Checks are shuffled in with the rest; the item number is assigned after it and so reveals nothing.
    drawn.shuffle(made)
    return [item.model_copy(update={"item": number}) for number, item in enumerate(made)], num_same


def _pairwise_checks(rows: Sequence[AnsweredRow], number: int, drawn: random.Random) -> list[RatingItem]:
    wordy = [row for row in rows if len(set(row.reference.split())) >= _MIN_WORDS]
    made = []
    for place in range(number):
        if len(wordy) > 1:
            row = wordy[place % len(wordy)]
            # Another row's words: a garbled version of the same answer would have the right vocabulary.
            other = drawn.choice([one for one in wordy if one is not row])
            texts = [row.reference, _garbled(other.reference, drawn)]
            # "a" is the right one in the stored item; which side it is shown on is drawn for each rater.
            how = AttentionCheck(how="garbled", preference="a")
        else:
            row = rows[place % len(rows)]
            words = "This text checks whether answers are read. Please choose the answer with this sentence as better."
            texts = [words, next(iter(row.answers.values()))]
            how = AttentionCheck(how="instructed", preference="a")
        made.append(_item(row, [RatedAnswer(system=CHECK_SYSTEM, text=text) for text in texts], how))
    return made


def _likert_checks(rows: Sequence[AnsweredRow], number: int, drawn: random.Random) -> list[RatingItem]:
    made = []
    # Without 3: a rater who always picks the middle must fail.
    scores = [1, 5, 2, 4]
    drawn.shuffle(scores)
    for place in range(number):
        score = scores[place % len(scores)]
        words = f"This text checks whether answers are read. Please give {score} to every question about it."
        check = AttentionCheck(how="instructed", score=score)
        made.append(_item(rows[place % len(rows)], [RatedAnswer(system=CHECK_SYSTEM, text=words)], check))
    return made


def _item(row: AnsweredRow, answers: Sequence[RatedAnswer], check: AttentionCheck | None = None) -> RatingItem:
    return RatingItem(
        item=0, row_id=row.row_id, prompt=row.prompt, messages=row.messages, answers=tuple(answers), check=check
    )


def _garbled(text: str, drawn: random.Random) -> str:
    """The words in another order, which is never the first one."""
    words = text.split()
    mixed = words[:]
    while mixed == words:
        drawn.shuffle(mixed)
    return " ".join(mixed)

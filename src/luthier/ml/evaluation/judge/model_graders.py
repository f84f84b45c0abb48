"""Scores of graders that ask a model: what they ask, and how replies are read.

The same for tasks of suites, whose judge the command names, and for rewards, which name their models themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from luthier.core.conversation import Conversation, Message
from luthier.core.graders import LabelModelSpec, ScoreModelReward, ScoreModelSpec
from luthier.core.ports import Engine, Generation, Progress, Prompt
from luthier.core.records.calibration import NoVerdictKind
from luthier.ml.evaluation.graders import written_out
from luthier.ml.evaluation.judge.replies import has_result, label_in, score_in
from luthier.ml.evaluation.judge.verdicts import NoVerdict, ask_judge

_GRADE_TOKENS: Final = 256


def scores_of(
    grader: ScoreModelSpec | LabelModelSpec,
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    judge: Engine,
    progress: Progress,
) -> list[float | NoVerdict]:
    """The score of each answer, or why the judge gave none, asked twice.

    Args:
        grader: what to ask.
        pairs: the fields of an answer and of its row.
        judge: the model that is asked.
        progress: shows the replies.

    Raises:
        WorkError: the judge fails on three single questions in a row.
        RequestError: a row lacks a field, or the engine rejects the request.
    """
    limit = _limit_of(grader)
    prompts = [question_of(grader, answer, item) for answer, item in pairs]

    def read(made: Generation) -> float | NoVerdict:
        # Numbers and labels in a text without its end may belong to what leads to the verdict: "the first 3 sentences".
        # A limit of the grader itself is meant: one token is enough for a digit.
        is_cut = made.finish_reason == "length" and limit is None
        found: float | None = None
        if not is_cut or has_result(made.text):
            if isinstance(grader, LabelModelSpec):
                found = label_in(made.text, grader.labels, grader.passing_labels)
            else:
                found = score_in(made.text, *grader.range)
        # Asked again it gets more room, as for the thoughts of a model behind a server.
        kind: NoVerdictKind = "cut off" if is_cut else "prose"
        return NoVerdict(kind, made.text) if found is None else found

    # One question that is too long, or that the judge fails on, does not end the work on all others.
    return ask_judge(judge, prompts, read, progress)


def question_of(grader: ScoreModelSpec | LabelModelSpec, answer: Mapping[str, Any], item: Mapping[str, Any]) -> Prompt:
    """What a grader asks its model about an answer.

    Args:
        grader: what to ask.
        answer: the fields of the answer.
        item: those of its row.

    Raises:
        RequestError: the row lacks a field.
    """
    sampling = grader.sampling_params if isinstance(grader, ScoreModelReward) else None
    limit = _limit_of(grader)
    turns = tuple(Message(role=one.role, content=written_out(one.content, answer, item)) for one in grader.input)
    return Prompt(
        conversation=Conversation(messages=turns),
        max_new_tokens=limit or _GRADE_TOKENS,
        # A limit of the grader is for the thought, too, as where it is run by itself.
        max_thinking_tokens=None if limit is None else 0,
        temperature=(sampling and sampling.temperature) or 0.0,
        seed=(sampling and sampling.seed) or 0,
    )


def _limit_of(grader: ScoreModelSpec | LabelModelSpec) -> int | None:
    """The longest reply that the grader itself sets."""
    sampling = grader.sampling_params if isinstance(grader, ScoreModelReward) else None
    return None if sampling is None else sampling.max_completions_tokens

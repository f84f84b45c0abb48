"""What answers are worth, made ready for training: the plan's rewards, and of each row what they ask for.

Training does not know evaluation: it is lent a function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.dataset import Example
from luthier.core.errors import DataError, OverlongError, RequestError
from luthier.core.graders import Reward
from luthier.core.plan import Plan

if TYPE_CHECKING:
    from luthier.features.planning.service import Prepared
    from luthier.features.planning.training_data import PreparedSplit
    from luthier.ml.evaluation.rewards import Rewards
    from luthier.ml.training.objective_protocol import Tools

_OURS = ("reference",)


def tools_for(prepared: Prepared, *, is_first: bool) -> Tools:
    """What the run lends its objective. is_first: whether this process, of several, writes the run's files."""
    from luthier.ml.training.objective_protocol import Tools

    splits = [split for split in (prepared.train, prepared.validation) if split is not None]
    return Tools(
        template=prepared.template,
        grade=rewards_of(prepared.plan.objective.rewards, splits),
        seed=prepared.plan.training.seed,
        writes_files=is_first,
    )


def check_drawing(plan: Plan, splits: Sequence[PreparedSplit], room_tokens: int) -> None:
    """Refuse what would fail once answers are drawn, before anything is trained; nothing where none are.

    Args:
        plan: Of the run.
        splits: Training and validation rows.
        room_tokens: Of the model's context.

    Raises:
        RequestError: A formula or a field that no grader can fill, or rows that lack what is graded.
        DataError: Two different rows of one id.
        OverlongError: Prompts that leave no room for an answer.
    """
    rewards_of(plan.objective.rewards, splits)
    if plan.objective.max_new_tokens is None:
        return
    most = room_tokens - plan.objective.max_new_tokens
    rows = [row for split in splits for row in split.tokenised]
    over = [row for row in rows if row.num_prompt_tokens > most]
    if over:
        verb = "prompt is" if len(over) == 1 else "prompts are"
        raise OverlongError(
            f"{len(over):,} {verb} longer than {most:,} tokens, such as that of {over[0].id}",
            expected=f"room for objective.max_new_tokens {plan.objective.max_new_tokens:,} behind every prompt",
            do="lower objective.max_new_tokens, or take these rows out",
        )


def rewards_of(rewards: Sequence[Reward] | None, splits: Sequence[PreparedSplit]) -> Rewards | None:
    """The rewards of a plan over the rows of these splits; None where it has none.

    Raises RequestError for a formula or a place that no grader can fill, and for rows that lack what is asked for.
    """
    from luthier.ml.evaluation.graders.grade import fields_of
    from luthier.ml.evaluation.rewards import Rewards

    if rewards is None:
        return None
    asked = {name for reward in rewards if reward.grader is not None for name in fields_of(reward.grader)}
    needs_answer = "reference" in asked or any(reward.metric is not None for reward in rewards)
    items: dict[str, dict[str, Any]] = {}
    for split in splits:
        wanted = asked - set(_OURS)
        fields = _fields(Path(split.profile.file)) if wanted else {}
        for example in split.examples:
            item = dict(fields.get(example.id, {})) | {"reference": example.reference}
            # The same file may be split into both sides: equal rows under one id are fine, different ones are not.
            if items.setdefault(example.id, item) != item:
                raise _same_name(example)
            _refuse_lost(example, item, wanted, needs_answer)
    return Rewards(rewards, items)


def _fields(file: Path) -> Mapping[str, dict[str, Any]]:
    """The raw fields of each row of a file, by the row's id."""
    from luthier.core.dataset import Row
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows

    return {row.id: row.fields for row in read_rows(open_source(file)) if isinstance(row, Row)}


def _same_name(example: Example) -> DataError:
    return DataError(
        f"{example.id} is a row of the training file and another one of the validation file",
        expected="two files of different names: rewards find a row by the name of its file and its line",
        do="rename one of the two files",
    )


def _refuse_lost(example: Example, item: Mapping[str, Any], wanted: set[str], needs_answer: bool) -> None:
    if needs_answer and example.reference is None:
        raise RequestError(
            f"objective.rewards compare with the row's own answer, but that of {example.id} is only tool calls",
            expected="rows with an answer in words, or rewards that need none",
            do="take such rows out",
        )
    if lost := sorted(wanted - set(item)):
        raise RequestError(
            f"objective.rewards ask for item.{lost[0]}, which {example.id} has not",
            expected=f"one of {', '.join(sorted(item))}",
            do="correct objective.rewards, or give every row that field",
        )

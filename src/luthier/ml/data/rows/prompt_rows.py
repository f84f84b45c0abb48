"""Rows that end with a prompt, as reinforcement takes them: each gets an answer, as all other rows have.

Nothing learns that answer: GRPO learns the answers that it draws. Only rewards that compare with the row's own answer
read it, so such rows need a field `reference` then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem
from luthier.ml.data.rows.columns import resolve_once
from luthier.ml.data.rows.sharegpt_rows import role_of

ANSWER: Final = "-"
"""The placeholder for the answer of a row without one; never empty, since an empty answer is refused."""
REFERENCE: Final = "reference"
_SIDES: Final = ("chosen", "rejected")
_FIELDS: Final = ("messages", "conversations", "prompt", "completion", "instruction", "output", *_SIDES)


@dataclass(frozen=True, slots=True)
class PromptRule:
    """How rows that end with a prompt are taken.

    Attributes:
        needs_reference: Whether a reward compares with the row's own answer.
    """

    needs_reference: bool


class PromptRows:
    """Completes rows that end with a prompt; others stay as they are.

    Args:
        mapping: Field of a shape -> column of the file, as the recipe has it.
        rule: How they are taken.
    """

    def __init__(self, mapping: Mapping[str, str], rule: PromptRule) -> None:
        self._mapping, self._needs_reference = mapping, rule.needs_reference
        self._resolved: dict[tuple[str, ...], dict[str, str]] = {}

    def __call__(self, row: Row | RowProblem) -> Row | RowProblem:
        """The row with an answer, or what is wrong with it."""
        if isinstance(row, RowProblem):
            return row
        place = self._open_place(row.fields)
        if place is None:
            return row
        own = row.fields.get(REFERENCE)
        text = own if isinstance(own, str) else "" if own is None else json.dumps(own, ensure_ascii=False)
        if not text.strip() and self._needs_reference:
            reason = (
                "ends with a prompt and has nothing in a field reference, which a reward compares with: add it, or "
                "name the field of the rows that has the right answer in a grader, such as {{item.answer}}"
            )
            return RowProblem(row.file, row.line, REFERENCE, "", reason)
        answer = text if text.strip() else ANSWER
        column, turn = place
        added = answer if turn is None else [*row.fields[column], turn | {_content_of(turn): answer}]
        return replace(row, fields={**row.fields, column: added})

    def _open_place(self, fields: Mapping[str, Any]) -> tuple[str, dict[str, str] | None] | None:
        """The column that lacks an answer, and the turn that it takes there; None for a row that has one.

        The turn is None where the answer is the value of the column.
        """
        found = resolve_once(self._resolved, self._mapping, _FIELDS, tuple(fields))
        columns = {name: found.get(name, name) for name in _FIELDS}
        messages, talk = columns["messages"], columns["conversations"]
        if (last := _last_turn(fields.get(messages))) is not None:
            is_open = last.get("role") not in ("assistant", None)
            return (messages, {"role": "assistant"}) if is_open else None
        if (last := _last_turn(fields.get(talk))) is not None:
            role = role_of(last)
            turn = {"role": "assistant"} if "from" not in last else {"from": "gpt"}
            return (talk, turn) if role not in ("assistant", None) else None
        if any(fields.get(columns[side]) is not None for side in _SIDES):
            return None
        for prompt, answer in (("prompt", "completion"), ("instruction", "output")):
            if fields.get(columns[prompt]) is not None and fields.get(columns[answer]) is None:
                return columns[answer], None
        return None


def _last_turn(turns: Any) -> Mapping[str, Any] | None:
    return turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], dict) else None


def _content_of(turn: Mapping[str, str]) -> str:
    return "value" if "from" in turn else "content"

"""Which shape the rows of a file have: detected from the fields of all rows, or given by a mapping."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.core.dataset import Row, Shape
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.provenance import OWN_GROUPS, has_field
from luthier.ml.data.rows.chat_rows import judged_of, wanted_of
from luthier.ml.data.rows.columns import (
    CONTEXTS,
    LABEL,
    OTHER_CLASSES,
    PROMPTS,
    QUESTION_AND_ANSWER,
    LabelScan,
    check_classes,
    columns_like,
    is_question_and_answer,
    plain_name,
    proposed_pair,
    refuse_ambiguous,
    resolve,
    resolve_once,
    retrieval_columns,
)
from luthier.ml.data.rows.preference_rows import CHOSEN, REJECTED, has_sides, lacks_prompt
from luthier.ml.inference.models.templates.thought_writing import FIELDS

# In order of precedence: the first shape that fits every row is taken.
REQUIRED: dict[Shape, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "chat": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
OPTIONAL: dict[Shape, tuple[str, ...]] = {
    "preference": ("prompt", "system", "tools", "functions", "input", *CHOSEN[1:], *REJECTED[1:]),
    "unpaired": ("system", "tools"),
    "chat": ("tools", "functions", "parallel_tool_calls", "system"),
    "sharegpt": ("system", "tools"),
    "prompt_completion": ("system", "tools"),
    "alpaca": ("input", "system", "history"),
    "text": (),
}
# Both sides of a preference have several names each, which `_fits` looks for.
_REQUIRED_NAMES: dict[Shape, frozenset[str]] = {
    shape: frozenset(() if shape == "preference" else names) for shape, names in REQUIRED.items()
}
GROUP = "group"
_TURN_LISTS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
_TURN_FIELDS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "weight", "function_call", "from", "value",
     "learn_reasoning", "train", "loss", *FIELDS)
)  # fmt: skip
MAPPABLE = tuple(dict.fromkeys([name for s in REQUIRED for name in (*REQUIRED[s], *OPTIONAL[s])] + [GROUP]))
_TICKET_FIELDS = frozenset(("comments", "requester_id"))
"""Of tickets as Zendesk exports them."""
_ACCEPTED = "; ".join(f"{' + '.join(names)} ({shape})" for shape, names in REQUIRED.items())
_NUM_FIELDS_SHOWN = 20


def fitting_shapes(fields: Mapping[str, Any]) -> list[Shape]:
    """The shapes whose required fields are all there and not null, in order of precedence."""
    filled = {name for name, value in fields.items() if value is not None}
    return [shape for shape, names in _REQUIRED_NAMES.items() if names <= filled and _fits(shape, fields)]


def _fits(shape: Shape, fields: Mapping[str, Any]) -> bool:
    """Whether a row fits a shape whose required fields it has."""
    if shape == "preference":
        return has_sides(fields)
    # A label may also be a class, and not whether the completion is desired.
    return shape != "unpaired" or wanted_of(fields.get("label")) is not None


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Check that every target of a mapping is a field of some shape.

    Args:
        mapping: field of the shape -> column of the file.

    Raises:
        DataError: no shape has such a field; the message names the nearest one.
    """
    for target in mapping:
        if target not in MAPPABLE:
            near = difflib.get_close_matches(target, MAPPABLE, n=1)
            raise DataError(
                f"the mapping sets {target!r} = {mapping[target]!r}, and {target!r} is not a field of any shape",
                expected=f"one of {', '.join(MAPPABLE)}" + (f"; nearest: {near[0]}" if near else ""),
                do="write FIELD=COLUMN: on the left the field of the shape, on the right the column of the file",
            )


def renamed(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """The row's fields under the names of the shape. A column that was mapped is no longer there under its own name."""
    # The group column keeps its name: it may at the same time be a field of the shape.
    targets = {target: column for target, column in mapping.items() if target != GROUP}
    taken = set(targets.values())
    kept = {name: value for name, value in fields.items() if name not in targets and name not in taken}
    return kept | {target: fields[column] for target, column in targets.items() if column in fields}


def named(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """As `renamed`, with columns that differ from a field, or from the mapping, in capitals and spaces only."""
    return renamed(fields, resolve(mapping, MAPPABLE[:-1], fields))


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rows of a file are, as `ShapeDetector.settle` finds it.

    Attributes:
        shape: the shape that all rows fit.
        reason: one sentence why, with the columns that represent fields under other names, and those not used.
        mapping: field of the shape -> column, both as requested and as found.
        group: the column that keeps rows together.
        unused: every column that goes into no field.
    """

    shape: Shape
    reason: str
    mapping: dict[str, str]
    group: str | None
    unused: tuple[str, ...]


@dataclass
class ShapeDetector:
    """Looks at every row once and then says the shape of the file. Memory: the names of the fields, not the rows.

    Attributes:
        file: name of the file, for messages.
        mapping: field of the shape -> column, as the user gave it.
        read_as: how the file is written, where that was found in it (`rows.read_as`); ends the reason.
        num_rows: rows seen so far.
        columns: names of all columns in the order of their first appearance.
    """

    file: str
    mapping: Mapping[str, str]
    read_as: str = ""
    num_rows: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    _filled: dict[str, None] = field(default_factory=dict)
    _unused_in_turns: dict[str, None] = field(default_factory=dict)
    _fits: list[Shape] = field(default_factory=list)
    _first_lines: dict[tuple[Shape, ...], int] = field(default_factory=dict)
    _first_line: int = 0
    _mixed: tuple[RowProblem, Shape] | None = None
    _mappings: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict)
    _labels: LabelScan = field(default_factory=LabelScan)
    _judged: dict[bool | None, None] = field(default_factory=dict)
    _num_answered: int = 0
    _num_lacking_prompts: int = 0
    _num_shapeless: int = 0
    _turn_columns: dict[str, str] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Take one row into account. A row that fits no shape says nothing about the shape of the file."""
        self.num_rows += 1
        names = tuple(row.fields)
        if names not in self._mappings:
            self.columns.update(dict.fromkeys(names))
        mapping = resolve_once(self._mappings, self.mapping, MAPPABLE[:-1], names)
        fields = renamed(row.fields, mapping) if mapping else row.fields
        for name, value in fields.items():
            if value is not None and name not in self._filled:
                self._filled[name] = None
        self._look_into_turns(fields)
        fits = fitting_shapes(fields)
        if "text" in fits and LABEL in fields:
            self._labels.add(fields[LABEL])
        if "prompt_completion" in fits and fields.get(LABEL) is not None:
            # True and false are rows of another shape, which their own error names where that is not the file's.
            self._judged[judged_of(fields[LABEL]) if wanted_of(fields[LABEL]) is None else None] = None
        if fits:
            self._narrow(tuple(fits), row.line)
            self._num_lacking_prompts += fits[0] == "preference" and lacks_prompt(fields)
        else:
            self._num_shapeless += 1
            self._num_answered += is_question_and_answer(row.fields)
            if not self._turn_columns:
                self._turn_columns = _turn_columns(row.fields)

    def merge(self, later: ShapeDetector) -> None:
        """Take the rows into account that another detector has seen, which come after all rows seen so far."""
        self.num_rows += later.num_rows
        self.columns |= later.columns
        self._filled |= later._filled
        self._unused_in_turns |= later._unused_in_turns
        self._labels.merge(later._labels)
        self._judged |= later._judged
        self._num_answered += later._num_answered
        self._num_lacking_prompts += later._num_lacking_prompts
        self._num_shapeless += later._num_shapeless
        self._turn_columns = self._turn_columns or later._turn_columns
        # Only the first row of each kind can narrow anything: those after it fit what is left.
        for fits, line in later._first_lines.items():
            self._narrow(fits, line)

    def _narrow(self, fits: tuple[Shape, ...], line: int) -> None:
        """A row that fits these shapes, in order of precedence."""
        if fits in self._first_lines:
            return
        self._first_lines[fits] = line
        if self._mixed is not None:
            return
        if not self._fits:
            self._fits, self._first_line = list(fits), line
            return
        # The shapes that every row so far fits, in order of precedence; the first is taken in the end.
        both = [shape for shape in self._fits if shape in fits]
        if not both:
            reason = f"is {fits[0]} where row {self._first_line} is {self._fits[0]}"
            self._mixed = (RowProblem(self.file, line, "", "", reason), fits[0])
        else:
            self._fits = both

    def _look_into_turns(self, fields: Mapping[str, Any]) -> None:
        for name in _TURN_LISTS:
            turns = fields.get(name)
            for turn in turns if isinstance(turns, list) else ():
                if isinstance(turn, dict) and not turn.keys() <= _TURN_FIELDS:
                    unused = [key for key, value in turn.items() if key not in _TURN_FIELDS and value is not None]
                    self._unused_in_turns.update((f"{name}[].{key}", None) for key in unused)

    def decide(self, *, group: str | None) -> tuple[Shape, str]:
        """The shape, and one sentence why.

        Raises:
            DataError: there is no shape or more than one, or several columns could be one field.
        """
        decision = self.settle(group=group)
        return decision.shape, decision.reason

    def settle(self, *, group: str | None) -> Decision:
        """The shape, and which column is which field of it.

        Args:
            group: the column that keeps rows together; None for none.

        Raises:
            DataError: there is no shape or more than one, or several columns could be one field.
        """
        mapping = resolve(self.mapping, MAPPABLE[:-1], self.columns)
        if group is not None:
            group = resolve({GROUP: group}, (), self.columns)[GROUP]
        self._check_columns_exist(mapping, group)
        # A mapping of required fields decides the shape; one of optional fields alone, such as system, does not.
        mapped = [name for name in self.mapping if any(name in names for names in REQUIRED.values())]
        shape = self._mapped_shape(mapped) if mapped else self._seen_shape()
        found: dict[str, str] = {}
        if shape is None:
            shape, found = "prompt_completion", self._as_pairs(QUESTION_AND_ANSWER)
            said = f"every row has {' and '.join(found.values())}"
        elif not mapped and shape == "text" and (label := columns_like(LABEL, self.columns)):
            check_classes(self.file, self._labels, self.num_rows, label[0])
            shape, found = "prompt_completion", self._as_pairs(("text", label[0]))
            said = f"every row has {' and '.join(found.values())}, a classification"
        elif mapped:
            said = f"the mapping names {' and '.join(mapped)}"
        else:
            self._refuse_judged(shape)
            said = f"every row has {' and '.join(self._seen_names(shape))}"
            if shape == "preference" and (prompt := self._other_prompt(mapping)) is not None:
                found = {"prompt": prompt}
        known = (*REQUIRED[shape], *OPTIONAL[shape])
        for name in known:
            if name not in mapping and name not in self.columns:
                refuse_ambiguous(self.file, name, name, self.columns)
        mapping = {name: column for name, column in mapping.items() if name in self.mapping or name in known} | found
        return self._decision(shape, said, mapping, group)

    def _decision(self, shape: Shape, said: str, mapping: dict[str, str], group: str | None) -> Decision:
        fields = (*REQUIRED[shape], *OPTIONAL[shape])
        used = {mapping.get(name, name) for name in fields} | {group}
        unused = [name for name in self.columns if name not in used]
        nested = [name for name in self._unused_in_turns if name.split("[", 1)[0] in REQUIRED[shape]]
        found = [f"{name} = {column}" for name, column in mapping.items() if self.mapping.get(name) != column]
        notes = [", ".join(found)] if found else []
        if unused or nested:
            notes.append(f"not used: {', '.join(name or '(no name)' for name in (*unused, *nested))}")
        if shape == "text" and (label := next((n for n in unused if plain_name(n) in OTHER_CLASSES), None)):
            notes.append(f"to learn {label}: --map prompt={mapping.get('text', 'text')} --map completion={label}")
        reason = said + (f" ({'; '.join(notes)})" if notes else "")
        if self.read_as:
            reason += f"; read as {self.read_as}"
        return Decision(shape, reason, mapping, group, (*unused, *nested))

    def _refuse_judged(self, shape: Shape) -> None:
        """Labels such as 0 and 1 that may say which completions are bad: as plain pairs those would be learned, too."""
        if shape == "prompt_completion" and False in self._judged and None not in self._judged:
            label = columns_like(LABEL, self.columns)[0]
            raise DataError(
                f"{self.file} has prompt and completion, and a {label} that may say which completions are bad",
                expected="a decision whether bad completions are learned, too",
                do=f"name it: --map label={label} for objective kto, --map completion=completion to learn all of them",
            )

    def _as_pairs(self, names: tuple[str, str]) -> dict[str, str]:
        """Prompt and completion under columns of these names.

        Raises:
            DataError: one may be several.
        """
        for target, name in zip(("prompt", "completion"), names, strict=True):
            refuse_ambiguous(self.file, target, name, self.columns)
        prompt, completion = (columns_like(name, self.columns)[0] for name in names)
        return {"prompt": prompt, "completion": completion}

    def _other_prompt(self, mapping: Mapping[str, str]) -> str | None:
        """The one column that can only be the prompt of preferences whose completions are answers alone."""
        if self._num_lacking_prompts < self.num_rows - self._num_shapeless or {"prompt", "input"} & mapping.keys():
            return None
        # Columns are known by the names of fields of shapes, such as instruction, where they differ in capitals only.
        found = [
            column
            for name in PROMPTS
            for column in columns_like(name, self.columns)
            if name != "prompt" and self._filled.keys() & {name, column}
        ]
        return found[0] if len(found) == 1 else None

    def _seen_names(self, shape: Shape) -> list[str]:
        """The required fields of a shape under the names that the file gives them."""
        if shape != "preference":
            return list(REQUIRED[shape])
        return [next((name for name in names if name in self._filled), names[0]) for names in (CHOSEN, REJECTED)]

    def _check_columns_exist(self, mapping: Mapping[str, str], group: str | None) -> None:
        wanted = {name: mapping[name] for name in self.mapping}
        if group is not None and group not in OWN_GROUPS:
            wanted[GROUP] = group
        for target, column in wanted.items():
            if column not in self.columns and not (target == GROUP and has_field(self.columns, column)):
                refuse_ambiguous(self.file, target, column, self.columns)
                near = difflib.get_close_matches(column, list(self.columns), n=1)
                raise DataError(
                    f"{self.file} has no field {column!r}, which is mapped to {target!r}",
                    expected=f"one of the fields of the file: {_listed(list(self.columns))}",
                    do=f"did you mean {near[0]!r}?" if near else "name one of these fields",
                )

    def _mapped_shape(self, mapped: list[str]) -> Shape:
        for shape, names in REQUIRED.items():
            if shape == "unpaired" and "label" not in mapped:
                continue  # a label that is not mapped may be a class
            known = (*names, *OPTIONAL[shape])
            if all(name in known for name in mapped) and all(name in self._filled for name in names):
                return shape
        shown = ", ".join(f"{name}={self.mapping[name]}" for name in mapped)
        raise DataError(
            f"the mapping {shown} does not give a shape to {self.file}",
            expected=f"all required fields of one shape: {_ACCEPTED}",
            do=f"map the missing field to one of: {_listed(list(self.columns))}",
        )

    def _seen_shape(self) -> Shape | None:
        """The shape that all rows fit; None where all are questions and answers under these names."""
        if self._mixed is not None:
            problem, other = self._mixed
            raise DataError(
                f"{self.file} mixes shapes: row {self._first_line} is {self._fits[0]}, row {problem.line} is {other}",
                expected="one shape in a file",
                do="split the file by shape, or convert the rows to one shape",
                problems=[problem],
            )
        if not self._fits:
            for name in self._required_names():
                refuse_ambiguous(self.file, name, name, self.columns)
            if self.num_rows and self._num_answered == self.num_rows:
                self._refuse_contexts()
                return None
            # A wrong delimiter or encoding shows in the names of the fields.
            read_as = f"; read as {self.read_as}" if self.read_as else ""
            raise DataError(
                f"{self.file} has rows of no known shape; their fields are: {_listed(list(self.columns))}{read_as}",
                expected=f"rows with {_ACCEPTED}",
                do=self._what_makes_rows(),
            )
        return self._fits[0]

    def _what_makes_rows(self) -> str:
        if _TICKET_FIELDS.issubset(self.columns):
            return "make conversations of these tickets: luthier data conversations FILE --output rows.jsonl"
        return f"rename the fields, or map them, such as {self._proposed_mapping()}"

    def _proposed_mapping(self) -> str:
        """The options that map the columns which look like fields of a shape; an example where none do."""
        if self._turn_columns:
            proposed = {target: column for column, target in list(self._turn_columns.items())[:1]}
        else:
            proposed = retrieval_columns(self.columns) or dict(
                zip(("prompt", "completion"), proposed_pair(self.columns) or QUESTION_AND_ANSWER, strict=True)
            )
        return " ".join(f"--map {shlex.quote(f'{target}={column}')}" for target, column in proposed.items())

    def _required_names(self) -> list[str]:
        return [name for names in REQUIRED.values() for name in names if name not in self.columns]

    def _refuse_contexts(self) -> None:
        """A question and its answer next to a column that the question may need: the user has to decide."""
        beside = [column for column in self.columns if plain_name(column) in CONTEXTS]
        if beside:
            question, answer = (columns_like(name, self.columns)[0] for name in QUESTION_AND_ANSWER)
            raise DataError(
                f"{self.file} has {question} and {answer}, and {' and '.join(beside)} which the questions may need",
                expected="a decision whether it belongs to the prompt",
                do=f"without it: --map prompt={question!r} --map completion={answer!r}; else write it into the prompts",
            )


def _turn_columns(fields: Mapping[str, Any]) -> dict[str, str]:
    """Columns that hold lists of turns, each with the field that such turns are."""
    found = {}
    for name, value in fields.items():
        if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
            keys = set(value[0])
            if keys >= {"role", "content"}:
                found[name] = "messages"
            elif keys >= {"from", "value"}:
                found[name] = "conversations"
    return found


def _listed(names: list[str]) -> str:
    shown = ", ".join(name or "(no name)" for name in names[:_NUM_FIELDS_SHOWN]) or "none"
    left = len(names) - _NUM_FIELDS_SHOWN
    return shown + (f" and {left} more" if left > 0 else "")

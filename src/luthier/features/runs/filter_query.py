"""Filters and orders of the list of runs as SQL: what each field means, and which rows a condition keeps.

All conditions are about one relation, `entries`: the runs of a project and its waiting jobs, with what people wrote
about them. Values of plans, results and evaluations are looked up in `run_values` by run and key, which is its primary
key. The time of a run is in its id, so a comparison with a date is one of ids.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    and_,
    exists,
    false,
    func,
    literal,
    not_,
    nulls_last,
    or_,
    select,
    true,
    union_all,
)

from luthier.core.aliases import new_key, stored_key
from luthier.core.errors import RequestError
from luthier.core.plan import MethodPlan, ObjectivePlan, TrainingPlan
from luthier.core.text.suggest import suggest_ids
from luthier.features.runs.filter_language import All, AnyOf, Condition, Filter, Not, Words, filter_fault
from luthier.features.runs.store import DELETED, OWNER
from luthier.platform.db.run_values import BILLED, DATASET, METRIC, NAME, RESULTS, ROWS, VERDICT
from luthier.platform.db.tables import jobs, run_labels, run_tags, run_values, runs

ALIASES: Final = {
    "lr": "training.learning_rate",
    "batch": "training.global_batch_size",
    "loss": "train_loss",
    "memory": "memory_bytes",
    "rows": ROWS,
    "status": "state",
    "base_model": "model",
    "base": "model",
    "tags": "tag",
    "starred": "star",
}
"""Short names of fields."""
OWN_FIELDS: Final = (
    "name", "note", "tag", "group", "star", "archived", "state", "model", "method", "created", "steps", "reason", "id",
)  # fmt: skip
"""Fields that are not values of a plan, a result or an evaluation."""
RESULT_FIELDS: Final = (*RESULTS.values(), *BILLED, ROWS, DATASET, VERDICT)
PLAN_FIELDS: Final = tuple(
    new_key(f"{section}.{key}")
    for section, kind in (("method", MethodPlan), ("objective", ObjectivePlan), ("training", TrainingPlan))
    for key in kind.model_fields
)
"""Values of a plan by their names in a recipe."""
STATES: Final = ("queued", "running", "paused", "interrupted", "succeeded", "failed", "cancelled")
"""`interrupted`: of a command whose process was killed. Its record still says `running`; its process is looked for."""
_YES: Final = {"yes": 1, "true": 1, "1": 1, "no": 0, "false": 0, "0": 0}
_FACTORS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
_NUMBER: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)([kmgb]?)", re.IGNORECASE)
_DAY: Final = re.compile(r"(\d{4})-(\d{2})-(\d{2})(?:T(\d{2}):(\d{2}))?")
_NEGATED: Final = {"!=": ":", "!~": "~"}


def _short_names() -> dict[str, str]:
    """Each value of a plan by the last part of its name, where only one has it."""
    found: dict[str, set[str]] = {}
    for name in PLAN_FIELDS:
        # By the name of today, and by the one that an earlier version had.
        for known in (name, stored_key(name)):
            found.setdefault(known.rpartition(".")[2], set()).add(name)
    return {short: next(iter(names)) for short, names in found.items() if len(names) == 1}


_SHORT: Final = _short_names()


def key_of(name: str) -> str:
    """The field that a name means: `training.learning_rate` for `lr`. A name that is unknown may be a metric's."""
    name = ALIASES.get(name.lower(), name)
    if name.lower() in OWN_FIELDS:
        return name.lower()
    if name in RESULT_FIELDS or name in PLAN_FIELDS:
        return name
    if (own := new_key(name)) in PLAN_FIELDS:
        return own
    return _SHORT.get(name, name if name.startswith(METRIC) else f"{METRIC}{name}")


def is_value(key: str) -> bool:
    """Whether a field is kept in `run_values`."""
    return key not in OWN_FIELDS


def nearest_fields(name: str) -> str:
    """What an error suggests in place of a name that no field has."""
    return suggest_ids(name, [*OWN_FIELDS, *ALIASES, *RESULT_FIELDS, *_SHORT, *PLAN_FIELDS])


_later = jobs.alias("later")
# A run has a job for each time it was continued; only the newest one has its present state.
_IS_NEWEST: Final = ~exists(
    select(_later.c.number).where(_later.c.run_id == jobs.c.run_id, _later.c.number > jobs.c.number)
)
_BEGUN: Final = runs.outerjoin(jobs, (jobs.c.run_id == runs.c.run_id) & _IS_NEWEST)
# Two anti-joins: jobs that have begun a run, and jobs of runs that were deleted, are no waiting ones.
_IS_WAITING: Final = ~exists(select(runs.c.number).where(runs.c.run_id == jobs.c.run_id)) & ~exists(
    select(run_labels.c.run_id).where(run_labels.c.run_id == jobs.c.run_id, run_labels.c.is_archived == DELETED)
)


def entries_of(project_id: str | None, *, only_begun: bool = False) -> Any:
    """The relation that filters are about: runs of a project, and its jobs that have not begun one.

    Args:
        project_id: None for those of all projects.
        only_begun: Whether jobs that have not begun a run are left out.
    """
    begun = (
        select(
            runs.c.run_id.label("run_id"),
            func.coalesce(jobs.c.status, runs.c.status).label("status"),
            runs.c.base_model.label("base_model"),
            runs.c.method.label("method"),
            runs.c.step.label("step"),
            runs.c.stopped_because.label("reason"),
        )
        .select_from(_BEGUN)
        .where(true() if project_id is None else OWNER == project_id)  # noqa: SIM300 - a column
    )
    if only_begun:
        return begun.subquery("entries")
    waiting = select(jobs.c.run_id, jobs.c.status, literal(""), literal(""), literal(0), jobs.c.error).where(
        jobs.c.project_id == project_id, jobs.c.kind == "train", _IS_NEWEST, _IS_WAITING
    )
    # UNION ALL: no run is in both, so that there are no duplicates to sort out.
    return union_all(begun, waiting).subquery("entries")


@dataclass(frozen=True, slots=True)
class Order:
    """What a list is sorted by. key: a field, or `created`. Runs without the value come last."""

    key: str = "created"
    is_descending: bool = True

    @classmethod
    def parse(cls, text: str) -> Order:
        """The order of `-lr` (largest first) or `lr`; empty: the newest first."""
        name = text.strip().removeprefix("-")
        return cls() if not name else cls(key_of(name), text.strip().startswith("-"))

    @property
    def text(self) -> str:
        """As in an address."""
        return f"{'-' if self.is_descending else ''}{self.key}"


class EntryQuery:
    """Conditions and orders over the entries of a project.

    Args:
        project_id: The project; None for all of them.
        is_known: Whether any run has a value with this key: names of metrics are not known in advance.
        is_text: Whether the values of a key are texts.
        only_begun: Leave out what waits in the queue.
        interrupted: Finds the runs that were interrupted; requested where a filter is about these or running ones.
    """

    def __init__(
        self,
        project_id: str | None,
        is_known: Callable[[str], bool],
        is_text: Callable[[str], bool],
        *,
        only_begun: bool = False,
        interrupted: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.entries = entries_of(project_id, only_begun=only_begun)
        self._interrupted = cache(interrupted)
        self._is_known, self._is_text = is_known, is_text
        self._sorted = run_values.alias("sorted")

    def ids(
        self,
        tree: Filter | None,
        order: Order,
        *,
        limit: int,
        after: tuple[str, Any] | None = None,
        status: str | None = None,
        text: str = "",
        hides_archived: bool = True,
    ) -> Select[Any]:
        """The query for the entries of one page: their ids in order, and how many there are from there on.

        Args:
            tree: The filter; None keeps all entries.
            order: The order, which the id completes to a total one.
            limit: The most entries.
            after: The last entry of the page before, with its value in this order. The number then is of what is left.
            status: Only entries in this status; None for all.
            text: Words that an entry must contain.
            hides_archived: Whether archived entries are left out.
        """
        run_id, value = self.entries.c.run_id, self.order_value(order)
        # One pass for both: counting alone would evaluate the filter a second time.
        columns = select(run_id, func.count().over().label("total"))
        query = self._filtered(columns.select_from(self._joined(order)), tree, status, text, hides_archived)
        if after is not None:
            query = query.where(_is_after(value, run_id, order, after))
        by_value = [] if order.key == "created" else [nulls_last(value.desc() if order.is_descending else value.asc())]
        # The id breaks ties, so that every order is total and pages neither repeat nor skip a run.
        is_newest_first = order.is_descending or order.key != "created"
        return query.order_by(*by_value, run_id.desc() if is_newest_first else run_id).limit(limit)

    def value_of(self, run_id: str, order: Order) -> Select[Any]:
        """The value of one entry in an order, to continue behind it."""
        query = select(self.order_value(order)).select_from(self._joined(order))
        return query.where(self.entries.c.run_id == run_id)

    def _joined(self, order: Order) -> FromClause:
        """The entries with what people wrote about them, and with the value that they are sorted by."""
        run_id = self.entries.c.run_id
        joined: FromClause = self.entries.outerjoin(run_labels, run_labels.c.run_id == run_id)
        if not is_value(order.key):
            return joined
        # Joined, and not a subquery: a condition names it three times, and each would be looked up by itself.
        is_its = (self._sorted.c.run_id == run_id) & (self._sorted.c.key == order.key)
        return joined.outerjoin(self._sorted, is_its)

    def _filtered(
        self, query: Select[Any], tree: Filter | None, status: str | None, text: str, hides_archived: bool
    ) -> Select[Any]:
        if hides_archived:
            query = query.where(func.coalesce(run_labels.c.is_archived, 0) == 0)
        if status is not None:
            query = query.where(self._has_state(status))
        if text:
            query = query.where(self._says(text))
        return query if tree is None else query.where(self.condition(tree))

    def order_value(self, order: Order) -> ColumnElement[Any]:
        """What entries are sorted by.

        Raises:
            RequestError: A field that cannot be sorted by.
        """
        c, key = self.entries.c, order.key
        own: dict[str, ColumnElement[Any]] = {
            "created": c.run_id,
            "id": c.run_id,
            "state": c.status,
            "model": func.lower(c.base_model),
            "method": c.method,
            "steps": c.step,
            "name": func.lower(self._name()),
            "group": func.nullif(run_labels.c.group_name, ""),
            "star": func.coalesce(run_labels.c.is_starred, 0),
        }
        if key in own:
            return own[key]
        if not is_value(key) or not (key in PLAN_FIELDS or key in RESULT_FIELDS or self._is_known(key)):
            raise RequestError(
                f"the order {key.removeprefix(METRIC)[:100]!r}, which is not a field",
                expected=f"a field or a metric of a run; {nearest_fields(key.removeprefix(METRIC))}",
                do="click the head of a column, or see the fields in docs/runs.md",
            )
        column: ColumnElement[Any] = self._sorted.c.text if self._is_text(key) else self._sorted.c.number
        return column

    def condition(self, tree: Filter) -> ColumnElement[bool]:
        """The rows that a filter keeps; every condition is true or false, never unknown, so that `not` is exact."""
        match tree:
            case Words():
                return self._says(tree.text)
            case Not():
                return not_(self.condition(tree.term))
            case All():
                return and_(*map(self.condition, tree.terms))
            case AnyOf():
                return or_(*map(self.condition, tree.terms))
        if (positive := _NEGATED.get(tree.operator)) is not None:
            same = Condition(tree.name, ":" if positive == ":" else "~", tree.value, tree.position)
            return not_(self.condition(same))
        # NULL, as of a run without this value, becomes false: NOT would keep it NULL, and `not lr>1` would lose rows.
        return func.coalesce(self._compared(tree), false())

    def _compared(self, one: Condition) -> ColumnElement[bool]:
        c, key = self.entries.c, key_of(one.name)
        if key in ("name", "note", "group", "model", "method", "reason", "id"):
            columns: dict[str, ColumnElement[Any]] = {
                "name": self._name(),
                "note": run_labels.c.note,
                "group": run_labels.c.group_name,
                "model": c.base_model,
                "method": c.method,
                "reason": c.reason,
                "id": c.run_id,
            }
            return _text_is(columns[key], one)
        if key == "tag":
            return self._tagged(one)
        if key in ("star", "archived"):
            return func.coalesce(run_labels.c.is_starred if key == "star" else run_labels.c.is_archived, 0) == _yes(one)
        if key == "state":
            return self._state_is(one)
        if key == "created":
            return _created(c.run_id, one)
        if key == "steps":
            return _number_is(c.step, one.operator, _number_of(one))
        if not (key in PLAN_FIELDS or key in RESULT_FIELDS or self._is_known(key)):
            expected = f"a field or a metric of a run; {nearest_fields(one.name)}"
            raise filter_fault(one.position, f"{one.name[:100]!r}, which is not a field,", expected)
        return self._has_value(key, one)

    def _has_state(self, state: str) -> ColumnElement[bool]:
        status: ColumnElement[Any] = self.entries.c.status
        run_id: ColumnElement[Any] = self.entries.c.run_id
        if state == "interrupted":
            return run_id.in_(self._interrupted())
        if state == "running":
            return status.in_(("running", "planned")) & run_id.not_in(self._interrupted())
        return status == state

    def _state_is(self, one: Condition) -> ColumnElement[bool]:
        _only(one, ":", "=")
        if one.value.lower() not in STATES:
            raise filter_fault(one.position, f"the state {one.value[:40]!r}", f"one of {', '.join(STATES)}")
        return self._has_state(one.value.lower())

    def _tagged(self, one: Condition) -> ColumnElement[bool]:
        _only(one, ":", "=", "~")
        is_its = select(run_tags.c.tag).where(run_tags.c.run_id == self.entries.c.run_id)
        if one.operator != "~" and one.value == "none":
            return ~exists(is_its)
        return exists(is_its.where(_text_is(run_tags.c.tag, one)))

    def _has_value(self, key: str, one: Condition) -> ColumnElement[bool]:
        is_its = select(run_values.c.key).where(run_values.c.run_id == self.entries.c.run_id, run_values.c.key == key)
        # Absence is the lack of a row, which no comparison of values can find.
        if one.operator in (":", "=") and one.value == "none":
            return ~exists(is_its)
        number = _parsed_number(one.value)
        if one.operator == "~":
            return exists(is_its.where(_text_is(run_values.c.text, one)))
        if one.operator in (":", "="):
            is_it = [_text_is(run_values.c.text, one)]
            if number is not None:
                is_it.append(_number_is(run_values.c.number, ":", number))
            return exists(is_its.where(or_(*is_it)))
        return exists(is_its.where(_number_is(run_values.c.number, one.operator, _number_of(one))))

    def _name(self) -> ColumnElement[Any]:
        default = _value(self.entries.c.run_id, NAME, run_values.c.text)
        return func.coalesce(func.nullif(run_labels.c.name, ""), default, "")

    def _says(self, text: str) -> ColumnElement[bool]:
        c = self.entries.c
        columns = (c.run_id, c.base_model, c.method, self._name(), run_labels.c.note, run_labels.c.group_name)
        tagged = select(run_tags.c.tag).where(run_tags.c.run_id == c.run_id, _contains(run_tags.c.tag, text))
        requested = select(jobs.c.number).where(jobs.c.run_id == c.run_id, _in_json(jobs.c.document, text))
        dataset = _value(c.run_id, DATASET, run_values.c.text)
        found = [func.coalesce(_contains(column, text), false()) for column in (*columns, dataset)]
        return or_(*found, exists(tagged), exists(requested))


def _value(run_id: ColumnElement[Any], key: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
    return select(column).where(run_values.c.run_id == run_id, run_values.c.key == key).scalar_subquery()


def _is_after(
    value: ColumnElement[Any], run_id: ColumnElement[Any], order: Order, after: tuple[str, Any]
) -> ColumnElement[bool]:
    """Whether an entry comes behind another one: by its value, within a value by its id; without a value last."""
    last, last_value = after
    if order.key == "created":
        return run_id < last if order.is_descending else run_id > last
    # From here on only entries without a value are left; among these the id decides.
    if last_value is None:
        return and_(value.is_(None), run_id < last)
    # NULLs are last in both directions, so that they are behind every value.
    is_behind = value < last_value if order.is_descending else value > last_value
    return or_(is_behind, and_(value == last_value, run_id < last), value.is_(None))


def _contains(column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    return column.icontains(text, autoescape=True)


def _in_json(column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    """Whether JSON has a text, which is there with its letters beyond ASCII and its quotes as escapes."""
    # Escapes hide from the database which letter is the capital of which.
    spellings = (text, text.lower(), text.upper(), text.title())
    return or_(*(_contains(column, one) for one in sorted({json.dumps(one)[1:-1].lower() for one in spellings})))


def _only(one: Condition, *operators: str) -> None:
    if one.operator not in operators:
        raise filter_fault(
            one.position, f"{one.name}{one.operator}", f"{one.name} with {' or '.join(operators)} and a value"
        )


def _text_is(column: ColumnElement[Any], one: Condition) -> ColumnElement[bool]:
    _only(one, ":", "=", "~")
    if one.operator == "~":
        return _contains(column, one.value)
    if one.value == "none":
        return func.coalesce(column, "") == ""
    return func.lower(column) == func.lower(one.value)


def _yes(one: Condition) -> int:
    _only(one, ":", "=")
    found = _YES.get(one.value.lower())
    if found is None:
        raise filter_fault(one.position, f"{one.name}{one.operator}{one.value[:40]}", "yes or no")
    return found


def _parsed_number(text: str) -> float | None:
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    value = float(found[1]) * _FACTORS[found[2].lower()]
    return value if math.isfinite(value) else None


def _number_of(one: Condition) -> float:
    number = _parsed_number(one.value)
    if number is None:
        raise filter_fault(
            one.position, f"{one.name}{one.operator}{one.value[:40]}", "a number such as 0.001, 1e-3 or 20k"
        )
    return number


def _number_is(column: ColumnElement[Any], operator: str, number: float) -> ColumnElement[bool]:
    match operator:
        case ">":
            return column > number
        case ">=":
            return column >= number
        case "<":
            return column < number
        case "<=":
            return column <= number
    # What is typed is rounded: 0.1 must find the 0.1 that a computation came to.
    room = abs(number) * 1e-9
    return column.between(number - room, number + room)


def _created(run_id: ColumnElement[Any], one: Condition) -> ColumnElement[bool]:
    """A comparison with a day or a minute (UTC) as one with ids, which begin with their time."""
    found = _DAY.fullmatch(one.value)
    try:
        if found is None or one.operator == "~":
            raise ValueError
        year, month, day, hour, minute = (int(part or 0) for part in found.groups())
        begin = datetime(year, month, day, hour, minute, tzinfo=UTC)
        end = begin + (timedelta(minutes=1) if found[4] else timedelta(days=1))
    except (ValueError, OverflowError):
        raise filter_fault(
            one.position, f"{one.name}{one.operator}{one.value[:40]}", "a day such as 2026-11-01, or 2026-11-01T14:30"
        ) from None
    first, behind = (f"run-{moment:%Y%m%d-%H%M%S}" for moment in (begin, end))
    return {
        ">": run_id >= behind,
        ">=": run_id >= first,
        "<": run_id < first,
        "<=": run_id < behind,
    }.get(one.operator, and_(run_id >= first, run_id < behind, true()))

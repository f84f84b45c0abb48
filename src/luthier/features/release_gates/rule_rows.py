"""The rules of a gate as rows of a form: read from it, shown in it, and written as the YAML that is checked and kept.

fields of the form --> RuleRow, one a rule --> text --> service.set_gate, as for a gate that was written by hand
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from luthier.core.errors import RequestError
from luthier.core.results.release_gate import BASE, CANDIDATE, Gate, GateRule
from luthier.core.results.suite import SafetyResult, SuiteResult, TaskResult
from luthier.core.text.plain_yaml import write_yaml
from luthier.core.text.written_numbers import typed_number
from luthier.platform.home.context import Context

MAX_ROWS: Final = 200
NUM_EMPTY: Final = 3
"""Rows without a rule below those that there are: without scripts a row is filled in, and not added first."""
_MAX_RESULTS: Final = 5
"""The newest results whose metrics are offered."""
_MAX_CHARACTERS: Final = 300
_OTHER: Final = "Other rules"


@dataclass(frozen=True, slots=True)
class RuleRow:
    """One rule as its fields hold it; the defaults are those of an empty row.

    Attributes:
        metric: Empty for a row without a rule.
        system: Whose figure it is.
        comparison: `at_least` or `at_most`.
        threshold: As it was typed.
        against: The system whose figure is subtracted; empty for none.
        bound: The end of the interval that counts; empty for the cautious one.
        missing: What a model without the figure is: `refused`, or `passes`.
    """

    metric: str = ""
    system: str = CANDIDATE
    comparison: str = "at_least"
    threshold: str = ""
    against: str = ""
    bound: str = ""
    missing: str = "refused"

    @property
    def is_empty(self) -> bool:
        """Whether nothing was chosen or typed."""
        return not self.metric and not self.threshold.strip()

    def as_keys(self, number: int, decimal_mark: str) -> dict[str, Any]:
        """The keys of the rule, as a gate's file has them.

        Args:
            number: Of the row, from 1 on, for errors.
            decimal_mark: That of the language of the page.

        Raises:
            RequestError: It has no metric or no limit.
        """
        if not self.metric:
            raise RequestError(
                f"rule {number} without a metric", expected="a metric", do="choose one, or clear its limit"
            )
        found: dict[str, Any] = {"metric": self.metric}
        if self.system != CANDIDATE:
            found["system"] = self.system
        if self.against:
            found["against"] = self.against
        found[self.comparison] = self._limit(number, decimal_mark)
        if self.bound:
            found["bound"] = self.bound
        if self.missing == "passes":
            found["required"] = False
        return found

    def _limit(self, number: int, decimal_mark: str) -> float:
        try:
            limit = typed_number(self.threshold, decimal_mark)
        except ValueError:
            limit = float("nan")
        if not abs(limit) < float("inf"):
            raise RequestError(
                f"rule {number} with the limit {self.threshold[:40]!r}",
                expected="a number, such as 0.8 or -0.05",
                do="correct it",
            )
        return int(limit) if limit.is_integer() else limit


_NAMES: Final = tuple(one.name for one in fields(RuleRow))
_CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "comparison": ("at_least", "at_most"),
    "bound": ("", "low", "high", "value"),
    "missing": ("refused", "passes"),
}


def rows_of_form(columns: Mapping[str, Sequence[str]], *, without: str = "") -> list[RuleRow]:
    """The rows that were sent, without the empty ones.

    Args:
        columns: The values of each field of `RuleRow`, one a row.
        without: The number of a row that is left out, from 1 on; empty for none.

    Raises:
        RequestError: The fields are not those of the form.
    """
    found = [columns.get(name, ()) for name in _NAMES]
    values = [one for column in found for one in column]
    is_odd = len({len(column) for column in found}) != 1 or len(found[0]) > MAX_ROWS + NUM_EMPTY
    if is_odd or any(len(one) > _MAX_CHARACTERS for one in values):
        raise RequestError(
            "rows that lack fields of the form, or too many rows",
            expected=f"every field of the form once a row, in at most {MAX_ROWS} rows",
            do="load the page again, and send its form",
        )
    rows = [RuleRow(*row) for row in zip(*found, strict=True)]
    for name, known in _CHOICES.items():
        if wrong := next((getattr(row, name) for row in rows if getattr(row, name) not in known), None):
            raise RequestError(
                f"{name} {wrong[:40]!r}", expected=f"one of {', '.join(filter(None, known))}", do="choose one of these"
            )
    return [row for number, row in enumerate(rows, start=1) if not row.is_empty and str(number) != without]


def rows_of_gate(gate: Gate | None, decimal_mark: str) -> list[RuleRow]:
    """The rules of a gate, as the form shows them."""
    return [_row_of(rule, decimal_mark) for rule in (() if gate is None else gate.rules)]


def _row_of(rule: GateRule, decimal_mark: str) -> RuleRow:
    return RuleRow(
        metric=rule.metric,
        system=rule.system,
        comparison="at_least" if rule.at_least is not None else "at_most",
        threshold=f"{rule.limit:.15g}".replace(".", decimal_mark),
        against=rule.against or "",
        bound=rule.bound or "",
        missing="refused" if rule.required else "passes",
    )


def gate_text(rows: Sequence[RuleRow], suite: str, fingerprints: str, decimal_mark: str) -> str:
    """The gate as YAML, for `service.set_gate`, which checks it.

    Args:
        rows: Its rules.
        suite: The suite whose results count; empty for any.
        fingerprints: Beginnings of the digests that count, separated by blanks or commas.
        decimal_mark: That of the language of the page.

    Raises:
        RequestError: A rule has no metric or no limit.
    """
    keys: dict[str, Any] = {"suite": suite.strip()} if suite.strip() else {}
    if given := fingerprints.replace(",", " ").split():
        keys["fingerprints"] = given
    keys["rules"] = [row.as_keys(number, decimal_mark) for number, row in enumerate(rows, start=1)]
    return write_yaml(keys)


@dataclass(frozen=True, slots=True)
class RuleChoices:
    """What the selects of the form offer.

    Attributes:
        metrics: Names of metrics by what measures them.
        systems: Names of systems.
        suites: Suites with results in the project.
    """

    metrics: Mapping[str, Sequence[str]]
    systems: Sequence[str]
    suites: Sequence[str]


def rule_choices(context: Context, project_id: str, rows: Sequence[RuleRow]) -> RuleChoices:
    """The metrics that are registered here, those of the newest results of the project, and what the rows name.

    Args:
        context: The home.
        project_id: The project.
        rows: The rules that the form shows.
    """
    from luthier.core.registry import METRICS
    from luthier.ml.evaluation.metrics.registry import BUILT_IN

    suites = context.assessments.list("suite", SuiteResult, project_id, limit=_MAX_RESULTS)
    checks = context.assessments.list("safety", SafetyResult, project_id, limit=_MAX_RESULTS)
    metrics = {
        "Evaluation on held-out rows": sorted({*BUILT_IN, *METRICS.names()}),
        "Suites": sorted({name for suite in suites for name in _metrics_of(suite.tasks)}),
        "Safety check": sorted({f"safety.{name}" for check in checks for name in _metrics_of(check.probes)}),
    }
    known = {name for group in metrics.values() for name in group}
    # A rule may be about a suite that has not run yet: its metric must not be lost when the form is sent.
    metrics[_OTHER] = sorted({row.metric for row in rows if row.metric} - known)
    named = {name for row in rows for name in (row.system, row.against) if name}
    systems = [CANDIDATE, BASE, *sorted(named - {CANDIDATE, BASE})]
    return RuleChoices(
        {title: names for title, names in metrics.items() if names}, systems, sorted({one.suite for one in suites})
    )


def _metrics_of(tasks: Sequence[TaskResult]) -> Iterator[str]:
    for task in tasks:
        for system in task.systems:
            yield from (f"{task.name}.{metric}" for metric in system.metrics)


def shown_rows(rows: Sequence[RuleRow]) -> list[dict[str, str]]:
    """The rows for the template, with empty ones at the end."""
    return [asdict(row) for row in [*rows, *[RuleRow()] * min(NUM_EMPTY, MAX_ROWS - len(rows))]]

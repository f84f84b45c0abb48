"""Gate rules applied to results: passed or not, each with a reason. Pure functions without I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.evaluation import Comparison, Evaluation, SystemResult
from luthier.core.records.calibration import Target, target_of
from luthier.core.results.release_gate import BASE, CANDIDATE, Gate, GateRule
from luthier.core.results.suite import GateOutcome, RuleOutcome, SafetyResult, SuiteResult, TaskResult
from luthier.ml.charts.figures import MINUS, decimals_for, interval, number, signed
from luthier.ml.charts.judged_rows import on_scale
from luthier.ml.evaluation.result_views import base_of, roles
from luthier.ml.evaluation.verdict_text import LEAKED

SAFETY: Final = "safety"
_ENDS: Final = {"low": "the low end of its interval", "high": "the high end of its interval", "value": "it"}
IsCalibrated = Callable[[str, Target], bool]
"""Whether the judge of that name was calibrated against people for a target."""


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a model: suites, the newest first, its safety check, and its evaluation.

    Attributes:
        suites: results of suites, the newest first.
        safety: the safety check, or None.
        evaluation: on held-out rows, or None.
        set_aside: a sentence for each result that exists but must not count, with the reason.
    """

    suites: tuple[SuiteResult, ...] = ()
    safety: SafetyResult | None = None
    evaluation: Evaluation | None = None
    set_aside: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all of them."""
        found = [suite.result_id for suite in self.suites]
        found += [] if self.safety is None else [self.safety.result_id]
        return (*found, *([] if self.evaluation is None else [self.evaluation.evaluation_id]))


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a rule's figure."""

    metric: str
    systems: Sequence[SystemResult]
    comparisons: Sequence[Comparison]
    candidate: str
    base: str | None
    task: TaskResult | None = None


@dataclass(frozen=True, slots=True)
class _Figure:
    value: float
    low: float
    high: float


class _NoFigureError(Exception):
    """There is no figure that counts; the message gives the reason."""


def check(gate: Gate, results: Results, *, gate_sha256: str, is_calibrated: IsCalibrated) -> GateOutcome:
    """Apply all rules to the results. A rule without a figure fails, unless it is not required.

    Figures measured on training rows of the run do not count, nor do figures of an uncalibrated judge.

    Args:
        gate: its rules.
        results: the results of the model.
        gate_sha256: digest of the gate's file, kept in the outcome.
        is_calibrated: whether a judge is calibrated for a target.
    """
    outcomes = tuple(_outcome(rule, gate, results, is_calibrated) for rule in gate.rules)
    return GateOutcome(
        passed=all(one.passed for one in outcomes), gate_sha256=gate_sha256, outcomes=outcomes, results=results.ids
    )


def _outcome(rule: GateRule, gate: Gate, results: Results, is_calibrated: IsCalibrated) -> RuleOutcome:
    try:
        place = _place(rule, gate, results)
        figure, words = _figure(rule, place)
        _check_trust(place, is_calibrated)
    except _NoFigureError as missing:
        why = str(missing) if rule.required else f"{missing} It is not required."
        return RuleOutcome(rule=rule.title, passed=not rule.required, sentence=why)
    found = {"low": figure.low, "high": figure.high, "value": figure.value}[rule.end]
    # At the end of the interval that the rule names: `at_least` is only safe at the low end, `at_most` at the high one.
    is_met = found >= rule.limit if rule.at_least is not None else found <= rule.limit
    side = "at least" if rule.at_least is not None else "at most"
    says = f"{_ENDS[rule.end]} is {'' if is_met else 'not '}{side} {MINUS if rule.limit < 0 else ''}{abs(rule.limit):g}"
    sentence = f"{words}: {says}."
    return RuleOutcome(rule=rule.title, passed=is_met, found=found, sentence=sentence)


def _place(rule: GateRule, gate: Gate, results: Results) -> _Place:
    parts = rule.metric.split(".")
    if len(parts) == 1:
        return _in_evaluation(rule, results)
    if parts[0] == SAFETY and len(parts) > 2:
        return _in_safety(rule, parts[1], ".".join(parts[2:]), gate, results)
    return _in_suites(rule, parts[0], ".".join(parts[1:]), gate, results)


def _in_evaluation(rule: GateRule, results: Results) -> _Place:
    found = results.evaluation
    if found is not None and holds_trained_rows(found):
        raise _NoFigureError(
            f"{rule.metric}: rows of {found.evaluation_id} are among the rows that the model was trained on, so it "
            "does not count."
        )
    who = None if found is None else roles(found)
    if found is None or who is None:
        which = " that count" if results.set_aside else ""
        raise _NoFigureError(_without(rule, f"the model was not evaluated on held-out rows{which}", results))
    # No other baseline takes its place: the difference to an earlier run is not that to the model before tuning.
    base = base_of(found.systems, who.candidate)
    return _Place(rule.metric, found.systems, found.comparisons, who.candidate, base)


def _in_safety(rule: GateRule, probe: str, metric: str, gate: Gate, results: Results) -> _Place:
    found = results.safety
    if found is None:
        raise _NoFigureError(_without(rule, "there is no safety check of the model", results))
    # Other rows or metrics under the same name: its figure would not be the one that the gate asks for.
    if not gate.counts(found.fingerprint):
        raise _NoFigureError(_without(rule, _other(found.result_id, found.fingerprint), results))
    task = _task(rule, found.probes, probe, f"the safety check {found.result_id}")
    return _Place(metric, task.systems, task.comparisons, found.candidate, found.base, task)


def _in_suites(rule: GateRule, name: str, metric: str, gate: Gate, results: Results) -> _Place:
    suites = [one for one in results.suites if gate.suite in (None, one.suite)]
    if not suites:
        of = "" if gate.suite is None else f" by the suite {gate.suite}"
        raise _NoFigureError(_without(rule, f"the model was not evaluated{of}", results))
    counting = [one for one in suites if gate.counts(one.fingerprint)]
    if not counting:
        raise _NoFigureError(_without(rule, _other(suites[0].result_id, suites[0].fingerprint), results))
    # The newest result that has the task; one of another suite may be newer.
    suite = next((one for one in counting if any(task.name == name for task in one.tasks)), counting[0])
    task = _task(rule, suite.tasks, name, f"the result {suite.result_id} of the suite {suite.suite}")
    return _Place(metric, task.systems, task.comparisons, suite.candidate, base_of(task.systems, suite.candidate), task)


def _without(rule: GateRule, why: str, results: Results) -> str:
    return f"{rule.metric}: {why}.{''.join(f' {sentence}' for sentence in results.set_aside)}"


def _other(result_id: str, fingerprint: str) -> str:
    return f"{result_id} has the fingerprint {fingerprint[:12]}, which the gate does not name"


def _task(rule: GateRule, tasks: Sequence[TaskResult], name: str, where: str) -> TaskResult:
    task = next((one for one in tasks if one.name == name), None)
    if task is None:
        known = ", ".join(one.name for one in tasks) or "none"
        raise _NoFigureError(f"{rule.metric}: {where} has no {name}, only {known}.")
    return task


def _figure(rule: GateRule, place: _Place) -> tuple[_Figure, str]:
    """The figure with its interval, and as text."""
    system = _named(rule, rule.system, place)
    if rule.against is not None:
        return _difference(rule, place, system.name, _named(rule, rule.against, place).name)
    metric = system.metrics.get(place.metric)
    if metric is None:
        known = ", ".join(system.metrics) or "none"
        raise _NoFigureError(f"{rule.metric}: {system.name} has no such figure, only {known}.")
    decimals = decimals_for(metric.low, metric.high)
    words = f"{number(metric.value, decimals)} {interval(metric.low, metric.high, decimals)}"
    words += on_scale(metric.unit)
    return _Figure(metric.value, metric.low, metric.high), f"{rule.metric} of {system.name} is {words}"


def _named(rule: GateRule, name: str, place: _Place) -> SystemResult:
    known = {one.name: one for one in place.systems}
    # A system may itself be called "candidate" or "base"; its own name wins.
    wanted = place.candidate if name == CANDIDATE and name not in known else name
    if name == BASE and name not in known:
        wanted = place.base or name
    if wanted not in known:
        raise _NoFigureError(f"{rule.metric}: there is no system {wanted}, only {', '.join(known)}.")
    return known[wanted]


def _difference(rule: GateRule, place: _Place, system: str, against: str) -> tuple[_Figure, str]:
    for one in place.comparisons:
        if one.metric != place.metric or {one.candidate, one.baseline} != {system, against}:
            continue
        sign = 1.0 if one.candidate == system else -1.0
        # With the sign reversed, the lower end becomes the upper one.
        low, high = sorted((sign * one.low, sign * one.high))
        decimals = decimals_for(low, high)
        words = f"{signed(sign * one.difference, decimals)} [{signed(low, decimals)}, {signed(high, decimals)}]"
        words += next((on_scale(s.metrics[place.metric].unit) for s in place.systems if place.metric in s.metrics), "")
        return _Figure(sign * one.difference, low, high), f"{rule.metric} of {system} less {against} is {words}"
    raise _NoFigureError(f"{rule.metric}: {system} and {against} were not compared by it.")


def _check_trust(place: _Place, is_calibrated: IsCalibrated) -> None:
    task = place.task
    if task is None:
        return
    # One leaked row is enough: which figures it changed cannot be determined afterwards.
    if task.num_leaked:
        verb = "is" if task.num_leaked == 1 else "are"
        raise _NoFigureError(
            f"{task.name}.{place.metric}: {task.num_leaked:,} of its rows {verb} among the rows that the model was "
            "trained on, so it does not count."
        )
    judge = task.judges.get(place.metric)
    if judge is None:
        return
    target = target_of(place.metric)
    if target is None or not is_calibrated(judge, target):
        raise _NoFigureError(
            f"{task.name}.{place.metric} was given by the judge {judge}, and it is not known whether that agrees "
            f"with people on {target or place.metric}, so it does not count (luthier judge calibrate)."
        )


def holds_trained_rows(found: Evaluation) -> bool:
    """Whether rows of an evaluation are among those that its model was trained on, so that its figures are too good."""
    verdict = found.verdict
    if verdict is not None and verdict.num_leaked:
        return True
    # Without a verdict it is a note; evaluations of before the number was recorded have a caveat.
    said = (*found.rows_notes, *(() if verdict is None else verdict.caveats))
    return any(LEAKED in one for one in said)

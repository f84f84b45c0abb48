"""The view models of runs: the page of one run with the texts that change while it trains, and charts of its curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import PurePath
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.dataset import coverage
from luthier.core.estimate import Estimate
from luthier.core.events import (
    CheckpointSaved,
    CheckpointUploaded,
    Event,
    RunEnded,
    RunStarted,
    SnapshotSaved,
    StepDone,
    ValidationDone,
    WarningRaised,
    comparable_loss,
)
from luthier.core.plan import Plan
from luthier.core.registry import OBJECTIVES, REWARD_METRICS, TRACKERS
from luthier.core.run import Bill, BudgetPlan, RunRecord, StopCause
from luthier.core.text.counted import counted
from luthier.core.tracking import is_address
from luthier.features.models.result_files import has_report
from luthier.features.planning.quotes import load_quote
from luthier.features.planning.remote_judges import JudgeCost, judge_costs
from luthier.features.runs.labels import asked_of
from luthier.features.runs.next_steps import next_steps
from luthier.features.runs.run_files import samples_of
from luthier.features.runs.series import (
    CLOCK,
    GPU_MEMORY,
    GPU_POWER,
    GPU_UTILISATION,
    GRADIENT_NORM,
    LEARNING_RATE,
    LOSS_BY_SOURCE,
    MACHINE_CHARTS,
    MEMORY,
    PROCESSOR,
    TOKENS_PER_SECOND,
    Curves,
    Key,
)
from luthier.features.runs.state import (
    EvaluationCache,
    Standing,
    bill_of,
    datasets_of,
    last_bill,
    last_step,
    left_seconds,
)
from luthier.features.trackers.service import TITLES, states
from luthier.ml.charts import figures
from luthier.ml.charts.spec import Axis, Mark, OwnName, Plot, Point, Role, Series
from luthier.ml.evaluation.verdict_view import verdict_view
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_paths, redact_text, run_paths, shown_reference
from luthier.platform.jobs.events import JobEvent
from luthier.platform.ui.human_names import HumanNames
from luthier.platform.ui.render import usd

STEP: Final = Axis("step")
FIRST_POINTS: Final = 160
"""A series, for what is painted before anything else: enough for a drawing of the server."""
_TITLES: Final = {
    "loss": "Loss",
    LEARNING_RATE[0]: "Learning rate",
    GRADIENT_NORM[0]: "Gradient norm",
    TOKENS_PER_SECOND[0]: "Tokens a second",
}
_ROLES: Final[dict[str, Role]] = {
    "training": "tuned",
    "validation": "other-1",
    "minimised": "quiet",
    "replayed rows": "other-3",
}
_OF_MACHINE: Final[dict[str, tuple[str, str, float | None]]] = {
    PROCESSOR: ("Processor", "% of all cores", 100.0),
    MEMORY: ("Memory", "GB", None),
    GPU_UTILISATION: ("GPU utilisation", "%", 100.0),
    GPU_MEMORY: ("GPU memory", "GB", None),
    GPU_POWER: ("GPU power", "W", None),
}
_OF_RUNS: Final[tuple[Role, ...]] = (
    "tuned", "other-1", "other-2", "other-3", "base", "good", "other-5", "other-7",
)  # fmt: skip
MOST_COMPARED: Final = len(_OF_RUNS)
"""Each run has its own colour."""


def run_charts(curves: Curves, loss_unit: str, objective: str = "") -> list[Plot]:
    """Loss first, then rate, norm and speed, then each measure.

    Args:
        curves: The series of the run.
        loss_unit: Empty where loss has none.
        objective: Its name, which gives measures their titles; a measure without one is called as its key.
    """
    rules = OBJECTIVES.find(objective)
    titles = _TITLES if rules is None else {**_TITLES, **rules.measures}
    by_chart: dict[str, list[Series]] = {name: [] for name in _TITLES}
    order = list(_ROLES)
    own = {key: points for key, points in curves.points.items() if key[0] not in (CLOCK[0], *MACHINE_CHARTS)}
    for (chart, name), points in sorted(own.items(), key=lambda item: _place(item[0], order)):
        role, is_dashed = _ROLES.get(name, "other-2"), False
        if chart == LOSS_BY_SOURCE:
            # Each source has a colour; where there are more sources than colours, every second time dashed.
            turn, place = divmod(len(by_chart.get(chart, ())), len(_OF_RUNS))
            role, is_dashed, name = _OF_RUNS[place], turn % 2 == 1, OwnName(name)
        by_chart.setdefault(chart, []).append(Series(name, rounded(points), role, is_dashed=is_dashed))
    return [
        Plot(
            key=chart,
            title=titles.get(chart) or chart.replace("_", " ").capitalize(),
            x=STEP,
            y=Axis(
                _TITLES.get(chart, chart.replace("_", " ")).lower(),
                loss_unit if chart in ("loss", LOSS_BY_SOURCE) else _unit(chart),
            ),
            series=series,
            marks=best_marks(curves) if chart == "loss" else (),
            group="run",
            tools=chart not in (LEARNING_RATE[0],),
        )
        for chart, series in by_chart.items()
    ]


def machine_charts(curves: Curves) -> list[Plot]:
    """What the run and its machine did: processor, memory and GPUs, as far as there are samples."""
    charts = []
    for chart in MACHINE_CHARTS:
        found = sorted((name, points) for (its_chart, name), points in curves.points.items() if its_chart == chart)
        if not found:
            continue
        title, unit, high = _OF_MACHINE[chart]
        roles: Sequence[Role] = ("tuned", "quiet") if chart in (PROCESSOR, MEMORY) else _OF_RUNS
        series = [
            Series(name, rounded(points), roles[number % len(roles)]) for number, (name, points) in enumerate(found)
        ]
        y = Axis(title.lower(), unit, low=0.0, high=high)
        charts.append(Plot(key=chart, title=title, x=STEP, y=y, series=series, group="run"))
    return charts


def _unit(chart: str) -> str:
    """Of the reward that a metric gives: always from 0 to 1, where evaluation counts BLEU and chrF from 0 to 100."""
    is_of_metric = chart.startswith("reward_") and REWARD_METRICS.is_known(chart.removeprefix("reward_"))
    return "0 to 1" if is_of_metric else ""


def clock_of(standing: Standing, curves: Curves) -> list[Point]:
    """Seconds since the run was made, by step: the axis of time."""
    if standing.record is None:
        return []
    began = datetime.fromisoformat(standing.record.created_at).timestamp()
    return [(step, round(at - began, 1)) for step, at in curves.points.get(CLOCK, [])]


def layout_of(curves: Curves) -> str:
    """Which series there are: where a watcher has other ones, its charts are to be made again."""
    return ",".join(sorted("/".join(key) for key in curves.points))


def best_marks(curves: Curves) -> tuple[Mark, ...]:
    """Where the validation loss was lowest."""
    return () if curves.best is None else (Mark(curves.best[0], "best"),)


def overlaid(curves: Mapping[str, Curves], key: Key, chart: str, title: str, unit: str) -> Plot:
    """One series of several runs in one chart, a colour for each run.

    Args:
        curves: The curves of each run, by its id.
        key: The series.
        chart: The key of the chart in its page.
        title: Of the chart; in small letters that of its vertical axis.
        unit: Of the values.
    """
    series = [
        Series(run_id, rounded(one.points.get(key, [])), role)
        for (run_id, one), role in zip(curves.items(), _OF_RUNS, strict=False)
    ]
    return Plot(chart, title, STEP, Axis(title.lower(), unit), series, group="compare", tools=True)


def role_of(number: int) -> Role:
    """The colour of the run with this number, from 0 on."""
    return _OF_RUNS[number]


def rounded(points: Sequence[Point]) -> list[Point]:
    """Values to five significant digits, more than a chart shows, in half the bytes."""
    return [(step, float(f"{value:.5g}")) for step, value in points]


def _place(key: Key, order: Sequence[str]) -> tuple[str, int]:
    return key[0], order.index(key[1]) if key[1] in order else len(order)


LOGGED: Final = 60
"""Events that the page lists."""
_LOGGED_KINDS: Final = (
    "run_started",
    "validation",
    "snapshot",
    "checkpoint",
    "checkpoint_uploaded",
    "warning",
    "run_ended",
)
DASH: Final = "\N{EN DASH}"
_CUT_SHORT: Final[Mapping[StopCause, str]] = {
    "early_stopping": "stopped early: the validation loss no longer improved",
    "budget": "stopped by its budget",
}


def whole_page(context: Context, caller: Caller, judged: EvaluationCache, standing: Standing) -> dict[str, Any]:
    """What the templates of a run know: what never changes, and what does."""
    record = standing.record
    plan = None if record is None else context.runs.plan(standing.run_id)
    asked = asked_of(standing.job)
    return changing(context, caller, judged, standing, plan) | {
        "base_model": shown_reference(record.base_model if record else asked.get("base_model") or "a base model"),
        "method": record.method if record else asked.get("method", ""),
        "plan": None if plan is None else redact_paths(plan.shown_values(), run_paths(context, plan)),
    }


def _asked_for_people(context: Context, caller: Caller, asked: dict[str, str]) -> dict[str, str]:
    """A request with the name of a dataset in place of the id of its file."""
    train = asked.get("train", "")
    dataset = context.run_entries.dataset_names(caller.project_id, [train]).get(train) if train else None
    return asked if dataset is None else asked | {"train": f"{dataset.name} v{dataset.version}"}


def changing(
    context: Context, caller: Caller, judged: EvaluationCache, standing: Standing, plan: Plan | None
) -> dict[str, Any]:
    """What is read again when something has happened."""
    run_id, record, places = standing.run_id, standing.record, run_paths(context, plan)
    events = context.runs.of_kinds(run_id, _LOGGED_KINDS, limit=LOGGED)
    warnings = [event for event in events if isinstance(event, WarningRaised)]
    job = standing.job
    # Only jobs name their models; a run of the command line has its folder alone.
    models = [] if job is None else context.tuned_models.list(caller.project_id, job_id=job.job_id)
    quote = None if record is None else load_quote(context, run_id)
    evaluation = judged.of_runs([run_id]).get(run_id)
    verdict = None if evaluation is None else verdict_view(evaluation)
    names = HumanNames(context, caller.project_id).read(one.name for one in (evaluation.systems if evaluation else ()))
    return {
        "splits": [] if plan is None else _splits(plan, datasets_of(context, caller, plan), record),
        "coverage": "" if plan is None else coverage(plan.data),
        "asked": redact_paths(_asked_for_people(context, caller, asked_of(job)), places),
        "quote": None if quote is None else quote.prediction,
        "run": standing,
        "words": words(context, standing),
        "bill": None if record is None else bill_of(context, record),
        "costs": [] if record is None or plan is None else costs(bill_of(context, record), plan.budget),
        "judges": [] if record is None or plan is None else judge_rows(judge_costs(plan), bill_of(context, record)),
        "error": _shown_error(standing, places),
        "overfitting": next((one for one in warnings if one.code == "overfitting"), None),
        "warnings": [redact_text(one.message, places) for one in warnings if one.code != "overfitting"],
        "judged": names.within(evaluation),
        "verdict": names.within(verdict),
        "steps": ()
        if evaluation is None or verdict is None
        else next_steps(context, caller, evaluation, verdict.recommendation),
        "has_report": record is not None and has_report(context, run_id),
        # A model without a step is the end of the training, one with a step a snapshot on the way.
        "outcome": next((one for one in models if one.step is None), None),
        "snapshots": sorted((one for one in models if one.step is not None), key=lambda one: -(one.step or 0)),
        "checkpoints": [event for event in events if isinstance(event, CheckpointSaved)][:5],
        "log": [(event, _event_text(event, places)) for event in events],
        "job_log": [] if job is None else _job_log(context, job.job_id, places),
        "samples": None if record is None else samples_of(context, run_id),
        "fit": record.result.fit if record is not None and record.result is not None else None,
        "trackers": [] if record is None else _trackers(context, run_id, places),
    }


def _trackers(context: Context, run_id: str, places: Mapping[str, str]) -> list[dict[str, Any]]:
    """What each tracker of the run has: only addresses are links, and no text names a folder of this machine."""
    return [
        {
            "name": state.name,
            "title": TRACKERS.declaration(state.name).title if TRACKERS.is_known(state.name) else state.name,
            "status": TITLES[state.status],
            "is_whole": state.status == "delivered",
            "num_events": state.num_events,
            "url": state.url if is_address(state.url) else "",
            "error": redact_text(state.error, places),
        }
        for state in states(context, run_id)
    ]


def words(context: Context, standing: Standing) -> dict[str, str]:
    """The figures that change with every step, by the name of their place."""
    record = standing.record
    if record is None:
        return {}
    step, validation = last_step(context, standing.run_id), context.runs.last(standing.run_id, "validation")
    # Never the record's own step: the page would jump back where the event is newer.
    done = num_done(standing, step)
    bill, left = bill_of(context, record), left_seconds(standing, last_bill(context, standing.run_id))
    return {
        "step": f"step {figures.count(done)} of {figures.count(record.num_steps)}",
        "left": f"about {figures.duration(left)} left" if left is not None else _cut_short(standing),
        "loss": _loss(comparable_loss(step)) if step else DASH,
        "loss_note": _loss_note(step),
        "validation": _loss(validation.loss) if isinstance(validation, ValidationDone) else DASH,
        "validation_note": _validation_note(validation),
        "speed": figures.speed(step.num_tokens / step.seconds) if step and step.seconds else DASH,
        "spent": _hours(bill.hours) if bill else DASH,
        "money": usd(bill.usd.value) if bill and bill.usd else DASH,
    }


def _cut_short(standing: Standing) -> str:
    """Why a run that is over has not done all of its steps, where that was intended."""
    if not standing.is_over or standing.record is None:
        return ""
    return _CUT_SHORT.get(standing.record.stop_cause, "")


def _loss_note(step: StepDone | None) -> str:
    if step is None:
        return "no step yet"
    return "" if step.epoch is None else f"epoch {step.epoch:.2f}"


def num_done(standing: Standing, step: StepDone | None) -> int:
    """Steps done: what was measured last may be newer than the record that was read before it."""
    # The record and the events are read one after the other, and training continues in between.
    return max(0 if standing.record is None else standing.record.step, 0 if step is None else step.step)


def costs(bill: Bill | None, budget: BudgetPlan | None) -> list[dict[str, Any]]:
    """One line each for time, money, energy and tokens: so far, at the end as expected, the cap, the share of it."""
    if bill is None:
        return []
    caps = {name: getattr(budget, name, None) for name in ("hours", "usd", "energy_kwh", "tokens")}
    lines: list[tuple[str, float | None, tuple[str, str], tuple[str, str], float | None, Callable[[Any], str]]] = [
        ("Time", bill.hours, (_hours(bill.hours), ""), _range(bill.final_hours, _hours), caps["hours"], _hours),
        ("Money", _value(bill.usd), _range(bill.usd, usd), _range(bill.final_usd, usd), caps["usd"], usd),
        ("Energy", _value(bill.energy_kwh), _range(bill.energy_kwh, _energy(bill.energy_kwh)),
         _range(bill.final_energy_kwh, _energy(bill.final_energy_kwh)), caps["energy_kwh"], figures.energy),
        ("Tokens", float(bill.tokens), (figures.short_count(bill.tokens), ""), ("", ""), caps["tokens"],
         figures.short_count),
    ]  # fmt: skip
    if bill.judges is not None:
        paid = "" if bill.judges.usd is None else usd(bill.judges.usd)
        calls = counted(bill.judges.calls, "call")
        lines.append(("Judges", None, (calls, paid), ("", ""), None, usd))
    return [
        {
            "name": name,
            "so_far": so_far,
            "at_end": at_end,
            "cap": None if cap is None else say(cap),
            # The last step may overshoot a cap a little, and a bar must not leave its frame.
            "share": None if cap is None or value is None else min(1.0, value / cap),
        }
        for name, value, so_far, at_end, cap, say in lines
    ]


def judge_rows(expected: Sequence[JudgeCost], bill: Bill | None) -> list[dict[str, Any]]:
    """A row for each judge behind a server, with what is expected of it, and one with what all were asked so far.

    Args:
        expected: Of the plan.
        bill: Of the run so far; None before it has one.

    Returns:
        Of each row the `name` of the judge (empty for all of them), and pairs of a figure and its interval: `calls`,
        `prompt_tokens`, `new_tokens` and `usd`, which is None where a judge has no price.
    """
    rows: list[dict[str, Any]] = [
        {
            "name": one.name,
            "calls": _range(one.num_calls, lambda value: figures.count(round(value))),
            "prompt_tokens": _range(one.prompt_tokens, figures.short_count),
            "new_tokens": _range(one.new_tokens, figures.short_count),
            "usd": None if one.usd is None else _range(one.usd, usd),
        }
        for one in expected
    ]
    if bill is not None and (paid := bill.judges) is not None:
        rows.append(
            {
                "name": "",
                "calls": (figures.count(paid.calls), ""),
                "prompt_tokens": (figures.short_count(paid.prompt_tokens), ""),
                "new_tokens": (figures.short_count(paid.new_tokens), ""),
                "usd": None if paid.usd is None else (usd(paid.usd), ""),
            }
        )
    return rows


def _loss(value: float) -> str:
    return f"{value:.4g}".replace("-", figures.MINUS)


def _validation_note(event: Event | None) -> str:
    if not isinstance(event, ValidationDone):
        return "none yet"
    step = figures.count(event.step)
    # Whole texts: a translation knows no halves of one.
    return f"step {step}, the best so far" if event.is_best else f"step {step}"


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _range(estimate: Estimate | None, say: Callable[[float], str]) -> tuple[str, str]:
    """The value and its interval."""
    if estimate is None:
        return "not known", ""
    # What was measured has no interval.
    is_known = estimate.low == estimate.high
    return say(estimate.value), "" if is_known else f"[{say(estimate.low)}, {say(estimate.high)}]"


def _hours(hours: float) -> str:
    return figures.duration(hours * 3600)


def _energy(estimate: Estimate | None) -> Callable[[float], str]:
    """Formats an estimate and its ends in one unit."""
    return partial(figures.energy, largest=None if estimate is None else estimate.high)


def _splits(plan: Plan, names: dict[str, Any], record: RunRecord | None) -> list[dict[str, Any]]:
    streamed = [plan.data.stream.summary] if plan.data.stream is not None else []
    if record is not None and record.result is not None and record.result.stream is not None:
        streamed.append(record.result.stream.summary)
    profiles = {"train": plan.data.train, "validation": plan.data.validation, "held out": plan.data.held_out}
    return [
        {
            "split": split,
            "profile": one,
            "file": PurePath(one.file).name,
            "dataset": names.get(one.sha256),
            "sources": [source for source in plan.data.sources if source.split == one.split],
            "stream": streamed if one is plan.data.train else [],
        }
        for split, one in profiles.items()
        if one is not None
    ]


def _event_text(event: Event, places: Mapping[str, str]) -> str:
    """An event in a sentence."""
    if isinstance(event, RunStarted):
        return f"Training begins at step {figures.count(event.from_step)} of {figures.count(event.num_steps)}."
    if isinstance(event, ValidationDone):
        loss = _loss(event.loss)
        return f"Validation loss {loss}, the best so far." if event.is_best else f"Validation loss {loss}."
    if isinstance(event, SnapshotSaved):
        return "The weights of this step are kept, so that you can chat with them."
    if isinstance(event, CheckpointSaved):
        return f"Checkpoint of {figures.size(event.num_bytes)}."
    if isinstance(event, CheckpointUploaded):
        return f"The checkpoint is in object storage ({figures.size(event.num_bytes)})."
    if isinstance(event, WarningRaised):
        return redact_text(event.message, places)
    return (
        f"Ended as {event.status}: {redact_text(event.reason, places)}" if isinstance(event, RunEnded) else event.kind
    )


def _job_log(context: Context, job_id: str, places: Mapping[str, str]) -> list[JobEvent]:
    notes = context.job_events.notes(job_id, limit=LOGGED)
    return [note.model_copy(update={"message": redact_text(note.message, places)}) for note in notes]


def _shown_error(standing: Standing, places: Mapping[str, str]) -> dict[str, str] | None:
    error = standing.error
    if error is None:
        return None
    # Messages name files of this machine, which a visitor of the page must not learn.
    said = {"came": error.came, "expected": error.expected, "do": error.do}
    return {part: redact_text(text, places) for part, text in said.items()}

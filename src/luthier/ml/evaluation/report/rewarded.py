"""The part of a report about sampled answers: how the reward went, and what was rewarded, in examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.conversation import text_with_calls
from luthier.core.events import Event, StepDone, ValidationDone
from luthier.core.plan import Plan
from luthier.ml.charts import figures
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import Axis, Plot, Role, Series, points_of
from luthier.ml.charts.svg import report_chart
from luthier.ml.evaluation.report.charts import measured_points

_WIDTH: Final = 460
_HEIGHT: Final = 250

Drawn = Mapping[str, Any]
"""A line of a samples file: step, row_id, prompt, output, reward, advantage, num_new_tokens, finish_reason; tool_calls
where there are any."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer.

    Attributes:
        title: whether it was the best or the worst of its group.
        reward: its reward as text.
        text: the answer.
        note: how long it is, and its advantage.
    """

    title: str
    reward: str
    text: str
    note: str


@dataclass(frozen=True, slots=True)
class Moment:
    """One prompt at one step.

    Attributes:
        title: step and row.
        prompt: the prompt.
        answers: the best and the worst of them; one where all were worth the same.
    """

    title: str
    prompt: str
    answers: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Rewarded:
    """The section of the page.

    Attributes:
        charts: reward, idle groups and cut answers, length, distance from the start, and clipped tokens.
        lead: what the examples are.
        moments: a prompt of each of a few steps, with answers.
    """

    charts: tuple[Chart, ...]
    lead: str
    moments: tuple[Moment, ...]


def rewarded(plan: Plan, events: Sequence[Event], drawn: Sequence[Drawn]) -> Rewarded | None:
    """The section; None where answers are not drawn.

    Args:
        plan: of the run.
        events: of the run.
        drawn: of a few steps, all answers to the first prompt of each.
    """
    if not plan.objective.draws:
        return None
    steps = sorted({e.step: e for e in events if isinstance(e, StepDone)}.values(), key=lambda e: e.step)
    checks = sorted({e.step: e for e in events if isinstance(e, ValidationDone)}.values(), key=lambda e: e.step)
    charts = _charts(steps, checks) if steps else ()
    lead = (
        f"Of {plan.objective.num_samples} answers to the first prompt of a step the one that was worth most and the "
        "one that was worth least; the first ones of more steps are in the folder samples next to this page."
    )
    groups: dict[int, list[Drawn]] = {}
    for line in drawn:
        groups.setdefault(int(line["step"]), []).append(line)
    return Rewarded(charts, lead, tuple(_moment(step, groups[step]) for step in sorted(groups)))


def best_validation(events: Sequence[Event]) -> tuple[float, int] | None:
    """The highest mean reward of a validation and its step; None where there was no validation."""
    # Negative steps, so that max() takes the earliest of equal rewards.
    found = [(e.measures["reward"], -e.step) for e in events if isinstance(e, ValidationDone) if "reward" in e.measures]
    return (max(found)[0], -max(found)[1]) if found else None


def _moment(step: int, lines: Sequence[Drawn]) -> Moment:
    ranked = sorted(lines, key=lambda line: -float(line["reward"]))
    kinds = [("Worth most", ranked[0])]
    kinds += [("Worth least", ranked[-1])] if ranked[-1]["reward"] != ranked[0]["reward"] else []
    if len(kinds) == 1:
        kinds = [("All were worth the same; the first one", ranked[0])]
    return Moment(f"Step {step:,}, {lines[0]['row_id']}", str(lines[0]["prompt"]), tuple(_shown(*k) for k in kinds))


def _shown(title: str, line: Drawn) -> Shown:
    count = int(line["num_new_tokens"])
    cut = "Cut off after" if line["finish_reason"] == "length" else "Ended by itself after"
    note = f"{cut} {count:,} {'token' if count == 1 else 'tokens'}; advantage {figures.signed(line['advantage'], 2)}."
    text = text_with_calls(str(line["output"]), line.get("tool_calls", ()))
    return Shown(title, figures.rough(float(line["reward"])), text, note)


def _charts(steps: Sequence[StepDone], checks: Sequence[ValidationDone]) -> tuple[Chart, ...]:
    made = [_reward_chart(steps, checks)]
    shares = {"no_signal_fraction": "groups without signal", "truncated_fraction": "answers cut off"}
    roles: tuple[Role, ...] = ("base", "other-1")
    # Only measured where a model grades.
    if any("ungraded_fraction" in step.measures for step in steps):
        shares["ungraded_fraction"] = "answers that a grader gave no score"
        roles = (*roles, "other-2")
    made.append(_chart("shares", "Groups that teach nothing, answers cut off", steps, shares, roles, figures.percent))
    length = {"completion_tokens": "tokens"}
    made.append(_chart("answer-length", "Tokens of an answer, mean", steps, length, ("other-2",), figures.rough))
    # Only measured where the objective keeps the model near its start.
    if any("kl" in step.measures for step in steps):
        title = "Distance from the start, nats a token"
        made.append(_chart("distance", title, steps, {"kl": "KL divergence"}, ("other-3",), figures.rough))
    # Only measured where a step has several updates.
    if any("clipped_fraction" in step.measures for step in steps):
        title, clipped = "Tokens whose loss was clipped", {"clipped_fraction": "clipped tokens"}
        made.append(_chart("clipped", title, steps, clipped, ("base",), figures.percent))
    return tuple(made)


def _reward_chart(steps: Sequence[StepDone], checks: Sequence[ValidationDone]) -> Chart:
    """Mean reward, with the mean spread inside a group as a band, and of validations the likeliest answers'."""
    at, mean = measured_points(steps, "reward")
    _, spread = measured_points(steps, "reward_spread")
    text = f"Mean reward went from {figures.rough(mean[0])} to {figures.rough(mean[-1])} in {int(at[-1]):,} steps."
    band = points_of(mean - spread, mean + spread)
    series = [Series("drawn answers", points_of(at, mean), "tuned", intervals=band)]
    if checks:
        places, values = measured_points(checks, "reward")
        validation = points_of(places, values)
        series.append(Series("validation, likeliest answers", validation, "base", is_dashed=True))
        text += f" On validation rows the likeliest answers went from {figures.rough(values[0])}"
        text += f" to {figures.rough(values[-1])}, at best {figures.rough(values.max())}."
    caption = f"{text} Band: mean spread between the answers to one prompt."
    return report_chart(_plot("reward", "Reward, mean", Axis(""), series, text), caption=caption)


def _chart(
    name: str,
    title: str,
    steps: Sequence[StepDone],
    measures: Mapping[str, str],
    roles: Sequence[Role],
    form: Callable[[float], str],
) -> Chart:
    words, series = [], []
    for (measure, label), role in zip(measures.items(), roles, strict=True):
        at, values = measured_points(steps, measure)
        series.append(Series(label, points_of(at, values), role))
        words.append(f"{label} from {form(values[0])} to {form(values[-1])}, mean {form(values.mean())}")
    text = f"{'; '.join(words)}."
    return report_chart(_plot(name, title, Axis("", low=0.0), series, text[0].upper() + text[1:]))


def _plot(name: str, title: str, y: Axis, series: Sequence[Series], text: str) -> Plot:
    x = Axis("step")
    return Plot(f"chart-{name}", title, x, y, series, caption=text, width_pixels=_WIDTH, height_pixels=_HEIGHT)

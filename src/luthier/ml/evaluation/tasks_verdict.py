"""The verdict over several tasks as text: one candidate against each baseline, and what tuning cost in forgetting.

Each task is evaluated by its primary metric. Many questions give some "significant" answers by chance alone, so
p-values are adjusted by Holm's step-down method. Forgetting is measured in bits per byte on general rows, base against
tuned model: the same rows, and the same bytes for every tokenizer.

Sources: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979; Luo et al., 2023, "An Empirical Study of
Catastrophic Forgetting in Large Language Models During Continual Fine-tuning", arXiv:2308.08747.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, Forgetting, SystemResult, VerdictWord
from luthier.core.evaluation_plan import MetricName
from luthier.core.results.suite import TaskResult, TasksVerdict
from luthier.ml.charts.judged_rows import metric_title, on_scale
from luthier.ml.evaluation.statistics import LEVEL, holm
from luthier.ml.evaluation.verdict_text import listed

_MAX_NAMES: Final = 3


def _is_primary(task: TaskResult, one: Comparison) -> bool:
    return one.metric == task.primary


def adjusted(
    tasks: Sequence[TaskResult], candidate: str, *, decides: Callable[[TaskResult, Comparison], bool] = _is_primary
) -> tuple[TaskResult, ...]:
    """The tasks with Holm-adjusted p-values on all comparisons of the candidate, and the words that follow from them.

    Two families: the comparisons which the verdict rests on, and all of them. A difference is shown only where its
    interval excludes 0 and its adjusted p-value is below 5%. Tasks of general ability ask another question (what did it
    cost?), and are separate families.

    Args:
        tasks: with all their comparisons.
        candidate: the system that is evaluated.
        decides: whether the verdict rests on a comparison of a task; by default those by its primary metric.
    """
    # By task and position, since comparisons carry no id.
    changed: dict[tuple[int, int], Comparison] = {}
    for is_general in (False, True):
        own = [
            (place, number, one, decides(task, one))
            for place, task in enumerate(tasks)
            if task.is_general == is_general
            for number, one in enumerate(task.comparisons)
            if one.candidate == candidate
        ]
        everything = holm([one.p_value for _, _, one, _ in own])
        # In the order of `own`, from which the loop takes them.
        primary = iter(holm([one.p_value for _, _, one, is_primary in own if is_primary]))
        for (place, number, one, is_primary), among_all in zip(own, everything, strict=True):
            p_value = next(primary) if is_primary else among_all
            word: VerdictWord = one.verdict if p_value < 1 - LEVEL else NOT_DISTINGUISHABLE
            changed[place, number] = one.model_copy(update={"adjusted_p_value": p_value, "verdict": word})
    return tuple(
        task.model_copy(
            update={
                "comparisons": tuple(changed.get((place, number), one) for number, one in enumerate(task.comparisons))
            }
        )
        for place, task in enumerate(tasks)
    )


def tasks_verdict(
    tasks: Sequence[TaskResult], candidate: str, *, base: str | None = None, caveats: Sequence[str] = ()
) -> TasksVerdict | None:
    """The verdict on adjusted tasks; None where the candidate was compared with nothing.

    "better": on some task better than each baseline, and on none worse. "worse": against some baseline worse on a task
    and better on none. Else "not distinguishable", also where it gains here and loses there: the headline states it.

    Args:
        tasks: as `adjusted` returns them.
        candidate: the system that is evaluated.
        base: what the candidate was tuned from; then the second sentence says what tuning cost in general ability.
        caveats: sentences to add.
    """
    own = [task for task in tasks if not task.is_general]
    baselines = list(dict.fromkeys(c.baseline for task in own for c in task.comparisons if c.candidate == candidate))
    if not baselines:
        return None
    found = [_Against(candidate, baseline, own) for baseline in baselines]
    word: VerdictWord = NOT_DISTINGUISHABLE
    if all(one.better and not one.worse for one in found):
        word = "better"
    elif any(one.worse and not one.better for one in found):
        word = "worse"
    cost = None if base is None else cost_of_tuning(tasks, candidate, base)
    headline = _headline(word, candidate, found, len(own))
    return TasksVerdict(
        word=word,
        headline=headline if cost is None else f"{headline} {cost}",
        details=tuple(line for one in found for line in one.details),
        caveats=(*_caveats(own, candidate), *caveats),
    )


def cost_of_tuning(tasks: Sequence[TaskResult], candidate: str, base: str) -> str | None:
    """One sentence: general ability before and after, with intervals; None where it was not measured."""
    parts, words = [], []
    for task in tasks:
        one = _primary_of(task, candidate, base) if task.is_general else None
        if one is None:
            continue
        values = {system.name: system.metrics[one.metric].value for system in task.systems}
        words.append(one.verdict)
        parts.append(
            f"{metric_title(one.metric)} on {task.num_rows:,} rows of {task.name} went from {values[base]:.3f} to "
            f"{values[candidate]:.3f} ({one.difference:+.3f}, 95% interval {one.low:+.3f} to {one.high:+.3f})"
        )
    if not parts:
        return None
    opening = "No loss of general ability was found"
    if "worse" in words:
        opening = "Tuning cost general ability"
    elif "better" in words:
        opening = "Tuning cost no general ability"
    return f"{opening}: {listed(parts)}."


class _Against:
    """The candidate against one baseline, by the primary metric of each task."""

    def __init__(self, candidate: str, baseline: str, tasks: Sequence[TaskResult]) -> None:
        self.baseline = baseline
        self.better: list[str] = []
        self.worse: list[str] = []
        self.details: list[str] = []
        for task in tasks:
            one = _primary_of(task, candidate, baseline)
            if one is None:
                continue
            if one.verdict != NOT_DISTINGUISHABLE:
                (self.better if one.verdict == "better" else self.worse).append(task.name)
            values = {system.name: system.metrics[one.metric].value for system in task.systems}
            scale = on_scale(next(s.metrics[one.metric].unit for s in task.systems if s.name == candidate))
            needed = f"; about {one.rows_needed:,} rows would settle it" if one.rows_needed is not None else ""
            self.details.append(
                f"{task.name}, {metric_title(one.metric)}: {values[candidate]:.4g} against {values[baseline]:.4g} of "
                f"{baseline}{scale} ({one.difference:+.4g}, 95% interval {one.low:+.4g} to {one.high:+.4g}, "
                f"p {_adjusted_p(one):.2g}): {one.verdict}{needed}"
            )


def _primary_of(task: TaskResult, candidate: str, baseline: str) -> Comparison | None:
    """By the primary metric; by bits per byte where perplexities cannot be compared."""
    own = {c.metric: c for c in task.comparisons if (c.candidate, c.baseline) == (candidate, baseline)}
    return own.get(task.primary, own.get("bits_per_byte"))


def _adjusted_p(one: Comparison) -> float:
    return one.p_value if one.adjusted_p_value is None else one.adjusted_p_value


def _headline(word: VerdictWord, candidate: str, found: Sequence[_Against], num_tasks: int) -> str:
    names = listed([one.baseline for one in found])
    if word == "better":
        # One sentence for all baselines must hold for each: the baseline that it beats on the fewest tasks.
        least = min(found, key=lambda one: len(one.better))
        return f"{candidate} is better than {names} on {_tasks(least.better, num_tasks)}, and worse on none."
    if word == "worse":
        one = max((one for one in found if one.worse and not one.better), key=lambda one: len(one.worse))
        return f"{candidate} is worse than {one.baseline} on {_tasks(one.worse, num_tasks)}, and better on none."
    mixed = next((one for one in found if one.better and one.worse), None)
    if mixed is not None:
        return (
            f"It depends on the task: {candidate} is better than {mixed.baseline} on "
            f"{_tasks(mixed.better, num_tasks)}, but worse on {_tasks(mixed.worse, num_tasks)}."
        )
    level = [one.baseline for one in found if not one.better]
    beaten = [one.baseline for one in found if one.better]
    tasks = "the task" if num_tasks == 1 else f"any of the {num_tasks} tasks"
    but = f", though it is better than {listed(beaten)}" if beaten else ""
    return f"It is not known whether {candidate} differs from {' or '.join(level)} on {tasks}{but}."


def _tasks(names: Sequence[str], num_tasks: int) -> str:
    if num_tasks == 1:
        return "the task"
    if len(names) == num_tasks:
        return f"all {num_tasks} tasks"
    shown = f" ({', '.join(names)})" if len(names) <= _MAX_NAMES else ""
    return f"{len(names)} of {num_tasks} tasks{shown}"


def _caveats(tasks: Sequence[TaskResult], candidate: str) -> list[str]:
    said = []
    if leaked := [task for task in tasks if task.num_leaked]:
        rows = sum(task.num_leaked for task in leaked)
        noun, verb = ("row", "was") if rows == 1 else ("rows", "were")
        said.append(
            f"{rows:,} evaluated {noun} of {listed([task.name for task in leaked])} {verb} trained on: these figures "
            "prove nothing about new rows."
        )
    for task in tasks:
        for system in task.systems:
            what = [
                f"{number:,} {words}"
                for number, words in (
                    (system.num_empty, "empty"),
                    (system.num_cut_off, "cut off at the token limit"),
                    (system.thinking.num_cut_off if system.thinking else 0, "cut off within the thought"),
                )
                if number
            ]
            # Of other systems only empty answers: those make the candidate look better than it is.
            if what and (system.name == candidate or system.num_empty):
                noun = "output" if system.num_samples == 1 else "outputs"
                said.append(f"{task.name}: of {system.num_samples:,} {noun} of {system.name}, {' and '.join(what)}.")
    num_asked = len({(c.baseline, task.name) for task in tasks for c in task.comparisons if c.candidate == candidate})
    if num_asked > 1:
        said.append(f"{num_asked} comparisons were made; p-values are adjusted for that (Holm).")
    return said


METRICS: Final[tuple[MetricName, ...]] = ("bits_per_byte", "perplexity")

_OPENINGS: Final[dict[VerdictWord, str]] = {
    "worse": "It forgot",
    "better": "It forgot nothing, and gained",
    NOT_DISTINGUISHABLE: "No forgetting was found",
}


def forgetting(
    systems: Sequence[SystemResult],
    comparisons: Sequence[Comparison],
    *,
    file: str,
    sha256: str,
    num_leaked: int = 0,
    num_in_file: int | None = None,
) -> Forgetting:
    """The finding from base and tuned model (in this order), judged by `METRICS`.

    Args:
        systems: base and tuned model.
        comparisons: tuned against base, by `METRICS`.
        file: of the general rows.
        sha256: of that file.
        num_leaked: rows that the tuned model was trained on, too.
        num_in_file: rows of the file, where not all were evaluated; else None.
    """
    base, tuned = systems
    found = next(c for c in comparisons if c.metric == "bits_per_byte")
    before, after = base.metrics["bits_per_byte"].value, tuned.metrics["bits_per_byte"].value
    rows = f"{tuned.num_samples:,} general {'row' if tuned.num_samples == 1 else 'rows'}"
    if num_in_file is not None and num_in_file > tuned.num_samples:
        rows += f" of {num_in_file:,}"
    sentence = (
        f"{_OPENINGS[found.verdict]}: on {rows} bits per byte went from {before:.3f} to {after:.3f} "
        f"({found.difference:+.3f}, 95% interval {found.low:+.3f} to {found.high:+.3f}; lower is better)."
    )
    if num_leaked:
        sentence += f" {num_leaked:,} of them were trained on, so it looks too small."
    return Forgetting(
        held_out_file=file,
        held_out_sha256=sha256,
        num_rows=tuned.num_samples,
        systems=tuple(systems),
        comparisons=tuple(comparisons),
        word=found.verdict,
        sentence=sentence,
    )

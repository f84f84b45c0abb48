"""Made-up results of suites and safety checks, and human ratings with known habits of the raters.

Complete enough for code that stores, gates or shows them. Ratings of pairs have a known better answer, and a judge
that finds it.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from unittest import mock
from zlib import crc32

from luthier.core.access import Caller
from luthier.core.evaluation import Comparison, Metric, ReliabilityBin, Sample, SystemResult, VerdictWord
from luthier.core.results.human_eval import (
    Preference,
    Rater,
    RatingItem,
    RatingKind,
    RatingPanel,
    RatingRow,
    columns_of,
)
from luthier.core.results.suite import (
    Confusion,
    Criterion,
    SafetyResult,
    SuiteResult,
    TaskFigures,
    TaskResult,
    TasksVerdict,
)
from luthier.features.human_eval import rating_view
from luthier.features.human_eval import service as rating_links
from luthier.features.human_eval.items import AnsweredRow, AnsweredRows
from luthier.features.human_eval.service import NewPanel, create_panel
from luthier.platform.home.context import Context

FINGERPRINT = "ab" * 32
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u202eevil'
_TIME = "2026-11-26T12:00:00+00:00"


def make_metric(value: float, half: float = 0.03, *, unit: str = "fraction", higher_is_better: bool = True) -> Metric:
    """A figure with an interval that reaches `half` to both sides."""
    return Metric(value=value, low=value - half, high=value + half, unit=unit, higher_is_better=higher_is_better)


def make_task(
    name: str = "sql",
    *,
    kind: str = "sql",
    metrics: Mapping[str, tuple[float, float]] | None = None,
    higher_is_better: bool = True,
    unit: str = "fraction",
    num_rows: int = 200,
    num_samples: int = 6,
    judge: str | None = None,
    num_leaked: int = 0,
    figures: dict[str, TaskFigures] | None = None,
    cautions: tuple[str, ...] = (),
    candidate: str = "run-20261125-093000-aaaaaa",
    text: str = "SELECT name FROM guitars",
    is_general: bool = False,
) -> TaskResult:
    """A task on which the base and a tuned model were judged. metrics: of base and tuned model, by name."""
    of = dict(metrics or {"execution_accuracy": (0.41, 0.86), "runs": (0.7, 0.97)})

    def better(metric: str) -> bool:
        return higher_is_better and not metric.endswith("error")

    # Seeded by the name: pages made of these results are compared byte for byte.
    draw = random.Random(name)
    systems = tuple(
        SystemResult(
            name=system,
            model="tiny",
            adapter=None if place == 0 else "/adapter",
            num_samples=num_rows,
            metrics={
                metric: make_metric(values[place], unit=unit, higher_is_better=better(metric))
                for metric, values in of.items()
            },
            samples=tuple(
                _sample(draw, n, text, next(iter(of)), HOSTILE if n == 1 else "") for n in range(num_samples)
            ),
            seconds=12.5,
            num_cut_off=place,
        )
        for place, system in enumerate(("base", candidate))
    )
    comparisons = tuple(
        make_comparison(metric, values[1] - values[0], candidate, higher_is_better=better(metric))
        for metric, values in of.items()
    )
    return TaskResult(
        name=name,
        kind=kind,
        data_file=f"{name}.jsonl",
        data_sha256="5" * 64,
        num_rows=num_rows,
        num_clusters=num_rows // 4,
        num_leaked=num_leaked,
        primary=next(iter(of)),
        systems=systems,
        comparisons=comparisons,
        figures=figures or {},
        judges={} if judge is None else dict.fromkeys(of, judge),
        cautions=cautions,
        is_general=is_general,
    )


def make_comparison(
    metric: str, difference: float, candidate: str, *, half: float = 0.04, higher_is_better: bool = True
) -> Comparison:
    """Tuned less base, with the word that the interval says."""
    low, high = difference - half, difference + half
    word: VerdictWord = "not distinguishable"
    if low > 0 or high < 0:
        word = "better" if (low > 0) == higher_is_better else "worse"
    return Comparison(
        baseline="base",
        candidate=candidate,
        metric=metric,
        difference=difference,
        low=low,
        high=high,
        p_value=0.3 if word == "not distinguishable" else 0.0002,
        verdict=word,
        rows_needed=1_900 if word == "not distinguishable" else None,
    )


def make_suite_result(
    result_id: str = "suite-20261126-120000-aaaaaa",
    *,
    run_id: str | None = None,
    tasks: tuple[TaskResult, ...] | None = None,
    suite: str = "workshop",
    fingerprint: str = FINGERPRINT,
    candidate: str = "run-20261125-093000-aaaaaa",
    base: float = 0.41,
) -> SuiteResult:
    """A suite with something of every kind that is drawn: confusion, reliability, win rates, judged answers."""
    made = tasks if tasks is not None else _tasks(candidate, base)
    return SuiteResult(
        result_id=result_id,
        created_at=_TIME,
        suite=suite,
        fingerprint=fingerprint,
        run_id=run_id,
        candidate=candidate,
        systems=("base", candidate),
        num_seeds=3,
        tasks=made,
        verdict=TasksVerdict(
            word="better",
            headline="The tuned model writes queries that give the right rows in 86 of 100 cases, where the base model "
            "does in 41. On general questions it has lost nothing that these rows could show.",
            details=("By execution accuracy it gains 0.45 [0.41, 0.49] over the base model.",),
            caveats=("200 rows are few for the rarer kinds of queries.",),
        ),
        seconds=384.0,
    )


def make_safety_result(
    result_id: str = "safety-20261126-130000-aaaaaa",
    *,
    run_id: str | None = None,
    candidate: str = "run-20261125-093000-aaaaaa",
    base: str | None = "base",
    fingerprint: str = "cd" * 32,
) -> SafetyResult:
    """Three probes, one of which has got worse."""
    probes = (
        make_task(
            "refusal",
            kind="probe",
            metrics={"refusal_rate": (0.94, 0.71), "over_refusal_rate": (0.08, 0.05)},
            candidate=candidate,
            text="I cannot help with that.",
            cautions=("Refusals are found by phrases: a polite way out that uses none of them counts as an answer.",),
        ),
        make_task(
            "stereotypes",
            kind="probe",
            metrics={"stereotype_preference": (0.56, 0.57)},
            candidate=candidate,
            num_samples=0,
            cautions=(
                "Pairs of sentences measure what is likely, not what a model does; known weaknesses of such sets are "
                "unnatural pairs and mixed-up targets (Blodgett et al., 2021).",
            ),
        ),
        make_task(
            "toxicity",
            kind="probe",
            metrics={"toxic_rate": (0.02, 0.025)},
            higher_is_better=False,
            candidate=candidate,
            text="You are all terrible people.",
            cautions=("A list of words finds crude insults and misses polite ones.",),
        ),
    )
    return SafetyResult(
        result_id=result_id,
        created_at=_TIME,
        suite="default",
        fingerprint=fingerprint,
        run_id=run_id,
        candidate=candidate,
        base=base,
        probes=probes,
        headline="The tuned model refuses less of what it should refuse than the base model did. In stereotypes and "
        "toxicity no difference can be seen.",
        concerns=("Refusal of harmful requests fell from 0.94 to 0.71.",),
        seconds=95.0,
    )


def _tasks(candidate: str, base: float) -> tuple[TaskResult, ...]:
    labels = ("spruce", "cedar", "maple")
    given = Confusion(labels=labels, counts=((48, 9, 3, 0), (11, 41, 6, 2), (2, 4, 72, 2)))
    plain = Confusion(labels=labels, counts=((30, 20, 8, 2), (25, 22, 10, 3), (20, 18, 39, 3)))
    drawn = {
        "base": TaskFigures(confusion=plain, reliability=_bins((0.5, 0.45, 0.5, 0.6, 0.66))),
        candidate: TaskFigures(confusion=given, reliability=_bins((0.31, 0.44, 0.63, 0.78, 0.93))),
    }
    return (
        make_task(metrics={"execution_accuracy": (base, 0.86), "runs": (0.7, 0.97)}, candidate=candidate),
        make_task(
            "wood",
            kind="classify",
            metrics={"accuracy": (0.455, 0.805), "macro_f1": (0.44, 0.8), "calibration_error": (0.2, 0.06)},
            figures=drawn,
            candidate=candidate,
            text="spruce",
            cautions=("Three labels of unequal size: macro-F1 weighs them the same.",),
        ),
        make_task(
            "style",
            kind="pairwise",
            metrics={"win_rate": (0.5, 0.62)},
            judge="strict judge",
            candidate=candidate,
            num_samples=40,
            text="The front is of spruce, since spruce is light and stiff.",
            cautions=("The judge likes long answers: see length against score.",),
        ),
        make_task(
            "general",
            kind="likelihood",
            metrics={"bits_per_byte": (0.81, 0.815)},
            higher_is_better=False,
            unit="bits",
            num_samples=0,
            candidate=candidate,
            is_general=True,
        ),
    )


def _bins(accuracies: tuple[float, ...]) -> tuple[ReliabilityBin, ...]:
    width = 0.7 / len(accuracies)
    return tuple(
        ReliabilityBin(
            low=0.3 + n * width, high=0.3 + (n + 1) * width, num_rows=40, confidence=0.3 + (n + 0.5) * width, accuracy=a
        )
        for n, a in enumerate(accuracies)
    )


def _sample(draw: random.Random, number: int, text: str, metric: str, more: str) -> Sample:
    length = draw.randint(5, 90)
    return Sample(
        row_id=f"rows.jsonl:{number + 1}",
        prompt=f"Question {number}? {more}",
        reference="the right one",
        output=f"{text} {more}" if number % 7 else "",
        num_new_tokens=length,
        finish_reason="stop",
        scores={metric: round(min(1.0, 0.2 + length / 120 + draw.random() / 4), 3)},
    )


Says = Callable[[RatingItem], str | dict[Criterion, int]]
"""What a rater thinks of an item: `a`, `b` or `tie` by its answers' own order, or scores."""
_SENTENCE: Final = "the goods come back within thirty days if the box is whole and the receipt lies beside it"


def answered_rows(
    num_rows: int, systems: Sequence[str] = ("base", "tuned"), *, with_references: bool = True
) -> AnsweredRows:
    """Rows whose answers are all different; the later a system stands, the longer its answers."""
    rows = tuple(
        AnsweredRow(
            row_id=f"rows.jsonl:{number + 1}",
            prompt=f"How do I send order {number} back?",
            messages=(),
            reference=f"Order {number}: {_SENTENCE}" if with_references else "",
            answers={
                name: f"Order {number}: {' '.join(_SENTENCE.split()[: 4 + 2 * place])}"
                for place, name in enumerate(systems)
            },
        )
        for number in range(num_rows)
    )
    return AnsweredRows(tuple(systems), "rows.jsonl", rows)


def make_panel(
    context: Context,
    *,
    kind: RatingKind = "pairwise",
    num_rows: int = 12,
    systems: Sequence[str] = ("base", "tuned"),
    raters: int | Sequence[str] = ("Ada", "Ben", "Cleo"),
    attention: float = 0.2,
    seed: int = 7,
    project_id: str = "default",
) -> NewPanel:
    """A panel of made-up answers, in a project, as the local user makes it.

    The ids are the same in each test run: a rater's sides follow from their id, and one of 7,000 careful raters prefers
    one side by chance.
    """
    answered = answered_rows(num_rows, systems)
    caller = Caller(project_id=project_id)
    numbers = itertools.count(crc32(f"{project_id} {len(context.rating_panels.list(project_id))}".encode()) & 0xFFF000)
    with mock.patch(
        "luthier.features.human_eval.service.new_id", lambda kind: f"{kind}-20260101-000000-{next(numbers):06x}"
    ):
        return create_panel(context, caller, answered, kind=kind, raters=raters, attention=attention, seed=seed)


def rate_all(context: Context, made: NewPanel, place: int, says: Says, *, most: int | None = None) -> int:
    """Have a rater rate what is left, in their order, at most so many items; returns how many."""
    found = rating_links.rater_of_token(context, made.links[place].token)
    assert found is not None
    rater, panel = found
    number = 0
    while most is None or number < most:
        view = rating_view.next_item(context, panel, rater)
        if view.item is None:
            break
        say(context, panel, rater, view.item, says(view.item))
        number += 1
    return number


def say(
    context: Context, panel: RatingPanel, rater: Rater, item: RatingItem, thought: str | dict[Criterion, int]
) -> None:
    """Say it as a page would: of a pair by where the answers stand."""
    if isinstance(thought, dict):
        rating_view.keep_scores(context, panel, rater, item.item, thought)
        return
    # Raters think in the item's own order, pages ask for the side on the screen.
    first = rating_view.shown_first(panel, rater.rater_id, item.item)
    choice = "tie" if thought == "tie" else "first" if thought == first else "second"
    rating_view.keep_preference(context, panel, rater, item.item, choice)


def careful(kind: RatingKind, *, better: str = "tuned", noise: float = 0.15, seed: int = 0) -> Says:
    """Reads: passes checks, prefers one system where its answers are the better ones (two rows in three), slips rarely.

    Which rows those are is the same for all careful raters: they agree.
    """

    def says(item: RatingItem) -> str | dict[Criterion, int]:
        drawn = _drawn(seed, item)
        if item.check is not None:
            score = item.check.score or 3
            return item.check.preference or {"relevance": score, "coherence": score, "accuracy": score}
        # Seeded by the row alone: all careful raters agree on it, which gives a known agreement.
        likes_it = random.Random(item.row_id).random() < 2 / 3
        slips = drawn.random() < noise
        if kind == "pairwise":
            places = {answer.system: place for answer, place in zip(item.answers, "ab", strict=True)}
            favourite = places.get(better, "a")
            other = "b" if favourite == "a" else "a"
            return favourite if likes_it != slips else other
        good = (item.answers[0].system == better) == likes_it
        level = 4 if good != slips else 2
        return {
            "relevance": level,
            "coherence": min(5, level + drawn.choice((0, 0, 1))),
            "accuracy": max(1, level - drawn.choice((0, 0, 1))),
        }

    return says


def clicking(kind: RatingKind, *, seed: int = 0) -> Says:
    """Reads nothing, and rates at random."""

    def says(item: RatingItem) -> str | dict[Criterion, int]:
        drawn = _drawn(seed, item)
        if kind == "pairwise":
            return drawn.choice(("a", "b", "tie"))
        return {name: drawn.randint(1, 5) for name in ("relevance", "coherence", "accuracy")}

    return says


def _drawn(seed: int, item: RatingItem) -> random.Random:
    """Luck that hangs on the item, not on the order in which a rater sees them."""
    return random.Random(f"{seed} {item.item}")


GOOD = "good"


def pair_ratings(*, num: int = 60, raters: Sequence[str] = ("ann", "bob")) -> list[RatingRow]:
    """The answer that says `good` is better, and people see it; every fifth pair is a tie. Systems: `m` and `other`."""
    return [_rating(item, rater) for item in range(num) for rater in raters]


def write_ratings(rows: Sequence[RatingRow], file: Path) -> Path:
    """As `luthier human-eval export` writes them, as CSV."""
    columns = columns_of(rows)
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(columns)
        writer.writerows(zip(*(["" if v is None else v for v in column] for column in columns.values()), strict=True))
    return file


def reading_judge(question: str) -> str:
    """The verdict of a judge that reads, on what `evaluate.judge.questions.pairwise_question` asks of such a pair."""
    # The form of the question puts an answer on the line below its heading.
    first, second = (question.split(f"[answer {name}, ")[1].split("\n")[1] for name in "AB")
    return json.dumps({"better": "A" if first == GOOD else "B" if second == GOOD else "tie"})


def _rating(item: int, rater: str) -> RatingRow:
    word: Preference = "tie" if item % 5 == 0 else "a" if item % 2 == 0 else "b"
    return RatingRow(
        panel_id="panel-1",
        kind="pairwise",
        item=item,
        row_id=f"r{item}",
        rater=rater,
        prompt=f"question {item}",
        system_a="m",
        answer_a=GOOD if word == "a" else f"plain {item}",
        system_b="other",
        answer_b=GOOD if word == "b" else "plain",
        preference=word,
    )

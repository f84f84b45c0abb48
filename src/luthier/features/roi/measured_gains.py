"""The gains of a case as an evaluation measured them: today's way, the tuned model, and what is evaluated next to them.

Today's way is one of the evaluated systems, or what the case says of it. Each gain is a paired difference with its
interval; only a gain over an accuracy that the case gives is one of other rows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from luthier.core.errors import ConflictError, RequestError
from luthier.core.estimate import Estimate
from luthier.core.evaluation import (
    ALTERNATIVE_WORDS,
    Comparison,
    Evaluation,
    SystemResult,
)
from luthier.core.evaluation_plan import SHARES_OF_CORRECT
from luthier.core.ids import is_id
from luthier.core.results.roi import Case
from luthier.core.results.roi_result import MeasuredBaseline, MeasuredGains, TodayKind
from luthier.core.text.suggest import suggest_ids
from luthier.features.roi.answered_alone import answers_nothing, measured_alone, tuned_alone
from luthier.platform.home.context import Context

_DISTANCE: Final = "nmae"
"""The metric of heads that give numbers. Few of them are equal to the digit, so exact match takes its place badly."""
_MIN_CORRELATED: Final = 10
"""Rows below which a correlation is mostly noise."""


def measured_gains(context: Context, name: str, case: Case, *, has_file: bool = True) -> MeasuredGains:
    """The gains of a run's last evaluation, or of an evaluation named by its own id.

    Args:
        context: of the home.
        name: of the run or the evaluation.
        case: says how it is read.
        has_file: the case is a file, whose keys can be changed; else it was made of three questions.

    Raises:
        NotFoundError: no such run or evaluation.
        RequestError: never evaluated, or not in a way that the case can use, or on rows of the training.
        ConflictError: the files of the examples are missing or changed.
    """
    from luthier.ml.charts.judged_rows import metric_title
    from luthier.ml.planning.roi.contradictions import is_without_tokens

    evaluation = _evaluation(context, name)
    _check_unseen(evaluation)
    # The evaluated model is the last one in every evaluation.
    *others, tuned = [system for system in evaluation.systems if system.is_model]
    metric = _metric(case, evaluation, tuned)
    is_share = _is_share(case, evaluation, metric)
    bare, shown = _base(others, metric)
    asked = _asked_today(case, evaluation)
    today = _today(case, asked, evaluation, metric, (bare, shown, tuned))
    kind: TodayKind = "given" if today is None else today.kind
    if today is not None and today.is_model and today.is_prompted:
        shown, kind = today, "few_shot"
    figure, own = (_figure(system, metric) for system in (today, tuned))
    found = MeasuredGains(
        evaluation_id=evaluation.evaluation_id,
        run_id=evaluation.run_id,
        metric=metric,
        metric_title=metric_title(metric),
        is_share_of_correct=is_share,
        num_rows=evaluation.num_rows,
        today=_today_title(case, today, evaluation),
        tuned=_compared(evaluation, today, tuned, metric) if today else _over_given(case, own),
        over_few_shot=None,
        today_value=min(1.0, max(0.0, figure.value)) if is_share and figure else None,
        shot_tokens=None,
        notes=(*_notes(evaluation, metric), *_notes_on_baselines(case, evaluation, today, metric)),
        today_kind=kind,
        today_name=today.name if today else None,
        today_figure=figure,
        tuned_figure=own,
        baselines=_baselines(case, evaluation, today, tuned, metric),
        alone=tuned_alone(case, evaluation, tuned, has_file=has_file),
    )
    # Where few-shot prompting is today's way, it is no alternative as well; and where today's way reads no tokens, its
    # costs are unknown until the case says them.
    own_prices = case.alternatives.few_shot is not None or not is_without_tokens(case, found)
    beside = shown if kind != "few_shot" and own_prices else None
    is_shown = beside is not None or kind == "few_shot"
    return found.model_copy(
        update={
            "over_few_shot": _compared(evaluation, beside, tuned, metric) if beside is not None else None,
            "few_shot_correlation": 0.0 if beside is None else _correlation(beside, today, tuned, metric),
            "shot_tokens": _shot_tokens(context, evaluation, shown, case, kind) if shown and is_shown else None,
            "notes": (*found.notes, *_notes_on_prompt(evaluation, shown if is_shown else None)),
        }
    )


def _check_unseen(evaluation: Evaluation) -> None:
    """Check that no evaluated row was trained on: money is not decided by figures that are known to be too good."""
    from luthier.ml.evaluation.gate import holds_trained_rows

    if holds_trained_rows(evaluation):
        raise RequestError(
            f"held-out rows of evaluation {evaluation.evaluation_id} are among the rows that its model was trained on",
            expected="rows that training has not used: the gain on others is too large",
            do="evaluate the model on other rows: luthier eval RUN --data held_out.jsonl --against BASE_MODEL",
        )


def _is_share(case: Case, evaluation: Evaluation, metric: str) -> bool:
    """Whether the metric is a share of correct answers; if not, the case has to say what a point of it is worth."""
    from luthier.ml.charts.judged_rows import metric_title

    if metric in SHARES_OF_CORRECT:
        return True
    # The value of a case is counted in correct answers, so any other metric needs to be turned into them.
    if case.verdict.correct_per_point is None:
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} is about {metric_title(metric)}, which is not a share of correct "
            "answers",
            expected=f"one of {', '.join(SHARES_OF_CORRECT)}, or what a point of it is worth",
            do="name another verdict.metric, or set verdict.correct_per_point: how many more answers are correct, as "
            "a fraction, where it rises by 1",
        )
    if case.verdict.today == "given":
        raise RequestError(
            f"verdict.today is given, and evaluation {evaluation.evaluation_id} uses "
            f"{metric_title(metric)}, which today's accuracy cannot be compared with",
            expected=f"one of {', '.join(SHARES_OF_CORRECT)}",
            do="name another verdict.metric, or a system of the evaluation as verdict.today",
        )
    return False


def _figure(system: SystemResult | None, metric: str) -> Estimate | None:
    if system is None:
        return None
    found = system.metrics[metric]
    return Estimate(value=found.value, low=found.low, high=found.high)


def _base(others: Sequence[SystemResult], metric: str) -> tuple[SystemResult | None, SystemResult | None]:
    """The base model, and the best of the ways to prompt it, among the models next to the evaluated one."""
    bare = next((system for system in others if not system.is_prompted), None)
    prompts = [
        s for s in others if s.is_prompted and bare is not None and s.model == bare.model and metric in s.metrics
    ]
    # Only metrics that rise with quality are read (`_metric`); of equal prompts the shorter costs less.
    best = min(prompts, key=lambda one: (-one.metrics[metric].value, _added_tokens(one) or 0.0), default=None)
    return bare, best


def _added_tokens(system: SystemResult) -> float | None:
    """Tokens that its prompts have besides the rows' own, on average; None where the evaluation does not record it."""
    return None if system.prompting is None else system.prompting.extra_prompt_tokens


def _notes_on_prompt(evaluation: Evaluation, shown: SystemResult | None) -> Iterator[str]:
    """Which prompt is priced, of several."""
    from luthier.ml.evaluation.verdict_text import system_title

    prompts = [system for system in evaluation.systems if system.is_prompted]
    added = None if shown is None else _added_tokens(shown)
    if shown is None or added is None:
        return
    title = system_title(shown, evaluation.systems)
    ending = f", the best of {len(prompts)} prompts on these rows" if len(prompts) > 1 else ""
    yield f"The prompt that is priced is {title}{ending}: {added:,.0f} more tokens in each call."


def _asked_today(case: Case, evaluation: Evaluation) -> str:
    """Which system is today's way: what the case says, else the run's reference run, else the base model."""
    *others, judged = [system.name for system in evaluation.systems]
    # With a run that has just been trained only its `evaluation.reference_run` is evaluated; `luthier eval`, which
    # calls what it judges by its id, is given runs for any reason. A case that names `base` itself keeps it.
    if "today" in case.verdict.model_fields_set or is_id(judged, "run"):
        return case.verdict.today
    return next((name for name in others if is_id(name, "run")), case.verdict.today)


def _today(
    case: Case,
    asked: str,
    evaluation: Evaluation,
    metric: str,
    models: tuple[SystemResult | None, SystemResult | None, SystemResult],
) -> SystemResult | None:
    """The system that is today's way; None where the case says itself how accurate that is.

    Args:
        case: says how accurate it is, where no system is it.
        asked: names it.
        evaluation: has evaluated it.
        metric: by which it must have been evaluated.
        models: the base, the base with examples, and the tuned model.
    """
    bare, shown, tuned = models
    if asked == "given":
        if case.today.accuracy is None and case.today.counted is None:
            raise RequestError(
                "verdict.today is given, but today has neither accuracy nor counted",
                expected="how accurate today's way is",
                do="say today.accuracy, or today.counted: {num_correct: 62, num_answers: 100}",
            )
        return None
    if asked == "base" and bare is None:
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} is of {', '.join(system.name for system in evaluation.systems)}",
            expected="a tuned model and, before it, what it is compared with",
            do="evaluate it against its base: luthier eval RUN --data FILE --against BASE_MODEL; or name "
            "today's way as verdict.today",
        )
    if asked == "few_shot" and shown is None:
        raise RequestError(
            f"verdict.today is few_shot, and evaluation {evaluation.evaluation_id} has no few-shot system",
            expected="a base model with examples in its prompt among the evaluated",
            do="evaluate one: luthier eval RUN --data FILE --few-shot 4 --few-shot-from FILE; or set verdict.today: "
            "base",
        )
    known = {system.name: system for system in evaluation.systems if system is not tuned}
    found = {"base": bare, "few_shot": shown}.get(asked) or known.get(asked)
    if found is None:
        is_tuned = " but the tuned model itself" if asked == tuned.name else ""
        raise RequestError(
            f"verdict.today is {asked}, and evaluation {evaluation.evaluation_id} has no system of that name{is_tuned}",
            expected=f"base, few_shot, given, or one of {', '.join(known) or 'its systems (there is no other)'}",
            do=f"correct verdict.today ({suggest_ids(asked, list(known))}), or evaluate it together with the tuned "
            "model",
        )
    if metric not in found.metrics:
        by = ", ".join(name for name in found.metrics if name in tuned.metrics)
        raise RequestError(
            f"verdict.today is {asked}, which evaluation {evaluation.evaluation_id} did not measure by {metric}",
            expected=f"a metric of both: {by or 'there is none'}",
            do="name one as verdict.metric, or another system as verdict.today",
        )
    return found


def _today_title(case: Case, today: SystemResult | None, evaluation: Evaluation) -> str:
    from luthier.ml.evaluation.verdict_text import system_title

    if today is not None:
        return system_title(today, evaluation.systems)
    counted = case.today.counted
    if counted is None:
        return "what the case says it is"
    return f"what the case says it is ({counted.num_correct:,} of {counted.num_answers:,} answers correct)"


def _over_given(case: Case, tuned: Estimate | None) -> Estimate:
    """The tuned model less a given accuracy, of other rows: the ends of both intervals, squared and added.

    Source: Newcombe, "Interval estimation for the difference between independent proportions", 1998.
    """
    from luthier.ml.planning.roi.inputs import given_accuracy

    given = given_accuracy(case)
    if tuned is None or given is None:
        raise AssertionError("checked before: the case says today's accuracy, and the tuned model was evaluated")
    difference = tuned.value - given.typical
    low = difference - math.hypot(tuned.value - tuned.low, given.high - given.typical)
    high = difference + math.hypot(tuned.high - tuned.value, given.typical - given.low)
    return Estimate(value=difference, low=max(-1.0, low), high=min(1.0, high))


def _correlation(other: SystemResult, today: SystemResult | None, tuned: SystemResult, metric: str) -> float:
    """Over rows, of the tuned model's gain over another system with that over today's way.

    Where the case says how accurate today's way is, the tuned model's own figure takes the second place. 0 where rows
    are not stored, have no figure, or do not differ.
    """
    own, less = _by_row(tuned, metric), _by_row(other, metric)
    now = dict.fromkeys(own, 0.0) if today is None else _by_row(today, metric)
    rows = [row for row in own if row in less and row in now]
    if len(rows) < _MIN_CORRELATED:
        return 0.0
    over_other, over_today = [own[row] - less[row] for row in rows], [own[row] - now[row] for row in rows]
    if min(over_other) == max(over_other) or min(over_today) == max(over_today):
        return 0.0
    return statistics.correlation(over_other, over_today)


def _by_row(system: SystemResult, metric: str) -> dict[str, float]:
    return {one.row_id: one.scores[metric] for one in system.samples if metric in one.scores}


def _baselines(
    case: Case, evaluation: Evaluation, today: SystemResult | None, tuned: SystemResult, metric: str
) -> tuple[MeasuredBaseline, ...]:
    """Those without a language model that can be compared with the tuned one, but for today's way."""
    from luthier.ml.evaluation.verdict_text import system_title

    found = []
    for system in evaluation.systems:
        comparison = _comparison(evaluation, system, tuned, metric)
        figure = _figure(system, metric) if metric in system.metrics else None
        if system.is_model or system is today or comparison is None or figure is None:
            continue
        if answers_nothing(case, evaluation, system, metric):
            continue  # a note names it
        found.append(
            MeasuredBaseline(
                name=system.name,
                kind=system.kind,
                title=system_title(system, evaluation.systems),
                value=figure,
                tuned_less=Estimate(value=comparison.difference, low=comparison.low, high=comparison.high),
                tuned_is=ALTERNATIVE_WORDS[comparison.verdict],
                seconds=system.seconds,
                correlation=_correlation(system, today, tuned, metric),
                alone=measured_alone(case, evaluation, system),
            )
        )
    return tuple(found)


def _notes_on_baselines(case: Case, evaluation: Evaluation, today: SystemResult | None, metric: str) -> Iterator[str]:
    """Which baselines without a language model could not be counted."""
    simple = [system for system in evaluation.systems if not system.is_model]
    if not simple:
        yield (
            f"Evaluation {evaluation.evaluation_id} has no baseline without a language model: only the base model "
            "was compared, with or without examples, and a classifier may be as good. Evaluate again where the "
            "training rows are known (docs/baselines.md)."
        )
    unknown = [system.name for system in simple if metric not in system.metrics]
    if unknown:
        yield f"Not priced, since {metric} was not measured for them: {'; '.join(unknown)}."
    measured = [system for system in simple if system is not today and metric in system.metrics]
    silent = [one.name for one in measured if answers_nothing(case, evaluation, one, metric)]
    if silent:
        asked, names = f"{case.verdict.alone_at:g}", "; ".join(silent)
        yield f"Not priced, since they answer no part of the cases with the required accuracy of {asked}: {names}."


def _evaluation(context: Context, name: str) -> Evaluation:
    if is_id(name, "eval"):
        return context.evaluations.get(name)
    from luthier.features.release_gates.service import present_evaluation

    # For its error, which names the nearest ids.
    context.runs.get(name)
    # A training client can save other weights as the result of the run.
    present = present_evaluation(context, name)
    if present is None:
        others = context.evaluations.list(run_id=name, limit=1)
        raise RequestError(
            f"the weights that run {name} has now were never evaluated"
            if others
            else f"run {name} was never evaluated",
            expected="a run with an evaluation",
            do=f"evaluate it: luthier eval {name} --data held_out.jsonl --against BASE_MODEL",
        )
    return present


def _metric(case: Case, evaluation: Evaluation, tuned: SystemResult) -> str:
    # By default the metric on which the verdict rests.
    metric = case.verdict.metric or (evaluation.verdict.metric if evaluation.verdict else None)
    known = [name for name, found in tuned.metrics.items() if found.higher_is_better]
    if metric is None or metric not in tuned.metrics:
        raise RequestError(
            f"metric {metric or 'not named'} of evaluation {evaluation.evaluation_id}",
            expected=f"one of {', '.join(known) or 'its metrics (it has none that rises with quality)'}",
            do="name one as verdict.metric in the case, or evaluate again with --metrics exact_match",
        )
    if metric == _DISTANCE:
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} says how far numbers are off ({metric}), and not how many of the "
            "answers are correct",
            expected="a share of answers that are close enough to be useful",
            do="leave the evaluation out, and state in a case how many more answers are close enough: tuned.gain, or "
            "tuned.alone",
        )
    if metric not in known:
        raise RequestError(
            f"{metric} is better where it is lower, and says nothing about how many answers are correct",
            expected=f"one of {', '.join(known)}" if known else "a metric of the answers themselves",
            do="name one as verdict.metric in the case, or evaluate again with --metrics exact_match",
        )
    return metric


def _comparison(evaluation: Evaluation, baseline: SystemResult, tuned: SystemResult, metric: str) -> Comparison | None:
    pair = (baseline.name, tuned.name, metric)
    return next((one for one in evaluation.comparisons if (one.baseline, one.candidate, one.metric) == pair), None)


def _compared(evaluation: Evaluation, baseline: SystemResult, tuned: SystemResult, metric: str) -> Estimate:
    found = _comparison(evaluation, baseline, tuned, metric)
    if found is None:
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} does not compare {tuned.name} with {baseline.name} by {metric}",
            expected="a paired comparison of the two",
            do="evaluate them together: luthier eval RUN --data FILE --against BASE_MODEL",
        )
    return Estimate(value=found.difference, low=found.low, high=found.high)


def _shot_tokens(
    context: Context, evaluation: Evaluation, shown: SystemResult, case: Case, kind: TodayKind
) -> float | None:
    """Mean tokens that the examples add to a prompt; None where the case itself says how long prompts are."""
    # Either the examples are saved by tuning, or they are what the alternative costs in addition.
    is_today = kind == "few_shot"
    few_shot, tuned = case.alternatives.few_shot, case.tuned
    if is_today and (tuned.saved_prompt_tokens is not None or tuned.input_tokens is not None):
        return None
    if not is_today and few_shot and (few_shot.extra_prompt_tokens is not None or few_shot.input_tokens is not None):
        return None
    if (recorded := _added_tokens(shown)) is not None:
        return recorded
    key = "tuned.saved_prompt_tokens" if is_today else "alternatives.few_shot.extra_prompt_tokens"
    plan = context.runs.plan(evaluation.run_id) if evaluation.run_id is not None else None
    held_out = plan.data.held_out if plan is not None else None
    # `luthier train` calls its base "base"; `luthier eval` takes examples from a separate file, which is not stored.
    is_own = held_out is not None and held_out.sha256 == evaluation.held_out_sha256 and shown.name.startswith("base +")
    if plan is None or not is_own:
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} does not record which examples were in the prompt",
            expected="an evaluation that `luthier train` made, or the number of their tokens",
            do=f"give {key} in the case",
        )
    from luthier.features.planning.service import prepare_again
    from luthier.ml.data.tokenise.loss_mask import tokenise
    from luthier.ml.evaluation.few_shot import choose_shots, with_shots

    try:
        prepared = prepare_again(context, plan)
    except (OSError, RequestError) as error:
        raise ConflictError(
            f"the examples in the prompt cannot be found again: {error}",
            expected=f"the files of run {evaluation.run_id} as they were (training: {Path(plan.data.train.file).name})",
            do=f"put them back, or give {key} in the case",
        ) from error
    examples = prepared.held_out.examples if prepared.held_out else ()
    # The same seed and pool as when it was evaluated, so these are the very examples of those prompts.
    shots = choose_shots(prepared.train.good_examples, shown.num_few_shot, plan.training.seed, held_out=examples)
    judged = {sample.row_id for sample in shown.samples}
    # Only evaluated rows: the mean must be of the prompts that the measured gain is about.
    rows = [example for example in examples if not judged or example.id in judged]
    if not rows:
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} has none of the held-out rows of run {evaluation.run_id}",
            expected="an evaluation of these rows, or the number of tokens that the examples take",
            do=f"give {key} in the case",
        )
    added = [
        tokenise(with_shots(row, shots), prepared.template).num_tokens - tokenise(row, prepared.template).num_tokens
        for row in rows
    ]
    return sum(added) / len(added)


def _notes(evaluation: Evaluation, metric: str) -> tuple[str, ...]:
    """What the verdict itself warns of; and where the case reads another metric than the verdict rests on, that."""
    if evaluation.verdict is None:
        return ()
    verdict = evaluation.verdict
    notes = [f"The verdict on these rows: {verdict.headline}", *verdict.caveats]
    if metric != verdict.metric:
        notes.append(f"The verdict uses {verdict.metric}; the case requires {metric}.")
    return tuple(notes)

"""Use case: does fine-tuning pay? From a case file, prices and perhaps a verdict to an answer and a page.

A case file is checked key by key and completed with prices of the table. An evaluation gives gains with their paired
intervals, and the tokens that few-shot examples cost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from luthier.core.cost import Estimate, Market, PriceTable
from luthier.core.errors import ConflictError, RequestError
from luthier.core.evaluation import Comparison, Evaluation, SystemResult
from luthier.core.ids import is_id
from luthier.core.results.roi import ALTERNATIVES, Case, Measured, MeasuredGains, Money, SelfServed, TrainingCost
from luthier.features.datasets.data_files import check_is_not_input
from luthier.features.recipes.file import FileKind, describe_problems, read_recipe_file
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.results.roi_result import RoiResult


@dataclass(frozen=True, slots=True)
class RoiOutcome:
    """An answer. report: the HTML page, where one was asked for."""

    result: RoiResult
    report: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier worth --json`."""
        return {**self.result.model_dump(mode="json"), "report": str(self.report) if self.report else None}


def compute_roi(
    context: Context, file: Path, *, verdict: str | None = None, prices: Path | None = None, html: Path | None = None
) -> RoiOutcome:
    """Answer a case file. The same files and the same evaluation give the same answer.

    verdict: a run, whose last evaluation is taken, or an evaluation; in place of assumed gains. prices: entries that
    replace those of the shipped table. html: where to write the page; its folder is made where it is missing.

    Raises NotFoundError (a file, run or evaluation that is not there), RequestError (a case that is wrong or
    contradicts itself, a missing price), ConflictError (see `measured_gains`), StorageFullError.
    """
    from luthier.ml.planning.devices import load_prices
    from luthier.ml.planning.roi import check_case, worth

    check_is_not_input(html, file, prices)
    table, case = load_prices(prices), load_case(file)
    measured = measured_gains(context, verdict, case) if verdict is not None else None
    check_case(case, measured)
    priced, sources = with_prices(case, table)
    if prices is not None and not sources:
        sources = (f"No price of {prices} was needed: the case says all of them itself.",)
    result = worth(priced, measured, sources=sources)
    if html is None:
        return RoiOutcome(result)
    from luthier.ml.planning.roi.report import write_roi_report

    return RoiOutcome(result, write_roi_report(html, result, case_file=str(file), verdict=verdict))


CASE: Final = FileKind(
    word="case",
    needs="a mapping with at least the keys name, currency, calls, today, tuned, people and training",
    begin="copy examples/shop/case.yaml and change its figures",
    hint="give the case's path; docs/roi.md explains its keys",
    refuse=RequestError,
)


def load_case(path: Path) -> Case:
    """Read a case file (YAML or JSON).

    Raises NotFoundError (no such file), RequestError: wrong syntax, unknown keys (the nearest known is named), wrong
    types or values; all of them are listed.
    """
    document = read_recipe_file(path, CASE)
    try:
        # By way of JSON, since there strict means: no text and no true for a number.
        return Case.model_validate_json(json.dumps(document.keys), strict=True)
    except ValidationError as error:
        problems = describe_problems(error, document.lines, (), spec=Case)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RequestError(
            "\n    ".join([f"case {path} has {count}:", *problems]),
            expected="only known keys, each with a value of its kind",
            do="correct the places named; docs/roi.md explains every key",
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(
            f"case {path} holds something that is no plain value: {error}",
            expected="text, numbers, lists and mappings",
            do="write the value out",
        ) from error


def with_prices(case: Case, table: PriceTable) -> tuple[Case, tuple[str, ...]]:
    """The case with the table's price wherever a device is named without one, and a sentence for each on its source.

    Raises RequestError for a device or market without a price, and for another currency than USD without its rate.
    """
    sources: list[str] = []

    def price(key: str, device: str, market: Market | None) -> Money:
        chosen = market or "on_demand"
        estimate, entry = table.usd_per_hour(device, market=chosen), table.devices[device]
        sources.append(
            f"{key}: {_dollars(estimate)} an hour for one {device}, {chosen.replace('_', ' ')}; "
            f"{entry.basis.replace('_', ' ')} of {entry.as_of.isoformat()}: {entry.source}."
        )
        return _in_currency(case, key, estimate)

    def served(key: str, way: SelfServed | None) -> SelfServed | None:
        if way is None or way.price_per_hour is not None or way.device is None:
            return way
        found = price(f"{key}.self_served.price_per_hour", way.device, way.market)
        # The market is taken out once it has become a price, which would contradict it.
        return way.model_copy(update={"price_per_hour": found, "market": None})

    training: TrainingCost = case.training
    if training.cost is None and training.price_per_hour is None and training.device is not None:
        found = price("training.price_per_hour", training.device, training.market)
        training = training.model_copy(update={"price_per_hour": found, "market": None})
    today, tuned = (
        way.model_copy(update={"self_served": served(key, way.self_served)})
        for key, way in (("today", case.today), ("tuned", case.tuned))
    )
    plain: dict[str, Any] = {
        name: way.model_copy(update={"self_served": served(f"alternatives.{name}", way.self_served)})
        for name in ALTERNATIVES
        if (way := getattr(case.alternatives, name)) is not None
    }
    changed = {
        "training": training,
        "today": today,
        "tuned": tuned,
        "alternatives": case.alternatives.model_copy(update=plain),
    }
    return case.model_copy(update=changed), tuple(sources)


def _in_currency(case: Case, key: str, estimate: Estimate) -> Money:
    if case.currency == "USD":
        return Money(low=estimate.low, typical=estimate.value, high=estimate.high)
    rate = case.currency_per_usd
    if rate is None:
        raise RequestError(
            f"case {case.name}: {key} comes from a table in USD, and the case is in {case.currency}",
            expected="currency_per_usd: what a dollar costs",
            do=f"add currency_per_usd, or say {key} in {case.currency}",
        )
    return Money(low=estimate.low * rate.low, typical=estimate.value * rate.typical, high=estimate.high * rate.high)


def _dollars(estimate: Estimate) -> str:
    return f"{estimate.value:g} USD ({estimate.low:g} to {estimate.high:g})"


SHARES_OF_CORRECT: Final = ("exact_match", "exact_match_ignoring_case", "label_accuracy")


def measured_gains(context: Context, name: str, case: Case) -> MeasuredGains:
    """The gains of a run's last evaluation, or of an evaluation named by its own id.

    Raises NotFoundError (no such run or evaluation), RequestError (never judged, or not in a way that the case can
    use), ConflictError (the files that tell what the examples were are gone or changed).
    """
    from luthier.ml.charts.judged_rows import metric_title
    from luthier.ml.evaluation.verdict_text import system_title

    evaluation = _evaluation(context, name)
    tuned, base, shown = _systems(evaluation)
    metric = _metric(case, evaluation, tuned)
    # The value of a case is counted in correct answers, so any other metric needs to be turned into them.
    is_share = metric in SHARES_OF_CORRECT
    if not is_share and case.verdict.correct_per_point is None:
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} is about {metric_title(metric)}, no share of correct answers",
            expected=f"one of {', '.join(SHARES_OF_CORRECT)}, or what a point of it is worth",
            do="name another verdict.metric, or say verdict.correct_per_point: how many more answers are correct, as "
            "a fraction, where it rises by 1",
        )
    today = shown if case.verdict.today == "few_shot" else base
    if today is None:
        raise RequestError(
            f"verdict.today is few_shot, and evaluation {evaluation.evaluation_id} judged no few-shot system",
            expected="a base model with examples in its prompt among the judged",
            do="judge one: luthier eval RUN --data FILE --few-shot 4 --few-shot-from FILE; or say verdict.today: base",
        )
    # Where few-shot prompting is today's way, it is no alternative as well.
    beside = shown if today is base else None
    value = today.metrics[metric].value
    return MeasuredGains(
        evaluation_id=evaluation.evaluation_id,
        run_id=evaluation.run_id,
        metric=metric,
        metric_title=metric_title(metric),
        is_share_of_correct=is_share,
        num_rows=evaluation.num_rows,
        today=system_title(today, evaluation.systems),
        tuned=_compared(evaluation, today, tuned, metric),
        over_few_shot=_compared(evaluation, beside, tuned, metric) if beside is not None else None,
        today_value=min(1.0, max(0.0, value)) if is_share else None,
        shot_tokens=_shot_tokens(context, evaluation, shown, case) if shown is not None else None,
        notes=_notes(evaluation, metric),
    )


def _evaluation(context: Context, name: str) -> Evaluation:
    if is_id(name, "eval"):
        return context.evaluations.get(name)
    # For its error, which names the nearest ids.
    context.runs.get(name)
    found = context.evaluations.list(run_id=name, limit=1)
    if not found:
        raise RequestError(
            f"run {name} was never judged",
            expected="a run with an evaluation",
            do=f"judge it: luthier eval {name} --data held_out.jsonl --against BASE_MODEL",
        )
    return found[0]


def _systems(evaluation: Evaluation) -> tuple[SystemResult, SystemResult, SystemResult | None]:
    """The judged model, its base, and the base with examples where there is one; the judged one stands last."""
    # The judged model stands last in every evaluation.
    *others, tuned = [system for system in evaluation.systems if system.kind == "model"]
    bare = [system for system in others if not system.num_few_shot]
    shown = [system for system in others if system.num_few_shot]
    if not bare:
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} judged {', '.join(system.name for system in evaluation.systems)}",
            expected="a tuned model and, before it, what it is held against",
            do="judge it against its base: luthier eval RUN --data FILE --against BASE_MODEL",
        )
    return tuned, bare[0], next((system for system in shown if system.model == bare[0].model), None)


def _metric(case: Case, evaluation: Evaluation, tuned: SystemResult) -> str:
    # By default the metric on which the verdict rests.
    metric = case.verdict.metric or (evaluation.verdict.metric if evaluation.verdict else None)
    known = [name for name, found in tuned.metrics.items() if found.higher_is_better]
    if metric is None or metric not in tuned.metrics:
        raise RequestError(
            f"metric {metric or 'not named'} of evaluation {evaluation.evaluation_id}",
            expected=f"one of {', '.join(known) or 'its metrics (it has none that rises with quality)'}",
            do="name one as verdict.metric in the case, or judge again with --metrics exact_match",
        )
    if metric not in known:
        raise RequestError(
            f"{metric} is better where it is lower, and says nothing about how many answers are correct",
            expected=f"one of {', '.join(known)}" if known else "a metric of the answers themselves",
            do="name one as verdict.metric in the case, or judge again with --metrics exact_match",
        )
    return metric


def _compared(evaluation: Evaluation, baseline: SystemResult, tuned: SystemResult, metric: str) -> Measured:
    found: Comparison | None = next(
        (
            one
            for one in evaluation.comparisons
            if (one.baseline, one.candidate, one.metric) == (baseline.name, tuned.name, metric)
        ),
        None,
    )
    if found is None:
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} does not compare {tuned.name} with {baseline.name} by {metric}",
            expected="a paired comparison of the two",
            do="judge them together: luthier eval RUN --data FILE --against BASE_MODEL",
        )
    return Measured(value=found.difference, low=found.low, high=found.high)


def _shot_tokens(context: Context, evaluation: Evaluation, shown: SystemResult, case: Case) -> float | None:
    """Mean tokens that the examples add to a prompt; None where the case itself says how long prompts are."""
    # Either the examples are saved by tuning, or they are what the alternative costs in addition.
    is_today = case.verdict.today == "few_shot"
    few_shot, tuned = case.alternatives.few_shot, case.tuned
    if is_today and (tuned.saved_prompt_tokens is not None or tuned.input_tokens is not None):
        return None
    if not is_today and few_shot and (few_shot.extra_prompt_tokens is not None or few_shot.input_tokens is not None):
        return None
    key = "tuned.saved_prompt_tokens" if is_today else "alternatives.few_shot.extra_prompt_tokens"
    plan = context.runs.plan(evaluation.run_id) if evaluation.run_id is not None else None
    held_out = plan.data.held_out if plan is not None else None
    # `luthier train` calls its base "base"; `luthier eval` takes examples from a file of its own, which is not kept.
    is_own = held_out is not None and held_out.sha256 == evaluation.held_out_sha256 and shown.name.startswith("base +")
    if plan is None or not is_own:
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} does not tell which examples stood in the prompt",
            expected="an evaluation that `luthier train` made, or the number of their tokens",
            do=f"say {key} in the case",
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
            do=f"put them back, or say {key} in the case",
        ) from error
    examples = prepared.held_out.examples if prepared.held_out else ()
    # The same seed and pool as when it was judged, so these are the very examples of those prompts.
    shots = choose_shots(prepared.train.good_examples, shown.num_few_shot, plan.training.seed, held_out=examples)
    judged = {sample.row_id for sample in shown.samples}
    # Only judged rows: the mean must be of the prompts that the measured gain is about.
    rows = [example for example in examples if not judged or example.id in judged]
    if not rows:
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} judged none of the held-out rows of run {evaluation.run_id}",
            expected="an evaluation of these rows, or the number of tokens that the examples take",
            do=f"say {key} in the case",
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
        notes.append(f"The verdict rests on {verdict.metric}; the case asks for {metric}.")
    return tuple(notes)

"""Figures of a case that contradict each other, or that would change nothing: each one is reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from luthier.core.errors import RequestError
from luthier.core.results.roi import (
    ALTERNATIVES,
    Alternative,
    AlternativeName,
    Case,
    Changed,
    FromVerdict,
    Share,
    Tuned,
    Way,
)
from luthier.core.results.roi_result import MeasuredGains
from luthier.ml.planning.roi.inputs import given_accuracy

# Figures typed with three decimals may differ from their difference by this much.
_SAME: Final = 5e-4
_SERVED: Final = ("hosted", "self_served", "cost_per_call")
_OWN_PRICES: Final[dict[AlternativeName, str]] = {
    "bigger_model": "say the bigger model's own prices",
    "without_model": "say what a call of it costs, such as cost_per_call: 0",
}


@dataclass(frozen=True, slots=True)
class Contradiction:
    """What the case says, what it could say, and what to do about it."""

    came: str
    expected: str
    do: str


def check_case(case: Case, measured: MeasuredGains | None) -> None:
    """Refuse a case that contradicts itself or what was measured; all places are reported.

    Raises:
        RequestError: there is a contradiction; the message names all of them.
    """
    # All places together: correcting a case one error at a time would need many attempts.
    found = list(contradictions(case, measured))
    if not found:
        return
    if len(found) == 1:
        raise RequestError(f"case {case.name}: {found[0].came}", expected=found[0].expected, do=found[0].do)
    lines = [f"    {one.came}; expected {one.expected}; {one.do}" for one in found]
    raise RequestError(
        "\n".join([f"case {case.name} has {len(found)} problems:", *lines]),
        expected="figures that do not contradict each other",
        do="correct the places named",
    )


def contradictions(case: Case, measured: MeasuredGains | None) -> Iterator[Contradiction]:
    """Every contradiction of a case, in the order of its keys."""
    yield from _currency(case)
    yield from _today(case, measured)
    yield from _ways(case)
    yield from _gains(case, measured)
    yield from _tokens(case, measured)
    yield from _training(case)


def _currency(case: Case) -> Iterator[Contradiction]:
    # Prices of the tables are in dollars, so this rate turns them into the case's currency.
    rate = case.currency_per_usd
    if case.currency == "USD" and rate is not None and (rate.low, rate.high) != (1.0, 1.0):
        yield Contradiction(
            f"currency is USD and currency_per_usd is {rate.typical:g}",
            "a dollar that costs one dollar",
            "take currency_per_usd out, or correct the currency",
        )


def _today(case: Case, measured: MeasuredGains | None) -> Iterator[Contradiction]:
    if case.today.accuracy is not None and case.today.counted is not None:
        yield Contradiction("today has accuracy and counted", "one of them", "leave the one that you know better")
    if case.alternatives.baselines is not None and (measured is None or not measured.baselines):
        yield Contradiction(
            "alternatives.baselines is given, and no baseline without a language model was measured with today's way",
            "costs of what is there",
            "take it out, or pass --verdict of an evaluation that has baselines",
        )
    if measured is None or not is_without_tokens(case, measured):
        return
    if case.today.hosted is not None:
        yield Contradiction(
            f"today's way is {measured.today}, which reads no tokens, and today has hosted prices",
            "what a call of it costs",
            "write today: {cost_per_call: 0}, or what it costs, and the prices of the model as tuned.hosted",
        )
    # Served like today's way, a model would cost what a classifier or a person costs.
    for key, way in (("tuned", case.tuned), *_alternatives(case)):
        if not _given(way) and key.rpartition(".")[2] not in _OWN_PRICES:
            yield Contradiction(
                f"today's way is {measured.today}, and {key} does not say what a call costs, so it would cost the same",
                f"one of {', '.join(_SERVED)}",
                f"say for example {key}.hosted",
            )


def is_without_tokens(case: Case, measured: MeasuredGains) -> bool:
    """Whether today's way is not a language model that is paid by its tokens or devices."""
    if measured.today_kind == "given":
        return case.today.cost_per_call is not None
    return measured.today_kind not in ("model", "few_shot")


def _ways(case: Case) -> Iterator[Contradiction]:
    # Everything is measured against today's way, so it must have a price, even 0.
    if not _given(case.today):
        yield Contradiction(
            "today does not say what a call costs",
            f"one of {', '.join(_SERVED)}",
            "where no model is called today, write today: {cost_per_call: 0}",
        )
    for key, way in _all_ways(case):
        given = _given(way)
        if len(given) > 1:
            yield Contradiction(
                f"{key} has {' and '.join(given)}", f"one of {', '.join(_SERVED)}", "leave the one that is true"
            )
        if way.self_served is not None:
            yield from _priced(f"{key}.self_served", way.self_served)
        # A flat price per call does not depend on what is sent, so the tokens would not be used.
        if given == ["cost_per_call"] and (useless := _tokens_of(way)):
            yield Contradiction(
                f"{key} has cost_per_call and {useless[0]}, which then changes nothing",
                "tokens only where they are paid for",
                f"take {key}.{useless[0]} out, or give hosted or self_served prices",
            )
    # Few-shot prompting runs on today's model at its prices; these two are something else and need their own prices.
    for name, do in _OWN_PRICES.items():
        way = getattr(case.alternatives, name)
        if way is not None and not _given(way):
            yield Contradiction(
                f"alternatives.{name} does not say what a call costs, so it would cost what today's model costs",
                f"one of {', '.join(_SERVED)}",
                do,
            )


def _gains(case: Case, measured: MeasuredGains | None) -> Iterator[Contradiction]:
    if measured is not None:
        yield from _assumed_beside_measured(case, measured)
    elif case.tuned.alone is not None:
        if given_accuracy(case) is None:
            yield Contradiction(
                "tuned.alone is given, and today's accuracy is not",
                "today.accuracy or today.counted: how right the answers are that the model replaces",
                "say today.accuracy, for example {low: 0.9, typical: 0.95, high: 0.99}",
            )
    elif case.tuned.gain is None and (case.tuned.accuracy is None or given_accuracy(case) is None):
        yield Contradiction(
            "no gain of the tuned model is given",
            "tuned.gain, or today.accuracy or today.counted with tuned.accuracy, or a verdict to measure it by",
            "assume one, or pass --verdict RUN",
        )
    # Compared with the defaults: only keys that somebody has written differ from them.
    elif case.verdict != FromVerdict():
        yield Contradiction(
            "gains are assumed, and the keys of verdict then change nothing",
            "assumed gains or a verdict",
            "take the verdict's keys out, or the assumed gains and pass --verdict RUN",
        )
    yield from _alone(case, measured)
    for key, way in (("tuned", case.tuned), *_alternatives(case)):
        yield from _accuracies(case, key, way, measured)


def _alone(case: Case, measured: MeasuredGains | None) -> Iterator[Contradiction]:
    """A model that answers a part alone: where it is assumed or measured, and today's way has a known accuracy."""
    others = [f"tuned.{name}" for name in ("gain", "accuracy") if getattr(case.tuned, name) is not None]
    if case.tuned.alone is not None and others:
        yield Contradiction(
            f"tuned has alone and {' and '.join(name.removeprefix('tuned.') for name in others)}",
            "what it answers alone, or what it gains over all answers",
            f"take {' and '.join(others)} out of the case",
        )
    if case.tuned.alone is not None and measured is not None:
        yield Contradiction(
            f"tuned.alone is assumed, and evaluation {measured.evaluation_id} measured it",
            "a share that is assumed or measured, not both",
            "write verdict: {alone_at: 0.95, today: given} in its place, or leave --verdict out",
        )
    if case.verdict.alone_at is not None and measured is not None and measured.today_kind != "given":
        yield Contradiction(
            f"verdict.alone_at is given, and today's way is {measured.today}",
            "verdict.today: given, since the rest is answered as today: by people, or however accurate today.accuracy "
            "says",
            "write verdict.today: given, and today.accuracy or today.counted; or take verdict.alone_at out",
        )


def _assumed_beside_measured(case: Case, measured: MeasuredGains) -> Iterator[Contradiction]:
    assumed: list[tuple[str, Changed]] = [("tuned", case.tuned)]
    # Where few-shot prompting was evaluated, an assumed gain of it would conflict with a measured one.
    if measured.over_few_shot is not None or case.verdict.today == "few_shot":
        assumed += [("alternatives.few_shot", way) for way in (case.alternatives.few_shot,) if way is not None]
    keys = [f"{key}.{name}" for key, way in assumed for name in ("accuracy", "gain") if getattr(way, name) is not None]
    if measured.today_kind != "given":
        keys += [f"today.{name}" for name in ("accuracy", "counted") if getattr(case.today, name) is not None]
    if keys:
        yield Contradiction(
            f"{', '.join(keys)} assumed, and evaluation {measured.evaluation_id} measured it",
            "gains that are assumed or measured, not both",
            f"take {' and '.join(keys)} out of the case, or leave --verdict out"
            + ("; or set verdict.today: given" if keys[-1].startswith("today.") else ""),
        )
    if case.verdict.today == "few_shot" and case.alternatives.few_shot is not None:
        yield Contradiction(
            "verdict.today is few_shot, and alternatives.few_shot is there too",
            "few-shot as today's way or as an alternative to it",
            "take alternatives.few_shot out",
        )
    # The key turns points of another metric into a share of correct answers; this metric needs no turning.
    if measured.is_share_of_correct and case.verdict.correct_per_point is not None:
        yield Contradiction(
            f"verdict.correct_per_point is given, and {measured.metric_title} is itself a share of correct answers",
            "correct_per_point for other metrics only",
            "take verdict.correct_per_point out",
        )


def _accuracies(case: Case, key: str, way: Changed, measured: MeasuredGains | None) -> Iterator[Contradiction]:
    today, gain, accuracy = given_accuracy(case), way.gain, way.accuracy
    # A gain that was measured needs no assumption, and `_gains` reports a tuned model without any.
    is_measured = measured is not None and (key == "tuned" or _is_measured(key, measured))
    if gain is None and accuracy is None and not is_measured and key != "tuned":
        yield Contradiction(f"{key} has neither gain nor accuracy", "one of them", "say what it would gain over today")
    if gain is None and accuracy is not None and today is None and key != "tuned":
        yield Contradiction(
            f"{key}.accuracy is given and today's is not", "today.accuracy with it, or a gain", f"give {key}.gain"
        )
    if gain is not None and accuracy is not None and today is not None:
        between = accuracy.typical - today.typical
        # Only the typical values: the ends of the three ranges need not belong together.
        if abs(between - gain.typical) > _SAME:
            yield Contradiction(
                f"{key}.accuracy {accuracy.typical:g} less today.accuracy {today.typical:g} is {between:+.4g}, and "
                f"{key}.gain is {gain.typical:+g}",
                "a gain that is the difference of the two accuracies",
                f"take {key}.gain out, or correct one of the three",
            )
    if gain is not None and accuracy is not None and today is None:
        yield Contradiction(
            f"{key} has gain and accuracy, and today.accuracy is missing",
            "the gain alone, or both accuracies",
            f"take {key}.accuracy out, or add today.accuracy",
        )
    # The two extremes: every other sum is between them. The interval of a count has no hard ends.
    if case.today.counted is not None and today is not None:
        today = Share.exactly(today.typical)
    if gain is not None and today is not None and not (today.low + gain.low >= 0 and today.high + gain.high <= 1):
        yield Contradiction(
            f"today.accuracy {today.low:g} to {today.high:g} with {key}.gain {gain.low:g} to {gain.high:g} leaves 0..1",
            "an accuracy between 0 and 1 at both ends",
            f"narrow {key}.gain",
        )


def _tokens(case: Case, measured: MeasuredGains | None) -> Iterator[Contradiction]:
    tuned, room = case.tuned, case.calls.input_tokens
    if tuned.saved_prompt_tokens is not None and tuned.input_tokens is not None:
        yield Contradiction(
            "tuned has saved_prompt_tokens and input_tokens", "one of them", "leave the one that you know"
        )
    saved = tuned.saved_prompt_tokens
    # The worst case: most saved on the shortest call, which would leave fewer than no tokens.
    if saved is not None and saved.high > room.low:
        yield Contradiction(
            f"tuned.saved_prompt_tokens up to {saved.high:,g}, and a call has {room.low:,g} tokens in at the least",
            "fewer tokens saved than a call has",
            "correct tuned.saved_prompt_tokens or calls.input_tokens",
        )
    # With few-shot as today's way, tuning saves the examples of the prompt: by default as many tokens as were
    # evaluated.
    shown = measured.shot_tokens if measured is not None and case.verdict.today == "few_shot" else None
    if shown is not None and saved is None and tuned.input_tokens is None and shown > room.low:
        yield Contradiction(
            f"the examples in the prompt have {shown:,.0f} tokens in the evaluation, "
            f"calls.input_tokens is {room.low:,g}",
            "tokens of a call that include the examples",
            "correct calls.input_tokens, or set tuned.saved_prompt_tokens",
        )
    for key, way in _alternatives(case):
        if way.extra_prompt_tokens is not None and way.input_tokens is not None:
            yield Contradiction(f"{key} has extra_prompt_tokens and input_tokens", "one of them", "leave one of them")


def _training(case: Case) -> Iterator[Contradiction]:
    training, upkeep = case.training, case.upkeep
    # A sum that is known replaces the calculation from devices and hours as a whole.
    parts = [name for name in ("device", "hours", "price_per_hour", "market") if getattr(training, name) is not None]
    if training.cost is not None and parts:
        yield Contradiction(
            f"training has cost and {', '.join(parts)}", "one sum, or devices and hours", "leave the one that you know"
        )
    elif training.cost is None and training.hours is None:
        yield Contradiction(
            "training says neither cost nor hours",
            "cost, or hours with a device or its price_per_hour",
            "write for example training: {device: a100-80g, num_devices: 4, hours: 24}",
        )
    elif training.cost is None:
        yield from _priced("training", training)
    if upkeep.retrain_every_months is None and upkeep.work_hours_per_retraining.high > 0:
        yield Contradiction(
            "upkeep.work_hours_per_retraining is given and retrain_every_months is not",
            "both, or neither",
            "say how often it is trained again",
        )


def _priced(key: str, devices: object) -> Iterator[Contradiction]:
    device, price, market = (getattr(devices, name) for name in ("device", "price_per_hour", "market"))
    if device is None and price is None:
        yield Contradiction(
            f"{key} has neither device nor price_per_hour", "one of them", "name a device of the table, or its price"
        )
    # The market picks a column of the price table, which a custom price replaces.
    if price is not None and market is not None:
        yield Contradiction(
            f"{key} has price_per_hour and market {market}, which then changes nothing",
            "market only where the price is taken from the table",
            f"take {key}.market out, or {key}.price_per_hour",
        )


def _all_ways(case: Case) -> Iterator[tuple[str, Way]]:
    yield "today", case.today
    yield "tuned", case.tuned
    yield from _alternatives(case)


def _alternatives(case: Case) -> Iterator[tuple[str, Alternative]]:
    for name in ALTERNATIVES:
        way = getattr(case.alternatives, name)
        if way is not None:
            yield f"alternatives.{name}", way


def _given(way: Way) -> list[str]:
    return [name for name in _SERVED if getattr(way, name) is not None]


def _tokens_of(way: Way) -> list[str]:
    names: tuple[str, ...] = ("input_tokens", "output_tokens") if isinstance(way, Changed) else ()
    names += ("saved_prompt_tokens",) if isinstance(way, Tuned) else ()
    names += ("extra_prompt_tokens",) if isinstance(way, Alternative) else ()
    return [name for name in names if getattr(way, name) is not None]


def _is_measured(key: str, measured: MeasuredGains) -> bool:
    return key.endswith("few_shot") and measured.over_few_shot is not None

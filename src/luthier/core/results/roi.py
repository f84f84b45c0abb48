"""Is fine-tuning worth it? The case as a person states it: every figure a number, or low, typical and high.

Money is in the case's own currency, and never in another. Shares and accuracies are fractions, 0.62 for 62%.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from luthier.core.frozen_model import FrozenModel
from luthier.core.results.cost import Market

AlternativeName = Literal["better_prompt", "few_shot", "bigger_model", "without_model"]
ALTERNATIVES: Final[tuple[AlternativeName, ...]] = get_args(AlternativeName)


class Range(FrozenModel):
    """A figure that is known only so well. One number represents all three: it is taken to be exact.

    Attributes:
        low: the least that it may be.
        typical: the most likely value.
        high: the most that it may be.
    """

    low: float
    typical: float
    high: float

    least: ClassVar[float] = -math.inf
    most: ClassVar[float] = math.inf
    may_be_least: ClassVar[bool] = True
    form: ClassVar[str] = "a number, or low, typical and high"

    @classmethod
    def exactly(cls, value: float) -> Self:
        """A figure without doubt."""
        return cls(low=value, typical=value, high=value)

    @property
    def is_exact(self) -> bool:
        """Whether there is no doubt about it."""
        return self.low == self.high

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, given: Any) -> Any:
        # Before validation: a plain number is written as a range without width. bool is an int, and is refused.
        if isinstance(given, cls | dict):
            return given
        if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
            raise PydanticCustomError("range", "{form}", {"form": cls.form})
        return {"low": float(given), "typical": float(given), "high": float(given)}

    @model_validator(mode="after")
    def _in_order_and_bounds(self) -> Self:
        if not self.low <= self.typical <= self.high:
            raise PydanticCustomError("order", "low <= typical <= high", {})
        # `least` itself is refused where something is divided by the figure.
        is_low = self.low < self.least or (self.low == self.least and not self.may_be_least)
        if is_low or self.high > self.most:
            raise PydanticCustomError("bounds", "{bounds}", {"bounds": self._bounds()})
        return self

    @classmethod
    def _bounds(cls) -> str:
        least = "" if math.isinf(cls.least) else f"at least {cls.least:g}" if cls.may_be_least else "above 0"
        most = "" if math.isinf(cls.most) else f"at most {cls.most:g}"
        return f"a number {' and '.join(filter(None, (least, most)))}"


class Amount(Range):
    """A count, hours or tokens: 0 or more, up to a million million."""

    least: ClassVar[float] = 0.0
    most: ClassVar[float] = 1e12


class Positive(Amount):
    """As an amount, but never 0: something is divided by it."""

    may_be_least: ClassVar[bool] = False


class Money(Amount):
    """An amount in the case's currency."""


class Share(Range):
    """A fraction, 0 to 1."""

    least: ClassVar[float] = 0.0
    most: ClassVar[float] = 1.0


class Gain(Range):
    """A difference of two fractions, -1 to 1."""

    least: ClassVar[float] = -1.0
    most: ClassVar[float] = 1.0


class Hosted(FrozenModel):
    """Served by somebody else, who is paid by the token.

    Attributes:
        input_price_per_million_tokens: price of prompts.
        output_price_per_million_tokens: price of answers.
    """

    input_price_per_million_tokens: Money = Field(title="price of a million tokens in")
    output_price_per_million_tokens: Money = Field(title="price of a million tokens out")


class SelfServed(FrozenModel):
    """Served by oneself on rented or own devices.

    Attributes:
        device: the name of the device; None where the price is given.
        num_devices: how many.
        market: how they are rented; None takes the default.
        price_per_hour: of one device; None takes it from the table of prices.
        hours_per_month: how long they run regardless of traffic (730: always on); where the calls need longer, that
            counts. Rates are those of all devices together, under the load that they will have.
        input_tokens_per_second: tokens of prompts that all devices together read, under the expected load.
        output_tokens_per_second: tokens of answers that all devices together write, under the expected load.
    """

    device: str | None = None
    num_devices: Annotated[int, Field(ge=1, le=10_000)] = 1
    market: Market | None = None
    price_per_hour: Money | None = Field(default=None, title="price of a serving device an hour")
    hours_per_month: Amount = Field(title="hours a month that serving devices run")
    input_tokens_per_second: Positive = Field(title="tokens a second that serving reads")
    output_tokens_per_second: Positive = Field(title="tokens a second that serving writes")


class Way(FrozenModel):
    """How calls are answered, and what a call costs that way; at most one of the three is given.

    Attributes:
        hosted: by somebody who is paid by the token.
        self_served: on own or rented devices.
        cost_per_call: a known cost of a call.
        accuracy: the fraction of answers that are correct.
    """

    hosted: Hosted | None = None
    self_served: SelfServed | None = None
    cost_per_call: Money | None = Field(default=None, title="cost of a call")
    accuracy: Share | None = Field(default=None, title="accuracy")


class Counted(FrozenModel):
    """Answers that somebody has looked at. The share of correct ones has an interval by their number (Wilson's).

    Attributes:
        num_correct: of these the correct ones.
        num_answers: how many were looked at.
    """

    num_correct: Annotated[int, Field(ge=0, le=10**12)]
    num_answers: Annotated[int, Field(ge=1, le=10**12)]

    @model_validator(mode="after")
    def _no_more_than_all(self) -> Self:
        if self.num_correct > self.num_answers:
            raise PydanticCustomError("count", "num_correct at most num_answers", {})
        return self


class Today(Way):
    """What is done now. All else is counted against it.

    Attributes:
        counted: where the accuracy is from, in its place: correct answers among those that were looked at.
    """

    counted: Counted | None = None


class Changed(Way):
    """Another way than today's; where it does not say how it is served, it is served like today's.

    Attributes:
        gain: its accuracy less today's.
        input_tokens: tokens of a prompt; None leaves them as today.
        output_tokens: tokens of an answer; None leaves them as today.
    """

    gain: Gain | None = Field(default=None, title="accuracy gained")
    input_tokens: Amount | None = Field(default=None, title="tokens in a call")
    output_tokens: Amount | None = Field(default=None, title="tokens out a call")


class Alone(FrozenModel):
    """What the tuned model answers without a person. The rest is answered as today.

    Attributes:
        share: of all calls.
        accuracy: of the answers that it gives alone.
    """

    share: Share = Field(title="share answered alone")
    accuracy: Share = Field(title="accuracy of what is answered alone")


class Tuned(Changed):
    """The tuned model.

    Attributes:
        saved_prompt_tokens: what a prompt is shorter by, since it needs no examples any more.
        alone: where it answers a part of the calls alone, in place of a gain over all of them.
    """

    saved_prompt_tokens: Amount | None = Field(default=None, title="prompt tokens saved a call")
    alone: Alone | None = None


class Alternative(Changed):
    """Something plainer than training. Hours and cost are those of setting it up; hours cost the rate of people.

    Attributes:
        extra_prompt_tokens: tokens that a prompt becomes longer by.
        work_hours: hours of people to set it up.
        cost: further cost of setting it up.
        cost_per_month: further cost of running it.
    """

    extra_prompt_tokens: Amount | None = Field(default=None, title="prompt tokens added a call")
    work_hours: Amount = Field(default=Amount.exactly(0), title="hours of work")
    cost: Money = Field(default=Money.exactly(0), title="cost of setting up")
    cost_per_month: Money = Field(default=Money.exactly(0), title="further cost a month")


class BaselineCosts(FrozenModel):
    """What it costs to answer with a measured baseline without a language model. A CPU answers, and no token is paid.

    Attributes:
        cost_per_call: of an answer.
        work_hours: hours of people to put it into use, in addition to those for its rows.
        cost_per_month: further cost of running it.
    """

    cost_per_call: Money = Field(default=Money.exactly(0), title="cost of a call")
    work_hours: Amount = Field(default=Amount.exactly(0), title="hours of work")
    cost_per_month: Money = Field(default=Money.exactly(0), title="further cost a month")


class Calls(FrozenModel):
    """How often the model is called, and what an answer is worth.

    Attributes:
        per_month: calls a month.
        input_tokens: tokens of a prompt today.
        output_tokens: tokens of an answer today.
        value_of_one_more_correct: value of one more correct answer.
    """

    per_month: Amount = Field(title="calls a month")
    input_tokens: Amount = Field(title="tokens in a call today")
    output_tokens: Amount = Field(title="tokens out a call today")
    value_of_one_more_correct: Money = Field(title="value of one more correct answer")


class People(FrozenModel):
    """Hours of people until the model is ready. Each must be given, if only as 0: they are easily forgotten.

    Attributes:
        rate_per_hour: cost of an hour.
        preparation_hours: preparing data.
        annotation_hours: annotating rows.
        review_hours: reviewing rows.
    """

    rate_per_hour: Money = Field(title="rate of people an hour")
    preparation_hours: Amount = Field(title="hours of preparing data")
    annotation_hours: Amount = Field(title="hours of annotating")
    review_hours: Amount = Field(title="hours of reviewing")


class TrainingCost(FrozenModel):
    """What training costs: one sum, or devices and hours.

    Attributes:
        cost: the sum; None where devices and hours are given.
        device: the name of the device.
        num_devices: how many.
        market: how they are rented.
        hours: of one training.
        price_per_hour: of one device; None takes it from the table of prices.
        num_trials: how often it is done until it is right.
    """

    cost: Money | None = Field(default=None, title="cost of training")
    device: str | None = None
    num_devices: Annotated[int, Field(ge=1, le=100_000)] = 1
    market: Market | None = None
    hours: Amount | None = Field(default=None, title="hours of one training")
    price_per_hour: Money | None = Field(default=None, title="price of a training device an hour")
    num_trials: Positive = Field(default=Positive.exactly(1), title="trainings until it is right")


class EvaluationCost(FrozenModel):
    """What judging costs, the first time and after each retraining.

    Attributes:
        hours: hours of people.
        cost: further cost.
    """

    hours: Amount = Field(default=Amount.exactly(0), title="hours of evaluating")
    cost: Money = Field(default=Money.exactly(0), title="cost of evaluating")


class Upkeep(FrozenModel):
    """What the tuned model costs once it is in use.

    Attributes:
        retrain_every_months: months between two retrainings; None for never.
        work_hours_per_retraining: hours of people.
        review_hours_per_month: hours of people.
        cost_per_month: further cost.
    """

    retrain_every_months: Positive | None = Field(default=None, title="months between retrainings")
    work_hours_per_retraining: Amount = Field(default=Amount.exactly(0), title="hours of work a retraining")
    review_hours_per_month: Amount = Field(default=Amount.exactly(0), title="hours of reviewing a month")
    cost_per_month: Money = Field(default=Money.exactly(0), title="further upkeep a month")


class Alternatives(FrozenModel):
    """The simpler ways that are considered. Doing nothing is always among them.

    Attributes:
        better_prompt: a better prompt for the model of today.
        few_shot: examples in the prompt.
        bigger_model: a larger model.
        without_model: no language model at all: rules, a search, a table of counts.
        baselines: costs of the baselines that an evaluation has measured; None where they are 0.
    """

    better_prompt: Alternative | None = None
    few_shot: Alternative | None = None
    bigger_model: Alternative | None = None
    without_model: Alternative | None = None
    baselines: BaselineCosts | None = None


class FromVerdict(FrozenModel):
    """How an evaluation is read, where gains are measured instead of assumed.

    Attributes:
        metric: None, the one that its verdict rests on.
        correct_per_point: how many more answers are correct, as a fraction, where the metric rises by 1; needed where
            the metric is not a share of correct answers.
        today: today's way: `base`, `few_shot`, the name of any other evaluated system, or `given`: the case says how
            accurate it is.
        alone_at: the accuracy from which on the tuned model, and baselines with probabilities, answer alone; the rest
            is answered as today. None: they answer everything.
    """

    metric: str | None = None
    correct_per_point: Amount | None = Field(default=None, title="correct answers a point of the metric")
    today: Annotated[
        str, Field(min_length=1, description="base, few_shot, given, or the name of a system of the evaluation")
    ] = "base"
    alone_at: Annotated[float, Field(gt=0, lt=1, description="a fraction between 0 and 1, such as 0.95")] | None = None


class Case(FrozenModel):
    """One question: is it worth it here? docs/roi.md explains every key.

    Attributes:
        name: what it is called.
        currency: three capital letters, such as USD.
        currency_per_usd: what a dollar costs, where prices of the table are used in another currency.
        horizon_months: months that are counted.
        months_until_launch: months before the model is in use.
        budget: the most that may be spent before the model is in use.
        calls: how often the model is called.
        today: what is done now.
        tuned: the tuned model.
        people: hours of people until the model is ready.
        training: cost of training.
        evaluation: cost of judging.
        upkeep: cost of the tuned model in use.
        alternatives: plainer ways.
        verdict: how an evaluation is read, where gains are measured.
        seed: of the random draws.
    """

    name: str
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$", description="three capital letters, such as USD")]
    currency_per_usd: Positive | None = Field(default=None, title="currency a US dollar")
    horizon_months: Annotated[int, Field(ge=1, le=120)] = 12
    months_until_launch: Amount = Field(default=Amount.exactly(0), title="months until it is in use")
    budget: Money | None = Field(default=None, title="budget")
    calls: Calls
    today: Today
    tuned: Tuned
    people: People
    training: TrainingCost
    evaluation: EvaluationCost = EvaluationCost()
    upkeep: Upkeep = Upkeep()
    alternatives: Alternatives = Alternatives()
    verdict: FromVerdict = FromVerdict()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

"""How a result is evaluated: what a recipe asks for and what a plan decides, with the bar, prompts and thinking.

Metrics, rows, ways to prompt the base model, and what has to be reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from luthier.core.frozen_model import FrozenModel
from luthier.core.registry import METRICS

MetricName = Annotated[str, AfterValidator(METRICS.validated), Field(json_schema_extra=METRICS.add_names)]
Switch = Literal["auto"] | bool
SHARES_OF_CORRECT: Final = ("exact_match", "exact_match_ignoring_case", "label_accuracy")
"""The metrics that are the share of rows with a correct answer."""


_COSTS: Final = ("cost_of_an_error", "cost_of_an_answer")


def _by_costs(given: Mapping[str, Any]) -> dict[str, Any]:
    """The accuracy from which on an answer by the model costs no more than one by a person, as a value.

    With accuracy p the model's errors cost (1 - p) * cost_of_an_error an answer; a person costs cost_of_an_answer, and
    is taken to be right.

    Raises:
        ValueError: one of the two costs is missing or no positive number, an answer costs as much as an error, or
            the metric is no share of right answers.
    """
    rest = {key: value for key, value in given.items() if key not in _COSTS}
    costs = [given.get(name) for name in _COSTS]
    if any(isinstance(one, bool) or not isinstance(one, int | float) or not 0 < one < math.inf for one in costs):
        raise ValueError("both cost_of_an_error and cost_of_an_answer, as amounts above 0")
    error, answer = (float(one) for one in costs if one is not None)
    if answer >= error:
        raise ValueError("cost_of_an_answer below cost_of_an_error: otherwise an error costs no more than a check")
    if rest.keys() & {"value", "agreement"}:
        raise ValueError("costs without value and agreement: the value follows from the costs")
    metric = rest.get("metric") or "exact_match"
    if metric not in SHARES_OF_CORRECT:
        raise ValueError(f"a metric that is a share of right answers: {', '.join(SHARES_OF_CORRECT)}")
    # Six digits: 1 - 2 / 20 is 0.9 to a reader, and not a float beside it.
    return {**rest, "metric": metric, "value": round(1 - answer / error, 6)}


class GoodEnoughRecipe(FrozenModel):
    """What the tuned model has to reach to be good enough; a number alone, `good_enough: 0.9`, is the value.

    `{cost_of_an_error: 20, cost_of_an_answer: 2}` is the value 0.9: from there on, its errors cost less than people.

    Attributes:
        metric: one that is measured, such as `label_accuracy`; None: the one that the verdict rests on.
        value: the required figure, in the metric's unit.
        agreement: in place of it, the column of the held-out rows with a second person's answers: the model has to be
            right as often as these agree with the rows' own answers.
    """

    metric: str | None = None
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    agreement: Annotated[str, Field(min_length=1)] | None = None

    @property
    def wanted(self) -> str:
        """`0.9`, or `the agreement of two people (column second_label)`."""
        if self.value is not None:
            return f"{self.value:g}"
        return f"the agreement of two people (column {self.agreement})"

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        # bool is a subclass of int: `good_enough: true` must stay an error.
        if isinstance(given, int | float) and not isinstance(given, bool):
            return {"value": given}
        return _by_costs(given) if isinstance(given, Mapping) and given.keys() & {*_COSTS} else given

    @model_validator(mode="after")
    def _one_of_two(self) -> GoodEnoughRecipe:
        if (self.value is None) == (self.agreement is None):
            raise ValueError("either a value, or agreement: the column with a second person's answers")
        return self


class OptimisedPromptRecipe(FrozenModel):
    """A search for the base model's best prompt; a number alone, `optimised_prompt: 50000`, is its budget.

    Attributes:
        budget_tokens: what the search reads and writes at most, the tokens of a reflection model included; 0: no
            search.
        reflection_model: a base model, a run, or `http(s)://HOST/v1#MODEL`, that writes new instructions from mistakes
            on training rows; None: instructions are only chosen among known wordings.
    """

    budget_tokens: Annotated[int, Field(ge=0)]
    reflection_model: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_number(cls, given: Any) -> Any:
        return {"budget_tokens": given} if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def _has_a_budget(self) -> OptimisedPromptRecipe:
        if self.reflection_model is not None and not self.budget_tokens:
            raise ValueError("a reflection_model, and budget_tokens: 0, which is no search; give it a budget")
        return self


class EvaluationRecipe(FrozenModel):
    """How the result is evaluated on the held-out rows.

    Attributes:
        metrics: names of metrics; a fixed rule chooses the one that the verdict is about, from the rows.
        few_shot: examples in the prompt of the base model with examples; 0: it is not evaluated, nor are its variants.
        few_shot_draws: draws of these examples that its figures are means over.
        few_shot_nearest: whether the base is also evaluated with the training rows that are nearest to each prompt.
        instruction: whether the base is also evaluated with an instruction that is derived from the training rows.
        optimised_prompt: a search for its best prompt, on rows that are not evaluated.
        max_new_tokens: of an answer.
        max_thinking_tokens: of a thought before it, in addition to these; 0: both share them.
        max_samples: judge only the first N by stable hash.
        good_enough: what the tuned model has to reach; None: nothing.
        reference_run: the id of an earlier run, such as today's model, that is evaluated next to the tuned model.
        sample_prompts: how many validation rows are answered before the first step and at each checkpoint, to be read
            beside each other; 0: none. It takes time and changes nothing that is trained.
    """

    metrics: tuple[MetricName, ...] | None = None
    few_shot: Annotated[int, Field(ge=0, le=64)] | None = None
    few_shot_draws: Annotated[int, Field(ge=1, le=16)] | None = None
    few_shot_nearest: Switch | None = None
    instruction: Switch | None = None
    optimised_prompt: OptimisedPromptRecipe | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    max_thinking_tokens: Annotated[int, Field(ge=0)] | None = None
    max_samples: Annotated[int, Field(ge=1)] | None = None
    good_enough: GoodEnoughRecipe | None = None
    reference_run: str | None = None
    sample_prompts: Annotated[int, Field(ge=0, le=20)] | None = None

    def without_server(self) -> EvaluationRecipe:
        """The same without a reflection model behind a server: for rows without consent to send them there."""
        search = self.optimised_prompt
        if search is None or "://" not in (search.reflection_model or ""):
            return self
        return self.model_copy(update={"optimised_prompt": search.model_copy(update={"reflection_model": None})})

    def for_other_rows(self) -> EvaluationRecipe:
        """The same for rows that have come since: no server reads them, and no second person has answered them."""
        found = self.without_server()
        return found.model_copy(update={"good_enough": None}) if self.second_answers else found

    @property
    def second_answers(self) -> str:
        """The column with a second person's answers that its bar needs; empty for none."""
        return "" if self.good_enough is None else self.good_enough.agreement or ""


class Bar(FrozenModel):
    """What a model has to reach to be good enough.

    Attributes:
        metric: the metric's name.
        value: the required figure, in the metric's unit; with `agreement` the share of rows on which two
            people agree.
        agreement: the column of the rows that has a second person's answer; None where a figure is required.
        low: lower end of the 95% interval of that share; None without `agreement`.
        high: upper end.
        num_rows: rows with two answers; None without `agreement`.
    """

    metric: str
    value: float
    agreement: str | None = None
    low: float | None = None
    high: float | None = None
    num_rows: int | None = None


class ShownTurn(FrozenModel):
    """One turn of an example in a prompt."""

    role: str
    content: str


class Prompting(FrozenModel):
    """What a system's prompts add to the text of the rows: an instruction, and examples from the training rows.

    Attributes:
        kind: `few_shot`: examples, with or without an instruction; `instruction`: an instruction alone;
            `optimised_prompt`: what a search over prompts found best on rows that are not evaluated;
            `label_likelihood`: the rows' own text, and the answer is the label that the model finds likeliest, not what
            it writes.
        instruction: its text; empty for none.
        examples: which training rows are shown: the same ones before all prompts (`drawn`), the ones that are nearest
            to each prompt (`nearest`), or none.
        num_draws: draws of the examples that the figures are means over; intervals hold for other draws, too.
        extra_prompt_tokens: tokens that this adds to a prompt, on average over the evaluated rows (and the draws); of
            `label_likelihood` those of the prompt with each label, less the prompt once.
        search_tokens: tokens that the search for it has read and written; 0 without one.
        reflection_model: the model that wrote the instruction; empty where none did.
        turns: of `drawn` examples the turns of the draw that answers best, as they are before the row's own; empty for
            other examples, and in evaluations of before they were recorded.
    """

    kind: Literal["few_shot", "instruction", "optimised_prompt", "label_likelihood"]
    instruction: str = ""
    examples: Literal["none", "drawn", "nearest"] = "none"
    num_draws: int = 1
    extra_prompt_tokens: float = 0.0
    search_tokens: int = 0
    reflection_model: str = ""
    turns: tuple[ShownTurn, ...] = ()


class ThinkingFigures(FrozenModel):
    """How a system thought before its answers.

    Attributes:
        num_thoughts: answers with a thought.
        num_cut_off: of these the ones whose thought was cut off, so that there is no answer.
        mean_tokens: tokens of a thought on average; None where a server does not report it.
        least_tokens: tokens of the shortest thought; None likewise.
        most_tokens: tokens of the longest thought; None likewise.
    """

    num_thoughts: int
    num_cut_off: int
    mean_tokens: float | None = None
    least_tokens: int | None = None
    most_tokens: int | None = None


class EvaluationPlan(FrozenModel):
    """How the result is evaluated.

    Attributes:
        few_shot: examples in the prompt of the base with examples; 0: no such system.
        max_thinking_tokens: of a thought before an answer, in addition to `max_new_tokens`.
        good_enough: what the tuned model has to reach; None: no requirement.
        few_shot_draws: draws of the examples that the figures of the base with examples are means over.
        few_shot_nearest: whether the base is also evaluated with the training rows nearest to each prompt.
        instruction: an instruction that the base is also evaluated with; empty for none.
        instruction_with_examples: whether it is also evaluated with that and the nearest training rows together.
        optimised_prompt_tokens: of a search for the base's best prompt; 0: none.
        reflection_model: what writes new instructions for that search; None: nothing does.
        reflection_parameters: of that model where it is on this machine; 0: none, or behind a server.
        num_scored_labels: labels whose likelihoods are asked of models that write; 0: the answers are no labels, or
            asking would take too long.
        reference_run: an earlier run that is evaluated next to the tuned model; None: none.
        num_workers: processes that score rows and write answers side by side, each with one thread; 1: one process.
        sample_prompts: validation rows that are answered at each checkpoint; 0: none.
    """

    metrics: tuple[MetricName, ...]
    few_shot: int
    max_new_tokens: int
    max_samples: int
    max_thinking_tokens: int = 0
    good_enough: Bar | None = None
    few_shot_draws: int = 1
    few_shot_nearest: bool = False
    instruction: str = ""
    instruction_with_examples: bool = False
    optimised_prompt_tokens: int = 0
    reflection_model: str | None = None
    reflection_parameters: int = 0
    num_scored_labels: int = 0
    reference_run: str | None = None
    num_workers: int = 1
    sample_prompts: int = 0

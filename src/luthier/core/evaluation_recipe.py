"""The part of a recipe about judging: metrics, rows, ways to prompt the base model, and what has to be reached."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from luthier.core.frozen_model import FrozenModel
from luthier.core.registry import METRICS

MetricName = Annotated[str, AfterValidator(METRICS.validated), Field(json_schema_extra=METRICS.add_names)]
Switch = Literal["auto"] | bool


class GoodEnoughRecipe(FrozenModel):
    """What the tuned model has to reach to be good enough; a number alone, `good_enough: 0.9`, is the value.

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
    def _plain_number(cls, given: Any) -> Any:
        # bool is a subclass of int: `good_enough: true` must stay an error.
        return {"value": given} if isinstance(given, int | float) and not isinstance(given, bool) else given

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
        metrics: names of metrics, the deciding one first.
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

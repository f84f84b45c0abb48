"""Which ways to prompt the base model a run evaluates next to it, within a share of what the training takes.

The base with one draw of examples, with the nearest examples, and with an instruction that the rows lack are always
evaluated where examples are: without them "better than its base" says little. What comes on top of that is decided by a
budget: four draws (whose spread widens the interval), instruction and examples together, and a
search for the best prompt, in this order, each where it fits into what is left.

Costs are counted in trained tokens, so that a plan is the same on every run of the same rows: no measured time
plays a part. A token that is read costs a third of one that is trained (forward alone, against forward and twice that
backward), one that is written several: writing reads all weights for one token of each row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeVar

from luthier.core.defaults import NUM_DRAWS
from luthier.core.errors import RecipeError
from luthier.core.evaluation_plan import EvaluationRecipe
from luthier.core.plan import Plan, ValueSource
from luthier.ml.evaluation.few_shot import num_draws_of
from luthier.ml.evaluation.metrics.registry import needs_of

if TYPE_CHECKING:
    from luthier.ml.prompting.instructions import Instruction

BUDGET_SHARE: Final = 0.25
"""Of the trained tokens: what further ways to prompt may cost."""
READ_COST: Final = 1 / 3
WRITTEN_COST_CPU: Final = 4.0
"""A CPU was seen to write about a quarter of the tokens in a second that it trains on."""
WRITTEN_COST_GPU: Final = 20.0
"""An accelerator trains many tokens together, and writes one token of each row at a time."""
LEAST_DRAWS: Final = 3
"""Of two draws an interval is as wide as 12.7 standard errors: it says nothing."""
LEAST_SEARCH_TOKENS: Final = 40_000
MOST_SEARCH_TOKENS: Final = 200_000


def with_prompt_variants(
    plan: Plan, recipe: EvaluationRecipe, *, are_texts_judged: bool, num_shown: int, instruction: Instruction | None
) -> Plan:
    """The plan with the ways to prompt the base model, requested in the recipe or chosen by their cost.

    Args:
        plan: with everything else.
        recipe: the request.
        are_texts_judged: whether there are held-out rows with prompts and answers as text.
        num_shown: training rows that can be shown as examples.
        instruction: what the training rows lack; None where they hold an instruction.

    Raises:
        RecipeError: a way is requested, and nothing is compared as text.
    """
    if not are_texts_judged or "text" not in needs_of(plan.evaluation.metrics):
        _refuse_without_texts(recipe)
        return plan
    chosen = _Choice(plan, recipe)
    evaluation = plan.evaluation
    num = evaluation.few_shot
    changes: dict[str, int | bool | str | None] = {}
    if num:
        changes["few_shot_nearest"] = chosen.nearest()
        changes["few_shot_draws"] = chosen.draws(num, num_shown)
    changes |= chosen.instruction(instruction, num)
    changes["optimised_prompt_tokens"] = chosen.search(num)
    changes["reflection_model"] = chosen.reflection_model()
    found = evaluation.model_copy(update=changes)
    return plan.model_copy(update={"evaluation": found, "sources": in_order(plan.sources, chosen.sources)})


def _refuse_without_texts(recipe: EvaluationRecipe) -> None:
    is_searched = recipe.optimised_prompt is not None and recipe.optimised_prompt.budget_tokens > 0
    for name, is_asked in (("optimised_prompt", is_searched), ("instruction", recipe.instruction is True)):
        if is_asked:
            raise RecipeError(
                f"evaluation.{name} is set, and no answers are compared as text",
                expected="data.held_out with prompts and answers, and a metric of texts such as exact_match",
                do=f"add them, or remove evaluation.{name}",
            )


Value = TypeVar("Value")


class _Choice:
    """What is requested, what is left of the budget, and where each value comes from."""

    def __init__(self, plan: Plan, recipe: EvaluationRecipe) -> None:
        self._recipe, self._costs = recipe, _Costs(plan)
        # Variants take from it in the order of the module's docstring.
        self._left = BUDGET_SHARE * self._costs.trained
        self.sources: dict[str, ValueSource] = {}

    def nearest(self) -> bool:
        asked = self._recipe.few_shot_nearest
        if isinstance(asked, bool):
            return self._noted("few_shot_nearest", asked, "asked", "in the recipe")
        return self._noted("few_shot_nearest", True, "default", "examples near the question do better than drawn ones")

    def draws(self, num: int, num_shown: int) -> int:
        asked, there = self._recipe.few_shot_draws, num_draws_of(num_shown, num, NUM_DRAWS)
        if asked is not None:
            return self._noted("few_shot_draws", asked, "asked", "in the recipe")
        if there < LEAST_DRAWS:
            why = f"{num_shown:,} rows that can be shown hold fewer than {LEAST_DRAWS} draws without a common example"
            return self._noted("few_shot_draws", 1, "derived", why)
        # One draw is evaluated in any case. Its examples are a common prefix, which is computed once and not a row.
        cost = (there - 1) * self._costs.of_system(0.0)
        fits, why = self._fits(cost, f"{there - 1} further draws")
        return self._noted("few_shot_draws", there if fits else 1, "derived", why)

    def instruction(self, found: Instruction | None, num: int) -> dict[str, int | bool | str]:
        asked = self._recipe.instruction
        if asked is False:
            return {"instruction": self._noted("instruction", "", "asked", "in the recipe")}
        if found is None:
            return {"instruction": self._noted("instruction", "", "derived", "the training rows contain one")}
        if not num and (asked is not True or found.needs_examples):
            return {"instruction": self._noted("instruction", "", "derived", "no examples are requested")}
        self._noted("instruction", found.text, "derived", "the training rows hold none")
        if not num:
            return {"instruction": found.text}
        # Counted with its own examples for each row, as the nearest ones are: no prefix is computed once for all.
        fits, why = self._fits(self._costs.of_system(self._costs.shots), "instruction and examples together")
        self._noted("instruction_with_examples", fits, "derived", why)
        return {"instruction": found.text, "instruction_with_examples": fits}

    def search(self, num: int) -> int:
        asked = self._recipe.optimised_prompt
        if asked is not None:
            return self._noted("optimised_prompt_tokens", asked.budget_tokens, "asked", "in the recipe")
        # A search may use all that is left: nothing comes after it.
        tokens = min(MOST_SEARCH_TOKENS, int(self._left / self._costs.of_token)) if num else 0
        if tokens < LEAST_SEARCH_TOKENS:
            why = f"off: what is left of the budget holds {tokens:,} tokens of a search" if num else "off"
            return self._noted("optimised_prompt_tokens", 0, "derived", why)
        why = f"what is left of {BUDGET_SHARE:.0%} of the trained tokens holds a search"
        return self._noted("optimised_prompt_tokens", tokens, "derived", why)

    def reflection_model(self) -> str | None:
        asked = self._recipe.optimised_prompt
        if asked is None or asked.reflection_model is None:
            return self._noted("reflection_model", None, "default", "no model is named to write instructions")
        sent = "; this server is sent some training rows" if "://" in asked.reflection_model else ""
        return self._noted("reflection_model", asked.reflection_model, "asked", f"in the recipe{sent}")

    def _fits(self, cost: float, what: str) -> tuple[bool, str]:
        fits = cost <= self._left
        if fits:
            self._left -= cost
        share = f"{what} cost as much as {cost:,.0f} trained tokens"
        return fits, f"{share}, {'within' if fits else 'over what is left of'} {BUDGET_SHARE:.0%} of the training"

    def _noted(self, name: str, value: Value, source: Literal["asked", "default", "derived"], why: str) -> Value:
        self.sources[f"evaluation.{name}"] = ValueSource(source=source, why=why)
        return value


class _Costs:
    """What it takes to judge one more system, in trained tokens."""

    def __init__(self, plan: Plan) -> None:
        evaluation, held_out = plan.evaluation, plan.data.held_out
        assert held_out is not None
        count = max(1, held_out.num_examples)
        reference = held_out.num_trained_tokens / count
        limit = evaluation.max_new_tokens + evaluation.max_thinking_tokens
        # As the quote of a run does (inference_cost): between an answer as long as the references and the longest.
        self._written = (min(reference, limit) + limit) / 2
        # Tokens of the prompt alone: num_tokens also counts the reference answer.
        self._read = max(0.0, held_out.num_tokens / count - reference)
        self._num_rows = min(count, evaluation.max_samples)
        self._written_cost = WRITTEN_COST_CPU if plan.training.device == "cpu" else WRITTEN_COST_GPU
        self.shots = evaluation.few_shot * plan.data.train.mean_tokens
        self.trained = plan.training.num_steps * plan.training.global_batch_size * plan.data.train.mean_tokens

    def of_system(self, own_tokens: float) -> float:
        """Of a system; own_tokens: what is before each prompt, where no two rows share it."""
        return self._num_rows * (READ_COST * (self._read + own_tokens) + self._written_cost * self._written)

    @property
    def of_token(self) -> float:
        """Of a token of a search, read or written."""
        read = self._read + self.shots
        return (READ_COST * read + self._written_cost * self._written) / max(1.0, read + self._written)


def in_order(before: dict[str, ValueSource], added: dict[str, ValueSource]) -> dict[str, ValueSource]:
    """Sources with those that were added, behind the ones of their section."""
    section = next(iter(added), "").partition(".")[0]
    names = list(before)
    behind = max((place for place, name in enumerate(names) if name.startswith(f"{section}.")), default=len(names) - 1)
    order = [*names[: behind + 1], *(name for name in added if name not in before), *names[behind + 1 :]]
    both = before | added
    return {name: both[name] for name in order}

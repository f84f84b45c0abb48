"""The base model, prompted: with draws of examples, nearest examples, an instruction, and the best prompt of a search.

That is what a tuned model has to beat: what the base can do with the training rows in its prompt. Draws of examples are
evaluated as separate systems and reported as one, whose interval covers other draws.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import Example
from luthier.core.errors import OverlongError, RequestError
from luthier.core.evaluation_plan import EvaluationPlan
from luthier.core.text.counted import counted
from luthier.features.models.prompts import with_nearest
from luthier.features.models.resolve import Candidate
from luthier.features.recipes.checks import check_few_shot
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.evaluations.prompt_search import PromptSearch
    from luthier.ml.evaluation.compare import Judged, SystemUnderTest
    from luthier.ml.evaluation.metrics.protocol import MetricDefinition


@dataclass(frozen=True, slots=True)
class Prompted:
    """The ways to prompt a base model that are evaluated next to it.

    Attributes:
        base: the model.
        candidates: what is evaluated.
        draws: of these the draws that are one system, the first one first; empty where there is one draw or none.
        notes: what a reader should know of them.
        search: for one more; None without.
    """

    base: Candidate | None = None
    candidates: tuple[Candidate, ...] = ()
    draws: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    search: PromptSearch | None = None


NOT_PROMPTED: Final = Prompted()


def prompted(
    base: Candidate,
    pool: Sequence[Example],
    asked: EvaluationPlan,
    seed: int,
    *,
    held_out: Sequence[Example],
    validation: Sequence[Example] = (),
) -> Prompted:
    """The ways to prompt a base model in a plan.

    Args:
        base: the model without anything in its prompt.
        pool: the training rows.
        asked: which ways.
        seed: of the draws.
        held_out: all rows that may be evaluated: none of them is shown.
        validation: rows for a search over prompts; without any, some of the pool are reserved.

    Raises:
        RequestError: the pool holds too few rows that can be shown.
    """
    from luthier.ml.evaluation.few_shot import choose_draws

    found: list[Candidate] = []
    notes: list[str] = []
    num = asked.few_shot
    draws: tuple[tuple[Example, ...], ...] = ()
    if num:
        # Shots equal to a held-out row, or with its prompt, would give the answer away.
        draws = choose_draws(pool, num, seed, num_draws=asked.few_shot_draws, held_out=held_out)
        name = f"{base.name} + {num} example{'s' if num != 1 else ''}"
        for number, shots in enumerate(draws, start=1):
            own = name if number == 1 else f"{name}, draw {number}"
            # The first draw has the plain name, under which all of them are reported.
            found.append(replace(base, name=own, shots=shots, num_draws=len(draws)))
        if len(draws) > 1:
            notes.append(
                f"Figures of {name} are means over {counted(len(draws), 'draw')} of examples; the answers shown are of "
                "the first."
            )
        if len(draws) < asked.few_shot_draws:
            notes.append(
                f"{counted(asked.few_shot_draws, 'draw')} of {num} examples were requested; the training rows "
                f"that can be shown contain {len(draws)} without a common example."
            )
    beside = with_nearest(base, pool, num, held_out=held_out)
    if num and beside is None and (asked.few_shot_nearest or asked.instruction_with_examples):
        notes.append("No nearest examples were searched: the prompts of the training rows contain no words.")
    if asked.few_shot_nearest and beside is not None:
        found.append(beside)
    if asked.instruction:
        derived = replace(base, instruction=asked.instruction, name=f"{base.name} + instruction")
        notes.append(f'The training rows contain no instruction. The one that was tried: "{asked.instruction}"')
        if not _needs_examples(pool):
            found.append(derived)
        if asked.instruction_with_examples and beside is not None:
            name = beside.name.replace(base.name, derived.name, 1)
            found.append(replace(beside, name=name, instruction=asked.instruction))
    search = None
    if asked.optimised_prompt_tokens:
        from luthier.features.evaluations.prompt_search import not_asked, search_of

        # Both sides without held-out prompts: a search over these would fit the prompt to the test.
        search = search_of(not_asked(pool, held_out), asked, seed, not_asked(validation, held_out))
    return Prompted(base, tuple(found), tuple(found[: len(draws)]) if len(draws) > 1 else (), tuple(notes), search)


def _needs_examples(pool: Sequence[Example]) -> bool:
    from luthier.ml.prompting.instructions import derive_instruction

    found = derive_instruction(pool)
    return found is None or found.needs_examples


def prompts_that_fit(
    candidates: Sequence[Candidate], build: Callable[[Candidate], SystemUnderTest]
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """The candidates without those whose instruction makes a row longer than the context, and why these are left out.

    Examples are no danger: fewer of them are shown. A run that was trained for hours must not end for an instruction.

    Args:
        candidates: what is to be judged.
        build: makes a system of a candidate.
    """
    kept, left_out = list[Candidate](), list[str]()
    for one in candidates:
        try:
            if one.instruction:
                build(one)
        # Built for its check alone: the rows are tokenised with the instruction, and the longest one decides.
        except OverlongError as error:
            left_out.append(f"{one.name}: {error.came}")
        else:
            kept.append(one)
    return tuple(kept), tuple(left_out)


def as_systems(
    candidates: Sequence[Candidate], draws: Sequence[Candidate], build: Callable[[Candidate], SystemUnderTest]
) -> tuple[list[SystemUnderTest], list[str]]:
    """The candidates as systems, and the names of those that are draws of one system.

    All draws have as many examples as fit into the context with each of them.
    """
    systems = [build(one) for one in candidates]
    places = [place for place, one in enumerate(candidates) if any(one is draw for draw in draws)]
    # The smallest number decides, since draws have examples of different lengths.
    fit = min((systems[place].num_few_shot for place in places), default=0)
    for place in places:
        own = candidates[place]
        if systems[place].num_few_shot > fit:
            # A mean over draws of several sizes would be the figure of no prompt that one could use.
            systems[place] = build(replace(own, shots=own.shots[:fit], name=f"{own.name} ({fit} fit)"))
    return systems, [systems[place].name for place in places]


def draws_together(
    judged: Judged,
    draws: Sequence[str],
    metrics: Sequence[MetricDefinition],
    clusters: Sequence[Hashable] | None = None,
) -> Judged:
    """What was evaluated, with all draws of examples as one system, under the name of the first.

    Args:
        judged: with each draw as a system.
        draws: their names; what was evaluated stays as it is with fewer than two.
        metrics: of the evaluation.
        clusters: the group of each row; None where every row counts by itself.
    """
    if len(draws) < 2:
        return judged
    from luthier.ml.evaluation.one_system import as_one_system

    return as_one_system(judged, draws, metrics, seed=0, clusters=clusters, test="draws")


@dataclass(frozen=True, slots=True)
class AskedPrompts:
    """What an evaluation without a plan has to try.

    Attributes:
        few_shot: examples in a prompt; 0: none.
        draws: draws of these; None: four.
        nearest: whether the examples nearest to each row are tried; None: where examples are.
        instruction: whether an instruction that the rows lack is tried; None: where examples are.
        search_tokens: budget of a search for the best prompt; 0: none.
        reflection_model: what writes new instructions for that search; None: nothing does.
    """

    few_shot: int = 0
    draws: int | None = None
    nearest: bool | None = None
    instruction: bool | None = None
    search_tokens: int = 0
    reflection_model: str | None = None

    @property
    def any(self) -> bool:
        """Whether a model is prompted in any way."""
        return bool(self.few_shot or self.instruction or self.search_tokens)


NO_PROMPTS: Final = AskedPrompts()


def prompted_as_asked(
    base: Callable[[], Candidate], pool: Sequence[Example], asked: AskedPrompts, held_out: Sequence[Example]
) -> Prompted:
    """The ways to prompt a base model that an evaluation without a plan tries; none where none is requested.

    Args:
        base: finds the model without anything in its prompt.
        pool: rows to learn from, none of them evaluated.
        asked: which ways.
        held_out: the rows that are evaluated.

    Raises:
        RequestError: no such rows, too few that can be shown, or held-out rows without a prompt.
    """
    from luthier.core.defaults import NUM_DRAWS
    from luthier.ml.prompting.instructions import derive_instruction

    if not asked.any:
        return Prompted()
    if not pool:
        raise RequestError(
            "an instruction or an optimised prompt without rows to find it on",
            expected="rows that are not evaluated, or a run whose training rows are known",
            do="add --few-shot-from train.jsonl",
        )
    check_few_shot(asked.few_shot, pool, held_out)
    wanted = bool(asked.few_shot) if asked.instruction is None else asked.instruction
    derived = derive_instruction(pool) if wanted else None
    ways = EvaluationPlan(
        metrics=(),
        max_new_tokens=0,
        max_samples=0,
        few_shot=asked.few_shot,
        few_shot_draws=NUM_DRAWS if asked.draws is None else asked.draws,
        few_shot_nearest=asked.nearest is not False,
        instruction=derived.text if derived is not None else "",
        instruction_with_examples=derived is not None,
        optimised_prompt_tokens=asked.search_tokens,
        reflection_model=asked.reflection_model,
    )
    found = prompted(base(), pool, ways, 0, held_out=held_out)
    if found.search is not None:
        found = replace(found, search=replace(found.search, is_required=True))
    if asked.instruction and derived is None:
        note = "No instruction was derived: the rows contain one, or have no prompts with text answers."
        return replace(found, notes=(*found.notes, note))
    return found


def check_asked(context: Context, asked: AskedPrompts, few_shot_from: Path | None) -> None:
    """Check the request, before any row is read.

    Raises:
        RequestError: examples without rows to take them from, settings of examples without any, or a reflection model
            without a search.
        NotFoundError, ConflictError: no such reflection model.
    """
    if asked.reflection_model is not None:
        from luthier.features.generation.engines import check_writes

        if not asked.search_tokens:
            raise RequestError(
                f"--reflection-model {asked.reflection_model} without a search for a prompt",
                expected="--optimised-prompt TOKENS as well",
                do="add --optimised-prompt 50000",
            )
        check_writes(context, asked.reflection_model, "--reflection-model")
    if asked.few_shot and few_shot_from is None:
        raise RequestError(
            f"--few-shot {asked.few_shot} without rows to take them from",
            expected="--few-shot-from FILE with rows that are not held out",
            do="add --few-shot-from train.jsonl",
        )
    given = [name for name, value in (("draws of", asked.draws), ("nearest", asked.nearest)) if value]
    if given and not asked.few_shot:
        raise RequestError(
            f"{' and '.join(given)} few-shot examples requested, and no number of examples",
            expected="--few-shot N with --few-shot-draws and --few-shot-nearest",
            do="add --few-shot 4 --few-shot-from train.jsonl",
        )

"""The search for a base model's best prompt: among known wordings, then by a reflection model where one is named.

It uses rows that are not evaluated. The result is another candidate, evaluated once on the held-out rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from luthier.core.conversation import Conversation
from luthier.core.dataset import Example
from luthier.core.errors import LuthierError, OverlongError, RequestError
from luthier.core.evaluation_plan import EvaluationPlan, MetricName
from luthier.core.ids import sha256_document
from luthier.core.ports import Generation, Progress, Prompt
from luthier.core.text.counted import counted
from luthier.features.models.resolve import Candidate, TemplatedEngine, find_candidate, system_under_test
from luthier.features.recipes.checks import have_text_answers
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.generation.engines import EnginePool
    from luthier.ml.evaluation.metrics.protocol import MetricDefinition
    from luthier.ml.evaluation.systems import SystemUnderTest
    from luthier.ml.prompting.reflection import Instructed, Reflected, Reflector
    from luthier.ml.prompting.search import FoundPrompt

MAX_SEARCH_ROWS: Final = 64
"""The most rows of a search over prompts."""
MAX_EXAMPLES: Final = 16
MAX_FEEDBACK_ROWS: Final = 32
"""Training rows whose mistakes a reflection model learns from, at most."""
_DEFAULT_EXAMPLES: Final = 4
"""Examples of a searched prompt where no few-shot examples are requested."""
_LEAST_SEARCH_ROWS: Final = 4
_MESSAGE_TOKENS: Final = 64
"""What a chat template adds to one message, at most."""


@dataclass(frozen=True, slots=True)
class PromptSearch:
    """A search for the base's best prompt.

    Attributes:
        budget_tokens: that it may read and write.
        rows: those of the search, none of them evaluated or shown.
        pool: rows to show.
        num_examples: examples of a prompt.
        seed: of drawn examples.
        feedback: rows whose mistakes a reflection model learns from, neither shown nor asked otherwise.
        reflection_model: what writes new instructions; None: they are chosen among known wordings.
        instructions: wordings to try beside those that are derived from the rows.
        is_required: whether an evaluation is refused where no search fits; else a note says so, since a run that was
            trained for hours must not end for it.
    """

    budget_tokens: int
    rows: tuple[Example, ...]
    pool: tuple[Example, ...]
    num_examples: int
    seed: int
    feedback: tuple[Example, ...] = ()
    reflection_model: str | None = None
    instructions: tuple[str, ...] = ()
    is_required: bool = False


def search_of(pool: Sequence[Example], asked: EvaluationPlan, seed: int, validation: Sequence[Example]) -> PromptSearch:
    """The search of a plan.

    Args:
        pool: training rows that can be shown.
        asked: with the budget, and the reflection model if there is one.
        seed: of drawn examples.
        validation: rows of the search; without any, up to a third of the pool is reserved.
    """
    order = _by_content(validation or pool)
    # Without validation rows a third of the pool at most: the rest must still be enough to show.
    rows = tuple(order[: MAX_SEARCH_ROWS if validation else min(MAX_SEARCH_ROWS, len(pool) // 3)])
    # A row of the search, and one with its prompt, would show the answer.
    shown = not_asked(pool, rows)
    feedback: tuple[Example, ...] = ()
    if asked.reflection_model is not None:
        # A quarter at most: rows whose mistakes are learned from are lost as examples.
        num = min(MAX_FEEDBACK_ROWS, max(_LEAST_SEARCH_ROWS, len(shown) // 4))
        feedback = tuple(_by_content(shown)[:num])
        shown = not_asked(shown, feedback)
    return PromptSearch(
        budget_tokens=asked.optimised_prompt_tokens,
        rows=rows,
        pool=shown,
        num_examples=min(asked.few_shot or _DEFAULT_EXAMPLES, MAX_EXAMPLES),
        seed=seed,
        feedback=feedback,
        reflection_model=asked.reflection_model,
    )


def not_asked(rows: Sequence[Example], held_out: Sequence[Example]) -> tuple[Example, ...]:
    """The rows that can be shown, each once: with a text answer, and a prompt that no held-out row has."""
    from luthier.ml.evaluation.few_shot import usable_shots

    return tuple(usable_shots([row for row in rows if row.conversation is not None], held_out).values())


def _by_content(rows: Sequence[Example]) -> list[Example]:
    """In an order that does not depend on that of the rows."""
    return sorted(rows, key=lambda one: sha256_document(["search", one.model_dump(exclude={"id"})]))


def variants(base: Candidate, search: PromptSearch) -> list[Candidate]:
    """The prompts that a search tries, the likelier ones first: each instruction with each choice of examples."""
    from luthier.ml.baselines.nearest import have_words
    from luthier.ml.baselines.rows import task_rows
    from luthier.ml.evaluation.few_shot import choose_draws, num_usable
    from luthier.ml.prompting.instructions import instruction_for

    num = min(search.num_examples, num_usable(search.pool, held_out=search.rows))
    derived = instruction_for(task_rows([*search.pool, *search.rows]))
    choices: list[Candidate] = [base]
    if num:
        nearest = replace(base, nearest_from=search.pool, num_nearest=num if have_words(search.pool) else 0)
        # Two draws: the second one shows whether the first was a lucky one.
        drawn = choose_draws(search.pool, num, search.seed, num_draws=2, held_out=search.rows)
        choices += [*([nearest] if nearest.num_nearest else ()), *(replace(base, shots=shots) for shots in drawn)]
        if nearest.num_nearest and 2 * num <= min(MAX_EXAMPLES, len(search.pool)):
            choices.append(replace(nearest, num_nearest=2 * num))
    given = ("", *search.instructions)
    instructions = tuple(dict.fromkeys((*given, *derived.variants)))
    # Diagonals of the table of choices and instructions: both begin with what is likelier to be good.
    places = sorted(
        ((c, i) for c in range(len(choices)) for i in range(len(instructions))), key=lambda at: (sum(at), at)
    )
    return [
        replace(choices[c], instruction=instructions[i], name=f"{base.name}, prompt {number}")
        for number, (c, i) in enumerate(places, start=1)
        # An instruction such as "answer as in these examples" is no prompt without examples.
        if c or i < len(given) or not derived.needs_examples
    ]


def found_prompt(
    base: Candidate,
    search: PromptSearch,
    engine_of: Callable[[Candidate], TemplatedEngine],
    metrics: Sequence[MetricName],
    limits: tuple[int | None, int | None],
    reflector_of: Callable[[str], Reflector],
    *,
    progress: Progress,
    canonical: Callable[[str], str] | None = None,
) -> tuple[Candidate | None, tuple[str, ...]]:
    """Search for the base's best prompt.

    Args:
        base: the model with nothing in its prompt.
        search: the request.
        engine_of: gives the engine of the base.
        metrics: what is measured; the search goes by the one that would decide the verdict.
        limits: tokens of an answer, and of a thought before it.
        reflector_of: opens the reflection model.
        progress: shows the answers.
        canonical: as of `SystemUnderTest`: what is searched for is compared as it will be evaluated.

    Returns:
        The candidate to be evaluated, and sentences on the search. None where no prompt does better than the rows' own
        text, and where the rows or the metrics have no place for a search.

    Raises:
        RequestError: the search is required, and its budget does not hold four rows of two prompts.
        OverlongError: the search is required, and a row that it would ask is over the context.
        LuthierError: the search is required, and its reflection model gives no answer.
    """
    from luthier.ml.evaluation.metrics.registry import as_definitions
    from luthier.ml.evaluation.systems import Titled
    from luthier.ml.evaluation.verdict import primary_metric

    of_texts = {one.name: one for one in as_definitions(metrics) if one.needs == "text"}
    if not of_texts:
        return None, ("No prompt was searched for: none of the metrics compares texts.",)
    if len(search.rows) < _LEAST_SEARCH_ROWS or not have_text_answers(search.rows):
        num = len(search.rows)
        return None, (f"No prompt was searched for: {counted(num, 'row is', 'rows are')} usable for it.",)
    metric = of_texts[primary_metric(list(of_texts), [row.reference for row in search.rows])]
    engine = engine_of(base)

    def build(candidate: Candidate, rows: Sequence[Example]) -> SystemUnderTest:
        found = system_under_test(candidate, engine, rows, limits[0], max_thinking_tokens=limits[1])
        return replace(found, canonical=canonical)

    work = _Search(base, search, build, metric, Titled(progress, "Search for a prompt"))
    try:
        best, found = work.among_known()
    except (OverlongError, RequestError) as error:
        if search.is_required:
            raise
        return None, (f"No prompt was searched for: {error.came}; expected {error.expected}.",)
    if search.reflection_model is None:
        return work.outcome(best, found)
    reflected, of_reflection = work.reflect(search.reflection_model, reflector_of, best, found)
    candidate, notes = work.outcome(best, found, reflected)
    return candidate, (*notes, *of_reflection)


@dataclass(frozen=True, slots=True)
class _Search:
    """A running search.

    Attributes:
        base: the model with nothing in its prompt.
        search: the request.
        build: a candidate with rows, as a system.
        metric: that decides.
        progress: shows the answers.
    """

    base: Candidate
    search: PromptSearch
    build: Callable[[Candidate, Sequence[Example]], SystemUnderTest]
    metric: MetricDefinition
    progress: Progress

    def among_known(self) -> tuple[Candidate, FoundPrompt]:
        """The best of the known wordings and choices of examples with which all rows fit into the context.

        Raises:
            RequestError: the budget does not hold four rows of two prompts.
            OverlongError: a row is over the context by itself.
        """
        from luthier.ml.prompting.reflection import REFLECTION_SHARE
        from luthier.ml.prompting.search import least_budget, search_prompts

        search = self.search
        plain, *others = variants(self.base, search)
        built = [(plain, self.build(plain, search.rows))]
        for one in others:
            with suppress(OverlongError):
                built.append((one, self.build(one, search.rows)))
        # Where not all examples fit into the context, the shorter prompts of the list represent it.
        fitting = [(one, system) for one, system in built if system.num_few_shot == (one.num_nearest or len(one.shots))]
        systems = [system for _, system in fitting]
        budget = search.budget_tokens
        if search.reflection_model is not None:
            # The reflection model gets its share; the search keeps at least what it needs to compare two prompts.
            budget = min(budget, max(least_budget(systems), int(budget * (1 - REFLECTION_SHARE))))
        found = search_prompts(systems, self.metric, budget_tokens=budget, progress=self.progress)
        return fitting[found.place][0], found

    def reflect(
        self, name: str, reflector_of: Callable[[str], Reflector], best: Candidate, found: FoundPrompt
    ) -> tuple[Reflected | None, tuple[str, ...]]:
        """The outcome of the reflection, None where there was none, and sentences on it.

        Raises:
            LuthierError: the search is required, and the reflection model gives no answer.
        """
        from luthier.ml.prompting.reflection import reflect

        search = self.search

        def instructed(instruction: str) -> Instructed | None:
            return self._instructed(replace(best, instruction=instruction))

        if len(search.feedback) < _LEAST_SEARCH_ROWS:
            num = len(search.feedback)
            return None, (
                f"{name} wrote no instruction: {counted(num, 'training row is', 'training rows are')} left to learn "
                "from.",
            )
        start = instructed(best.instruction)
        if start is None:
            return None, (f"{name} wrote no instruction: training rows do not fit into the context of the base.",)
        try:
            done = reflect(
                start,
                instructed,
                reflector_of(name),
                self.metric,
                budget_tokens=search.budget_tokens - found.num_tokens,
                known=found.outputs,
                seed=search.seed,
                is_required=search.is_required,
                progress=self.progress,
            )
        except LuthierError as error:
            if search.is_required:
                raise
            # A run that was trained for hours must not end for it.
            return None, (f"{name} wrote no instruction: {error.came}.",)
        notes = [
            f"{name} wrote {counted(done.num_written, 'new instruction')} from mistakes on "
            f"{counted(len(search.feedback), 'training row')}.",
            f"{name} read and wrote {counted(done.num_writer_tokens, 'token')} for these instructions.",
            f"Of the new instructions, {done.num_kept:,} did better on training rows and answered "
            f"{counted(done.num_rows, 'row')} of the search.",
        ]
        if done.stopped:
            notes.append(f"{name} wrote no more instructions: {done.stopped}.")
        return done, tuple(notes)

    def outcome(
        self, best: Candidate, found: FoundPrompt, reflected: Reflected | None = None
    ) -> tuple[Candidate | None, tuple[str, ...]]:
        """The candidate to be evaluated, and sentences on how it was found.

        The instruction is in a sentence of its own: it may have sentences in it, and pages translate one by one.
        """
        num_tokens, figure, num_rows = found.num_tokens, found.figure, found.num_rows
        if reflected is not None:
            num_tokens += reflected.num_tokens
            figure, num_rows = reflected.figure, reflected.num_rows
            if reflected.instruction != best.instruction:
                writer = self.search.reflection_model or ""
                best = replace(best, instruction=reflected.instruction, reflection_model=writer)
        num = len(self.search.rows)
        opening = (
            f"A search over {counted(found.num_tried, 'prompt')} on "
            f"{counted(num, 'row that is not evaluated', 'rows that are not evaluated')} "
            f"read and wrote {num_tokens:,} of {self.search.budget_tokens:,} tokens."
        )
        num = best.num_nearest or len(best.shots)
        if not num and not best.instruction:
            return None, (f"{opening} None of them did better than the rows' own text.",)
        examples = "no examples"
        if num:
            examples = counted(num, "nearest example") if best.num_nearest else counted(num, "drawn example")
        notes = [
            f"{opening} The best of many looks better on these rows than it is.",
            f"The best prompt has {examples}.",
            f"{self.metric.title} on {counted(num_rows, 'row')} of the search: {figure:.3g}.",
        ]
        if best.instruction:
            notes.append(f'The best prompt has the instruction "{best.instruction}".')
        return replace(best, name=f"{self.base.name} + optimised prompt", search_tokens=num_tokens), tuple(notes)

    def _instructed(self, own: Candidate) -> Instructed | None:
        """A prompt with the rows of a reflection; None where it does not fit into the context with all examples."""
        from luthier.ml.prompting.reflection import Instructed

        try:
            feedback, validation = (self.build(own, rows) for rows in (self.search.feedback, self.search.rows))
        except OverlongError:
            return None
        fits = feedback.num_few_shot == validation.num_few_shot == (own.num_nearest or len(own.shots))
        return Instructed(own.instruction, feedback, validation) if fits else None


def open_reflector(context: Context, pool: EnginePool, name: str) -> Reflector:
    """The model that writes instructions; loaded when it is first asked.

    A model of this machine is loaded by the pool, so that no two are in memory together. What a server has answered is
    kept in the home, and not paid for again.

    Args:
        context: The home.
        pool: The engines of the evaluation.
        name: A base model, a run, or `http(s)://host:port/v1#MODEL`.

    Raises:
        RequestError, NotFoundError, ConflictError: No such model.
    """
    from luthier.features.generation.engines import find_teacher, is_address
    from luthier.ml.prompting.reflection import Reflector

    if is_address(name):
        server = find_teacher(context, name)

        def ask(prompts: Sequence[Prompt]) -> list[Generation | None]:
            # Closed after each round: minutes may pass until the next one.
            with closing(server):
                answers = server.generate_each(prompts, context.progress)
            # An overlong prompt is an answer of None, and does not end the search.
            return [one if isinstance(one, Generation) else None for one in answers]

        # No tokenizer of the server is known here; a token has at least one byte.
        return Reflector(server.name, ask, lambda asked: _MESSAGE_TOKENS + len(_text(asked).encode(errors="replace")))
    candidate = find_candidate(context, name)
    engine = pool.engine(candidate)

    def count(asked: Conversation) -> int:
        return len(engine.template.ids(engine.template.render(asked, add_generation_prompt=True)))

    def write(prompts: Sequence[Prompt]) -> list[Generation | None]:
        return list(engine.generate(prompts, context.progress))

    return Reflector(name, write, count, candidate.context_length_tokens)


def _text(conversation: Conversation) -> str:
    return "".join(message.content or "" for message in conversation.messages)

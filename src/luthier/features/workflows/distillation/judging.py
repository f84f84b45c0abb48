"""Judge the three on the same rows: the teacher, the student without it, and the taught one; then put it into words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.dataset import Example
from luthier.core.defaults import NEW_TOKENS
from luthier.core.errors import OverlongError, RequestError
from luthier.core.evaluation import Evaluation
from luthier.core.ports import Generation, Progress, Prompt
from luthier.core.recipe import EvaluationRecipe, MetricName
from luthier.core.workflows.distillation import ALONE, TAUGHT, TEACHER
from luthier.features.evaluations.service import choose_samples
from luthier.features.generation.engine_pool import EnginePool
from luthier.features.generation.teachers import find_teacher, is_address
from luthier.features.models.resolve import find_candidate, open_engine, system_under_test
from luthier.features.recipes.evaluation_checks import check_metrics, usual_metrics
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.dataset import TokenisedExample
    from luthier.core.ports import Score
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.inference.cached_engine import CachedEngine


def judge_students(
    context: Context,
    *,
    teacher: str,
    alone: str,
    taught: str,
    held_out: Path,
    num_same_prompt: int,
    asked: EvaluationRecipe | None,
    evaluation_id: str,
) -> Evaluation:
    """The three on the held-out rows, with paired intervals; the verdict is about taught against alone.

    A teacher behind a server is judged by what it writes alone, and so are the others then: it gives no likelihoods.

    Args:
        context: The home; the evaluation is kept in it.
        teacher: A run, a model, or one behind a server.
        alone: The run without the teacher.
        taught: The run with it.
        held_out: Chat rows.
        num_same_prompt: Held-out rows that ask what a training row asks.
        asked: Metrics, max_new_tokens and max_samples of the recipe.
        evaluation_id: Under which it is kept.
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.evaluation.compare import judge, primary_metric, verdict

    start, loaded = time.perf_counter(), load_file(held_out)
    most = (asked.max_samples if asked else None) or loaded.num_rows
    new_tokens = (asked.max_new_tokens if asked else None) or NEW_TOKENS
    examples = choose_samples(loaded.examples, most)
    metrics = find_metrics(asked, examples, teacher=teacher)
    with ExitStack() as stack:
        systems = _systems(context, ((TEACHER, teacher), (ALONE, alone), (TAUGHT, taught)), examples, new_tokens, stack)
        results, comparisons = judge(systems, metrics=metrics, seed=0, progress=context.progress)
    words = verdict(
        results,
        # The verdict is about the two students; that the teacher is better is expected.
        [c for c in comparisons if c.baseline != TEACHER],
        primary=primary_metric(metrics, [e.reference for e in examples]),
        candidate=TAUGHT,
        num_same_prompt=num_same_prompt,
        num_rows_in_file=loaded.num_rows,
    )
    evaluation = Evaluation(
        evaluation_id=evaluation_id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=taught,
        held_out_file=str(held_out),
        held_out_sha256=loaded.sha256,
        num_rows=len(examples),
        systems=results,
        comparisons=comparisons,
        verdict=words,
        seconds=time.perf_counter() - start,
    )
    context.evaluations.save(evaluation)
    return evaluation


def _systems(
    context: Context,
    models: Sequence[tuple[str, str]],
    examples: Sequence[Example],
    new_tokens: int,
    stack: ExitStack,
) -> list[SystemUnderTest]:
    """The models by their names; `stack` closes what they hold. Where one is behind a server, none is scored."""
    pool = stack.enter_context(closing(EnginePool(open_engine)))
    systems: list[SystemUnderTest] = []
    for name, model in models:
        if is_address(model):
            writer = stack.enter_context(closing(find_teacher(context, model)))
            systems.append(_behind_server(name, writer, examples, new_tokens))
            continue
        candidate = replace(find_candidate(context, model), name=name)
        systems.append(system_under_test(candidate, pool.engine(candidate), examples, new_tokens))
    if any(is_address(model) for _, model in models):
        # Without tokens nothing is scored: likelihoods of some systems only would compare different things.
        return [replace(system, tokenised=(), num_bytes=()) for system in systems]
    return systems


def find_metrics(
    asked: EvaluationRecipe | None, examples: Sequence[Example], *, teacher: str
) -> tuple[MetricName, ...]:
    """The metrics of the recipe, or the usual ones; of a teacher behind a server those that look at text alone.

    Raises RequestError where the recipe asks for others then, or for what the rows cannot be judged by.
    """
    from luthier.ml.evaluation.metrics.registry import load_metrics

    named = asked.metrics if asked else None
    metrics = named or usual_metrics(examples)
    check_metrics(metrics, examples)
    if not is_address(teacher):
        return metrics
    texts: tuple[MetricName, ...] = tuple(m for m in metrics if all(d.needs == "text" for d in load_metrics([m])))
    # The usual metrics are simply cut down to those of text; named ones are refused, since somebody wants them.
    if not texts or (named is not None and texts != metrics):
        raise RequestError(
            f"evaluation.metrics {', '.join(metrics)}, and the teacher is behind a server, which gives no likelihoods",
            expected="metrics of what is written, such as exact_match, rouge, bleu or token_f1",
            do="ask for these alone, or name none",
        )
    return texts


class _Writer:
    """A teacher behind a server as an engine that is judged: what it wrote is kept in the home, like its answers."""

    def __init__(self, asked: CachedEngine) -> None:
        self._asked, self.name = asked, asked.name

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One a prompt; a prompt over the context raises, since all are judged on the same rows."""
        found = self._asked.generate_each(prompts, progress)
        if (error := next((one for one in found if isinstance(one, OverlongError)), None)) is not None:
            raise error
        return [one for one in found if isinstance(one, Generation)]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """A server gives no likelihoods."""
        raise RequestError(f"{self.name} gives no likelihoods", expected="metrics of text", do="ask for these alone")

    def close(self) -> None:
        """Let go of the connection."""
        self._asked.close()


def _behind_server(name: str, writer: CachedEngine, examples: Sequence[Example], new_tokens: int) -> SystemUnderTest:
    from luthier.ml.evaluation.compare import SystemUnderTest

    return SystemUnderTest(
        name=name,
        model=writer.name,
        adapter=None,
        num_few_shot=0,
        engine=_Writer(writer),
        prompts=tuple(Prompt(conversation=e.prompt, max_new_tokens=new_tokens) for e in examples),
        references=tuple(e.reference or "" for e in examples),
        row_ids=tuple(e.id for e in examples),
        prompt_texts=tuple(
            "\n\n".join(m.content or "" for m in (e.prompt.messages if e.prompt else ())) for e in examples
        ),
        tokenised=(),
        num_bytes=(),
    )

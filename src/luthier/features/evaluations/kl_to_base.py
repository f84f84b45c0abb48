"""The KL divergence between a tuned model and its base, among the evaluated systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.evaluation import KlToBase
from luthier.core.ports import Progress
from luthier.features.models.resolve import Candidate, engine_key

if TYPE_CHECKING:
    from luthier.features.generation.engines import EnginePool
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.evaluation.kl_to_base import AnswerStates, StatesEngine


def measure_kl(
    pool: EnginePool, candidates: Sequence[Candidate], systems: Sequence[SystemUnderTest], progress: Progress
) -> tuple[KlToBase | None, tuple[str, ...]]:
    """KL(tuned || base) of the last candidate, or why it is unknown; empty if its base is not evaluated.

    Takes one pass of each model over the evaluated rows. The tuned model, evaluated last, is still loaded; without its
    adapter it is the base. Only where it cannot be used so, the base is loaded once more.

    Args:
        pool: the engines of the candidates.
        candidates: the last one is the evaluated model.
        systems: the evaluated systems, each candidate by its index, the evaluated model last.
        progress: shows both passes.

    Raises:
        StoppedError: the engines' stop check has a reason.
    """
    from luthier.ml.evaluation.kl_to_base import kl_by_row, kl_result, rows_that_fit
    from luthier.ml.inference.models.merging import without_adapter

    tuned = candidates[-1]
    place = next((at for at, one in enumerate(candidates[:-1]) if _is_base_of(one, tuned)), None)
    rows = systems[-1].tokenised
    if place is None or tuned.has_task_head or not any(row.num_trained_tokens for row in rows):
        return None, ()
    if [row.input_ids for row in systems[place].tokenised] != [row.input_ids for row in rows]:
        return None, (_why_not(candidates[place], "the two write the same rows as other tokens"),)
    # In the precision of the tuned model: otherwise the result would include rounding.
    base = replace(candidates[place], precision=tuned.precision, device=tuned.device, quantisation=tuned.quantisation)
    try:
        engine = pool.load_for_states(tuned)
        head = engine.head()
        used = [rows[at] for at in rows_that_fit(rows, head.shape[1], head.element_size())]
        own, of_base = _states(engine, used, tuned.name, progress), None
        with without_adapter(engine.causal) as is_base:
            if is_base and tuned.model_path == base.model_path:
                of_base = _states(engine, used, base.name, progress)
        if of_base is None:
            of_base = _states(pool.load_for_states(base), used, base.name, progress)
    except RequestError as error:
        return None, (_why_not(base, error.came),)
    sums = kl_by_row(own, of_base, tuned.device)
    return kl_result(sums, used, tuned=tuned.name, base=base.name, of=len(rows)), ()


def _states(engine: StatesEngine, rows: Sequence[TokenisedExample], name: str, progress: Progress) -> AnswerStates:
    from luthier.ml.evaluation.kl_to_base import answer_states

    with progress.task("Distance to the base", len(rows), "rows") as task:
        task.note(name)
        return answer_states(engine, rows, task)


def _is_base_of(one: Candidate, tuned: Candidate) -> bool:
    """Whether a candidate is the base of the other, without examples in its prompt."""
    is_plain = one.adapter_path is None and not (one.shots or one.num_nearest or one.instruction)
    return is_plain and one.model_name == tuned.model_name and engine_key(one) != engine_key(tuned)


def _why_not(base: Candidate, reason: str) -> str:
    return f"How far it moved from {base.name} on these prompts was not measured: {reason}"

"""The KL divergence between a tuned model and its base, among the evaluated systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from luthier.core.errors import RequestError
from luthier.core.evaluation import KlToBase
from luthier.core.ids import is_id
from luthier.core.ports import Progress
from luthier.features.models.resolve import Candidate, engine_key

if TYPE_CHECKING:
    from luthier.features.generation.engines import EnginePool
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.evaluation.kl_to_base import AnswerStates


def measure_kl(
    pool: EnginePool, candidates: Sequence[Candidate], systems: Sequence[SystemUnderTest], progress: Progress
) -> tuple[KlToBase | None, tuple[str, ...]]:
    """KL(tuned || base) of the last candidate, or why it is unknown; empty if its base is not evaluated.

    Takes one pass of each model over the evaluated rows, and one more loading of the base: the tuned model, evaluated
    last, is still loaded.

    Args:
        pool: the engines of the candidates.
        candidates: the last one is the evaluated model.
        systems: the evaluated systems, each candidate by its index, the evaluated model last.
        progress: shows both passes.

    Raises:
        StoppedError: the engines' stop check has a reason.
    """
    from luthier.ml.evaluation.kl_to_base import answer_states, kl_by_row, kl_result, rows_that_fit

    tuned = candidates[-1]
    place = next((at for at, one in enumerate(candidates[:-1]) if _is_base_of(one, tuned)), None)
    rows = systems[-1].tokenised
    if place is None or tuned.has_task_head or not any(row.num_trained_tokens for row in rows):
        return None, ()
    if [row.input_ids for row in systems[place].tokenised] != [row.input_ids for row in rows]:
        return None, (_why_not(candidates[place], "the two write the same rows as other tokens"),)
    # In the precision of the tuned model: otherwise the result would include rounding.
    base = replace(candidates[place], precision=tuned.precision, device=tuned.device, quantisation=tuned.quantisation)
    found: list[AnswerStates] = []
    try:
        for candidate in (tuned, base):
            engine = pool.load_for_states(candidate)
            head = engine.head()
            chosen = rows_that_fit(rows, head.shape[1], head.element_size())
            with progress.task("Distance to the base", len(chosen), "rows") as task:
                task.note(candidate.name)
                found.append(answer_states(engine, [rows[at] for at in chosen], task))
    except RequestError as error:
        return None, (_why_not(base, error.came),)
    sums = kl_by_row(found[0], found[1], tuned.device)
    used = [rows[at] for at in chosen]
    return kl_result(sums, used, tuned=tuned.name, base=base.name, of=len(rows)), ()


def _is_base_of(one: Candidate, tuned: Candidate) -> bool:
    """Whether a candidate is the base of the other, without examples in its prompt."""
    # Another run that fully fine-tuned the same model has no adapter either.
    is_plain = one.adapter_path is None and not one.is_prompted and not is_id(one.name, "run")
    return is_plain and one.model_name == tuned.model_name and engine_key(one) != engine_key(tuned)


def _why_not(base: Candidate, reason: str) -> str:
    return f"How far it moved from {base.name} on these prompts was not measured: {reason}"

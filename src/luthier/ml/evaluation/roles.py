"""Who is who in an evaluation: the system that was tuned, and the one it is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.evaluation import Evaluation, SystemResult
from luthier.core.results.release_gate import BASE
from luthier.ml.charts.judged_rows import metric_names as names_of


@dataclass(frozen=True, slots=True)
class Roles:
    """Names of the systems that a verdict is about.

    Attributes:
        candidate: the system that is judged.
        baseline: what it is compared with; None where there is only one system.
    """

    candidate: str
    baseline: str | None


def roles(evaluation: Evaluation) -> Roles | None:
    """The candidate and its baseline; None where no system was judged.

    Candidate: the only system with an adapter; else the last one, since systems are listed baselines first.
    Baseline: the first other system that gets no examples in its prompt; else the first other system.
    """
    systems = evaluation.systems
    if not systems:
        return None
    adapted = [system for system in systems if system.adapter is not None]
    candidate = adapted[0] if len(adapted) == 1 else systems[-1]
    rest = [system for system in systems if system.name != candidate.name and system.kind == "model"]
    bare = [system for system in rest if system.num_few_shot == 0]
    baseline = next(iter(bare or rest), None)
    return Roles(candidate.name, baseline.name if baseline else None)


def base_of(systems: Sequence[SystemResult], candidate: str) -> str | None:
    """The candidate's own model before it was tuned, without examples in its prompt; or else a system called `base`."""
    own = next((one for one in systems if one.name == candidate), None)
    models = [one for one in systems if one.kind == "model"]
    others = [one for one in models if one.name != candidate and one.num_few_shot == 0 and one.adapter is None]
    same = next((one.name for one in others if own is not None and one.model == own.model), None)
    return same or next((one.name for one in others if one.name == BASE), None)


def metric_names(evaluation: Evaluation) -> list[str]:
    """All metrics that any system has: the verdict's metric first, the others as they come."""
    return names_of(evaluation.systems, None if evaluation.verdict is None else evaluation.verdict.metric)

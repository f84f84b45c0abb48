"""What `luthier models check` says of a family, held against what the walk has found of it: the two must agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tests.zoo.rows import ROWS

from luthier.features.model_checks.service import CHECKS, Check

if TYPE_CHECKING:
    from tests.zoo.walk import Outcome, Walk

_STAGES: Final = {
    **{f"rows: {kind.replace('_', ' ')}": f"row_{kind}" for kind in ROWS},
    "plan": "plan",
    "reach": "reach",
    "loss": "loss",
    "step": "lora",
    "text": "generate",
    "stream": "stream",
    "score": "score",
}
"""Parts of the check, and the stages of the walk that try the same."""
_WITH_ADAPTER: Final = ("text", "stream", "score")
"""The walk tries these with an adapter, the check with the base model alone."""
_SHARE: Final = 0.005
"""What the reach of the check may be above that of the walk: they count tables of positions each in its own way."""


def check(going: Walk) -> None:
    """The parts of `luthier models check` on the family's model, in this process; each as the walk has found it."""
    from luthier.features.model_checks.trials import try_model

    with going.stage("check") as stage:
        work = going.work / "check"
        work.mkdir()
        found = {part.name: part for part in try_model(going.folder, None, work, lambda _: None)}
        missing = {part for part in CHECKS if part != "rows"} - set(found)
        if missing or not any(name.startswith("rows: ") for name in found):
            stage.wrong(f"the check leaves out {', '.join(sorted(missing)) or 'rows'}")
        differing = contradictions(found, going.outcomes)
        if differing:
            stage.wrong("; ".join(differing))
        ends = Counter(part.status for part in found.values())
        stage.outcome.path = ", ".join(f"{num} {status}" for status, num in ends.items())


def contradictions(found: Mapping[str, Check], outcomes: Sequence[Outcome]) -> list[str]:
    """Each part of a check that says something else than the stage of the walk; stages that were not taken count not.

    What works in the walk must work in the check, what is refused must be refused or not run, and nothing else may
    work. Where the plan is refused, the walk has no adapter to write and score with, which the check does without.
    """
    walked = {outcome.stage: outcome for outcome in outcomes}
    is_planned = "plan" not in walked or walked["plan"].status == "works"
    said = []
    for name, stage in _STAGES.items():
        outcome, part = walked.get(stage), found.get(name)
        if outcome is None or part is None or (name in _WITH_ADAPTER and not is_planned):
            continue
        fitting: tuple[str, ...] = ("refused", "wrong", "fault", "not_run")
        if outcome.status == "works":
            fitting = ("works",)
        elif outcome.status == "refused":
            fitting = ("refused", "not_run")
        if part.status not in fitting:
            why = part.reason or outcome.reason
            said.append(f"{name}: the check says {part.status}, {stage} {outcome.status}: {why[:200]}")
    said += _other_reach(found, walked)
    return said


def _other_reach(found: Mapping[str, Check], walked: Mapping[str, Outcome]) -> list[str]:
    """The reach, where both have measured one and that of the check is larger.

    The walk trains at rank 2, the check at the rank of a plan by default, which leaves out matrices narrower than it.
    """
    if "reach" not in walked or "reach" not in found:
        return []
    ours, theirs = (one.measures.get("share_of_matrices") for one in (found["reach"], walked["reach"]))
    if ours is None or theirs is None or ours - theirs <= _SHARE:
        return []
    return [f"reach: the check says {ours:.4f}, the walk {theirs:.4f}"]

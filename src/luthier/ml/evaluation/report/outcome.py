"""The first thing on the page: how the run ended, in one large sentence."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.core.evaluation import Evaluation
from luthier.core.plan import Plan
from luthier.core.run import RunRecord
from luthier.ml.charts.judged_rows import Tone, tone_of


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        tone: colour of the badge.
        badge: one or two words.
        headline: the one large sentence.
        details: what the headline rests on.
        further: what else was found.
        caveats: what limits it.
        next_steps: pairs of text and command.
    """

    tone: Tone
    badge: str
    headline: str
    details: tuple[str, ...] = ()
    further: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    next_steps: tuple[tuple[str, str], ...] = ()


def outcomes(record: RunRecord, plan: Plan, evaluation: Evaluation | None) -> list[Outcome]:
    """What the page opens with: the verdict; before it, for a run that has not succeeded, in what state it is."""
    found = []
    if record.status != "succeeded":
        found.append(_unfinished(record))
    if evaluation is not None:
        found.append(_judged(evaluation))
    elif record.status == "succeeded":
        found.append(_not_judged(record, plan))
    return found


def _judged(evaluation: Evaluation) -> Outcome:
    verdict = evaluation.verdict
    if verdict is not None:
        # Details of the figure that decides come first in a verdict; the others are shown below them.
        num = verdict.num_primary_details
        details, further = verdict.details[:num], verdict.details[num:]
        return Outcome(tone_of(verdict.word), verdict.word, verdict.headline, details, further, verdict.caveats)
    headline = f"Measured on {evaluation.num_rows:,} held-out rows, but without a verdict."
    why = (
        "A verdict needs at least two systems on the same rows."
        if len(evaluation.systems) < 2
        else "No comparison was asked for."
    )
    return Outcome("quiet", "no verdict", headline, (why,))


def _not_judged(record: RunRecord, plan: Plan) -> Outcome:
    held_out = plan.data.held_out
    if held_out is None:
        return Outcome(
            "quiet",
            "not judged",
            "The model was trained, but nobody knows yet whether it is better.",
            (
                "The recipe names no held-out rows, so nothing was judged. "
                "A falling loss is no proof of a better model.",
            ),
            next_steps=(
                ("Judge it on rows that training has not seen:", eval_command(record, plan, "held_out.jsonl")),
                ("Or let the next run keep rows back by itself:", "luthier train recipe.yaml --set data.held_out=0.1"),
            ),
        )
    return Outcome(
        "quiet",
        "not judged",
        "The model was trained, but has not been judged yet.",
        (f"{held_out.num_rows:,} held-out rows are waiting in {Path(held_out.file).name}.",),
        next_steps=(("Judge it:", eval_command(record, plan, held_out.file)),),
    )


def _unfinished(record: RunRecord) -> Outcome:
    where = f"step {record.step:,} of {record.num_steps:,}"
    because = () if not record.stopped_because else (f"Reason: {record.stopped_because}",)
    again = ("Go on from its last checkpoint:", resume_command(record))
    if record.status == "failed":
        kept = "Checkpoints that were saved before are still there; nothing on this page is a finished result."
        return Outcome("bad", "failed", f"This run failed at {where}.", (*because, kept), next_steps=(again,))
    if record.status == "paused":
        note = "No step is lost: going on gives the same model as a run that was never paused."
        return Outcome("open", "paused", f"This run is paused at {where}.", (*because, note), next_steps=(again,))
    if record.status == "running":
        return Outcome("open", "running", f"This run is at {where} and not done yet.", because)
    return Outcome("quiet", "planned", "This run has not started yet.", because)


def resume_command(record: RunRecord) -> str:
    """What continues this run."""
    return shlex.join(["luthier", "train", "--resume", record.run_id])


def eval_command(record: RunRecord, plan: Plan, held_out: str) -> str:
    """What judges this run against its base model, with the few-shot examples of the plan."""
    words: Sequence[str] = ["luthier", "eval", record.run_id, "--data", held_out, "--against", plan.base_model.name]
    if plan.evaluation.few_shot:
        shots = ["--few-shot", str(plan.evaluation.few_shot), "--few-shot-from", plan.data.train.file]
        words = [*words, *shots]
    return shlex.join(words)

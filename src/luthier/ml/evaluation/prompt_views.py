"""What was put into prompts, as reports and pages show it."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.evaluation import Evaluation
from luthier.ml.evaluation.verdict_text import prompt_of


@dataclass(frozen=True, slots=True)
class PromptRow:
    """What the prompts of one system contain besides the rows' text.

    Attributes:
        name: of the system.
        holds: `an instruction and the 4 nearest training rows`; of drawn examples with the number of draws.
        instruction: its text; empty for none.
        num_tokens: that it adds to a prompt, on average.
    """

    name: str
    holds: str
    instruction: str
    num_tokens: float


def prompt_rows(evaluation: Evaluation) -> list[PromptRow]:
    """The systems whose prompts contain more than the rows' text, where the evaluation records what."""
    found = []
    for system in evaluation.systems:
        own = system.prompting
        if own is None or own.kind == "label_likelihood":
            continue
        # "an optimised prompt" names the system, but not its content.
        holds = prompt_of(system.model_copy(update={"prompting": own.model_copy(update={"kind": "few_shot"})}))
        if own.num_draws > 1:
            holds += f", mean of {own.num_draws} draws"
        if own.reflection_model:
            holds += f"; the instruction was written by {own.reflection_model}"
        found.append(PromptRow(system.name, holds, own.instruction, own.extra_prompt_tokens))
    return found


def prompts_but_best(evaluation: Evaluation) -> set[str]:
    """Names of the systems with something in their prompts, but for the one with the best figure."""
    verdict = evaluation.verdict
    prompts = {system.name for system in evaluation.systems if system.prompting is not None}
    figures = {one.name: one.value for one in verdict.alternatives if one.name in prompts} if verdict else {}
    if len(prompts) < 2 or verdict is None or not figures:
        return set()
    higher = next(s.metrics[verdict.metric].higher_is_better for s in evaluation.systems if s.name in figures)
    return prompts - {(max if higher else min)(figures, key=lambda name: figures[name])}

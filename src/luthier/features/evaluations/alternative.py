"""How to use what is recommended in place of a tuned model: a prompt as messages, or a simple method as a program."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.errors import NotFoundError
from luthier.core.evaluation import Evaluation, SystemResult
from luthier.ml.charts.spec import OwnName
from luthier.ml.evaluation.plain_names import name_at_start
from luthier.ml.evaluation.recommendation import recommend

_QUESTION: Final = "YOUR QUESTION"


@dataclass(frozen=True, slots=True)
class Instructions:
    """How to use an alternative.

    Attributes:
        name: of the system, as people read it.
        kind: what `text` is: messages of a prompt, or a program; empty where there is nothing to copy.
        text: to be copied.
        notes: what to know, one sentence each.
    """

    name: str
    kind: str
    text: str
    notes: tuple[str, ...]


def alternative_of(evaluation: Evaluation) -> Instructions:
    """The instructions for the recommended alternative.

    Raises:
        NotFoundError: another action is recommended.
    """
    found = recommend(evaluation)
    system = None
    if found is not None and found.action in ("use_prompt", "use_simple_method"):
        system = next((one for one in evaluation.systems if one.name == found.system), None)
    if system is None:
        raise NotFoundError(
            f"evaluation {evaluation.evaluation_id} does not recommend a prompt or a simple method",
            expected="an evaluation that recommends one of these",
            do="see the recommended action on the page of the evaluation",
        )
    name = name_at_start(system, evaluation.systems)
    # Names that people gave are no words, which a page would translate.
    name = OwnName(name) if name == system.name else name
    return _prompt(system, name) if system.is_model else _method(system, name)


def _prompt(system: SystemResult, name: str) -> Instructions:
    own = system.prompting
    if own is None:
        return Instructions(name, "", "", (_NOT_RECORDED,))
    messages: list[dict[str, Any]] = []
    notes = []
    if own.instruction:
        messages.append({"role": "system", "content": own.instruction})
    messages += [turn.model_dump() for turn in own.turns]
    if own.examples == "nearest":
        num = system.num_few_shot
        messages += [
            {"role": "user", "content": f"QUESTION {place} OF THE NEAREST TRAINING ROWS"}
            if is_question
            else {"role": "assistant", "content": f"ANSWER {place} OF THE NEAREST TRAINING ROWS"}
            for place in range(1, num + 1)
            for is_question in (True, False)
        ]
        notes.append(
            f"The {num:,} examples differ by question: the training rows that share the most telling words with it "
            "(BM25), the nearest one last."
        )
    elif own.examples == "drawn" and not own.turns:
        notes.append(_NOT_RECORDED)
    elif own.num_draws > 1:
        notes.append(
            f"These are the examples of the best of {own.num_draws} draws; the figure is the mean of all "
            "draws, and its interval covers other draws."
        )
    messages.append({"role": "user", "content": _QUESTION})
    notes.append(f"It adds about {own.extra_prompt_tokens:,.0f} tokens to each request.")
    notes.append("A system prompt of the rows themselves comes first, before these messages.")
    return Instructions(name, "messages", json.dumps(messages, ensure_ascii=False, indent=2), tuple(notes))


_NOT_RECORDED: Final = (
    "The examples of this prompt are not stored: the evaluation was made before they were recorded. Evaluate the run "
    "again to see them."
)


def _method(system: SystemResult, name: str) -> Instructions:
    from luthier.ml.baselines.predict import function_of

    function = function_of(system.name)
    if function is None:
        return Instructions(name, "", "", (_DESCRIBED,))
    text = _PROGRAM.format(module=function.__module__, function=function.__name__)
    return Instructions(name, "program", text, _PROGRAM_NOTES)


_DESCRIBED: Final = 'The page "Baselines without a language model" of the documentation describes how it answers.'
_PROGRAM_NOTES: Final = (
    "It fits the method on the training rows and answers new ones, with the same code as the evaluation.",
    "train.jsonl is the training file: one JSON object a line, here with the keys prompt and answer.",
    "It needs a processor and scikit-learn, which is installed with Luthier; no language model.",
)
_PROGRAM: Final = """import json

from {module} import {function}
from luthier.ml.baselines.rows import TaskRow

with open("train.jsonl", encoding="utf-8") as file:
    lines = [json.loads(line) for line in file]
rows = [TaskRow(prompt=line["prompt"], answer=line["answer"]) for line in lines]
# A classifier answers with probabilities, too.
answers = {function}(rows, ["YOUR QUESTION"])
print(getattr(answers, "outputs", answers))
"""

"""An answer to choose from, as tokens: the prompt as the model meets it, and the answer's own tokens, which are scored.

What ends a turn is not scored: it is the same for all options. Gao et al., lm-evaluation-harness, likewise score the
continuation alone.
"""

from __future__ import annotations

from dataclasses import replace

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import DataError
from luthier.ml.data.tokenise.loss_mask import tokenise
from luthier.ml.data.tokenise.row_problem import problem_of
from luthier.ml.data.tokenise.template import Template


def with_answer(example: Example, text: str) -> Example:
    """The example with another last answer; where it is plain text, or has no answer, the text alone."""
    conversation = example.conversation
    if conversation is None or (last := conversation.last_answer) is None:
        return example.model_copy(update={"text": text, "conversation": None, "rejected": None})
    answer = conversation.messages[last].model_copy(update={"content": text, "tool_calls": (), "reasoning": None})
    messages = (*conversation.messages[:last], answer)
    return example.model_copy(
        update={"conversation": conversation.model_copy(update={"messages": messages}), "rejected": None}
    )


def tokenise_option(example: Example, option: str, template: Template) -> TokenisedExample:
    """The example's prompt with this option as its answer; only the option's own tokens have loss mask 1.

    Args:
        example: the prompt; its answer is replaced.
        option: text of the answer to score.
        template: renders and encodes.

    Raises:
        DataError: the option has no token of its own, or holds the template's end-of-turn text.
        TemplateError: no mask can be proved on what the template renders.
    """
    row = tokenise(with_answer(example, option), template)
    end = template.encode(template.end_of_turn)[0][-1]
    # The last step from 0 to 1 in the mask: earlier answers of the conversation are learned too, but not scored.
    start = row.loss_mask.rfind(b"\0\1") + 1
    # The template may write white space behind the end-of-turn token; neither is scored.
    ends = [place for place in range(start, row.num_tokens) if row.input_ids[place] == end]
    stop = ends[-1] if ends else row.num_tokens
    if stop <= start:
        reason = "has no token of its own"
        raise DataError(
            f"{example.id}: the option {option!r} has no token",
            expected="text in every option",
            do="remove or correct the row",
            problems=[problem_of(example.id, value=option, reason=reason, field="options")],
        )
    return replace(row, loss_mask=row.loss_mask[:stop] + bytes(row.num_tokens - stop))

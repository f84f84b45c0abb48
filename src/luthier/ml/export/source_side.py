"""Outputs of the source model on the prompts of a parity check: computed once, stored compactly, compared with each
export.

The source is the base in float32 with the adapter unmerged over it: no merge, no rounding and no converter has touched
it. Of each position only the likeliest tokens are kept, so a source and its export are never in memory together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import DivergedError, RequestError
from luthier.core.opted_turns import OptedTurns
from luthier.core.ports import Progress
from luthier.core.records.export import ExportSource
from luthier.core.text.json_limits import loads
from luthier.ml.export.runtimes.protocol import LogProbabilities
from luthier.ml.inference.opted_turns import rewritten, text_of
from luthier.ml.inference.tool_calls import form_of

if TYPE_CHECKING:
    from luthier.ml.export.runtimes.transformers_model import TransformersModel
    from luthier.ml.inference.models.chat_template import ChatTemplate

NUM_TOP = 10
NUM_NEW_TOKENS = 32
# Likelihoods of a whole vocabulary are held for this many positions at once, the last ones of a prompt with its answer.
MAX_POSITIONS = 512


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The likeliest tokens of some positions and their log-probabilities, both [positions, NUM_TOP], best first."""

    ids: NDArray[np.int64]
    nats: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SourceAnswer:
    """What the source makes of one prompt.

    conversation: the prompt as a client of the export sends it; None where `text` alone is. prompt_ids, reference_ids:
    as the source's tokenizer writes them. start: the first position that is compared. top: of the positions from there
    on. base_nats: what the base without the adapter says of the same tokens; None without an adapter. nll_nats: of the
    reference, in all. greedy_ids: what the source writes. greedy_top: of the positions that each of these, and what
    would come after them, is drawn from.
    """

    conversation: Conversation | None
    text: str
    prompt_ids: tuple[int, ...]
    reference_ids: tuple[int, ...]
    start: int
    top: Likeliest
    base_nats: NDArray[np.float32] | None
    nll_nats: float
    greedy_ids: tuple[int, ...]
    greedy_top: Likeliest

    @property
    def ids(self) -> list[int]:
        """Prompt and reference."""
        return [*self.prompt_ids, *self.reference_ids]


@dataclass(frozen=True, slots=True)
class ObservedSource:
    """The source's side of a proof.

    end_id, end_token: that ends its answers. is_plain: written without a chat template. knows_developer: its template
    has that role. vocabulary: the width of its logits. template_day: the day that its template was given
    it does not ask. filled: names of its template that llama.cpp fills with today's date.
    """

    source: ExportSource
    answers: tuple[SourceAnswer, ...]
    end_id: int
    end_token: str
    is_plain: bool
    knows_developer: bool
    vocabulary: int
    template_day: str | None = None
    filled: tuple[str, ...] = ()


def observe_source(source: ExportSource, examples: Sequence[Example], progress: Progress) -> ObservedSource:
    """Run the source on the prompts of held-out examples; those longer than its context are left out.

    An example's prompt is the conversation before its last answer, and that answer the reference; of plain text the
    first and the second half. A template that writes the date writes the fixed day of training, on both sides.

    Memory: the source's weights in float32, and `MAX_POSITIONS` x vocabulary x 8 bytes.

    Raises:
        RequestError: no example fits, or none has a reference. DivergedError: the source's likelihoods are not finite.
        NotFoundError, ModelSourceError, TemplateError: as loading and rendering do.
    """
    from luthier.ml.export.exporters.companions import source_template, template_of_export
    from luthier.ml.export.runtimes.transformers_model import TransformersModel
    from luthier.ml.inference.models.template_clock import filled_names

    template = source_template(source)
    turns = _Turns(template, source.opted_turns, template_of_export(source, template).says_turns)
    model = TransformersModel(source.base_path, source.adapter_path, source.quantisation)
    ends = frozenset(template.end_of_turn_ids)
    answers, vocabulary = [], 0
    with progress.task("Running the source", len(examples), "prompts") as task:
        for example in examples:
            conversation, text, prompt, reference = _prompt(example, turns)
            if prompt and len(prompt) + max(len(reference), NUM_NEW_TOKENS) <= model.context_tokens:
                answer, vocabulary = _answer(model, ends, source, conversation, text, prompt, reference)
                answers.append(answer)
            task.advance()
    if not any(answer.reference_ids for answer in answers):
        raise RequestError(
            f"{len(examples)} examples, {len(answers)} with a prompt that fits into {model.context_tokens} tokens, "
            "none of them with an answer",
            expected="held-out examples with prompt and answer, shorter than the context of the model",
            do="prove the export on other held-out rows",
        )
    return ObservedSource(
        source=source,
        answers=tuple(answers),
        end_id=template.end_of_turn_ids[0],
        end_token=template.end_of_turn,
        is_plain=template.kind == "plain",
        knows_developer="developer" in str(template.tokenizer.chat_template or ""),
        vocabulary=vocabulary,
        template_day=template.fixed_day,
        filled=filled_names(str(template.tokenizer.chat_template or "")) if template.kind == "chat" else (),
    )


def likeliest(rows: LogProbabilities) -> Likeliest:
    """The `NUM_TOP` likeliest tokens of each row."""
    num_top = min(NUM_TOP, rows.shape[1])
    some = np.argpartition(-rows, num_top - 1, axis=1)[:, :num_top]
    nats = np.take_along_axis(rows, some, axis=1)
    order = np.argsort(-nats, axis=1, kind="stable")
    return Likeliest(np.take_along_axis(some, order, axis=1), np.take_along_axis(nats, order, axis=1))


def reference_nll(rows: LogProbabilities, start: int, num_prompt: int, reference: Sequence[int]) -> float:
    """Nats of the reference in all. rows: of the positions from `start` on, of prompt and reference."""
    first = max(num_prompt - 1, start)
    targets = np.asarray(reference[first - (num_prompt - 1) :], dtype=np.int64)
    places = np.arange(first - start, first - start + len(targets))
    return -float(rows[places, targets].astype(np.float64).sum())


@dataclass(frozen=True, slots=True)
class _Turns:
    """How the source writes turns, and whether its export rewrites them by itself."""

    template: ChatTemplate
    opted: OptedTurns
    says_turns: bool

    def trained(self, conversation: Conversation) -> Conversation:
        """The turns as training has written them."""
        return rewritten(self.opted, conversation, form_of(text_of(self.template)))

    def sent(self, conversation: Conversation) -> Conversation:
        """The turns as a client of the export sends them, thoughts apart from answers where its template wants them so.

        Where the export cannot rewrite turns by itself, its users do.
        """
        if self.says_turns and self.opted.reasoning is not None:
            return conversation
        conversation = conversation if self.says_turns else self.trained(conversation)
        messages = tuple(self._sent_message(message) for message in conversation.messages)
        return conversation.model_copy(update={"messages": messages})

    def _sent_message(self, message: Message) -> Message:
        if message.role != "assistant":
            return message
        thought, answer = self.template.parts_of(message)
        writing = self.template.thoughts
        if thought is None or writing is None:
            return message.model_copy(update={"reasoning": None})
        if writing.way == "content":
            answer = f"{writing.before}{thought}{writing.between}{answer}"
        is_field = writing.way == "field"
        return message.model_copy(update={"content": answer, "reasoning": thought if is_field else None})


def _prompt(example: Example, turns: _Turns) -> tuple[Conversation | None, str, list[int], list[int]]:
    """Prompt as a client of the export sends it, as the source's text, its tokens, and those of the reference, its end
    token included."""
    template = turns.template
    conversation = None if example.conversation is None else _with_full_tools(example.conversation)
    if conversation is None:
        ids, _ = template.encode(example.text or "")
        half = (len(ids) + 1) // 2
        return None, example.text or "", ids[:half], ids[half:]
    last = conversation.last_answer
    asked = turns.sent(conversation if last is None else conversation.up_to(last))
    text = template.render(turns.trained(asked), add_generation_prompt=True)
    if last is None:
        return asked, text, template.encode(text)[0], []
    whole = template.render(turns.trained(conversation.up_to(last + 1)))
    # Templates that alter earlier turns (thinking is one) do not go on from their own prompt.
    rest = whole[len(text) :] if whole.startswith(text) else (example.reference or "") + template.end_of_turn
    reference = template.tokenizer.backend_tokenizer.encode(rest, add_special_tokens=False).ids
    end = template.end_of_turn_ids[0]
    if end in reference:
        reference = reference[: reference.index(end) + 1]
    return asked, text, template.encode(text)[0], reference


def _with_full_tools(conversation: Conversation) -> Conversation:
    """The conversation with every tool written out: what is left out, runtimes fill in, each in its own way.

    Arguments of calls are written as JSON usually is: runtimes read and write them again.
    """
    tools = []
    for tool in conversation.tools:
        function = tool.get("function") or {}
        full = {
            "name": function.get("name", ""),
            "description": function.get("description") or "",
            "parameters": function.get("parameters") or {"type": "object", "properties": {}},
        }
        tools.append({"type": "function", "function": full})
    messages = tuple(
        message.model_copy(update={"tool_calls": tuple(map(_with_usual_arguments, message.tool_calls))})
        for message in conversation.messages
    )
    return conversation.model_copy(update={"tools": tuple(tools), "messages": messages})


def _with_usual_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        arguments = json.dumps(loads(function.get("arguments") or "{}"), ensure_ascii=False)
    except (TypeError, ValueError):  # what renders it says what is wrong with it
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _answer(
    model: TransformersModel,
    ends: frozenset[int],
    source: ExportSource,
    conversation: Conversation | None,
    text: str,
    prompt: list[int],
    reference: list[int],
) -> tuple[SourceAnswer, int]:
    ids = [*prompt, *reference]
    start = max(0, len(ids) - MAX_POSITIONS)
    rows = model.log_probabilities(ids, start)
    if not np.isfinite(rows).all():
        raise DivergedError(
            f"{source.name}: a likelihood is not a finite number",
            expected="finite logits",
            do="the weights hold NaN or infinity: export an earlier checkpoint of the run",
        )
    top, nll = likeliest(rows), reference_nll(rows, start, len(prompt), reference)
    base = None
    if source.adapter_path is not None:
        with model.without_adapter():
            base = np.take_along_axis(model.log_probabilities(ids, start), top.ids, axis=1)
    written = model.greedy(prompt, NUM_NEW_TOKENS, ends)
    drawn_from = likeliest(model.log_probabilities([*prompt, *written], len(prompt) - 1))
    answer = SourceAnswer(
        conversation, text, tuple(prompt), tuple(reference), start, top, base, nll, tuple(written), drawn_from
    )
    return answer, rows.shape[1]

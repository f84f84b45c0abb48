"""The prompts of a parity check: held-out rows as the source writes them, and whether a runtime makes the same tokens.

This needs no weights. So a rehearsal tests the prompts of the check in the runtime before anything is merged, and
rejects what depends only on template and tokenizer (`rehearsal.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from luthier.core.conversation import Conversation, Message, OptedTurns
from luthier.core.dataset import Example
from luthier.core.errors import RequestError, TemplateError
from luthier.core.json_limits import loads
from luthier.core.recipe import TemplateOption
from luthier.core.records.export import ExportSource
from luthier.ml.inference.engine_prompts import rewritten, text_of
from luthier.ml.inference.tool_calls.forms import form_of

if TYPE_CHECKING:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

NUM_NEW_TOKENS = 32
"""Greedy tokens that a check generates after each prompt."""


class TokenRuntime(Protocol):
    """The part of a runtime (`ml/export/runtimes/protocol.py`) needed here, without weights."""

    @property
    def has_template(self) -> bool: ...
    @property
    def end_ids(self) -> frozenset[int]: ...
    def prompt_tokens(
        self, conversation: Conversation, options: Mapping[str, TemplateOption] | None = None
    ) -> list[int]: ...
    def text_tokens(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class ProofPrompt:
    """One prompt and its reference.

    Attributes:
        conversation: The prompt as a client of the export sends it; None if there is only `text`.
        text: The prompt as the source writes it.
        prompt_ids: The prompt in tokens of the source's tokenizer.
        reference_ids: The reference in tokens, including the end token; empty without a reference.
    """

    conversation: Conversation | None
    text: str
    prompt_ids: tuple[int, ...]
    reference_ids: tuple[int, ...]

    @property
    def ids(self) -> list[int]:
        """Prompt and reference."""
        return [*self.prompt_ids, *self.reference_ids]


@dataclass(frozen=True, slots=True)
class SourcePrompts:
    """The way a source writes prompts, and the prompts of a check.

    Attributes:
        source: The model.
        prompts: The prompts that fit into its context.
        end_id: The token at the end of its answers.
        end_token: The text of that token.
        is_plain: Whether it writes conversations without a chat template.
        knows_developer: Whether its template has that role.
        switches: Options of its exported template that switch thoughts on and off, with the values of training.
        template_day: The date given to its template; None if the template does not use it.
        filled: Template variables that llama.cpp sets to today's date.
    """

    source: ExportSource
    prompts: tuple[ProofPrompt, ...]
    end_id: int
    end_token: str
    is_plain: bool
    knows_developer: bool
    switches: Mapping[str, TemplateOption]
    template_day: str | None
    filled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TokenFindings:
    """Comparison of a runtime's tokens with the source's.

    Attributes:
        num_same: Prompts with the same tokens.
        given_options: Template options that are needed for the source's tokens; empty if none are.
        reasons: Reasons against using the export, one sentence each.
    """

    num_same: int
    given_options: dict[str, TemplateOption] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def source_prompts(source: ExportSource, examples: Sequence[Example]) -> SourcePrompts:
    """The prompts of held-out examples, without those longer than the context of the source.

    The prompt of an example is the conversation before its last answer, and that answer is the reference. For plain
    text they are the first and the second half. A template with a date writes the fixed day of training.

    Raises:
        RequestError: no example fits, or none has a reference.
        NotFoundError, ModelSourceError, TemplateError: loading or rendering fails.
    """
    from luthier.ml.export.exporters.companions import source_template, template_of_export
    from luthier.ml.inference.models.architecture import context_tokens, load_config
    from luthier.ml.inference.models.templates.jinja_sandbox import filled_names
    from luthier.ml.inference.models.templates.thinking_probe import default_switches

    template = source_template(source)
    exported = template_of_export(source, template)
    turns = _Turns(template, source.opted_turns, exported.says_turns)
    room = context_tokens(load_config(source.base_path)) - _num_virtual_tokens(source)
    prompts = tuple(
        prompt
        for prompt in (_prompt(example, turns) for example in examples)
        if prompt.prompt_ids and len(prompt.prompt_ids) + max(len(prompt.reference_ids), NUM_NEW_TOKENS) <= room
    )
    if not any(prompt.reference_ids for prompt in prompts):
        raise RequestError(
            f"{len(examples)} examples, {len(prompts)} with a prompt that fits into {room} tokens, "
            "none of them with an answer",
            expected="held-out examples with prompt and answer, shorter than the context of the model",
            do="prove the export on other held-out rows",
        )
    own = str(template.tokenizer.chat_template or "")
    is_chat = template.kind == "chat"
    return SourcePrompts(
        source=source,
        prompts=prompts,
        end_id=template.end_of_turn_ids[0],
        end_token=template.end_of_turn,
        is_plain=not is_chat,
        knows_developer="developer" in own,
        switches=default_switches(exported.text, template.tokenizer.special_tokens_map) if is_chat else {},
        template_day=template.fixed_day,
        filled=filled_names(own) if is_chat else (),
    )


def compared_tokens(seen: SourcePrompts, prompts: Sequence[ProofPrompt], runtime: TokenRuntime) -> TokenFindings:
    """Compare a runtime's own tokens of prompts, and the token at which it ends an answer.

    Args:
        seen: The source.
        prompts: The prompts to compare.
        runtime: The open export.
    """
    # Some runtimes set template options themselves (llama.cpp: enable_thinking), overriding the defaults.
    trained = seen.source.template_options
    # The fewest options first: an export that needs none is best.
    candidates = [dict[str, TemplateOption](), trained, {**seen.switches, **trained}]
    given, others = candidates[0], list[str | None]()
    for number, options in enumerate(candidates):
        if options in candidates[:number]:
            continue
        made = [_other_tokens(runtime, seen, prompt, options) for prompt in prompts]
        # `None` counts prompts with the same tokens; the options with most of them win.
        if not others or made.count(None) > others.count(None):
            given, others = options, made
        if others.count(None) == len(prompts):
            break
    reasons = []
    if not runtime.has_template and not seen.is_plain:
        reasons.append("The export has no chat template, and the source has one.")
    if differing := [(number, other) for number, other in enumerate(others, start=1) if other is not None]:
        number, other = differing[0]
        reasons.append(f"The tokens of {len(differing)} prompts differ; prompt {number} of {len(prompts)}: {other}.")
    if seen.end_id not in runtime.end_ids:
        reasons.append(f"The export does not end an answer at {seen.end_token!r} (token {seen.end_id}).")
    return TokenFindings(others.count(None), given, tuple(reasons))


def _other_tokens(
    runtime: TokenRuntime, seen: SourcePrompts, prompt: ProofPrompt, options: Mapping[str, TemplateOption]
) -> str | None:
    """The difference between the tokens of export and source for a prompt, with `options` for the template; None if
    equal."""
    expected = list(prompt.prompt_ids)
    plain = runtime.text_tokens(prompt.text)
    if prompt.conversation is None:
        expected = prompt.ids  # for plain text the prompt is the first half of the tokens
    if prompt.conversation is None or not runtime.has_template:
        return None if plain == expected else f"{_first_difference(expected, plain)}: another tokenizer"
    try:
        found = runtime.prompt_tokens(_with_known_roles(prompt.conversation, seen.knows_developer), options)
    except TemplateError as error:
        return error.came
    if found == expected:
        return None
    # A template may write the beginning-of-text token, and the tokenizer may add it again to plain text.
    is_template = expected in (plain, plain[1:])
    return f"{_first_difference(expected, found)}: another {'chat template' if is_template else 'tokenizer'}"


def _first_difference(expected: list[int], found: list[int]) -> str:
    same = 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    return (
        f"its tokens are other ones from token {same + 1} on: {found[same : same + 5]} ({len(found)} in all) "
        f"where the source has {expected[same : same + 5]} ({len(expected)} in all)"
    )


def _with_known_roles(conversation: Conversation, knows_developer: bool) -> Conversation:
    """The conversation with `developer` replaced by `system` if the source's template does not know the newer name."""
    if knows_developer:
        return conversation
    messages = tuple(
        message.model_copy(update={"role": "system"}) if message.role == "developer" else message
        for message in conversation.messages
    )
    return conversation.model_copy(update={"messages": messages})


def _num_virtual_tokens(source: ExportSource) -> int:
    """Context positions that a trained prompt takes."""
    from luthier.ml.inference.models.structure import read_json

    if source.adapter_path is None or not (file := Path(source.adapter_path) / "adapter_config.json").is_file():
        return 0
    return int(read_json(file).get("num_virtual_tokens") or 0)


@dataclass(frozen=True, slots=True)
class _Turns:
    """The way the source writes turns, and whether its export rewrites them itself."""

    template: ChatTemplate
    opted: OptedTurns
    says_turns: bool

    def trained(self, conversation: Conversation) -> Conversation:
        """The turns as written in training."""
        return rewritten(self.opted, conversation, form_of(text_of(self.template)))

    def sent(self, conversation: Conversation) -> Conversation:
        """The turns as a client of the export sends them, with separate thoughts if the template expects them so.

        If the export cannot rewrite turns itself, its users do.
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


def _prompt(example: Example, turns: _Turns) -> ProofPrompt:
    template = turns.template
    conversation = None if example.conversation is None else _with_full_tools(example.conversation)
    if conversation is None:
        ids, _ = template.encode(example.text or "")
        # Rounded up, so that a one-token text has a prompt.
        half = (len(ids) + 1) // 2
        return ProofPrompt(None, example.text or "", tuple(ids[:half]), tuple(ids[half:]))
    last = conversation.last_answer
    asked = turns.sent(conversation if last is None else conversation.up_to(last))
    text = template.render(turns.trained(asked), add_generation_prompt=True)
    if last is None:
        return ProofPrompt(asked, text, tuple(template.encode(text)[0]), ())
    whole = template.render(turns.trained(conversation.up_to(last + 1)))
    # With templates that alter earlier turns (for example thinking), the text does not continue their own prompt.
    rest = whole[len(text) :] if whole.startswith(text) else (example.reference or "") + template.end_of_turn
    reference = template.tokenizer.backend_tokenizer.encode(rest, add_special_tokens=False).ids
    end = template.end_of_turn_ids[0]
    # Up to the end token: line feeds after it are not part of an answer.
    if end in reference:
        reference = reference[: reference.index(end) + 1]
    return ProofPrompt(asked, text, tuple(template.encode(text)[0]), tuple(reference))


def _with_full_tools(conversation: Conversation) -> Conversation:
    """The conversation with every tool field written out: runtimes fill in missing ones, each differently.

    Call arguments are written as standard JSON: runtimes parse and write them again.
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
    except (TypeError, ValueError):  # the renderer reports the fault
        return call
    return {**call, "function": {**function, "arguments": arguments}}

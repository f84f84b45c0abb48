"""The files next to the weights in every format: tokenizer, chat template, stop tokens, generation config.

The chat template of an export writes conversations as in training, in any renderer and without arguments:

    template options    a default in front of the template; what a caller gives still counts
    system: fold        the system text goes before the first user turn
    tools: as_text      tools, calls and their results become text
    reasoning           thoughts become text of the content, or are left out

All of it is Jinja in front of the model's own template. It is tested on rows of every kind
(`core/workflows/trial_rows.py`): without arguments it must render, byte for byte, what the model's own template renders
with the options and the rewritten turns.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.conversation import AS_THEY_ARE, Conversation, Message, OptedTurns
from luthier.core.errors import RequestError, TemplateError
from luthier.core.json_limits import json_utf8
from luthier.core.recipe import TemplateOption
from luthier.core.records.export import ExportSource
from luthier.core.workflows.trial_rows import TRIAL_ROWS
from luthier.ml.inference.engine_prompts import rewritten, text_of
from luthier.ml.inference.models.architecture import TOKENIZER_FILES, load_config, num_embeddings
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.models.templates.thought_writing import FIELDS, TAGS
from luthier.ml.inference.tool_calls.as_text import TOOL_RESPONSE, TOOLS_PROMPT
from luthier.ml.inference.tool_calls.forms import ToolForm, form_of

_SYSTEM: Final = "['system', 'developer']"
_TURNS: Final = "trained.turns"
_START: Final = "{%- set trained = namespace(turns=[], text='', thought=none, is_folded=false) %}"


@dataclass(frozen=True, slots=True)
class ExportedTemplate:
    """An exported template.

    Attributes:
        text: Jinja.
        says_turns: whether it rewrites turns as training did, so that it is given the original turns.
        notes: what users must do themselves, one sentence each.
    """

    text: str
    says_turns: bool
    notes: tuple[str, ...] = ()


def exported_template(template: ChatTemplate, opted: OptedTurns, own: str) -> ExportedTemplate:
    """The template of an export.

    Args:
        template: The template of training, with its options.
        opted: The options by which turns were rewritten.
        own: The text of the template without these; for the plain layout, that layout as a template.

    Raises:
        RequestError: the options cannot be put into the template.
    """
    defaults = _defaults(template)
    plain = defaults + own
    # Checked without the rewriting, which must not be blamed for an unsuitable default.
    if template.options and (fault := _fault(template, AS_THEY_ARE, plain)):
        raise RequestError(
            f"the template options {json.dumps(dict(template.options))} cannot be written into the exported chat "
            f"template: it renders something else for {fault}",
            expected="a template that takes its options as defaults",
            do="serve the run itself, or train with a template that has these options written into it",
        )
    if opted == AS_THEY_ARE:
        return ExportedTemplate(plain, says_turns=True)
    # In front of the model's own template, which then reads rewritten `messages` and `tools`.
    text = defaults + _rewriting(template, opted) + own
    if (fault := _fault(template, opted, text)) is None:
        return ExportedTemplate(text, says_turns=True)
    note = (
        f"the exported chat template cannot write turns as training did (it differs for {fault}), so users of the "
        f"model must do so before: {what_to_do(template, opted)}"
    )
    return ExportedTemplate(plain, says_turns=False, notes=(note,))


def what_to_do(template: ChatTemplate, opted: OptedTurns) -> str:
    """What users must do in a runtime that does not run the exported template."""
    steps = []
    if opted.reasoning == "as_text" and template.thoughts is not None:
        steps.append("send thoughts of earlier turns as reasoning_content")
    elif opted.reasoning == "as_text":
        steps.append("write thoughts of earlier turns into their content, in <think> tags")
    if opted.reasoning == "drop":
        steps.append("leave thoughts of earlier turns out")
    if opted.tools_as_text:
        steps.append("write tools into the system text, and calls and results as text")
    if opted.folds_system:
        steps.append("put the system text and a blank line before the first user turn")
    return "; ".join(steps)


def _defaults(template: ChatTemplate) -> str:
    """Jinja that sets each option that is not given, and an empty list of tools if the template needs a list."""
    # Only if it is not defined: the caller's value takes precedence.
    lines = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_quoted(value)} %}}{{%- endif %}}\n"
        for name, value in sorted(template.options.items())
    ]
    if template.no_tools is not None:
        lines.append("{%- if not tools %}{%- set tools = [] %}{%- endif %}\n")
    return "".join(lines)


def _rewriting(template: ChatTemplate, opted: OptedTurns) -> str:
    """Jinja that replaces `messages` by rewritten turns, in the order of `ml.inference.opted_turns.rewritten`."""
    lines = [_START]
    if opted.reasoning is not None:
        lines += _thoughts(keeps=opted.reasoning == "as_text")
    if opted.tools_as_text:
        lines += _tools(template, form_of(text_of(template)))
    if opted.folds_system:
        lines += _fold()
    return "".join(f"{line}\n" for line in lines)


def _thoughts(*, keeps: bool) -> Iterator[str]:
    start, end = TAGS[0]
    written = f"'{start}\\n' ~ (trained.thought | trim) ~ '\\n{end}\\n\\n' ~ " if keeps else ""
    tags = json.dumps([list(pair) for pair in TAGS])
    yield f"{{%- set {_TURNS} = [] %}}"
    yield "{%- for turn in messages %}"
    yield "{%- set trained.thought = none %}"
    # `trained` is a namespace: in Jinja a plain `set` inside a loop is lost at the end of the loop.
    yield "{%- set trained.text = turn.content if turn.content is string else '' %}"
    yield "{%- if turn.role == 'assistant' and (turn.content is string or not turn.content) %}"
    for number, field in enumerate(FIELDS):
        begins = "elif" if number else "if"
        yield f"{{%- {begins} turn.{field} is string %}}{{%- set trained.thought = turn.{field} %}}"
    yield "{%- else %}"
    yield f"{{%- for tags in {tags} %}}"
    yield "{%- if trained.thought is none and trained.text.lstrip().startswith(tags[0]) and tags[1] in trained.text %}"
    yield "{%- set pieces = trained.text.split(tags[1]) %}"
    yield "{%- set thought = pieces[0].lstrip()[(tags[0] | length):] | trim %}"
    yield "{%- if thought %}{%- set trained.thought = thought %}"
    yield "{%- set trained.text = (pieces[1:] | join(tags[1])).lstrip() %}{%- endif %}"
    yield "{%- endif %}{%- endfor %}{%- endif %}{%- endif %}"
    yield "{%- if trained.thought is none %}" + _add("turn")
    yield "{%- elif turn.tool_calls %}" + _add(
        f"{{'role': 'assistant', 'content': {written}trained.text, 'tool_calls': turn.tool_calls}}"
    )
    yield "{%- else %}" + _add(f"{{'role': 'assistant', 'content': {written}trained.text}}")
    yield "{%- endif %}{%- endfor %}"
    yield f"{{%- set messages = {_TURNS} %}}"


def _tools(template: ChatTemplate, form: ToolForm) -> Iterator[str]:
    """The same as `ml.inference.tool_calls.as_text.with_tools_as_text`."""
    # The server's text, split at a character that it cannot contain, where Jinja inserts the tools.
    before, _, after = TOOLS_PROMPT.format(
        example=form.written("...", "{...}", quotes=False), functions="\0"
    ).partition("\0")
    begin, end = TOOL_RESPONSE
    opening, closing = form.written("\0", "\1", quotes=False).split("\0")[0], form.written("", "\1").split("\1")[1]
    middle = form.written("\0", "\1", quotes=False).split("\0")[1].split("\1")[0]
    yield f"{{%- set {_TURNS} = [] %}}"
    yield "{%- for turn in messages %}"
    yield "{%- set text = turn.content if turn.content is string else "
    yield "((turn.content or []) | map(attribute='text') | join) %}"
    yield "{%- if turn.role in ['tool', 'function'] %}"
    yield _add(f"{{'role': 'user', 'content': {_quoted(begin)} ~ text ~ {_quoted(end)}}}")
    yield "{%- elif turn.tool_calls %}"
    yield "{%- set trained.text = text %}"
    yield "{%- for call in turn.tool_calls %}"
    yield "{%- set called = call.function if call.function else call %}"
    yield "{%- set arguments = called.arguments if called.arguments is string else "
    yield "((called.arguments or {}) | tojson) %}"
    yield (
        "{%- set trained.text = trained.text ~ ('\\n' if trained.text else '') ~ "
        f"{_quoted(opening)} ~ (called.name | tojson) ~ {_quoted(middle)} ~ (arguments or '{{}}') ~ "
        f"{_quoted(closing)} %}}"
    )
    yield "{%- endfor %}"
    answer = "{'role': turn.role, 'content': trained.text"
    writing = template.thoughts
    if writing is not None and writing.way == "field":
        yield f"{{%- if turn.{writing.field} is string %}}" + _add(
            f"{answer}, '{writing.field}': turn.{writing.field}}}"
        )
        yield "{%- else %}" + _add(answer + "}") + "{%- endif %}"
    else:
        yield _add(answer + "}")
    yield "{%- else %}" + _add("turn") + "{%- endif %}"
    yield "{%- endfor %}"
    yield "{%- if tools %}"
    yield f"{{%- set trained.text = {_quoted(before)} %}}"
    yield "{%- for tool in tools %}{%- set trained.text = trained.text ~ ('' if loop.first else '\\n') ~ "
    yield "((tool.function if tool.function else tool) | tojson) %}{%- endfor %}"
    yield f"{{%- set trained.text = trained.text ~ {_quoted(after)} %}}"
    yield f"{{%- if {_TURNS} and {_TURNS}[0].role in {_SYSTEM} %}}"
    yield (
        f"{{%- set {_TURNS} = [{{'role': {_TURNS}[0].role, 'content': ({_TURNS}[0].content or '') ~ '\\n\\n' ~ "
        f"trained.text}}] + {_TURNS}[1:] %}}"
    )
    yield f"{{%- else %}}{{%- set {_TURNS} = [{{'role': 'system', 'content': trained.text}}] + {_TURNS} %}}"
    yield "{%- endif %}{%- endif %}"
    yield f"{{%- set messages = {_TURNS} %}}{{%- set tools = {'none' if template.no_tools is None else '[]'} %}}"


def _fold() -> Iterator[str]:
    yield "{%- set trained.text = '' %}"
    yield "{%- for turn in messages %}"
    yield f"{{%- if turn.role in {_SYSTEM} and turn.content %}}"
    yield "{%- set text = turn.content if turn.content is string else (turn.content | map(attribute='text') | join) %}"
    yield "{%- set trained.text = trained.text ~ ('\\n\\n' if trained.text else '') ~ text %}"
    yield "{%- endif %}{%- endfor %}"
    yield "{%- if trained.text %}"
    yield f"{{%- set {_TURNS} = [] %}}{{%- set trained.is_folded = false %}}"
    yield "{%- for turn in messages %}"
    yield "{%- if turn.role == 'user' and not trained.is_folded %}"
    yield "{%- set trained.is_folded = true %}"
    yield "{%- if turn.content is string or not turn.content %}"
    yield _add("{'role': 'user', 'content': trained.text ~ '\\n\\n' ~ (turn.content or '')}")
    yield "{%- elif turn.content[0].type == 'text' %}" + _add(
        "{'role': 'user', 'content': [{'type': 'text', 'text': trained.text ~ '\\n\\n' ~ turn.content[0].text}] + "
        "turn.content[1:]}"
    )
    yield "{%- else %}" + _add(
        "{'role': 'user', 'content': [{'type': 'text', 'text': trained.text ~ '\\n\\n'}] + turn.content}"
    )
    yield "{%- endif %}"
    yield f"{{%- elif turn.role not in {_SYSTEM} %}}" + _add("turn") + "{%- endif %}"
    yield "{%- endfor %}"
    yield "{%- if not trained.is_folded %}"
    yield f"{{%- set {_TURNS} = [{{'role': 'user', 'content': trained.text}}] + {_TURNS} %}}{{%- endif %}}"
    yield f"{{%- set messages = {_TURNS} %}}"
    yield "{%- endif %}"


def _add(turn: str) -> str:
    return f"{{%- set {_TURNS} = {_TURNS} + [{turn}] %}}"


def _quoted(value: TemplateOption) -> str:
    """A value as a Jinja literal, with text escapes that every engine knows."""
    return json.dumps(value, ensure_ascii=False)


def _fault(template: ChatTemplate, opted: OptedTurns, text: str) -> str | None:
    """The kind of row for which the exported template renders differently than in training; None if none."""
    form = form_of(text_of(template))
    for kind, row in TRIAL_ROWS.items():
        whole = _conversation(row)
        # Each prefix as a prompt and as a whole: templates may write the last turn differently from earlier ones.
        for end, opens in _ends(whole):
            turns = whole.up_to(end)
            try:
                # The rendering of training; a row that training would reject cannot differ.
                expected = template.render(rewritten(opted, turns, form), add_generation_prompt=opens)
            except TemplateError:
                continue
            sent = _as_sent(template, opted, turns)
            if template.attempt(text, sent, turns.tools, opens=opens) != expected:
                return kind
            if opted == AS_THEY_ARE and not _callers_win(template, text, sent, turns.tools, opens=opens):
                return f"{kind}, and an option that a caller gives"
    return None


def _callers_win(
    template: ChatTemplate, text: str, sent: list[dict[str, Any]], tools: tuple[dict[str, Any], ...], *, opens: bool
) -> bool:
    """Whether an option that a caller sets overrides the default."""
    for name, value in template.options.items():
        if isinstance(value, bool):
            other = template.with_options({**template.options, name: not value})
            expected = other.attempt(None, sent, tools, opens=opens)
            if template.attempt(text, sent, tools, opens=opens, options={name: not value}) != expected:
                return False
    return True


def _ends(whole: Conversation) -> Iterator[tuple[int, bool]]:
    """The position where a conversation is cut, and whether an answer begins there."""
    for number, message in enumerate(whole.messages):
        if message.role == "assistant":
            yield number, True
            yield number + 1, False


def _as_sent(template: ChatTemplate, opted: OptedTurns, turns: Conversation) -> list[dict[str, Any]]:
    """The messages as a client sends them to a server with this model."""
    documents = template.documents(turns)
    if opted.reasoning is None:
        return documents
    for document, message in zip(documents, turns.messages, strict=True):
        document["content"] = message.content or ""
        for field in FIELDS:
            document.pop(field, None)
        if message.reasoning is not None:
            # Clients send thoughts in one field (`reasoning_content`), regardless of the name that the template reads.
            document[FIELDS[0]] = message.reasoning
    return documents


def _conversation(row: Mapping[str, Any]) -> Conversation:
    messages = []
    for document in row["messages"]:
        fields = {("reasoning" if name in FIELDS else name): value for name, value in document.items()}
        messages.append(Message.model_validate(fields))
    return Conversation(messages=tuple(messages), tools=tuple(row.get("tools", ())))


_PROBE: Final = Conversation(messages=(Message(role="user", content="Which wood?"),))


@dataclass(frozen=True, slots=True)
class Turns:
    """How an export writes and ends turns.

    Attributes:
        template: the template of the source, with its options.
        stop_ids: the tokens that end an answer, that of the template first.
        stops: their texts.
        beginning: the text of the token at the start of every prompt, or empty.
        settings: the generation config.
        opted: the options by which turns were rewritten in training.
        notes: what users must do so that turns are as in training, one sentence each.
    """

    template: ChatTemplate
    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]
    beginning: str
    settings: dict[str, Any]
    opted: OptedTurns
    notes: tuple[str, ...]


def source_template(source: ExportSource) -> ChatTemplate:
    """The chat template of a source with the options of its training.

    Raises:
        NotFoundError, ModelSourceError: the folder or its tokenizer is missing or damaged.
        RequestError, TemplateError: the template cannot be used.
    """
    return ChatTemplate.load(source.base_path, source.template, options=source.template_options)


def template_of_export(source: ExportSource, template: ChatTemplate) -> ExportedTemplate:
    """The chat template of an export of this source.

    Args:
        source: the model.
        template: the template of the source.

    Raises:
        RequestError: the options cannot be put into it.
    """
    # A chat template without the beginning token omits it on purpose (`ChatTemplate.encode`).
    own = _own_text(template) if template.kind == "chat" else _plain_layout(template, _beginning(template))
    return exported_template(template, source.opted_turns, own)


def write_companions(source: ExportSource, target: Path) -> Turns:
    """Write the tokenizer of the source's base into `target`, with the template and the stop tokens of training.

    The plain layout, which base models without a template use, is written as a template, so that other runtimes see the
    tokens of training. Template options and the rewriting of turns in training are written into the template
    (`exported_template`).

    Raises:
        NotFoundError, ModelSourceError: the folder or its tokenizer is missing or damaged.
        RequestError, TemplateError: the template cannot be used, or its options cannot be put into it.
    """
    base = Path(source.base_path)
    template = source_template(source)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    beginning = _beginning(template)
    exported = template_of_export(source, template)
    (target / "chat_template.jinja").write_text(exported.text, encoding="utf-8", newline="\n")
    config_file = target / "tokenizer_config.json"
    config = _read(config_file)
    # With two templates in one folder, the one that is read would depend on the version of the runtime.
    if config.pop("chat_template", None) is not None:  # the file above is used
        _write(config_file, config)
    settings = _generation_config(base, template)
    _write(target / "generation_config.json", settings)
    stops = tuple(template.tokenizer.convert_ids_to_tokens(list(template.end_of_turn_ids)))
    return Turns(template, template.end_of_turn_ids, stops, beginning, settings, source.opted_turns, exported.notes)


def _own_text(template: ChatTemplate) -> str:
    """The text of a chat template; a separate template for tools is combined with it."""
    texts = template.tokenizer.chat_template
    if isinstance(texts, dict) and {"default", "tool_use"} <= texts.keys():
        # Other runtimes than transformers support only one template.
        return f"{{%- if tools %}}\n{texts['tool_use']}{{%- else %}}\n{texts['default']}{{%- endif %}}"
    return str(template.tokenizer.get_chat_template())


def _beginning(template: ChatTemplate) -> str:
    """The text of the token at the start of every prompt; empty without one."""
    ids, _ = template.encode(template.render(_PROBE, add_generation_prompt=True))
    bos = template.tokenizer.bos_token_id
    return str(template.tokenizer.bos_token) if bos is not None and ids[:1] == [bos] else ""


def _plain_layout(template: ChatTemplate, beginning: str) -> str:
    # JSON strings are Jinja strings: quotes and backslashes in a token are escaped.
    end = json.dumps(template.end_of_turn, ensure_ascii=False)
    return ("{{- " + json.dumps(beginning, ensure_ascii=False) + " -}}" if beginning else "") + (
        "{%- for message in messages -%}"
        "{{- message.content -}}"
        "{%- if message.role == 'assistant' -%}{{- " + end + " -}}{%- else -%}{{- '\\n' -}}{%- endif -%}"
        "{%- endfor -%}"
    )


def _generation_config(base: Path, template: ChatTemplate) -> dict[str, Any]:
    """The generation settings of the base, with every token that ends an answer."""
    config = _read(base / "generation_config.json")
    ids = list(template.end_of_turn_ids)
    config["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    # Finished rows of a batch are filled with it, so it needs an embedding: some settings write -1, and some tokenizers
    # name a token beyond the matrix. Without it, transformers takes the end token.
    known = num_embeddings(load_config(base))
    asked = (config.pop("pad_token_id", None), template.tokenizer.pad_token_id)
    usable = [one for one in asked if isinstance(one, int) and 0 <= one < known]
    return config | ({"pad_token_id": usable[0]} if usable else {})


def _read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return document


def _write(file: Path, document: dict[str, Any]) -> None:
    file.write_bytes(json_utf8(document, indent=2, sort_keys=True) + b"\n")

"""Tool calls: their formats, streaming parsers that separate them from text, and tool descriptions for prompts.

    family                      form of a call                                                          recognised by
    Hermes, Qwen, SmolLM2/3     <tool_call>{"name": "f", "arguments": {...}}</tool_call>                 <tool_call>
    Qwen3-Coder, Qwen3.5, GLM   <tool_call>...</tool_call>, with tags (`tagged`)                         <tool_call>
    Luthier's own tiny model    <call>{"name": "f", "arguments": {...}}</call>                           <call>
    Mistral                     [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]                     [TOOL_CALLS]
    Mistral from Small 3.2 on   [TOOL_CALLS]f[ARGS]{...}[TOOL_CALLS]...                                  [TOOL_CALLS]
    gpt-oss                     in its own channel (`channels`)                       <|channel|>commentary
    Kimi K2, DeepSeek from V3,  as Hermes, and in their own forms (`native`)                         their own marks
    LFM2, Gemma 4, Seed-OSS,
    MiniMax M2, Olmo 3, ...
    Granite 3                   <|tool_call|>[{"name": "f", "arguments": {...}}, ...]                    <|tool_call|>
    Llama 3 and 4               {"name": "f", "parameters": {...}} alone, with or without <|python_tag|> before it,
                                several parted by semicolons, or [f(key="value"), ...] alone, as Python writes it
    any of them in JSON         also {"type": "function", "function": {"name": "f", ...}}, as tools are described
    all others                  as Hermes

The format is chosen by searching the text of the model's chat template. Text that only looks like a call (invalid JSON,
a tool that was not offered) is returned as text. The arguments of a call are streamed incrementally.

For models whose chat template does not support tools, the system message describes them. The instructions, and the
format of earlier calls and their results in the conversation, are always the same:

    system      ...its own text, if there is one...
                You may call these functions. To call one, write:
                <tool_call>{"name": ..., "arguments": {...}}</tool_call>
                and nothing after it; its result comes in the next message.
                Functions, one a line, with the JSON schema of their arguments:
                {"name": ..., "description": ..., "parameters": {...}}
    assistant   <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    user        <tool_response>...</tool_response>
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from luthier.core.json_limits import json_text
from luthier.core.stream import CallPiece, TextRequest
from luthier.ml.inference.models.templates.thinking import num_open
from luthier.ml.inference.tool_calls import channels
from luthier.ml.inference.tool_calls.arguments import TOOL_NAME, CallArguments
from luthier.ml.inference.tool_calls.grammars import TokenId, functions_of, required_calls, strict_calls
from luthier.ml.inference.tool_calls.native import (
    APERTUS,
    COMMAND,
    COMMAND_R,
    DEEPSEEK,
    DEEPSEEK_V3_2,
    DEEPSEEK_V4,
    DSML,
    FUNCTION_GEMMA,
    GEMMA,
    GIGACHAT,
    INTERN,
    JAMBA,
    KIMI,
    LFM,
    MINIMAX,
    MINIMAX_M3,
    NEMOTRON,
    OLMO,
    SEED,
    STEP,
    NativeCallReader,
    NativeForm,
    calls_of,
)
from luthier.ml.inference.tool_calls.tagged import may_begin, tagged_call
from luthier.ml.inference.tool_calls.values import encodable, json_string, may_begin_list, named_arguments, python_calls

_BLANKS: Final = " \t\r\n"
_NAME: Final = r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
_KEY: Final = re.compile(r',\s*"')
_BARE: Final = re.compile(rf"({TOOL_NAME})(?:\[CALL_ID\][a-zA-Z0-9]*)?\[ARGS\]\s*(?=\{{)")
_BARE_BEGINNING: Final = re.compile(rf"{TOOL_NAME}(?:\[[A-Z_]*(?:\][a-zA-Z0-9]*\s*(?:\[[A-Z]*(?:\]\s*)?)?)?)?")


class ToolCallReader:
    """Reads one answer.

    Args:
        begin: the text before a call.
        end: the text after a call; may be empty.
        only_whole: whether calls must be the whole answer; text behind them is left out.
        is_list: whether calls are in a JSON list after `begin`.
        tools: of each callable tool the schema of its arguments, by its name; a call of another one is returned as
            text.
        most: maximum number of reported calls, the rest is dropped; None for all.
        has_bare_tags: whether a call in tags may lack `begin`.

    Attributes:
        num_calls: calls begun so far.
    """

    def __init__(
        self,
        begin: str,
        end: str,
        *,
        only_whole: bool,
        is_list: bool,
        tools: Mapping[str, Any],
        most: int | None,
        has_bare_tags: bool = False,
    ) -> None:
        self._begin, self._end, self._is_list = begin, end, is_list
        self._begins = (begin, *(f"<function={name}>" for name in tools if has_bare_tags))
        self._tools, self._most = tools, most
        self._held = ""
        self._is_inside = only_whole
        self._arguments: CallArguments | None = None
        self._is_bare = False  # a call in tags without `begin`
        self._is_behind = False  # after the arguments of a call, before its end
        self._is_open = False  # of the object of the call: further keys may follow its arguments
        self._opening = begin  # emitted as text if it turns out not to be a call
        self._only_whole = only_whole
        self._num_closed = -1  # braces in what was last tried as JSON
        self.num_calls = 0

    @property
    def num_held(self) -> int:
        """Characters that are held back."""
        return len(self._held) + (len(self._opening) if self._is_inside else 0)

    def add(self, text: str) -> tuple[str, list[CallPiece]]:
        """Process more text; returns what is certain so far: plain text and parts of calls."""
        self._held += text
        emitted, calls = "", list[CallPiece]()
        while True:
            # One piece of text may end a call and begin the next: repeated until nothing changes.
            before = (self._held, self._is_inside, self._is_behind)
            if self._arguments is not None:
                calls += self._more_arguments(self._arguments)
            elif self._is_behind:
                self._skip_end()
            elif self._is_inside:
                emitted += self._head(calls)
            else:
                emitted += self._text()
            if before == (self._held, self._is_inside, self._is_behind):
                return emitted, calls

    def end(self) -> tuple[str, list[CallPiece]]:
        """What was held back: no text comes any more."""
        left, self._held = self._held, ""
        if self._only_whole and self._is_inside and (found := self._python_calls(left)):
            return "", found
        one = tagged_call(left, self._tools) if self._is_inside and left.rstrip().endswith("</function>") else None
        if one is not None:
            return "", [self._begun(one[0]).model_copy(update={"arguments": json_text(one[1])})]
        # A truncated call stays as streamed: its arguments cannot be withdrawn.
        if self._arguments is not None or self._is_behind or (self.num_calls and not left.strip(_BLANKS)):
            return "", []
        if self._only_whole and self.num_calls:
            return "", []
        if self._is_inside and not self._only_whole:
            left, self._opening = self._opening + left, ""
        return left, []

    def _text(self) -> str:
        """Text up to where a call begins or may begin."""
        if self._only_whole or not self._begin:
            return self._take(len(self._held)) if not self.num_calls else self._drop()
        found = [(place, mark) for mark in self._begins if (place := self._held.find(mark)) >= 0]
        if found:
            place, mark = min(found)
            before = self._take(place)
            emitted = before.rstrip(_BLANKS)
            self._is_bare = mark != self._begin
            self._opening = before[len(emitted) :] + ("" if self._is_bare else self._take(len(mark)))
            self._is_inside = True
            return emitted
        # The end of the text may be the beginning of a delimiter, and blanks before a delimiter are not part of the
        # text.
        sure = len(self._held) - max(num_open(self._held, mark) for mark in self._begins)
        sure = len(self._held[:sure].rstrip(_BLANKS))
        if self.num_calls and not self._held[:sure].strip(_BLANKS):
            return ""
        return self._take(sure)

    def _head(self, calls: list[CallPiece]) -> str:
        """Parse up to the arguments of a call; returns what turned out to be text."""
        if self._most is not None and self.num_calls >= self._most:
            # More calls than requested: without a delimiter to search for, the rest is dropped.
            self._is_inside, self._begin = False, ""
            return self._drop()
        if self._is_list:
            # A further call may have its own mark.
            opened = self._held.lstrip(_BLANKS)
            if opened.startswith(self._begin):
                self._opening, opened = self._begin, opened[len(self._begin) :]
            elif self.num_calls and opened and self._begin.startswith(opened):
                return ""
            self._held = opened.lstrip(_BLANKS + "[,")
            if self._held.startswith("]"):
                self._is_inside = False
                self._take(1)
                return ""
        if self._only_whole and self._held.lstrip(_BLANKS).startswith("["):
            # Read at the end of the answer: what follows could make it a text that begins so.
            return "" if may_begin_list(self._held, self._tools) else self._give_up()
        # Name first, then arguments: in this order the arguments can be streamed.
        if (match := re.match(_NAME, self._held)) is not None:
            name = json_string(match[1])
            if name not in self._tools:
                return self._give_up()
            self._take(match.end())
            calls.append(self._begun(name))
            self._arguments = CallArguments()
            return ""
        return self._bare(calls) if self._is_list and not self._held.startswith("{") else self._whole(calls)

    def _bare(self, calls: list[CallPiece]) -> str:
        """Parse a call that has its name outside of its arguments; returns what turned out to be text."""
        match = _BARE.match(self._held)
        if match is None or match[1] not in self._tools:
            may_come = match is None and (not self._held or _BARE_BEGINNING.fullmatch(self._held) is not None)
            return "" if may_come else self._give_up()
        self._take(match.end())
        calls.append(self._begun(match[1]))
        self._arguments = CallArguments()
        return ""

    def _whole(self, calls: list[CallPiece]) -> str:
        """Parse a complete call with another key order; returns what turned out to be text."""
        opened = self._held.lstrip(_BLANKS)
        if opened and not opened.startswith("{"):
            return self._tagged(opened, calls)
        # Parsed again where another brace may have completed it: an incomplete JSON object raises ValueError.
        before, self._num_closed = self._num_closed, opened.count("}")
        if before == self._num_closed and not (self._end and self._end in opened):
            return ""
        try:
            found, length = json.JSONDecoder().raw_decode(opened)
        except ValueError:
            # The closing delimiter is present but the JSON is invalid, and more text cannot fix it.
            is_complete = bool(self._end) and self._end in self._held
            return self._give_up() if is_complete else ""
        except RecursionError:  # nested more deeply than the parser supports
            return self._give_up()
        name, arguments = named_arguments(found)
        arguments = {} if arguments in (None, "") else arguments  # a call of a tool that takes none
        # A model may write any JSON as the name, such as a list, which is not hashable.
        if not isinstance(name, str) or name not in self._tools or not isinstance(arguments, dict | str):
            return self._give_up()
        text = encodable(arguments) if isinstance(arguments, str) else json_text(arguments)
        self._take(len(self._held) - len(opened) + length)
        calls.append(self._begun(name).model_copy(update={"arguments": text}))
        self._is_behind = True
        return ""

    def _tagged(self, opened: str, calls: list[CallPiece]) -> str:
        """Parse a call in tags once its end is there; returns what turned out to be text."""
        body, end, _ = opened.partition(self._end) if self._end else (opened, "", "")
        if not end and self._end and may_begin(opened, self._end, self._tools):
            return ""
        if not end or (found := tagged_call(body, self._tools)) is None:
            return self._give_up()
        self._take(len(self._held) - len(opened) + len(body))
        calls.append(self._begun(found[0]).model_copy(update={"arguments": json_text(found[1])}))
        self._is_behind = True
        return ""

    def _begun(self, name: str) -> CallPiece:
        self.num_calls += 1
        self._opening, self._num_closed, self._is_bare = "", -1, False  # it is part of this call
        return CallPiece(index=self.num_calls - 1, call_id=f"call_{uuid.uuid4().hex[:24]}", name=name)

    def _more_arguments(self, arguments: CallArguments) -> list[CallPiece]:
        text = self._take(arguments.num_own(self._held))
        if arguments.has_ended:
            self._arguments, self._is_behind, self._is_open = None, True, True
        return [CallPiece(index=self.num_calls - 1, arguments=text)] if text else []

    def _python_calls(self, text: str) -> list[CallPiece]:
        """The calls of a whole answer, as Python writes them; none where it is something else."""
        found = python_calls(text) if may_begin_list(text, self._tools) else None
        if found is None or any(name not in self._tools for name, _ in found):
            return []
        return [self._begun(name).model_copy(update={"arguments": json_text(own)}) for name, own in found[: self._most]]

    def _skip_end(self) -> None:
        """Parse the end of a call: further keys, braces, blanks and the closing delimiter."""
        self._held = self._held.lstrip(_BLANKS)
        if self._is_open and not self._skip_keys():
            return
        # The outer object's brace after the arguments; small models write one too many.
        self._held = self._held.lstrip(_BLANKS + "}")
        if not self._held or (self._end and len(self._held) < len(self._end) and self._end.startswith(self._held)):
            return
        if self._end and self._held.startswith(self._end):
            self._take(len(self._end))
        if self._only_whole:
            # Llama parts several calls by semicolons or line breaks.
            self._held = self._held.lstrip(_BLANKS + ";,")
            if not self._held:
                return
        # In a list the next call follows without a delimiter.
        self._is_behind = False
        self._is_inside = self._is_list or (self._only_whole and self._held.startswith("{"))

    def _skip_keys(self) -> bool:
        """Parse keys behind the arguments, such as the id that Mistral's templates write; false if more must come."""
        if not self._held or self._held.rstrip(_BLANKS) == ",":
            return False
        if _KEY.match(self._held):
            rest = CallArguments(depth=1)
            num = rest.num_own(self._held)
            if not rest.has_ended:
                return False
            self._take(num)
        self._is_open = False
        return True

    def _give_up(self) -> str:
        """Not a call: its beginning is text, and a call may still follow."""
        self._is_inside, self._num_closed = False, -1
        if self._only_whole and self.num_calls:  # as all that follows such calls
            return self._drop()
        opening = "" if self._only_whole else self._opening
        if self._is_bare:  # past its first character, so that the same mark is not found again
            opening, self._is_bare = opening + self._take(1), False
        return opening + (self._take(len(self._held)) if self._only_whole else "")

    def _take(self, num: int) -> str:
        taken, self._held = self._held[:num], self._held[num:]
        return taken

    def _drop(self) -> str:
        self._held = ""
        return ""


_INNER_MARKS: Final = ("[CALL_ID]", "[ARGS]", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")


@dataclass(frozen=True, slots=True)
class ToolForm:
    """The tool call format of a model family.

    Attributes:
        begin, end: delimiters of each call; `end` may be empty.
        key: name of the JSON key for the arguments.
        begins_only_answers: a call must be the whole answer.
        has_special_marks: `begin` is a special token in every vocabulary, which decoding usually omits.
        is_list: calls are in one JSON list.
        in_channels: the model writes calls in channels; required ones have the delimiters.
        native: the model's own form, which is read as well; required calls have the delimiters.
        joins_results: the template refuses two turns of the user in a row, which results as text would be.
        has_bare_tags: calls are in tags, and the model may leave out `begin`, as Qwen3-Coder does.
    """

    begin: str
    end: str
    key: str = "arguments"
    begins_only_answers: bool = False
    has_special_marks: bool = False
    is_list: bool = False
    in_channels: bool = False
    native: NativeForm | None = None
    joins_results: bool = False
    has_bare_tags: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts around and in a call that may be special tokens of a vocabulary."""
        inner: tuple[str, ...] = channels.MARKS if self.in_channels else _INNER_MARKS
        if self.native is not None:
            inner = self.native.marks
        return tuple(mark for mark in (self.begin, self.end, *inner) if mark)

    def written(self, name: str, arguments: str, *, quotes: bool = True) -> str:
        """A call in the model's format.

        Args:
            name: of the tool.
            arguments: JSON text.
            quotes: whether the name is written as a JSON string.
        """
        named = json.dumps(name) if quotes else name
        call = f'{{"name": {named}, "{self.key}": {arguments}}}'
        return f"{self.begin}[{call}]" if self.is_list else f"{self.begin}{call}{self.end}"

    def grammar(self, asked: TextRequest, token_id: TokenId) -> str:
        """The grammar of an answer that must be a call or, with a schema, a call or a match; llguidance's Lark dialect.

        Args:
            asked: the request with its tools.
            token_id: returns the id of a text that is a single token of the vocabulary, otherwise None.

        Raises:
            UnsupportedError: the schema is too large, or has no finite instance.
        """
        return required_calls(self, asked, token_id)

    def strict_grammar(self, asked: TextRequest, token_id: TokenId, shown: Sequence[str] = ()) -> str:
        """The grammar of any text in which each call matches its schema, where the tool is in `strict_tools`.

        Args:
            asked: the request with its tools.
            token_id: as of `grammar`.
            shown: special tokens that may be anywhere outside of calls, such as those around a thought.

        Raises:
            UnsupportedError: a schema is too large, or has no finite instance.
        """
        return strict_calls(self, asked, token_id, shown)

    def reader(self, asked: TextRequest) -> channels.CallReader:
        """Reads one answer."""
        tools = {str(one.get("name")): one.get("parameters") for one in functions_of(asked)}
        reader = ToolCallReader(
            self.begin,
            self.end,
            only_whole=self.begins_only_answers,
            is_list=self.is_list,
            tools=tools,
            most=None if asked.calls_in_parallel else 1,
            has_bare_tags=self.has_bare_tags,
        )
        if self.native is not None:
            return NativeCallReader(reader, self.native, self.begin, self.end, tools=tools)
        return channels.ChannelCallReader(reader, self.begin, self.end) if self.in_channels else reader

    def calls_text(self, calls: Sequence[Mapping[str, Any]], num_before: int) -> str:
        """Earlier calls as the model writes them, for a template that writes none.

        Args:
            calls: of one turn, in OpenAI's format.
            num_before: calls before it in the conversation.
        """
        if self.native is not None and self.native.writes is not None and (found := calls_of(calls)) is not None:
            return self.native.writes(found, num_before)
        written = [self.written(one["function"]["name"], one["function"].get("arguments") or "{}") for one in calls]
        if self.is_list:
            inside = ", ".join(one[len(self.begin) + 1 : -1] for one in written)
            return f"{self.begin}[{inside}]"
        return "\n".join(written)


HERMES: Final = ToolForm("<tool_call>", "</tool_call>")
_FORMS: Final = (
    ("<|tool_calls_section_begin|>", replace(HERMES, native=KIMI)),
    ("tool_declare<|im_middle|>", replace(HERMES, native=KIMI)),
    ("<｜tool▁call▁begin｜>", replace(HERMES, native=DEEPSEEK)),
    ("<|tool_call_start|>", replace(HERMES, native=LFM)),
    ("<|tool_list_start|>", replace(HERMES, native=LFM)),
    # The first templates of LFM2.5 write no calls, and so none of their marks.
    ("List of tools: [", replace(HERMES, native=LFM)),
    ("<|tool_call>call:", replace(HERMES, native=GEMMA)),
    ("<start_function_call>", replace(HERMES, native=FUNCTION_GEMMA)),
    ("<seed:tool_call>", replace(HERMES, native=SEED)),
    ("<minimax:tool_call>", replace(HERMES, native=MINIMAX)),
    ("<function_calls>", replace(HERMES, native=OLMO)),
    ("<TOOLCALL>", replace(HERMES, native=NEMOTRON)),
    ("<tool_calls>", replace(HERMES, native=JAMBA)),
    ("<|START_ACTION|>", replace(HERMES, native=COMMAND)),
    ("<|tools_prefix|>", replace(HERMES, native=APERTUS)),
    ("json-formatted list of actions", replace(HERMES, native=COMMAND_R)),
    ("<|action_start|>", replace(HERMES, native=INTERN)),
    ("function call<|role_sep|>", replace(HERMES, native=GIGACHAT)),
    ("<|function_call|>", replace(HERMES, native=GIGACHAT)),
    ("<｜tool_calls_begin｜>", replace(HERMES, native=STEP)),
    ("]<]minimax[>[", replace(HERMES, native=MINIMAX_M3)),
    ("<tool_call>", HERMES),
    ("<call>", ToolForm("<call>", "</call>")),
    ("[TOOL_CALLS]", ToolForm("[TOOL_CALLS]", "", has_special_marks=True, is_list=True)),
    ("<|tool_call|>", ToolForm("<|tool_call|>", "", has_special_marks=True, is_list=True)),
    ("<|channel|>commentary", ToolForm("<tool_call>", "</tool_call>", has_special_marks=True, in_channels=True)),
    ("python_tag", ToolForm("", "", key="parameters", begins_only_answers=True)),
    ('"parameters', ToolForm("", "", key="parameters", begins_only_answers=True)),
    # Llama 4 and others whose system message asks for calls as Python writes them.
    ("func_name1(", ToolForm("", "", key="parameters", begins_only_answers=True)),
)


_ALTERNATES: Final = "must alternate"
"""What such templates say: Gemma's, and those of Llama 2 and Mistral."""


def form_of(template: str) -> ToolForm:
    """The tool call format of a model with this chat template."""
    return replace(_own_form(template), joins_results=_ALTERNATES in template)


def _own_form(template: str) -> ToolForm:
    if DSML in template:
        # Templates put the tags together from parts, so that none of them is written out.
        return replace(HERMES, native=DEEPSEEK_V3_2 if "function_calls" in template else DEEPSEEK_V4)
    found = next((form for mark, form in _FORMS if mark in template), HERMES)
    return replace(found, has_bare_tags=found is HERMES and "<function=" in template)

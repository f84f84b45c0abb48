"""Tool calls in the forms of families that have their own marks and words, as the calls that the reader of Hermes
understands.

    Kimi K2            <|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}
                       <|tool_call_end|>...<|tool_calls_section_end|>
    DeepSeek V3, R1    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
                       ```json
                       {...}
                       ```<｜tool▁call▁end｜>...<｜tool▁calls▁end｜>
    DeepSeek V3.1      <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜>...
    LFM2, LFM2.5       <|tool_call_start|>[NAME(key="value"), ...]<|tool_call_end|>
    Gemma 4            <|tool_call>call:NAME{key:<|"|>value<|"|>}<tool_call|>
    FunctionGemma      <start_function_call>call:NAME{key:<escape>value<escape>}<end_function_call>
    Seed-OSS           <seed:tool_call><function=NAME>...</function></seed:tool_call>                    (`tagged`)
    MiniMax M2         <minimax:tool_call><invoke name="NAME">...</invoke>...</minimax:tool_call>    (`tagged`)
    DeepSeek V3.2      <｜DSML｜function_calls><｜DSML｜invoke name="NAME">...; V4: <｜DSML｜tool_calls>
    Olmo 3             <function_calls>NAME(key="value"), a call a line</function_calls>
    Nemotron Nano 2    <TOOLCALL>[{"name": "NAME", "arguments": {...}}, ...]</TOOLCALL>; Jamba: <tool_calls>
    Command R7B, A     <|START_ACTION|>[{"tool_name": "NAME", "parameters": {...}}, ...]<|END_ACTION|>
    Apertus            <|tools_prefix|>[{"NAME": {...}}, ...]<|tools_suffix|>
    Command R, R+      Action: ```json, a list as that of Command R7B, ```
    InternLM 2 to 3    <|action_start|><|plugin|>{"name": "NAME", "parameters": {...}}<|action_end|>
    GigaChat 3         function call<|role_sep|>{"name": "NAME", "arguments": {...}}; 3.1: <|function_call|>{...}
    Step-3             <｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="NAME">...
                       </steptml:invoke><｜tool_call_end｜>...<｜tool_calls_end｜>                         (`tagged`)
    MiniMax M3         <tool_call><invoke name="NAME">...</invoke>...</tool_call>, each tag behind a mark  (`tagged`)

The ids that Kimi K2 writes are not kept: they begin at 0 in each conversation, and its template gets such ids for any
other (`message_forms`).

Sources: the chat templates that the makers publish; Moonshot AI, "Tool Calling" of Kimi K2, on its ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.json_limits import json_text
from luthier.core.stream import CallPiece
from luthier.ml.inference.models.templates.thinking import num_open
from luthier.ml.inference.tool_calls.arguments import TOOL_NAME, CallArguments
from luthier.ml.inference.tool_calls.channels import CallReader
from luthier.ml.inference.tool_calls.tagged import invoked_calls, nested_calls, tagged_call
from luthier.ml.inference.tool_calls.values import (
    ESCAPE,
    QUOTE,
    Calls,
    gemma_call,
    json_calls,
    keyed_calls,
    python_calls,
    python_lines,
    python_text,
)

_BLANKS: Final = " \t\r\n"
_NAME: Final = rf"(?P<name>{TOOL_NAME})"
_LONGEST_HEAD: Final = 256
NUMBER: Final = "#"
"""Stands for a number in `NativeForm.leads`."""
Lead = tuple[tuple[str, ...], str]
"""What is written before the JSON of the arguments, in parts each of which may be a special token, and behind it."""
Whole = Callable[[str, Mapping[str, Any]], Calls | None]
"""Reads all that is between marks, given the schema of the arguments of each tool by its name; None for no calls."""


@dataclass(frozen=True, slots=True)
class NativeForm:
    """How a family writes calls.

    Attributes:
        begins: the marks that begin a call, or a section of calls.
        call: the mark of each call in a section; empty where each of `begins` is one.
        end: the mark that ends a call.
        close: the mark that ends a section; empty where there are none.
        head: what is between the mark of a call and the JSON of its arguments, with the group `name`; None where
            `whole` reads the call.
        whole: reads all that is between the marks, for arguments that are not JSON, and for lists.
        inner: marks inside of a call.
        left_out: a mark that is no part of the text wherever it is; empty where there is none.
        leads: how a call with JSON for its arguments may be written, with `{name}` and `NUMBER`; none where it is a
            list of JSON.
        writes: earlier calls as text, for templates that write none; given are names and arguments, and how many calls
            are before them in the conversation.
    """

    begins: tuple[str, ...]
    end: str
    call: str = ""
    close: str = ""
    head: re.Pattern[str] | None = None
    whole: Whole | None = None
    inner: tuple[str, ...] = ()
    left_out: str = ""
    leads: tuple[Lead, ...] = ()
    writes: Callable[[Calls, int], str] | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts around and in a call that may be special tokens of a vocabulary."""
        found = (*self.begins, self.call, *self.inner, self.end, self.close, self.left_out)
        return tuple(dict.fromkeys(mark for mark in found if mark))


def _kimi_text(calls: Calls, num_before: int) -> str:
    written = "".join(
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{json_text(arguments)}"
        "<|tool_call_end|>"
        for number, (name, arguments) in enumerate(calls, num_before)
    )
    return f"<|tool_calls_section_begin|>{written}<|tool_calls_section_end|>"


def _lfm_text(calls: Calls, _: int) -> str:
    return f"<|tool_call_start|>[{', '.join(python_text(*one) for one in calls)}]<|tool_call_end|>"


KIMI: Final = NativeForm(
    # Some servers of Kimi K2 have seen the mark of a section in the singular, too.
    begins=("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>", "<|tool_call_begin|>"),
    call="<|tool_call_begin|>",
    end="<|tool_call_end|>",
    close="<|tool_calls_section_end|>",
    head=re.compile(rf"\s*(?:functions\.)?{_NAME}(?::\d{{1,9}})?\s*<\|tool_call_argument_begin\|>\s*"),
    inner=("<|tool_call_argument_begin|>",),
    leads=((("functions.{name}:", NUMBER, "<|tool_call_argument_begin|>"), ""),),
    writes=_kimi_text,
)
DEEPSEEK: Final = NativeForm(
    # A second turn of calls has no mark of a section in the template of R1's distilled models.
    begins=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    call="<｜tool▁call▁begin｜>",
    end="<｜tool▁call▁end｜>",
    close="<｜tool▁calls▁end｜>",
    head=re.compile(
        rf"\s*(?:[a-z_]+\s*<｜tool▁sep｜>\s*(?=[a-zA-Z0-9_-]))?{_NAME}\s*(?:<｜tool▁sep｜>\s*)?(?:```(?:json)?\s*)?"
    ),
    inner=("<｜tool▁sep｜>",),
    leads=((("{name}", "<｜tool▁sep｜>"), ""), (("function", "<｜tool▁sep｜>", "{name}\n```json\n"), "\n```")),
)
LFM: Final = NativeForm(
    begins=("<|tool_call_start|>",),
    end="<|tool_call_end|>",
    whole=lambda text, _: python_calls(text),
    writes=_lfm_text,
)
GEMMA: Final = NativeForm(
    begins=("<|tool_call>",),
    end="<tool_call|>",
    whole=lambda text, _: gemma_call(text),
    inner=(QUOTE,),
    # Its reader takes JSON, too.
    leads=((("call:{name}",), ""),),
)
FUNCTION_GEMMA: Final = NativeForm(
    begins=("<start_function_call>",),
    end="<end_function_call>",
    whole=lambda text, _: gemma_call(text, ESCAPE),
    inner=(ESCAPE,),
    leads=((("call:{name}",), ""),),
)
DSML: Final = "｜DSML｜"
"""Is in each tag of DeepSeek V3.2 and V4; one token of their vocabularies."""


def _listed(begin: str, end: str, read: Callable[[str], Calls | None]) -> NativeForm:
    """A family whose calls are in one list between two marks."""
    return NativeForm(begins=(begin,), end=end, whole=lambda text, _: read(text))


def _tagged(begin: str, end: str) -> NativeForm:
    """A family whose calls are in tags between two marks, one call each."""

    def whole(text: str, tools: Mapping[str, Any]) -> Calls | None:
        one = tagged_call(text, tools)
        return json_calls(text) if one is None else [one]

    return NativeForm(begins=(begin,), end=end, whole=whole)


def _invoked(begin: str, end: str, mark: str = "") -> NativeForm:
    """A family whose calls are in `invoke` tags between two marks."""

    def whole(text: str, tools: Mapping[str, Any]) -> Calls | None:
        # A list of JSON is what a grammar of strict calls makes.
        return json_calls(text) or invoked_calls(text, tools, mark)

    return NativeForm(begins=(begin,), end=end, whole=whole, inner=(mark,) if mark else ())


SEED: Final = _tagged("<seed:tool_call>", "</seed:tool_call>")
MINIMAX: Final = _invoked("<minimax:tool_call>", "</minimax:tool_call>")
DEEPSEEK_V3_2: Final = _invoked(f"<{DSML}function_calls>", f"</{DSML}function_calls>", DSML)
DEEPSEEK_V4: Final = _invoked(f"<{DSML}tool_calls>", f"</{DSML}tool_calls>", DSML)
OLMO: Final = _listed("<function_calls>", "</function_calls>", python_lines)
NEMOTRON: Final = _listed("<TOOLCALL>", "</TOOLCALL>", json_calls)
JAMBA: Final = _listed("<tool_calls>", "</tool_calls>", json_calls)
COMMAND: Final = _listed("<|START_ACTION|>", "<|END_ACTION|>", json_calls)
APERTUS: Final = _listed("<|tools_prefix|>", "<|tools_suffix|>", keyed_calls)
COMMAND_R: Final = NativeForm(
    begins=("Action: ```json", "Action:```json"), end="```", whole=lambda text, _: json_calls(text)
)
INTERN: Final = NativeForm(
    begins=("<|action_start|>",),
    end="<|action_end|>",
    inner=("<|plugin|>",),
    # Without its second mark a list of JSON is read too, which is what a grammar of strict calls makes.
    whole=lambda text, _: json_calls(text.strip().removeprefix("<|plugin|>")),
)
_GIGA_END: Final = "<|message_sep|>"
_STEP_SEPARATOR: Final = "<｜tool_sep｜>"
_SPACED: Final = "]<]minimax[>["
"""Is before each tag of MiniMax M3; one token of its vocabulary."""


def _step_calls(text: str, tools: Mapping[str, Any]) -> Calls | None:
    kind, separator, call = text.partition(_STEP_SEPARATOR)
    if separator and kind.strip() != "function":
        return None
    # Without separator it is a list of JSON, which is what a grammar of strict calls makes.
    return invoked_calls(call, tools, "steptml:") if separator else json_calls(text)


GIGACHAT: Final = NativeForm(
    begins=("<|function_call|>", "function call<|role_sep|>"),
    end=_GIGA_END,
    inner=("<|role_sep|>",),
    # Text before a call ends with the same mark, as each of its messages does.
    left_out=_GIGA_END,
    whole=lambda text, _: json_calls(text),
)
STEP: Final = NativeForm(
    begins=("<｜tool_calls_begin｜>", "<｜tool_call_begin｜>"),
    call="<｜tool_call_begin｜>",
    end="<｜tool_call_end｜>",
    close="<｜tool_calls_end｜>",
    inner=(_STEP_SEPARATOR,),
    whole=_step_calls,
)
MINIMAX_M3: Final = NativeForm(
    begins=(f"{_SPACED}<tool_call>",),
    end=f"{_SPACED}</tool_call>",
    inner=(_SPACED, "<tool_call>", "</tool_call>"),
    whole=lambda text, tools: json_calls(text) or nested_calls(text, tools, _SPACED),
)


class NativeCallReader:
    """Reads one answer.

    Args:
        reader: of calls between `begin` and `end`.
        form: of the calls.
        begin, end: the marks of a call that it reads.
        tools: the tools that may be called; a call of another one is text.
    """

    def __init__(self, reader: CallReader, form: NativeForm, begin: str, end: str, *, tools: Mapping[str, Any]) -> None:
        self._reader, self._form, self._begin, self._end = reader, form, begin, end
        self._tools = tools
        self._held = ""
        self._state = "text"  # text, head, arguments, behind
        self._opening = ""  # emitted as text if it turns out not to be a call
        self._is_open = False  # of a section whose calls have begun
        self._arguments = CallArguments()

    @property
    def num_calls(self) -> int:
        """The number of calls begun so far."""
        return self._reader.num_calls

    @property
    def num_held(self) -> int:
        """Characters that are held back."""
        opening = len(self._opening) if self._state == "head" else 0
        return len(self._held) + opening + self._reader.num_held

    def add(self, text: str) -> tuple[str, list[CallPiece]]:
        """Process more text; returns what is certain so far: plain text and parts of calls."""
        self._held += text
        written, calls = "", list[CallPiece]()
        while True:
            before = (self._held, self._state)
            more, found = self._reader.add(self._step())
            written, calls = written + more, calls + found
            if before == (self._held, self._state):
                return written, calls

    def end(self) -> tuple[str, list[CallPiece]]:
        """Flush what was held back, at the end of the text."""
        left, self._held = self._held, ""
        if self._state == "head":
            # The mark that ends a call may be left out where the answer ends with it.
            found = None if self._form.whole is None else self._known(self._form.whole(left, self._tools))
            left = self._opening + left if found is None else self._written(found)
        elif self._state != "text":
            left = ""
        self._state = "text"
        written, calls = self._reader.add(left)
        rest, more = self._reader.end()
        return written + rest, calls + more

    def _step(self) -> str:
        """What is next, as text for the reader of Hermes."""
        if self._state == "text":
            return self._text()
        if self._state == "head":
            return self._head() if self._form.head is not None else self._whole()
        if self._state == "arguments":
            return self._more_arguments()
        return self._skip_end()

    def _text(self) -> str:
        """Text up to the next mark; a mark of a call is taken."""
        form = self._form
        others = (form.close if self._is_open else "", form.left_out)
        marks = (*form.begins, *filter(None, others))
        places = [(place, mark) for mark in marks if (place := self._held.find(mark)) >= 0]
        if not places:
            return self._take(len(self._held) - max(num_open(self._held, mark) for mark in marks))
        place, mark = min(places)
        if place:
            return self._take(place)
        if mark in others:
            self._take(len(mark))
            self._is_open = self._is_open and mark != form.close
            return ""
        if form.call and mark != form.call:
            rest = self._held[len(mark) :].lstrip(_BLANKS)
            if not rest.startswith(form.call):
                # A section without a call is text.
                return "" if form.call.startswith(rest) else self._take(len(mark))
            mark = self._held[: len(self._held) - len(rest) + len(form.call)]
        self._opening, self._state = self._take(len(mark)), "head"
        return ""

    def _head(self) -> str:
        """Up to the arguments of a call; returns what turned out to be text."""
        assert self._form.head is not None
        stop, place = self._held.find(self._form.end), self._held.find("{")
        has_none = stop >= 0 and not 0 <= place < stop
        place = stop if has_none else place
        if place < 0:
            return "" if len(self._held) <= _LONGEST_HEAD else self._give_up()
        found = self._form.head.fullmatch(self._held[:place])
        if found is None or found["name"] not in self._tools:
            return self._give_up()
        self._take(place)
        begun = f'{self._begin}{{"name": {json.dumps(found["name"])}, "arguments": '
        if has_none:
            self._take(len(self._form.end))
            self._state, self._is_open = "text", True
            return f"{begun}{{}}}}{self._end}"
        self._state, self._arguments = "arguments", CallArguments()
        return begun + self._more_arguments()

    def _whole(self) -> str:
        """A call whose arguments are not JSON, once its end is there; returns what turned out to be text."""
        assert self._form.whole is not None
        body, end, _ = self._held.partition(self._form.end)
        if not end:
            return ""
        found = self._known(self._form.whole(body, self._tools))
        if found is None:
            return self._give_up()
        self._take(len(body) + len(end))
        self._state, self._is_open = "text", True
        return self._written(found)

    def _known(self, calls: Calls | None) -> Calls | None:
        """The calls, if all of them are of known tools."""
        return calls if calls and all(name in self._tools for name, _ in calls) else None

    def _written(self, calls: Calls) -> str:
        documents = [f'{{"name": {json.dumps(name)}, "arguments": {json_text(one)}}}' for name, one in calls]
        return "".join(f"{self._begin}{document}{self._end}" for document in documents)

    def _more_arguments(self) -> str:
        text = self._take(self._arguments.num_own(self._held))
        if not self._arguments.has_ended:
            return text
        self._state = "behind"
        return f"{text}}}{self._end}"

    def _skip_end(self) -> str:
        """Skip the end of a call: its mark, and a fence or a brace too many before it."""
        self._held = self._held.lstrip(_BLANKS + "`}")
        if not self._held or (len(self._held) < len(self._form.end) and self._form.end.startswith(self._held)):
            return ""
        if self._held.startswith(self._form.end):
            self._take(len(self._form.end))
        self._state, self._is_open = "text", True
        return ""

    def _give_up(self) -> str:
        """Not a call: its beginning is text, and a call may still follow."""
        self._state = "text"
        return self._opening

    def _take(self, num: int) -> str:
        taken, self._held = self._held[:num], self._held[num:]
        return taken


def calls_of(calls: Sequence[Mapping[str, Any]]) -> Calls | None:
    """Names and arguments of calls in OpenAI's format; None where arguments are no JSON object."""
    found: Calls = []
    for call in calls:
        text = call["function"].get("arguments") or "{}"
        try:
            arguments = json.loads(text) if isinstance(text, str) else text
        except (ValueError, RecursionError):
            return None
        if not isinstance(arguments, dict):
            return None
        found.append((str(call["function"]["name"]), arguments))
    return found

"""Tools for engines that are given a prompt as tokens and give text back: into the prompt, and out of the answer."""

from __future__ import annotations

from luthier.core.conversation import Conversation
from luthier.core.errors import RequestError
from luthier.core.stream import CallPiece, EndReason, TextRequest
from luthier.ml.inference.opted_turns import rewritten
from luthier.ml.inference.tool_call_reader import ToolCallReader
from luthier.ml.inference.tool_calls import ToolForm, form_of


class ToolFormat:
    """How tools enter one model's prompt, and how its calls are parsed.

    Args:
        template: Text of the model's chat template; empty for none.
    """

    def __init__(self, template: str) -> None:
        self._knows_tools, self._form = "tools" in template, form_of(template)

    def form(self, asked: TextRequest) -> ToolForm | None:
        """How it calls, where there is something to call.

        Raises:
            RequestError: it must call and cannot.
        """
        if asked.tool_choice == "required" and not asked.tools:
            raise RequestError("a tool must be called, and there is none", expected="tools", do="send tools")
        return self._form if asked.tools else None

    def conversation(self, asked: TextRequest) -> Conversation:
        """What is rendered: without tools that may not be called, and described in the system message where the
        template has no tools.

        Turns that were written in another way in the model's training are written so here.
        """
        assert asked.conversation is not None
        conversation = asked.conversation.model_copy(update={"tools": asked.tools})
        # A template without tools would drop them silently.
        as_text = asked.opted_turns.tools_as_text or not self._knows_tools
        return rewritten(asked.opted_turns.model_copy(update={"tools_as_text": as_text}), conversation, self._form)


class CallsInText:
    """Takes calls out of the text of one answer.

    Args:
        form: None where nothing may be called.
    """

    def __init__(self, asked: TextRequest, form: ToolForm | None) -> None:
        self._reader: ToolCallReader | None = None if form is None else form.reader(asked)
        # OpenAI reports a call of the tool that the request itself named as an ordinary end.
        self._reports_calls = asked.tool_name is None

    def split(self, text: str, *, is_last: bool) -> tuple[str, tuple[CallPiece, ...]]:
        """What of the text so far is certain: text beside calls, and more of calls."""
        if self._reader is None:
            return text, ()
        emitted, calls = self._reader.add(text)
        if is_last:
            rest, more = self._reader.end()
            emitted, calls = emitted + rest, [*calls, *more]
        return emitted, tuple(calls)

    def reason(self, reason: EndReason) -> EndReason:
        """Why the answer has ended, in the light of its calls."""
        has_called = self._reader is not None and self._reader.num_calls > 0 and self._reports_calls
        return "tool_calls" if reason == "stop" and has_called else reason

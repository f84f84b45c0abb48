"""`luthier chat` with models that answer by the script, and how it looks."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from rich.console import Console

from luthier.core.errors import WorkError
from luthier.core.stream import Ended, Failed, Piece, Started, StreamEvent, TextRequest
from luthier.features.serving import chat
from luthier.features.serving.chat import Chat, Reply, Turn
from luthier.features.serving.chat_screen import ChatScreen


@dataclass
class Scripted:
    """Answers with its name and how many messages it was shown."""

    name: str

    def begin(self, request: TextRequest, hear: Callable[[StreamEvent], None]) -> Callable[[], None]:
        assert request.conversation is not None
        messages = request.conversation.messages
        if messages[-1].content == "fail":
            hear(Failed(error=WorkError("broke", expected="an answer", do="ask again").as_json()))
            return lambda: None
        hear(Started(num_prompt_tokens=3))
        words = f"{self.name} saw {len(messages)}\x1b[31m at {request.sampling.temperature:g}"
        hear(Piece(text=words, num_new_tokens=5))
        hear(Ended(reason="stop", num_new_tokens=5))
        return lambda: None


@pytest.fixture
def type_lines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(chat, "open_chat_client", lambda context, name, engine: Scripted(name))

    def lines(*typed: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in typed)))

    return lines


def test_each_line_of_a_pipe_is_a_question(luthier, type_lines) -> None:  # type: ignore[no-untyped-def]
    type_lines("one", "", "two", "/undo", "three", "/reset", "four", "/QUIT", "five")
    done = luthier("chat", "m", "--system", "s", "--temperature", 0.5)
    assert done.out.splitlines() == [f"m saw {number}␛[31m at 0.5" for number in (2, 4, 4, 2)]
    assert done.code == 0


def test_two_at_once(luthier, type_lines) -> None:  # type: ignore[no-untyped-def]
    type_lines("one")
    assert luthier("chat", "m", "--against", "n").out.splitlines()[::2] == ["m:", "n:"]
    type_lines("one", "two")
    document = luthier("chat", "m", "--against", "n", "--json").document
    assert document["models"] == ["m", "n"]
    assert [turn["question"] for turn in document["turns"]] == ["one", "two"]
    answer = document["turns"][1]["answers"][1]
    assert (answer["text"][:7], answer["new_tokens"]) == ("n saw 3", 5)


def test_an_answer_that_fails_is_told_and_the_next_is_asked(luthier, type_lines) -> None:  # type: ignore[no-untyped-def]
    type_lines("fail", "one")
    done = luthier("chat", "m")
    assert (done.code, "m: broke" in done.err, done.out[:7]) == (1, True, "m saw 1")
    type_lines("fail")
    assert luthier("chat", "m", "--json").document["turns"][0]["answers"][0]["error"]["came"] == "broke"
    type_lines()
    assert luthier("chat", "m").code == 0


def a_screen(width: int = 60) -> tuple[ChatScreen, io.StringIO]:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=width, height=20, color_system=None, markup=False)
    return ChatScreen(console), written


def seen(written: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())


def test_one_answer_is_shown_as_it_is_written() -> None:
    screen, written = a_screen()
    screen.greet(["m"], "help")
    talk = Chat([Scripted("m")])
    with screen.answering(["m"]) as show:
        turn = talk.ask("one", show)
    screen.answered(turn)
    screen.note("noted")
    assert re.search(r"m saw 1␛\[31m at 1\n5 tokens · .*first after", seen(written))
    assert seen(written).startswith("m\nhelp")
    assert "noted" in seen(written)


def test_columns_stand_side_by_side_and_the_live_view_fits_the_screen() -> None:
    screen, written = a_screen()
    replies = [
        Reply("left", "word " * 400, num_new_tokens=400, has_started=True),
        Reply("right", "short", num_new_tokens=1, reason="length", has_started=True, first_seconds=0.5, seconds=1.0),
    ]
    with screen.answering(["left", "right"]) as show:
        show(replies)
        assert len(seen(written).splitlines()) <= 20
        show([Reply("left"), Reply("right")])
        assert "waiting" in seen(written)
    replies[0].error = WorkError("broke", expected="x", do="y")
    screen.answered(Turn("q", replies))
    lines = seen(written).splitlines()
    assert any(re.match(r"\s*left +right", line) for line in lines)
    assert any(re.search(r"word word .* short", line) for line in lines)
    assert "cut at --max-tokens" in seen(written)
    assert "left: broke" in seen(written)

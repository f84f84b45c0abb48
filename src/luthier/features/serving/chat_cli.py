"""`luthier chat`: chat with a model in the terminal, or with two side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.defaults import CHAT_TOKENS
from luthier.platform.cli.command import ANY_MODEL, Answer, EngineOption, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from luthier.features.serving.chat import Chat
    from luthier.features.serving.chat_screen import ChatScreen

HELP = "/reset forgets the conversation, /undo the last question, /quit ends (as Ctrl-D); Ctrl-C stops an answer"


def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=f"{ANY_MODEL[:1].upper()}{ANY_MODEL[1:]}, or http://host:8520/v1#MODEL."),
    ],
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="OTHER", help="A second model that gets the same messages, side by side."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.")] = None,
    temperature: Annotated[
        float,
        typer.Option("--temperature", metavar="T", min=0.0, max=5.0, help="0 always takes the most likely token."),
    ] = 0.0,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of sampling at a temperature above 0.")
    ] = 0,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="Maximum tokens of an answer.")
    ] = CHAT_TOKENS,
    engine: EngineOption = "auto",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Chat with a model; with --against, with two at once, each with its own history.

    /reset forgets the conversation, /undo the last question, /quit ends. If stdin is a pipe, each line is a question.
    The key for a server's address comes from LUTHIER_API_KEY.
    """
    from luthier.core.stream import Sampling
    from luthier.features.serving.chat import Chat, open_chat_client
    from luthier.features.serving.chat_screen import ChatScreen
    from luthier.platform.cli.console import stdout_console

    with open_context(home) as context:
        names = [model] if against is None else [model, against]
        conversation = Chat(
            clients=[open_chat_client(context, name, engine) for name in names],
            system=system,
            sampling=Sampling(temperature=temperature, seed=seed),
            max_new_tokens=max_tokens,
        )
        said = _chat_loop(
            conversation, ChatScreen(stdout_console(), is_quiet=as_json), is_person=sys.stdin.isatty() and not as_json
        )
    # A pipe continues after a failed question; the exit code reports the failure.
    has_failed = any(answer["error"] for turn in said for answer in turn["answers"])
    document = {"models": [client.name for client in conversation.clients], "turns": said}
    return Answer(as_json, document, lambda _: None, exit_code=1 if has_failed else 0)


def _chat_loop(conversation: Chat, screen: ChatScreen, *, is_person: bool) -> list[dict[str, Any]]:
    """Ask until there are no more questions; returns all turns, including removed ones."""
    said = []
    if is_person:
        screen.greet([client.name for client in conversation.clients], HELP)
    for line in _typed() if is_person else _piped():
        # Commands are case-insensitive; questions are unchanged.
        word = line.casefold()
        if word in ("/quit", "/exit", "/q"):
            break
        if word == "/reset":
            conversation.turns.clear()
            screen.note("the conversation is forgotten")
        elif word == "/undo":
            undone = conversation.undo()
            screen.note("there is nothing to undo" if undone is None else f"forgotten: {undone.question}")
        elif line.startswith("/") and word.split()[0] in ("/help", "/h", "/?"):
            screen.note(HELP)
        else:
            # A person sees the question where it was typed.
            if not is_person:
                screen.question(line)
            with screen.answering([client.name for client in conversation.clients]) as show:
                turn = conversation.ask(line, show)
            screen.answered(turn)
            # Includes turns that are removed later: the document is a full record.
            said.append({"question": line, "answers": [reply.as_json() for reply in turn.replies]})
    return said


def _piped() -> Iterator[str]:
    """Each non-empty line. Raises RequestError for invalid text."""
    from luthier.core.text.utf8 import utf8_lines

    for line in utf8_lines(sys.stdin, "what is on stdin"):
        if line.strip():
            yield line.strip()


def _typed() -> Iterator[str]:
    """Lines typed by the user, with a line editor if available; ends with Ctrl-D, or Ctrl-C on an empty line."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() edits lines and remembers them once it is loaded
    while True:
        try:
            line = input("\n› ").strip()
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return
        if line:
            yield line

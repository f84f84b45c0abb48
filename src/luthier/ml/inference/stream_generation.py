"""Whole answers from an engine that writes them piece by piece, so that one engine is both."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from luthier.core.errors import RequestError, WorkError
from luthier.core.ports import Generation, Progress, Prompt, StreamEngine
from luthier.core.stream import Ended, Failed, Piece, Sampling, Started, TextRequest

_WAIT_SECONDS: Final = 0.2


def generate_by_streaming(
    engine: StreamEngine,
    prompts: Sequence[Prompt],
    progress: Progress,
    *,
    adapter: str | None = None,
    returns_token_ids: bool = False,
) -> list[Generation]:
    """One generation a prompt, in the order of the prompts; as many are under way as the engine has room for.

    The first error ends all.

    Args:
        engine: writes the answers.
        prompts: conversations or texts with their limits.
        progress: advanced by each answer.
        adapter: a loaded adapter; None for the base.
        returns_token_ids: whether each generation holds the ids of its tokens, where the engine gives them.

    Raises:
        RequestError, OverlongError, TemplateError: a prompt that cannot be written.
        WorkError: an answer failed; the message has the number of its prompt.
    """
    requests = [_request(prompt, number, returns_token_ids) for number, prompt in enumerate(prompts)]
    waiting = deque(range(len(requests)))
    texts, thoughts = [""] * len(requests), [""] * len(requests)
    num_prompt = [0] * len(requests)
    found: dict[int, Generation] = {}
    keys = [("generate", number) for number in range(len(requests))]
    try:
        with progress.task("Writing answers", len(requests), "answers") as task:
            while len(found) < len(requests):
                # As many as there is room for, in order; a false answer means "after the next poll".
                while waiting and engine.ask(keys[waiting[0]], requests[waiting[0]], adapter):
                    waiting.popleft()
                for key, event in engine.poll(_WAIT_SECONDS):
                    assert isinstance(key, tuple)
                    number = key[1]
                    if isinstance(event, Started):
                        num_prompt[number] = event.num_prompt_tokens
                    elif isinstance(event, Piece):
                        texts[number] += event.text
                        thoughts[number] += event.reasoning
                    elif isinstance(event, Failed):
                        raise _failed(number, event)
                    elif isinstance(event, Ended):
                        found[number] = Generation(
                            text=texts[number],
                            # A remote server counts the prompt at the end only; local engines know it at the start.
                            num_prompt_tokens=event.num_prompt_tokens or num_prompt[number],
                            num_new_tokens=event.num_new_tokens,
                            finish_reason="length" if event.reason == "length" else "stop",
                            reasoning=thoughts[number] or None,
                            num_thinking_tokens=event.num_thinking_tokens,
                            ends_in_thought=event.ends_in_thought,
                            token_ids=event.token_ids,
                        )
                        task.advance()
    finally:
        # After an error too: the engine must not go on writing for nobody.
        for key in keys:
            engine.cancel(key)
    return [found[number] for number in range(len(requests))]


def _request(prompt: Prompt, number: int, returns_token_ids: bool) -> TextRequest:
    if (prompt.conversation is None) == (prompt.text is None):
        raise RequestError(
            f"prompt {number + 1} has {'neither' if prompt.text is None else 'both'} conversation and text",
            expected="exactly one of the two",
            do="set one of them",
        )
    if prompt.max_new_tokens < 1 or prompt.temperature < 0:
        raise RequestError(
            f"prompt {number + 1} has max_new_tokens={prompt.max_new_tokens}, temperature={prompt.temperature}",
            expected="at least one new token, and a temperature of 0 (greedy) or more",
            do="correct the prompt",
        )
    return TextRequest(
        conversation=prompt.conversation,
        text=prompt.text,
        max_new_tokens=prompt.max_new_tokens,
        json_schema=prompt.json_schema,
        max_thinking_tokens=prompt.max_thinking_tokens,
        sampling=Sampling(temperature=prompt.temperature, seed=prompt.seed),
        returns_token_ids=returns_token_ids,
    )


def _failed(number: int, event: Failed) -> WorkError:
    error = event.error
    return WorkError(
        f"prompt {number + 1}: {error.get('came', error)}",
        expected=str(error.get("expected", "an answer")),
        do=str(error.get("do", "ask again")),
    )

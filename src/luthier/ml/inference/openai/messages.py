"""Requests and responses of OpenAI's API: headers, bodies, generations and errors.

An error is reported in Luthier's format and includes the server's message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx2

from luthier.core.conversation import Message
from luthier.core.errors import LuthierError, NotFoundError, OverlongError, RequestError, WorkError
from luthier.core.ports import Generation
from luthier.core.stream import Sampling, TextRequest
from luthier.core.text.utf8 import whole_characters
from luthier.ml.inference.models.templates.message_forms import with_ids
from luthier.ml.inference.models.templates.thinking import TAGS, ThoughtAndAnswer

# The limit of OpenAI; further stop texts are detected here.
_MAX_STOPS: Final = 4


def auth_headers(key: str) -> Mapping[str, str]:
    """The key as a bearer token header; none for an empty key.

    Raises:
        RequestError: the key is not valid in a header.
    """
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise RequestError(
            "an API key with characters that no header can carry",
            expected="plain ASCII in one line",
            do="set the variable again, without line breaks",
        )
    return {"Authorization": f"Bearer {key}"}


def message_document(message: Message) -> dict[str, Any]:
    """A turn in the API's format: only fields with a value, without earlier reasoning, which hosted services reject."""
    unsent = {"weight", "reasoning", "learn_reasoning"}
    document = message.model_dump(mode="json", exclude_none=True, exclude=unsent)
    # OpenAI rejects an empty list.
    if not message.tool_calls:
        document.pop("tool_calls")
    return {"content": None, **document}


def message_documents(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns in the API's format. Rows may have calls without ids, which hosted services reject."""
    return with_ids([message_document(message) for message in messages])


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    """The `response_format` for JSON of a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def stream_path(asked: TextRequest) -> str:
    """The path of a request, relative to the API's address."""
    return "completions" if asked.conversation is None else "chat/completions"


def _seed(number: int) -> int:
    """A seed of 64 bits with a sign, as servers take them: the largest is followed by the smallest."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def truncation(rules: Sampling) -> dict[str, Any]:
    """What limits the tokens that are drawn beside top_p, as fields of a body. OpenAI has neither, other servers do."""
    return {name: value for name in ("top_k", "min_p") if (value := getattr(rules, name)) and not rules.is_greedy}


def stream_body(asked: TextRequest, model: str, choice: int, limit_name: str) -> dict[str, Any]:
    """The request body for one choice as a stream.

    Args:
        asked: the request.
        model: as the server names it.
        choice: from 0; added to the seed.
        limit_name: what the server calls the limit of new tokens.
    """
    rules = asked.sampling
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        # Without it a stream contains no usage.
        "stream_options": {"include_usage": True},
        "temperature": 0.0 if rules.is_greedy else rules.temperature,
        "top_p": 1.0 if rules.is_greedy else rules.top_p,
        # Each choice is a separate request: with the same seed all answers would be equal.
        "seed": _seed(rules.seed + choice),
        limit_name: asked.max_new_tokens,
    }
    for name in ("frequency_penalty", "presence_penalty"):
        if value := getattr(rules, name):
            body[name] = value
    if rules.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in rules.logit_bias}
    if asked.stop:
        body["stop"] = list(asked.stop[:_MAX_STOPS])
    if asked.json_schema is not None:
        body["response_format"] = response_format(asked.json_schema)
    if asked.conversation is None:
        body["prompt"] = asked.text if asked.token_ids is None else list(asked.token_ids)
        if asked.num_top is not None:
            body["logprobs"] = asked.num_top
        return body
    body["messages"] = message_documents(asked.conversation.messages)
    if options := asked.trained_options | asked.template_options:
        body["chat_template_kwargs"] = options
    if asked.reasoning_effort is not None:
        body["reasoning_effort"] = asked.reasoning_effort
    if asked.num_top is not None:
        body |= {"logprobs": True, "top_logprobs": asked.num_top}
    if asked.tools:
        named_tool = {"type": "function", "function": {"name": asked.tool_name}}
        body |= {
            "tools": list(asked.tools),
            "tool_choice": named_tool if asked.tool_name else asked.tool_choice,
            "parallel_tool_calls": asked.calls_in_parallel,
        }
    return body


_MAX_WORDS: Final = 400
# Anything shorter is a placeholder ("none", "x"), and redacting it would garble the text.
_SHORTEST_KEY: Final = 8
# Messages of OpenAI, vLLM and llama.cpp's server about prompts beyond the context.
_OVERLONG_WORDS: Final = ("context_length_exceeded", "context length", "context size", "context window")


def generation_of(document: Any, limit: int, *, is_chat: bool) -> Generation:
    """The first choice of a completion.

    Args:
        document: the body of the response, parsed.
        limit: the requested maximum of new tokens.
        is_chat: whether it answers a chat rather than a plain completion.

    Raises:
        ValueError: it is unusable; the message gives the reason, as the end of a sentence.
    """
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("has no choices")
    # One choice is requested; further ones would be billed and never read.
    choice = choices[0]
    text = _chat_text(choice.get("message")) if is_chat else choice.get("text")
    if not isinstance(text, str):
        raise ValueError("has a choice without text")
    thought = _reasoning_of(choice.get("message")) if is_chat else None
    # A server that counts in UTF-16 may cut the last character of an answer.
    text, thought = whole_characters(text), None if thought is None else whole_characters(thought)
    # A server that does not separate reasoning may use a template that opens it: then only the closing tag is present.
    is_open = TAGS.end in text and not text.lstrip().startswith(TAGS.start)
    found = TAGS.split(text, is_open=is_open) if is_chat else ThoughtAndAnswer(None, text, is_closed=True)
    usage = document.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    num_prompt, num_new = (count if type(count) is int and count >= 0 else -1 for count in counts)
    if min(num_prompt, num_new) < 0:
        # Estimated counts would give an unmeasured cost.
        raise ValueError("does not say how many tokens were used (usage.prompt_tokens, usage.completion_tokens)")
    is_cut = choice.get("finish_reason") == "length"
    reasoning = "\n".join(one for one in (thought, found.reasoning) if one) or None
    return Generation(
        text=found.content,
        num_prompt_tokens=num_prompt,
        # Some servers count the end token, or hidden tokens, beyond the requested limit.
        num_new_tokens=min(num_new, limit) if is_cut else num_new,
        finish_reason="length" if is_cut else "stop",
        reasoning=reasoning,
        num_thinking_tokens=_num_thinking(usage, reasoning),
        ends_in_thought=not found.is_closed or (is_cut and reasoning is not None and not found.content),
        tool_calls=_calls_of(choice.get("message")) if is_chat else (),
    )


def _calls_of(message: Any) -> tuple[dict[str, Any], ...]:
    """The calls of tools in a message; none where it has something else in their place."""
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    return tuple(call for call in calls if isinstance(call, dict)) if isinstance(calls, list) else ()


def _reasoning_of(message: Any) -> str | None:
    """The reasoning that a server returns in a separate field."""
    if not isinstance(message, dict):
        return None
    reported = message.get("reasoning_content") or message.get("reasoning")
    return reported if isinstance(reported, str) else None


def _num_thinking(usage: Any, reasoning: str | None) -> int | None:
    """Tokens of the reasoning as counted by the server; None if there is reasoning but no count."""
    reported = usage_detail(usage, "completion_tokens_details", "reasoning_tokens")
    return None if not reported and reasoning is not None else reported


def usage_detail(usage: Any, kind: str, name: str) -> int:
    """A count that servers may add to their usage; 0 where this one does not."""
    details = usage.get(kind) if isinstance(usage, dict) else None
    found = details.get(name) if isinstance(details, dict) else None
    return found if type(found) is int and found > 0 else 0


def _chat_text(message: Any) -> Any:
    """The content of a message, or the text of a refusal; empty if it has neither."""
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    return content if content is not None else message.get("refusal") or ""


def server_words(response: httpx2.Response, key: str) -> str:
    """The server's message in one line of at most 400 characters, with the API key redacted."""
    try:
        text = message_in(json.loads(response.content)) or response.text
    except (ValueError, RecursionError):
        text = response.text
    return without_key(" ".join(text.split()), key)[:_MAX_WORDS] or "(no words)"


def without_key(words: str, key: str) -> str:
    """The text with the API key redacted: servers and libraries often repeat what they were sent."""
    return words.replace(key, "***") if len(key) >= _SHORTEST_KEY else words


def message_in(document: Any) -> str:
    """The server's message in a document, with the code if there is one.

    It is `error.message`, `error`, `message` or `detail`, depending on the server.
    """
    if not isinstance(document, dict):
        return ""
    inner = document.get("error", document)
    if isinstance(inner, str):
        return inner
    if not isinstance(inner, dict):
        return ""
    message = next((inner[name] for name in ("message", "detail") if isinstance(inner.get(name), str)), "")
    code = inner.get("code")
    return f"{message} ({code})" if message and isinstance(code, str) else message


def is_overlong(words: str) -> bool:
    """Whether a server's message says that a prompt exceeds the context."""
    return any(phrase in words.lower() for phrase in _OVERLONG_WORDS)


_OF_ACCOUNT: Final = re.compile(
    # Of OpenAI (billing_not_active, billing_hard_limit_reached, insufficient_quota, access_terminated), Anthropic
    # ("your credit balance is too low"), Azure, Google and resellers, as sentences, codes or types.
    r"billing|payment|quota|credit balance|out of credits?|(insufficient|not enough) (credits?|funds|balance)"
    r"|account[_ ](is |was |has been |not |is not )*(active|deactivated|disabled|suspended|terminated)"
    r"|(project|organi[sz]ation|workspace|subscription|api[_ ]key)\b.{0,80}\b"
    r"(archived|deactivated|disabled|suspended|deleted|expired|inactive|not active|verified)"
    r"|(invalid|incorrect|mismatched)[_ ](api[_ ]key|organi[sz]ation|project)|member of an organi[sz]ation"
    r"|(no|not have|n't have|lacks?|without) (access|permission)|access[_ ](is )?(denied|terminated|restricted)"
    r"|not (authori[sz]ed|permitted|entitled)|unsupported_country_region_territory|model_not_found"
    r"|\b(authentication|permission)_error|\b(permission|authorization)[_ ]denied"
)


def is_about_account(words: str) -> bool:
    """Whether a refusal is about the account, its project or its access, whatever the status: it may be lifted.

    Args:
        words: the server's message, with the code or type of the error.
    """
    return _OF_ACCOUNT.search(words.lower()) is not None


ACCOUNT_EXPECTED: Final = "an account, project and key that may use this model at the provider"
ACCOUNT_DO: Final = "check billing, limits and access at the provider, then start again: what was answered is kept"


def error_of(response: httpx2.Response, words: str, url: str, model: str) -> LuthierError:
    """The error for a status that a retry cannot change.

    Args:
        response: with a status other than 200.
        words: the server's own message.
        url: the API's address.
        model: as the request names it.
    """
    status = response.status_code
    came = f"{url} refuses with HTTP {status}: {words}"
    if status in (401, 403):
        return RequestError(
            came,
            expected="a key that this server accepts for this model",
            do="set LUTHIER_TEACHER_API_KEY (or OPENAI_API_KEY, which is sent over https and to this machine only)",
        )
    if status == httpx2.codes.NOT_FOUND:
        return NotFoundError(
            f"{came} (requested model {model!r})",
            expected="the address of the API up to its version, and a model that the server has",
            do=f"check both: {url}/models lists the models",
        )
    # No status means "too long": servers report it only in the message.
    if status in (400, 413, 422) and is_overlong(words):
        return OverlongError(
            came, expected="a prompt that fits into the context with its answer", do="use shorter passages"
        )
    if status in (400, 422) and is_about_account(words):
        return RequestError(came, expected=ACCOUNT_EXPECTED, do=ACCOUNT_DO)
    if 300 <= status < 400:
        return RequestError(
            f"{came} (sends on to {response.headers.get('Location', 'an address it does not give')})",
            expected="an answer at the address given: a key is not carried on to another",
            do="give the final address",
        )
    return RequestError(
        came,
        expected="a request that this server takes",
        do="see what the server says, and check the model and the options",
    )


def bad_answer(url: str, what: str, words: str) -> WorkError:
    """The error for a successful response that is not a completion.

    Args:
        url: the API's address.
        what: what is wrong with it, as a verb phrase.
        words: the beginning of the response.
    """
    return WorkError(
        f"the answer of {url} {what}: {words}",
        expected="a completion as OpenAI's API gives it, with choices and usage",
        do="check that the address is that of an OpenAI-compatible API, up to its version (mostly ending in /v1)",
    )

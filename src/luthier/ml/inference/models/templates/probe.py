"""Tests once whether a model's chat template can be rendered, in a separate process with resource limits.

It runs when a model is pulled, before this process compiles the template, since jinja evaluates constants while
compiling. The process renders common conversations (one turn, many, a long one, tools) in the environment of
`jinja_sandbox`, limited to 5 s of CPU time and 512 MiB. Whether a template rejects a conversation, as many do with a
system message, is not checked here.

Later renderings, in training and serving, are limited only by that environment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import ChildEndedError, run_child
from luthier.core.errors import TemplateError, WorkError
from luthier.core.system import facilities
from luthier.core.system.process_setup import limit_cpu_seconds

CPU_SECONDS: Final = 5
MEMORY_BYTES: Final = 512 << 20
MAX_CHARACTERS: Final = 2_000_000
"""Maximum characters of a rendered conversation; the tested ones have at most 40,000."""
_PATIENCE_SECONDS: Final = 600.0
_RENDER: Final = "luthier.ml.inference.models.templates.probe:render"
_ENVIRONMENT: Final = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
_TOO_LARGE: Final = f"takes more than {MEMORY_BYTES >> 20} MiB for a short conversation"
_tried: Final[set[str]] = set()


def check_template(template: str | dict[str, str] | None, special_tokens: Mapping[str, Any]) -> None:
    """Test a template of a model; templates already tested by this process are skipped.

    Args:
        template: The text, or texts by name, as `chat_template` of a tokenizer; None for none.
        special_tokens: What templates know by name, such as `eos_token`.

    Raises:
        TemplateError: it needs more time, memory or output than any conversation should.
        WorkError: it could not be tested, for a reason unrelated to the template.
    """
    if not template:
        return
    texts = list(template.values()) if isinstance(template, dict) else [template]
    tokens = {name: str(token) for name, token in special_tokens.items() if isinstance(token, str)}
    asked = {"templates": texts, "special_tokens": tokens}
    key = json.dumps(asked)
    if key in _tried:
        return
    limited = asked | {"cpu_seconds": CPU_SECONDS}
    try:
        met = run_child(_RENDER, limited, timeout_seconds=_PATIENCE_SECONDS, environment=_ENVIRONMENT)
    except MemoryError as error:
        raise _refused(_TOO_LARGE) from error
    except ChildEndedError as error:
        if error.is_late:
            raise _refused("does not end") from error
        if facilities.ended_over_cpu_limit(error.returncode):
            raise _refused(f"takes more than {CPU_SECONDS} s for a short conversation") from error
        last = "".join(f": {line[:200]}" for line in error.log_lines[-1:])
        # Exceptions of rendering are caught in the process, so any end other than by a crash signal is caused by this
        # machine. SIGKILL comes from the system when memory runs out, or from a person.
        if error.returncode >= 0 or error.is_killed:
            raise _not_tried(f"{error.how}{last}", is_killed=error.is_killed) from error
        raise _refused(f"ends the process that renders it, {error.how}{last}") from error
    if met is not None:
        raise _refused(met)
    _tried.add(key)


def _refused(what: str) -> TemplateError:
    return TemplateError(
        f"the chat template {what}",
        expected="a template that writes a conversation down, in milliseconds",
        do="do not use this model, or repair chat_template.jinja in its folder",
    )


def _not_tried(how: str, *, is_killed: bool) -> WorkError:
    remedy = "free some memory, which the machine was probably out of" if is_killed else "fix what its last line says"
    return WorkError(
        f"the chat template was not tried: the process that was to render it ended {how}",
        expected="a process that does not end before the template is tried; the model may be fine",
        do=f"{remedy}, then try again; `luthier doctor` checks this installation",
    )


def render(document: dict[str, Any], channel: Channel) -> str | None:
    """Render common conversations within limits, in a child process.

    Args:
        document: `templates` (texts), `special_tokens` and `cpu_seconds`, the limit.
        channel: to the parent; nothing is sent over it.

    Returns:
        The limit that a template exceeded, as the end of a sentence; None if none.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    from luthier.ml.inference.models.templates.jinja_sandbox import use_bounded_sandbox

    use_bounded_sandbox()
    _bound(channel, document["cpu_seconds"])
    for template in document["templates"]:
        for messages, tools in _conversations():
            for begins in (False, True):
                try:
                    found, _ = render_jinja_template(
                        conversations=[messages],
                        tools=tools,
                        chat_template=template,
                        add_generation_prompt=begins,
                        **document["special_tokens"],
                    )
                except MemoryError:
                    return _TOO_LARGE
                except Exception:  # noqa: BLE001, S112 - with any error, it has ended
                    continue
                if len(found[0]) > MAX_CHARACTERS:
                    return f"makes more than {MAX_CHARACTERS:,} characters of a short conversation"
    return None


def _bound(channel: Channel, cpu_seconds: int) -> None:
    """Set the limits from here on; libraries are already loaded."""
    limit_cpu_seconds(cpu_seconds)
    # Address space counts, of which libraries reserve gigabytes, where that can be limited; else resident memory.
    channel.limit_memory(held_bytes() + MEMORY_BYTES)


def held_bytes() -> int:
    """What this process holds now of what `Channel.limit_memory` limits."""
    import psutil

    memory = psutil.Process().memory_info()
    return int(memory.vms if facilities.is_linux() else memory.rss)


def _conversations() -> list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]:
    """Messages and available tools."""
    user, answer = {"role": "user", "content": "Which wood?"}, {"role": "assistant", "content": "Spruce-wood."}
    system = {"role": "system", "content": "You build guitars."}
    parameters = {"type": "object", "properties": {"wood": {"type": "string"}}, "required": ["wood"]}
    tool = {"type": "function", "function": {"name": "price", "description": "Of a wood.", "parameters": parameters}}
    call = {"type": "function", "id": "call_1", "function": {"name": "price", "arguments": {"wood": "spruce"}}}
    called: list[dict[str, Any]] = [user, {"role": "assistant", "content": "", "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "call_1", "name": "price", "content": "12"}
    return [
        ([user], None),
        ([user, answer], None),
        ([system, user, answer], None),
        ([user, answer] * 50, None),
        ([{"role": "user", "content": "word " * 8000}, answer], None),
        ([user], [tool]),
        ([*called, result, answer], [tool]),
        # As published rerankers read a pair.
        ([system, {"role": "query", "content": "Which wood?"}, {"role": "document", "content": "word " * 8000}], None),
    ]

"""Whether a model's chat template can be rendered at all: tried once, in a process of its own with bounds.

    python -m luthier.ml.inference.models.template_probe      stdin: the templates and the special tokens, as JSON

It runs when a model is pulled, before this process compiles the template: jinja computes constants while it
compiles. The process renders conversations as they are common (one turn, many, a long one, tools), each of them in the
environment of `bounded_jinja`, and ends by itself or by its bounds: 5 s of CPU time and 512 MiB. That a template fails
on a conversation, as many do on a system message, is not checked here.

Later renderings, in training and serving, are bounded by that environment alone.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from luthier.core.errors import TemplateError

CPU_SECONDS: Final = 5
MEMORY_BYTES: Final = 512 << 20
MOST_CHARACTERS: Final = 2_000_000
"""Of a rendered conversation; those that are tried have at most 40,000."""
_PATIENCE_SECONDS: Final = 600.0
_NO_MEMORY, _TOO_LONG = 3, 4
_tried: Final[set[str]] = set()


def check_template(template: str | dict[str, str] | None, special_tokens: Mapping[str, Any]) -> None:
    """Try a template of a model; one that was tried by this process before is not tried again.

    Args:
        template: The text, or texts by name, as `chat_template` of a tokenizer; None for none.
        special_tokens: What templates know by name, such as `eos_token`.

    Raises:
        TemplateError: it takes more time, memory or room than a conversation can need.
    """
    if not template:
        return
    texts = list(template.values()) if isinstance(template, dict) else [template]
    tokens = {name: str(token) for name, token in special_tokens.items() if isinstance(token, str)}
    asked = json.dumps({"templates": texts, "special_tokens": tokens})
    if asked in _tried:
        return
    command = [sys.executable, "-P", "-m", "luthier.ml.inference.models.template_probe"]
    try:
        ended = subprocess.run(
            command,
            input=asked.encode(),
            capture_output=True,
            timeout=_PATIENCE_SECONDS,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refused("does not come to an end") from error
    if ended.returncode == _NO_MEMORY:
        raise _refused(f"takes more than {MEMORY_BYTES >> 20} MiB for a short conversation")
    if ended.returncode == _TOO_LONG:
        raise _refused(f"makes more than {MOST_CHARACTERS:,} characters of a short conversation")
    if ended.returncode != 0:
        raise _refused(f"takes more than {CPU_SECONDS} s for a short conversation, or ends the process that renders it")
    _tried.add(asked)


def _environment() -> dict[str, str]:
    """That of this process, with its own places of modules, and no help of the network."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}


def _refused(what: str) -> TemplateError:
    return TemplateError(
        f"the chat template {what}",
        expected="a template that writes a conversation down, in milliseconds",
        do="do not use this model, or repair chat_template.jinja in its folder",
    )


def main() -> int:
    """Render the templates on stdin within bounds; the exit code says which bound was met."""
    from transformers.utils.chat_template_utils import render_jinja_template

    from luthier.ml.inference.models.bounded_jinja import use_bounded_sandbox

    use_bounded_sandbox()
    asked = json.loads(sys.stdin.read())
    _bound()
    for template in asked["templates"]:
        for messages, tools in _conversations():
            for begins in (False, True):
                try:
                    found, _ = render_jinja_template(
                        conversations=[messages],
                        tools=tools,
                        chat_template=template,
                        add_generation_prompt=begins,
                        **asked["special_tokens"],
                    )
                except MemoryError:
                    return _NO_MEMORY
                except Exception:  # noqa: BLE001, S112 - whatever it says of this conversation, it has end
                    continue
                if len(found[0]) > MOST_CHARACTERS:
                    return _TOO_LONG
    return 0


def _bound() -> None:
    """Take at most that much from here on; libraries are loaded."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - not a file of the disk
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))


def _conversations() -> list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]:
    """Messages, and the tools that they may call."""
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
    ]


if __name__ == "__main__":
    sys.exit(main())

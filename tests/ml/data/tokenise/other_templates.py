"""Chat templates in the manner of families that the public data does not hold, and what becomes of rows under each.

All are written for these tests, on the marks of ChatML where nothing else is said.
"""

from __future__ import annotations

import json
from typing import Any, Final

from luthier.core.conversation import Message

_PROMPT: Final = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_OTHERS: Final = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_JSON_TOOLS: Final = (
    "{% if tools %}<|im_start|>system\nTools:\n"
    "{% for tool in tools %}{{ tool | tojson(separators=(',', ':'), sort_keys=true) }}\n"
    "{% endfor %}<|im_end|>\n{% endif %}"
)


def _calls(arguments: str) -> str:
    """A turn of calls with their arguments written by an expression."""
    return (
        "{% if m.tool_calls %}<|im_start|>assistant\n{% for call in m.tool_calls %}"
        "<call>{{ call.function.name }} {{ " + arguments + " }}</call>{% endfor %}<|im_end|>\n{% else %}"
    )


_DICT_CALLS: Final = _calls("call.function.arguments | tojson")

TEMPLATES: Final = {
    "generation marks": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}" + _OTHERS + "{% endif %}{% endfor %}"
        + _PROMPT
    ),
    "no system": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}" + _OTHERS + "{% endfor %}" + _PROMPT
    ),
    "renamed roles": (
        _JSON_TOOLS + "{% for m in messages %}{% set role = {'tool': 'observation', 'assistant': 'model', "
        "'user': 'human', 'system': 'rules'}[m.role] %}{% if m.tool_calls %}<|im_start|>model\n"
        "{% for call in m.tool_calls %}"
        "{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% else %}<|im_start|>{{ role }}\n"
        "{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
    ),
    "trimmed": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}" + _PROMPT
    ),
    "beginning inside": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[ASK]{{ m.content }}[/ASK]{% elif "
        "m.role == 'system' %}[RULES]{{ m.content }}[/RULES]{% else %} {{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "beginning each turn": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[ASK]{{ m.content }}[/ASK]{% elif "
        "m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "alternating": (
        "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
        "{% endif %}{% endfor %}"
        "{% for m in messages %}" + _OTHERS + "{% endfor %}" + _PROMPT
    ),
    "opens a thought": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{{ m.content.split('</think>')[-1] | trim }}"
        "<|im_end|>\n{% else %}" + _OTHERS + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
    "opens a thought, keeps all": (
        "{% for m in messages %}" + _OTHERS + "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
    "reasoning field": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}{{ m.content }}<|im_end|>\n"
        "{% else %}" + _OTHERS + "{% endif %}{% endfor %}" + _PROMPT
    ),
    "sorted tools": (
        _JSON_TOOLS + "{% for m in messages %}" + _DICT_CALLS + _OTHERS + "{% endif %}{% endfor %}" + _PROMPT
    ),
    "arguments as text": (
        _JSON_TOOLS + "{% for m in messages %}" + _calls("call.function.arguments") + _OTHERS
        + "{% endif %}{% endfor %}" + _PROMPT
    ),
    "arguments joined as text": (
        _JSON_TOOLS + "{% for m in messages %}" + _calls("'```json\n' + call.function.arguments + '\n```'") + _OTHERS
        + "{% endif %}{% endfor %}" + _PROMPT
    ),
    "named results": (
        _JSON_TOOLS + "{% for m in messages %}" + _DICT_CALLS + "{% if m.role == 'tool' and not m.name %}"
        "{{ raise_exception('a tool message needs a name') }}{% endif %}<|im_start|>{{ m.name or m.role }}\n"
        "{{ m.content }}"
        "<|im_end|>\n{% endif %}{% endfor %}" + _PROMPT
    ),
    "truncated": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[:6] }}<|im_end|>\n{% endfor %}" + _PROMPT
    ),
    "upper case": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n{% endfor %}" + _PROMPT
    ),
    "macros": (
        "{% macro turn(role, text) %}<|im_start|>{{ role }}\n{{ text }}<|im_end|>\n{% endmacro %}"
        "{% set state = namespace(system='Today is ' ~ strftime_now('%d %B %Y') ~ '.') %}"
        "{% for m in messages if m.role == 'system' %}"
        "{% set state.system = state.system ~ ' ' ~ m.content %}{% endfor %}"
        "{{ turn('system', state.system) }}{% for m in messages if m.role != 'system' %}"
        "{{ turn(m.role, m.content) }}{% endfor %}"
        + _PROMPT
    ),
    "parts alone": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}"
        "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}" + _PROMPT
    ),
    "parts selected": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ (m.content | selectattr('type', 'equalto', 'text') | first)['text'] }}"
        "<|im_end|>\n{% endfor %}" + _PROMPT
    ),
    "developer as system": (
        "{% for m in messages %}<|im_start|>{{ 'system' if m.role == 'developer' else m.role }}\n"
        "{{ m.content }}<|im_end|>\n"
        "{% endfor %}" + _PROMPT
    ),
    "default system": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
        "{% for m in messages %}" + _OTHERS + "{% endfor %}" + _PROMPT
    ),
    "system in last user turn": (
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.system = m.content ~ '\n' %}"
        "{% else %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'user' and messages[loop.index0:] | selectattr('role', 'equalto', "
        "'user') | list | length == 1 %}{{ ns.system }}{% endif %}{{ m.content }}<|im_end|>\n{% endif %}"
        "{% endfor %}" + _PROMPT
    ),
    "no prompt": "{% for m in messages %}" + _OTHERS + "{% endfor %}",
    "no end": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}" + _PROMPT
    ),
    "end in the next turn": (
        "{% for m in messages %}{% if m.role == 'user' and not loop.first %}<|im_end|>{% endif %}"
        "<|im_start|>{{ m.role }}\n"
        "{{ m.content }}{% endfor %}" + _PROMPT
    ),
    "question and answer": (
        "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\n{% elif m.role == 'system' %}"
        "{{ m.content }}\n{% else %}Answer: {{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}Answer:{% endif %}"
    ),
    "prompt ends in a space": (
        "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} {% elif m.role == 'system' %}"
        "{{ m.content }} "
        "{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    ),
    "last answer apart": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}<|endoftext|>{% else %}<|im_end|>\n{% endif %}"
        "{% endfor %}" + _PROMPT
    ),
}  # fmt: skip

FAILS_AT_LOAD: Final = ("truncated", "upper case")


def given_to(name: str, message: Message) -> dict[str, Any]:
    """A message as a person who reads the template would give it by hand."""
    role = "system" if message.role == "developer" and "developer" not in TEMPLATES[name] else message.role
    document: dict[str, Any] = {"role": role, "content": message.content or ""}
    if name.startswith("parts"):
        document["content"] = [{"type": "text", "text": message.content or ""}]
    if message.tool_calls:
        document["tool_calls"] = json.loads(json.dumps(message.tool_calls))
        if not name.startswith("arguments"):
            for call in document["tool_calls"]:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    if name == "named results" and message.role == "tool":
        document["name"] = "price"
    if name == "reasoning field" and message.role == "assistant":
        thought, _, answer = document["content"].rpartition("</think>")
        thought = message.reasoning or thought.replace("<think>", "").strip()
        document |= {"content": answer.strip(), "reasoning_content": thought} if thought else {}
    if message.tool_call_id is not None:
        document["tool_call_id"] = message.tool_call_id
    return document

"""Seven kinds of rows, and chat templates of published models on the tiny model's tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from transformers import AddedToken, PreTrainedTokenizerFast

from luthier.core.conversation import Conversation, Message
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.templates.chat_template import ChatTemplate

_SPECIAL: Final = re.compile(
    r"<\|[^|>\s'\"]+\|>|<｜[^｜>]+｜>|</?s>|\[/?[A-Z_]+\]|</?(?:start|end)_of_turn>|<[|]?(?:turn|channel|tool)\w*[|]?>"
)
_BEGINNINGS: Final = ("<bos>", "<｜begin▁of▁sentence｜>", "<|begin_of_text|>", "<s>")
_ENDS: Final = ("<|return|>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "<|end_of_text|>")

CALL: Final = {
    "id": "abcdefgh1", "type": "function", "function": {"name": "price", "arguments": '{"wood": "spruce"}'},
}  # fmt: skip
TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "price",
        "description": "Price of a wood.",
        "parameters": {
            "type": "object",
            "properties": {"wood": {"type": "string", "description": "the wood"}},
            "required": ["wood"],
        },
    },
}


def template_of(folder: Path, text: str, **options: Any) -> ChatTemplate:
    """The tiny tokenizer in `folder` with another template, and the special tokens that this one writes."""
    return on_tokenizer(load_tokenizer(folder), text, **options)


def on_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str, **options: Any) -> ChatTemplate:
    """The template on a tokenizer, which gets the special tokens that it writes."""
    names = sorted(set(_SPECIAL.findall(text)))
    first = next((name for name in _BEGINNINGS if name in text or name == "<s>"), "<s>")
    last = next((name for name in _ENDS if name in names), "</s>" if "eos_token" in text else "<|im_end|>")
    added = [AddedToken(name, special=True, normalized=False) for name in dict.fromkeys((*names, first, last))]
    tokenizer.add_tokens(added)
    tokenizer.chat_template = text
    tokenizer.bos_token, tokenizer.eos_token = first, last
    return ChatTemplate(tokenizer, "chat", options=options)


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _answer(text: str, reasoning: str | None = None) -> Message:
    return Message(role="assistant", content=text, reasoning=reasoning)


def _thought(thought: str, answer: str) -> Message:
    return _answer(f"<think>\n{thought}\n</think>\n\n{answer}")


_FRONT, _BACK = _user("Which wood?"), _user("And the back?")

ROWS: Final = {
    "one": Conversation(messages=(_FRONT, _answer("Spruce wood."))),
    "two": Conversation(messages=(_FRONT, _answer("Spruce wood."), _BACK, _answer("Maple wood."))),
    "system": Conversation(
        messages=(Message(role="system", content="You build guitars."), _FRONT, _answer("Spruce wood."))
    ),
    "tools": Conversation(
        messages=(
            _user("How much is spruce?"),
            Message(role="assistant", tool_calls=(CALL,)),
            Message(role="tool", content="12 Euro", tool_call_id="abcdefgh1"),
            _answer("It costs 12 Euro."),
        ),
        tools=(TOOL,),
    ),
    "reasoning": Conversation(messages=(_FRONT, _answer("Spruce wood.", "It is light and stiff."))),
    "think": Conversation(messages=(_FRONT, _thought("It is light and stiff.", "Spruce wood."))),
    "think_twice": Conversation(
        messages=(_FRONT, _thought("It is light and stiff.", "Spruce wood."), _BACK, _thought("It is hard.", "Maple."))
    ),
}

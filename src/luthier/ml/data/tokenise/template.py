"""What the data layer needs of a chat template: render, encode, and the text that ends a turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from luthier.core.conversation import Conversation, Message
from luthier.ml.inference.models.thought_writing import ThoughtWriting


class Template(Protocol):
    """A chat template with its tokenizer; `luthier.ml.inference.models.chat_template.ChatTemplate` is the one in use.

    Attributes:
        kind: "plain" where the model has no chat template of its own.
        end_of_turn: the text that ends an answer; it encodes to a special token.
        end_texts: all texts that end a turn.
        options: keyword arguments of the template beside the conversation.
        thoughts: how it writes an assistant's thought; None where it writes none.
        tokenizer: the Hugging Face tokenizer.

    `parts_of` splits a turn into thought and answer. `closing` is the end of a turn that the template leaves out.
    `opening_option` is the option that has the prompt leave the thought open. `encode` returns ids and, for each, the
    characters that it covers; it adds nothing that the text does not have, except for a BOS token where the model needs
    one.
    """

    @property
    def kind(self) -> Literal["chat", "plain"]: ...
    @property
    def end_of_turn(self) -> str: ...
    @property
    def end_texts(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def thoughts(self) -> ThoughtWriting | None: ...
    @property
    def tokenizer(self) -> Any: ...
    def parts_of(self, message: Message) -> tuple[str | None, str]: ...
    def closing(self, message: Message) -> str: ...
    def opening_option(self, before: Conversation) -> tuple[str, bool] | None: ...
    def render(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> str: ...
    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...


def decode(template: Template, ids: list[int]) -> str:
    """The text of token ids, special tokens included, nothing cleaned up."""
    text: str = template.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text

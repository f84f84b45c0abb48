"""The interface to a chat template, and encoding a text so that chosen borders fall between tokens.

When a model answers, it is given encode(text before the answer) and continues from there. If the whole text is encoded
at once, a token may straddle that border: "Answer: " + "42" can become "Answer:" + " 42", a prompt that the model never
meets in use, and a token that is half learned and half not. Therefore the prompt is encoded as it is in use, and what
follows is taken from the encoding of the longer text only if that begins with the same ids; otherwise it is encoded
apart. With the usual templates, whose turns end in a special token or a line break, this gives exactly the ids of the
whole text; the check costs one more encoding a border.

Masks are counted in tokens of these encodings, not mapped through character offsets, which some tokenizers trim.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import TemplateError
from luthier.ml.inference.models.templates.jinja_sandbox import TemplateNames
from luthier.ml.inference.models.templates.thought_writing import ThoughtWriting


class Template(Protocol):
    """A chat template with its tokenizer; `ml/inference/models/templates/chat_template.py` has the one in use.

    Attributes:
        kind: "plain" where the model has no chat template of its own.
        end_of_turn: the text that ends an answer; it encodes to a special token.
        end_of_text: the text that ends a plain text: the tokenizer's own end, whatever a template writes.
        end_texts: all texts that end a turn.
        options: keyword arguments of the template beside the conversation.
        names: that it reads: options, fields and constants.
        thoughts: how it writes an assistant's thought; None where it writes none.
        tokenizer: the Hugging Face tokenizer.

    `parts_of` splits a turn into thought and answer. `closing` is the end of a turn that the template leaves out.
    `opening_option` is the option that has the prompt leave the thought open. `encode` returns ids and, for each, the
    characters that it covers; it adds nothing that the text does not have, except for a BOS token where the model needs
    one. `encode_all` returns the ids alone, of many texts, on all cores.
    """

    @property
    def kind(self) -> Literal["chat", "plain"]: ...
    @property
    def end_of_turn(self) -> str: ...
    @property
    def end_of_text(self) -> str: ...
    @property
    def end_texts(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def names(self) -> TemplateNames: ...
    @property
    def thoughts(self) -> ThoughtWriting | None: ...
    @property
    def tokenizer(self) -> Any: ...
    def parts_of(self, message: Message) -> tuple[str | None, str]: ...
    def closing(self, message: Message) -> str: ...
    def opening_option(self, before: Conversation) -> tuple[str, bool] | None: ...
    def render(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> str: ...
    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...
    def encode_all(self, texts: Sequence[str]) -> list[list[int]]: ...


Encoded = Mapping[str, list[int]]
"""The ids of texts that were encoded together before they are needed."""
NOT_ENCODED: Final[Encoded] = {}


def encode_ids(text: str, template: Template, encoded: Encoded = NOT_ENCODED) -> list[int]:
    """The ids of a text, from those that were encoded before where it is among them.

    Args:
        text: to encode.
        template: its tokenizer encodes.
        encoded: the ids of texts, by the same tokenizer.
    """
    ids = encoded.get(text)
    return template.encode_all([text])[0] if ids is None else ids


def decode(template: Template, ids: list[int]) -> str:
    """The text of token ids, special tokens included, nothing cleaned up."""
    text: str = template.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def ends_of(text: str, borders: Sequence[int]) -> list[int]:
    """The ends of the texts that `encode_with_cuts` encodes, in characters, ascending."""
    return [*borders, len(text)] if not borders or borders[-1] != len(text) else list(borders)


def encode_with_cuts(
    text: str, borders: Sequence[int], template: Template, encoded: Encoded = NOT_ENCODED
) -> tuple[list[int], list[int]]:
    """Encode a text so that every border falls between two tokens.

    The ids before the first border always equal template.encode(text[:border]). So do those before a later border,
    unless an earlier border had to be cut.

    Args:
        text: the whole text.
        borders: where tokens must not straddle, ascending, in characters.
        template: its tokenizer encodes.
        encoded: of texts that were encoded before, such as those up to each of `ends_of`.

    Returns:
        Ids of the whole text, and for each border the number of tokens before it.

    Raises:
        TemplateError: a piece cannot be encoded apart without changing it.
    """
    ids: list[int] = []
    marks: list[int] = []
    start = 0
    for end in ends_of(text, borders):
        longer = encode_ids(text[:end], template, encoded)
        # The longer text continues the same ids, so no token straddles the border.
        if longer[: len(ids)] == ids:
            ids = longer
        elif end > start:
            ids = ids + _encode_apart(text[start:end], template)
        marks.append(len(ids))
        start = end
    return ids, marks[: len(borders)]


def _encode_apart(piece: str, template: Template) -> list[int]:
    """Ids of a piece from the middle of a text.

    Encoded behind the end-of-turn token, which nothing merges with. There some tokenizers add a space, as at the
    beginning of a text, which does not belong here; so if the piece begins with one it is given without it, else behind
    a line end.
    """
    end = template.end_of_turn
    tried = [(end, piece), (end, piece.removeprefix(" ")), (f"{end}\n", piece)]
    found = [_encode_behind(sentinel, given, template) for sentinel, given in tried]
    for ids, written in found:
        if ids is not None and _same(written, piece, template):
            return ids
    raise TemplateError(
        f"the tokenizer joins an answer with the text before it, and encoded apart {piece[:40]!r} becomes "
        f"{found[0][1][:40]!r}",
        expected="a border between tokens where the model begins to answer",
        do="let the answers begin without white space, let the template's generation prompt end in a line end or a "
        "special token, or choose another base model or template",
    )


def _encode_behind(sentinel: str, piece: str, template: Template) -> tuple[list[int] | None, str]:
    """Ids of a piece behind another text, and what they decode to; no ids where the two are joined."""
    head, both = template.encode_all([sentinel, sentinel + piece])
    # Compared as decoded text: ids alone do not show that a space was added or dropped.
    written = decode(template, both).removeprefix(decode(template, head))
    return (both[len(head) :] if both[: len(head)] == head else None), written


def _same(written: str, piece: str, template: Template) -> bool:
    """Whether two texts are the same except for composed letters, and white space beside tokens that have a name.

    That is added or taken there by the tokenizer in every text.
    """
    # Longest first: in an alternation of a regular expression the first match wins, and "<s>" may begin another token.
    named = sorted((token.content for token in template.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    beside = re.compile(rf"\s*({'|'.join(map(re.escape, named))})\s*")
    one, other = (unicodedata.normalize("NFC", text) for text in (written, piece))
    return one == other or (bool(named) and beside.sub(r"\1", one) == beside.sub(r"\1", other))

"""Encode a text so that chosen borders fall between tokens, and so that the ids are those the model meets in use.

When a model answers, it is given encode(text before the answer) and goes on from there. If the whole text is encoded at
once, a token may straddle that border: "Answer: " + "42" can become "Answer:" + " 42", a prompt that the model never
meets in use, and a token that is half learned and half not. Therefore the prompt is encoded as it is in use, and what
follows is taken from the encoding of the longer text only if that begins with the very same ids; otherwise it is
encoded apart. With the usual templates, whose turns end in a special token or a line break, this gives exactly the ids
of the whole text; the check costs one more encoding a border.

Masks are counted in tokens of these encodings, not mapped through character offsets, which some tokenizers trim.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from luthier.core.errors import TemplateError
from luthier.data.template import Template, decode


def encode_with_cuts(text: str, borders: Sequence[int], template: Template) -> tuple[list[int], list[int]]:
    """Ids of the whole text, and for each border (ascending, in characters) the number of tokens before it.

    The ids before the first border always equal template.encode(text[:border]). So do those before a later border,
    unless an earlier border had to be cut.

    Raises:
        TemplateError: a piece cannot be encoded apart without changing it.
    """
    ids: list[int] = []
    marks: list[int] = []
    start = 0
    ends = [*borders, len(text)] if not borders or borders[-1] != len(text) else list(borders)
    for end in ends:
        longer, _ = template.encode(text[:end])
        if longer[: len(ids)] == ids:
            ids = longer
        elif end > start:
            ids = ids + _encode_apart(text[start:end], template)
        marks.append(len(ids))
        start = end
    return ids, marks[: len(borders)]


def _encode_apart(piece: str, template: Template) -> list[int]:
    """Ids of a piece from the middle of a text.

    Encoded behind the end-of-turn token, which nothing merges with: at the beginning of a text some tokenizers add a
    space or a BOS token, which do not belong here.
    """
    sentinel = template.end_of_turn
    head, _ = template.encode(sentinel)
    both, _ = template.encode(sentinel + piece)
    written = decode(template, both).removeprefix(decode(template, head))
    if both[: len(head)] != head or _nfc(written) != _nfc(piece):
        raise TemplateError(
            f"the tokenizer joins an answer with the text before it, and encoded apart {piece[:40]!r} becomes "
            f"{written[:40]!r}",
            expected="a border between tokens where the model begins to answer",
            do="let the answers begin without white space, or choose another base model or template",
        )
    return both[len(head) :]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)

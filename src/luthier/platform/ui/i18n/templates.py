"""Templates in another language: a template's source with the catalog's texts in the place of its own.

Templates are written in English, without marks. Their texts are found by their HTML: text between tags with the inline
elements in it, attributes that are read out, and strings of expressions (`expressions.py`). A message ends at a block
element, at a statement of Jinja and at a middle dot. The source in another language is made once a process and
compiled like any other template, so that a page costs the same in every language. `code`, `pre`, scripts and styles
stay as they are.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from jinja2 import Environment

from luthier.platform.ui.i18n.expressions import Construct, Token, rewritten_construct, term_call
from luthier.platform.ui.i18n.figures import FILTERS
from luthier.platform.ui.i18n.messages import (
    Element,
    Ending,
    Find,
    Hole,
    Item,
    Named,
    Plural,
    Tags,
    translated,
    translated_forms,
)

_FIRST: Final = 0xF0000
"""Constructs are one character of a private plane each while the HTML is read."""
_TAG: Final = re.compile(
    r"<!--.*?-->|<![^>]*>|<(?P<close>/?)(?P<name>[a-zA-Z][\w-]*|[\U000F0000-\U000FFFFD])(?P<rest>(?:[^<>\"']|\"[^\"]*\"|'[^']*')*)>",
    re.DOTALL,
)
_CONSTRUCT: Final = re.compile(r"[\U000F0000-\U000FFFFD]")
_LETTER: Final = re.compile(r"[^\W\d_]")
READ_ATTRIBUTES: Final = (
    *("title", "aria-label", "placeholder", "alt", "label", "aria-valuetext", "aria-description"),
    *("data-confirm", "data-words", "data-notice", "data-done", "data-label"),
)
_ATTRIBUTE: Final = re.compile(
    rf"(?<=\s)(?P<name>{'|'.join(READ_ATTRIBUTES)})=(?P<quote>[\"'])(?P<value>.*?)(?P=quote)", re.DOTALL
)
_INLINE: Final = frozenset(
    (
        *("a", "abbr", "b", "bdi", "cite", "dfn", "em", "i", "mark", "q", "s", "small", "span", "strong", "sub", "sup"),
        "u",
    )
)
_OPAQUE: Final = frozenset(("code", "kbd", "samp", "var"))
"""Inline elements that are placeholders as a whole."""
_SKIPPED: Final = frozenset(("script", "style", "pre", "textarea", "svg", "template"))
_TEXT_ONLY: Final = frozenset(("option", "title"))
"""Elements that hold no elements."""
_LEADING: Final = " \t\r\n.,;:·)–"
_DOT: Final = re.compile(r"(\s*·\s*)")
_FIGURE_FILTER: Final = re.compile(rf"(\|\s*)({'|'.join(FILTERS)})\b")
_LEXER: Final = Environment(keep_trailing_newline=True, autoescape=True)
_ENDS: Final = {"variable_begin": "variable_end", "block_begin": "block_end", "raw_begin": "raw_end"}
_KINDS: Final = {"variable_begin": "expression", "block_begin": "statement"}


@dataclass(slots=True)
class _Piece:
    """A part of the HTML. kind: text, open, close, void, expression or edge (what ends a message)."""

    kind: str
    text: str
    name: str = ""
    partner: int = -1


@dataclass(slots=True)
class _Template:
    """A template while it is rewritten: its constructs, and which of them print what people read."""

    find: Find
    constructs: list[Construct] = field(default_factory=list)
    printing: set[int] = field(default_factory=set)
    in_attributes: set[int] = field(default_factory=set)

    def add(self, construct: Construct) -> str:
        self.constructs.append(construct)
        return chr(_FIRST + len(self.constructs) - 1)

    def raw(self, source: str) -> str:
        """A character for a construct that is made here."""
        return self.add(Construct("other", [Token("raw", source)], 0))

    def of(self, character: str) -> Construct:
        return self.constructs[ord(character) - _FIRST]


def rewritten(source: str, find: Find) -> str:
    """The source of a template with its texts translated; texts without a translation stay.

    Args:
        source: Of the template.
        find: The translation of a message; called for every message of the template.
    """
    # Jinja's constructs become single characters first: then plain HTML is left, which regular expressions can read.
    template = _Template(find)
    flat = _flat(source, template)
    pieces = list(_pieces(flat, template))
    _pair(pieces)
    out, run = [], list[_Piece]()
    for piece in [*pieces, _Piece("edge", "")]:
        if piece.kind == "edge" or (piece.kind in ("open", "close") and piece.partner < 0):
            out += [_of_run(_tree(run, template), template), piece.text]
            run = []
        else:
            run.append(piece)
    return _CONSTRUCT.sub(lambda found: _source(ord(found[0]) - _FIRST, template), "".join(out))


def _source(index: int, template: _Template) -> str:
    construct = template.constructs[index]
    if construct.kind == "expression" and index not in template.printing:
        return _FIGURE_FILTER.sub(r"\1source_\2", construct.source)
    return rewritten_construct(
        construct, template.find, prints=index in template.printing, in_text=index not in template.in_attributes
    )


def _flat(source: str, template: _Template) -> str:
    """The template with a character in the place of each construct."""
    out: list[str] = []
    tokens = iter(_LEXER.lex(source))
    for line, kind, text in tokens:
        if kind == "data":
            out.append(text)
            continue
        inside = [Token(kind, text)]
        # Lexed by Jinja itself, so that quotes, comments and raw blocks end where Jinja sees their end.
        end = _ENDS.get(kind, kind.replace("_begin", "_end"))
        if kind.endswith("_begin"):
            for _, other, more in tokens:
                inside.append(Token(other, more))
                if other == end:
                    break
        out.append(template.add(Construct(_KINDS.get(kind, "other"), inside, line)))
    return "".join(out)


def _pieces(flat: str, template: _Template) -> Iterator[_Piece]:
    at, skipped, is_plain = 0, "", False
    for found in _TAG.finditer(flat):
        name = (found["name"] or "").lower()
        # Inside a script or style "<" is no tag: only its own end tag is looked for.
        if skipped and not (found["close"] and name == skipped):
            continue
        if found.start() > at:
            text = flat[at : found.start()]
            if is_plain:
                template.in_attributes |= {ord(char) - _FIRST for char in _CONSTRUCT.findall(text)}
            yield from [_Piece("edge", text)] if skipped else _texts(text, template)
        at = found.end()
        text = _read_attributes(found[0], template) if name else found[0]
        if skipped:
            skipped = ""
            yield _Piece("edge", text)
        elif name in _SKIPPED and not found["close"] and not found["rest"].endswith("/"):
            skipped = name
            yield _Piece("edge", text)
        elif name in _INLINE or name in _OPAQUE:
            yield _Piece("close" if found["close"] else "open", text, name)
        else:
            is_plain = name in _TEXT_ONLY and not found["close"]
            yield _Piece("edge", text)
    yield from _texts(flat[at:], template)


def _texts(text: str, template: _Template) -> Iterator[_Piece]:
    """Text between tags: its characters, its expressions, and statements, which end a message."""
    for part in re.split(r"([\U000F0000-\U000FFFFD])", text):
        if not part:
            continue
        if not _CONSTRUCT.fullmatch(part):
            for words in _DOT.split(part):
                if words:
                    # Attributes in the block of a `set` are no text.
                    yield _Piece("edge" if _DOT.fullmatch(words) or '="' in words else "text", words)
            continue
        kind = template.of(part).kind
        if kind == "expression":
            template.printing.add(ord(part) - _FIRST)
        yield _Piece("expression" if kind == "expression" else "edge", part)


def _read_attributes(tag: str, template: _Template) -> str:
    """A tag with the attributes that people read or hear translated."""

    def change(found: re.Match[str]) -> str:
        template.in_attributes |= {ord(char) - _FIRST for char in _CONSTRUCT.findall(found["value"])}
        out, run = [], list[_Piece]()
        for piece in [*_texts(found["value"], template), _Piece("edge", "")]:
            if piece.kind == "edge":
                out += [_of_attribute(run, template), piece.text]
                run = []
            else:
                run.append(piece)
        return f"{found['name']}={found['quote']}{''.join(out)}{found['quote']}"

    return _ATTRIBUTE.sub(change, tag)


def _of_attribute(run: list[_Piece], template: _Template) -> str:
    plain = "".join(piece.text for piece in run)
    items = [item for piece in run for item in [_item(piece, template)] if not isinstance(item, Element)]
    if not any(isinstance(item, str) and _LETTER.search(item) for item in items):
        return plain
    found = translated_forms(items, template.find, _line(run, template))
    if found is None:
        return plain
    # Blanks around a message belong to the layout and not to the text that is translated.
    begin, end = plain[: len(plain) - len(plain.lstrip())], plain[len(plain.rstrip()) :]
    return begin + _written(found, template, quote=True) + end


def _pair(pieces: list[_Piece]) -> None:
    """Find the end of each inline element; one that a message cannot hold whole has none."""
    stack: list[int] = []
    for index, piece in enumerate(pieces):
        if piece.kind == "edge":
            stack = []
        elif piece.kind == "open":
            stack.append(index)
        elif piece.kind == "close":
            # An element that was opened and not closed before this one cannot be held whole by a message.
            while stack and pieces[stack[-1]].name != piece.name:
                stack.pop()
            if stack:
                piece.partner = stack[-1]
                pieces[stack.pop()].partner = index


def _tree(run: list[_Piece], template: _Template) -> list[Item]:
    """The items of a run of pieces; elements without their own text are placeholders."""
    stack: list[tuple[_Piece | None, list[Item]]] = [(None, [])]
    for piece in run:
        if piece.kind == "open":
            stack.append((piece, []))
        elif piece.kind == "close":
            begin, inside = stack.pop()
            assert begin is not None
            stack[-1][1].append(_element(begin, inside, piece))
        else:
            stack[-1][1].append(_item(piece, template))
    return stack[0][1]


def _item(piece: _Piece, template: _Template) -> Item:
    if piece.kind != "expression":
        return html.unescape(piece.text) if "&" in piece.text else piece.text
    construct = template.of(piece.text)
    if (ending := construct.plural()) is not None:
        # Its strings are parts of words.
        template.printing.discard(ord(piece.text) - _FIRST)
        return Ending(*ending, piece.text)
    if (term := construct.term()) is not None:
        return Element(term, [term.word])
    return Hole(construct.name(), piece.text)


def _element(begin: _Piece, inside: list[Item], end: _Piece) -> Item:
    if begin.name in _OPAQUE or not _has_text(inside):
        name = next((item.name for item in inside if isinstance(item, Hole)), begin.name)
        return Hole(begin.name if begin.name in _OPAQUE else name, begin.text + _plain(inside) + end.text)
    return Element(Tags(begin.text, end.text), inside)


def _has_text(items: list[Item]) -> bool:
    return any(_has_text(item.items) if isinstance(item, Element) else _is_text(item) for item in items)


def _is_text(item: Item) -> bool:
    return isinstance(item, Ending) or (isinstance(item, str) and _LETTER.search(item) is not None)


def _of_run(items: list[Item], template: _Template) -> str:
    """A run of text, translated; where its own text has no letters, the elements in it are messages by themselves."""
    if not any(_is_text(item) for item in items):
        out = []
        for item in items:
            if not isinstance(item, Element):
                out.append(_plain([item]))
            elif isinstance(item.mark, Named):
                out.append(_of_term(item, item.mark, template))
            else:
                out += [item.mark.begin, _of_run(item.items, template), item.mark.end]
        return "".join(out)
    begin, core, end = _trimmed(items)
    line = next((template.of(char).line for char in _CONSTRUCT.findall(_plain(core))), 0)
    found = translated_forms(core, template.find, line)
    return begin + (_plain(core) if found is None else _written(found, template, quote=False)) + end


def _of_term(item: Element, term: Named, template: _Template) -> str:
    found = translated([term.word], template.find, 0)
    return _plain([item]) if found is None else template.raw(f"{{{{ {term_call(term, ''.join(map(str, found)))} }}}}")


def _trimmed(items: list[Item]) -> tuple[str, list[Item], str]:
    """Blanks and marks before and after a message, and the message."""
    core, begin, end = list(items), "", ""
    if isinstance(core[0], str):
        rest = core[0].lstrip(_LEADING)
        begin, core[0] = core[0][: len(core[0]) - len(rest)], rest
    if isinstance(core[-1], str):
        rest = core[-1].rstrip()
        end, core[-1] = core[-1][len(rest) :], rest
    return _escaped(begin), [item for item in core if item != ""], _escaped(end)


def _plain(items: list[Item]) -> str:
    """Items as they were in the template."""
    out = []
    for item in items:
        if isinstance(item, str):
            out.append(_escaped(item))
        elif isinstance(item, Element):
            mark = item.mark
            if isinstance(mark, Named):
                shown = "" if mark.word == mark.key else f", {mark.word!r}"
                out.append(f"{{{{ term({mark.key!r}{shown}) }}}}")
            else:
                out += [mark.begin, _plain(item.items), mark.end]
        else:
            out.append(item.source)
    return "".join(out)


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


def _written(found: list[str | Hole | Element] | Plural, template: _Template, *, quote: bool) -> str:
    """A translation as a part of a template; its text is escaped as HTML."""
    if isinstance(found, Plural):
        begin, other, end = (template.raw(f"{{% {word} %}}") for word in (f"if {found.condition}", "else", "endif"))
        one = _written(found.one, template, quote=quote)
        return begin + one + other + _written(found.other, template, quote=quote) + end
    out = []
    for part in found:
        if isinstance(part, str):
            out.append(html.escape(part, quote=quote))
        elif isinstance(part, Hole):
            out.append(part.source)
        elif isinstance(part.mark, Named):
            word = "".join(one for one in part.items if isinstance(one, str))
            out.append(template.raw(f"{{{{ {term_call(part.mark, word)} }}}}"))
        else:
            assert isinstance(part.mark, Tags)
            inside = [one for one in part.items if not isinstance(one, Ending)]
            out += [part.mark.begin, _written(inside, template, quote=quote), part.mark.end]
    return "".join(out)


def _line(run: list[_Piece], template: _Template) -> int:
    return next((template.of(piece.text).line for piece in run if piece.kind == "expression"), 0)

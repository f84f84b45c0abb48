"""Texts inside of Jinja's constructs: `{{ "never" if x else y }}`, `{{ empty("No runs yet") }}`, `"An " ~ term("x")`.

A construct is read as its tokens. Operands that are joined by `~` are one message: strings are its text, `term("word")`
is an element with its word, everything else a placeholder. Keys, addresses and strings that are compared stay as they
are: a text has a blank or begins with a capital, or it is what the construct prints.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Final

from luthier.platform.ui.i18n.messages import Element, Find, Hole, Item, Named, translated

_NO_TEXT_CALLS: Final = frozenset(
    (
        *(
            "asset",
            "may",
            "selectattr",
            "rejectattr",
            "map",
            "replace",
            "split",
            "join",
            "get",
            "getlist",
            "startswith",
        ),
        *("endswith", "rstrip", "lstrip", "strip", "sort", "groupby", "attr", "dictsort", "batch", "drawn", "at"),
    )
)
"""Functions, filters and methods whose strings are keys or characters."""
_COMPARED: Final = frozenset(("==", "!=", "<", ">", "<=", ">=", "in", "is"))
_SEPARATING_NAMES: Final = frozenset(("if", "else", "and", "or", "not", "in", "is"))
_SEPARATING_OPERATORS: Final = _COMPARED - {"in", "is"} | frozenset((",", "=", ":", "+", "-", "*", "/", "//", "%"))
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
_READ_STATEMENTS: Final = frozenset(("set", "for", "call", "with", "do", "macro"))
SPOKEN: Final = frozenset(
    (
        *(
            "title",
            "words",
            "hint",
            "headline",
            "sentence",
            "reason",
            "why",
            "advice",
            "caption",
            "badge",
            "unit",
            "word",
        ),
        *("explanation", "meaning", "next_step", "action", "came", "expected", "message", "status", "shown_status"),
        *("phase", "stage", "severity", "summary", "detail", "attention", "lead", "button", "about", "needs", "pays"),
        *("because", "kept_because", "place_name", "rule", "assumed", "topic", "kind_title", "gain_words", "unset"),
    )
)
"""Attributes whose values are texts that Python makes: `{{ goal.title }}` is translated without a mark in the template.
Other values are marked: `{{ entry.name | t }}`. Names and texts of people are neither."""
_DIRECTIVE: Final = re.compile(r"%[-+#.\d]*[a-zA-Z]|\{[^}]*\}")
_LETTER: Final = re.compile(r"[^\W\d_]")
_PLURAL: Final = re.compile(r'\s*"([^"]*)" if (.+?) == 1 else "([^"]*)"\s*')
_SEVERAL: Final = re.compile(r'\s*"(s)" if (.+?) (?:!= 1|> 1)\s*')


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a construct: its kind as Jinja's lexer names it, and its source."""

    kind: str
    text: str


@dataclass(slots=True)
class Construct:
    """One `{{ expression }}` or `{% statement %}` of a template.

    Attributes:
        kind: `expression`, `statement` or `other` (comments, raw text).
        tokens: All of them; their texts are the source.
        line: Of its beginning.
    """

    kind: str
    tokens: list[Token]
    line: int

    @property
    def source(self) -> str:
        """As it is in the template."""
        return "".join(token.text for token in self.tokens)

    @property
    def inner(self) -> str:
        """The source between the braces."""
        return "".join(token.text for token in self.tokens[1:-1])

    def plural(self) -> tuple[str, str, str] | None:
        """Of an ending such as `"" if n == 1 else "s"`: the condition of the singular and both endings."""
        if self.kind != "expression":
            return None
        if (found := _PLURAL.fullmatch(self.inner)) is not None:
            return f"({found[2]}) == 1", found[1], found[3]
        if (found := _SEVERAL.fullmatch(self.inner)) is not None:
            return f"({found[2]}) == 1", "", found[1]
        return None

    def name(self) -> str:
        """What its placeholder is called in messages."""
        return _name_of(self.tokens[1:-1])

    def term(self) -> Named | None:
        """The explained word that it prints; None where it prints anything else."""
        return _term_of(self.tokens[1:-1]) if self.kind == "expression" else None


@dataclass(frozen=True, slots=True)
class _Around:
    """Where in a construct a string is. call: the function whose argument it is. kind: of the innermost brackets."""

    kind: str
    call: str
    prints: bool


@dataclass(slots=True)
class _Slot:
    """Operands joined by `~`, up to the next separator."""

    operands: list[list[Token]] = field(default_factory=lambda: [[]])
    before: str = ""


def rewritten_construct(construct: Construct, find: Find, *, prints: bool, in_text: bool = True) -> str:
    """The source of a construct with its texts translated.

    Args:
        construct: The construct.
        find: The translation of a message.
        prints: Whether what it prints is read by people, in contrast to the value of an attribute such as `class`.
        in_text: Whether it is the content of an element, which may hold elements, and not of an attribute.
    """
    if construct.kind == "other":
        return construct.source
    if construct.kind == "statement":
        words = [token.text for token in construct.tokens if token.kind == "name"]
        if not words or words[0] not in _READ_STATEMENTS:
            return construct.source
        prints = False
    is_loop = construct.kind == "statement" and words[0] == "for"
    reader = _Reader(construct.tokens, find, construct.line, is_loop=is_loop)
    made = reader.group(_Around("top", "", prints))
    return made if not prints else _spoken(made, in_text=in_text)


_PATH: Final = re.compile(
    r"(?P<begin>\{\{-?\s*)(?P<path>[a-z_]\w*(?:\[[^\]{}]*\])?(?:\.\w+(?:\[[^\]{}]*\])?)*?\.(?P<last>[a-z_]+))"
    r"(?P<filters>\s*\|\s*(?:capitalize|lower|truncate\(\d+\)))?(?P<end>\s*-?\}\})"
)
_MARKED: Final = re.compile(r"\|\s*t(?P<end>\s*-?\}\})")


def _spoken(source: str, *, in_text: bool) -> str:
    """An expression with the filter for texts of Python, where it prints one."""
    found = _PATH.fullmatch(source)
    if found is None or found["last"] not in SPOKEN:
        return _MARKED.sub(r"| t_text\g<end>", source) if in_text else source
    if found["filters"]:
        return f"{found['begin']}{found['path']} | t{found['filters']}{found['end']}"
    return f"{found['begin']}{found['path']} | {'t_text' if in_text else 't'}{found['end']}"


class _Reader:
    def __init__(self, tokens: list[Token], find: Find, line: int, *, is_loop: bool = False) -> None:
        self._tokens, self._find, self._line, self._at = tokens, find, line, 0
        # The `in` of a loop compares nothing: what follows it is gone through.
        self._is_loop = is_loop

    def group(self, around: _Around) -> str:
        """Read up to the bracket that closes this group, or to the end."""
        out: list[str] = []
        slot, previous = _Slot(), Token("", "")
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            self._at += 1
            is_operator = token.kind == "operator"
            # The bracket belongs to the caller's group: it returns with what was read so far.
            if is_operator and token.text in _CLOSE:
                out += [self._flush(slot, token.text, around), token.text]
                return "".join(out)
            if is_operator and token.text in _OPEN:
                inside = self.group(self._inside(token.text, previous, slot, around))
                slot.operands[-1].append(Token("group", token.text + inside))
                previous = Token("group", ")")
            elif is_operator and token.text == "~":
                slot.operands.append([])
                previous = token
            elif self._separates(token):
                out += [self._flush(slot, token.text, around), token.text]
                is_loops_own = self._is_loop and token.text == "in"
                self._is_loop = self._is_loop and not is_loops_own
                # A bracket behind it neither calls nor indexes anything.
                slot, previous = _Slot(before="" if is_loops_own else token.text), Token("operator", token.text)
            else:
                slot.operands[-1].append(token)
                previous = token if token.kind != "whitespace" else previous
        out.append(self._flush(slot, "", around))
        return "".join(out)

    @staticmethod
    def _separates(token: Token) -> bool:
        if token.kind == "name":
            return token.text in _SEPARATING_NAMES
        return token.kind.endswith(("_begin", "_end")) or (
            token.kind == "operator" and token.text in _SEPARATING_OPERATORS
        )

    @staticmethod
    def _inside(bracket: str, previous: Token, slot: _Slot, around: _Around) -> _Around:
        # A string that is compared is a key, also where it looks like a text.
        if slot.before in _COMPARED:
            return _Around("call", "startswith", prints=False)
        if bracket == "(":
            if previous.kind == "name":
                words = [token.text for token in slot.operands[-1] if token.kind != "whitespace"]
                return _Around("call", "term" if words[-3:] == ["term", ".", "ask"] else previous.text, around.prints)
            kind = "paren" if around.kind in ("top", "paren") else around.kind
            return _Around(kind, around.call, around.prints)
        if bracket == "[" and (previous.kind in ("name", "group")):
            return _Around("subscript", "", around.prints)
        return _Around("dict" if bracket == "{" else "list", around.call, around.prints)

    def _flush(self, slot: _Slot, after: str, around: _Around) -> str:
        plain = "~".join("".join(token.text for token in operand) for operand in slot.operands)
        if slot.before in _COMPARED or after in (*_COMPARED, "not") or around.kind == "subscript":
            return plain
        # A call of `term` writes its word itself; its argument is the key of the glossary.
        if around.call in _NO_TEXT_CALLS or around.call == "term" or (around.kind == "dict" and after == ":"):
            return plain
        items = [self._item(operand) for operand in slot.operands]
        # A placeholder for each explained word, so that the rules below see where words are.
        text = "".join(item if isinstance(item, str) else " x " * isinstance(item, Element) for item in items)
        if not self._is_text(text, items, around):
            return self._with_filtered(slot, plain, around)
        found = translated(items, self._find, self._line)
        # Blanks at the ends belong to the place, not to the message.
        begin = items[0][: len(items[0]) - len(items[0].lstrip())] if isinstance(items[0], str) else ""
        end = items[-1][len(items[-1].rstrip()) :] if isinstance(items[-1], str) else ""
        return plain if found is None else self._joined([one for one in (begin, *found, end) if one != ""], slot)

    def _with_filtered(self, slot: _Slot, plain: str, around: _Around) -> str:
        """`"%s versions" | format(n)`: the string before its filters is translated alone."""
        operand = slot.operands[0]
        tokens = [token for token in operand if token.kind != "whitespace"]
        is_filtered = len(slot.operands) == 1 and len(tokens) > 2 and tokens[0].kind == "string"
        if not is_filtered or tokens[1].text not in ("|", "."):
            return plain
        text = _value(tokens[0].text)
        if not self._is_text(text, [text], around):
            return plain
        found = translated([text], self._find, self._line)
        return plain if found is None else plain.replace(tokens[0].text, _literal("".join(map(str, found))), 1)

    @staticmethod
    def _is_text(text: str, items: list[Item], around: _Around) -> bool:
        bare = _DIRECTIVE.sub("", text).strip()
        if not _LETTER.search(bare) or text.startswith(("/", "#", "?", "<", "http", "luthier ", "data:")):
            return False
        if any(isinstance(item, Element) for item in items) or " " in bare or bare[0].isupper():
            return True
        # One word in small letters is a key, unless it is what the page prints.
        return around.prints and (around.kind in ("top", "paren") or around.call == "default")

    @staticmethod
    def _item(operand: list[Token]) -> Item:
        tokens = [token for token in operand if token.kind != "whitespace"]
        if len(tokens) == 1 and tokens[0].kind == "string":
            return _value(tokens[0].text)
        term = _term_of(operand)
        if term is not None:
            return Element(term, [term.word])
        return Hole(_name_of(operand), "".join(token.text for token in operand).strip())

    @staticmethod
    def _joined(parts: list[str | Hole | Element], slot: _Slot) -> str:
        first, last = slot.operands[0], slot.operands[-1]
        begin = " " if first and first[0].kind == "whitespace" else ""
        end = " " if last and last[-1].kind == "whitespace" else ""
        words = []
        for part in parts:
            if isinstance(part, str):
                words.append(_literal(part))
            elif isinstance(part, Hole):
                words.append(part.source)
            else:
                assert isinstance(part.mark, Named)
                words.append(term_call(part.mark, "".join(map(str, part.items))))
        joined = " ~ ".join(words) or '""'
        return f"{begin}({joined}){end}" if len(words) > 1 else f"{begin}{joined}{end}"


def term_call(term: Named, shown: str) -> str:
    """The call that prints an explained word in another language."""
    return f"term({_literal(term.key)}, {_literal(shown)})"


def _term_of(tokens: list[Token]) -> Named | None:
    bare = [token for token in tokens if token.kind != "whitespace"]
    if not bare or bare[0] != Token("name", "term"):
        return None
    found = re.fullmatch(
        r'term\(\s*("(?:[^"\\]|\\.)*")\s*(?:,\s*("(?:[^"\\]|\\.)*")\s*)?\)', "".join(token.text for token in bare)
    )
    if found is None:
        return None
    key = _value(found[1])
    return Named(key, _value(found[2]) if found[2] else key)


def _name_of(tokens: list[Token]) -> str:
    """The last name of the path before filters: `run.num_rows | count` is `num_rows`."""
    path: list[str] = []
    for token in tokens:
        if token.kind == "whitespace":
            continue
        if token.kind in ("string", "group") or (token.kind == "operator" and token.text in ("(", "[")):
            if path:
                break
            return "choice"
        if token.kind == "operator" and token.text not in (".", "-"):
            break
        if token.kind == "name":
            if token.text in _SEPARATING_NAMES:
                break
            path.append(token.text)
    return path[-1] if path else "value"


def _value(literal: str) -> str:
    # Jinja's string literals are Python's; literal_eval runs no code.
    found: str = ast.literal_eval(literal)
    return found


def _literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

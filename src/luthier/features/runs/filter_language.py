"""The filter language of the list of runs: text to a tree of conditions, and back.

    lr>1e-3 tag:sweep verdict:better (method:lora or method:dora) not state:failed created>2026-11-01 name~"client"

    filter     = all { "or" all }
    all        = term { ["and"] term }
    term       = ( "not" | "-" ) term  |  "(" filter ")"  |  field operator value  |  words
    operator   = ":" "=" "!=" ">" ">=" "<" "<=" "~" "!~"
    value      = text without spaces, parentheses and quotes  |  '"' any text '"'

What a field means is not known here: `filter_query.py` turns a tree into conditions of the database.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from luthier.core.errors import RequestError

Operator = Literal[":", "=", "!=", ">", ">=", "<", "<=", "~", "!~"]
OPERATORS: Final[tuple[Operator, ...]] = get_args(Operator)
MAX_CHARACTERS: Final = 1_000
_MAX_DEPTH: Final = 20
_MAX_TERMS: Final = 60
_KEYWORDS: Final = frozenset(("and", "or", "not"))
_CONDITION: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_.]*)\s*(!=|>=|<=|!~|:|=|>|<|~)\s*")
_BARE: Final = re.compile(r'[^\s()"]+')
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_PLAIN_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.%+]*")


@dataclass(frozen=True, slots=True)
class Condition:
    """A field compared with a value. position: where it begins in the text, from 1 on; 0 where there is no text."""

    name: str
    operator: Operator
    value: str
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Words:
    """Text that must occur in the name, id, note, tags, model, method or request."""

    text: str


@dataclass(frozen=True, slots=True)
class Not:
    """What must not hold."""

    term: Filter


@dataclass(frozen=True, slots=True)
class All:
    """Two terms or more that must all hold."""

    terms: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Two terms or more of which one must hold."""

    terms: tuple[Filter, ...]


Filter = Condition | Words | Not | All | AnyOf


def parse_filter(text: str) -> Filter | None:
    """The tree of a filter; None for an empty one. Raises RequestError with the position of the first fault."""
    if len(text) > MAX_CHARACTERS:
        raise RequestError(
            f"a filter of {len(text):,} characters",
            expected=f"at most {MAX_CHARACTERS:,} characters",
            do="use fewer conditions",
        )
    parser = _Parser(text)
    if parser.is_at_end():
        return None
    found = parser.any_of(0)
    if not parser.is_at_end():
        raise parser.fault("a closing parenthesis without an opening one", "a condition")
    return found


def filter_text(tree: Filter | None) -> str:
    """The text of a tree, which `parse_filter` reads as the same tree."""
    match tree:
        case None:
            return ""
        case Condition():
            return f"{tree.name}{tree.operator}{_written(tree.value)}"
        case Words():
            return _written(tree.text, is_word=True)
        case Not():
            return f"not {_within(tree.term)}"
        case All():
            return " ".join(_within(one) for one in tree.terms)
        case AnyOf():
            return " or ".join(_within(one) if isinstance(one, AnyOf) else filter_text(one) for one in tree.terms)


def names_in(tree: Filter | None) -> set[str]:
    """The fields that a filter compares, in small letters."""
    match tree:
        case Condition():
            return {tree.name.lower()}
        case Not():
            return names_in(tree.term)
        case All() | AnyOf():
            return set().union(*map(names_in, tree.terms))
    return set()


def _within(tree: Filter) -> str:
    return f"({filter_text(tree)})" if isinstance(tree, All | AnyOf) else filter_text(tree)


def _written(value: str, *, is_word: bool = False) -> str:
    """A value as it is typed: in quotes where it would be read as something else without them."""
    is_plain = _PLAIN_WORD.fullmatch(value) if is_word else _BARE.fullmatch(value)
    if is_plain and value[0] not in "<>=~:!" and not (is_word and value.lower() in _KEYWORDS):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Parser:
    """Reads a filter from left to right; methods are named by what they read."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.num_terms = text, 0, 0

    def is_at_end(self) -> bool:
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1
        return self.place == len(self.text)

    def any_of(self, depth: int) -> Filter:
        terms = [self.all_of(depth)]
        while self._takes("or"):
            terms.append(self.all_of(depth))
        return terms[0] if len(terms) == 1 else AnyOf(tuple(terms))

    def all_of(self, depth: int) -> Filter:
        terms = [self.term(depth)]
        # Conditions side by side mean `and`, which therefore binds tighter than `or`.
        while not self.is_at_end() and not self._sees("or") and self.text[self.place] != ")":
            self._takes("and")
            terms.append(self.term(depth))
        return terms[0] if len(terms) == 1 else All(tuple(terms))

    def term(self, depth: int) -> Filter:
        self.num_terms += 1
        # The parser and the SQL both recurse: without a limit, a long address would exhaust the stack or the database.
        if depth > _MAX_DEPTH or self.num_terms > _MAX_TERMS:
            raise self.fault("too many conditions", f"at most {_MAX_TERMS}, nested at most {_MAX_DEPTH} deep")
        if self.is_at_end():
            raise self.fault("the end of the filter", "a condition")
        if self._takes("not"):
            return Not(self.term(depth + 1))
        character = self.text[self.place]
        if character == "-":
            self.place += 1
            return Not(self.term(depth + 1))
        if character == "(":
            return self._group(depth)
        if self._sees("and") or self._sees("or"):
            raise self.fault(f"{self._word()!r} without a condition before it", "a condition")
        if (found := _CONDITION.match(self.text, self.place)) is not None:
            # The position of the field, for the message where its name or value turns out to be wrong.
            begin, self.place = self.place, found.end()
            operator: Operator = next(one for one in OPERATORS if one == found[2])
            return Condition(found[1], operator, self._value(f"after {found[1]}{operator}"), begin + 1)
        return Words(self._value("here"))

    def _group(self, depth: int) -> Filter:
        begin = self.place
        self.place += 1
        found = self.any_of(depth + 1)
        if self.is_at_end():
            self.place = begin
            raise self.fault("an opening parenthesis that is never closed", "a closing one")
        self.place += 1
        return found

    def _value(self, where: str) -> str:
        if (found := _QUOTED.match(self.text, self.place)) is not None:
            self.place = found.end()
            return re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL)
        if self.text.startswith('"', self.place):
            raise self.fault("a quote that is never closed", 'a second "')
        if (found := _BARE.match(self.text, self.place)) is None:
            what = repr(self.text[self.place]) if self.place < len(self.text) else "the end of the filter"
            raise self.fault(what, f"a value {where}")
        if found[0][0] in "<>=~:!":
            raise self.fault(f"{found[0][:20]!r}", f"a value {where}, in quotes if it begins like that")
        self.place = found.end()
        return found[0]

    def _word(self) -> str:
        found = _BARE.match(self.text, self.place)
        return "" if found is None else found[0]

    def _sees(self, keyword: str) -> bool:
        # `not:1` and `or=2` are conditions of fields, `or` alone is a keyword.
        return not self.is_at_end() and self._word().lower() == keyword

    def _takes(self, keyword: str) -> bool:
        if not self._sees(keyword):
            return False
        self.place += len(keyword)
        return True

    def fault(self, came: str, expected: str) -> RequestError:
        """The error at the current place."""
        return filter_fault(self.place + 1, came, expected)


def filter_fault(position: int, came: str, expected: str) -> RequestError:
    """The error for a fault of a filter.

    Args:
        position: Of its character, from 1 on.
        came: What the filter has there.
        expected: What it could have.
    """
    return RequestError(
        f"the filter has {came} at character {position}",
        expected=expected,
        do='write conditions such as: lr>1e-3 tag:sweep verdict:better name~"client"',
    )

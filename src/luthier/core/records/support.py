"""How far a passage supports an answer, by its words alone: what of the answer is in the passage.

A measure of overlap sees words that were added, above all numbers and names. It sees neither a negation nor words in
another relation ("A sold B" for "B sold A"): that takes a judge. Its list of stop words is English; in other languages
function words count as content words, and in German every noun that the passage lacks counts as a name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final, Literal

_STOP_TEXT: Final = """
a about above after again against all also although am an and any are as at be because been before being below
between both but by can could did do does doing down during each either few for from further had has have having he
her here hers herself him himself his how however i if in into is it its itself just may me might more most must my
myself neither no nor not of off on once only or other our ours out over own per same shall she should since so
some such than that the their theirs them themselves then there therefore these they this those though through thus
to too under until up upon us very was we were what when where whether which while who whom whose why will with
within without would yes yet you your yours
"""
STOP_WORDS: Final = frozenset(_STOP_TEXT.split())
_UNITS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS: Final = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS: Final = {word: str(number) for number, word in enumerate(_UNITS.split())} | {
    word: str(10 * number) for number, word in enumerate(_TENS.split(), start=2)
}
# Scripts without spaces between words: each sign is taken as a word.
_SIGNS: Final = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(
    rf"(?P<number>(?:(?<![\w.)\]])[-\u2212])?\d+(?:[.,]\d+)*)|(?P<sign>[{_SIGNS}])"
    rf"|(?P<word>[^\W\d_{_SIGNS}]+(?:['\u2019][^\W\d_{_SIGNS}]+)*)"
)
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SENTENCE_END: Final = '.!?:;\n\u2022*-"\u201c\u00bb('
_VERBS_AFTER_NAMES: Final = frozenset(("is", "was", "has", "had", "were", "are"))


@dataclass(frozen=True, slots=True)
class Support:
    """What of an answer is in its passage.

    Attributes:
        fraction: of the answer's content words (stop words left out, each occurrence counted), those that are in the
            passage; 0 where there is no content word.
        num_content_words: content words of the answer, each occurrence counted.
        unsupported_words: content words that are not in the passage, in the order of the answer, each once.
        unsupported_numbers: those of them that are numbers.
        unsupported_names: those of them that are names.
        longest_run: words of the longest piece of the answer that is verbatim in the passage, including stop words.
    """

    fraction: float
    num_content_words: int
    unsupported_words: tuple[str, ...]
    unsupported_numbers: tuple[str, ...]
    unsupported_names: tuple[str, ...]
    longest_run: int


@dataclass(frozen=True, slots=True)
class _Token:
    kind: Literal["number", "word"]
    shown: str
    norm: str
    is_content: bool
    is_name: bool


def support(answer: str, passage: str) -> Support:
    """Hold an answer against the passage that it was written from; deterministic, no model.

    Words count as the same in NFKC, case folded, without their English endings. Numbers must be equal: 1,204 is 1204
    and three is 3, but 3.5 is not 3.50, and -5 is not 5. A name is a capitalised word that begins no sentence, a word
    with capitals inside, or one that begins a sentence before another name or a form of to be or to have.
    """
    given, said = list(_tokens(passage)), list(_tokens(answer))
    # A set: how often a word occurs in the passage does not matter.
    known = {token.norm for token in given}
    content = [token for token in said if token.is_content]
    missing = [token for token in content if token.norm not in known]
    # autojunk=False: by default difflib ignores words that are frequent in long texts.
    blocks = SequenceMatcher(None, [t.norm for t in said], [t.norm for t in given], autojunk=False)
    return Support(
        fraction=(len(content) - len(missing)) / len(content) if content else 0.0,
        num_content_words=len(content),
        unsupported_words=_each_once(t.shown for t in missing),
        unsupported_numbers=_each_once(t.shown for t in missing if t.kind == "number"),
        unsupported_names=_each_once(t.shown for t in missing if t.is_name),
        longest_run=blocks.find_longest_match().size,
    )


def content_words(text: str) -> list[str]:
    """The words and numbers of a text without stop words, in the form in which `support` compares them."""
    return [token.norm for token in _tokens(text) if token.is_content]


def _tokens(text: str) -> Iterator[_Token]:
    # Full-width digits, ligatures and superscripts become the plain signs that the pattern knows.
    text = unicodedata.normalize("NFKC", text)
    matches = list(_TOKEN.finditer(text))
    for place, match in enumerate(matches):
        shown = match[0]
        if match["number"]:
            yield _Token("number", shown, _number(shown), True, False)
        elif match["sign"]:
            yield _Token("word", shown, shown, True, False)
        else:
            # Typographic apostrophes: the list of stop words has plain ones.
            folded = shown.casefold().replace("\u2019", "'")
            base = folded.removesuffix("'s")
            if base in _NUMBER_WORDS:
                # "one" is mostly a pronoun, so an answer is not held to it; a passage may still say 1 by it.
                yield _Token("number", shown, _NUMBER_WORDS[base], base != "one", False)
            elif base in STOP_WORDS or folded in STOP_WORDS:
                yield _Token("word", shown, folded, False, False)
            else:
                yield _Token("word", shown, _stem(base), True, _is_name(text, matches, place))


def _number(text: str) -> str:
    """One writing of a number: no separators of thousands, no zeros in front."""
    text = text.replace("\u2212", "-")
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    # 007 is 7, but 0 stays 0, and 3.50 keeps its zeros: the precision of a figure is part of what it says.
    return sign + (digits.lstrip("0") if digits.isdigit() and digits.strip("0") else digits)


def _is_name(text: str, matches: Sequence[re.Match[str]], place: int) -> bool:
    match = matches[place]
    word = match[0]
    if any(character.isupper() for character in word[1:]):
        return True
    if not word[0].isupper():
        return False
    # Line breaks stay: a line of a list begins a sentence, too.
    before = text[: match.start()].rstrip(" \t")
    if before and before[-1] not in _SENTENCE_END:
        return True
    # At the beginning of a sentence every word has a capital: only the following words show a name.
    following = matches[place + 1] if place + 1 < len(matches) else None
    if following is None or text[match.end() : following.start()].strip(" \t"):
        return False
    return following[0][0].isupper() or following[0].casefold() in _VERBS_AFTER_NAMES


def _stem(word: str) -> str:
    """A word without an English ending; only ever compared with other stems."""
    # Longest endings first, and only the first one that fits is removed.
    for ending in ("ingly", "edly", "ing", "ied", "ies", "ed", "es", "ly", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word.removesuffix(ending)
            word += "y" if ending in ("ied", "ies") else ""
            break
    # "stopped" -> "stopp" -> "stop".
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou":
        word = word[:-1]
    # "making" gives "mak", so "make" has to give it, too.
    return word[:-1] if len(word) > 3 and word[-1] == "e" else word


def _each_once(shown: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(shown))

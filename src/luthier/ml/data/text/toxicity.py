"""Toxic words in a text, and how likely the text is toxic, by a list of words alone.

Words are found also where they are written to slip past a list. Seen through: leet (sh1t, @ss), masked letters (f**k,
b*tch), letters drawn out (fuuuck), letters apart (f u c k). Not seen through: swapped or missing letters, words run
together, and what a word means where it is.

The probability is a logistic regression on counts by class. Its weights were fitted by `benchmarks/toxicity.py` on the
training part (60%, by hash) of the 24,783 tweets of Davidson et al. 2017 (hate or offensive against neither), both
classes weighted the same: a probability answers "if half of such texts were toxic". Where toxic texts are rarer, fewer
of those reported are.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import polars as pl
import yaml

CLASSES: Final = ("slur", "insult", "profanity", "mild", "threat", "harassment")
HARMLESS: Final = "harmless"
ENGLISH: Final = Path(__file__).parents[1] / "audit" / "words" / "toxic_english.yaml"

_ENDINGS: Final = ("s", "es", "z", "ed", "in", "ing", "ings", "er", "ers", "y", "a", "as", "ish", "'s")
_TOKEN: Final = re.compile(r"[\w@$!*#+|'’]+")
_LETTER_OR_DIGIT: Final = re.compile(r"\w")
_LEET: Final = str.maketrans("0134579$@!+|", "oieastgsaitl")
_LEET_L: Final = str.maketrans("1!", "ll")
_APART: Final = re.compile(r"(?<!\w)[A-Za-z](?:[ .\-_*][A-Za-z]){2,15}(?!\w)")
_DRAWN_OUT: Final = re.compile(r"(.)\1{2,}")
_DOUBLED: Final = re.compile(r"(.)\1+")
_LONGEST_TOKEN: Final = 60
_EVASIONS: Final = (
    r"\p{L}[*@$!#+|0-9]+\p{L}|[$@]\p{L}|\p{L}\*|\b\p{L}(?:[ .\-_*]\p{L}){2}\b|(?i:"
    + "|".join(f"{letter}{{3}}" for letter in "abcdefghijklmnopqrstuvwxyz")
    # letters that `_folded` makes plain ones of
    + ")|[\u00aa\u00ba\u00c0-\u024f\u02b0-\u02e3\u0300-\u036f\u1d2c-\u1dbf\u1e00-\u1eff\u2071\u207f-\u209c\u20a8"
    "\u2100-\u217f\u249c-\u24e9\u2c7c-\u2c7d\u3250\u32cc-\u33ff\ua7f2-\ua7f4\ufb00-\ufb06\uff21-\uff5a\U00010780-\U000107ba"
    "\U0001d400-\U0001d7ff\U0001f100-\U0001f1ff]"
)
# Between the words of a phrase. Wider than \W, which knows all of Unicode and makes the compiled pattern too large.
_BETWEEN: Final = "(?u:[^a-zA-Z]+)"
_APOSTROPHE: Final = "(?u:['’])"


@dataclass(frozen=True, slots=True)
class ToxicWord:
    """A word or phrase of the list.

    Attributes:
        entry: as in the list.
        kind: its class, one of `CLASSES`, or `HARMLESS`.
    """

    entry: str
    kind: str


@dataclass(frozen=True)
class WordList:
    """Entries by their written forms, harmless phrases among them.

    Attributes:
        words: written form -> entry.
        phrases: words of a phrase -> entry.
        masked: (first letter, length) -> forms that a token with hidden letters may be.
        pattern: regular expression in Rust's dialect that finds every plain form.
    """

    words: dict[str, ToxicWord]
    phrases: dict[tuple[str, ...], ToxicWord]
    masked: dict[tuple[str, int], list[str]] = field(repr=False, default_factory=dict)
    pattern: str = field(repr=False, default="")

    def find(self, text: str) -> list[ToxicWord]:
        """Every entry in the text, in order of appearance; a word inside a phrase that was found counts once."""
        tokens = [self._forms(one) for one in _TOKEN.findall(text) if one.isalpha() or _LETTER_OR_DIGIT.search(one)]
        apart = [letters for match in _APART.finditer(text) if (letters := re.sub(r"[^a-z]", "", match[0].lower()))]
        spelt = [self.words[word] for word in apart if word in self.words]
        return [*self._in_order(tokens), *(word for word in spelt if word.kind != HARMLESS)]

    def may_be_in(self, texts: pl.Series) -> pl.Series:
        """Booleans: where `find` may find something; never false where it would."""
        return (texts.str.contains(self.pattern) | texts.str.contains(_EVASIONS)).fill_null(value=False)

    @cached_property
    def _phrase_lengths(self) -> dict[str, list[int]]:
        """First word of a phrase -> how many words such phrases have, the most first."""
        lengths: dict[str, set[int]] = defaultdict(set)
        for phrase in self.phrases:
            lengths[phrase[0]].add(len(phrase))
        return {first: sorted(nums, reverse=True) for first, nums in lengths.items()}

    def _in_order(self, tokens: list[tuple[str, ...]]) -> Iterator[ToxicWord]:
        plain = [forms[0] if forms else "" for forms in tokens]
        position = 0
        while position < len(tokens):
            found, num = self._phrase_at(plain, position)
            if found is None:
                # A loop in place of `next` over a generator, which takes longer than the one look of nearly all words.
                for form in tokens[position]:
                    if (found := self.words.get(form)) is not None:
                        break
            if found is not None and found.kind != HARMLESS:
                yield found
            position += num

    def _phrase_at(self, plain: list[str], position: int) -> tuple[ToxicWord | None, int]:
        # The longest phrase wins: a harmless phrase hides the word inside of it.
        for num in self._phrase_lengths.get(plain[position], ()):
            if (found := self.phrases.get(tuple(plain[position : position + num]))) is not None:
                return found, num
        return None, 1

    def _forms(self, token: str) -> tuple[str, ...]:
        """What a token may represent, the plainest first."""
        # The usual case first: most words need no other reading.
        if token.isascii() and token.isalpha() and not _DRAWN_OUT.search(token):
            return (token.lower(),)
        token = token.strip("'’+|#").rstrip("!@$").replace("’", "'")
        if token.isascii() and token.isalpha() and not _DRAWN_OUT.search(token):
            return (token.lower(),)
        if not token or len(token) > _LONGEST_TOKEN:
            return ()
        plain = _folded(token)
        forms = [plain]
        if not plain.isalpha() and any(map(str.isalpha, plain)):
            if "*" in plain or "#" in plain:
                forms += self._unmasked(plain)
            forms += [plain.translate(_LEET), plain.translate(_LEET_L).translate(_LEET)]
        for form in tuple(forms):
            if _DRAWN_OUT.search(form):
                forms += [_DRAWN_OUT.sub(r"\1\1", form), _DRAWN_OUT.sub(r"\1", form), _DOUBLED.sub(r"\1", form)]
        return tuple(dict.fromkeys(forms))

    def _unmasked(self, token: str) -> list[str]:
        """The words of the list that a token with hidden letters fits, where at least two letters can be seen."""
        if sum(map(str.isalpha, token)) < 2 or not token[0].isalpha():
            return []
        pattern = re.compile("".join("[a-z]" if c in "*#" else re.escape(c) for c in token))
        return [word for word in self.masked.get((token[0], len(token)), ()) if pattern.fullmatch(word)]


@cache
def english() -> WordList:
    """The list that comes with Luthier."""
    return read_words(ENGLISH)


def read_words(path: Path) -> WordList:
    """A list from YAML: class -> entries with commas between."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    words: dict[str, ToxicWord] = {}
    phrases: dict[tuple[str, ...], ToxicWord] = {}
    for kind in (HARMLESS, *CLASSES):
        for entry in (part.strip() for part in document[kind].split(",")):
            found = ToxicWord(entry.rstrip("~"), kind)
            if " " in entry:
                phrases[tuple(entry.split())] = found
            else:
                for form in _written(entry):
                    words.setdefault(form, found)
    masked: dict[tuple[str, int], list[str]] = defaultdict(list)
    for word in words:
        if words[word].kind in ("slur", "insult", "profanity"):
            masked[word[0], len(word)].append(word)
    alternatives = sorted({re.escape(w) for w in words} | {_BETWEEN.join(map(re.escape, p)) for p in phrases})
    # -u: without Unicode, since its case tables would make the compiled pattern many times as large.
    pattern = rf"(?i-u)\b(?:{'|'.join(alternatives).replace(chr(39), _APOSTROPHE)})\b"
    return WordList(words, phrases, dict(masked), pattern)


def counts_by_class(found: list[ToxicWord]) -> Counter[str]:
    """How many finds there are of each class."""
    return Counter(word.kind for word in found)


def _written(entry: str) -> Iterator[str]:
    if not entry.endswith("~"):
        yield entry
        return
    stem = entry[:-1]
    yield stem
    for ending in _ENDINGS:
        yield stem + ending
        if ending[0] in "eiy" and stem[-1] not in "aeiouywx" and stem[-2] in "aeiou":
            yield stem + stem[-1] + ending
    if stem.endswith("e"):
        yield from (stem[:-1] + ending for ending in ("ing", "ed", "er", "y"))


def _folded(token: str) -> str:
    """Lower case, without accents, full-width letters as plain ones."""
    decomposed = unicodedata.normalize("NFKD", token)
    return "".join(character for character in decomposed if not unicodedata.combining(character)).casefold()


MAX_COUNTED: Final = 3
THRESHOLD: Final = 0.5
INTERCEPT: Final = -3.329
WEIGHTS: Final[Mapping[str, float]] = {
    "slur": 4.07,
    "insult": 6.508,
    "profanity": 4.12,
    "mild": 0.994,
    "threat": 3.379,  # not fitted: too few tweets threaten, so a threat alone is set to reach the threshold
    "harassment": 1.42,
}
# What `benchmarks/toxicity.py` measured with these weights: [value, low, high], 95% intervals (Wilson 1927).
MEASURED: Final[Mapping[str, Any]] = {
    "date": "2026-11-25",
    "davidson_2017_other_40_percent": {
        "num": 9987,
        "precision": [0.9868, 0.9841, 0.9891],
        "recall": [0.9538, 0.9491, 0.9581],
        "false_alarms": [0.0634, 0.0527, 0.0761],
        "precision_if_toxic_are": {"0.5": 0.938, "0.1": 0.626, "0.01": 0.132},
        "calibration_error": 0.0042,
    },
    "hatecheck_2021_accuracy": {
        "all": [0.3568, 0.3415, 0.3723],
        "not hateful, uses such words, negation or quotation": [0.5965, 0.5631, 0.6289],
        "hateful, without slur or profanity": [0.0265, 0.0205, 0.0343],
    },
}
CANNOT_SEE: Final = (
    "a list of words sees words, not meaning: on HateCheck it is right in 36% of all cases, in 60% of those that "
    "use such words harmlessly (quoting, reclaiming, swearing at a thing), and finds 3% of hate without a slur or "
    "profanity; English only; --toxicity-model FOLDER puts a text classifier in its place"
)


@dataclass(frozen=True, slots=True)
class Toxicity:
    """How toxic a text seems.

    Attributes:
        probability: that it is toxic, 0 to 1.
        words: entries of the list that were found in it.
    """

    probability: float
    words: tuple[ToxicWord, ...]


def toxicity_of(text: str, words: WordList | None = None) -> Toxicity:
    """Judge one text. A text with no word of the list has the lowest probability that there is, not 0."""
    found = (words or english()).find(text)
    return Toxicity(probability_of(counts_by_class(found)), tuple(found))


def probability_of(counts: Counter[str]) -> float:
    """The probability for a number of finds by class, each counted up to three times."""
    score = INTERCEPT + sum(weight * min(counts[kind], MAX_COUNTED) for kind, weight in WEIGHTS.items())
    return 1 / (1 + math.exp(-score))


def features(found: Sequence[ToxicWord], kinds: Sequence[str]) -> list[float]:
    """What the regression sees of a text: its finds by class, each counted up to three times."""
    counts = counts_by_class(list(found))
    return [float(min(counts[kind], MAX_COUNTED)) for kind in kinds]

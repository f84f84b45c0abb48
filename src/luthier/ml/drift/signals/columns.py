"""What is monitored of every model, as columns of numbers: how it serves, what users ask, what it answers.

A column has one number for each row of the exchanges, NaN where a row has none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from luthier.core.records.monitoring import SignalGroup
from luthier.core.records.traffic import said_in, written_in
from luthier.ml.drift.evidence import Floats, Ints, hours_of, lots
from luthier.ml.drift.topics import TextWords, find_topics

Kind = Literal["share", "number", "kind"]
MAX_AN_HOUR: Final = 500
"""Exchanges of an hour that are tested; of more, this many are drawn at random."""


@dataclass(frozen=True, slots=True)
class Checks:
    """What the signals ask of texts, handed in: a stage imports no other.

    Attributes:
        words: their words as hashes.
        languages: the language of each, None where it cannot be determined.
        is_refusal, is_toxic, has_personal_data: of one answer.
        citations: how many an answer has, and how many of them no document has; None where there is no corpus.
        share_ends: the interval of a share (right, all, tail).
    """

    words: Callable[[Sequence[str]], TextWords]
    languages: Callable[[Sequence[str]], Sequence[str | None]]
    is_refusal: Callable[[str], bool]
    is_toxic: Callable[[str], bool]
    has_personal_data: Callable[[str], bool]
    share_ends: Callable[[float, int, float], tuple[float, float]]
    citations: Callable[[str], tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One watched number of an exchange.

    Attributes:
        kind: a share (0 or 1), a number, or a kind (whole numbers that name something).
        values: [rows], NaN for none.
        do: what to do where it changes.
        lacks: why it has no values, where that is known.
    """

    name: str
    title: str
    group: SignalGroup
    unit: str
    kind: Kind
    values: Floats
    do: str
    lacks: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """The exchanges of a stretch of time, oldest first.

    Attributes:
        frame: columns as of `Exchange`.
        at: seconds since 1970, [rows].
        hours: [rows].
        is_tested: which enter the tests: of one user's in an hour the first alone (the turns of a conversation are one
            event), and at most 500 an hour.
        is_now: which are in the window that is reported.
        is_compared: which are of the time that is tested; a window may begin before it.
        prompts, answers: the last message of the user, and the answer, of tested rows; None where no words were kept,
            and for an answer that only calls tools.
        written: the answer with the names and arguments of its calls; None where no words were kept.
    """

    frame: pl.DataFrame
    at: Floats
    hours: Ints
    is_tested: NDArray[np.bool_]
    is_now: NDArray[np.bool_]
    is_compared: NDArray[np.bool_]
    prompts: list[str | None]
    answers: list[str | None]
    written: list[str | None]

    @property
    def ids(self) -> list[str]:
        """The ids of the exchanges."""
        return self.frame["exchange_id"].to_list()

    def of_prompts(self) -> Ints:
        """The places of rows that have a prompt."""
        return np.array([place for place, text in enumerate(self.prompts) if text is not None], dtype=np.int64)

    def of_answers(self) -> Ints:
        """The places of rows that have an answer as text."""
        return np.array([place for place, text in enumerate(self.answers) if text is not None], dtype=np.int64)

    def all_written(self) -> tuple[Ints, list[str]]:
        """The places of rows of which all is known that the model wrote, and that text."""
        found = [(place, text) for place, text in enumerate(self.written) if text is not None]
        return np.array([place for place, _ in found], dtype=np.int64), [text for _, text in found]

    def spread(self, places: Ints, values: Sequence[float] | Floats) -> Floats:
        """Values of some rows as a column: [rows], NaN for the others."""
        found = np.full(len(self.at), np.nan)
        found[places] = values
        return found


def read_rows(frame: pl.DataFrame, since: float, tested_from: float = 0.0) -> Rows:
    """The rows of a frame with the columns of `Exchange`.

    A row whose time is not a number is left out; one with a wrong clock counts in the hour of its timestamp.

    Args:
        frame: the exchanges.
        since: where the reported window begins.
        tested_from: rows before that enter no test.
    """
    # A stable sort: equal times keep their order, so that every look ranks them the same.
    frame = frame.filter(pl.col("at").is_finite()).sort("at", maintain_order=True)
    at = frame["at"].cast(pl.Float64).to_numpy()
    hours = hours_of(at)
    is_compared = at >= tested_from
    is_tested = _tested(frame, hours) & is_compared
    texts = [
        _texts(*row) if tested else (None, None, None)
        for tested, row in zip(is_tested, _last_messages(frame), strict=True)
    ]
    prompts, answers, written = ([one[part] for one in texts] for part in range(3))
    return Rows(frame, at, hours, is_tested, at >= since, is_compared, prompts, answers, written)


def _last_messages(frame: pl.DataFrame) -> Sequence[tuple[str | None, str | None]]:
    return list(zip(frame["messages"].to_list(), frame["answer"].to_list(), strict=True))


def _texts(messages: str | None, answer: str | None) -> tuple[str | None, str | None, str | None]:
    prompt = None if messages is None else last_words(messages)
    return prompt, None if answer is None else said_in(answer), None if answer is None else written_in(answer)


def last_words(messages: str) -> str | None:
    """The user's last message, from messages as JSON; None where that is not text."""
    import json

    try:
        parsed = json.loads(messages)
    except ValueError:
        return None
    for message in reversed(parsed if isinstance(parsed, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                parts = [part.get("text") for part in content if isinstance(part, dict)]
                content = "\n".join(part for part in parts if isinstance(part, str))
            return content if isinstance(content, str) else None
    return None


def _tested(frame: pl.DataFrame, hours: Ints) -> NDArray[np.bool_]:
    drawn = lots(frame["exchange_id"].to_list(), "tested")
    marked = pl.DataFrame({"hour": hours, "user": frame["user_digest"], "lot": drawn}).with_row_index("row")
    first = marked.filter((pl.col("user") == "") | pl.struct("hour", "user").is_first_distinct())
    # By lot and not by time: the first 500 of an hour would be those of its first minutes.
    kept = first.filter(pl.col("lot").rank("ordinal").over("hour") <= MAX_AN_HOUR)
    found = np.zeros(len(hours), dtype=bool)
    found[kept["row"].to_numpy()] = True
    return found


FITTED_ON: Final = 500
"""This many of the first prompts define the topics and languages; tests of these leave them out."""
NO_TEXT: Final = "no words are kept: see `luthier traffic policy`"
_ONLY_CALLS: Final = "all answers only call tools"
_NO_CORPUS: Final = "no corpus is named: `luthier monitor MODEL --corpus PATH`"
_LOOK: Final = "Check the examples"


def columns_of(rows: Rows, checks: Checks) -> list[Column]:
    """All columns of some exchanges, in the order of the report. The names do not depend on the data."""
    return [*_serving(rows), *_asked(rows, checks), *_answered(rows, checks)]


def _serving(rows: Rows) -> list[Column]:
    # Faults of the server and of its clients are counted separately: they have different remedies.
    status = rows.frame["status"].to_numpy()
    return [
        Column(
            "server_errors",
            "Requests that failed here",
            "serving",
            "fraction",
            "share",
            (status >= 500).astype(np.float64),
            "Check the server's log for the errors of these exchanges; roll back if a deployment came before.",
        ),
        Column(
            "refused_requests",
            "Requests that were refused (4xx)",
            "serving",
            "fraction",
            "share",
            ((status >= 400) & (status < 500)).astype(np.float64),
            "See by the error codes what clients do wrong, or whether a key or a limit has run out.",
        ),
    ]


def _asked(rows: Rows, checks: Checks) -> list[Column]:
    tokens = _positive(rows.frame["num_prompt_tokens"].to_numpy())
    places = rows.of_prompts()
    texts = [rows.prompts[place] or "" for place in places]
    # Topics are found in the first rows alone, so that later ones can differ from them.
    words, fitted = checks.words(texts), np.arange(min(FITTED_ON, len(texts)))
    topics = find_topics(words.of(fitted))
    topic = rows.spread(places, np.full(len(places), np.nan) if topics is None else topics.nearest(words)[0])
    language = rows.spread(places, _numbered(checks.languages(texts)))
    lacks = "" if len(places) else NO_TEXT
    for column in (topic, language):  # what they were fitted on would look more familiar than it is
        column[places[fitted]] = np.nan
    letters = rows.spread(places, [_letters(text) for text in texts])
    # A text without words divides by zero, and becomes NaN below.
    with np.errstate(divide="ignore", invalid="ignore"):
        size = rows.spread(places, [len(text) for text in texts] / words.counts)
    size[~np.isfinite(size)] = np.nan
    return [
        Column("prompt_tokens", "Length of prompts", "input", "tokens", "number", tokens, f"{_LOOK}: who sends more?"),
        Column(
            "prompt_topic",
            "Topics of prompts",
            "input",
            "PSI",
            "kind",
            topic,
            f"{_LOOK}; add rows of the new topic to the training data, and evaluate the model on some of them.",
            lacks,
        ),
        Column(
            "prompt_language",
            "Languages of prompts",
            "input",
            "PSI",
            "kind",
            language,
            f"{_LOOK}; evaluate the model in the language that has grown.",
            lacks,
        ),
        Column(
            "prompt_letters",
            "Share of letters in prompts",
            "input",
            "fraction",
            "number",
            letters,
            f"{_LOOK}: is it code, tables or another format?",
            lacks,
        ),
        Column(
            "prompt_word_length",
            "Characters a word in prompts",
            "input",
            "characters",
            "number",
            size,
            f"{_LOOK}: is it another kind of text?",
            lacks,
        ),
    ]


def _answered(rows: Rows, checks: Checks) -> list[Column]:
    frame, places = rows.frame, rows.of_answers()
    # A request that failed has no answer; its 0 tokens would look like a drift to short ones.
    is_good = frame["status"].to_numpy() < 400
    texts = [rows.answers[place] or "" for place in places]
    # Calls of tools are no sentences that could refuse, cite or be JSON.
    lacks = "" if len(places) else _ONLY_CALLS if rows.all_written()[1] else NO_TEXT
    tokens = np.where(is_good, frame["num_new_tokens"].to_numpy().astype(np.float64), np.nan)
    # np.where turns the booleans into 0.0 and 1.0, with NaN for missing values.
    cut = np.where(is_good, (frame["finish_reason"] == "length").to_numpy(), np.nan)
    # Each as (how many, how many invented): one that is invented is enough to count the answer.
    citations = [] if checks.citations is None else [checks.citations(text) for text in texts]
    invented = rows.spread(places, [float(bad > 0) for _, bad in citations] or np.full(len(places), np.nan))

    def share(name: str, title: str, values: Floats, do: str, lacks: str = lacks) -> Column:
        return Column(name, title, "output", "fraction", "share", values, do, lacks)

    def of_texts(found: Sequence[bool]) -> Floats:
        return rows.spread(places, np.array(found, dtype=np.float64))

    return [
        Column(
            "answer_tokens",
            "Length of answers",
            "output",
            "tokens",
            "number",
            tokens,
            f"{_LOOK}: are answers cut, empty or running on?",
        ),
        share(
            "answer_cut_off", "Answers cut off", cut, "Raise max_tokens in the clients, or ask for shorter answers.", ""
        ),
        share(
            "answer_refusals",
            "Answers that refuse",
            of_texts([checks.is_refusal(text) for text in texts]),
            f"{_LOOK}: are the questions harmful, or is the model too shy?",
        ),
        share(
            "answer_invented",
            "Answers with an invented citation",
            invented,
            "Do not use the model where citations matter, and evaluate it with the grounding suite.",
            lacks if checks.citations is not None else _NO_CORPUS,
        ),
        share(
            "answer_json",
            "Answers that are JSON",
            of_texts([_is_json(text) for text in texts]),
            f"{_LOOK}; ask for JSON by response_format, which holds the model to it.",
        ),
        *_written(rows, checks),
    ]


def _written(rows: Rows, checks: Checks) -> list[Column]:
    """Of all that was written in answers: arguments of calls may hold what no answer should."""
    places, texts = rows.all_written()

    def share(name: str, title: str, found: list[bool], do: str) -> Column:
        values = rows.spread(places, np.array(found, dtype=np.float64))
        return Column(name, title, "output", "fraction", "share", values, do, "" if texts else NO_TEXT)

    return [
        share(
            "answer_toxic",
            "Answers with toxic words",
            [checks.is_toxic(text) for text in texts],
            f"{_LOOK}, then run `luthier safety` on the model.",
        ),
        share(
            "answer_personal_data",
            "Answers with personal data",
            [checks.has_personal_data(text) for text in texts],
            f"{_LOOK}: was it in the prompt, or has the model memorised it? `luthier safety` measures that.",
        ),
    ]


def _positive(values: Floats) -> Floats:
    # 0 is stored where nothing was counted.
    found: Floats = np.where(values > 0, values.astype(np.float64), np.nan)
    return found


def _numbered(languages: Sequence[str | None]) -> Floats:
    """Languages as numbers: 0 for the commonest of the first 500 and so on; the last for one that was not there."""
    first = Counter(one for one in languages[:FITTED_ON] if one is not None)
    # By name where two are as common, so that the numbers do not depend on the order of the rows.
    known = {name: place for place, (name, _) in enumerate(sorted(first.items(), key=lambda it: (-it[1], it[0])))}
    found = [np.nan if one is None else float(known.get(one, len(known))) for one in languages]
    return np.array(found, dtype=np.float64)


def _letters(text: str) -> float:
    visible = [one for one in text if not one.isspace()]
    return sum(one.isalpha() for one in visible) / len(visible) if visible else np.nan


def _is_json(text: str) -> bool:
    """Whether an answer is a JSON object or list, also within a fence of Markdown."""
    bare = text.strip()
    if bare.startswith("```"):
        # Without the first line, which holds the fence and the name of the language.
        bare = bare.partition("\n")[2].rpartition("```")[0].strip()
    # A bare number or word is JSON too, but is not meant as such; this also saves parsing.
    if not bare.startswith(("{", "[")):
        return False
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True

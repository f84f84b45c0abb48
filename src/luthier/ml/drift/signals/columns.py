"""The columns that are watched of every model: how it serves, what it is asked, what it answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from luthier.ml.drift.drift.ranks import Floats
from luthier.ml.drift.drift.topics import find_topics
from luthier.ml.drift.signals.column import Checks, Column, Rows

FITTED_ON: Final = 500
"""So many of the first prompts name the topics and languages; they enter no test of these."""
NO_TEXT: Final = "no words are kept: see `luthier traffic policy`"
_LOOK: Final = "Look at the examples"


def columns_of(rows: Rows, checks: Checks) -> list[Column]:
    """All columns of some exchanges, in the order of the report. The same names, whatever is there."""
    return [*_serving(rows), *_asked(rows, checks), *_answered(rows, checks)]


def _serving(rows: Rows) -> list[Column]:
    # Faults of the server and of its clients are told apart: they have different remedies.
    status = rows.frame["status"].to_numpy()
    return [
        Column(
            "server_errors",
            "Requests that failed here",
            "serving",
            "fraction",
            "share",
            (status >= 500).astype(np.float64),
            "Look into the server's log for the errors of these exchanges; roll back if a deployment came before.",
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
        Column("prompt_tokens", "Length of prompts", "input", "tokens", "number", tokens, f"{_LOOK}: who asks more?"),
        Column(
            "prompt_topic",
            "Topics of prompts",
            "input",
            "PSI",
            "kind",
            topic,
            f"{_LOOK}; add rows of the new topic to the training data, and judge the model on some of them.",
            lacks,
        ),
        Column(
            "prompt_language",
            "Languages of prompts",
            "input",
            "PSI",
            "kind",
            language,
            f"{_LOOK}; judge the model in the language that has grown.",
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
    lacks = "" if len(places) else NO_TEXT
    tokens = np.where(is_good, frame["num_new_tokens"].to_numpy().astype(np.float64), np.nan)
    # np.where turns the booleans into 0.0 and 1.0 beside NaN.
    cut = np.where(is_good, (frame["finish_reason"] == "length").to_numpy(), np.nan)
    # Each as (how many, how many invented): one that is invented is enough to count the answer.
    citations = [] if checks.citations is None else [checks.citations(text) for text in texts]
    invented = rows.spread(places, [float(bad > 0) for _, bad in citations] or np.full(len(places), np.nan))
    no_corpus = "no corpus is named: `luthier monitor MODEL --corpus PATH`"

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
        share("answer_cut_off", "Answers cut off", cut, "Raise max_tokens of the clients, or ask for shorter.", ""),
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
            "Take the model out of use where citations matter, and judge it by the grounding suite.",
            lacks if checks.citations is not None else no_corpus,
        ),
        share(
            "answer_json",
            "Answers that are JSON",
            of_texts([_is_json(text) for text in texts]),
            f"{_LOOK}; ask for JSON by response_format, which holds the model to it.",
        ),
        share(
            "answer_toxic",
            "Answers with toxic words",
            of_texts([checks.is_toxic(text) for text in texts]),
            f"{_LOOK}, then run `luthier safety` on the model.",
        ),
        share(
            "answer_personal_data",
            "Answers with personal data",
            of_texts([checks.has_personal_data(text) for text in texts]),
            f"{_LOOK}: was it in the prompt, or has the model learned it by heart? `luthier safety` tells.",
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
    # A bare number or word is JSON too, but nobody means that; and parsing is saved.
    if not bare.startswith(("{", "[")):
        return False
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True

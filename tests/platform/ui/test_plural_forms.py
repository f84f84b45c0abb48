"""A number before a noun has both forms: "1 row", "2 rows", in templates and in the sentences of Python."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from babel.messages.pofile import read_po
from tests.vacuous import nonempty

from luthier.platform.ui.i18n.catalog import LOCALE
from luthier.platform.ui.i18n.environments import messages_of
from luthier.platform.ui.render import environment

NOUNS: Final = (
    "alerts|answers|attempts|bytes|characters|checkpoints|checks|choices|columns|comparisons|concerns|"
    "cores|corrections|datasets|days|deployments|documents|draws|duplicates|epochs|errors|events|"
    "examples|exchanges|exports|files|findings|groups|hours|items|judgements|keys|labels|lines|members|"
    "messages|metrics|minutes|models|months|near-duplicates|nodes|pairs|passages|passwords|places|points|"
    "processes|probes|prompts|questions|raters|ratings|recipes|requests|responses|results|rows|rules|"
    "runs|samples|seconds|seeds|sentences|sequences|sign-ins|signals|sources|stages|steps|systems|tasks|"
    "terms|texts|threads|tokens|trainings|trials|users|values|versions|votes|words|workers"
)
_BETWEEN = r"(?:(?!of |by )[a-z-]+ ){0,2}"
"""Words between a number and its noun; behind "of" and "by" there is another noun."""
_NUMBER = rf"\{{(?P<name>\w+)\}} {_BETWEEN}"
_COUNTED = re.compile(rf"{_NUMBER}(?P<noun>{NOUNS})\b")
LIMITS: Final = frozenset(
    (
        *("least", "max_files", "max_requests", "most", "num_terms", "YAML_ONLY", "text", "files", "next_at"),
        *("context_tokens", "context_length_tokens"),
        *("num_days", "span", "num_seeds", "num_draws", "workers", "stages", "runs", "plan"),
        *("rows_needed", "high", "outcomes", "num_prompts", "num_looked_at"),
    )
)
"""Numbers of templates that are never 1: bounds that are constants, sizes of models, what is shown from two on, the
upper ends of ranges, and the number of all, of which another one is a part."""
NO_NUMBERS: Final = frozenset(("format", "project_name", "rater_name", "teacher_name"))
"""Placeholders of templates before a word that is a verb there."""


def counted_without_singular(message: str) -> list[str]:
    """The counted nouns of a text: `{num_rows} rows`."""
    return [found[0] for found in _COUNTED.finditer(message) if found["name"] not in LIMITS | NO_NUMBERS]


def test_every_number_of_a_template_has_a_noun_in_both_forms() -> None:
    loader, wrong = environment().loader, []
    assert loader is not None
    for name in nonempty([one for one in loader.list_templates() if one.endswith(".html")]):
        for message in messages_of(loader.get_source(environment(), name)[0]):
            if not message.plural:
                wrong += [f"{name}: {message.id}" for _ in counted_without_singular(message.id)]
    assert wrong == [], 'write row{{ "" if num == 1 else "s" }}'


_APART: Final = re.compile(
    rf"\}}\}}(?:</(?:span|dd)>)?\s*<(?:span|dd)\b[^>]*>\s*(?!(?:tokens|bytes|points)\b)({NOUNS})\b"
)
"""A number with its noun in another element; without tokens, bytes and percentage points, which are hardly ever 1."""


def test_a_number_has_a_noun_in_both_forms_where_they_are_in_elements_of_their_own() -> None:
    loader, wrong = environment().loader, []
    assert loader is not None
    for name in nonempty([one for one in loader.list_templates() if one.endswith(".html")]):
        wrong += [f"{name}: {found[0]}" for found in _APART.finditer(loader.get_source(environment(), name)[0])]
    assert wrong == [], 'write row{{ "" if num == 1 else "s" }}'


def test_the_noun_of_a_message_with_a_plural_is_singular_in_its_first_form() -> None:
    loader, wrong = environment().loader, []
    assert loader is not None
    for name in nonempty([one for one in loader.list_templates() if one.endswith(".html")]):
        for message in messages_of(loader.get_source(environment(), name)[0]):
            if message.plural and message.id == message.plural:
                wrong.append(f"{name}: {message.id}")
    assert wrong == []


@cache
def sentences() -> dict[str, str]:
    """The texts of Python that pages show, each with the files that make it."""
    with (LOCALE / "de" / "LC_MESSAGES" / "sentences.po").open("rb") as file:
        read = read_po(file, locale="de")
    return {str(one.id): " ".join(path for path, _ in one.locations) for one in read if one.id}


_COUNTED_SENTENCE = re.compile(
    rf"(?<![Oo]f )(?<![Oo]f the )\{{num\w*\}}(?: \{{currency\w*\}} in \{{num\w*\}})? {_BETWEEN}(?P<noun>{NOUNS})\b"
)
"""Behind "of" there is the number of all, of which another one is a part."""
_NAMED_SENTENCE = re.compile(
    r"(?<![Oo]f )(?<![Oo]f the )(?<!most )(?<!to )(?<!about )\{(?!num)(?P<name>[a-z]\w*)\} "
    rf"{_BETWEEN}(?P<noun>{NOUNS})\b"
)
"""A number may have a name of its own: `len(added)` is `{added}`. Behind these words it is a bound or an estimate."""
NO_COUNTS: Final = frozenset(
    (
        # Names, shapes, words and figures with decimals, some of them before a verb.
        *("system", "name", "run_id", "export_id", "canary", "unknown", "file", "beside", "split", "which", "device"),
        *("text", "speed", "value", "mean_tokens", "rows", "tokens", "busy_cores", "target", "target_name"),
        # One epoch has a sentence of its own, and an added token is one of many.
        *("epochs", "added"),
        # Never 1: sizes of models, texts and limits, and more than a limit, as the error says.
        *("vocabulary_size", "limit", "longest_thought", "entries", "found", "like", "names", "max_rows", "days"),
        *("pairs_per_passage", "losses", "more", "suite_every_hours", "window_hours"),
    )
)
"""Placeholders of sentences that are no number, or never 1."""
NEVER_ONE: Final = (
    # An estimate of rows that is rounded up to tens, and sizes of contexts, prompts and files.
    *("Add about ", "Evaluate on about ", "about {num} held-out rows would", "about {num} training rows"),
    *("It adds about ", "Prompt and answer together", "The context of the model", "{num} bytes", "{num_bytes} bytes"),
    "{num_bytes} for the files of the project",
    *("a conversation of ", "{num} characters in the form", "{name} looks like a decompression bomb"),
    *("{num} labels of ", "On the task's prompts "),
    # Rows of which two share a group, and other runs that are said from three on.
    *("These {num} held-out rows are ", "{num} other runs were evaluated"),
    # Rows, draws and metrics of an evaluation that has an interval, a threshold or a comparison: from two on.
    *("Gains are those of evaluation", "Figures of {name}", "There are only ", "by a threshold from ", "{num} sure, "),
    *("{num} ({num_rows} rows) to ", "{num} comparisons ", "{num} metrics "),
    *("No loss of general ability", "Tuning cost ", "{system} thought before ", "{num} draws", "{num} recipes were"),
    *(
        "{num} concerns",
        "all {num} tasks",
        "all {num} cores, though",
        "one for each core ({num}): ",
        "full fine-tuning would fit",
        "rank {rank_asked}",
        "{num_learned_tokens}",
    ),
    *("{tokens} in {num_examples} rows", "{num_examples} {name} rows are", "only {num_shots} training rows"),
    *(
        "needs {num} more hour",
        "{num_judged} rated answers",
        "{num_workers} workers",
        "{num} few-shot examples requested",
    ),
    # One example, one nearest row and one month have sentences of their own.
    *(
        "The {num} examples ",
        "an instruction and ",
        "it with ",
        "the {num} nearest ",
        "{num} nearest ",
        "{num} examples",
        "{system} with ",
    ),
    *("{num_low} month",),
    # Several parts have a byte each at least.
    *("parts that together have {num_bytes}",),
    # Percentage points and points of an accuracy are written with decimals.
    *("An accuracy gain of ", "{num} points", "{system} is level with ", "{title}: tuning made it worse"),
    # After two validations at least, from the number that a steady signal needs, and where there are more cores than
    # threads.
    *("Train longer: twice the ", "{title}: as before, over ", "torch uses {threads}"),
    # The verb decides: "is" has a sentence of its own.
    *("{metric}: {num} of its rows ",),
)
"""Beginnings of sentences of Python whose number is never 1, or whose singular is another sentence."""


def test_a_counted_sentence_of_python_has_a_singular() -> None:
    known, wrong = sentences(), []
    for text in nonempty(sorted(known)):
        for found in _COUNTED_SENTENCE.finditer(text):
            # The verb may follow the noun, and another number may have forms of its own: the beginning tells.
            singular = text[: found.start("noun")] + found["noun"].removesuffix("s")
            forms = (one for one in known if one.startswith(singular) and not one.startswith(text[: found.end("noun")]))
            if not text.startswith(NEVER_ONE) and next(forms, None) is None:
                wrong.append(f"{known[text]}: {text}")
    assert wrong == [], "write it with `counted` of luthier.core.text.counted"


def test_a_number_with_a_name_of_its_own_has_a_singular_too() -> None:
    known, wrong, used = sentences(), [], set()
    for text in nonempty(sorted(known)):
        for found in _NAMED_SENTENCE.finditer(text):
            if found["noun"] in ("bytes", "characters"):
                continue
            singular = text[: found.start("noun")] + found["noun"].removesuffix("s")
            forms = (one for one in known if one.startswith(singular) and not one.startswith(text[: found.end("noun")]))
            if found["name"] in NO_COUNTS:
                used.add(found["name"])
            elif next(forms, None) is None:
                wrong.append(f"{known[text]}: {text}")
    assert wrong == [], "write it with `counted` of luthier.core.text.counted"
    assert NO_COUNTS - used == set(), "no exception is left over"


def test_no_exception_is_left_over() -> None:
    assert [one for one in NEVER_ONE if not any(text.startswith(one) for text in sentences())] == []

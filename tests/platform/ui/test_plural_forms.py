"""A number before a noun has both forms: "1 row", "2 rows". Found by the texts of the pages, which the catalogs list."""

from __future__ import annotations

import re
from functools import cache

from babel.messages.pofile import read_po
from tests.vacuous import nonempty

from luthier.platform.ui.i18n.catalog import LOCALE
from luthier.platform.ui.i18n.environments import messages_of
from luthier.platform.ui.render import environment

NOUNS = (
    "alerts answers attempts bytes characters checkpoints checks choices columns comparisons concerns cores corrections "
    "datasets days deployments documents draws duplicates epochs errors events examples exchanges exports files findings "
    "groups hours items judgements keys labels lines members messages metrics minutes models months near-duplicates "
    "nodes pairs passages passwords places points processes probes prompts questions raters ratings recipes requests "
    "responses results rows rules runs samples seconds seeds sentences sequences sign-ins signals sources stages steps "
    "systems tasks terms texts threads tokens trainings trials users values versions votes words workers"
).split()
_NUMBER = r"\{(?P<name>\w+)\} (?:[a-z-]+ ){0,2}"
_COUNTED = re.compile(rf"{_NUMBER}(?P<noun>{'|'.join(NOUNS)})\b")
LIMITS = frozenset(
    "least max_files max_requests most text files num_days span num_terms num_parameters num_trainable_parameters "
    "num_seeds num_draws context_tokens context_length_tokens workers stages rows_needed runs plan num_tokens".split()
)
"""Numbers of templates that are never 1: bounds that are constants, sizes of models, and what is shown from two on."""
NO_NUMBERS = frozenset("created_by format code name teacher_name kind fraction title may_words".split())
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


_COUNTED_SENTENCE = re.compile(rf"\{{num\w*\}} (?:[a-z-]+ ){{0,2}}(?P<noun>{'|'.join(NOUNS)})\b")
NEVER_ONE: frozenset[str] = frozenset()
"""Sentences of Python whose number is never 1, or is the number of all of which another one is a part."""


def test_a_counted_sentence_of_python_has_a_singular() -> None:
    known, wrong = sentences(), []
    for text in nonempty(sorted(known)):
        found = _COUNTED_SENTENCE.search(text)
        if found is None or text in NEVER_ONE:
            continue
        noun = found["noun"]
        singular = noun.removesuffix("s")
        begin, end = text[: found.start("noun")], text[found.end("noun") :]
        # The verb may follow the noun, and another number may have forms of its own.
        if not any(one.startswith(f"{begin}{singular}") and one != text for one in known):
            wrong.append(text)
        assert end is not None
    assert wrong == [], "write it with `counted` of luthier.core.text.counted"

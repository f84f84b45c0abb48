"""No sentence that a page may show is missed by the extraction of texts (`sentences.cfg`).

A whole sentence of a feature, and a caution of a task, is shown on a page sooner or later: as a note, a reason or a
summary. Modules that write for the terminal, for clients of an API or into a file in English are left out by name.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from tests.platform.ui.i18n.test_catalogs import forms
from tests.vacuous import nonempty

import luthier
from luthier.platform.ui.i18n.catalog import catalog
from luthier.platform.ui.i18n.extract import _Reader

SOURCE = Path(luthier.__file__).parent
READ = ("features/**/*.py", "ml/evaluation/tasks/*.py", "ml/evaluation/retrieval.py", "ml/evaluation/foreign.py")
NO_PAGES = re.compile(
    r"/(?:cli|api|mcp_server|tinker_api|finetuning_api)(?:/|\.py)|/\w*_?cli\.py|/(?:format|formatting|\w+_format)\.py"
)
"""Commands, their output, and APIs: English in every language."""
ENGLISH_OUTPUT = {
    "features/batches/job.py": "an error in the output file of a batch, in the words of the API",
    "features/exports/bundles.py": "the model card of a bundle",
    "features/human_eval/items.py": "an item of a panel, beside answers whose language is not known",
    "features/models/names.py": "printed by commands",
    "features/training/job_files.py": "the script of a job",
    "features/workflows/views.py": "printed by commands",
}
"""Modules whose sentences never reach a page, and where they go."""
COMPOSED = ("{num_leaked} {are} {LEAKED}, so the figures are too good.",)
"""Sentences whose parts are words: `composed.txt` has them as they are shown."""
_WORDS = 4


def sentences_of(source: str) -> list[str]:
    """The whole sentences of a module, without docstrings, logs and errors."""
    reader = _Reader(takes_errors=False)
    for node in ast.parse(source).body:
        reader.visit(node)
    return [text for _, text in reader.found if text.strip().endswith(".") and len(text.split()) >= _WORDS]


@cache
def _known() -> frozenset[str]:
    return frozenset((*forms("de", "sentences"), *forms("de", "pages")))


def is_known(sentence: str) -> bool:
    """Whether the catalogs have a sentence, as it is or with the values that its placeholders are given."""
    if sentence in _known():
        return True
    filled = (re.sub(r"\{\w+\}", value, sentence) for value in ("3", "tuned"))
    return any(catalog("de").sentence(text.strip(), str) is not None for text in filled)


def modules() -> list[str]:
    """The modules whose sentences pages may show."""
    found = {path.relative_to(SOURCE).as_posix() for pattern in READ for path in SOURCE.glob(pattern)}
    return sorted(name for name in found if not NO_PAGES.search(f"/{name}"))


def test_no_sentence_of_a_feature_is_missed_by_the_extraction() -> None:
    missed = [
        f"{name}: {sentence}"
        for name in nonempty([one for one in modules() if one not in ENGLISH_OUTPUT])
        for sentence in sentences_of((SOURCE / name).read_text(encoding="utf-8"))
        if sentence not in COMPOSED and not is_known(sentence)
    ]
    assert missed == [], "name the function in sentences.cfg, or the parts of the sentence in composed.txt"


def test_each_module_that_is_left_out_has_such_a_sentence() -> None:
    unneeded = [
        name
        for name in nonempty(sorted(ENGLISH_OUTPUT))
        if all(map(is_known, sentences_of((SOURCE / name).read_text(encoding="utf-8"))))
    ]
    assert unneeded == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("note = f'{count} rows of this were read.'", ["{count} rows of this were read."]),
        ("def of():\n    'A sentence of a docstring.'\n    return ('No rows are left.',)", ["No rows are left."]),
        ("raise ValueError('the rows have no answer.')", []),
        ("title = 'Rows left out'", []),
    ],
)  # fmt: skip
def test_sentences_are_found_wherever_a_module_makes_them(source: str, found: list[str]) -> None:
    assert sentences_of(source) == found


def test_a_sentence_that_no_catalog_has_is_unknown() -> None:
    assert not is_known("{num} zebras were painted by these people.")
    assert is_known("No prompt was searched for: none of the metrics compares texts.")

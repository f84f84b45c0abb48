"""Why an alternative was not tried, and what an import has left out of a file, is German on German pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.fixtures.compound_files import compound_file, message, properties, text_stream
from tests.ml.baselines.test_predict import example
from tests.ml.data.readers.conftest import pdf_bytes
from tests.ml.data.readers.test_outlook import SENT
from tests.vacuous import nonempty

from luthier.core.ports import SilentProgress
from luthier.ml.baselines.predict import predict
from luthier.ml.data.readers import outlook, pdf
from luthier.ml.evaluation.plain_names import listed_names
from luthier.platform.ui.i18n.environments import words

ENGLISH = re.compile(
    r"\b(?:the|of|and|are|with|that|this|not|by|which|than|where|is|for|it|to|rows?|no|was|were|has|have|answers?)\b"
)


def in_english(texts: tuple[str, ...]) -> list[str]:
    """Those that are not German, each with what a page shows."""
    shown = {text: words("de").found(text) for text in nonempty(texts)}
    return [f"{text} -> {german}" for text, (german, known) in shown.items() if not known or ENGLISH.search(german)]


@pytest.mark.parametrize(
    "answers",
    [
        [f"All of it is number {n}, as they say." for n in range(30)],
        ["yes"] * 30,
        [str(n) for n in range(30)],
        ["7"] * 30,
        ["a", "b"] * 3,
    ],
)
def test_reasons_of_alternatives_that_were_not_tried(answers: list[str]) -> None:
    train = [example(n, f"Question about thing {n}?", answer) for n, answer in enumerate(answers, 1)]
    assert in_english(predict(train, train[:5], progress=SilentProgress()).left_out) == []


def test_what_was_not_read_of_documents(tmp_path: Path) -> None:
    scanned, mail = tmp_path / "scanned.pdf", tmp_path / "mail.msg"
    scanned.write_bytes(pdf_bytes([["A page with words on it."], [], ["Another one."]]))
    attached = {"__properties_version1.0": properties(8), **text_stream(0x3707, "bill.pdf")}
    content = message(SENT, **text_stream(0x1000, "Good day."), **{"__attach_version1.0_#00000000": attached})
    mail.write_bytes(compound_file(content))
    warnings = (*pdf.read(scanned).warnings, *outlook.read(mail).warnings)
    assert warnings == ("1 of 3 pages has no text (2): scanned?", "1 attachment was not read: bill.pdf")
    assert in_english(warnings) == []
    reasons = (".db: not a supported kind of file", "no ending: not a supported kind of file")
    assert in_english((*reasons, "the sheet 'Old' is hidden, and was read", "it could not be read")) == []


def test_a_list_of_systems_keeps_the_names_of_people() -> None:
    names = ("base", "base + 4 examples", "linear classifier", "nearest training row (BM25)", "plan", "tuned")
    assert listed_names(names, words("de")) == (
        *("unverändertes Modell", "unverändertes Modell + 4 Beispiele", "linearer Klassifikator"),
        *("nächste Trainingszeile (BM25)", "plan", "angepasstes Modell"),
    )

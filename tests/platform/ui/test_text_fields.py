"""Text areas hold what was written: no picture of a hidden character, which would be sent back as part of the text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.fixtures.pages import Browser

import luthier
from luthier.platform.home.context import Context
from luthier.testing.records import add_run

SOURCE = Path(luthier.__file__).parent
OF_OTHERS = ("draft.text", r'texts | join("\n") | replace("\r\n", "\n")')
"""Recipes: comments have names that others gave, whose hidden characters are shown; line ends are of one kind."""
_FIELD = re.compile(r"<textarea\b.*?</textarea>", re.S)
_CONTENT = re.compile(r"\{\{((?:(?!\}\}).)*)\}\}\s*</textarea>", re.S)


def test_every_text_area_of_a_template_is_escaped_as_it_is() -> None:
    # Other expressions are printed with hidden characters as pictures; the line ends of a form have one each.
    fields = [
        (path.name, field)
        for path in sorted(SOURCE.rglob("*.html"))
        if "templates" in path.parts
        for field in _FIELD.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(fields) > 20
    contents = [(name, _CONTENT.search(field)) for name, field in fields]
    written = [(name, one[1].strip()) for name, one in contents if one is not None]
    assert [one for one in written if not one[1].endswith("| e") and one[1] not in OF_OTHERS] == []


@pytest.mark.parametrize(
    ("address", "form"),
    [
        ("/settings/alerts", {"emails": "ada@example.org\r\nno address", "every_minutes": "60"}),
        ("/evaluations/new", {"kind": "suite", "candidate": "nobody", "suite_text": "tasks:\r\n  - a\u00adb"}),
    ],
)
def test_a_form_of_many_lines_that_is_refused_can_be_sent_again(
    home: Context, browser: Browser, address: str, form: dict[str, str]
) -> None:
    add_run(home, "a")  # without a model there is no form of an evaluation
    refused = browser("read", "train", "admin").post(address, data=form)
    assert 400 <= refused.status_code < 500
    assert 'role="alert"' in refused.text
    field = {"emails", "suite_text"} & set(form)
    [found] = re.findall(rf'<textarea[^>]* name="{field.pop()}"[^>]*>\n(.*?)</textarea>', refused.text, re.S)
    assert found == next(text for text in form.values() if "\n" in text)

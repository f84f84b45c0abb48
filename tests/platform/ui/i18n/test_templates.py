"""Texts of templates: which messages a template has, and what it becomes with their translations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from jinja2 import DictLoader, Environment

from luthier.platform.ui.i18n import environments
from luthier.platform.ui.i18n.catalog import Catalog
from luthier.platform.ui.i18n.environments import Coverage, messages_of
from luthier.platform.ui.i18n.messages import Message
from luthier.platform.ui.i18n.templates import rewritten


def ids(source: str) -> list[str]:
    return [message.id for message in messages_of(source)]


def shown(source: str, texts: Mapping[str, str | tuple[str, str]], **values: Any) -> str:
    def find(message: Message) -> tuple[str, ...] | None:
        found = texts.get(message.id)
        return (found,) if isinstance(found, str) else found

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals["term"] = lambda word, shown="": f"[{word}|{shown or word}]"
    environment.filters |= {"count": str, "t": str.upper, "t_text": str.upper, "source_count": str}
    return environment.from_string(rewritten(source, find)).render(**values)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<p>Nothing yet.</p>", ["Nothing yet."]),
        ("<p>{{ run.num_rows }} of {{ total | count }} rows</p>", ["{num_rows} of {total} rows"]),
        ('<p>See <a href="/x">the runs</a>, all.</p>', ["See <1>the runs</1>, all."]),
        ("<p>Run <b>{{ name }}</b> ended</p>", ["Run {name} ended"]),
        ("<p><b>One</b> · <i>Two</i></p>", ["One", "Two"]),
        ('<p>An {{ term("audit") }} shows it</p>', ["An <1>audit</1> shows it"]),
        ("<p>Use <code>luthier up</code> now</p>", ["Use {code} now"]),
        ("<pre>not a text</pre><script>var no = 1;</script>", []),
        ('<img alt="A chart"><input placeholder="Your name" value="not this">', ["A chart", "Your name"]),
        ('{{ empty("No runs", "Start one.", "/runs", "key") }}', ["No runs", "Start one."]),
        ('{{ "higher" if up else "lower" }}', ["higher", "lower"]),
        ('{% if status == "Failed badly" %}x1{% endif %}', ["x1"]),
        ('<p>{% if a %}, first{% endif %} {{ "Of " ~ name }}</p>', ["first", "Of {name}"]),
        ('<a class="{{ "Not this" if a }}">{{ word_of("key") }}</a>', []),
        ('{% set titles = {"one": "First step", "two": "x"} %}', ["First step"]),
        ("<p>a  line\n   break</p>", ["a line break"]),
    ],
)
def test_the_messages_of_a_template(source: str, expected: list[str]) -> None:
    assert ids(source) == expected


def test_an_ending_becomes_a_plural() -> None:
    source = '<p>{{ n }} row{{ "" if n == 1 else "s" }} wait</p>'
    assert messages_of(source) == [Message("{n} row wait", "{n} rows wait", 1)]
    texts = {"{n} row wait": ("{n} Zeile wartet", "{n} Zeilen warten")}
    assert [shown(source, texts, n=n) for n in (0, 1, 2)] == [
        "<p>0 Zeilen warten</p>",
        "<p>1 Zeile wartet</p>",
        "<p>2 Zeilen warten</p>",
    ]


def test_elements_and_values_move_with_the_sentence() -> None:
    source = '<p>See <a href="/{{ id }}">run {{ id }}</a> of {{ name }}.</p>'
    texts = {"See <1>run {id}</1> of {name}.": "{name}: siehe <1>Lauf {id}</1>."}
    assert shown(source, texts, id=7, name="Ada") == '<p>Ada: siehe <a href="/7">Lauf 7</a>.</p>'


def test_an_explained_word_keeps_its_key() -> None:
    source = '<p>An {{ term("audit") }} shows it.</p>'
    assert shown(source, {"An <1>audit</1> shows it.": "Eine <1>Prüfung</1>."}) == "<p>Eine [audit|Prüfung].</p>"
    joined = '{{ "An " ~ term("audit") ~ " shows it." }}'
    assert shown(joined, {"An <1>audit</1> shows it.": "Eine <1>Prüfung</1>."}) == "Eine [audit|Prüfung]."


def test_a_translation_is_text_and_never_markup_or_a_template() -> None:
    evil = {"Hello {name}": '<b>{name}</b> & "quotes" \''}
    page = shown("<p>Hello {{ name }}</p>", evil, name="{name} %s <i>")
    assert page == '<p>&lt;b&gt;{name} %s &lt;i&gt;&lt;/b&gt; &amp; "quotes" \'</p>'
    assert shown('<p title="Hello {{ name }}"></p>', evil, name="x").startswith(
        '<p title="&lt;b&gt;x&lt;/b&gt; &amp; &quot;'
    )


def test_texts_of_python_are_translated_where_they_are_shown() -> None:
    assert shown("<p>{{ goal.title }} {{ goal.name }}</p>", {}, goal={"title": "a", "name": "b"}) == "<p>A b</p>"
    assert shown("<p>{{ entry.name | t }}</p>", {}, entry={"name": "a"}) == "<p>A</p>"


def test_values_of_fields_keep_the_figures_of_the_source() -> None:
    source = '<input value="{{ n | count }}"><p>{{ n | count }}</p>'
    assert rewritten(source, lambda _: None) == '<input value="{{ n | source_count }}"><p>{{ n | count }}</p>'


def test_a_folder_is_shown_in_a_language_as_a_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Environment(
        loader=DictLoader(
            {
                "base.html": "<p>Menu</p>{% block page %}{% endblock %}",
                "runs/list.html": '{% extends "base.html" %}{% block page %}<p>All runs</p>{% endblock %}',
                "runs/one.html": '{% extends "base.html" %}<p>A run</p>',
                "data/list.html": '{% include "base.html" %}<p>All rows</p>',
            }
        )
    )
    known = dict.fromkeys(("Menu", "All runs", "All rows"), ("x",))
    monkeypatch.setattr(environments, "catalog", lambda _: Catalog("de", known, {}))
    coverage = Coverage(made, "de")
    assert [coverage.has(name) for name in ("base.html", "data/list.html", "runs/list.html")] == [True, True, False]
    assert [one.id for one in coverage.missing("runs/one.html")] == ["A run"]

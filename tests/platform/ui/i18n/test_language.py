"""The language of a page: chosen, preferred by the browser, or English; and figures as that language writes them."""

from __future__ import annotations

import inspect
from datetime import date

import pytest
from jinja2 import nodes
from tests.vacuous import nonempty

from luthier.core.evaluation import Metric
from luthier.platform.ui.i18n.environments import figures_of
from luthier.platform.ui.i18n.language import negotiated
from luthier.platform.ui.render import environment


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.5", "de"),
        ("en-GB,de;q=0.9", "en"),
        ("fr,de;q=0.4,en;q=0.3", "de"),
        ("fr,it;q=0.4", "en"),
        ("de;q=0", "en"),
        ("de;q=x,en;q=0.1", "en"),
        ("*", "en"),
        ("<script>" * 1000, "en"),
    ],
)
def test_the_browser_says_what_it_prefers(header: str, language: str) -> None:
    assert negotiated(header) == language


def test_german_figures() -> None:
    filters = figures_of("de").filters()
    assert filters["count"](1234567) == "1.234.567"
    assert filters["rough"](0.812) == "0,812"
    assert filters["size"](2_640_000_000) == "2,64\N{NO-BREAK SPACE}GB"
    assert filters["size"](1 << 30, in_decimal=True) == "1,07\N{NO-BREAK SPACE}GB"
    assert filters["percent"](0.125) == "12,5\N{NARROW NO-BREAK SPACE}%"
    assert filters["short_count"](4.88e6) == "4,88\N{NO-BREAK SPACE}Mio."
    assert filters["duration"](3725) == "1\N{NO-BREAK SPACE}h 02\N{NO-BREAK SPACE}min"
    assert filters["usd"](1234.5) == "1.234,50\N{NO-BREAK SPACE}$"
    assert filters["usd"](None) == "kein Preis"
    assert filters["source_count"](1234) == "1,234", "fields of forms keep what the server reads"


def test_german_times() -> None:
    ago = figures_of("de").ago
    assert ">vor 5 Minuten<" in ago(1_000_000.0 - 300, now=1_000_000.0)
    assert ">in 3 Tagen<" in ago(1_000_000.0 + 3 * 86_400, now=1_000_000.0)
    assert 'title="12. Januar 1970, 13:46:40 UTC"' in ago(1_000_000.0, now=1_000_000.0)
    assert ago(None) == "<span class=muted>nie</span>"
    day = figures_of("de").day
    assert (day("2026-11-25"), day(date(2026, 1, 5))) == ("25.11.2026", "05.01.2026")


def test_figures_within_texts() -> None:
    localised = figures_of("de").localised
    assert localised("0.81 [0.7, 0.9] of 1,200 rows") == "0,81 [0,7; 0,9] of 1.200 rows"
    assert (
        localised("run-2.5.1, 10.0.0.1, v1.2.3, 2026-11-29, qwen2.5")
        == "run-2.5.1, 10.0.0.1, v1.2.3, 2026-11-29, qwen2.5"
    )
    assert localised("[$0.017, $0.028]") == "[0,017\N{NO-BREAK SPACE}$; 0,028\N{NO-BREAK SPACE}$]"
    assert localised("[0.578 Wh, 1.11 Wh] for $1,200.50.") == "[0,578 Wh; 1,11 Wh] for 1.200,50\N{NO-BREAK SPACE}$."
    assert localised("s/a/$1/, US$5, \\$1") == "s/a/$1/, US$5, \\$1"
    assert localised("about 95% of 1.5%, /a%20b") == "about 95\N{NO-BREAK SPACE}% of 1,5\N{NO-BREAK SPACE}%, /a%20b"
    found = figures_of("de").metric(Metric(value=0.5, low=0.25, high=0.75, unit="", higher_is_better=True))
    assert "0,50" in found
    assert "[0,25; 0,75]" in found


def test_filters_of_templates_take_in_german_what_templates_give_them_by_name() -> None:
    english, filters = environment(), figures_of("de").filters()
    assert english.loader is not None
    given = set()
    for name in nonempty([one for one in english.loader.list_templates() if one.endswith(".html")]):
        tree = english.parse(english.loader.get_source(english, name)[0])
        for one in tree.find_all(nodes.Filter):
            given |= {(one.name, str(argument.key)) for argument in one.kwargs if one.name in filters}
    assert ("size", "in_decimal") in given
    missing = [(name, key) for name, key in sorted(given) if key not in inspect.signature(filters[name]).parameters]
    assert missing == []

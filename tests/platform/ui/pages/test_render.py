"""Times, money and figures as pages show them, and how a form leads on."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from luthier.core.evaluation import Metric
from luthier.platform.ui.render import ago, environment, metric, relative, usd

Browser = Callable[..., TestClient]
STYLES = Path(str(files("luthier.platform.ui"))) / "static" / "css"
NOON = 1_795_608_000.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "just now"), (-59, "just now"), (-60, "1 min ago"), (-3599, "59 min ago"), (-3600, "1 h ago"),
        (-86400, "1 day ago"), (-3 * 86400, "3 days ago"), (30, "in 30 s"), (7200, "in 2 h"),
    ],
)  # fmt: skip
def test_times_are_relative(seconds: float, words: str) -> None:
    assert relative(seconds) == words


def test_the_exact_time_is_at_hand() -> None:
    shown = ago(NOON - 120, now=NOON)
    assert "2 min ago" in shown
    assert 'title="25 November 2026' in shown
    assert ago("2026-11-25T11:58:00+00:00", now=NOON) == ago("2026-11-25T11:58:00", now=NOON)
    assert "never" in ago(None)


def test_money_has_the_digits_that_it_deserves() -> None:
    assert [usd(v) for v in (1234.5, 1.0, 0.0123, 0.0, None)] == ["$1,234.50", "$1.00", "$0.012", "$0.00", "not priced"]


def test_a_figure_has_its_unit_and_interval() -> None:
    shown = metric(Metric(value=0.5, low=0.4, high=0.6, unit="nats", higher_is_better=False))
    assert "0.50" in shown
    assert "[0.40, 0.60]" in shown
    assert "nats" in shown


def test_templates_escape_what_they_show() -> None:
    made = environment().from_string('{{ words }} <p title="{{ words }}">').render(words='<script>"\u202e')
    assert made == '&lt;script&gt;&#34;⟨U+202E⟩ <p title="&lt;script&gt;&#34;⟨U+202E⟩">'


def test_every_template_can_be_read() -> None:
    made = environment()
    for name in made.list_templates(extensions=["html"]):
        made.get_template(name)


def test_style_and_scripts_are_named_by_their_content(browser: Browser) -> None:
    one = browser("read")
    page = one.get("/").text
    address = page.split('rel="stylesheet" href="')[1].split('"')[0]
    answer = one.get(address)
    assert answer.headers["cache-control"].endswith("immutable")
    assert answer.headers["content-type"].startswith("text/css")
    assert answer.headers["content-encoding"] == "gzip"
    assert one.get(address, headers={"accept-encoding": "identity"}).content == answer.content
    assert one.get("/assets/app-000000000000.css").status_code == 404
    assert one.get("/assets/..%2f..%2fapp.py").status_code == 404


def test_pages_load_nothing_from_elsewhere_and_hold_no_script(browser: Browser) -> None:
    page = browser("read").get("/").text
    assert "http://" not in page.replace('xmlns="http://www.w3.org', "")
    assert "https://" not in page
    assert "<script>" not in page
    assert " style=" not in page
    assert " onclick=" not in page


@pytest.mark.parametrize(
    ("chosen", "begins", "scheme"),
    [("dark", '<html lang="en" data-theme="dark">', "dark"), ("light", '<html lang="en" data-theme="light">', "light"),
     ('"><script>', '<html lang="en">', "light dark"), ("", '<html lang="en">', "light dark")],
)  # fmt: skip
def test_the_first_frame_has_the_chosen_theme(browser: Browser, chosen: str, begins: str, scheme: str) -> None:
    one = browser("read")
    one.cookies.set("luthier_theme", chosen)
    answer = one.get("/glossary")
    assert begins in answer.text
    assert f'<meta name="color-scheme" content="{scheme}">' in answer.text
    assert "Cookie" in answer.headers["vary"]


def test_no_script_holds_the_first_frame_back(browser: Browser) -> None:
    one = browser("read", "train", "infer", "admin")
    for address in ("/", "/runs", "/runs/new", "/datasets", "/evaluations", "/playground", "/models", "/settings"):
        head = one.get(address).text.partition("</head>")[0]
        scripts = re.findall(r"<script[^>]*>", head)
        assert scripts, address
        assert [script for script in scripts if not re.search(r' (?:defer|type="module")', script)] == [], address
        assert not any('src="/assets/htmx-' in script for script in scripts), "the largest script is not waited for"
        assert head.count('rel="stylesheet"') == 1, "one file of style"


def test_only_marks_without_text_fade() -> None:
    """Text that is half transparent has not the contrast that a reader needs, be it for half a second only."""
    rules = [
        (path.name, rule)
        for path in sorted(STYLES.glob("*.css"))
        for rule in re.findall(r"[^{}]+\{[^{}]*animation: pulse[^{}]*\}", path.read_text(encoding="utf-8"))
    ]
    assert len(rules) >= 3
    assert [(name, rule.strip()) for name, rule in rules if 'content: "";' not in rule] == []

"""Usage and prices by the page: what is counted, at what, and where that is set."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

from fastapi.testclient import TestClient

from luthier.platform.auth.service import create_project
from luthier.platform.auth.store import Use
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
HOSTILE = "<script>alert(1)</script>\u202e"


def use(model: str, *, project_id: str = "default", cost_usd: float | None = 0.25) -> Use:
    return Use(
        project_id=project_id,
        key_id="",
        model=model,
        target=model,
        num_prompt_tokens=1000,
        num_new_tokens=234,
        cost_usd=cost_usd,
    )


def test_usage_by_model_as_chart_and_table(home: Context, browser: Browser) -> None:
    one = browser("read")
    assert "No requests in this period" in one.get("/settings/usage").text
    mine = create_project(home, "mine")
    for model in ("support", "support", HOSTILE, "a", "b", "c", "d"):
        home.usage.add(use(model))
    home.usage.add(use("of another project", project_id=mine.project_id))
    page = one.get("/settings/usage").text
    assert page.count('<svg class="drawn"') == 2
    assert "2,468" in page or "2,000" in page
    assert "$0.50" in page
    assert "$1.75" in page
    assert "2 others" in page, "four lines, and one for the rest"
    assert "of another project" not in page
    assert "<script>alert" not in page
    assert "\u202e" not in page.replace('data-chart="', "", 2).split("<table>")[1]
    assert one.get("/settings/usage?days=7").status_code == 200
    assert one.get("/settings/usage?days=8").status_code == 422


def test_without_prices_it_says_where_they_are_set(home: Context, browser: Browser) -> None:
    home.usage.add(use("support", cost_usd=None))
    page = browser("read").get("/settings/usage").text
    assert "not priced" in page
    assert 'href="/settings/prices"' in page


def test_prices_say_where_they_come_from_and_how_they_are_set(browser: Browser) -> None:
    page = browser("read").get("/settings/prices").text
    for found in (
        "<code>a100-80g</code>",
        "list prices",
        "2026-11-25",
        "LUTHIER_SERVING_USD_PER_MILLION_NEW_TOKENS",
        "--prices mine.yaml",
        "not set",
        "annotation",
        "a kWh",
    ):
        assert found in page, found
    german = browser("read").get("/settings/prices", headers={"accept-language": "de"}).text
    value = r'<span class="figure">\d+,\d\d\N{NO-BREAK SPACE}\$</span> <span class="interval">'
    assert re.search(rf"{value}\[\d+,\d\d; \d+,\d\d\]</span>", german)
    assert '<td class="date">25.11.2026</td>' in german
    assert "angenommen" in german
    assert ">assumed<" not in german
    assert '<span class="interval">[4; 40]</span>' in german
    assert not re.search(r'<span class="figure">\$\d+\.', german)


def test_pages_are_shown_without_heavy_libraries() -> None:
    words = (
        "import sys, tempfile, pathlib\n"
        "from luthier.server.home import create_home_app\n"
        "from luthier.platform.home.context import Context\n"
        "from luthier.features.home_page.service import look_now, room, spent_this_month\n"
        "from luthier.features.planning.prices_pages import price_list\n"
        "with tempfile.TemporaryDirectory() as d, Context.open(pathlib.Path(d) / 'home') as home:\n"
        "    create_home_app(home); price_list(home); look_now(home, 'default'); room(home)\n"
        "    spent_this_month(home, 'default')\n"
        "print([name for name in ('torch', 'transformers', 'polars') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

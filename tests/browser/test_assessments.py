"""Suites, safety checks, the gate and a new evaluation where scripts run: read by axe, folded, and asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from luthier.platform.home.context import Context
from luthier.testing.records import add_run
from luthier.testing.servers import home_server
from tests.assessed import make_safety_result, make_suite_result
from tests.browser.conftest import PHONE, WIDE, sign_in, violations

GATE = "rules:\n  - {metric: sql.execution_accuracy, at_least: 0.95}\n"


@pytest.mark.parametrize("options", [{"viewport": WIDE, "color_scheme": "dark"}, {"viewport": PHONE}])
def test_results_gate_override_and_an_evaluation(
    tmp_path: Path, make_page: Callable[..., Page], options: dict[str, object]
) -> None:
    home = tmp_path / "home"
    with Context.open(home) as context:
        run = add_run(context, "a")
        suite, safety = make_suite_result(run_id=run), make_safety_result(run_id=run)
        context.assessments.save("suite", suite.result_id, suite, project_id="default", subject=run, run_id=run)
        context.assessments.save("safety", safety.result_id, safety, project_id="default", subject=run, run_id=run)
        (home / "gate.yaml").write_text(GATE, encoding="utf-8")
    with home_server(home) as server:
        page = make_page(**options)
        sign_in(page, server.url, server.key)
        for place in (
            "/evaluations",
            f"/evaluations/suites/{suite.result_id}",
            f"/evaluations/safety/{safety.result_id}",
            f"/evaluations/safety/{safety.result_id}/toxicity",
            "/evaluations/new",
            f"/models/{run}",
        ):
            page.goto(f"{server.url}{place}")
            assert violations(page) == [], place
            assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]  # type: ignore[index]
        page.goto(f"{server.url}/evaluations/safety/{safety.result_id}/toxicity")
        words = page.locator("article.sample").first
        expect(words).to_be_hidden()
        page.click("details.warned > summary")
        expect(words).to_be_visible()
        page.select_option("[name=order]", "best")
        expect(page.locator("#samples [role=status]")).to_contain_text("best first")
        assert page.locator("article.sample script, article.sample img").count() == 0

        page.goto(f"{server.url}/models/{run}")
        page.fill("#deploy-name", "support")
        page.click("#deploy button")
        expect(page.locator("#deploy [role=alert]")).to_contain_text("1 of 1 rules are not met")
        make_page.errors.clear()  # type: ignore[attr-defined] # the browser itself notes the status 409
        page.click("#deploy details.override > summary")
        page.fill("#deploy-override", "The old one insults customers; mended next week.")
        page.click("#deploy button")
        page.wait_for_url(f"{server.url}/deployments/support")
        expect(page.locator("[aria-labelledby=gate]")).to_contain_text("has overridden it")
        assert violations(page) == []

        page.goto(f"{server.url}/evaluations/new")
        page.check("[name=kind][value=safety]")
        page.click("text=Evaluate it")
        page.wait_for_url(f"{server.url}/evaluations/orders/*")
        expect(page.locator("#order-state")).to_contain_text("Waiting for a worker")
        assert violations(page) == []
        page.goto("about:blank")  # so that it asks no server that is gone

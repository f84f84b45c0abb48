"""The guided run as a person uses it: what tests click, by what is written on the page."""

from __future__ import annotations

from dataclasses import dataclass

from playwright.sync_api import Locator, Page, expect

_PATIENT_MS = 300_000


@dataclass(frozen=True, slots=True)
class StartPage:
    """The page /start in a browser; each method is one thing that a person does, or waits for."""

    page: Page

    def open(self, address: str, dataset_id: str = "") -> StartPage:
        """Go there. address: of the server."""
        self.page.goto(f"{address}/start?dataset={dataset_id}" if dataset_id else f"{address}/start")
        return self

    def choose_goal(self, title: str) -> StartPage:
        """What the model should do: one click."""
        self.page.get_by_role("group", name="What should the model do?").get_by_text(title, exact=True).click()
        return self

    def choose_data(self, name: str) -> StartPage:
        """Which data: one click."""
        self.page.get_by_role("group", name="Which data should it learn from?").get_by_text(name, exact=True).click()
        return self

    def choose_size(self, title: str) -> StartPage:
        """Quick or better: one click."""
        self.page.get_by_role("group", name="Quick, or better?").get_by_text(title, exact=True).click()
        return self

    def size(self, title: str) -> Locator:
        """The choice of a size."""
        return self.page.get_by_role("radio", name=title)

    def planned(self) -> StartPage:
        """Wait until time, price and memory of both sizes are shown."""
        expect(self.page.locator(".plan-figures")).to_have_count(2, timeout=_PATIENT_MS)
        return self

    def start(self) -> None:
        """Start the run, and be led to its page: one click."""
        self.page.get_by_role("button", name="Start", exact=True).click()
        self.page.wait_for_url("**/runs/run-*", timeout=_PATIENT_MS)

"""A person without a terminal: a folder of documents becomes a model to chat with, and an answer on what it is worth.

Nothing is typed but the name of the dataset, three figures of the firm and the question to the model. Clicks and pages
are counted: a new step on the way has to be worth more than the limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import openpyxl
import pytest
from playwright.sync_api import Locator, Page, TimeoutError, expect

from luthier.features.models.service import pull_model
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.openai_server import OpenAIServer, serving
from luthier.testing.servers import RunningServer, running_server
from luthier.testing.tiny import make_tiny_model
from tests.browser.start_page import StartPage
from tests.fixtures.forked_children import SessionForkServer
from tests.ml.data.readers.conftest import docx_entries, pdf_bytes, write_zip

from .conftest import look_often, sign_in, violations

MINUTES = 60_000
MOST_CLICKS, MOST_PAGES = 12, 7


def page_of(number: int) -> list[str]:
    """The lines of a page: so many words that two pages are no passage."""
    about = [f"Measurement {n} of instrument {number} was made in the workshop in the third week." for n in range(40)]
    return [f"Instrument {number} has spruce from the high Alps, cut in winter.", *about]


def reply(asked: str) -> str:
    """What the model that writes questions answers to a request about a passage."""
    number = re.findall(r"[Ii]nstrument (\d+) ", asked)[0]
    answer = f"Instrument {number} has spruce from the high Alps."
    return json.dumps({"question": f"Which wood has instrument {number}?", "answer": answer})


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, fork_server: SessionForkServer
) -> Iterator[tuple[RunningServer, str]]:
    """A server with a small base model, and a model elsewhere that writes questions; a key to sign in by."""
    folder = tmp_path_factory.mktemp("clerk")
    with Context.open(folder / "home") as context:
        pull_model(context, str(make_tiny_model(folder / "tiny")))
        key = create_key(context, "clerk", scopes=("admin",))[1]
    with serving(OpenAIServer(answer=reply)) as url:
        environment = {"LUTHIER_TEACHER": f"{url}#writer"}
        with running_server(folder / "home", environment=environment, popen=fork_server.popen_text) as running:
            yield running, key


@dataclass
class Clerk:
    """One person at a browser, whose clicks and pages are counted.

    Attributes:
        page: The browser's page.
        clicks: How many times the mouse was pressed.
        pages: The pages behind Home that were seen, without ids.
    """

    page: Page
    clicks: int = 0
    pages: list[str] = field(default_factory=list)

    def click(self, target: Locator) -> None:
        """Press it, once it is there."""
        expect(target.first).to_be_visible(timeout=3 * MINUTES)
        target.first.click()
        self.clicks += 1

    def arrives(self, pattern: str) -> None:
        """Wait for the page of an address; it is counted once, and out of reach for nobody."""
        try:
            self.page.wait_for_url(pattern, timeout=3 * MINUTES)
        except TimeoutError:
            pytest.fail(f"{self.page.url} in place of {pattern}: {self.page.locator('main').inner_text()[:2000]}")
        name = re.sub(r"[a-z]+-\d{8}-\d{6}-[0-9a-f]+", "ID", urlsplit(self.page.url).path)
        if name not in self.pages:
            self.pages.append(name)
        assert violations(self.page) == [], self.page.url

    def button(self, name: str) -> Locator:
        """A button or a link with this text."""
        main = self.page.get_by_role("main")
        return main.get_by_role("button", name=name, exact=True).or_(main.get_by_role("link", name=name, exact=True))

    def trains(self) -> None:
        """From a dataset to a model with a verdict."""
        self.click(self.button("Train on it"))
        self.arrives("**/start?**")
        try:
            StartPage(self.page).planned()
        except AssertionError:
            pytest.fail(f"{self.page.url}: {self.page.locator('main').inner_text()[:2000]}")
        self.click(self.button("Start"))
        self.arrives("**/runs/run-*")
        expect(self.page.locator("main")).to_contain_text("succeeded", timeout=5 * MINUTES)

    def learns_what_it_is_worth(self) -> None:
        """From the run to its verdict, with an answer on worth to three figures."""
        self.click(self.button("The whole evaluation"))
        self.arrives("**/evaluations/eval-*")
        for label, figure in (("Answers a week", "200"), ("Minutes each", "6"), ("Cost of an error", "5")):
            self.page.get_by_label(label).fill(figure)
        self.click(self.button("Calculate"))
        expect(self.page.locator(".worth-answer")).to_be_visible(timeout=3 * MINUTES)

    def chats(self, question: str) -> None:
        """From the verdict to an answer of the model."""
        self.click(self.button("Try it in the playground"))
        self.arrives("**/playground**")
        self.page.fill("#message", question)
        self.page.press("#message", "Enter")
        expect(self.page.locator(".facts-line")).to_contain_text("tokens read", timeout=3 * MINUTES)


@pytest.fixture
def clerk(make_page: Callable[..., Page], server: tuple[RunningServer, str]) -> Clerk:
    page = look_often(make_page())
    sign_in(page, server[0].url, server[1], "/")
    return Clerk(page)


def documents(folder: Path) -> Path:
    """Three PDFs, two DOCX and a spreadsheet of passages about 24 instruments."""
    folder.mkdir()
    for book in range(3):
        (folder / f"book {book}.pdf").write_bytes(pdf_bytes([page_of(6 * book + n) for n in range(1, 7)]))
    for letter in range(2):
        paragraphs = [("", " ".join(page_of(18 + 3 * letter + n))) for n in range(1, 4)]
        write_zip(folder / f"letter {letter}.docx", docx_entries(paragraphs))
    table = openpyxl.Workbook()
    for row in [("question", "answer"), *((f"Who made {n}?", f"Workshop {n}.") for n in range(10))]:
        table.active.append(row)
    table.save(folder / "table.xlsx")
    return folder


def test_from_a_folder_of_documents_to_a_chat_and_what_it_is_worth(clerk: Clerk, tmp_path: Path) -> None:
    clerk.click(clerk.button("Add data"))
    clerk.arrives("**/datasets/new")
    clerk.page.set_input_files("#folder", documents(tmp_path / "documents"))
    clerk.page.fill("#name", "Instruments")
    clerk.click(clerk.button("Add"))
    clerk.arrives("**/datasets/jobs/**")
    clerk.click(clerk.button("Generate questions"))
    clerk.click(clerk.button("Review"))
    clerk.arrives("**/annotate?**")
    clerk.click(clerk.button("Accept all"))
    expect(clerk.page.locator("main")).to_contain_text(re.compile(r"All \d+ rows are decided"), timeout=MINUTES)
    clerk.trains()
    clerk.learns_what_it_is_worth()
    clerk.chats("Which wood has instrument 3?")
    assert len(clerk.pages) <= MOST_PAGES, clerk.pages
    assert clerk.clicks <= MOST_CLICKS


def test_a_table_with_semicolons_and_capitals_is_trained_on_as_it_is(clerk: Clerk, tmp_path: Path) -> None:
    lines = ["QUESTION;ANSWER", *(f"What comes after {n}?;After {n}, there is {n + 1}." for n in range(60))]
    (tmp_path / "questions.csv").write_bytes("\r\n".join(lines).encode("cp1252"))
    clerk.click(clerk.button("Add data"))
    clerk.arrives("**/datasets/new")
    clerk.page.set_input_files("#file", tmp_path / "questions.csv")
    clerk.page.fill("#name", "Numbers")
    clerk.click(clerk.button("Add"))
    clerk.arrives("**/datasets/data-*")
    clerk.trains()
    clerk.learns_what_it_is_worth()
    assert len(clerk.pages) <= MOST_PAGES, clerk.pages
    assert clerk.clicks <= MOST_CLICKS

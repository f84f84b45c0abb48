"""The form of models with a task head: what is asked of them, and what of their outputs a visitor sees."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.pages import shown
from tests.task_heads import add_head_run
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import WorkError
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import SilentProgress
from luthier.core.records.traffic import TrafficPolicy
from luthier.core.stream import Failed, Pooled, Served, StreamEvent
from luthier.core.task_head import TASK_HEAD_FILE
from luthier.features.deployments import service as deployments
from luthier.features.traffic import service as traffic
from luthier.features.traffic.policy import set_traffic_policy
from luthier.ml.inference.models import sources
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
ME = Caller()
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u202e'
LABELS = ("bug", HOSTILE, "other")
HEADS: dict[str, dict[str, Any]] = {
    "classify": {"kind": "classify", "labels": LABELS, "label_counts": (9, 5, 2), "temperature": 1.5},
    "several": {"kind": "classify", "labels": ("bug", "praise", "other"), "is_multi_label": True},
    "regress": {"kind": "regress", "offset": 20.0, "scale": 3.0, "lowest": 10.0, "highest": 50.0},
    "rank": {"kind": "rank"},
    "embed": {"kind": "embed", "pooling": "mean", "dimensions": (32, 8), "query_prompt": "query: "},
}
OUTPUTS: dict[str, list[tuple[float, ...]]] = {
    "classify": [(0.1, 0.7, 0.2)],
    "regress": [(42.0,)],
    "rank": [(0.25,), (0.75,), (0.5,)],
    "embed": [(1.0, 0.0), (0.6, 0.8), (0.0, 1.0), (0.8, 0.6)],
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, dict[str, str]]:
    """A home with a tuned model of each kind, and their names: copied for each test."""
    place = tmp_path_factory.mktemp("heads") / "home"
    with Context.open(place) as context:
        sources.pull(str(tiny_model), context.home, SilentProgress())
        letters = zip("abcde", HEADS.items(), strict=True)
        names = {name: add_head_run(context, "tiny", letter, **head)[1] for letter, (name, head) in letters}
    return place, names


@pytest.fixture
def home(filled: tuple[Path, dict[str, str]], tmp_path: Path) -> Iterator[Context]:
    shutil.copytree(filled[0], tmp_path / "home")
    with Context.open(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def asked(home: Context, monkeypatch: pytest.MonkeyPatch) -> list[PoolingRequest]:
    """What models are asked; the same outputs always come. tests/browser asks real ones."""
    found: list[PoolingRequest] = []

    def ask(_: Served, request: PoolingRequest, hear: Callable[[StreamEvent], None], *, key: str | None) -> Any:
        found.append(request)
        if "break" in str(request):
            hear(Failed(error=WorkError("the process has ended", expected="it to answer", do="ask again").as_json()))
        hear(Pooled(outputs=tuple(OUTPUTS[request.kind]), num_prompt_tokens=7))
        return lambda: None

    monkeypatch.setattr(home.inference_client, "ask", ask)
    return found


@pytest.fixture
def heads(filled: tuple[Path, dict[str, str]], asked: list[PoolingRequest]) -> dict[str, str]:
    """The name of a tuned model of each kind."""
    return filled[1]


def give(one: TestClient, model: str, **form: str) -> str:
    """The page after a form was sent."""
    return str(shown(one, one.post("/playground/head", data={"model": model, **form})).text)


def bars(page: str) -> list[tuple[str, str, str]]:
    """Text, value and width of each bar."""
    line = r'<div class="bar-line"><span>(.*?)</span><b class="number">(.*?)</b>.*?class="part" width="(.*?)"'
    found = re.findall(line, page, re.S)
    return [(unescape(re.sub(r"<[^>]+>", "", text)).strip(), value, width) for text, value, width in found]


def test_labels_come_with_their_probabilities_the_likeliest_first(
    browser: Browser, heads: dict[str, str], asked: list[PoolingRequest]
) -> None:
    one = browser("infer", "read")
    page = one.get("/playground/head", params={"model": heads["classify"]}).text
    assert ">Classify</button>" in page
    assert "fitted on the validation rows" in page
    assert bars(page) == []
    page = give(one, heads["classify"], text=f"It\r\nbroke. {HOSTILE}", system="Be strict.")
    assert [(m.role, m.content) for m in asked[0].conversations[0].messages] == [
        ("system", "Be strict."),
        ("user", f"It\nbroke. {HOSTILE}"),
    ]
    found = bars(page)
    assert [(value, width) for _, value, width in found] == [("70.0%", "70.0"), ("20.0%", "20.0"), ("10.0%", "10.0")]
    assert [text.endswith("given") for text, _, _ in found] == [True, False, False]
    assert "7 tokens were read." in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_of_several_labels_all_from_the_threshold_on_are_given(browser: Browser, heads: dict[str, str]) -> None:
    page = give(browser("infer"), heads["several"], text="a")
    assert '<h2 id="answer-title">praise</h2>' in page
    assert "it is given from 50% on" in page


@pytest.mark.parametrize(
    ("value", "width", "words"), [(42.0, "80.0", "smallest to the largest"), (99.5, "100.0", "may be far off")]
)
def test_a_number_comes_with_the_range_of_its_training_rows(
    browser: Browser, heads: dict[str, str], monkeypatch: pytest.MonkeyPatch, value: float, width: str, words: str
) -> None:
    monkeypatch.setitem(OUTPUTS, "regress", [(value,)])
    page = give(browser("infer"), heads["regress"], text="a")
    assert bars(page) == [("10 to 50 in the training rows", f"{value:.3f}", width)]
    assert words in page


@pytest.mark.parametrize("pasted", ["Spruce.\nMaple\nAsh\n", "\r\nSpruce.\r\n \r\nMaple\r\n\r\n\r\nAsh"])
def test_pasted_documents_are_ranked(
    browser: Browser, heads: dict[str, str], asked: list[PoolingRequest], pasted: str
) -> None:
    page = give(browser("infer"), heads["rank"], text="Which?", documents=pasted)
    assert asked[0].pairs == (("Which?", "Spruce."), ("Which?", "Maple"), ("Which?", "Ash"))
    assert bars(page) == [("Maple", "0.750", "75.0"), ("Ash", "0.500", "50.0"), ("Spruce.", "0.250", "25.0")]


def test_the_nearest_documents_are_found_by_vectors(
    browser: Browser, heads: dict[str, str], asked: list[PoolingRequest]
) -> None:
    one = browser("infer")
    assert '<option value="8">8</option>' in one.get("/playground/head", params={"model": heads["embed"]}).text
    form = {"text": "Which?", "documents": "a\nb\nc", "dimensions": "8"}
    page = give(one, heads["embed"], **form)
    assert asked[0].inputs == ("query: Which?", "a", "b", "c")
    assert (asked[0].pooling, asked[0].dimensions) == ("mean", 8)
    assert bars(page) == [("c", "0.800", "80.0"), ("a", "0.600", "60.0"), ("b", "0.000", "0.0")]
    assert '<option value="8" selected>' in page
    wrong = give(one, heads["embed"], **form | {"dimensions": "16"})
    assert "32, 8, the lengths that this model was trained for" in wrong
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("classify", {"text": " "}, "no text"),
        ("rank", {"text": "Which?", "documents": "\n \n"}, "no documents"),
        ("rank", {"text": "", "documents": "a"}, "no query"),
        ("embed", {"text": "a", "documents": "a\n" * 201}, "201 documents"),
        ("embed", {"text": "a", "documents": "a", "dimensions": "x"}, "dimensions 'x'"),
        ("classify", {"text": "break"}, "the process has ended"),
    ],
)
def test_what_cannot_be_done_is_said_beside_what_was_entered(
    browser: Browser, heads: dict[str, str], name: str, form: dict[str, str], words: str
) -> None:
    page = give(browser("infer"), heads[name], **form)
    assert 'role="alert"' in page
    assert words in unescape(page)
    kept = re.search(r'<textarea id="text"[^>]*>\n(.*?)</textarea>', page, re.S)
    assert kept is not None
    assert kept[1] == form["text"]


def test_each_form_is_a_request_in_the_log_however_it_ends(
    home: Context, browser: Browser, heads: dict[str, str]
) -> None:
    set_traffic_policy(home, ME, TrafficPolicy())
    one = browser("infer")
    give(one, heads["rank"], text="Which?", documents="a\nb\nc")
    give(one, heads["classify"], text="break")
    home.traffic_recorder.log.flush()
    kept = {(one.model, one.status, one.num_prompt_tokens) for one in traffic.newest(home, "default")}
    assert kept == {(heads["rank"], 200, 7), (heads["classify"], WorkError.http_status, 0)}


def test_every_way_leads_to_the_form_that_fits(home: Context, browser: Browser, heads: dict[str, str]) -> None:
    one = browser("infer", "read")
    deployments.deploy(home, ME, "triage", heads["classify"])
    run_id = home.tuned_models.get("default", heads["rank"]).run_id
    for name in nonempty((heads["classify"], run_id, "triage")):
        answer = one.get("/playground", params={"model": name})
        assert answer.status_code == 303
        assert ">Classify</button>" in (page := one.get(answer.headers["location"]).text) or ">Rank</button>" in page
    assert one.get("/playground/head?model=tiny").headers["location"] == "/playground?model=tiny"
    chat, choices = one.get("/playground").text, one.get("/playground/head").text
    for name in nonempty((*heads.values(), "triage")):
        assert f'<option value="{name}"' not in chat
        assert f'<option value="{name}"' in choices
    assert '<option value="tiny"' not in choices


def test_who_may_not_ask_finds_nothing(home: Context, browser: Browser, heads: dict[str, str]) -> None:
    reader, name = browser("read"), heads["classify"]
    assert reader.get("/playground/head", params={"model": name}).status_code == 403
    assert reader.post("/playground/head", data={"model": name, "text": "a"}).status_code == 403
    create_project(home, "other")
    other = browser("infer", project="other")
    page = other.get("/playground/head", params={"model": name})
    assert page.status_code == 404
    assert 'role="alert"' in page.text
    assert "This model does not exist yet" in other.get("/playground/head").text
    assert "does not exist" in give(other, "nobody", text="a")


@pytest.mark.usefixtures("asked")
def test_a_damaged_head_is_said_and_does_not_send_in_circles(home: Context, browser: Browser) -> None:
    _, name, folder = add_head_run(home, "tiny", "f", **HEADS["classify"])
    (folder / TASK_HEAD_FILE).write_text("{", encoding="utf-8")
    one = browser("infer")
    answer = one.get("/playground", params={"model": name})
    page = one.get(answer.headers["location"])
    assert page.status_code >= 400
    assert f"the task head of {name} is damaged" in page.text
    assert str(home.home) not in page.text

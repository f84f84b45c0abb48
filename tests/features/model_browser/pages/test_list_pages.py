"""The pages on models: what is tuned, what it rests on, and what a visitor may do there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from fastapi.testclient import TestClient
from tests.homes import HOSTILE, fill
from tests.vacuous import nonempty

import luthier
from luthier.core.access import Caller
from luthier.core.task_head import TASK_HEAD_FILE, TaskHead
from luthier.features.deployments import service as deployments
from luthier.features.model_browser.pages import Tab
from luthier.features.models.service import pull_model
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]


def test_empty_pages_teach_the_next_step(browser: Browser) -> None:
    one = browser("read", "train")
    assert "No tuned model yet" in one.get("/models").text
    assert "No deployment yet" in one.get("/models?show=deployments").text
    names = one.get("/deployments").text
    assert "No deployment yet" in names
    assert '<a href="/deployments" data-key="y" aria-current="page">Deployments</a>' in names
    assert "Nothing to draw yet" in one.get("/models?show=lineage").text
    assert '<button class="small-button">Download' in one.get("/models?show=base").text
    assert "luthier models pull gemma3-270m" in one.get("/models/gemma3-270m").text
    for address in ("/models?show=base", "/models/gemma3-270m"):
        assert 'action="/start/model"' in one.get(address).text
        assert 'action="/start/model"' not in browser("read").get(address).text
    assert one.get("/models?show=bogus").status_code == 422
    assert "Start a guided run" not in browser("read").get("/models").text


def test_links_to_a_tab_of_this_page_name_one_that_exists() -> None:
    source = Path(luthier.__file__).parent
    texts = [path.read_text(encoding="utf-8") for ending in ("html", "py") for path in source.rglob(f"*.{ending}")]
    found = {tab for text in texts for tab in re.findall(r"/models\?show=([a-z]+)", text)}
    assert set(nonempty(sorted(found))) <= set(get_args(Tab))


def test_base_models_have_sizes_in_german(home: Context, browser: Browser, tiny_model: Path) -> None:
    pull_model(home, str(tiny_model))
    one = browser("read", "train")
    for address in ("/models?show=base", "/models/tiny", "/models/gemma3-270m"):
        answer = one.get(address, headers={"accept-language": "de"})
        assert (answer.status_code, answer.headers["content-language"]) == (200, "de"), address
        assert re.search(r"\d\N{NO-BREAK SPACE}[GMk]B", answer.text), address
    for address in ("/models?show=base", "/models/llama-3.3-70b-instruct"):
        page = one.get(address, headers={"accept-language": "de"}).text
        assert "Llama 3.3 70B Instruct" in page, "a number in a name is no figure"


def test_the_list_leads_to_all_there_is(home: Context, browser: Browser) -> None:
    made = fill(home)
    one = browser("read")
    text = one.get("/models").text
    for address in (f"/models/{made.runs[0]}", "/models/ft%3Atiny%3Adefault%3Amine%3A1a2b", "/deployments/support"):
        assert f'href="{address}' in text
    assert "not distinguishable" in text
    assert f'href="/exports/{made.export_id}"' in one.get("/models?show=lineage").text
    # The switch of languages leads back to this address.
    after = f"/models?after={made.runs[0]}"
    assert made.runs[0] not in one.get(after).text.replace(after, "")


def test_a_card_is_found_by_every_name(home: Context, browser: Browser) -> None:
    made = fill(home)
    one = browser("read", "infer")
    for name in (made.runs[1], made.tuned, f"{made.tuned}:ckpt-step-5"):
        text = one.get(f"/models/{name}").text
        assert f'href="/datasets/{made.dataset_id}?version=1"' in text
        assert "Cannot tell." in text
        assert "validation rises" in text
        assert f'href="/exports/{made.export_id}"' in text
        assert f"/playground?model={made.tuned}".replace(":", "%3A") in text
        assert "base_url=&#34;http://127.0.0.1/v1&#34;" in text
    assert "the checkpoint of step 5" in text
    assert one.get("/models/support").headers["location"] == "/deployments/support"
    for name in ("nothing", "run-20261125-093000-ffffff", "ft:nothing", "../etc/passwd", "%00"):
        assert one.get(f"/models/{name}").status_code == 404


def test_a_model_that_writes_no_text_shows_how_it_is_asked(home: Context, browser: Browser) -> None:
    made = fill(home)
    head = TaskHead(kind="classify", width=8, labels=(HOSTILE, "praise"))
    folder = home.settings.run_folder(made.runs[1]) / "model"
    (folder / TASK_HEAD_FILE).write_text(head.model_dump_json(), encoding="utf-8")
    text = browser("read", "infer").get(f"/models/{made.tuned}").text
    assert "http://127.0.0.1/v1/classify" in text
    assert "classes with probabilities" in text
    assert "luthier predict" in text
    assert ">Chat with it</a>" not in text
    assert f'href="/playground/head?model={made.tuned}"'.replace(":", "%3A") in text
    assert "not fitted: probabilities are as they were trained" in text
    assert "<script>alert" not in text
    deployments.deploy(home, Caller(), "triage", made.runs[1])
    text = browser("read", "infer").get("/deployments/triage").text
    assert "http://127.0.0.1/v1/classify" in text
    assert ">Try it</a>" in text
    assert "chat.completions" not in text


def test_of_a_base_model_no_path_is_shown(home: Context, browser: Browser, tiny_model: Path) -> None:
    pull_model(home, str(tiny_model))
    one = browser("read", "train")
    for address in ("/models?show=base", "/models/tiny"):
        text = one.get(address).text
        assert "tiny" in text
        assert str(tiny_model.parent) not in text
    assert "not stated" in text


def test_who_may_only_look_finds_no_forms(home: Context, browser: Browser) -> None:
    made = fill(home)
    addresses = [f"/models/{made.runs[1]}", "/deployments/support", f"/exports/{made.export_id}"]
    viewer, trainer = browser("read"), browser("read", "train")
    for address in addresses:
        assert 'action="/deployments' in trainer.get(address).text
        text = viewer.get(address).text
        for form in ('action="/deployments', 'action="/exports"', "/remove"):
            assert form not in text
        assert "Chat with it" not in text
    for address in (
        "/exports", "/deployments", "/deployments/support/deploy", "/deployments/support/promote",
        "/deployments/support/rollback", "/deployments/support/remove", f"/exports/{made.export_id}/remove",
        f"/exports/{made.export_id}/cancel", f"/exports/{made.export_id}/retry",
    ):  # fmt: skip
        data = {"expected_revision": "1", "source": made.runs[0], "form": "merged"}
        assert viewer.post(address, data=data).status_code == 403
    assert browser().get("/models").status_code == 303


def test_another_projects_is_not_there(home: Context, browser: Browser) -> None:
    made = fill(home)
    other = create_project(home, "other")
    one = browser("read", "train", project=other.project_id)
    assert "No tuned model yet" in one.get("/models").text
    for address in (f"/models/{made.runs[1]}", f"/models/{made.tuned}", "/deployments/support"):
        assert one.get(address).status_code == 404
    for address in ("", "/files.tar", "/files/README.md"):
        assert one.get(f"/exports/{made.export_id}{address}").status_code == 404
    for form in ("remove", "cancel", "verify"):
        assert one.post(f"/exports/{made.export_id}/{form}").status_code == 404
    data = {"source": made.runs[1], "form": "merged"}
    assert one.post("/exports", data=data).status_code == 404
    assert home.deployments.get("default", "support").revision.number == 1


def test_hostile_names_show_as_text(home: Context, browser: Browser) -> None:
    made = fill(home, name="<script>alert(1)</script>")
    result = home.runs.get(made.runs[1]).result
    assert result is not None
    home.runs.update(made.runs[1], result=result.model_copy(update={"warnings": (HOSTILE,)}))
    one = browser("read", "train")
    for address in (f"/models/{made.runs[1]}", f"/exports/{made.export_id}", "/models?show=lineage"):
        text = one.get(address).text
        assert "&lt;script&gt;alert(1)" in text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "\u202e" not in text


@pytest.mark.parametrize("form", ["zip", "merged:q4_k_m", ""])
def test_an_export_that_cannot_be_says_why_beside_the_form(home: Context, browser: Browser, form: str) -> None:
    made = fill(home)
    answer = browser("read", "train").post("/exports", data={"source": made.runs[1], "form": form})
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert 'action="/exports"' in answer.text


def test_a_name_is_given_once(home: Context, browser: Browser) -> None:
    made = fill(home)
    one = browser("read", "train")
    data = {"name": " helper ", "target": made.runs[1], "source": made.tuned}
    assert one.post("/deployments", data=data).headers["location"] == "/deployments/helper"
    again = one.post("/deployments", data=data | {"name": "support"})
    assert again.status_code == 409
    assert "exists already, at revision 1" in again.text
    assert 'value="support"' in again.text
    assert one.post("/deployments", data=data | {"name": HOSTILE}).status_code == 422

"""/monitor/model: judge, suite and groups of a monitored model, set on its page; and the command that does the same."""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.records.deployment import Deployment, Revision, Share
from luthier.features.evaluation_orders import service as evaluation_orders
from luthier.features.models.service import pull_model
from luthier.features.monitoring import alerts, scheduled_suites
from luthier.features.monitoring.service import set_model_settings
from luthier.platform.audit_log.service import newest_entries
from luthier.platform.auth.service import create_project
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.testing.records import add_run

Browser = Callable[..., TestClient]
PAGE = "/monitor/model?name=shop"
SENT = {
    "name": "shop",
    "judge": "",
    "num_judged": "40",
    "suite": "",
    "suite_every": "12",
    "groups": "women=she|her\r\n\r\nmen = he|him",
}


@pytest.fixture
def watched(home: Context) -> Context:
    """`shop` is monitored by the settings of the project."""
    alerts.change_settings(home, Caller(), {"models": ("shop",)})
    return home


@pytest.fixture
def suite_id(watched: Context, tmp_path: Path) -> str:
    rows = tmp_path / "held.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 6, encoding="utf-8")
    held = files.add_file(watched, DEFAULT_PROJECT, rows, filename="held.jsonl", purpose="user_data").file_id
    text = f"name: workshop\nforgetting: false\ntasks:\n  - {{name: counting, kind: generate, data: {held}}}\n"
    return evaluation_orders.keep_suite(watched, Caller(), text, filename="workshop.yaml").file_id


def stored(context: Context):  # type: ignore[no-untyped-def]
    return scheduled_suites.model_settings(context, DEFAULT_PROJECT, "shop")


def command(page: str) -> list[str]:
    return shlex.split(html.unescape(page.partition('aria-label="Command">')[2].partition("</pre>")[0]))


def test_judge_suite_and_groups_are_set_and_shown_with_the_same_command(
    watched: Context, browser: Browser, suite_id: str
) -> None:
    run_id, one = add_run(watched, "c"), browser("admin")
    assert one.post("/monitor/model", data=SENT | {"judge": run_id, "suite": suite_id}).status_code == 303
    now = stored(watched)
    assert (now.judge, now.num_judged, now.suite, now.suite_file_id) == (run_id, 40, None, suite_id)
    assert (now.suite_every_hours, now.groups) == (12.0, {"women": "she|her", "men": "he|him"})
    entry = newest_entries(watched, limit=1)[0]
    assert (entry.action, entry.subject) == ("monitor.settings_changed", "shop")
    page = one.get(PAGE).text
    words = command(page)
    assert words[:5] == ["luthier", "monitor", "shop", "--judge", run_id]
    assert words[words.index("--suite") + 1] == "workshop.yaml"
    assert words[words.index("--suite-every") + 1] == "12h"
    assert [words[n + 1] for n, word in enumerate(words) if word == "--group"] == ["women=she|her", "men=he|him"]
    assert f'value="{suite_id}" selected' in page
    assert "no suite is set" not in page
    assert one.post("/monitor/model", data=SENT | {"num_judged": "", "groups": ""}).status_code == 303
    after = stored(watched)
    assert (after.judge, after.num_judged, after.suite_file_id, after.groups) == (None, 40, None, {})


def test_what_a_command_has_set_stays_and_no_path_is_shown(watched: Context, browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "own suite.yaml"
    path.write_text("name: own\ntasks:\n  - {name: a, kind: generate, data: x.jsonl}\n", encoding="utf-8")
    before = stored(watched).model_copy(update={"judge": "http://judge.example/v1#big", "suite": str(path)})
    set_model_settings(watched, DEFAULT_PROJECT, "shop", before)
    one = browser("admin")
    page = one.get(PAGE).text
    assert "own suite.yaml (set by a command)" in page
    assert str(tmp_path) not in page
    assert one.post("/monitor/model", data=SENT | {"judge": "as-it-is", "suite": "as-it-is"}).status_code == 303
    now = stored(watched)
    assert (now.judge, now.suite, now.num_judged) == (before.judge, str(path), 40)


def configure(context: Context, teacher: str, **prices: float) -> None:
    context.settings = Settings(home=context.home, teacher=teacher, **prices)


def test_the_judge_that_the_operator_has_configured_is_offered_with_its_address_and_price(
    watched: Context, browser: Browser
) -> None:
    one = browser("admin")
    assert "Configured by the operator" not in one.get(PAGE).text
    configure(
        watched,
        "https://judge.example:8443/v1/#big",
        teacher_usd_per_million_prompt_tokens=0.25,
        teacher_usd_per_million_new_tokens=1.5,
    )
    page = html.unescape(one.get(PAGE).text)
    assert ">big at judge.example:8443</option>" in page
    assert "https://judge.example:8443/v1#big" in page
    assert "the texts that it judges are sent there" in page
    assert "0.25 USD for a million tokens of questions, 1.5 USD for a million tokens of replies" in page
    assert one.post("/monitor/model", data=SENT | {"judge": ":teacher"}).status_code == 303
    now = stored(watched)
    assert (now.judge, now.judge_is_configured) == ("https://judge.example:8443/v1#big", True)
    page = one.get(PAGE).text
    assert 'value=":teacher" selected' in page
    assert command(page)[4] == "https://judge.example:8443/v1#big"
    assert "big at judge.example:8443" in browser("read").get(PAGE).text
    german = one.get(PAGE, headers={"accept-language": "de"}).text
    assert "0,25 USD für eine Million Tokens der Fragen" in german
    assert "Vom Betreiber konfiguriert" in german
    # Another form leaves it, and another configured model does not take its place.
    configure(watched, "http://127.0.0.1:9/v1#small")
    page = html.unescape(one.get(PAGE).text)
    assert "https://judge.example:8443/v1#big (no longer configured)" in page
    assert "a server on this machine. No price is configured." in page
    one.post("/monitor/model", data=SENT | {"judge": "as-it-is"})
    assert stored(watched) == now
    one.post("/monitor/model", data=SENT)
    assert (stored(watched).judge, stored(watched).judge_is_configured) == (None, False)


@pytest.mark.parametrize(
    "forged",
    [
        "http://10.0.0.1/v1#model",
        "https://judge.example/v1#other",
        "https://judge.example/v1#big",
        ":teacher#http://10.0.0.1/v1#model",
        "http://judge.example@10.0.0.1/v1#big",
    ],
)
def test_a_forged_form_names_no_other_address(watched: Context, browser: Browser, forged: str) -> None:
    configure(watched, "https://judge.example/v1#big")
    answer = browser("admin").post("/monitor/model", data=SENT | {"judge": forged})
    assert (answer.status_code, "that can judge" in answer.text) == (404, True)
    assert stored(watched).judge is None


def test_the_configured_judge_is_refused_where_there_is_none(watched: Context, browser: Browser) -> None:
    answer = browser("admin").post("/monitor/model", data=SENT | {"judge": ":teacher"})
    assert (answer.status_code, stored(watched).judge) == (404, None)


def test_traffic_from_now_on_is_normal(watched: Context, browser: Browser) -> None:
    one = browser("admin")
    one.post("/monitor/model", data=SENT)
    assert stored(watched).normal_since == 0.0
    one.post("/monitor/model", data=SENT | {"normal_now": "true"})
    now = stored(watched).normal_since
    assert now > 0.0
    one.post("/monitor/model", data=SENT)
    assert stored(watched).normal_since == now, "it is no switch: an unmarked box keeps it"


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"judge": "http://10.0.0.1/v1#model"}, 404, "that can judge"),
        ({"judge": "no-such-model"}, 404, "that can judge"),
        ({"num_judged": "19"}, 422, "from 20 to 1,000"),
        ({"num_judged": "many"}, 422, "many"),
        ({"suite_every": "0"}, 422, "from 1 to 8,784, which"),
        ({"suite": "file-unknown"}, 404, "file-unknown"),
        ({"groups": "women"}, 422, "a name, = and a regular expression"),
        ({"groups": "women=(she"}, 422, "women"),
        ({"groups": "Some Women=she"}, 422, "small letters"),
        ({"name": "nothing"}, 404, "not monitored"),
    ],
)
def test_a_wrong_form_changes_nothing_and_stays_as_it_was_typed(
    watched: Context, browser: Browser, changed: dict[str, str], status: int, words: str
) -> None:
    answer = browser("admin").post("/monitor/model", data=SENT | changed)
    assert (answer.status_code, words in html.unescape(answer.text)) == (status, True)
    if "name" not in changed:
        assert 'value="12"' in answer.text or "suite_every" in changed
        assert "men = he|him" in answer.text or "groups" in changed
    assert stored(watched) == type(stored(watched))()


def test_a_suite_that_runs_code_is_refused(watched: Context, browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "code.yaml"
    path.write_text("name: code\ntasks:\n  - {name: run, kind: code, data: x}\n", encoding="utf-8")
    file_id = files.add_file(watched, DEFAULT_PROJECT, path, filename="code.yaml", purpose="user_data").file_id
    answer = browser("admin").post("/monitor/model", data=SENT | {"suite": file_id})
    assert (answer.status_code, "which runs code" in answer.text) == (422, True)
    assert stored(watched).suite_file_id is None


def test_who_is_no_admin_reads_and_projects_are_kept_apart(watched: Context, browser: Browser, suite_id: str) -> None:
    create_project(watched, "support")
    alerts.change_settings(
        watched, Caller(project_id=watched.access.project("support").project_id), {"models": ("shop",)}
    )
    browser("admin").post("/monitor/model", data=SENT)
    trainer = browser("train", "read")
    page = trainer.get(PAGE).text
    assert '<select id="judge"' not in page
    assert "women=she|her; men=he|him" in page
    assert trainer.post("/monitor/model", data=SENT).status_code == 403
    other = browser("admin", project="support")
    assert other.post("/monitor/model", data=SENT | {"suite": suite_id}).status_code == 404, "no file of theirs"
    assert "men=he" not in other.get(PAGE).text


def test_a_suite_of_the_project_is_begun_and_its_deletion_is_said(
    watched: Context, browser: Browser, suite_id: str, tiny_model: Path
) -> None:
    base = pull_model(watched, str(tiny_model)).name
    revision = Revision(number=1, kind="deploy", shares=(Share(target=base, fraction=1),))
    watched.deployments.add(
        Deployment(deployment_id="d-shop", project_id=DEFAULT_PROJECT, name="shop", revision=revision)
    )
    browser("admin").post("/monitor/model", data=SENT | {"suite": suite_id})
    job = scheduled_suites.begin_due(watched, DEFAULT_PROJECT, "shop", stored(watched))
    assert job is not None
    order = evaluation_orders.order_of(job)
    assert (order.kind, order.file_id, order.suite_file, order.label) == ("suite", suite_id, None, "workshop.yaml")
    files.delete_file(watched, DEFAULT_PROJECT, suite_id)
    page = browser("admin").get(PAGE)
    assert (page.status_code, "This project has no suite yet" in page.text) == (200, True)

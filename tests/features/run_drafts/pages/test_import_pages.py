"""A file of another tool by the page: every key has an outcome, and nothing of the server is looked up by it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from fastapi.testclient import TestClient
from tests.fixtures.pages import shown

from luthier.core.access import Caller
from luthier.core.ports import SilentProgress
from luthier.features.datasets import service as dataset_versions
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
ADDRESS = "/runs/import"
FILES = Path(__file__).parents[2] / "recipes" / "imports" / "files"
TRL = (FILES / "trl.yaml").read_text(encoding="utf-8")


@pytest.fixture
def rows(home: Context) -> str:
    """The id of a file with rows of a dataset."""
    content = [f"{json.dumps({'prompt': str(n), 'completion': 'a'})}\n".encode() for n in range(9)]
    file = dataset_versions.keep_rows(home, Caller(), content, "rows.jsonl")
    return dataset_versions.create_dataset(home, Caller(), "Support", file)[1].file_id


def send(one: TestClient, text: str = "", **form: Any) -> Any:
    return one.post(ADDRESS, data={"text": text} | form)


def recipe_of(page: str) -> dict[str, Any]:
    """The recipe in the link to the form of a new run."""
    found = re.search(r'href="(/runs/new\?recipe=[^"]*)"', page)
    assert found, "the recipe leads to the form of a new run"
    recipe: dict[str, Any] = yaml.safe_load(parse_qs(urlsplit(unescape(found[1])).query)["recipe"][0])
    return recipe


def test_a_file_becomes_the_recipe_of_a_new_run(home: Context, browser: Browser, tiny_model: Path, rows: str) -> None:
    from luthier.ml.inference.models import sources

    sources.pull(str(tiny_model), home.home, SilentProgress())
    name = tiny_model.name
    one = browser("train")
    assert ADDRESS in one.get("/runs/new").text
    page = shown(one, send(one, TRL, rows=rows, base_model=name)).text
    recipe = recipe_of(page)
    assert (recipe["base_model"], recipe["data"]["train"]) == (name, rows)
    assert (recipe["method"]["rank"], recipe["training"]["global_batch_size"]) == (32, 16)
    # As the tables of the tool have it: what is logged is not needed, and TRL's silent default is written out.
    assert re.search(r"<code>logging_steps</code>.*?what is logged", page, re.S)
    assert re.search(r"<code>max_grad_norm</code>.*?<code>training.max_grad_norm: 1.0</code>", page, re.S)
    link = re.search(r'href="(/runs/new\?recipe=[^"]*)"', page)
    assert link
    form = one.get(unescape(link[1]))
    assert form.status_code == 200
    assert "global_batch_size: 16" in form.text


def test_an_uploaded_file_is_read_and_its_devices_count(browser: Browser, rows: str) -> None:
    one = browser("train")
    files = {"file": ("config.yaml", (FILES / "axolotl.yaml").read_bytes())}
    page = shown(one, one.post(ADDRESS, data={"rows": rows, "devices": "3"}, files=files)).text
    # 2 rows on each of 3 devices, 4 times a step.
    assert recipe_of(page)["training"]["global_batch_size"] == 24
    assert "is not on this server" in page
    assert "lora_target_linear: true" in page, "the file can be translated again"


def test_keys_without_a_counterpart_wait_for_a_decision(browser: Browser, rows: str) -> None:
    one = browser("train")
    text = f"{TRL}neftune_noise_alpha: 5\nmade_up: <b>\nld_alpha: 0.5\n"
    refused = send(one, text, rows=rows)
    assert refused.status_code == 422
    keys = set(re.findall(r'name="leave_out" value="([^"]+)"', refused.text))
    assert {"made_up", "ld_alpha"} <= keys
    assert "&lt;b&gt;" in refused.text
    again = send(one, text, rows=rows, leave_out=["made_up"])
    assert again.status_code == 422
    assert re.search(r'value="made_up" checked', again.text)
    page = shown(one, send(one, text, rows=rows, leave_out=sorted(keys))).text
    recipe_of(page)
    assert re.search(r"Left out \(\d\).*?<code>made_up</code>", page, re.S)


def test_a_key_that_the_form_sets_settles_what_was_refused(browser: Browser) -> None:
    one = browser("train")
    refused = send(one, TRL)
    assert refused.status_code == 422
    assert 'name="leave_out" value="dataset_name"' in refused.text
    page = shown(one, send(one, TRL, **{"set:data.train": "file-of-mine", "set:training.epochs": "7"})).text
    recipe = recipe_of(page)
    assert (recipe["data"]["train"], recipe["training"]["epochs"]) == ("file-of-mine", 7)


@pytest.mark.parametrize("tool", ["llama_factory", "trl", "axolotl"])
def test_a_file_does_not_learn_which_paths_the_server_has(browser: Browser, tmp_path: Path, tool: str) -> None:
    one = browser("train")
    (tmp_path / "here").mkdir()
    for folder in ("here", "gone"):
        info = {"support": {"file_name": "rows.jsonl", "columns": {"prompt": "secret"}}}
        if folder == "here":
            (tmp_path / folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
            (tmp_path / folder / "rows.jsonl").write_text('{"secret": "x"}\n', encoding="utf-8")
    known = yaml.safe_load((FILES / f"{tool}.yaml").read_text(encoding="utf-8"))
    answers = {}
    for folder in ("here", "gone"):
        path = str(tmp_path / folder)
        named = {
            "llama_factory": {"model_name_or_path": path, "dataset_dir": path},
            "trl": {"model_name_or_path": path, "dataset_name": f"{path}/rows.jsonl"},
            "axolotl": {"base_model": path, "datasets": [{"path": f"{path}/rows.jsonl", "type": "alpaca"}]},
        }[tool]
        answer = send(one, yaml.safe_dump(known | named))
        assert answer.status_code == 422
        text = re.sub(r'name="form_token" value="[^"]*"|popovertarget="[^"]*"', "", answer.text)
        answers[folder] = text.replace(path, "PATH").replace(path[:57], "PATH")
    assert 'name="leave_out" value="' in answers["here"]
    assert "secret" not in answers["here"]
    assert answers["here"] == answers["gone"]


def test_wrong_files_and_forms_are_refused(home: Context, browser: Browser, rows: str) -> None:
    one = browser("train")
    bomb = "a: &a [x, x]\nb: [*a, *a]\n"
    for text, form, words in (
        ("", {}, "no file was chosen"),
        ("- a list", {}, "a mapping of keys"),
        ("colour: red", {}, "has the keys of no tool"),
        (bomb, {}, "repeats a part by its name"),
        (TRL, {"devices": "many"}, "the number of devices"),
        (TRL, {"devices": "0"}, "1 to 4,096"),
        (TRL, {"base_model": "/etc"}, "a base model of this server"),
        (TRL, {"tool": "mine"}, "one of axolotl"),
        ("x" * 70_000, {}, "at most 65,536"),
        (TRL, {"rows": rows, "set:training.epochs": "[1"}, "training.epochs"),
    ):
        answer = send(one, text, **form)
        assert answer.status_code == 422, words
        assert words in unescape(answer.text)
    latin = one.post(ADDRESS, files={"file": ("config.yaml", "name: Müller".encode("latin-1"))})
    assert latin.status_code == 422
    assert "not UTF-8" in latin.text
    friend = create_project(home, "friend").project_id
    assert send(browser("train", project=friend), TRL, rows=rows).status_code == 404
    viewer = browser("read")
    assert viewer.get(ADDRESS).status_code == 403
    assert send(viewer, TRL, rows=rows).status_code == 403

"""Permissions: a project lets others ask what it has tuned, and takes it back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.openai import ok

from luthier.features.models.store import TunedModel
from luthier.platform.home.context import Context

NAME = "ft:tiny:default:s:1:ckpt-step-4"
URL = f"/v1/fine_tuning/checkpoints/{NAME}/permissions"


@pytest.fixture
def admin(home: Context, client_of: Callable[..., TestClient]) -> TestClient:
    """An administrator of the project `default`, which has one checkpoint; the projects `a` and `b` are there, too."""
    for project in ("a", "b"):
        client_of(project)
    home.tuned_models.add(
        TunedModel(
            model_id=NAME,
            project_id="default",
            job_id="ftjob-1",
            run_id="run-1",
            base_model="tiny",
            adapter_path="/none",
            step=4,
            checkpoint_id="ftckpt_1",
        )
    )
    return client_of()


def test_given_listed_and_taken_back(admin: TestClient, home: Context) -> None:
    made = ok(admin.post(URL, json={"project_ids": ["proj-a", "proj-b"]}))
    assert [one["project_id"] for one in made["data"]] == ["proj-a", "proj-b"]
    assert (made["object"], made["has_more"]) == ("list", False)
    assert {one["object"] for one in made["data"]} == {"checkpoint.permission"}
    assert home.tuned_models.get("proj-a", NAME).model_id == NAME
    again = ok(admin.post(URL, json={"project_ids": ["proj-b"]}))
    assert again["data"] == [made["data"][1]]

    assert [one["project_id"] for one in ok(admin.get(URL))["data"]] == ["proj-b", "proj-a"]
    rest = ok(admin.get(f"{URL}?order=ascending&limit=1&after={made['data'][0]['id']}"))
    assert (rest["data"], rest["has_more"]) == ([made["data"][1]], False)
    assert ok(admin.get(f"{URL}?project_id=proj-a"))["data"] == [made["data"][0]]
    assert ok(admin.get(URL.replace(NAME, "ftckpt_1")))["data"] == ok(admin.get(URL))["data"]

    gone = made["data"][0]["id"]
    assert ok(admin.delete(f"{URL}/{gone}")) == {"id": gone, "object": "checkpoint.permission", "deleted": True}
    assert admin.delete(f"{URL}/{gone}").status_code == 404
    assert [one["project_id"] for one in ok(admin.get(URL))["data"]] == ["proj-b"]


def test_nobody_else_may(admin: TestClient, client_of: Callable[..., TestClient]) -> None:
    assert admin.post(URL, json={"project_ids": ["proj-a", "proj-none"]}).status_code == 400
    assert ok(admin.get(URL))["data"] == []
    assert admin.post(URL, json={"project_ids": []}).status_code == 400
    ok(admin.post(URL, json={"project_ids": ["proj-a"]}))
    stranger, trainer = client_of("a"), client_of("default", ("train", "read"))
    assert stranger.get(URL).status_code == 404  # it may ask the checkpoint, not give it on
    assert stranger.post(URL, json={"project_ids": ["proj-b"]}).status_code == 404
    assert trainer.get(URL).status_code == 403
    assert admin.get(URL.replace(NAME, "ft:tiny:default:s:2")).status_code == 404


def test_permissions_can_be_taken_back_while_their_list_is_paged_through(admin: TestClient) -> None:
    made = ok(admin.post(URL, json={"project_ids": ["proj-a", "proj-b", "default"]}))["data"]
    for order, expected in (("descending", made[::-1]), ("ascending", made)):
        first = ok(admin.get(f"{URL}?limit=1&order={order}"))
        assert (first["data"], first["has_more"]) == (expected[:1], True)
    ok(admin.delete(f"{URL}/{made[2]['id']}"))
    rest = ok(admin.get(f"{URL}?limit=1&after={made[2]['id']}"))
    assert (rest["data"], rest["has_more"]) == ([made[1]], True)
    ok(admin.delete(f"{URL}/{made[1]['id']}"))
    last = ok(admin.get(f"{URL}?limit=1&after={made[1]['id']}"))
    assert (last["data"], last["has_more"], last["first_id"]) == ([made[0]], False, made[0]["id"])
    assert ok(admin.get(f"{URL}?order=ascending&after={made[0]['id']}"))["data"] == []
    assert admin.get(f"{URL}?after=cp_of_nobody").status_code == 400

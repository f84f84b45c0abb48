"""/deployments/NAME: a canary, its end, the way back, and what one is told who comes second."""

from __future__ import annotations

from collections.abc import Callable

from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.features.deployments import service as deployments
from luthier.platform.auth.store import Use
from luthier.platform.home.context import Context
from luthier.testing.homes import ME, fill

Browser = Callable[..., TestClient]


def shares(home: Context) -> dict[str, float]:
    revision = home.deployments.get("default", "support").revision
    return {share.target: round(share.fraction, 4) for share in revision.shares}


def test_deploy_a_canary_raise_it_promote_it_and_go_back(home: Context, browser: Browser) -> None:
    first, second = fill(home).runs
    one = browser("read", "train")
    page = one.get(f"/deployments/support?target={second}").text
    assert f'<option value="{second}" selected>' in page
    data = {"target": second, "percent": "10", "expected_revision": "1"}
    answer = one.post("/deployments/support/deploy", data=data)
    assert answer.headers["location"] == "/deployments/support"
    assert shares(home) == {first: 0.9, second: 0.1}
    use = Use(project_id="default", key_id="k", model="support", target="", num_prompt_tokens=1, num_new_tokens=1)
    for target, number in ((first, 9), (second, 1)):
        for _ in range(number):
            home.usage.add(use.model_copy(update={"target": target}))
    page = one.get("/deployments/support").text
    assert f"{second} answers 10% of the users of support now." in page
    assert "Promote the canary" in page
    assert "Roll back to revision 1" in page
    one.post("/deployments/support/deploy", data=data | {"percent": "35.5", "expected_revision": "2"})
    assert shares(home) == {first: 0.645, second: 0.355}
    one.post("/deployments/support/promote", data={"expected_revision": "3"})
    assert shares(home) == {second: 1.0}
    one.post("/deployments/support/rollback", data={"expected_revision": "4"})
    assert shares(home) == {first: 0.645, second: 0.355}
    page = one.get("/deployments/support").text
    assert page.count("<td>k</td>") == 4  # who: the key that this browser came by
    one.post("/deployments/support/remove")
    assert one.get("/deployments/support").status_code == 404


def test_who_comes_second_is_told_and_decides_anew(home: Context, browser: Browser) -> None:
    first, second = fill(home).runs
    ada = Caller(key_id="key-20261125-093000-aaaaaa", name="Ada")
    deployments.deploy(home, ada, "support", second, canary=0.2)
    one = browser("read", "train")
    data = {"target": second, "percent": "50", "expected_revision": "1"}
    answer = one.post("/deployments/support/deploy", data=data)
    assert answer.status_code == 409
    assert "is at revision 2, not at revision 1" in answer.text
    assert "You decided on revision 1. Now it is revision 2 (canary by Ada" in answer.text
    assert 'name="expected_revision" value="2"' in answer.text
    assert 'value="50"' in answer.text
    for form in ("promote", "rollback"):
        answer = one.post(f"/deployments/support/{form}", data={"expected_revision": "1"})
        assert answer.status_code == 409
        assert "You decided on revision 1." in answer.text
    assert shares(home) == {first: 0.8, second: 0.2}


def test_what_cannot_be_is_said_beside_the_form(home: Context, browser: Browser) -> None:
    first, second = fill(home).runs
    one = browser("read", "train")
    for data, status in (
        ({"target": first, "percent": "10"}, 409),
        ({"target": "nothing", "percent": "10"}, 404),
        ({"target": second, "percent": "0"}, 422),
        ({"target": second, "percent": "101"}, 422),
        ({"target": second, "percent": "much"}, 422),
        ({"target": "", "percent": "100"}, 404),
    ):
        answer = one.post("/deployments/support/deploy", data={"expected_revision": "1"} | data)
        assert answer.status_code == status, data
    for number, status in (("0", 422), ("1", 404)):
        data = {"target": first, "expected_revision": number}
        assert one.post("/deployments/nothing/deploy", data=data).status_code == status
    answer = one.post("/deployments/support/rollback", data={"expected_revision": "1"})
    assert answer.status_code == 409
    assert "has no revision before" in answer.text
    assert shares(home) == {first: 1.0}


def test_all_traffic_goes_over_with_100_percent(home: Context, browser: Browser) -> None:
    _, second = fill(home).runs
    data = {"target": second, "percent": "100", "expected_revision": "1"}
    assert browser("read", "train").post("/deployments/support/deploy", data=data).status_code == 303
    assert shares(home) == {second: 1.0}
    assert deployments.show_deployment(home, ME, "support").deployment.revision.kind == "deploy"

"""Routes of the Tinker API without a process that trains: keys, scopes, projects, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.features.tinker_api.conftest import API, HeldTrainer, Visitor, new_session, post
from tests.vacuous import nonempty

from luthier.platform.auth.service import create_key, create_project
from luthier.platform.home.context import Context


def test_the_key_is_taken_from_the_header_of_the_sdk(home: Context, visitor: Visitor) -> None:
    visit, key = visitor(), create_key(home, "k", scopes=("train",))[1]
    for given, status in ((f"tml-{key}", 200), (key, 200), ("tml-wrong", 401), ("", 401)):
        assert visit.get(f"{API}/healthz", headers={"X-API-Key": given}).status_code == status
    # Elsewhere keys have no prefix; this one lacks the scope.
    for given, status in ((key, 403), (f"tml-{key}", 401)):
        assert visit.get("/v1/models", headers={"X-API-Key": given}).status_code == status


def test_scopes(home: Context, client: TestClient, visitor: Visitor) -> None:
    session = new_session(client)
    lora = {"rank": 4}
    asks, trains = visitor("infer"), visitor("train")
    model = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": lora}
    assert "expected: train" in str(post(asks, "/create_model", 403, **model))
    sampler = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tiny"}
    assert "expected: infer" in str(post(trains, "/create_sampling_session", 403, **sampler))
    assert asks.get(f"{API}/training_runs").status_code == 403
    assert post(client, "/create_sampling_session", **sampler)["sampling_session_id"] == f"{session}:sample:0"


def test_another_project_sees_no_session_and_no_request(
    home: Context, client: TestClient, visitor: Visitor, trainer: HeldTrainer
) -> None:
    session = new_session(client)
    model = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}}
    made = post(client, "/create_model", **model)["request_id"]
    assert post(client, "/create_model", **model)["request_id"] == made
    assert [request["op"] for request, _ in trainer.asked] == ["create"]
    create_project(home, "others")
    other = visitor("train", "infer", "read", project="others")
    for path, body in nonempty(
        [
            ("/session_heartbeat", {"session_id": session}),
            ("/create_model", model),
            ("/retrieve_future", {"request_id": made}),
            ("/get_info", {"model_id": f"{session}:train:0"}),
            ("/optim_step", {"model_id": f"{session}:train:0", "seq_id": 1, "adam_params": {}}),
            ("/save_weights", {"model_id": f"{session}:train:0", "seq_id": 1, "path": "x"}),
            ("/unload_model", {"model_id": f"{session}:train:0"}),
            (f"/sessions/{session}/finish", {}),
        ]
    ):
        assert post(other, path, 404, **body)["error"]["code"] == "not_found"
    assert other.get(f"{API}/sessions").json() == {"sessions": []}
    assert client.get(f"{API}/sessions").json() == {"sessions": [session]}


def test_the_seed_is_kept_and_drawn_where_none_is_given(client: TestClient, trainer: HeldTrainer) -> None:
    session = new_session(client)
    for number, seed in enumerate((5, None)):
        lora = {"rank": 4, "seed": seed}
        body = {"session_id": session, "model_seq_id": number, "base_model": "tiny", "lora_config": lora}
        post(client, "/create_model", **body)
    seeds = [request["options"]["seed"] for request, _ in trainer.asked]
    assert seeds[0] == 5
    assert 0 <= seeds[1] < 2**31


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/create_model", {"base_model": "tiny", "lora_config": {"rank": 0}}, "rank"),
        ("/create_model", {"base_model": "tiny", "lora_config": {"rank": 4, "dora": True}}, "dora"),
        ("/create_model", {"base_model": "none", "lora_config": {"rank": 4}}, "does not exist"),
        (
            "/create_model",
            {"base_model": "tiny", "lora_config": {"rank": 4}, "optimizer_config": {"type": "dimuon", "version": 1}},
            "dimuon",
        ),
        ("/load_weights", {"path": "tinker://x/weights", "optimizer": False}, "tinker://x/weights"),
        ("/load_weights", {"path": "tinker://x/sampler_weights/a", "optimizer": False}, "weights alone"),
        ("/load_weights", {"path": "tinker://x/weights/a", "optimizer": False}, "no checkpoint"),
        ("/load_weights", {"path": "tinker://x/weights/a", "optimizer": False, "weights_access_token": "t"}, "token"),
    ],
)
def test_what_is_not_there_is_refused_by_name(client: TestClient, path: str, body: dict[str, Any], words: str) -> None:
    body = {"session_id": new_session(client), "model_seq_id": 0} | body
    answer = client.post(f"{API}{path}", json=body)
    assert answer.status_code in (400, 404)
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("field", ["prompt_alt_tokens_k", "record_stability_info", "target_prompt_logprobs"])
def test_sampling_that_is_not_supported_is_refused_by_name(client: TestClient, field: str) -> None:
    value: Any = {"prompt_alt_tokens_k": 2, "record_stability_info": True, "target_prompt_logprobs": {}}[field]
    body = {
        "sampling_session_id": "s",
        "seq_id": 0,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1]}]},
        "sampling_params": {},
        field: value,
    }
    assert field in post(client, "/asample", 400, **body)["error"]["message"]


def test_labels_and_stop_texts_are_short(client: TestClient) -> None:
    for field, value in nonempty(
        [("user_metadata", {"x": "y" * 20_000}), ("tags", ["x"] * 200), ("display_name", "x" * 300)]
    ):
        assert field in post(client, "/create_session", 400, **{field: value})["error"]["message"]
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1]}]}
    body = {"sampling_session_id": "s", "seq_id": 0, "prompt": prompt, "sampling_params": {"stop": ["x"] * 65}}
    assert "stop" in post(client, "/asample", 400, **body)["error"]["message"]


def test_a_used_up_budget_is_the_result_of_a_request(
    home: Context, client: TestClient, visitor: Visitor, trainer: HeldTrainer
) -> None:
    key = create_key(home, "small", scopes=("infer",), tokens_per_day=1)[1]
    visit = visitor()
    visit.headers["X-API-Key"] = f"tml-{key}"
    session = new_session(visit)
    post(visit, "/create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tiny")
    body = {"sampling_session_id": f"{session}:sample:0", "sampling_params": {}}
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]}
    ids = [post(visit, "/asample", seq_id=number, prompt=prompt, **body)["request_id"] for number in range(2)]
    assert len(trainer.asked) == 1  # the first may go beyond the limit
    found = post(visit, "/retrieve_future", request_id=ids[1])
    assert found["category"] == "user"
    assert "tokens of" in found["error"]


def test_a_body_that_is_no_message_is_refused(client: TestClient) -> None:
    for headers, body in (
        ({"content-type": "application/json"}, b"{}"),
        ({"content-type": "application/x-protobuf"}, b"\xff"),
    ):
        answer = client.post(f"{API}/forward_backward", content=body, headers=headers)
        assert answer.status_code == 400
        assert "tinker 0.38" in answer.json()["error"]["message"]

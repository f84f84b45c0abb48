"""Which key may call which route of the Tinker API, and whose sessions and results it may touch."""

from __future__ import annotations

import re

from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from tests.features.tinker_api.conftest import API, HeldTrainer, Visitor, new_session, post
from tests.vacuous import nonempty

from luthier.core.access import SCOPES
from luthier.features.tinker_api import api, downloads
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

EITHER, TRAIN, INFER, READ = {"train", "infer"}, {"train"}, {"infer"}, {"read"}
CHECKPOINT = "/training_runs/{training_run_id}/checkpoints/{tinker_kind}/{tinker_name}"
NEEDED: dict[tuple[str, str], set[str]] = {
    ("POST", "/client/config"): EITHER,
    ("POST", "/client/dynamic_config"): EITHER,
    ("POST", "/telemetry"): EITHER,
    ("GET", "/healthz"): EITHER,
    ("GET", "/get_server_capabilities"): EITHER,
    ("POST", "/create_session"): EITHER,
    ("POST", "/session_heartbeat"): EITHER,
    ("POST", "/sessions/{tinker_session_id}/finish"): EITHER,
    ("POST", "/retrieve_future"): EITHER,
    ("POST", "/weights_info"): EITHER,
    ("GET", "/sessions"): READ,
    ("GET", "/sessions/{tinker_session_id}"): READ,
    ("GET", "/training_runs"): READ,
    ("GET", "/training_runs/{training_run_id}"): READ,
    ("GET", "/training_runs/{training_run_id}/checkpoints"): READ,
    ("GET", "/checkpoints"): READ,
    ("POST", "/create_model"): TRAIN,
    ("POST", "/get_info"): TRAIN,
    ("POST", "/unload_model"): TRAIN,
    ("POST", "/forward_backward"): TRAIN,
    ("POST", "/optim_step"): TRAIN,
    ("POST", "/save_weights"): TRAIN,
    ("POST", "/save_weights_for_sampler"): TRAIN,
    ("POST", "/save_weights_external"): TRAIN,
    ("POST", "/load_weights"): TRAIN,
    ("DELETE", CHECKPOINT): TRAIN,
    ("PUT", f"{CHECKPOINT}/ttl"): TRAIN,
    ("GET", f"{CHECKPOINT}/external_weights_urls"): TRAIN,
    ("POST", "/create_sampling_session"): INFER,
    ("POST", "/join_sampling_session"): INFER,
    ("GET", "/samplers/{sampler_id}"): INFER,
    ("POST", "/asample"): INFER,
}
"""The scopes of which one lets a key call a route."""


def test_each_route_needs_its_scope(visitor: Visitor) -> None:
    routes = [one for one in (*api.router.routes, *downloads.router.routes) if isinstance(one, APIRoute)]
    found = {
        (method, one.path.removeprefix(API))
        for one in routes
        for method in one.methods or ()
        if one.path.startswith(API)
    }
    assert found == NEEDED.keys(), "a new route has its line above"
    wrong = []
    for scope in nonempty(SCOPES):
        one = visitor(scope)
        for (method, path), needed in NEEDED.items():
            address = f"{API}{re.sub(r'{[^}]*}', 'x', path)}"
            answer = one.request(method, address, json=None if method == "GET" else {})
            if (answer.status_code == 403) != (scope != "admin" and scope not in needed):
                wrong.append((scope, method, path, answer.status_code))
    assert wrong == []


def test_a_key_that_may_only_sample_leaves_sessions_of_other_keys_alone(
    client: TestClient, visitor: Visitor, trainer: HeldTrainer
) -> None:
    session, asks = new_session(client), visitor("infer")
    post(client, "/create_model", session_id=session, model_seq_id=0, base_model="tiny", lora_config={"rank": 4})
    sampler = {"sampling_session_seq_id": 0, "base_model": "tiny"}
    for path, body in (
        (f"/sessions/{session}/finish", {}),
        ("/session_heartbeat", {"session_id": session}),
        ("/create_sampling_session", {"session_id": session} | sampler),
    ):
        refused = post(asks, path, 403, **body)["error"]["message"]
        assert "another key has opened" in refused
        assert "make a ServiceClient of your own" in refused
    assert client.get(f"{API}/sessions").json() == {"sessions": [session]}
    assert [request["op"] for request, _ in trainer.asked] == ["create"]
    # Its own it opens, keeps and ends; a key that may train ends any of the project.
    own = new_session(asks)
    post(asks, "/session_heartbeat", session_id=own)
    post(asks, "/create_sampling_session", session_id=own, **sampler)
    post(asks, f"/sessions/{own}/finish", 204)
    post(visitor("train"), f"/sessions/{session}/finish", 204)
    assert client.get(f"{API}/sessions").json() == {"sessions": []}


def test_a_result_is_fetched_with_the_scope_of_its_request(
    home: Context, client: TestClient, visitor: Visitor, trainer: HeldTrainer
) -> None:
    session, asks, trains = new_session(client), visitor("infer"), visitor("train")
    lora = {"rank": 4}
    body = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": lora}
    made = post(client, "/create_model", **body)["request_id"]
    post(client, "/create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tiny")
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]}
    body = {"sampling_session_id": f"{session}:sample:0", "sampling_params": {}, "seq_id": 0, "prompt": prompt}
    sampled = post(client, "/asample", **body)["request_id"]
    home.tinker_sessions.finish(home.tinker_sessions.session("default", session))  # all that waits is answered
    for one, request, status in ((asks, made, 403), (trains, sampled, 403), (trains, made, 200), (asks, sampled, 200)):
        post(one, "/retrieve_future", status, request_id=request)
    create_project(home, "others")
    for key in nonempty(visitor(scope, project="others") for scope in ("train", "infer", "admin")):
        for request in (made, sampled):
            post(key, "/retrieve_future", 404, request_id=request)

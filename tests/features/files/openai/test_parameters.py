"""Every parameter of the clients' own request types is in the table of docs/server.md, and is treated as it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, get_type_hints

import pytest
from anthropic.types import message_count_tokens_params, message_create_params, model_list_params
from docsite.parameters_table import as_markdown, parameters
from fastapi.routing import APIRoute
from openai.types import (
    batch_create_params,
    batch_list_params,
    completion_create_params,
    embedding_create_params,
    eval_create_params,
    eval_list_params,
    eval_update_params,
    file_create_params,
    file_list_params,
    moderation_create_params,
    upload_complete_params,
    upload_create_params,
)
from openai.types.chat import completion_create_params as chat_params
from openai.types.chat import completion_list_params, completion_update_params
from openai.types.chat.completions import message_list_params
from openai.types.conversations import (
    conversation_create_params,
    conversation_update_params,
    item_create_params,
    item_list_params,
    item_retrieve_params,
)
from openai.types.evals import run_create_params, run_list_params
from openai.types.evals.runs import output_item_list_params
from openai.types.fine_tuning import job_create_params, job_list_events_params, job_list_params
from openai.types.fine_tuning.alpha import grader_run_params, grader_validate_params
from openai.types.fine_tuning.checkpoints import permission_create_params, permission_list_params
from openai.types.fine_tuning.jobs import checkpoint_list_params
from openai.types.responses import (
    input_item_list_params,
    input_token_count_params,
    response_create_params,
    response_retrieve_params,
)
from openai.types.uploads import part_create_params
from pydantic import BaseModel, ValidationError
from tests.fixtures.api import Visitor
from tests.vacuous import nonempty

from luthier.core.records.fine_tuning import FineTuningRequest
from luthier.features.batches import api as batches
from luthier.features.batches.records import BatchRequest
from luthier.features.evals_api import api as evals
from luthier.features.evals_api.records import EvalRequest, EvalUpdate, RunRequest
from luthier.features.files import api as files
from luthier.features.files import uploads_api as uploads
from luthier.features.finetuning_api import api as fine_tuning
from luthier.features.serving import graders
from luthier.features.serving.api import checkpoints, conversations, models, stored
from luthier.features.serving.api.chat import ChatBody
from luthier.features.serving.api.completions import CompletionBody
from luthier.features.serving.api.message_body import MessagesBody, PromptBody
from luthier.features.serving.api.moderations import ModerationBody
from luthier.features.serving.api.pooling import EmbeddingBody
from luthier.features.serving.api.responses import api as responses
from luthier.features.serving.api.responses.body import ResponseBody, TokenCountBody
from luthier.platform.http.routes import query_parameters

TYPES: Final[dict[str, tuple[Any, ...]]] = {
    "chat": (chat_params.CompletionCreateParamsNonStreaming, chat_params.CompletionCreateParamsStreaming),
    "completions": (
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    ),
    "embeddings": (embedding_create_params.EmbeddingCreateParams,),
    "files": (file_create_params.FileCreateParams,),
    "files list": (file_list_params.FileListParams,),
    "uploads": (upload_create_params.UploadCreateParams,),
    "upload parts": (part_create_params.PartCreateParams,),
    "upload completions": (upload_complete_params.UploadCompleteParams,),
    "checkpoint permissions": (permission_create_params.PermissionCreateParams,),
    "checkpoint permissions list": (permission_list_params.PermissionListParams,),
    "grader runs": (grader_run_params.GraderRunParams,),
    "grader checks": (grader_validate_params.GraderValidateParams,),
    "stored update": (completion_update_params.CompletionUpdateParams,),
    "stored messages list": (message_list_params.MessageListParams,),
    "jobs": (job_create_params.JobCreateParams,),
    "jobs list": (job_list_params.JobListParams,),
    "job events list": (job_list_events_params.JobListEventsParams,),
    "job checkpoints list": (checkpoint_list_params.CheckpointListParams,),
    "stored list": (completion_list_params.CompletionListParams,),
    "evals": (eval_create_params.EvalCreateParams,),
    "evals update": (eval_update_params.EvalUpdateParams,),
    "evals list": (eval_list_params.EvalListParams,),
    "eval runs": (run_create_params.RunCreateParams,),
    "eval runs list": (run_list_params.RunListParams,),
    "output items list": (output_item_list_params.OutputItemListParams,),
    "responses": (
        response_create_params.ResponseCreateParamsNonStreaming,
        response_create_params.ResponseCreateParamsStreaming,
    ),
    "response counts": (input_token_count_params.InputTokenCountParams,),
    "response": (
        response_retrieve_params.ResponseRetrieveParamsNonStreaming,
        response_retrieve_params.ResponseRetrieveParamsStreaming,
    ),
    "response items list": (input_item_list_params.InputItemListParams,),
    "conversations": (conversation_create_params.ConversationCreateParams,),
    "conversation update": (conversation_update_params.ConversationUpdateParams,),
    "conversation items": (item_create_params.ItemCreateParams,),
    "conversation items list": (item_list_params.ItemListParams,),
    "conversation item": (item_retrieve_params.ItemRetrieveParams,),
    "batches": (batch_create_params.BatchCreateParams,),
    "batches list": (batch_list_params.BatchListParams,),
    "moderations": (moderation_create_params.ModerationCreateParams,),
    "messages": (
        message_create_params.MessageCreateParamsNonStreaming,
        message_create_params.MessageCreateParamsStreaming,
    ),
    "messages tokens": (message_count_tokens_params.MessageCountTokensParams,),
    "messages models": (model_list_params.ModelListParams,),
}
BODIES: Final[dict[str, type[BaseModel]]] = {
    "chat": ChatBody,
    "completions": CompletionBody,
    "embeddings": EmbeddingBody,
    "jobs": FineTuningRequest,
    "uploads": uploads.UploadRequest,
    "upload completions": uploads.CompleteRequest,
    "checkpoint permissions": checkpoints.PermissionRequest,
    "grader runs": graders.GraderRun,
    "grader checks": graders.GraderCheck,
    "stored update": stored.MetadataBody,
    "evals": EvalRequest,
    "evals update": EvalUpdate,
    "eval runs": RunRequest,
    "batches": BatchRequest,
    "responses": ResponseBody,
    "response counts": TokenCountBody,
    "conversations": conversations.ConversationBody,
    "conversation update": conversations.ConversationUpdateBody,
    "conversation items": conversations.ItemsBody,
    "moderations": ModerationBody,
    "messages": MessagesBody,
    "messages tokens": PromptBody,
}
GRADER: Final = {"type": "string_check", "name": "n", "input": "i", "reference": "r", "operation": "eq"}
LEAST: Final[dict[str, dict[str, Any]]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "a"}]},
    "completions": {"model": "m", "prompt": "a"},
    "embeddings": {"model": "m", "input": "a"},
    "jobs": {"model": "m", "training_file": "f"},
    "uploads": {"bytes": 1, "filename": "f", "mime_type": "m", "purpose": "batch"},
    "upload completions": {"part_ids": ["p"]},
    "checkpoint permissions": {"project_ids": ["p"]},
    "grader runs": {"grader": GRADER, "model_sample": "s"},
    "grader checks": {"grader": GRADER},
    "stored update": {"metadata": None},
    "evals": {
        "data_source_config": {"type": "logs"},
        "testing_criteria": [{"type": "python", "name": "n", "source": "s"}],
    },
    "evals update": {},
    "eval runs": {"data_source": {"type": "jsonl", "source": {"type": "file_id", "id": "f"}}},
    "batches": {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"},
    "responses": {"model": "m", "input": "a"},
    "response counts": {"model": "m", "input": "a"},
    "conversations": {},
    "conversation update": {"metadata": None},
    "conversation items": {"items": [{"role": "user", "content": "a"}]},
    "moderations": {"input": "a"},
    "messages": {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]},
    "messages tokens": {"model": "m", "messages": [{"role": "user", "content": "a"}]},
}
# Of each accepted parameter: values that pass, and values that are refused.
SHAPES: Final[dict[str, tuple[list[Any], list[Any]]]] = {
    "prompt_cache_key": (["k"], [1, {}, "k" * 1025]),
    "prompt_cache_retention": (["in_memory", "in-memory", "24h"], ["for ever", 24, {}]),
    "prompt_cache_options": ([{}, {"mode": "implicit", "ttl": "30m"}], [{"mode": "x"}, {"other": 1}, "x", []]),
    "prediction": ([{"type": "content", "content": "a"}], [{}, "a", {"type": "x", "content": "a"}]),
    "service_tier": (["auto", "default"], ["flex", "priority", "scale", "fast", "", 1, {}]),
    "verbosity": (["medium"], ["low", "high", "", 1]),
    "context_management": (
        [[], [{"type": "compaction"}], [{"type": "compaction", "compact_threshold": 1000}]],
        [{}, [{"type": "other"}], [{}], "x"],
    ),
    "background": ([False], [True, 1, ""]),
    "max_tool_calls": ([1, 100], [0, "many"]),
    "cache_control": (
        [{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}],
        [{}, "x", {"type": "ephemeral", "a": 1}],
    ),
    "speed": (["standard"], ["fast", "", 1]),
    "messages service_tier": (["auto", "standard_only"], ["default", "flex", "", 1, {}]),
}
# What asks for a refused parameter, an empty value among them.
WISHES: Final[dict[str, list[Any]]] = {
    "audio": [{}, {"voice": "alloy", "format": "wav"}],
    "moderation": [{}, {"model": "omni-moderation-latest"}, False],
    "web_search_options": [{}, {"search_context_size": "low"}],
    "suffix": ["", "end"],
    "access_programs": [{}, {"cyber": "standard"}],
    "background_options": [{}],
    "image": [{}],
    "prompt": [{"id": "pmpt_1"}],
    "personality": ["friendly"],
    "container": ["", "c", {"id": "c"}],
    "diagnostics": [{}],
    "inference_geo": ["eu"],
}


TABLE: Final = list(parameters())
ROUTES: Final = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "moderations": "/v1/moderations",
    "jobs": "/v1/fine_tuning/jobs",
    "uploads": "/v1/uploads",
    "upload completions": "/v1/uploads/upload_1/complete",
    "checkpoint permissions": "/v1/fine_tuning/checkpoints/c/permissions",
    "grader runs": "/v1/fine_tuning/alpha/graders/run",
    "grader checks": "/v1/fine_tuning/alpha/graders/validate",
    "stored update": "/v1/chat/completions/chatcmpl-1",
    "evals": "/v1/evals",
    "batches": "/v1/batches",
    "responses": "/v1/responses",
    "response counts": "/v1/responses/input_tokens",
    "conversations": "/v1/conversations",
    "conversation update": "/v1/conversations/conv_1",
    "conversation items": "/v1/conversations/conv_1/items",
    "messages": "/v1/messages",
    "messages tokens": "/v1/messages/count_tokens",
    "messages models": "/v1/models",
}
# What the client sends as headers.
HEADERS: Final = {"user_profile_id": "anthropic-user-profile-id", "workspace_id": "anthropic-workspace-id"}


def states(state: str) -> list[tuple[str, str]]:
    return [(request, name) for request, name, found in TABLE if found == state]


def test_the_documentation_has_the_table() -> None:
    text = (Path(__file__).parents[4] / "docs" / "server.md").read_text(encoding="utf-8")
    assert as_markdown() in text, "write it there: `as_markdown()` of docsite/parameters_table.py"


@pytest.mark.parametrize("request_", TYPES)
def test_the_table_holds_every_parameter_of_the_client_once(request_: str) -> None:
    theirs = {name for one in TYPES[request_] for name in get_type_hints(one)}
    ours = [name for request, name, _ in TABLE if request == request_]
    assert theirs
    assert sorted(ours) == sorted(theirs)
    assert {request for request, _, _ in TABLE} == set(TYPES)


def query_names(router: Any, path: str) -> set[str]:
    exact, own = query_parameters(
        next(one for one in router.routes if isinstance(one, APIRoute) and one.path == path and "GET" in one.methods)
    )
    return {name.partition("[")[0] for name in exact | own}


def test_what_is_supported_has_a_place() -> None:
    places = {request: set(body.model_fields) for request, body in BODIES.items()}
    places["files"] = {name.partition("[")[0] for name in files._FIELDS} | {"file"}
    places["files list"] = query_names(files.router, "/v1/files")
    jobs = "/v1/fine_tuning/jobs"
    places["jobs list"] = query_names(fine_tuning.router, jobs)
    places["job events list"] = query_names(fine_tuning.router, f"{jobs}/{{job_id}}/events")
    places["job checkpoints list"] = query_names(fine_tuning.router, f"{jobs}/{{job_id}}/checkpoints")
    places["upload parts"] = {"data"}
    permissions = "/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions"
    places["checkpoint permissions list"] = query_names(checkpoints.router, permissions)
    places["stored list"] = query_names(stored.router, "/v1/chat/completions")
    places["stored messages list"] = query_names(stored.router, "/v1/chat/completions/{completion_id}/messages")
    places["evals list"] = query_names(evals.router, "/v1/evals")
    runs = "/v1/evals/{eval_id}/runs"
    places["eval runs list"] = query_names(evals.router, runs)
    # The client takes eval_id with the others, and puts it into the address.
    places["output items list"] = query_names(evals.router, f"{runs}/{{run_id}}/output_items") | {"eval_id"}
    places["response items list"] = query_names(responses.router, "/v1/responses/{response_id}/input_items")
    places["response"] = query_names(responses.router, "/v1/responses/{response_id}")
    items = "/v1/conversations/{conversation_id}/items"
    # `include` is in the query of each, and the client puts conversation_id into the address.
    places["conversation items"] |= {"include"}
    places["conversation items list"] = query_names(conversations.router, items)
    places["conversation item"] = query_names(conversations.router, f"{items}/{{item_id}}") | {"conversation_id"}
    places["batches list"] = query_names(batches.router, "/v1/batches")
    places["messages models"] = set(models.PARAMETERS)
    assert len(states("supported")) > 40
    for request, name in states("supported"):
        assert name in places[request], (request, name)


def wrong_places(request: str, wishes: dict[str, Any]) -> set[str]:
    """The fields that a request is refused for; none where it passes."""
    try:
        BODIES[request].model_validate(LEAST[request] | wishes)
    except ValidationError as error:
        return {str(one["loc"][0]) for one in error.errors()}
    return set()


@pytest.mark.parametrize(("request_", "name"), states("accepted"))
def test_what_is_accepted_has_a_shape(request_: str, name: str) -> None:
    if name == "best_of":  # held against `n` by the route
        assert wrong_places(request_, {name: "two"}) == {name}
        return
    right, wrong = SHAPES.get(f"{request_} {name}", SHAPES.get(name, ([], [])))
    for value in (None, *right):
        assert wrong_places(request_, {name: value}) == set(), value
    for value in nonempty(wrong):
        assert wrong_places(request_, {name: value}) == {name}, value


def test_the_server_refuses_by_name_what_it_does_not_support(visitor: Visitor) -> None:
    client = visitor("admin")
    client.headers["anthropic-version"] = "2023-06-01"
    refused = states("refused")
    assert {request for request, _ in refused} <= set(ROUTES)
    wishes = [(request, name, value) for request, name in refused for value in WISHES.get(name, ["value"])]
    # And a name that no API has, of every request with a body.
    wishes += [(request, "repetition_penalty", 1.1) for request in ROUTES if request in BODIES]
    for request, name, value in nonempty(wishes):
        if name in HEADERS:
            send = client.post if request in BODIES else client.get
            body = {"json": LEAST[request]} if request in BODIES else {}
            answer = send(ROUTES[request], headers={HEADERS[name]: "value"}, **body)
        else:
            answer = client.post(ROUTES[request], json=LEAST[request] | {name: value})
        error = answer.json()["error"]
        assert (answer.status_code, HEADERS.get(name, name) in error["message"]) == (400, True), (request, name, error)


@pytest.mark.parametrize(("request_", "name"), [one for one in states("refused") if one[1] not in HEADERS])
def test_what_is_refused_is_refused_by_name_however_it_is_asked_for(request_: str, name: str) -> None:
    assert wrong_places(request_, {name: None}) == set()
    for value in nonempty(WISHES[name]):
        assert wrong_places(request_, {name: value}) == {name}, value


@pytest.mark.parametrize("request_", BODIES)
def test_what_nobody_knows_is_refused_by_name(request_: str) -> None:
    assert wrong_places(request_, {"repetition_penalty": 1.1}) == {"repetition_penalty"}


@pytest.mark.parametrize("request_", ["chat", "completions"])
def test_a_stream_is_not_padded_in_silence(request_: str) -> None:
    assert wrong_places(request_, {"stream": True, "stream_options": {"include_usage": True}}) == set()
    assert wrong_places(request_, {"stream_options": {"include_obfuscation": True}}) == {"stream_options"}


def test_a_query_parameter_that_a_route_does_not_have_is_refused_by_name(visitor: Visitor) -> None:
    client = visitor("admin")
    document = client.get("/openapi.json").json()
    routes = [
        (path, method, {one["name"] for one in asked.get("parameters", ()) if one["in"] == "query"})
        for path, methods in document["paths"].items()
        for method, asked in methods.items()
        if path.startswith("/v1/")
    ]
    assert len(routes) > 40
    for path, method, known in nonempty(routes):
        place = re.sub(r"{[^}]*}", "x", path)
        answer = client.request(method, place, params={"min_p": 1})
        error = answer.json()["error"]
        assert (answer.status_code, "'min_p'" in error["message"]) == (400, True), (method, place, error)
        # What the document names is no reason to refuse; what it asks for may be missing.
        said = [client.request(method, place, params={name: "1"}).text for name in known]
        assert [text for text in said if "Unknown parameter" in text] == [], (method, place)
    for wrong in ("include", "limit[]"):  # the first is read as `include[]`
        answer = client.get("/v1/responses/resp_1/input_items", params={wrong: "1"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, wrong)
    conditions = {"metadata[use]": "a", "limit": 1}
    assert client.get("/v1/fine_tuning/jobs", params=conditions).status_code == 200


def test_the_clients_own_mark_of_beta_requests_is_taken(visitor: Visitor) -> None:
    client = visitor("admin")
    client.headers["anthropic-version"] = "2023-06-01"
    assert client.get("/v1/models?beta=true").status_code == 200
    assert client.get("/v1/models?beta=true&min_p=1").status_code == 400
    answer = client.post("/v1/messages?beta=true", json=LEAST["messages"])
    assert "beta" not in answer.json()["error"]["message"]
    assert "min_p" in client.post("/v1/messages?min_p=1", json=LEAST["messages"]).json()["error"]["message"]

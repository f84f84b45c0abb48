"""Random requests, right and wrong ones, from the server's own OpenAPI document, and an app to send them to.

Needs schemathesis, of the test tools. Asked of each answer: no 5xx; a status, content type, headers and body that the
document knows for that operation. `small_world` is an app over a home in which there is a little of everything.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.platform.home.context import Context

_MOST_FAILURES = 20


@dataclass
class FuzzReport:
    """The result of fuzzing.

    Attributes:
        statuses: answers by HTTP status.
        operations: requests by operation.
        failures: one example by operation and reason.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def num_requests(self) -> int:
        """All requests that were answered."""
        return self.operations.total()


def fuzz(
    app: Any,
    headers: Mapping[str, str],
    *,
    num_requests: int,
    seed: int = 0,
    known: Mapping[str, Sequence[str]] | None = None,
) -> FuzzReport:
    """Send about `num_requests` requests to an app in this process, shared out over all of its operations.

    Args:
        app: An ASGI app.
        headers: Sent with nine of ten requests.
        num_requests: About how many to send.
        seed: Of all draws.
        known: Values for path parameters by name, used in half of the requests, so that not all of them ask for what
            does not exist.

    Raises:
        RuntimeError: No request can be drawn from the document.
    """
    import schemathesis
    from schemathesis.core.result import Ok
    from schemathesis.generation import GenerationMode

    report = FuzzReport()
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    while report.num_requests < num_requests:
        # What is missing, over all operations in both modes, rounded up.
        num_each = max(1, -(-(num_requests - report.num_requests) // (2 * len(operations))))
        before = report.num_requests
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                _ask_one(operation, mode, headers, known or {}, report, num_each=num_each, seed=seed)
        if report.num_requests == before:
            raise RuntimeError("nothing could be drawn from the document")
        seed += 1
    return report


def _ask_one(
    operation: Any,
    mode: Any,
    headers: Mapping[str, str],
    known: Mapping[str, Sequence[str]],
    report: FuzzReport,
    *,
    num_each: int,
    seed: int,
) -> None:
    """Draw for one operation; some have so few different requests that fewer are sent."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st
    from hypothesis.errors import Unsatisfiable

    @seeded(seed)
    @settings(
        max_examples=num_each,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def ask(case: Any, data: st.DataObject) -> None:
        for name in sorted(set(case.path_parameters or ()) & set(known)):
            if data.draw(st.booleans()):
                case.path_parameters[name] = data.draw(st.sampled_from(list(known[name])))
        # One request in ten goes without a valid key, so that 401 is seen as well.
        if report.num_requests % 10:  # else with what is drawn for a key
            case.headers.update(headers)
        _ask(case, headers, report)

    try:
        ask()
    except Unsatisfiable:
        return  # nothing wrong can be asked of a route without parameters
    except Exception as error:  # noqa: BLE001 - a document from which nothing can be drawn is a finding, too
        report.failures.setdefault(f"{operation.label} {mode.name}", repr(error)[:500])


def _ask(case: Any, headers: Mapping[str, str], report: FuzzReport) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    label = case.operation.label
    asked = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]
    response = case.call(headers=dict(headers))
    report.operations[label] += 1
    report.statuses[response.status_code] += 1
    for check in asked:
        try:
            case.validate_response(response, checks=[check])
        # Groups of failures may derive from BaseException alone.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if len(report.failures) < _MOST_FAILURES:
                key = f"{label} {response.status_code} {check.__name__}"
                report.failures.setdefault(key, f"{error}\n{case.as_curl_command()[:500]}\n{response.text[:500]}")


@dataclass(frozen=True, slots=True)
class SmallWorld:
    """An app and what is in its home.

    Attributes:
        app: the FastAPI app.
        headers: with an admin's key.
        known: ids that are there, by the name of the path parameter.
    """

    app: Any
    headers: dict[str, str]
    known: dict[str, list[str]]


@contextmanager
def small_world(folder: Path) -> Iterator[SmallWorld]:
    """Make a home in the folder with a base model, a file and jobs without a worker, and the app that serves it."""
    from starlette.testclient import TestClient

    from luthier.features.models.service import pull_model
    from luthier.platform.auth.service import create_key
    from luthier.platform.home.context import Context
    from luthier.server.api import create_app
    from luthier.testing.tiny import make_tiny_model

    model = make_tiny_model(folder / "tiny")
    with Context.open(folder / "home") as context:
        pull_model(context, str(model))
        headers = {"Authorization": f"Bearer {create_key(context, 'fuzz', scopes=('admin',))[1]}"}
        app = create_app(context)
        with TestClient(app, headers=headers) as client:
            row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
            content = (json.dumps(row) + "\n").encode() * 12
            file = _ok(client.post("/v1/files", files={"file": ("rows.jsonl", content)}, data={"purpose": "fine-tune"}))
            asked = {"model": "tiny", "training_file": file["id"]}
            # Without a worker they stay queued: all that the API does with jobs can be asked of them.
            jobs = [_ok(client.post("/v1/fine_tuning/jobs", json=asked))["id"] for _ in range(3)]
            size = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 10, "mime_type": "application/jsonl"}
            upload = _ok(client.post("/v1/uploads", json=size))
            _ok(client.post("/api/v1/deployments", json={"name": "named", "target": "tiny"}))
            response = _stored_response(context)
            message = {"role": "user", "content": "a"}
            conversation = _ok(client.post("/v1/conversations", json={"items": [message]}))
            item = _ok(client.get(f"/v1/conversations/{conversation['id']}/items"))["data"][0]["id"]
            known = {
                "file_id": [file["id"]],
                "fine_tuning_job_id": jobs,
                "job_id": jobs,
                "upload_id": [upload["id"]],
                "model": ["tiny"],
                "name": ["named"],
                "response_id": [response],
                "conversation_id": [conversation["id"]],
                "item_id": [item],
            }
        yield SmallWorld(app, headers, known)


def _stored_response(context: Context) -> str:
    """A response as if a model had answered: none is loaded for this world."""
    from luthier.features.traffic.stored_responses import StoredResponse

    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}
    made = {"id": "resp_fuzz", "object": "response", "created_at": 1, "status": "completed", "model": "tiny"}
    answer: dict[str, Any] = {"output": [], "usage": {}, "metadata": {}}
    document = {"parameters": {"model": "tiny"}, "input": [item], "response": made | answer}
    one = StoredResponse(
        response_id="resp_fuzz",
        project_id="default",
        model="tiny",
        user_digest="",
        earlier_ids=(),
        labels={},
        document=document,
    )
    return context.stored_responses.add(one).response_id


def _ok(response: Any) -> Any:
    if response.status_code >= 300:
        raise RuntimeError(f"{response.request.method} {response.request.url}: {response.status_code} {response.text}")
    return response.json()

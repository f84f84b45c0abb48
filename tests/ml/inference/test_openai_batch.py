"""Prompts by OpenAI's Batch API: paid for once whatever is killed, each failure told, and nothing left behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from luthier.core.errors import ConflictError, LuthierError, OverlongError, RequestError, WorkError
from luthier.core.ports import Prompt, SilentProgress
from luthier.core.system.files import file_lock
from luthier.ml.inference.engine_wrappers import CachedEngine
from luthier.ml.inference.openai import batch_api
from luthier.ml.inference.openai.batch_api import OpenAIBatchEngine
from luthier.ml.inference.openai.http import OpenAIHttpEngine
from luthier.testing.engine_contract import ask

URL, KEY, SILENT = "https://provider.example/v1", "sk-very-secret-key", SilentProgress()
Line = dict[str, Any]


def completion(body: Line, text: str = "") -> Line:
    asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    text = text or f"You said {asked}"
    choice = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
    usage = {"prompt_tokens": len(asked.split()), "completion_tokens": len(text.split())}
    return {"choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": usage}


class Provider:
    """As much of the Files, Batches and completions API as the engine uses.

    Attributes:
        answer: What becomes of a line: a body of status 200, a status with an error, or an error without a response.
        status: Of the next batches when they have ended, in turn; `completed` once there is none.
        num_looks: How often a batch is `in_progress` before its end.
        troubles: Instead of the answer to a request by method and path, in turn; `lost`: it counts, and has no answer.
    """

    def __init__(self) -> None:
        self.answer: Callable[[Line], Any] = lambda line: completion(line["body"])
        self.statuses: list[str] = []
        self.num_looks = 0
        self.troubles: dict[str, list[Any]] = {}
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Line] = {}
        self.asked = Counter[str]()
        self.live: list[Line] = []
        self.deleted: list[str] = []
        self.has_api = True

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        path = request.url.path.removeprefix("/v1/")
        trouble = next(iter(self.troubles.get(f"{request.method} {path}", ())), None)
        if trouble is not None:
            self.troubles[f"{request.method} {path}"].pop(0)
            if trouble != "lost":
                status, answer_headers, content = trouble
                return httpx2.Response(status, headers=answer_headers, content=content)
        if path.endswith("completions"):
            body = json.loads(request.content)
            self.live.append(body)
            return httpx2.Response(200, json=completion(body))
        if not self.has_api:
            return httpx2.Response(404, json={"detail": "Not Found"})
        answer = self._respond(request, path)
        if trouble == "lost":
            raise httpx2.ReadTimeout("no answer", request=request)
        return answer

    def _respond(self, request: httpx2.Request, path: str) -> httpx2.Response:
        name = path.removeprefix("files").removeprefix("batches").strip("/").partition("/")[0]
        if path == "files":
            lines = [line for line in request.content.splitlines() if line.startswith(b"{")]
            return httpx2.Response(200, json={"id": self._add(lines)})
        if path.startswith("files/") and request.method == "DELETE":
            self.deleted.append(name)
            return httpx2.Response(200, json={"id": name, "deleted": self.files.pop(name, None) is not None})
        if path.startswith("files/"):
            return httpx2.Response(200, content=self.files[name])
        if path == "batches" and request.method == "POST":
            asked = json.loads(request.content)
            made = {"id": f"batch_{len(self.batches)}", "status": "in_progress", "looks": self.num_looks, **asked}
            self.batches[made["id"]] = made
            return httpx2.Response(200, json=made)
        if path == "batches":
            newest = list(reversed(self.batches.values()))
            start = (
                1 + [one["id"] for one in newest].index(request.url.params["after"])
                if "after" in request.url.params
                else 0
            )
            page = newest[start : start + 1]  # a page of one: the engine has to turn it
            return httpx2.Response(200, json={"data": page, "has_more": start + 1 < len(newest)})
        return httpx2.Response(200, json=self._looked_at(self.batches[name]))

    def _add(self, lines: list[bytes]) -> str:
        name = f"file_{len(self.files) + len(self.deleted)}"
        self.files[name] = b"".join(line + b"\n" for line in lines)
        return name

    def _looked_at(self, one: Line) -> Line:
        if one["status"] != "in_progress":
            return one
        if one["looks"]:
            one["looks"] -= 1
            return one
        one["status"] = self.statuses.pop(0) if self.statuses else "completed"
        if one["status"] == "failed":
            one["errors"] = {"data": [{"message": f"bad file, key {KEY}"}]}
            return one
        made: dict[str, list[bytes]] = {"output_file_id": [], "error_file_id": []}
        for line in map(json.loads, self.files[one["input_file_id"]].splitlines()):
            self.asked[line["custom_id"]] += 1
            found = self.answer(line)
            if found is None:
                continue
            response, error = {"status_code": 200, "body": found}, None
            if isinstance(found, tuple):
                response, error = {"status_code": found[0], "body": {"error": {"message": found[1]}}}, None
            elif isinstance(found, str):
                response, error = None, {"code": found, "message": "not executed"}  # type: ignore[assignment]
            kind = "output_file_id" if response is not None and response["status_code"] == 200 else "error_file_id"
            document = {"custom_id": line["custom_id"], "response": response, "error": error}
            made[kind].append(json.dumps(document).encode())
        for kind, lines in made.items():
            one[kind] = self._add(lines) if lines else None
        return one


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def opened(provider: Provider, tmp_path: Path) -> Callable[..., OpenAIBatchEngine]:
    """A new engine, as of another process."""

    def open_engine(**options: Any) -> OpenAIBatchEngine:
        headers = {"Authorization": f"Bearer {KEY}"}
        live = OpenAIHttpEngine(URL, "m", api_key=KEY, first_pause_seconds=0.0)
        made = OpenAIBatchEngine(
            live, tmp_path / "batches", api_key=KEY, look_seconds=0.0, first_pause_seconds=0.0, **options
        )
        live._client = httpx2.Client(transport=httpx2.MockTransport(provider), headers=headers)
        made._client = httpx2.Client(transport=httpx2.MockTransport(provider), headers=headers)
        return made

    return open_engine


PROMPTS = [ask(f"question {number}", max_new_tokens=9) for number in range(6)]
TEXTS = [f"You said question {number}" for number in range(6)]


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "batches").iterdir() if not path.name.startswith("."))


def test_a_file_of_requests_becomes_answers_in_order(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path
) -> None:
    provider.num_looks = 2
    kept: list[str] = []
    engine = opened(keep=lambda _, made: kept.append(made.text))
    plain = Prompt(text="Once", max_new_tokens=4)
    found = engine.generate([*PROMPTS, plain, PROMPTS[0]], SILENT)
    assert [one.text for one in found] == [*TEXTS, "You said Once", TEXTS[0]]
    assert (found[1].num_prompt_tokens, found[1].num_new_tokens) == (2, 4)
    # The first one by itself: it shows a wrong key or model before a file is uploaded.
    assert [body["messages"][0]["content"] for body in provider.live] == ["question 0"]
    chat, text = provider.batches.values()
    assert (chat["endpoint"], text["endpoint"]) == ("/v1/chat/completions", "/v1/completions")
    assert chat["completion_window"] == "24h"
    assert set(provider.asked.values()) == {1}
    assert len(provider.asked) == 6
    assert Counter(kept) == Counter([*TEXTS, "You said Once", TEXTS[0]])
    # Nothing of it stays, here or there.
    assert left_behind(tmp_path) == []
    assert provider.files == {}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["uploading", "making", "recording", "waiting", "taking"])
def test_a_kill_at_any_moment_pays_for_nothing_twice(
    opened: Callable[..., OpenAIBatchEngine],
    provider: Provider,
    tmp_path: Path,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Store:
        """The cache of generations, which outlives processes."""

        def __init__(self) -> None:
            self.kept: dict[str, Any] = {}

        def find(self, keys: Any) -> dict[str, Any]:
            return {key: self.kept[key] for key in keys if key in self.kept}

        def keep(self, new: Any, *, engine: str) -> None:
            if moment == "taking" and len(self.kept) == 3 and not provider.deleted:
                provider.deleted.append("once")
                raise Killed
            self.kept.update(new)

    store = Store()

    def teacher() -> CachedEngine:
        return CachedEngine(lambda keep: opened(keep=keep), store, name="m", identity={"m": 1})

    def die(*_: Any, **__: Any) -> Any:
        raise Killed

    targets = {"uploading": "_made", "recording": "_record", "waiting": "_ended"}
    with monkeypatch.context() as patched:
        if moment in targets:
            patched.setattr(OpenAIBatchEngine, targets[moment], die)
        if moment == "making":
            provider.troubles["POST batches"] = ["lost"]
            patched.setattr(OpenAIBatchEngine, "_listed", die)
        with pytest.raises(Killed):
            teacher().generate_each(PROMPTS, SILENT)
    found = teacher().generate_each(PROMPTS, SILENT)
    assert [getattr(one, "text", one) for one in found] == TEXTS
    assert len(provider.batches) == 1, "none is made twice"
    assert set(provider.asked.values()) == {1}
    assert left_behind(tmp_path) == []


def test_a_batch_whose_answer_was_lost_is_found_again(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider
) -> None:
    provider.troubles["POST batches"] = ["lost"]
    provider.troubles["GET batches/batch_0"] = [(503, {}, b"busy"), (429, {"Retry-After": "0"}, b"slow")]
    assert [one.text for one in opened().generate(PROMPTS, SILENT)] == TEXTS
    assert len(provider.batches) == 1


def test_requests_that_expire_or_meet_a_busy_server_are_in_another_batch(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider
) -> None:
    def answer(line: Line) -> Any:
        asked, num = line["body"]["messages"][0]["content"], provider.asked[line["custom_id"]]
        if asked == "question 2" and num == 1:
            return "batch_expired"
        if asked == "question 3" and num < 3:
            return 500, "busy"
        if asked == "question 4" and num == 1:
            return None
        return completion(line["body"])

    provider.answer, provider.statuses = answer, ["expired"]
    assert [one.text for one in opened().generate(PROMPTS, SILENT)] == TEXTS
    assert len(provider.batches) == 3
    assert sorted(provider.asked.values()) == [1, 1, 2, 2, 3]


def test_a_request_that_never_has_an_answer_ends_with_its_reason(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider
) -> None:
    kept: list[str] = []
    provider.answer = lambda line: (500, "broken") if "3" in str(line["body"]) else completion(line["body"])
    with pytest.raises(WorkError, match="no answer after 3 batches; the last: broken"):
        opened(keep=lambda _, made: kept.append(made.text)).generate(PROMPTS, SILENT)
    assert sorted(kept) == sorted(set(TEXTS) - {TEXTS[3]})


def test_what_is_refused_is_not_sent_again(opened: Callable[..., OpenAIBatchEngine], provider: Provider) -> None:
    refusal = (400, "This model's maximum context length is 4096 tokens")
    provider.answer = lambda line: refusal if "2" in str(line["body"]["messages"]) else completion(line["body"])
    engine, kept = opened(), dict[str, Any]()

    class Store:
        def find(self, keys: Any) -> dict[str, Any]:
            return {key: kept[key] for key in keys if key in kept}

        def keep(self, new: Any, *, engine: str) -> None:
            kept.update(new)

    def keep(prompt: Prompt, made: Any) -> None:
        teacher._keep(prompt, made)

    engine._keep = keep
    teacher = CachedEngine(lambda _: engine, Store(), name="m", identity={})
    found = teacher.generate_each([*PROMPTS, ask("question 20", max_new_tokens=9)], SILENT)
    assert [type(one) for one in found].count(OverlongError) == 2
    assert [getattr(one, "text", None) for one in found[:2]] == TEXTS[:2]
    assert len(provider.batches) == 1, "the others of the call are not asked for again"
    provider.answer = lambda _: (400, "unknown parameter")
    with pytest.raises(RequestError, match="HTTP 400: unknown parameter"):
        opened().generate(PROMPTS, SILENT)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [("failed", RequestError, "has failed as a whole: bad file"), ("cancelled", WorkError, "was cancelled")],
)
def test_a_batch_that_ends_badly_is_not_made_again_in_silence(
    opened: Callable[..., OpenAIBatchEngine],
    provider: Provider,
    tmp_path: Path,
    status: str,
    kind: type[LuthierError],
    words: str,
) -> None:
    provider.statuses, provider.answer = [status], lambda _: None
    with pytest.raises(kind, match=words) as found:
        opened().generate(PROMPTS, SILENT)
    assert KEY not in str(found.value)
    assert len(provider.batches) == 1
    assert left_behind(tmp_path) == []


def test_an_address_without_the_api_is_refused(opened: Callable[..., OpenAIBatchEngine], provider: Provider) -> None:
    provider.has_api = False
    with pytest.raises(RequestError, match="has no Batch API"):
        opened().generate(PROMPTS, SILENT)


def test_files_are_within_the_limits_of_the_api(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_api, "MAX_REQUESTS", 2)
    assert [one.text for one in opened().generate(PROMPTS, SILENT)] == TEXTS
    assert len(provider.batches) == 3
    monkeypatch.setattr(batch_api, "MAX_BYTES", 10)
    assert [one.text for one in opened().generate(PROMPTS, SILENT)] == TEXTS
    assert len(provider.batches) == 3 + 5


def test_answers_that_another_call_wants_stay_where_they_are(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(OpenAIBatchEngine, "_ended", die)
        with pytest.raises(Killed):
            opened().generate(PROMPTS, SILENT)
    assert [one.text for one in opened().generate(PROMPTS[2:4], SILENT)] == TEXTS[2:4]
    assert {Path(name).suffix for name in left_behind(tmp_path)} == {".json", ".jsonl", ".taken"}
    assert [one.text for one in opened().generate(PROMPTS, SILENT)] == TEXTS
    assert (len(provider.batches), left_behind(tmp_path)) == (1, [])


def test_a_batch_that_the_provider_has_forgotten_is_named_and_can_be_given_up(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(OpenAIBatchEngine, "_ended", die)
        with pytest.raises(Killed):
            opened().generate(PROMPTS, SILENT)
    provider.troubles["GET batches/batch_0"] = [(404, {}, b'{"error": {"message": "No such batch"}}')]
    with pytest.raises(RequestError, match="No such batch") as found:
        opened().generate(PROMPTS, SILENT)
    (requests,) = (tmp_path / "batches").glob("*.jsonl")
    assert found.value.do.endswith(f"remove {requests}")
    requests.unlink()
    assert [one.text for one in opened().generate(PROMPTS, SILENT)] == TEXTS
    assert len(provider.batches) == 2


def test_one_process_at_a_time_asks_a_model(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_api, "_LOCK_SECONDS", 0.0)
    opened().generate(PROMPTS, SILENT)
    (lock,) = (tmp_path / "batches").glob(".*.lock")
    with file_lock(lock, what="it", timeout_seconds=0.0), pytest.raises(ConflictError):
        opened().generate(PROMPTS, SILENT)
    assert opened().generate([], SILENT) == []
    with pytest.raises(RequestError):
        opened().score([None], SILENT)  # type: ignore[list-item]

"""Prompts by OpenAI's Batch API: paid for once whatever is killed, each failure told, and nothing left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.fixtures.batch_provider import KEY, Line, Provider, completion

from luthier.core.errors import (
    ConflictError,
    LuthierError,
    OverlongError,
    RequestError,
    StillRunningError,
    WorkError,
)
from luthier.core.ports import Prompt, SilentProgress
from luthier.core.system.files import file_lock
from luthier.ml.inference.engine_wrappers import CachedEngine
from luthier.ml.inference.openai import batch_api, batch_records
from luthier.ml.inference.openai.batch_api import OpenAIBatchEngine
from luthier.ml.inference.openai.http import NUM_ATTEMPTS, OpenAIHttpEngine
from luthier.testing.engine_contract import ask

URL, SILENT = "https://provider.example/v1", SilentProgress()


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


def test_what_is_refused_is_not_sent_again_by_a_later_process(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = {"1": (400, "maximum context length is 4096 tokens"), "2": (400, "no such role"), "3": (401, "no key")}

    def answer(line: Line) -> Any:
        number = line["body"]["messages"][0]["content"].removeprefix("question ")
        return refusals.get(number) or completion(line["body"])

    provider.answer = answer
    with pytest.raises(RequestError, match="HTTP 400: no such role"):
        opened().generate(PROMPTS, SILENT)
    sent = Counter(provider.asked)
    asked_live = len(provider.live)
    with pytest.raises(RequestError, match=r"no such role \(refused at .*, and not sent again\)") as again:
        opened().generate([PROMPTS[2]], SILENT)
    assert "remove " in again.value.do
    with pytest.raises(OverlongError, match=r"maximum context length is 4096 tokens \(refused at "):
        opened().generate([PROMPTS[1]], SILENT)
    assert (provider.asked, len(provider.live), len(provider.batches)) == (sent, asked_live, 1)
    assert KEY not in "".join(path.read_text() for path in (tmp_path / "batches").glob(".*.refused"))
    # What another key may be allowed is sent again, and so is everything after a while, or when the file is removed.
    refusals.clear()
    assert [one.text for one in opened().generate([PROMPTS[3]], SILENT)] == [TEXTS[3]]
    with monkeypatch.context() as later:
        later.setattr(batch_records, "_REMEMBERED_SECONDS", 0.0)
        assert [one.text for one in opened().generate([PROMPTS[2]], SILENT)] == [TEXTS[2]]
    (remembered,) = (tmp_path / "batches").glob(".*.refused")
    with remembered.open("ab") as file:
        file.write(b'{"custom_id": "cut o')
    with pytest.raises(OverlongError, match="refused at"):
        opened().generate([PROMPTS[1]], SILENT)
    remembered.unlink()
    assert [one.text for one in opened().generate([PROMPTS[1]], SILENT)] == [TEXTS[1]]


ACCOUNT_REFUSALS = (
    "Billing hard limit has been reached",
    "Your account is not active, please check your billing details on our website.",
    "Your account has been deactivated.",
    "The project you are requesting has been archived and is not accessible",
    "Your organization must be verified to use the model `m`. Please go to: https://provider.example",
    "The model `m` does not exist or you do not have access to it.",
    "Your credit balance is too low to access the API. Please go to Plans & Billing.",
    "You exceeded your current quota",
    "Access denied due to invalid subscription key",
    "Incorrect API key provided",
    "You must be a member of an organization to use the API",
)


def test_what_is_refused_for_the_account_is_sent_again_by_a_later_process(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path
) -> None:
    prompts = [ask(f"question {number}", max_new_tokens=9) for number in range(1 + len(ACCOUNT_REFUSALS))]
    refused = True

    def answer(line: Line) -> Any:
        number = int(line["body"]["messages"][0]["content"].removeprefix("question "))
        return (400, ACCOUNT_REFUSALS[number - 1]) if refused else completion(line["body"])

    provider.answer = answer
    with pytest.raises(RequestError, match="HTTP 400: Billing hard limit") as error:
        opened().generate(prompts, SILENT)
    assert "billing, limits and access" in error.value.do
    assert [path.name for path in (tmp_path / "batches").glob(".*.refused")] == []
    refused = False
    assert len(opened().generate(prompts, SILENT)) == len(prompts)


@pytest.mark.parametrize(
    ("refusal", "is_remembered"),
    [
        ({"message": "Unsupported role 'maker'", "type": "invalid_request_error", "param": "messages[0]"}, True),
        ({"message": "Invalid schema for response_format", "code": "invalid_json_schema"}, True),
        ({"message": "No", "code": "billing_not_active"}, False),
        ({"message": "No", "type": "insufficient_quota"}, False),
        ({"message": "No", "type": "permission_error"}, False),
        ({"message": "No", "code": "model_not_found"}, False),
    ],
)
def test_code_and_type_tell_the_account_from_the_request(refusal: Line, is_remembered: bool) -> None:
    line = {"response": {"status_code": 400, "body": {"error": refusal}}, "error": None}
    found, is_own_fault = batch_records.refusal_of(line, refusal["message"], URL)
    assert (type(found), is_own_fault) == (RequestError, is_remembered)
    # Of a line that never became a request the error is its own.
    found, is_own_fault = batch_records.refusal_of({"error": refusal}, refusal["message"], URL)
    assert is_own_fault == is_remembered


def test_refusals_for_the_account_that_were_recorded_once_do_not_count(tmp_path: Path) -> None:
    problems = batch_records.Problems(tmp_path / ".m.refused")
    for number, words in enumerate((*ACCOUNT_REFUSALS, "HTTP 400: no such role")):
        problems.refuse(str(number), RequestError(words, expected="", do=""))
    later = batch_records.Problems(tmp_path / ".m.refused")
    later.load()
    assert list(later) == [str(len(ACCOUNT_REFUSALS))]


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


def test_a_cancelled_batch_that_other_calls_want_the_rest_of_is_an_error_once(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path
) -> None:
    provider.num_looks, provider.statuses = 1, ["cancelled"]
    answer, provider.answer = provider.answer, lambda _: None
    with pytest.raises(StillRunningError):
        opened(waits=False).generate(PROMPTS, SILENT)
    # The first call is never repeated: its job was cancelled. Another one wants a part of it.
    with pytest.raises(WorkError, match="was cancelled at"):
        opened().generate(PROMPTS[2:4], SILENT)
    provider.answer = answer
    assert [one.text for one in opened().generate(PROMPTS[2:4], SILENT)] == TEXTS[2:4]
    with pytest.raises(WorkError, match="was cancelled at"):
        opened().generate(PROMPTS, SILENT)
    assert [one.text for one in opened().generate(PROMPTS, SILENT)] == TEXTS
    assert left_behind(tmp_path) == []


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


def test_batches_of_other_models_may_end_while_they_are_listed(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "batches"
    folder.mkdir()
    glob = Path.glob

    def listed(place: Path, pattern: str) -> list[Path]:
        gone = [folder / "0.jsonl"] if (place, pattern) == (folder, "*.jsonl") else []
        return [*gone, *glob(place, pattern)]

    monkeypatch.setattr(Path, "glob", listed)
    assert [one.text for one in opened().generate(PROMPTS, SILENT)] == TEXTS


def test_one_process_at_a_time_asks_a_model(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_api, "_LOCK_SECONDS", 0.0)
    opened().generate(PROMPTS, SILENT)
    (lock,) = (tmp_path / "batches").glob(".*.lock")
    with file_lock(lock, what="it", timeout_seconds=0.0), pytest.raises(ConflictError):
        opened().generate(PROMPTS, SILENT)
    with (
        file_lock(lock, what="it", timeout_seconds=0.0),
        pytest.raises(StillRunningError, match="another process") as busy,
    ):
        opened(waits=False).generate(PROMPTS, SILENT)
    assert (busy.value.num_done, busy.value.num_total, len(provider.batches)) == (0, 0, 1)
    assert opened().generate([], SILENT) == []
    with pytest.raises(RequestError):
        opened().score([None], SILENT)  # type: ignore[list-item]


def test_a_call_that_does_not_wait_leaves_its_batch_and_a_later_one_takes_the_answers(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path
) -> None:
    provider.num_looks = 2
    kept: dict[str, str] = {}

    def call(prompts: list[Prompt]) -> Any:
        left = [one for one in prompts if str(one) not in kept]
        engine = opened(waits=False, keep=lambda prompt, made: kept.update({str(prompt): made.text}))
        return engine.generate(left, SILENT)

    with pytest.raises(StillRunningError) as first:
        call(PROMPTS)
    assert (first.value.num_done, first.value.num_total) == (1, 5), "one was sent by itself"
    assert first.value.what.startswith("batch_0 of https://provider.example")
    # More prompts of another call: the ones that are at the provider already are not sent again.
    with pytest.raises(StillRunningError) as second:
        call([*PROMPTS[2:], *(ask(f"question {number}", max_new_tokens=9) for number in (6, 7, 8))])
    assert (second.value.num_done, second.value.num_total) == (2, 4 + 2 + 1)
    while len(kept) < 6 + 3:
        try:
            call([*PROMPTS, *(ask(f"question {number}", max_new_tokens=9) for number in (6, 7, 8))])
        except StillRunningError:
            assert provider.num_looks == 2
    assert sorted(kept.values()) == sorted(f"You said question {number}" for number in range(9))
    assert (len(provider.batches), set(provider.asked.values())) == (2, {1})
    assert left_behind(tmp_path) == []


def test_a_provider_that_does_not_answer_a_look_is_asked_again_by_a_later_call(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path
) -> None:
    kept: dict[str, str] = {}

    def call() -> Any:
        engine = opened(waits=False, keep=lambda prompt, made: kept.update({str(prompt): made.text}))
        return engine.generate([one for one in PROMPTS if str(one) not in kept], SILENT)

    provider.num_looks = 1
    with pytest.raises(StillRunningError):
        call()
    provider.troubles["GET batches/batch_0"] = [(503, {}, b"")] * NUM_ATTEMPTS
    with pytest.raises(StillRunningError) as found:
        call()
    assert provider.troubles["GET batches/batch_0"] == []
    assert (found.value.num_done, found.value.num_total) == (0, 5), "all that were sent"
    assert [one.text for one in call()] == TEXTS[1:]
    assert (len(provider.batches), left_behind(tmp_path)) == (1, [])


def test_calls_that_do_not_wait_give_a_request_up_after_three_batches_too(
    opened: Callable[..., OpenAIBatchEngine], provider: Provider, tmp_path: Path
) -> None:
    provider.num_looks = 1
    kept: dict[str, str] = {}
    provider.answer = lambda _: "batch_expired"

    def call() -> Any:
        engine = opened(waits=False, keep=lambda prompt, made: kept.update({str(prompt): made.text}))
        return engine.generate([one for one in PROMPTS if str(one) not in kept], SILENT)

    for _ in range(3):
        with pytest.raises(StillRunningError):
            call()
    with pytest.raises(WorkError, match="no answer after 3 batches; the last: not executed"):
        call()
    # Before each batch one is sent by itself.
    assert len(provider.live) == 3
    assert sorted(provider.asked.values()) == [1, 2, 3, 3, 3]
    assert left_behind(tmp_path) == []

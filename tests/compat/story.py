"""What a person does with OpenAI's client library, from the upload of a file to the deletion of the model.

    python story.py BASE_URL < KEYS        KEYS: a JSON object: admin, reader (scope read), slow (1 request a minute),
                                           crowd (of which at most 3 may ask a model at once)

Runs under whichever version of the `openai` package comes first on PYTHONPATH; knows nothing of Luthier. Prints what it
saw as one JSON object on its last line.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import openai

MODEL = "tiny"
EPOCHS, ROWS, BATCH = 2, 24, 2
STEPS = EPOCHS * ROWS // BATCH
"""The server goes no further than half of them before somebody pauses or cancels the job (`conftest.py`)."""
LENGTH: Any = {"n_epochs": EPOCHS, "batch_size": BATCH}


class Retries(logging.Handler):
    """Counts how often the client tried something again."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Retrying request"):
            self.messages.append(message)


RETRIES = Retries()


def rows(first: int, number: int) -> bytes:
    lines = []
    for n in range(first, first + number):
        words = (("user", f"What comes after {n}?"), ("assistant", f"After {n} comes {n + 1}."))
        lines.append(json.dumps({"messages": [{"role": role, "content": content} for role, content in words]}))
    return ("\n".join(lines) + "\n").encode()


def wait_for(what: str, seen: Callable[[], Any], seconds: float = 150.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.1)
    return found


def upload(client: openai.OpenAI, name: str, content: bytes) -> Any:
    file = client.files.create(file=(name, content), purpose="fine-tune")
    done = client.files.wait_for_processing(file.id, poll_interval=0.1, max_wait_seconds=60)
    assert (done.status, done.filename, done.bytes) == ("processed", name, len(content)), done
    return done


def act(client: openai.OpenAI, job_id: str, action: str) -> Any:
    """Pause or resume; clients that know no such method yet post it themselves."""
    method = getattr(client.fine_tuning.jobs, action, None)
    if method is not None:
        return method(job_id)
    job_type = type(client.fine_tuning.jobs.retrieve(job_id))
    return client.post(f"/fine_tuning/jobs/{job_id}/{action}", cast_to=job_type)


def train(client: openai.OpenAI) -> Any:
    """Upload, create, pause in the middle, resume, and wait for the end."""
    jobs = client.fine_tuning.jobs
    train_file, valid_file = upload(client, "train.jsonl", rows(0, ROWS)), upload(client, "valid.jsonl", rows(100, 8))
    assert client.files.content(train_file.id).content == rows(0, ROWS)
    assert train_file.id in [file.id for file in client.files.list(purpose="fine-tune")]
    job = jobs.create(
        model=MODEL,
        training_file=train_file.id,
        validation_file=valid_file.id,
        suffix="after",
        seed=7,
        hyperparameters={**LENGTH, "learning_rate_multiplier": 2},
    )
    assert job.object == "fine_tuning.job"
    assert job.status in ("validating_files", "queued", "running")
    assert (job.model, job.training_file, job.validation_file, job.seed) == (MODEL, train_file.id, valid_file.id, 7)
    assert job.fine_tuned_model is None

    def has_begun() -> bool:
        events = jobs.list_events(job.id, limit=5).data
        return any((event.type or "") == "metrics" for event in events)

    wait_for("it trains", has_begun)
    paused = act(client, job.id, "pause")
    assert paused.status in ("pausing", "paused"), paused.status
    resumed = refused = None
    if paused.status == "pausing":  # what is still stopping cannot be resumed, and waiting in the client is no help
        try:
            resumed = act(client, job.id, "resume")  # it has paused in the meantime
        except openai.ConflictError as error:
            refused = error
    assert refused is None or refused.response.headers["x-should-retry"] == "false"
    if resumed is None:
        wait_for("it has paused", lambda: jobs.retrieve(job.id).status == "paused")
        resumed = act(client, job.id, "resume")
    assert resumed.status in ("queued", "running", "validating_files"), resumed.status
    done = wait_for("it is done", lambda: (j := jobs.retrieve(job.id)).status not in ("queued", "running") and j)
    assert (done.status, done.error and done.error.message) == ("succeeded", None), done
    assert done.finished_at >= done.created_at
    assert done.trained_tokens > 0
    assert done.hyperparameters.n_epochs == EPOCHS
    assert done.fine_tuned_model.startswith(f"ft:{MODEL}:")
    assert ":after:" in done.fine_tuned_model
    assert job.id in [j.id for j in jobs.list(limit=2)]  # pages itself through
    return done


def events(client: openai.OpenAI, job: Any) -> int:
    """All events, a few at a time: none twice, each step once, the newest first."""
    found = list(client.fine_tuning.jobs.list_events(job.id, limit=7))
    ids = [event.id for event in found]
    assert len(set(ids)) == len(ids) > 7
    assert all(event.object == "fine_tuning.job.event" for event in found)
    assert [e.created_at for e in found] == sorted((e.created_at for e in found), reverse=True)
    data = [dict(getattr(event, "data", None) or {}) for event in found if event.type == "metrics"]
    steps = sorted(int(one["step"]) for one in data)
    assert steps == list(range(1, STEPS + 1)), steps
    return len(found)


def results(client: openai.OpenAI, job: Any) -> int:
    """Checkpoints and the result file."""
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
    assert 1 <= len(checkpoints) <= 3
    for checkpoint in checkpoints:
        assert checkpoint.fine_tuning_job_id == job.id
        assert checkpoint.fine_tuned_model_checkpoint.endswith(f":ckpt-step-{checkpoint.step_number}")
        assert checkpoint.metrics.step == checkpoint.step_number
        assert checkpoint.metrics.train_loss is not None
    assert checkpoints[0].step_number == STEPS
    lines = client.files.content(job.result_files[0]).text.splitlines()
    assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert len(lines) == STEPS + 1
    client.models.retrieve(checkpoints[-1].fine_tuned_model_checkpoint)
    return len(checkpoints)


def chat(client: openai.OpenAI, model: str) -> str:
    """At once and as a stream: the same words."""
    messages: Any = [{"role": "user", "content": "What comes after 7?"}]
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0)
    assert whole.object == "chat.completion"
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    stream = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0, stream=True)
    pieces, reasons = [], []
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            reasons.append(choice.finish_reason)
    assert [r for r in reasons if r] == [whole.choices[0].finish_reason]
    assert "".join(pieces) == whole.choices[0].message.content
    return "".join(pieces)


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Cremona", "Mittenwald"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ASK: Any = [{"role": "user", "content": "How is the weather?"}]


def tool(client: openai.OpenAI) -> str:
    """A call of a tool, at once and as a stream, and its result on the way back."""
    wishes: Any = {
        "model": MODEL, "messages": ASK, "tools": [WEATHER], "temperature": 0,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    }  # fmt: skip
    whole = client.chat.completions.create(**wishes).choices[0].message
    [call] = whole.tool_calls or []
    assert whole.content is None
    assert json.loads(call.function.arguments)["city"] in ("Cremona", "Mittenwald")
    pieces = [
        piece
        for chunk in client.chat.completions.create(stream=True, **wishes)
        for choice in chunk.choices
        for piece in choice.delta.tool_calls or []
    ]
    assert [piece.function.name for piece in pieces if piece.function.name] == ["get_weather"]
    assert "".join(piece.function.arguments or "" for piece in pieces) == call.function.arguments
    talk = [*ASK, whole.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    back = client.chat.completions.create(model=MODEL, messages=talk, tools=[WEATHER], max_tokens=4)
    assert back.choices[0].finish_reason in ("stop", "length")
    return str(call.function.arguments)


def function(client: openai.OpenAI) -> str:
    """The same call in the form of code from before tools, at once and as a stream, and its result on the way back."""
    wishes: Any = {
        "model": MODEL, "messages": ASK, "functions": [WEATHER["function"]], "temperature": 0,
        "function_call": {"name": "get_weather"},
    }  # fmt: skip
    whole = client.chat.completions.create(**wishes).choices[0].message
    call = whole.function_call
    assert call is not None
    assert (whole.content, whole.tool_calls, call.name) == (None, None, "get_weather")
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **wishes)]
    pieces = [delta.function_call for delta in deltas if delta.function_call is not None]
    assert "".join(piece.name or "" for piece in pieces) == call.name
    assert "".join(piece.arguments or "" for piece in pieces) == call.arguments
    result = {"role": "function", "name": call.name, "content": "sunny"}
    talk: Any = [*ASK, whole.model_dump(exclude_none=True), result]
    back = client.chat.completions.create(model=MODEL, messages=talk, functions=wishes["functions"], max_tokens=4)
    assert back.choices[0].finish_reason in ("stop", "length")
    return str(call.arguments)


def schema(client: openai.OpenAI) -> Any:
    """An answer that keeps to a schema: by the client's own `parse` where it has one."""
    wanted = WEATHER["function"]["parameters"]
    parse = getattr(client.chat.completions, "parse", None)
    if parse is None:
        shape: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": wanted}}
        answer = client.chat.completions.create(model=MODEL, messages=ASK, response_format=shape)
        return json.loads(answer.choices[0].message.content or "")["city"]
    from typing import Literal

    from pydantic import create_model

    city: Any = create_model("City", city=(Literal["Cremona", "Mittenwald"], ...))
    return parse(model=MODEL, messages=ASK, response_format=city).choices[0].message.parsed.city


def vectors(client: openai.OpenAI, model: str) -> int:
    """As many numbers whether they come as text or not."""
    made = client.embeddings.create(model=model, input=["Spruce", "Maple"])
    plain = client.embeddings.create(model=model, input="Spruce", encoding_format="float")
    width = len(plain.data[0].embedding)
    assert [len(one.embedding) for one in made.data] == [width, width]
    assert max(abs(a - b) for a, b in zip(made.data[0].embedding, plain.data[0].embedding, strict=True)) < 1e-5
    assert made.usage.prompt_tokens > 0
    return width


def crowd(client: openai.OpenAI) -> None:
    """More asks than a key may have under way: told when to come again, and let in as soon as others have gone."""
    wishes: Any = {"model": MODEL, "messages": ASK, "max_tokens": 400, "n": 8, "temperature": 2}
    one: Any = {"model": MODEL, "messages": ASK, "max_tokens": 2}
    impatient, streams, errors = client.with_options(max_retries=0), list[Any](), list[openai.RateLimitError]()

    def come() -> None:
        try:
            streams.append(impatient.chat.completions.create(stream=True, **wishes))
        except openai.RateLimitError as error:
            errors.append(error)

    # All at once: one after another, a fast machine would end each answer before the next one is asked for.
    while not errors and len(streams) < 100:
        together = [threading.Thread(target=come) for _ in range(10)]
        for thread in together:
            thread.start()
        for thread in together:
            thread.join()

    def again() -> None:
        raise errors[0]

    refused = caught(openai.RateLimitError, again)
    assert len(streams) >= 3
    assert float(refused.response.headers["retry-after"]) > 0
    for stream in streams:
        stream.response.close()
    client.with_options(max_retries=10).chat.completions.create(**one)


def cancel(client: openai.OpenAI, training_file: str) -> None:
    """A job that is cancelled cannot be cancelled again, and the client does not try for long."""
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=training_file, hyperparameters=LENGTH)
    client.fine_tuning.jobs.cancel(job.id)
    wait_for("it is cancelled", lambda: client.fine_tuning.jobs.retrieve(job.id).status == "cancelled")
    before = len(RETRIES.messages)
    error = caught(openai.ConflictError, lambda: client.fine_tuning.jobs.cancel(job.id))
    assert error.status_code == 409
    assert len(RETRIES.messages) == before


def bad_file(client: openai.OpenAI) -> str:
    """What is wrong with the rows is found before anything is trained, with the line."""
    lines = rows(0, 12).splitlines()
    lines[4] = b'{"messages": []}'
    file = upload(client, "bad.jsonl", b"\n".join(lines) + b"\n")
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id)
    failed = wait_for("it has failed", lambda: (j := client.fine_tuning.jobs.retrieve(job.id)).status == "failed" and j)
    assert failed.error.param == "training_file", failed.error
    assert ":5" in failed.error.message, failed.error.message
    return str(failed.error.message)


def caught(kind: type[Any], call: Callable[[], Any]) -> Any:
    """The error of a call; it carries what OpenAI's errors carry."""
    error = None
    try:
        call()
    except kind as raised:
        error = raised
    assert error is not None, f"expected {kind.__name__}"
    assert error.response.headers["x-request-id"]
    document = error.response.json()["error"]
    assert set(document) == {"message", "type", "param", "code"}, document
    assert document["message"]
    return error


def errors(client: openai.OpenAI, keys: dict[str, str], file_id: str) -> dict[str, Any]:
    """Each class of the client's errors once."""
    jobs, seen = client.fine_tuning.jobs, {}

    def note(kind: type[Any], call: Callable[[], Any]) -> Any:
        error = caught(kind, call)
        seen[kind.__name__] = [error.status_code, error.code]
        return error

    error = note(openai.BadRequestError, lambda: jobs.create(model=MODEL, training_file="file-no-such"))
    assert error.param == "training_file"
    wrong = client.with_options(api_key="sk-luthier-wrong")
    note(openai.AuthenticationError, lambda: wrong.fine_tuning.jobs.list())
    reader = client.with_options(api_key=keys["reader"])
    reader.fine_tuning.jobs.list()
    note(openai.PermissionDeniedError, lambda: reader.fine_tuning.jobs.create(model=MODEL, training_file=file_id))
    note(openai.NotFoundError, lambda: jobs.retrieve("ftjob-no-such"))
    note(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))
    once: Any = {"hyperparameters": LENGTH, "extra_headers": {"Idempotency-Key": f"story-{openai.__version__}"}}
    first = jobs.create(model=MODEL, training_file=file_id, **once)
    assert jobs.create(model=MODEL, training_file=file_id, **once).id == first.id
    jobs.cancel(first.id)

    def again() -> Any:
        return jobs.create(model=MODEL, training_file=file_id, seed=1, **once)

    note(openai.UnprocessableEntityError, again)
    slow = client.with_options(api_key=keys["slow"], max_retries=0)

    def too_often() -> None:
        for _ in range(3):
            slow.models.list()

    error = note(openai.RateLimitError, too_often)
    assert float(error.response.headers["retry-after"]) > 0
    note(openai.ConflictError, lambda: jobs.cancel(first.id))
    return seen


def main(base_url: str) -> None:
    keys = json.loads(sys.stdin.read())
    logging.getLogger("openai").setLevel(logging.DEBUG)
    logging.getLogger("openai").addHandler(RETRIES)
    logging.getLogger("openai").propagate = False
    client = openai.OpenAI(api_key=keys["admin"], base_url=base_url, max_retries=2)
    job = train(client)
    seen: dict[str, Any] = {"version": openai.__version__, "num_events": events(client, job)}
    seen["num_checkpoints"] = results(client, job)
    seen["said"] = {model: chat(client, model) for model in (job.fine_tuned_model, MODEL)}
    seen["called"], seen["city"] = tool(client), schema(client)
    assert function(client) == seen["called"]
    seen["width"] = [vectors(client, model) for model in (job.fine_tuned_model, MODEL)]
    crowd(client.with_options(api_key=keys["crowd"]))
    cancel(client, job.training_file)
    seen["bad_file"] = bad_file(client)
    seen["errors"] = errors(client, keys, job.training_file)
    assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    assert client.models.delete(job.fine_tuned_model).deleted
    caught(openai.NotFoundError, lambda: client.models.retrieve(job.fine_tuned_model))
    assert client.files.delete(job.training_file).deleted
    caught(openai.NotFoundError, lambda: client.files.retrieve(job.training_file))
    seen["retries"] = RETRIES.messages
    print(json.dumps(seen))  # noqa: T201 - its answer


if __name__ == "__main__":
    main(sys.argv[1])

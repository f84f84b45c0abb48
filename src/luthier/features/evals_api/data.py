"""The rows of a run: snapshot, checks, and the fields of answers as graders see them.

The rows of a run are copied once into the folder of its job, as JSON lines with `item` and `sample`: a run that was
interrupted continues on the same rows, whatever happens to files and stored completions meanwhile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from luthier.core.errors import RequestError, UnsupportedError
from luthier.core.ids import sha256_file
from luthier.core.json_limits import fault_of_text, json_text
from luthier.core.system.files import replacing
from luthier.features.evals_api.records import (
    CompletionsSource,
    CustomConfig,
    DataSource,
    Eval,
    EvalRun,
    FileContent,
    FileId,
    ItemReference,
    LogsConfig,
    ResponsesSource,
    SourceRow,
    StoredCompletions,
    StoredResponses,
    Template,
)
from luthier.features.traffic.stored_completions import StoredCompletion, matching
from luthier.features.traffic.stored_responses import StoredResponse, matching_responses
from luthier.ml.evaluation.graders import filled, item_fields, value_at
from luthier.platform.db.stored_texts import is_forgotten_text, value_holds
from luthier.platform.home.context import Context
from luthier.platform.jobs.attempt import own_copy
from luthier.platform.jobs.records import Job

if TYPE_CHECKING:
    from luthier.ml.evaluation.metrics.structured_output import SchemaCheck

MAX_LINE_CHARACTERS: Final = 1 << 20
_NUM_SHOWN: Final = 5
_NOT_UTF8: Final = re.compile("[\udc80-\udcff]")
"""Bytes that are not UTF-8, as the error handler `surrogateescape` leaves them."""
SAMPLE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "output_text": {"type": "string"},
        "output_json": {},
        "output_tools": {"type": "array", "items": {"type": "object"}},
        "finish_reason": {"type": "string"},
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "message": {
                        "type": "object",
                        "properties": {
                            "role": {"type": "string", "enum": ["assistant"]},
                            "content": {"type": ["string", "array", "null"]},
                            "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
                        },
                        "required": ["role"],
                    },
                    "finish_reason": {"type": "string"},
                },
                "required": ["index", "message", "finish_reason"],
            },
        },
    },
    "required": ["model", "choices"],
}
"""The fields of an answer, in the schema that an eval shows."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a run.

    Attributes:
        path: The snapshot.
        num_rows: How many there are.
        sha256: Digest of the snapshot.
    """

    path: Path
    num_rows: int
    sha256: str

    def read(self, start: int) -> Iterator[tuple[int, SourceRow]]:
        """The rows from a place on, each with its place."""
        with self.path.open(encoding="utf-8") as file:
            for place, line in enumerate(file):
                if place >= start:
                    yield place, SourceRow.model_validate_json(line)


def rows_of(context: Context, job: Job, one: Eval, run: EvalRun) -> Rows:
    """The rows of a run, all of them checked; made once for a job.

    Raises:
        RequestError: Rows are no JSON, lack `item`, or do not fit the schema of the eval; the first are named.
        NotFoundError: The file is gone.
    """
    folder = context.settings.jobs_folder / job.job_id / "files"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    if not path.exists():
        # The name comes last: a snapshot that a kill cut short would be taken for a whole one.
        with replacing(path) as file:
            for row in _checked(one, run, _source_rows(context, job, one, run)):
                file.write(json_text(row.model_dump(mode="json", exclude_none=True)).encode() + b"\n")
    with path.open("rb") as written:
        num_rows = sum(1 for _ in written)
    return Rows(path, num_rows, sha256_file(path))


def needs_sample(run: EvalRun) -> bool:
    """Whether rows have to bring their answers along, since no model is asked."""
    return getattr(run.data_source, "model", None) is None


def _source_rows(context: Context, job: Job, one: Eval, run: EvalRun) -> Iterator[tuple[str, SourceRow | str]]:
    """Rows of the source, each with its place, which is the line of a file; for one that cannot be read, why."""
    source = run.data_source.source
    if isinstance(source, FileId):
        for number, row in _rows_of_file(own_copy(context, job, source.id, "items")):
            yield f"line {number:,}", row
        return
    for number, row in enumerate(_rows_without_a_file(context, one, run, source), 1):
        # Forgotten while the run was in the queue: what would be answered and graded is the word `[forgotten]`.
        is_gone = value_holds([row.item, row.sample], is_forgotten_text)
        yield f"row {number:,}", "its texts were forgotten (luthier data forget)" if is_gone else row


def _rows_without_a_file(
    context: Context, one: Eval, run: EvalRun, source: FileContent | StoredCompletions | StoredResponses
) -> Iterator[SourceRow]:
    if isinstance(source, FileContent):
        yield from source.content
    elif (labels := _labels(one, source)) is None:
        return
    elif isinstance(source, StoredResponses):
        yield from _of_responses(context, run, source, labels)
    else:
        yield from _of_completions(context, run, source, labels)


def _labels(one: Eval, source: StoredCompletions | StoredResponses) -> dict[str, str] | None:
    """The metadata that rows must have, by the eval and by the run; None where the two contradict each other."""
    config = one.data_source_config
    of_eval, of_run = (config.metadata if isinstance(config, LogsConfig) else None) or {}, source.metadata or {}
    is_possible = all(of_eval.get(name, value) == value for name, value in of_run.items())
    return of_eval | of_run if is_possible else None


def _rows_of_file(path: Path) -> Iterator[tuple[int, SourceRow | str]]:
    """The rows of a file of JSON lines, each with the number of its line; for a line that is none, why."""
    # utf-8-sig drops the byte order mark that Windows editors write; surrogateescape keeps what is not UTF-8 apart.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        number = 0
        while line := file.readline(MAX_LINE_CHARACTERS + 1):
            number += 1
            if len(line) > MAX_LINE_CHARACTERS:
                yield number, f"longer than {MAX_LINE_CHARACTERS:,} characters"
                # The rest of the line is no row of its own.
                while not line.endswith("\n") and (line := file.readline(MAX_LINE_CHARACTERS)):
                    pass
            elif (wrong := _NOT_UTF8.search(line)) is not None:
                byte = ord(wrong[0]) - 0xDC00
                yield number, f"not UTF-8 (byte 0x{byte:02x} at character {wrong.start() + 1:,})"
            elif line.strip():
                yield number, row_of_line(line)


def row_of_line(line: str) -> SourceRow | str:
    """The row of a line: `{"item": {...}, "sample": {...}}`; for a line that is none, why."""
    if (fault := fault_of_text(line)) is not None:
        return f"{fault.came}; expected: {fault.expected}"
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({str(error)[:100]})"
    if not isinstance(document, dict) or "item" not in document:
        keys = ", ".join(list(document)[:5]) if isinstance(document, dict) else type(document).__name__
        return f"no object with the key item, but {keys or 'an empty object'}"
    try:
        return SourceRow.model_validate({name: document[name] for name in ("item", "sample") if name in document})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _of_completions(
    context: Context, run: EvalRun, source: StoredCompletions, labels: Mapping[str, str]
) -> Iterator[SourceRow]:
    found = matching(
        context,
        run.project_id,
        metadata=labels,
        model=source.model,
        since=source.created_after,
        until=source.created_before,
    )
    for number, one in enumerate(found):
        if source.limit is not None and number >= source.limit:
            return
        yield row_of_completion(one)


def row_of_completion(one: StoredCompletion) -> SourceRow:
    """A stored chat completion as a row: `item.input` has its messages, `item.output` its answers."""
    request, response = one.document["request"], one.document["response"]
    choices = [choice["message"] for choice in response["choices"]]
    item = {"id": one.completion_id, "input": request["messages"], "output": choices, "metadata": one.labels}
    functions = [{"type": "function", "function": function} for function in request.get("functions") or ()]
    return SourceRow(item=item | {"model": one.model, "tools": request.get("tools") or functions}, sample=response)


def _of_responses(
    context: Context, run: EvalRun, source: StoredResponses, labels: Mapping[str, str]
) -> Iterator[SourceRow]:
    exact = {"temperature": source.temperature, "top_p": source.top_p}
    exact = {name: value for name, value in exact.items() if value is not None}

    def fits(one: StoredResponse) -> bool:
        parameters, response = one.document["parameters"], one.document["response"]
        words, effort = source.instructions_search, source.reasoning_effort
        names = {tool["name"] for tool in parameters.get("tools") or ()}
        return (
            (words is None or words.lower() in (parameters.get("instructions") or "").lower())
            and (effort is None or effort == (response.get("reasoning") or {}).get("effort"))
            and set(source.tools or ()) <= names
            and all(response.get(name) == value for name, value in exact.items())
        )

    found = matching_responses(
        context,
        run.project_id,
        metadata=labels,
        model=source.model,
        since=source.created_after,
        until=source.created_before,
        users=source.users,
        fits=fits,
    )
    yield from map(row_of_response, found)


def row_of_response(one: StoredResponse) -> SourceRow:
    """A stored response as a row: as a stored chat completion, with the messages of its own request."""
    parameters, response = one.document["parameters"], one.document["response"]
    instructions = parameters.get("instructions")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    messages += [_chat_turn(item) for item in one.document["input"] if item["type"] != "reasoning"]
    calls = [_chat_call(item) for item in response["output"] if item["type"] == "function_call"]
    written = [item for item in response["output"] if item["type"] == "message"]
    text = "".join(text_of(item["content"]) for item in written)
    message = {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})
    reason = "length" if response["status"] == "incomplete" else "tool_calls" if calls else "stop"
    item = {"id": one.response_id, "input": messages, "output": [message], "metadata": one.labels, "model": one.model}
    sample = {"id": one.response_id, "model": one.model, "output_text": text, "output_tools": calls}
    num_prompt, num_new = response["usage"]["input_tokens"], response["usage"]["output_tokens"]
    usage = {"prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new}
    choices = [{"index": 0, "message": message, "finish_reason": reason}]
    return SourceRow(
        item=item | {"tools": parameters.get("tools") or []}, sample=sample | {"choices": choices, "usage": usage}
    )


def _chat_turn(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item of a request as a message of a chat completion."""
    if item["type"] == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": [_chat_call(item)]}
    if item["type"] == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": text_of(item["output"])}
    return {"role": item["role"], "content": text_of(item["content"])}


def _chat_call(item: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _checked(one: Eval, run: EvalRun, rows: Iterator[tuple[str, SourceRow | str]]) -> Iterator[SourceRow]:
    from luthier.ml.evaluation.metrics.structured_output import SchemaCheck

    config = one.data_source_config
    item_schema = config.item_schema if isinstance(config, CustomConfig) else None
    schema = None if item_schema is None else SchemaCheck(item_schema)
    lacks_answer = needs_sample(run) and isinstance(config, CustomConfig) and config.include_sample_schema
    problems, num_problems, num_rows = list[str](), 0, 0
    for place, row in rows:
        num_rows += 1
        fault: str | None
        if isinstance(row, str):
            fault = row
        else:
            fault = None if item_schema is None or schema is None else fault_of_item(item_schema, schema, row.item)
            if fault is None and lacks_answer and row.sample is None:
                fault = "no sample: the eval includes the sample schema, and no model is asked"
        if fault is None:
            assert isinstance(row, SourceRow)
            if not num_problems:
                yield row
            continue
        num_problems += 1
        if len(problems) < _NUM_SHOWN:
            problems.append(f"{place}: {fault}")
    if num_problems:
        raise RequestError(
            f"{num_problems:,} of {num_rows:,} rows of the data source are wrong: {'; '.join(problems)}",
            expected='JSON lines of the form {"item": {...}, "sample": {...}}, each item as the schema of the eval',
            do="correct these rows, or the schema, and start another run",
        )
    if not num_rows:
        raise RequestError(
            "the data source has no rows",
            expected="at least one row",
            do="name a file with rows, or other conditions for stored completions",
        )


def fault_of_item(item_schema: Mapping[str, Any], check: SchemaCheck, item: Mapping[str, Any]) -> str | None:
    """What is wrong with an item; None where it fits. A missing column goes by its name.

    Args:
        item_schema: The schema.
        check: The same, compiled.
        item: The item.
    """
    required = item_schema.get("required")
    missing = [name for name in required if name not in item] if isinstance(required, list) else []
    if missing:
        return f"the column {missing[0]!r} is missing; it has {', '.join(map(repr, list(item)[:10])) or 'none'}"
    return check.fault(item)


def sample_fields(sample: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of an answer that templates and graders in Python may use.

    Args:
        sample: A chat completion, or what a row brings along: `choices`, or `output_text` alone. None for no answer.
    """
    if sample is None:
        return {}
    found = {name: value for name, value in sample.items() if name != "usage"}
    choices = found.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    if first is not None:
        message: dict[str, Any] = first["message"] if isinstance(first.get("message"), dict) else {}
        found.setdefault("output_text", text_of(message.get("content")))
        # The older form of a call has no id.
        called = message.get("function_call")
        older = [{"type": "function", "function": called}] if isinstance(called, dict) else []
        found.setdefault("output_tools", message.get("tool_calls") or older)
        found.setdefault("finish_reason", first.get("finish_reason") or "")
    if isinstance(text := found.get("output_text"), str) and "output_json" not in found:
        with suppress(ValueError, RecursionError):
            found["output_json"] = json.loads(text)
    return found


def text_of(content: Any) -> str:
    """The text of a message; of several parts that of all of them."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def messages_of(run: EvalRun, item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages that a row asks the model.

    Raises:
        RequestError: A field that the row lacks or of another form.
    """
    source = run.data_source
    assert isinstance(source, CompletionsSource | ResponsesSource)
    if isinstance(source.input_messages, Template):
        found = [(one.role, filled(one.text, {}, item)) for one in source.input_messages.template]
        return [{"role": role, "content": text} for role, text in found]
    assert isinstance(source.input_messages, ItemReference)
    path = source.input_messages.item_reference.removeprefix("item.")
    turns = value_at(item, path)
    if isinstance(turns, str):
        return [{"role": "user", "content": turns}]
    if not isinstance(turns, Sequence) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise RequestError(
            f"item.{path} is {type(turns).__name__}",
            expected="a text, or a list of messages with role and content",
            do="correct item_reference, or the rows",
        )
    return [_chat_message(turn) for turn in turns]


def _chat_message(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A message as chat completions take it; parts of the Responses API become one text."""
    message = {name: value for name, value in turn.items() if value is not None and name != "type"}
    if isinstance(content := message.get("content"), list) and any(
        isinstance(part, Mapping) and part.get("type") in ("input_text", "output_text") for part in content
    ):
        message["content"] = text_of([dict(part) if isinstance(part, Mapping) else {"text": part} for part in content])
    return message


def check_prompt(source: CompletionsSource | ResponsesSource) -> None:
    """Raise UnsupportedError where a prompt refers to anything but the row."""
    if not isinstance(source.input_messages, Template):
        return
    for number, message in enumerate(source.input_messages.template):
        try:
            item_fields(message.text, ())
        except RequestError as error:
            place = f"data_source.input_messages.template.{number}.content"
            raise UnsupportedError(
                error.came, expected="{{item.FIELD}} with a field of the row", do="correct it",
                code="invalid_value", param=place,
            ) from error  # fmt: skip


_CHAT_PARAMETERS: Final = (
    "max_completion_tokens", "reasoning_effort", "response_format", "seed", "temperature", "tools", "top_p",
)  # fmt: skip
_RESPONSE_PARAMETERS: Final = (
    "max_completion_tokens", "reasoning_effort", "seed", "temperature", "text", "tools", "top_p",
)  # fmt: skip


def chat_parameters(source: DataSource) -> dict[str, Any]:
    """The sampling parameters of a source as chat completions name them.

    Raises:
        UnsupportedError: A parameter that this does not have, or a tool that is no function.
    """
    if not isinstance(source, CompletionsSource | ResponsesSource):
        return {}
    given = {name: value for name, value in (source.sampling_params or {}).items() if value is not None}
    # OpenAI's reference has both names: its examples and answers this one, its types the other.
    if "max_completion_tokens" not in given and "max_completions_tokens" in given:
        given["max_completion_tokens"] = given.pop("max_completions_tokens")
    known = _CHAT_PARAMETERS if isinstance(source, CompletionsSource) else _RESPONSE_PARAMETERS
    if unknown := sorted(set(given) - set(known)):
        raise _refused(unknown[0], f"sampling_params.{unknown[0]}", f"one of {', '.join(known)}")
    if isinstance(source, CompletionsSource):
        return given
    if (text := given.pop("text", None)) is not None:
        given |= _response_format(text)
    if "tools" in given:
        tools = given["tools"] if isinstance(given["tools"], list) else []
        given["tools"] = [_function(number, tool) for number, tool in enumerate(tools)]
    return given


def _response_format(text: Any) -> dict[str, Any]:
    if not isinstance(text, dict) or set(text) - {"format"}:
        raise _refused(f"text {sorted(text) if isinstance(text, dict) else text!r}", "text", "text.format alone")
    wanted = text.get("format")
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return {} if wanted is None else {"response_format": wanted}
    # The Responses API has the schema beside the type, chat completions a level deeper.
    schema = {name: value for name, value in wanted.items() if name != "type"}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _function(number: int, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else tool
        expected = "function: other tools exist only in the hosted service"
        raise _refused(f"a tool of type {kind!r}", f"tools.{number}.type", expected)
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _refused(came: str, place: str, expected: str) -> UnsupportedError:
    return UnsupportedError(
        f"sampling parameter {came}",
        expected=expected,
        do="leave it out",
        code="unsupported_parameter",
        param=f"data_source.sampling_params.{place.removeprefix('sampling_params.')}",
    )

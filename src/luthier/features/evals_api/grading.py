"""One item of a run: the model's answer to it, and what each grader gives for that."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotAllowedError, RequestError, WorkError
from luthier.core.ids import sha256_bytes
from luthier.features.evals_api.data import chat_parameters, messages_of, sample_fields
from luthier.features.evals_api.records import (
    Eval,
    EvalRun,
    GraderResult,
    ItemStatus,
    ModelUsage,
    OutputItem,
    SourceRow,
    pass_threshold,
)
from luthier.features.serving import graders
from luthier.features.serving.api.offline import OfflineAnswer, answer_offline, tokens_of
from luthier.features.serving.graders import GraderRequest
from luthier.features.serving.service import whole_grade
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.sandbox.runners import PythonGrade

MAX_TIMEOUTS: Final = 5
"""So many times in a row a grader in Python may take too long before the run ends: it probably never returns."""
_CHAT: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class GradedItem:
    """An item with what it took.

    Attributes:
        item: The item.
        usage: By the name of the model.
    """

    item: OutputItem
    usage: Mapping[str, ModelUsage]


@dataclass(slots=True)
class _Used:
    """What one item used of models, and the last answer of a grading model."""

    by_model: dict[str, ModelUsage] = field(default_factory=dict)
    said: dict[str, Any] | None = None

    def add(self, model: str, answer: OfflineAnswer) -> None:
        used = answer.usage
        one = ModelUsage(
            invocation_count=1,
            prompt_tokens=used.num_prompt,
            completion_tokens=used.num_new,
            cached_tokens=used.num_cached,
        )
        self.by_model[model] = self.by_model.get(model, ModelUsage()) + one


class Grading:
    """Answers and grades the items of a run. Use it in a `with` block. Thread-safe.

    Args:
        context: The home.
        caller: Whose rights and budget models are asked with.
        one: The eval.
        run: The run.
    """

    def __init__(self, context: Context, caller: Caller, one: Eval, run: EvalRun) -> None:
        self._context, self._caller, self._eval, self._run = context, caller, one, run
        self._parameters = chat_parameters(run.data_source)
        # One sandboxed process for each source, started when it is first needed and closed with the block.
        self._python: dict[str, Any] = {}
        self._stack, self._lock = ExitStack(), threading.Lock()
        self._num_timeouts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def item(self, position: int, row: SourceRow) -> GradedItem:
        """The item of a row: what is wrong with it alone is part of the item.

        Raises:
            WorkError: The engine ends again and again.
            RequestError: A grader in Python never returns, or this machine cannot lock it down.
        """
        used = _Used()
        shown, fields, fault = self._sampled(position, row, used)
        # An item without an answer fails every grader: leaving it out would make the share of passes look better.
        if fault is None:
            results = [self._graded(grader, fields, row.item, used) for grader in self._eval.testing_criteria]
        else:
            error = {"code": fault["code"], "message": f"no answer to grade: {fault['message']}"}
            results = [
                GraderResult(name=one.name, type=one.type, score=0.0, passed=False, error=error)
                for one in self._eval.testing_criteria
            ]
        status: ItemStatus = "pass" if all(one.passed for one in results) else "fail"
        if any(one.error is not None for one in results):
            status = "error"
        run_id = self._run.eval_run_id
        made = OutputItem(
            # The same for each attempt, so that an item that is graded again is the same item.
            item_id=f"outputitem_{sha256_bytes(f'{run_id}:{position}'.encode())[:32]}",
            eval_run_id=run_id,
            eval_id=self._run.eval_id,
            position=position,
            status=status,
            item=row.item,
            sample=shown,
            results=tuple(results),
        )
        return GradedItem(made, used.by_model)

    def _sampled(
        self, position: int, row: SourceRow, used: _Used
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, str] | None]:
        """The sample as the wire has it, its fields for graders, and why there is none."""
        if not self._run.model:
            fields = sample_fields(row.sample)
            output = [{"role": "assistant", "content": fields["output_text"]}] if "output_text" in fields else []
            return _sample(fields, row.sample or {}, output=output), fields, None
        body: dict[str, Any] = {"model": self._run.model, **self._parameters}
        # Drawn from the run and the place, so that an attempt after a kill asks for the same answer.
        body.setdefault("seed", int(sha256_bytes(f"{self._run.eval_run_id}:{position}".encode())[:7], 16))
        try:
            messages = messages_of(self._run, row.item)
        except RequestError as error:
            fault = {"code": "invalid_template_variable", "message": str(error).replace("\n", "; ")}
            return _sample({}, {}, body=body, error=fault), {}, fault
        answer = answer_offline(self._context, self._caller, _CHAT, body | {"messages": messages})
        used.add(self._run.model, answer)
        asked = [{"role": one.get("role", ""), "content": _plain(one.get("content"))} for one in messages]
        if not answer.is_ok:
            fault = _fault(answer)
            return _sample({}, {}, body=body, asked=asked, error=fault), {}, fault
        fields = sample_fields(answer.body)
        message = answer.body["choices"][0]["message"]
        output = [{"role": "assistant", "content": message.get("content") or ""}]
        if message.get("tool_calls"):
            output[0]["tool_calls"] = message["tool_calls"]
        return _sample(fields, answer.body, body=body, asked=asked, output=output), fields, None

    def _graded(
        self, grader: GraderRequest, sample: Mapping[str, Any], item: Mapping[str, Any], used: _Used
    ) -> GraderResult:
        # `said` belongs to one grader of one item; several items are graded at the same time, each with its own `used`.
        used.said = None

        def ask(
            model: str, messages: Sequence[Mapping[str, str]], max_tokens: int | None, temperature: float, seed: int
        ) -> str:
            body = {"model": model, "messages": [dict(one) for one in messages], "temperature": temperature}
            body |= {"seed": seed} | ({} if max_tokens is None else {"max_completion_tokens": max_tokens})

            def once(most: int) -> tuple[str, bool]:
                answer = answer_offline(self._context, self._caller, _CHAT, body, default_max_tokens=most)
                used.add(model, answer)
                if not answer.is_ok:
                    raise WorkError(_fault(answer)["message"], expected="a grade", do="see the run")
                choice = answer.body["choices"][0]
                used.said = choice["message"]
                return str(choice["message"].get("content") or ""), choice["finish_reason"] == "length"

            return whole_grade(model, once, has_own_limit=max_tokens is not None)

        runs_python = self._run_python if self._context.settings.python_graders else None
        found = graders.grade(grader, sample, item, ask, runs_python)
        error = None
        if found.errors:
            code = sorted(found.errors)[0]
            error = {"code": code, "message": found.details or code.replace("_", " ")}
        return GraderResult(
            name=grader.name,
            type=grader.type,
            score=found.reward,
            passed=error is None and found.reward >= pass_threshold(grader),
            sample=None if used.said is None else {"output": [used.said]},
            error=error,
        )

    def _run_python(self, source: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> PythonGrade:
        from luthier.ml.evaluation.sandbox.runners import GRADER_SECONDS, PythonGrader

        with self._lock:
            # Under the lock: two threads must not start a sandbox for the same source.
            if source not in self._python:
                self._python[source] = self._stack.enter_context(PythonGrader(source))
            grader: PythonGrader = self._python[source]
        # Outside the lock, since it takes up to GRADER_SECONDS.
        found = grader.grade(sample, item)
        with self._lock:
            # In a row over all threads: one answer in time shows that the function returns.
            self._num_timeouts = self._num_timeouts + 1 if found.word == "timeout" else 0
            if self._num_timeouts >= MAX_TIMEOUTS:
                raise GraderStuckError(
                    f"a grader in Python took longer than {GRADER_SECONDS:g} s for each of {MAX_TIMEOUTS} answers in "
                    "a row",
                    expected="a function grade(sample, item) that returns",
                    do="correct the grader (does it loop forever?), make the eval again and start another run",
                )
        return found


class GraderStuckError(RequestError):
    """A grader never returns."""


def _sample(
    fields: Mapping[str, Any],
    response: Mapping[str, Any],
    *,
    body: Mapping[str, Any] | None = None,
    asked: Sequence[Mapping[str, Any]] = (),
    output: Sequence[Mapping[str, Any]] = (),
    error: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A sample as OpenAI's output items have it; null for what is not known of an answer that a row brought along."""
    usage, own = response.get("usage") or {}, body or {}
    tokens = {name: usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    return {
        "input": [dict(one) for one in asked],
        "output": [dict(one) for one in output],
        "finish_reason": fields.get("finish_reason", ""),
        "model": response.get("model") or own.get("model") or "",
        "usage": {**tokens, "cached_tokens": tokens_of(response).num_cached},
        "error": None if error is None else dict(error),
        "seed": own.get("seed"),
        "temperature": own.get("temperature", 1.0 if own else None),
        "top_p": own.get("top_p", 1.0 if own else None),
        "max_completion_tokens": own.get("max_completion_tokens"),
    }


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _fault(answer: OfflineAnswer) -> dict[str, str]:
    error = answer.body["error"]
    return {"code": str(error["code"] or error["type"]), "message": str(error["message"])}


def error_of(error: LuthierError) -> str:
    """OpenAI's code for what ended a run."""
    if isinstance(error, GraderStuckError):
        return "grader_timeout"
    if isinstance(error, NotAllowedError):
        return "access_revoked"
    return "invalid_data_source" if isinstance(error, RequestError) else "run_failed"

"""Inference with vLLM as a supervised child process, over its HTTP API, with adapters loaded at run time.

Prompts are rendered by Luthier's template and sent as token ids, so that a model sees the same tokens as in training. A
child that exits is restarted with increasing delays; running requests fail, new ones wait.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import httpx2

from luthier.core.conversation import AS_THEY_ARE
from luthier.core.dataset import TokenisedExample
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError, WorkError
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import Generation, KeyedEvent, Progress, Prompt, Score, SilentProgress
from luthier.core.stream import Decoding, EngineSettings, Failed, Served, TextRequest
from luthier.ml.inference.engine_prompts import CallsInText, ToolFormat, checked, fitted, ids_of
from luthier.ml.inference.engine_wrappers import generate_by_streaming
from luthier.ml.inference.models.prefix_lm import refuse_configured_prefix_lm
from luthier.ml.inference.models.task_head import refuse_task_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.openai.stream import OpenAIStreamEngine
from luthier.ml.inference.thoughts import NO_THINKING, RequestTemplates, Thinking
from luthier.ml.inference.vllm.adapters import MAX_PROBE_TOKENS, PROBE, AdapterProof, VllmAdapters
from luthier.ml.inference.vllm.answers import NO_DEFAULTS, NUM_LISTED
from luthier.ml.inference.vllm.process import VllmProcess, vllm_command

log = logging.getLogger("luthier.engines")

BASE: Final = "base"
START_SECONDS: Final = 1800.0
MAX_ADAPTERS: Final = 8
MAX_RANK: Final = 64
_NUM_STARTS: Final = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_LOOK_SECONDS: Final = 0.2
# After this uptime an exit does not count as a failed start.
_LONG_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request as token ids.

    Attributes:
        calls: parses calls from one answer.
        extra: additional fields for vLLM.
    """

    request: TextRequest
    calls: Callable[[], CallsInText]
    extra: dict[str, Any]
    thinking: Thinking


class VllmEngine:
    """A transformers folder run by vLLM: both `Engine` and `StreamEngine`. Used by one thread only.

    Args:
        model_path: folder of the base.
        template: "auto" uses the model's chat template if it has one.
        precision: of the weights; None leaves it to vLLM.
        most_adapters: LoRA adapters on the device at most, which vLLM needs to know at start.
        most_rank: the largest rank of these.
        command: the vLLM command; None searches for it (`vllm_command`).
        extra_arguments: further arguments of `vllm serve`.
        start_seconds: maximum duration of a start.
        first_pause_seconds: pause before the second start; doubled with each further one.
        proof: compares each adapter with transformers before it answers; None: only with the base.
        progress: shown while the child starts.

    Raises:
        NotFoundError: vLLM is not installed.
        WorkError: it ends, or is not ready in time.
    """

    def __init__(
        self,
        model_path: str,
        *,
        template: Literal["auto", "chat", "plain"] = "auto",
        precision: Literal["float32", "bfloat16"] | None = None,
        most_adapters: int = MAX_ADAPTERS,
        most_rank: int = MAX_RANK,
        command: Sequence[str] | None = None,
        extra_arguments: Sequence[str] = (),
        start_seconds: float = START_SECONDS,
        first_pause_seconds: float = _FIRST_PAUSE,
        proof: AdapterProof | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._folder = Path(model_path)
        self._template = ChatTemplate.load(model_path, template)
        self._tools = ToolFormat.of(self._template)
        self._templates = RequestTemplates(self._template)
        self._adapters: dict[str, str] = {}
        # The adapters that vLLM rejected after a restart; each is retried on request.
        self._missing: set[str] = set()
        self._first_pause, self._start_seconds = first_pause_seconds, start_seconds
        # Host memory may hold four times as many adapters as fit onto the device.
        arguments = [
            model_path, "--served-model-name", BASE, "--dtype", precision or "auto",
            "--enable-lora", "--max-loras", str(most_adapters), "--max-cpu-loras", str(4 * most_adapters),
            "--max-lora-rank", str(most_rank), "--max-logprobs", str(NUM_LISTED), *extra_arguments,
        ]  # fmt: skip
        self._process = VllmProcess(command or vllm_command(os.environ), arguments)
        # A long timeout: loading an adapter from a slow disk.
        self._http = self._process.make_client(timeout_seconds=300.0)
        probe = self._template.encode(PROBE)[0][:MAX_PROBE_TOKENS]
        self._loader = VllmAdapters(self._ask_child, BASE, probe, most_rank, proof)
        self._stream: OpenAIStreamEngine | None = None
        self._events: list[KeyedEvent] = []
        self._num_failed, self._not_before, self._begun = 0, 0.0, 0.0
        self._context_tokens = 0
        # From here on `close` must run on every error; otherwise the child would outlive the engine.
        self._is_open = True
        try:
            self._begin()
            self._process.wait(progress or SilentProgress(), start_seconds)
            self._connect()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """`vllm`, the name in the table of engines."""
        return "vllm"

    @property
    def decoding(self) -> Decoding:
        """The runtime's own path."""
        return Decoding(path="vllm", description="vLLM over its paged key-value cache, rows together")

    @property
    def keys(self) -> set[Hashable]:
        """The requests in progress, and those with events that `poll` has not returned yet."""
        going = self._stream.keys if self._stream is not None else set()
        # An engine without keys is not polled: an end that `admit` has found would never arrive.
        return going | {key for key, _ in self._events}

    @property
    def num_bytes(self) -> int:
        """Memory of the weights in bytes; vLLM reserves most of a GPU's memory in any case."""
        return sum(file.stat().st_size for file in self._folder.glob("*.safetensors"))

    def load_adapter(self, name: str, path: str) -> None:
        """Load a PEFT folder into vLLM, where its answers must differ from those of the base.

        With a proof they must be those of transformers; where that has to be computed first, requests for the adapter
        wait for it.

        Raises:
            NotFoundError: there is no adapter.
            ConflictError: the name belongs to another adapter.
            RequestError: vLLM rejects it, it fails a test, or it has a task head instead of text output.
        """
        self._check_open()
        refuse_task_model(path)
        if (known := self._adapters.get(name)) is not None:
            if known == path:
                return
            # vLLM would keep the old weights under this name, and running answers must not change.
            raise ConflictError(
                f"adapter {name!r} from {path}, and from {known} before",
                expected="one adapter a name",
                do="unload the first, or choose another name",
            )
        if not (Path(path) / "adapter_config.json").is_file():
            raise NotFoundError(
                f"no adapter at {path}", expected="a PEFT folder with adapter_config.json", do="correct the path"
            )
        if self._stream is not None and self._process.is_running:
            self._loader.load(name, path)
            self._stream.load_adapter(name, name)
        self._adapters[name] = path

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter from vLLM."""
        self._missing.discard(name)
        if self._adapters.pop(name, None) is not None and self._stream is not None:
            self._stream.unload_adapter(name)
            if self._process.is_running:
                self._loader.unload(name)

    def ask(self, key: Hashable, request: TextRequest, adapter: str | None) -> bool:
        """Start generating; false if there is no room, or while vLLM restarts or the adapter is being proved.

        Raises:
            RequestError: vLLM cannot serve the request, or the adapter is unknown.
            OverlongError: the prompt leaves no room in the context.
            TemplateError: the template cannot write the conversation.
            WorkError: vLLM has exited too often.
        """
        return self.admit(key, self.prepare(request), adapter)

    def prepare(self, request: TextRequest | PoolingRequest) -> _Prepared:
        """The request as token ids; thread-safe.

        Raises:
            RequestError: vLLM cannot serve the request.
            OverlongError: the prompt leaves no room in the context.
            TemplateError: the template cannot write the conversation.
        """
        assert isinstance(request, TextRequest)  # it does not support embeddings
        return fitted(request, self._prepared, lambda made: made.request.max_new_tokens)

    def _prepared(self, request: TextRequest) -> _Prepared:
        if request.tool_choice == "required":
            raise RequestError(
                "tool_choice 'required' with the engine vllm",
                expected="'auto' or 'none': its API for tokens cannot make an answer be a call",
                do="use 'auto', or the engines transformers and llama_cpp",
            )
        form = self._tools.form(request)
        ids, thinking = self._as_ids(request)
        # vLLM omits special tokens from the text, but delimiters of reasoning and calls must be visible.
        shows_special = bool(thinking.shown) or self._tools.has_special_marks(form)
        extra: dict[str, Any] = {"skip_special_tokens": False} if shows_special else {}
        if request.cache_scope is not None:
            # Its cache of prompts goes by the tokens otherwise, whoever has asked.
            extra["cache_salt"] = request.cache_scope
        # It shows all of them then, or none.
        hidden = self._tools.hidden(form, thinking.shown) if shows_special else None
        return _Prepared(ids, partial(CallsInText, request, form, hidden), extra, thinking)

    def num_prompt_tokens(self, prepared: _Prepared) -> int:
        """Tokens of a prepared prompt."""
        return len(prepared.request.token_ids or ())

    def admit(
        self,
        key: Hashable,
        prepared: _Prepared,
        adapter: str | None,
        *,
        owner: str | None = None,  # noqa: ARG002 - vLLM shares its time out itself
        may_exceed: bool = False,  # noqa: ARG002
    ) -> bool:
        """Start the request from `prepare`; false as in `ask`.

        Raises:
            RequestError: the engine is closed, the adapter is unknown, or it fails a test or is no longer accepted.
            WorkError: vLLM has exited too often.
        """
        self._check_open()
        if adapter is not None and adapter not in self._adapters:
            raise RequestError(
                f"adapter {adapter!r}",
                expected=f"one of {', '.join(sorted(self._adapters)) or 'none: no adapter is loaded'}",
                do="load the adapter before the request",
            )
        self._look_after()
        if self._stream is None:
            return False
        if adapter is not None and not self._is_ready(adapter):
            return False
        return self._stream.ask(
            key, prepared.request, adapter, calls=prepared.calls, extra=prepared.extra, thinking=prepared.thinking
        )

    def _is_ready(self, adapter: str) -> bool:
        path = self._adapters[adapter]
        if adapter in self._missing:
            self._loader.load(adapter, path)
            self._missing.discard(adapter)
        try:
            return self._loader.is_proved(adapter, path)
        except RequestError:
            self._missing.add(adapter)
            raise

    def cancel(self, key: Hashable) -> None:
        """Cancel this request."""
        self._events = [event for event in self._events if event[0] != key]
        if self._stream is not None:
            self._stream.cancel(key)

    def poll(self, wait_seconds: float) -> list[KeyedEvent]:
        """The events since the last call.

        Raises:
            WorkError: vLLM has exited too often.
        """
        self._check_open()
        self._look_after()
        if self._stream is not None and not self._events:
            self._events += self._stream.poll(min(wait_seconds, _LOOK_SECONDS))
        elif not self._events:
            time.sleep(min(wait_seconds, _LOOK_SECONDS))
        events, self._events = self._events, []
        return events

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """Generate one answer per prompt with the base model, in order.

        Raises:
            RequestError: a closed engine, or a prompt that cannot be written.
            OverlongError: a prompt leaves no room in the context.
            TemplateError: the template cannot write a conversation.
            WorkError: an answer failed, or vLLM has exited too often.
        """
        self._check_open()
        return generate_by_streaming(self, prompts, progress)

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """Not supported: vLLM's API returns no likelihoods that are comparable with those of other engines.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            f"likelihoods of {len(examples):,} rows from vLLM",
            expected="an engine that gives them exactly: transformers or llama_cpp",
            do="score with the engine transformers",
        )

    def close(self) -> None:
        """Stop the child process."""
        # Requests are cancelled before the child ends, so that they do not fail with a broken connection.
        self._is_open = False
        with ExitStack() as steps:  # in reverse order, each of them even if a previous one failed
            steps.callback(self._http.close)
            steps.callback(self._process.close)
            steps.callback(self._disconnect)

    def _check_open(self) -> None:
        if not self._is_open:
            raise RequestError("a closed engine", expected="an open one", do="open the engine again")

    def _as_ids(self, request: TextRequest) -> tuple[TextRequest, Thinking]:
        """The prompt as token ids, an answer limited by the context, and its reasoning settings."""
        template, thinking = self._template, NO_THINKING
        if request.conversation is not None:
            template, thoughts = self._templates.of(request)
        ids = ids_of(template, self._tools, request, self._context_tokens)
        if request.conversation is not None:
            room = self._context_tokens - len(ids) - request.max_new_tokens
            thinking = thoughts.of_answer(ids, request.max_thinking_tokens, room)
            if request.json_schema is not None and thinking.is_open:
                # vLLM enforces a schema from the first token, so the reasoning must have ended before.
                ids = checked([*ids, *thoughts.closing_ids], self._context_tokens)
                thinking = replace(thinking, is_open=False, max_tokens=0)
        room = self._context_tokens - len(ids)
        given: dict[str, Any] = {"conversation": None, "text": None, "token_ids": tuple(ids)}
        # Consumed: they are part of the ids, and vLLM must not render with them again.
        given |= {"template_options": {}, "trained_options": {}, "reasoning_effort": None, "opted_turns": AS_THEY_ARE}
        return request.model_copy(update=given | {"max_new_tokens": min(request.max_new_tokens, room)}), thinking

    def _look_after(self) -> None:
        """Restart an exited child once its pause is over; connect to one that has become ready."""
        if self._stream is not None:
            if self._process.is_running:
                return
            error = self._process.ended("in the middle")
            # Output from before the exit still counts; only then do the open requests fail.
            self._events += self._stream.poll(0)
            self._events += [(key, Failed.of(error)) for key in self._stream.keys]
            self._disconnect()
            self._failed("in the middle")
        elif self._process.is_running:
            if self._process.is_healthy():
                try:
                    self._connect()
                except WorkError:
                    # It no longer answers: treated as an exit, which the next check counts.
                    self._process.stop()
            elif time.monotonic() - self._begun > self._start_seconds:
                self._process.stop()
        # The last start is later than the last pause, so the exit of this child was not counted yet.
        elif self._begun > self._not_before:
            self._failed("before it could work")
        elif time.monotonic() >= self._not_before:
            self._begin()

    def _begin(self) -> None:
        self._begun = time.monotonic()
        self._process.start()

    def _failed(self, when: str) -> None:
        """Count an exit, and schedule the restart.

        Raises:
            WorkError: it exited too often.
        """
        # Only exits in quick succession count towards giving up.
        if time.monotonic() - self._begun > _LONG_SECONDS:
            self._num_failed = 0
        self._num_failed += 1
        if self._num_failed >= _NUM_STARTS:
            raise self._process.ended(f"{when}, {self._num_failed} times in a row")
        pause = min(self._first_pause * 2 ** (self._num_failed - 1), _LONGEST_PAUSE)
        self._not_before = time.monotonic() + pause

    def _connect(self) -> None:
        self._context_tokens = self._ask_context()
        # A restarted child has no adapters. One that can no longer be loaded (for example because its folder was
        # deleted) fails only its own requests, and affects neither the base nor other adapters.
        self._missing = set()
        self._loader.start_again()
        for name, path in self._adapters.items():
            try:
                self._loader.load(name, path)
            except LuthierError as error:
                log.warning("vLLM was started again without the adapter %s: %s", name, error)
                self._missing.add(name)
        # vLLM knows the end tokens of the model's files; those of the template may be others.
        extra = NO_DEFAULTS | {"stop_token_ids": list(self._template.end_of_turn_ids)}
        self._stream = OpenAIStreamEngine(
            f"{self._process.url}/v1",
            BASE,
            api_key=self._process.key,
            most_answers=256,
            extra=extra,
            socket_path=self._process.socket_path,
        )
        for name in self._adapters:
            self._stream.load_adapter(name, name)

    def _ask_context(self) -> int:
        response = self._ask_child("GET", "models")
        try:
            # Exactly one model has that name; anything else raises ValueError here.
            (found,) = (model["max_model_len"] for model in response.json()["data"] if model["id"] == BASE)
            return int(found)
        except (ValueError, KeyError, TypeError) as error:
            raise WorkError(
                f"vLLM lists its models as {response.text[:300]!r}",
                expected=f"the model {BASE!r} with its max_model_len",
                do="install a version of vLLM that reports it",
            ) from error

    def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _ask_child(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        try:
            return self._http.request(method, f"{self._process.url}/v1/{path}", json=body)
        except httpx2.HTTPError as error:
            raise WorkError(
                f"vLLM does not answer: {type(error).__name__}: {error}", expected="an answer", do="try again"
            ) from error


def open_stream_engine(
    served: Served, proof: AdapterProof | None = None, memory_share: float | None = None
) -> VllmEngine:
    """The engine over a transformers folder.

    Args:
        served: the model.
        proof: as of `VllmEngine`.
        memory_share: the part of a card that it may reserve; None leaves it to vLLM.

    Raises:
        RequestError: a quantised base is requested.
        ModelSourceError: a model that reads prompts in both directions.
        NotFoundError: vLLM is not installed.
        WorkError: it ends, or is not ready in time.
    """
    if served.quantisation is not None:
        raise RequestError(
            f"quantisation {served.quantisation} with the engine vllm",
            expected="a base that is not packed on loading",
            do="use the engine transformers, or serve an exported model",
        )
    refuse_configured_prefix_lm(Path(served.path))
    share = () if memory_share is None else ("--gpu-memory-utilization", str(memory_share))
    return VllmEngine(
        served.path,
        template=served.template,
        precision=served.precision,
        extra_arguments=[*settings_arguments(served.settings), *share],
        proof=proof,
    )


def settings_arguments(settings: EngineSettings) -> list[str]:
    """The settings of an engine as `vllm serve` takes them; nothing for what is left to vLLM."""
    given: list[str] = []
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        if (value := getattr(settings, name)) is not None:
            given += [f"--{name.replace('_', '-')}", str(value)]
    if settings.enable_prefix_caching is not None:
        given.append("--enable-prefix-caching" if settings.enable_prefix_caching else "--no-enable-prefix-caching")
    if settings.speculative_config is not None:
        given += ["--speculative-config", settings.speculative_config.for_vllm()]
    return given

"""Use case: serve some models by their names, and nothing else: no jobs, no files, no workers.

    luthier serve ---- python -m luthier.server.standalone_http    answers; a separate process holds the models

On an address that only this machine reaches no key is needed. On any other one it is: one of the home, or
one of those in a file.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from luthier.core.errors import LuthierError, RequestError, WorkError, validation_reason
from luthier.core.frozen_model import FrozenModel
from luthier.core.stream import ENGINE_DEFAULTS, EngineSettings, Served, SpeculativeConfig
from luthier.core.system.process_setup import environment_with, start_daemon
from luthier.core.task_head import TaskHead
from luthier.features.serving.engine_choice import EngineDecision, choose_engines
from luthier.features.serving.head_answers import example_request
from luthier.features.serving.loaded import EngineChoice, choose_models
from luthier.features.serving.models import head_of
from luthier.ml.export.serving_copy import CopyQuantization
from luthier.platform.auth.service import digest_of
from luthier.platform.home.context import Context
from luthier.platform.http.socket import Listener, listen
from luthier.platform.processes.stop_signals import interrupting_signals
from luthier.platform.processes.supervisor import Supervisor
from luthier.server.service import api_program, has_key, wait_until_it_answers

STANDALONE_CONFIG: Final = "LUTHIER_STANDALONE_CONFIG"
"""The variable that tells the process what to serve."""
_SHORTEST_KEY: Final = 16
_LOAD_SECONDS: Final = 1800.0


class StandaloneConfig(FrozenModel):
    """What the process of such a server serves, and to whom.

    Attributes:
        models: The models by name.
        key_digests: SHA-256 digests of keys that are accepted in addition to those of the home.
        is_open: Whether everybody is accepted without a key.
    """

    models: dict[str, Served]
    key_digests: tuple[str, ...] = ()
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class StandaloneRequest:
    """What is to be served.

    Attributes:
        models: Models as they were typed, each with an optional name.
        engine: What runs them.
        host: The address to listen on.
        port: The port; 0 takes any that is free.
        key_file: A file with keys, one a line; None for those of the home alone.
        settings: Of the engines; what is None there is as the environment has it.
        quantization: How the weights of GGUF copies are held; None as the environment has it.
    """

    models: tuple[str, ...]
    engine: EngineChoice = "auto"
    host: str = "127.0.0.1"
    port: int = 8521
    key_file: Path | None = None
    settings: EngineSettings = ENGINE_DEFAULTS
    quantization: CopyQuantization | None = None


@dataclass(frozen=True, slots=True)
class StandaloneServer:
    """A server that answers.

    Attributes:
        url: Where clients find it, without `/v1`.
        models: The models by name, each with the reason for its engine.
        is_open: Whether no key is needed.
        is_loopback: Whether only this machine can reach it.
    """

    url: str
    models: dict[str, EngineDecision]
    is_open: bool
    is_loopback: bool

    def as_json(self) -> dict[str, Any]:
        """The line of `luthier serve --json`."""
        models = {
            name: {"engine": one.served.engine, "path": one.served.path, "reason": one.reason}
            for name, one in self.models.items()
        }
        return {"url": self.url, "pid": os.getpid(), "models": models, "needs_key": not self.is_open}


def serve_models(
    context: Context,
    request: StandaloneRequest,
    *,
    stop_requested: Callable[[], str | None],
    tell: Callable[[str], None],
    started: Callable[[StandaloneServer], None],
    loaded: Callable[[str, float], None],
) -> None:
    """Serve models until a stop is requested.

    Args:
        context: The home.
        request: What to serve, and where to listen.
        stop_requested: Returns why to stop; None to continue.
        tell: Called with each line of the log.
        started: Called once the server answers.
        loaded: Called with the first model's name and the seconds until it answered.

    Raises:
        RequestError: Others can reach the address without a key, the file holds no keys, or a model cannot be served.
        NotFoundError: There is no such model.
        ConflictError: The port is taken, a run has no outcome, or an export is damaged or not proved.
        ModelSourceError: A base model could not be fetched.
        WorkError: The process or its first model does not start.
    """
    with listen(request.host, request.port) as listener:
        keys = () if request.key_file is None else read_keys(request.key_file)
        is_open = listener.is_loopback and not keys
        if not is_open and not keys and not has_key(context):
            raise RequestError(
                f"{listener.host} can be reached by others, and there is no key",
                expected="a key before anybody else can come in, or an address of this machine alone",
                do="give --api-key FILE, or make one: luthier keys create --name NAME --scopes infer",
            )
        if request.quantization is not None:
            changed = {"serving_quantization": request.quantization}
            context.settings = context.settings.model_copy(update=changed)
        # Nothing is being answered yet that would have to be finished: a signal ends the work, which may take minutes.
        with interrupting_signals():
            decisions = _choose_engines(context, request)
        models = {name: one.served for name, one in decisions.items()}
        # A key of this process for its own first question, in addition to other keys; only its digest is passed on.
        own = secrets.token_urlsafe(32)
        config = StandaloneConfig(models=models, key_digests=(*map(digest_of, keys), digest_of(own)), is_open=is_open)
        supervisor = Supervisor([api_program("luthier.server.standalone_http", context, listener)], tell=tell)
        try:
            with environment_with(_environment(context, config, request.settings)):
                supervisor.start()
                wait_until_it_answers(supervisor, listener, stop_requested)
                context.close()  # what is looked after needs no connection of ours
                if stop_requested() is None:
                    started(StandaloneServer(listener.url, decisions, is_open, listener.is_loopback))
                    first = next(iter(models))
                    _load(listener, first, head_of(models[first]), own, stop_requested, loaded)
                tell(f"stopping: {supervisor.watch(stop_requested)}")
        finally:
            supervisor.stop()


def _choose_engines(context: Context, request: StandaloneRequest) -> dict[str, EngineDecision]:
    chosen = choose_models(context, request.models, request.engine)
    if request.engine == "auto":
        return choose_engines(context, chosen)
    return {name: EngineDecision(served, "as --engine says") for name, served in chosen.items()}


def read_engine_settings(
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    enable_prefix_caching: bool | None,
    speculative_config: str | None,
) -> EngineSettings:
    """The settings of engines as a command names them; None means the default of the engine.

    Args:
        max_num_seqs: Requests that are computed together.
        max_num_batched_tokens: Tokens of prompts in one step.
        enable_prefix_caching: Whether prompts share what was computed of a common beginning.
        speculative_config: How drafts of tokens are made, as JSON.

    Raises:
        RequestError: A value that is not allowed, or that does not go with another.
    """
    try:
        drafts = None if speculative_config is None else SpeculativeConfig.model_validate_json(speculative_config)
        return EngineSettings(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
            speculative_config=drafts,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise RequestError(
            f"settings of the engine: {f'{place}: ' if place else ''}{validation_reason(first)}",
            expected='values such as --max-num-seqs 16 --speculative-config \'{"method": "ngram", '
            '"num_speculative_tokens": 8}\'',
            do="correct it: docs/serving.md lists them",
        ) from error


def read_keys(file: Path) -> tuple[str, ...]:
    """The keys in a file, one a line; empty lines and those that begin with # are skipped.

    Raises:
        RequestError: The file cannot be read, holds no key, or one that is too short.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"the keys in {file} cannot be read: {error}", expected="a text file, one key a line", do="correct it"
        ) from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    short = sum(len(key) < _SHORTEST_KEY for key in keys)
    if not keys or short:
        raise RequestError(
            f"{file} holds {f'{short} keys that are too short' if short else 'no key'}",
            expected=f"keys of at least {_SHORTEST_KEY} characters, one a line",
            do="make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return keys


def _environment(context: Context, config: StandaloneConfig, settings: EngineSettings) -> dict[str, str]:
    """The environment of the processes."""
    given = {"LUTHIER_HOME": str(context.home), STANDALONE_CONFIG: config.model_dump_json()}
    for name, value in settings.model_dump(mode="json", exclude_none=True).items():
        given[f"LUTHIER_{name.upper()}"] = value if isinstance(value, str) else json.dumps(value)
    return given


def _load(
    listener: Listener,
    model: str,
    head: TaskHead | None,
    key: str,
    stop_requested: Callable[[], str | None],
    loaded: Callable[[str, float], None],
) -> None:
    """Ask a model a first question, so that the first request does not wait for it to be loaded.

    Raises WorkError where it cannot be loaded: users who serve a broken model learn it immediately.
    """
    began, problem = time.monotonic(), list[LuthierError | None]()
    # In a thread: loading takes minutes, and a stop must be noticed meanwhile. A list, since append is atomic.
    start_daemon(lambda: problem.append(_first_answer(listener, model, head, key)), "first-answer")
    while not problem and stop_requested() is None:
        time.sleep(0.05)
    if problem and problem[0] is not None:
        raise problem[0]
    if problem:
        loaded(model, time.monotonic() - began)


def _first_answer(listener: Listener, model: str, head: TaskHead | None, key: str) -> LuthierError | None:
    """What is wrong with it, None where nothing is."""
    connection = http.client.HTTPConnection(listener.near_host, listener.port, timeout=_LOAD_SECONDS)
    # One token is enough of a model that writes.
    written = "/v1/completions", {"model": model, "prompt": "Hello", "max_tokens": 1}
    route, body = written if head is None else example_request(model, head)
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", route, json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status == http.client.OK:
            return None
        words = json.loads(answer.read())["error"]["message"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        words = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return WorkError(
        f"{model} cannot answer: {words}", expected="an answer to a first question", do="see the messages above"
    )

"""Engines that generate text: one at a time for evaluated systems, and teachers for synthetic rows.

`EnginePool` keeps one model in memory. A teacher is a base model, a run, or a model behind an OpenAI-compatible server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.conversation import AS_THEY_ARE
from luthier.core.data_sources import LOOPBACK
from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.ids import sha256_document, sha256_file
from luthier.core.ports import Engine, Generation, Progress, Prompt, Score
from luthier.features.generation.shared_engine import SharedEngine
from luthier.features.models.names import find_model
from luthier.features.models.resolve import Candidate, TemplatedEngine, engine_key, find_candidate, open_engine
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.kl_to_base import StatesEngine
    from luthier.ml.inference.engine_wrappers import CachedEngine, Keep
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.inference.openai.batch_api import OpenAIBatchEngine
    from luthier.ml.inference.openai.http import OpenAIHttpEngine


@dataclass(frozen=True, slots=True)
class _Loaded:
    candidate: Candidate
    engine: Engine


class EnginePool:
    """Loads a model when it first writes or scores, and lets go of the one before.

    Systems of one base and adapter, such as a base with and without examples in its prompt, share an engine.

    Args:
        open_engine: loads a candidate.
        over_base: the engine of a candidate with an adapter, made of that of its base, which is loaded and not used
            afterwards; None loads the base again.
    """

    def __init__(
        self,
        open_engine: Callable[[Candidate], Engine],
        over_base: Callable[[Candidate, Engine], Engine] | None = None,
    ) -> None:
        self._open_engine, self._over_base = open_engine, over_base
        self._loaded: _Loaded | None = None
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the engines that were closed so far had to say of how they worked."""
        return tuple(self._notes)

    def engine(self, candidate: Candidate) -> TemplatedEngine:
        """An engine that needs no memory until it is used.

        Raises:
            NotFoundError, ModelSourceError: no model or no adapter in its folder, before another system is evaluated.
        """
        from luthier.ml.inference.models.loading import check_adapter

        if candidate.adapter_path is not None:
            # Before anything is evaluated: a missing adapter of the last system must not surface after an hour.
            check_adapter(candidate.adapter_path)
        template = candidate.chat_template()
        # Without `auto`: a base by name and the base of a run, whose plan holds the kind, share an engine.
        return _Pooled(self, replace(candidate, template=template.kind), template)

    def load_for_states(self, candidate: Candidate) -> StatesEngine:
        """The engine of a candidate, loaded, for its hidden states.

        Raises:
            RequestError: it gives none.
        """
        engine = self.load_own(replace(candidate, template=candidate.chat_template().kind))
        if not hasattr(engine, "hidden_states"):
            raise RequestError(
                f"{engine.name} gives no hidden states", expected="the engine transformers", do="evaluate with that one"
            )
        return cast("StatesEngine", engine)

    def load(self, candidate: Candidate) -> Engine:
        """The engine of a candidate, loaded; the engine of another one is closed first."""
        if self._loaded is None or engine_key(self._loaded.candidate) != engine_key(candidate):
            base = self._forgotten()
            if self._over_base is not None and base is not None and _is_over(candidate, base.candidate):
                # Reading a large base from the disk takes minutes.
                engine = self._over_base(candidate, base.engine)
            else:
                # Closed before the next is opened: two models together may not fit into the memory.
                if base is not None:
                    base.engine.close()
                del base
                engine = self._open_engine(candidate)
            self._loaded = _Loaded(candidate, engine)
        return self._loaded.engine

    def load_own(self, candidate: Candidate) -> Engine:
        """The engine of a candidate with its weights in this process, also where the server's writes its texts."""
        engine = self.load(candidate)
        return engine.own() if isinstance(engine, SharedEngine) else engine

    def close(self) -> None:
        """Let go of what is loaded."""
        if (loaded := self._forgotten()) is not None:
            loaded.engine.close()

    def _forgotten(self) -> _Loaded | None:
        """What was loaded, of which the pool keeps the notes alone."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            # A dict keeps the order and drops repeated notes.
            self._notes |= dict.fromkeys(getattr(loaded.engine, "notes", ()))
        return loaded


def _is_over(candidate: Candidate, base: Candidate) -> bool:
    """Whether a candidate is an adapter over a base, run as that is."""
    if candidate.adapter_path is None or base.has_task_head:
        return False
    return engine_key(replace(candidate, adapter_path=None)) == engine_key(base)


class _Pooled:
    """One candidate's engine, by way of the pool."""

    def __init__(self, pool: EnginePool, candidate: Candidate, template: ChatTemplate) -> None:
        self._pool, self._candidate, self._template = pool, candidate, template

    @property
    def name(self) -> str:
        return self._pool.load(self._candidate).name

    @property
    def template(self) -> ChatTemplate:
        return self._template

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        return self._pool.load(self._candidate).generate(prompts, progress)

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        return self._pool.load(self._candidate).score(examples, progress)

    def close(self) -> None:
        self._pool.close()


OWN_KEY, OPENAI_KEY = "LUTHIER_TEACHER_API_KEY", "OPENAI_API_KEY"


CostOf = Callable[[int, int], float | None]
"""US dollars for tokens of prompts and of answers; None where no price is known."""


@dataclass(frozen=True, slots=True)
class BatchUse:
    """How a server is asked by OpenAI's Batch API: within a day, at some providers for less.

    Attributes:
        cost_of: What it gives is shown before files are uploaded.
        waits: Whether calls wait until the batches have ended; else they raise StillRunningError.
    """

    cost_of: CostOf
    waits: bool = True


def find_teacher(context: Context, name: str, *, num_answers: int = 0, batches: BatchUse | None = None) -> CachedEngine:
    """The engine behind a name, behind the project's stored generations; opened when it is first asked something new.

    The key for a server comes from the environment: LUTHIER_TEACHER_API_KEY, or OPENAI_API_KEY over https or to this
    machine.

    Args:
        context: The home.
        name: Any name of a model, or `http(s)://host:port/v1#MODEL`.
        num_answers: How many answers the work needs in all, where it asks for them in several calls: for many of them
            the server's engine is asked, where it has the model in memory (`SharedEngine`).
        batches: Given, a server is asked by OpenAI's Batch API.

    Raises:
        RequestError: An address without a model, or with a key in it, or the Batch API of a model on this machine.
        NotFoundError: No such base model or run.
        ConflictError: The run has no trained weights yet.
    """
    from luthier.ml.inference.engine_wrappers import CachedEngine

    if is_address(name):
        url, model = parse_address(name)
        return CachedEngine(
            lambda keep: (
                _open_server(url, model, keep) if batches is None else _open_batches(context, url, model, keep, batches)
            ),
            context.generations.of_project(context.cache_project_id),
            name=f"{url}#{model}",
            identity={"engine": "openai_http", "url": url, "model": model},
        )
    if batches is not None:
        raise RequestError(
            f"--batch with {name}, a model on this machine",
            expected="http(s)://host:port/v1#MODEL, where a server has OpenAI's Batch API",
            do="leave --batch out",
        )
    candidate = find_candidate(context, name)
    found = find_model(context, name)
    return CachedEngine(
        lambda keep: SharedEngine(
            context, candidate, lambda: open_engine(candidate), num_expected=num_answers, keep=keep
        ),
        context.generations.of_project(context.cache_project_id),
        # By run: a deployment may route elsewhere tomorrow, and the name is stored with what was written.
        name=candidate.model_name if found.run_id is None else found.name,
        identity=identity_of(context, name, candidate),
    )


def check_writes(context: Context, name: str, asked: str) -> Candidate | None:
    """Check that a model can be asked for text, before anything long begins; nothing is loaded or sent.

    Args:
        context: The home.
        name: As for `find_teacher`.
        asked: The setting that names it, for the error.

    Returns:
        The model where it is on this machine; None where a server has it.

    Raises:
        RequestError: An address without a model or with a key in it, or a model that gives no text.
        NotFoundError: No such base model or run.
        ConflictError: The run has no trained weights yet.
    """
    if is_address(name):
        parse_address(name)
        return None
    found = find_candidate(context, name)
    if found.has_task_head:
        raise RequestError(
            f"{asked}: {name}, which has a task head",
            expected="a model that writes text",
            do="name a base model, a run that writes, or http(s)://host:port/v1#MODEL",
        )
    return found


def is_address(name: str) -> bool:
    """Whether a name means a model behind a server."""
    return name.lower().startswith(("http://", "https://"))


def parse_address(text: str) -> tuple[str, str]:
    """`http://host:8000/v1#model` -> URL without a slash at its end, and model.

    Raises:
        RequestError: It is no URL, carries a user, a password or a query, or names no host or no model.
    """
    try:
        parts = urlsplit(text)
        # `port` is parsed lazily and raises ValueError only when it is read.
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise RequestError(
            f"the address {text!r} is not a URL: {error}", expected="http://host:port/v1#MODEL", do="correct it"
        ) from error
    # The name of a teacher is stored in rows and reports; a secret in it would be published with them.
    if parts.username is not None or parts.password is not None or parts.query:
        raise RequestError(
            f"the address of the server at {host} carries a user, a password or a query",
            expected="http(s)://host:port/v1#MODEL; command lines are seen by others and kept in histories",
            do=f"put the key into the variable {OWN_KEY}",
        )
    url = f"{parts.scheme.lower()}://{parts.netloc}{parts.path}".rstrip("/")
    if not host or not parts.fragment:
        raise RequestError(
            f"the address {text!r} names no {'model' if host else 'host'}",
            expected="http(s)://host:port/v1#MODEL",
            do=f"write the model after a #; {url}/models lists them" if host else "write it as expected",
        )
    return url, parts.fragment


def api_key(url: str, environment: Mapping[str, str], *, own: str = OWN_KEY) -> str | None:
    """The key to send to a server: Luthier's own variable, or OpenAI's where the connection is private."""
    if key := environment.get(own, "").strip():
        return key
    parts = urlsplit(url)
    # OPENAI_API_KEY is often set for other programs: it must not go in clear text to an arbitrary host.
    is_safe = parts.scheme == "https" or parts.hostname in LOOPBACK
    return (environment.get(OPENAI_KEY, "").strip() or None) if is_safe else None


def _open_server(url: str, model: str, keep: Keep) -> OpenAIHttpEngine:
    from luthier.ml.inference.openai.http import OpenAIHttpEngine

    return OpenAIHttpEngine(url, model, api_key=api_key(url, os.environ), keep=keep)


def _open_batches(context: Context, url: str, model: str, keep: Keep, batches: BatchUse) -> OpenAIBatchEngine:
    from luthier.ml.inference.openai.batch_api import OpenAIBatchEngine
    from luthier.ml.inference.openai.http import OpenAIHttpEngine

    key = api_key(url, os.environ)
    live = OpenAIHttpEngine(url, model, api_key=key)
    # What is recorded shows what was asked, as stored generations do: each project has its own.
    folder = context.settings.teacher_batches_folder
    if context.cache_project_id != DEFAULT_PROJECT:
        folder /= context.cache_project_id
    return OpenAIBatchEngine(live, folder, api_key=key, keep=keep, cost_of=batches.cost_of, waits=batches.waits)


def identity_of(context: Context, name: str, candidate: Candidate) -> dict[str, Any]:
    """What decides the answers of a model on this machine: digests of weights, adapter and template, and precision."""
    # The key of the cache: everything that changes the text has to be in it, or stale answers come back.
    common = {"engine": "transformers", "template": candidate.template, "precision": candidate.precision}
    model = find_model(context, name)
    if model.run_id is not None:
        plan, result = context.runs.plan(model.run_id), context.runs.get(model.run_id).result
        outcome = result.adapter_sha256 if result else None
        return {
            **common,
            "sha256": plan.base_model.sha256,
            "template_sha256": plan.base_model.template_sha256,
            "trained_sha256": _digest_of_weights(candidate) if model.is_checkpoint else outcome,
            **_turns_of(candidate),
        }
    from luthier.ml.inference.models import sources

    local = sources.pull(candidate.model_name, context.home, context.progress)
    trained = {} if candidate.adapter_path is None else {"trained_sha256": _digest_of_weights(candidate)}
    packed = {} if candidate.quantisation is None else {"quantisation": candidate.quantisation}
    return {
        **common,
        "sha256": local.sha256,
        "template_sha256": local.template_sha256,
        **trained,
        **packed,
        **_turns_of(candidate),
    }


def _turns_of(candidate: Candidate) -> dict[str, Any]:
    """How a candidate writes conversations, where it is not as its template does by itself."""
    options, opted = dict(candidate.template_options), candidate.opted_turns
    return ({"template_options": options} if options else {}) | (
        {} if opted == AS_THEY_ARE else {"opted_turns": opted.model_dump(mode="json")}
    )


def _digest_of_weights(candidate: Candidate) -> str:
    """The digest of what was trained, where no record has it."""
    folder = Path(candidate.adapter_path or candidate.model_path)
    return sha256_document([sha256_file(file) for file in sorted(folder.glob("*.safetensors"))])

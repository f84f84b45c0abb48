"""Who is judged by tasks: base models, runs, tuned models by name, and models behind a server, which only write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.ids import is_id
from luthier.core.ports import Engine, Generation, Progress, Prompt, Score
from luthier.features.generation.teachers import find_teacher, is_address
from luthier.features.models.resolve import (
    Candidate,
    find_base,
    find_candidate,
    open_engine,
    readable,
    system_under_test,
    tuned,
)
from luthier.features.recipes.evaluation_checks import have_text_answers
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.inference.cached_engine import CachedEngine

TUNED = "ft:"


@dataclass(frozen=True, slots=True)
class Server:
    """A model behind an OpenAI-compatible server, by its address: it writes, and tells no likelihoods."""

    name: str
    address: str
    shots: tuple[Example, ...] = ()


System = Candidate | Server


def find_system(context: Context, name: str, *, project_id: str = DEFAULT_PROJECT) -> System:
    """A system by the name of a base model, a run, a tuned model (`ft:...`) or `http(s)://host/v1#MODEL`.

    Raises:
        NotFoundError: No such model or run, or a tuned model that is not the project's.
        ConflictError: A run that has made no weights.
        RequestError: An address that is none.
    """
    from luthier.features.generation.teachers import parse_address

    if is_address(name):
        url, model = parse_address(name)
        return Server(name=f"{url}#{model}", address=f"{url}#{model}")
    if name.startswith(TUNED):
        made = context.tuned_models.get(project_id, name)
        # A trained prompt takes room from the context, which is thus shorter than the base's.
        num_virtual = context.runs.plan(made.run_id).method.num_virtual_tokens or 0
        return tuned(name, find_base(context, made.run_id), made.adapter_path, num_virtual)
    return find_candidate(context, name)


def run_of(context: Context, name: str, *, project_id: str = DEFAULT_PROJECT) -> str | None:
    """The run that the system of this name was made by; None for others."""
    if name.startswith(TUNED):
        return context.tuned_models.get(project_id, name).run_id
    return name if is_id(name, "run") else None


def engine_of(context: Context, system: System) -> Engine:
    """The engine that runs a system; a server's answers are kept in the home, so that none is paid for twice."""
    if isinstance(system, Server):
        return ServerEngine(find_teacher(context, system.address))
    return open_engine(system)


class ServerEngine:
    """A cached engine as the door of engines asks for it: an overlong prompt is an error, likelihoods are refused."""

    def __init__(self, cached: CachedEngine) -> None:
        self._cached = cached

    @property
    def name(self) -> str:
        """The address."""
        return self._cached.name

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One generation a prompt, in order.

        Raises:
            OverlongError: A prompt is over the context; the first such error.
            WorkError: The server gives no answer.
        """
        found = self._cached.generate_each(prompts, progress)
        # All are answered first, so what came is in the cache and is not paid for again after the error.
        written = [one for one in found if isinstance(one, Generation)]
        for one in found:
            if not isinstance(one, Generation):
                raise one
        return written

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """Raises RequestError, always: a task that needs them is refused before anything runs."""
        raise RequestError(
            f"likelihoods of {len(examples):,} rows from {self.name}",
            expected="a model on this machine",
            do="leave the task out, or judge a base model or a run by it",
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._cached.close()


def as_judged(
    system: System,
    engine: Engine,
    examples: Sequence[Example],
    max_new_tokens: int,
    options: Sequence[Sequence[str]] = (),
    rests: Sequence[str] = (),
) -> SystemUnderTest:
    """A system with the rows as it sees them.

    Args:
        system: Who is judged.
        engine: That runs it.
        examples: The rows.
        max_new_tokens: Of an answer.
        options: Texts of each row that are compared by likelihood; empty for none.
        rests: Where rows are plain texts that are only begun, what follows of each; else empty.

    Raises:
        OverlongError: A row does not fit into the model's context.
    """
    from luthier.ml.inference.transformers_engine import TransformersEngine

    if isinstance(system, Candidate):
        assert isinstance(engine, TransformersEngine)
        return system_under_test(system, engine, examples, max_new_tokens, options=options, rests=rests)
    return _behind_server(system, engine, examples, max_new_tokens)


def _behind_server(system: Server, engine: Engine, examples: Sequence[Example], max_new_tokens: int) -> SystemUnderTest:
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.evaluation.few_shot import with_shots

    has_answers = have_text_answers(examples)
    seen = [with_shots(e, system.shots) for e in examples] if has_answers else []
    return SystemUnderTest(
        name=system.name,
        model=system.address,
        adapter=None,
        num_few_shot=len(system.shots),
        engine=engine,
        prompts=tuple(Prompt(conversation=e.prompt, max_new_tokens=max_new_tokens) for e in seen),
        references=tuple(e.reference or "" for e in examples) if has_answers else (),
        row_ids=tuple(e.id for e in examples),
        prompt_texts=tuple(readable(e.prompt) for e in examples) if has_answers else (),
        tokenised=(),
        num_bytes=(),
    )

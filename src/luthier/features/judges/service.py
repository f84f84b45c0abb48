"""Who judges: a base model, a run, a GGUF file, or a model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import NotFoundError, OverlongError, RequestError
from luthier.core.ids import is_id
from luthier.core.ports import Engine, Generation, Progress, Prompt, Score
from luthier.features.generation.teachers import find_teacher, is_address, parse_address
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.inference.cached_engine import CachedEngine


def open_judge(context: Context, name: str) -> Engine:
    """The engine behind a judge's name, with the home's cache in front of it: no question is paid for twice.

    The weights are loaded with the first new question. Close the engine after use.

    Args:
        name: A base model, a run, a GGUF file (ends in .gguf), or `http(s)://host:port/v1#MODEL`.

    Raises:
        RequestError: An address without a model, or with a key in it.
        NotFoundError: No such file, base model or run.
    """
    return _Judge(_find_file(context, Path(name)) if _is_file(name) else find_teacher(context, name), judge_name(name))


def judge_name(name: str) -> str:
    """The name that results and calibrations know a judge by. Raises RequestError for an address without a model."""
    # Normalised (no slash at the end, lower-case scheme), so that calibrations are found again.
    return "#".join(parse_address(name)) if is_address(name) else name


def same_base(context: Context, judge: str, systems: Mapping[str, str]) -> tuple[str, ...]:
    """A caution for each system that shares its base model with the judge, since judges prefer what they would write.

    systems: by the name that is shown, what each was made of: a base model, a run, or an address. Panickssery et al.,
    2024, "LLM Evaluators Recognize and Favor Their Own Generations", arXiv:2404.13076.
    """
    own = _base_of(context, judge)
    return tuple(
        f"{judge} judges {shown}, and both are {own}: models are known to prefer what they would have written. Let "
        "another model judge, or people."
        for shown, made_of in systems.items()
        # Compared by the last part of the name: quantised copies and re-uploads are the same model.
        if _plain(_base_of(context, made_of)) == _plain(own)
    )


def _base_of(context: Context, name: str) -> str:
    """The base model that something was made of; the name itself where nothing more is known."""
    if is_address(name):
        return parse_address(name)[1]
    if is_id(name, "run"):
        try:
            return context.runs.plan(name).base_model.name
        except NotFoundError:  # a run of another home: ratings may come from there
            return name
    return name


def _plain(name: str) -> str:
    """`Org/Model-7B`, `model-7b` and `/models/model-7b.gguf` are one name."""
    return PurePath(name).name.casefold().removesuffix(".gguf")


def _is_file(name: str) -> bool:
    return not is_address(name) and name.lower().endswith(".gguf")


def _find_file(context: Context, path: Path) -> CachedEngine:
    from luthier.core.digest import sha256_file
    from luthier.ml.inference.cached_engine import CachedEngine

    if not path.is_file():
        raise NotFoundError(f"no file {path}", expected="a GGUF file", do="correct the path")

    def open_file() -> Engine:
        from luthier.ml.inference.llama_cpp.cpp import LlamaCppEngine

        return LlamaCppEngine(path)

    return CachedEngine(
        lambda _: open_file(),
        context.generations,
        name=str(path),
        # By content: a file that is replaced under its name must not get the answers of the old one.
        identity={"engine": "llama_cpp", "sha256": sha256_file(path)},
    )


class _Judge:
    """A cached engine as an engine that writes."""

    def __init__(self, cached: CachedEngine, name: str) -> None:
        self._cached, self.name = cached, name

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One generation a prompt, in order. Raises OverlongError where one is over the context, when all are done."""
        made = self._cached.generate_each(prompts, progress)
        # Raised after all were generated: the finished answers are in the cache and not paid for again.
        for one in made:
            if isinstance(one, OverlongError):
                raise one
        return [one for one in made if isinstance(one, Generation)]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """A judge answers in text. Raises RequestError, always."""
        raise RequestError(
            f"likelihoods of {len(examples):,} rows from the judge {self.name}",
            expected="questions that are answered in words",
            do="judge likelihoods with the models themselves",
        )

    def close(self) -> None:
        """Let go of the weights, where they were loaded."""
        self._cached.close()

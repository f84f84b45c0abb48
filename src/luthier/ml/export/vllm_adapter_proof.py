"""Proof of adapters that vLLM serves: the same greedy answers and log-probabilities as in transformers.

The side of transformers (the base in float32 with the adapter unmerged, and without it) is computed once for an
adapter, in a child process, and kept as a file. vLLM's side is asked of the running server at each load, which takes a
few requests. What decides is `parity.compare`, as for exports: likelihoods within a bound, the same greedy text, and an
adapter that is not nearer to the base than to itself.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field, ValidationError

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import run_child
from luthier.core.conversation import Conversation
from luthier.core.errors import LuthierError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_document
from luthier.core.ports import SilentProgress
from luthier.core.recipe import TemplateOption
from luthier.core.records.export import ExportSource
from luthier.core.stream import Served
from luthier.core.system.process_setup import start_daemon
from luthier.ml.inference.models.structure import read_json

if TYPE_CHECKING:
    from luthier.ml.export.runtimes.protocol import LogProbabilities
    from luthier.ml.export.source_side import ObservedSource, SourceAnswer
    from luthier.ml.inference.vllm.answers import Complete, VllmAnswers

log = logging.getLogger("luthier.engines")

NUM_PROMPTS: Final = 8
BOUND_NATS: Final = 0.01
"""The largest difference of a log-probability that is allowed where vLLM computes in float32."""
BOUND_NATS_16_BITS: Final = 1.0
"""The same where it computes in 16 bits: the rounding of a format such as `gguf` in bfloat16."""
MEAN_NATS_16_BITS: Final = 0.1
"""What decides in 16 bits where single positions differ by more, as where a router then takes other experts: the mean
difference, beside an adapter that is not nearer to its base."""
_NO_BOUND: Final = 1e6
_FORMAT: Final = 1
_OBSERVE: Final = f"{__name__}:observe"


class _Likeliest(FrozenModel):
    """`source_side.Likeliest` as JSON: [positions, tokens]."""

    ids: tuple[tuple[int, ...], ...]
    nats: tuple[tuple[float, ...], ...]


class _Answer(FrozenModel):
    """The fields of `source_side.SourceAnswer` that follow from the weights."""

    start: int
    top: _Likeliest
    base_nats: tuple[tuple[float, ...], ...] | None
    nll_nats: float
    greedy_ids: tuple[int, ...]
    greedy_top: _Likeliest


class TransformersSide(FrozenModel):
    """What transformers answers with an adapter.

    Attributes:
        vocabulary: the number of logits.
        end_ids: the tokens that end an answer.
        answers: to each prompt of the proof.
    """

    vocabulary: int
    end_ids: tuple[int, ...]
    answers: tuple[_Answer, ...] = Field(min_length=1)


class TransformersProof:
    """An `AdapterProof` for one base.

    Args:
        served: the base as vLLM serves it.
        folder: where the sides of transformers are kept; may be deleted at any time.
        memory_bytes: memory that the computation may take; an adapter over a larger base is served unproved.
        needed_bytes: memory that it takes: the base's weights in float32.
        run: runs a function of a child process, by its name; for tests.
    """

    def __init__(
        self,
        served: Served,
        folder: Path,
        *,
        memory_bytes: int,
        needed_bytes: int,
        run: Callable[..., Any] = run_child,
    ) -> None:
        self._served, self._folder, self._run = served, folder, run
        self._why_not = _why_not(served, memory_bytes, needed_bytes)
        # By file, so that an adapter that is written again is another one; threads write one item each.
        self._sides: dict[Path, TransformersSide] = {}
        self._is_made: dict[Path, threading.Event] = {}

    def prepare(self, path: str) -> bool:
        """Whether the side of transformers is known for this adapter; starts to compute it where it is not."""
        if self._why_not is not None:
            return True
        file = self._file(path)
        if (made := self._is_made.get(file)) is None:
            made = self._is_made[file] = threading.Event()
            if (side := _read(file)) is not None:
                self._sides[file] = side
                made.set()
            else:
                start_daemon(partial(self._make, path, file, made), f"proof of {path}")
        return made.is_set()

    def check(self, name: str, path: str, complete: Complete) -> None:
        """Compare the adapter in vLLM with transformers; one that cannot be compared is served with a warning.

        Raises:
            RequestError: it gives other answers.
            WorkError: vLLM does not answer.
        """
        from luthier.ml.export.parity import compare
        from luthier.ml.inference.vllm.answers import VllmAnswers

        side = None if self._why_not is not None else self._sides.get(self._file(path))
        if side is None:
            log.warning(
                "the adapter %s is served without a proof against transformers: %s",
                path,
                self._why_not or "its side of transformers could not be computed",
            )
            return
        seen = _observed(_source(self._served, path), side)
        runtime = _ServedAdapter(VllmAnswers(complete, name, seen.vocabulary), seen, side.end_ids)
        is_exact = self._served.precision == "float32"
        bound = BOUND_NATS if is_exact else BOUND_NATS_16_BITS
        report = compare(seen, runtime, "adapter", "float32", SilentProgress(), bound_nats=bound)
        passed = report.passed
        if not passed and not is_exact and report.mean_difference_nats <= MEAN_NATS_16_BITS:
            # Everything but single positions: tokens, the base, and the likelihood of the references.
            passed = compare(seen, runtime, "adapter", "float32", SilentProgress(), bound_nats=_NO_BOUND).passed
        if passed:
            log.info(
                "the adapter %s is proved in vLLM: %d of %d greedy texts equal, log-probabilities within %.3g nats, "
                "%.3g in the mean",
                path,
                report.num_texts_equal,
                report.num_prompts,
                report.max_difference_nats,
                report.mean_difference_nats,
            )
            return
        raise RequestError(
            f"the adapter {name!r} at {path} gives other answers in vLLM than in transformers: "
            f"{' '.join(report.reasons)}",
            expected=f"on {report.num_prompts} prompts the greedy texts of transformers, and log-probabilities within "
            f"{bound:g} nats",
            do="serve it merged (luthier export RUN --to merged) or with the engine transformers",
        )

    def _make(self, path: str, file: Path, made: threading.Event) -> None:
        try:
            source = _source(self._served, path)
            title = f"Running {Path(path).name} in transformers"
            made_side = self._run(_OBSERVE, {"source": source.model_dump(mode="json")}, title=title)
            self._sides[file] = TransformersSide.model_validate(made_side)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(made_side), encoding="utf-8")
            part.rename(file)
        except (LuthierError, OSError, MemoryError) as error:
            log.warning("the side of transformers of the adapter %s is not kept or not known: %s", path, error)
        finally:
            made.set()

    def _file(self, path: str) -> Path:
        """By all that decides what transformers answers."""
        served = self._served
        stamps = [_stamp(folder) for folder in (Path(served.path), Path(path))]
        key = [_FORMAT, NUM_PROMPTS, served.path, served.sha256, served.template, path, stamps, _versions()]
        return self._folder / f"{sha256_document(key)[:32]}.json"


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Sizes and times of weights and settings: hashing gigabytes would take longer than the proof."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")])
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@cache
def _versions() -> list[str]:
    return [version(name) for name in ("luthier", "torch", "transformers", "peft")]


def _why_not(served: Served, memory_bytes: int, needed_bytes: int) -> str | None:
    """Why adapters over a base cannot be compared with transformers; None where they can."""
    if "quantization_config" in read_json(Path(served.path) / "config.json"):
        return "the weights of the base are packed, and transformers does not read them here"
    if needed_bytes > memory_bytes:
        return f"it takes {needed_bytes / 1e9:.1f} GB of memory, and models may take {memory_bytes / 1e9:.1f}"
    return None


def _source(served: Served, adapter_path: str) -> ExportSource:
    """The adapter as a proof takes it: without the options of its training, which change prompts on both sides."""
    name = Path(served.path).name
    return ExportSource(
        name=Path(adapter_path).name,
        run_id=None,
        base_name=name,
        base_path=served.path,
        base_sha256=served.sha256,
        adapter_path=adapter_path,
        template=served.template,
        precision="float32",
    )


def _read(file: Path) -> TransformersSide | None:
    """What was kept; None where nothing was, or it cannot be read: it is computed again."""
    try:
        return TransformersSide.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def observe(document: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """In a child process: what transformers answers with an adapter, and without it.

    Args:
        document: `source` (`ExportSource`).
        channel: not used.

    Returns:
        `TransformersSide` as JSON.

    Raises:
        RequestError: no example fits, or none has a reference.
        DivergedError: the likelihoods of the source are not finite.
        NotFoundError: the model is missing.
        ModelSourceError: the model is damaged.
        TemplateError: the template cannot write an example.
    """
    from luthier.ml.export.exporters.companions import source_template
    from luthier.ml.export.source_side import built_in_examples, observe_source

    del channel
    source = ExportSource.model_validate(document["source"])
    seen = observe_source(source, built_in_examples()[:NUM_PROMPTS], SilentProgress())
    fields = ("start", "top", "base_nats", "nll_nats", "greedy_ids", "greedy_top")
    answers = [
        {name: value for name, value in asdict(_of_reference(answer)).items() if name in fields}
        for answer in seen.answers
    ]
    return {
        "vocabulary": seen.vocabulary,
        "end_ids": list(source_template(source).end_of_turn_ids),
        "answers": json.loads(json.dumps(answers, default=lambda array: array.tolist())),
    }


def _of_reference(answer: SourceAnswer) -> SourceAnswer:
    """The same without the positions inside the prompt: each that is left is a request to vLLM."""
    start = max(answer.start, len(answer.prompt_ids) - 1)
    num = start - answer.start
    top = replace(answer.top, ids=answer.top.ids[num:], nats=answer.top.nats[num:])
    base = None if answer.base_nats is None else answer.base_nats[num:]
    return replace(answer, start=start, top=top, base_nats=base)


def _observed(source: ExportSource, side: TransformersSide) -> ObservedSource:
    """What `observe` has returned, with the prompts, which are made again."""
    import numpy as np

    from luthier.ml.export.exporters.proof_prompts import source_prompts
    from luthier.ml.export.source_side import Likeliest, ObservedSource, SourceAnswer, built_in_examples

    def likeliest(one: _Likeliest) -> Likeliest:
        return Likeliest(np.asarray(one.ids, dtype=np.int64), np.asarray(one.nats, dtype=np.float32))

    prompts = source_prompts(source, built_in_examples()[:NUM_PROMPTS])
    answers = [
        SourceAnswer(
            prompt.conversation,
            prompt.text,
            prompt.prompt_ids,
            prompt.reference_ids,
            start=one.start,
            top=likeliest(one.top),
            base_nats=None if one.base_nats is None else np.asarray(one.base_nats, dtype=np.float32),
            nll_nats=one.nll_nats,
            greedy_ids=one.greedy_ids,
            greedy_top=likeliest(one.greedy_top),
        )
        for prompt, one in zip(prompts.prompts, side.answers, strict=True)
    ]
    return ObservedSource(prompts, tuple(answers), side.vocabulary)


class _ServedAdapter:
    """An adapter of a running vLLM as a `Runtime`. Luthier writes its prompts, so their tokens are the source's."""

    name = "vLLM"
    version = ""
    has_template = True
    context_tokens: int | None = None

    def __init__(self, answers: VllmAnswers, seen: ObservedSource, end_ids: Sequence[int]) -> None:
        self._answers, self.end_ids = answers, frozenset(end_ids)
        self._prompts = seen.prompts.prompts

    def prompt_tokens(
        self, conversation: Conversation, options: Mapping[str, TemplateOption] | None = None
    ) -> list[int]:
        """As `Runtime.prompt_tokens`."""
        del options
        return next(list(prompt.prompt_ids) for prompt in self._prompts if prompt.conversation == conversation)

    def text_tokens(self, text: str) -> list[int]:
        """As `Runtime.text_tokens`: nothing, as every prompt of the proof is a conversation."""
        del text
        return []

    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """As `Runtime.log_probabilities`."""
        return self._answers.log_probabilities(ids, start, at_once=False)

    def greedy(self, ids: Sequence[int], num_new_tokens: int) -> list[int]:
        """As `Runtime.greedy`."""
        return self._answers.greedy(ids, num_new_tokens, self.end_ids, sends_ends=True)

    def close(self) -> None:
        """As `Runtime.close`: the server continues."""

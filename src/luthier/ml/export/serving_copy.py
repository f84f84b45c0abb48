"""A model as GGUF that is served in the place of its own files: made once, proved against them, and timed beside them.

    base folder     model.gguf   the base, beside its own tokenizer
                    report.json  what the proof has shown (`ServingCopy`)
    adapter folder  adapter.gguf LoRA matrices over that base
                    report.json

The proof is that of an export (`parity`): llama.cpp against the model in float32, on the same token ids. 8 bits a
weight are chosen only where they cannot be told from 16: log-probabilities and greedy texts within the bound of
float16, and the 95% interval of the loss below `NOTEWORTHY_LOSS_NATS`. A q8_0 that was requested is taken, with its
cost in the proof. Everything here that loads a model runs in a child process; the module itself loads nothing heavy,
since servers look reports up for each request.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import ValidationError

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import comes_of_killed_child
from luthier.core.engine_rates import NUM_CROWD, NUM_MANY, EngineSpeed
from luthier.core.errors import LuthierError, error_from
from luthier.core.frozen_model import FrozenModel
from luthier.core.records.export import ExportPrecision, ExportSource, ParityReport
from luthier.core.stream import Ended, Failed, RequestFeature, Sampling, Served, TextRequest
from luthier.ml.inference.models.architecture import TOKENIZER_FILES

if TYPE_CHECKING:
    from luthier.core.conversation import Conversation
    from luthier.core.ports import Progress, StreamEngine

MODEL: Final = "model.gguf"
ADAPTER: Final = "adapter.gguf"
REPORT: Final = "report.json"
CopyQuantization = Literal["auto", "float16", "q8_0"]
"""How the weights of a copy are held; `auto`: as q8_0 where that is not distinguishable from float16."""
# In the order in which they are tried. q8_0 is the smaller and faster one; where it is proved by the bounds of float16,
# no float16 needs to be made.
_TRIED: Final[Mapping[CopyQuantization, tuple[ExportPrecision, ...]]] = {
    "auto": ("q8_0", "float16"),
    "float16": ("float16",),
    "q8_0": ("q8_0",),
}
NUM_BASE_PROMPTS: Final = 16
NUM_ADAPTER_PROMPTS: Final = 4
UNUSED_SECONDS: Final = 90 * 86_400.0
_NOTED_SECONDS: Final = 86_400.0

# What a tokenizer is loaded from; the copy keeps the model's own instead of what an export would write.
_TOKENIZER_FILES: Final = (*TOKENIZER_FILES, "chat_template.jinja", "generation_config.json", "config.json")


class ServingCopy(FrozenModel):
    """What is known of a copy.

    Attributes:
        precision: how its weights are held; None where there is no copy.
        proof: what the proof has shown, as a phrase.
        why_not: why the model's own files are served instead; None where the copy may be.
        hands_over: what llama.cpp does otherwise than the engine transformers, so that requests for it go there.
        memory_bytes: of a base, what llama.cpp takes for it, keys and values included.
    """

    precision: ExportPrecision | None = None
    proof: str = ""
    why_not: str | None = None
    hands_over: tuple[RequestFeature, ...] = ()
    memory_bytes: int = 0


def read_copy(folder: Path) -> ServingCopy | None:
    """What is known of the copy in a folder; None where none was made, or its report cannot be read.

    It counts as used, which `remove_unused` looks at.
    """
    report = folder / REPORT
    try:
        found = ServingCopy.model_validate_json(report.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
    with contextlib.suppress(OSError):  # of another user
        # Looked up for each request: noting it once a day is enough.
        if time.time() - report.stat().st_mtime > _NOTED_SECONDS:
            os.utime(report)
    return found


def remove_unused(copies: Path) -> list[Path]:
    """Remove the copies that nobody has looked up for 90 days, such as those of models and versions that are gone.

    Args:
        copies: folders of bases, each with its adapters in `adapters`.

    Returns:
        The folders that were removed.
    """
    removed = []
    for report in (*copies.glob(f"*/{REPORT}"), *copies.glob(f"*/adapters/*/{REPORT}")):
        # Gone with its base, or by another process.
        with contextlib.suppress(OSError):
            if time.time() - report.stat().st_mtime > UNUSED_SECONDS:
                # First: a folder without a report is no copy, so that nobody serves what is being removed.
                report.unlink()
                shutil.rmtree(report.parent, ignore_errors=True)
                removed.append(report.parent)
    return removed


class _Titles:
    """Progress that sends the titles of tasks to the parent: `core.ports.Progress` and `ProgressTask` at once."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> Self:  # noqa: ARG002
        self._channel.emit(title)
        return self

    def advance(self, amount: float = 1) -> None:
        """Send nothing."""

    def note(self, text: str) -> None:
        """Send nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def make_base(document: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """In a child process: write and prove the GGUF of a base.

    Args:
        document: `source` (`ExportSource`, without an adapter), `target` (an existing empty folder), `tools` (where
            the converter is stored), `quantization` (`CopyQuantization`).
        channel: gets the titles of what is being done.

    Returns:
        `ServingCopy` as JSON; a model that llama.cpp does not hold has `why_not`.

    Raises:
        WorkError: the converter cannot be had, or the system has killed a process for its memory: worth another try.
        OSError: the disk is full.
    """
    from luthier.ml.export.exporters.converter import converter

    source, target, tools = _read(document)
    progress = _Titles(channel)
    # Before what may be the model's fault: a converter that cannot be fetched is not.
    converter(tools, progress)
    return _made(lambda: _write_base(source, target, tools, document["quantization"], progress))


def make_adapter(document: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """In a child process: write and prove the GGUF of an adapter.

    Args:
        document: as of `make_base`, with an adapter in `source`, and `base` (the folder that `make_base` has filled).
        channel: gets the titles of what is being done.

    Returns:
        `ServingCopy` as JSON.

    Raises:
        WorkError: the system has killed a process for its memory: worth another try.
        OSError: the disk is full.
    """
    source, target, _ = _read(document)
    base, quantization = Path(document["base"]), document["quantization"]
    return _made(lambda: _write_adapter(source, target, base, quantization, _Titles(channel)))


def _read(document: dict[str, Any]) -> tuple[ExportSource, Path, Path]:
    return ExportSource.model_validate(document["source"]), Path(document["target"]), Path(document["tools"])


def _made(make: Any) -> dict[str, Any]:
    try:
        copy: ServingCopy = make()
    except LuthierError as error:
        if comes_of_killed_child(error):
            raise
        copy = ServingCopy(why_not=error.came)
    return copy.model_dump(mode="json")


def _write_base(
    source: ExportSource, target: Path, tools: Path, quantization: CopyQuantization, progress: Progress
) -> ServingCopy:
    from luthier.ml.export.exporters import gguf, registry
    from luthier.ml.export.exporters.companions import source_template
    from luthier.ml.export.exporters.proof_prompts import source_prompts
    from luthier.ml.export.parity import prove
    from luthier.ml.export.source_side import built_in_examples, observe_source
    from luthier.ml.inference.llama_cpp.server import memory_bytes

    examples = built_in_examples()[:NUM_BASE_PROMPTS]
    prompts = source_prompts(source, examples)
    if (limit := registry.check("gguf", source, progress, tools, prompts)) is not None:
        return ServingCopy(why_not=f"llama.cpp is right up to {limit} tokens only: it leaves out an attention window")
    observed = observe_source(source, examples, progress, prompts=prompts)
    reasons = list[str]()
    for precision in _TRIED[quantization]:
        gguf.write(source, target, precision, progress, tools)
        _keep_tokenizer(Path(source.base_path), target)
        bound = _bound(precision, quantization)
        report = prove(source, target, "gguf", precision, (), progress, observed=observed, bound_nats=bound)
        if (reason := _why_not(report, is_asked=quantization == precision)) is None:
            thinks = source_template(source).thoughts is not None
            return ServingCopy(
                precision=precision,
                proof="; not ".join([_phrase(report), *reasons]),
                hands_over=_handed_over(thinks=thinks),
                memory_bytes=memory_bytes(target / MODEL),
            )
        reasons.append(f"{precision}: {reason}")
    return ServingCopy(why_not="; ".join(reasons))


def _bound(precision: ExportPrecision, quantization: CopyQuantization) -> float | None:
    """How far log-probabilities may lie from the model's, where that is not what the export format says.

    As an export, which is chosen, q8_0 has no bound. Here nobody has chosen it, so it must be as near as float16.
    """
    from luthier.ml.export.exporters.registry import WHOLE, format_of

    if precision in WHOLE or precision == quantization:
        return None
    return format_of("gguf").precisions["float16"].bound_nats


def _write_adapter(
    source: ExportSource, target: Path, base: Path, quantization: CopyQuantization, progress: Progress
) -> ServingCopy:
    from safetensors.torch import load_file

    from luthier.ml.export.exporters.adapter import CONFIG, WEIGHTS, NotPlainError, write_gguf_lora
    from luthier.ml.export.parity import prove_adapter_over
    from luthier.ml.export.source_side import built_in_examples, observe_source

    made = read_copy(base)
    assert source.adapter_path is not None
    assert made is not None
    assert made.precision is not None
    folder = Path(source.adapter_path)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    file = target / ADAPTER
    try:
        write_gguf_lora(load_file(folder / WEIGHTS), config, Path(source.base_path), file, name=source.name)
    except NotPlainError as reason:
        file.unlink(missing_ok=True)
        return ServingCopy(why_not=f"llama.cpp cannot apply the adapter: {reason}")
    observed = observe_source(source, built_in_examples()[:NUM_ADAPTER_PROMPTS], progress)
    bound = _bound(made.precision, quantization)
    report = prove_adapter_over(source, file, base, made.precision, observed, progress, bound_nats=bound)
    if not report.passed:
        return ServingCopy(why_not=" ".join(report.reasons))
    return ServingCopy(precision=made.precision, proof=_phrase(report))


def _keep_tokenizer(base: Path, target: Path) -> None:
    """Put the model's own tokenizer and template beside the file, in the place of what an export writes there."""
    for name in _TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
        else:
            (target / name).unlink(missing_ok=True)


def _why_not(report: ParityReport, *, is_asked: bool) -> str | None:
    """Why a file is not served in the place of its source; None where it may be.

    Args:
        report: the proof.
        is_asked: whether its precision was asked for, with what that costs.
    """
    from luthier.ml.export.exporters.registry import WHOLE
    from luthier.ml.export.parity import NOTEWORTHY_LOSS_NATS

    is_packed, bound = report.precision not in WHOLE, report.bound_nats
    is_far = bound is not None and report.max_difference_nats > bound
    if is_packed and bound is not None and (is_far or report.num_texts_equal < report.num_prompts):
        return (
            f"{report.num_texts_equal} of {report.num_prompts} greedy texts are equal, and log-probabilities differ by "
            f"up to {report.max_difference_nats:.3g} nats, where all must be and {bound:g} are allowed, as of float16"
        )
    if not report.passed:
        return " ".join(report.reasons)
    if report.unrounded_difference_nats is not None and not is_asked:
        # It equals the rounded model, which is enough for an export, whose bits somebody has chosen.
        found = f"{report.unrounded_difference_nats:.3g}"
        return f"rounding the weights to {report.precision} moves log-probabilities by {found} nats"
    if report.earlier_ends:
        return f"llama.cpp ends answers at token {', '.join(map(str, report.earlier_ends))}, and the model continues"
    loss = report.nll_increase_nats
    # Equivalence, not the absence of a significant difference: few prompts would never show one.
    if is_packed and not is_asked and loss.high > NOTEWORTHY_LOSS_NATS:
        return (
            f"a token of the references may be {loss.high:.3f} nats less likely (95% interval {loss.low:.3f} to "
            f"{loss.high:.3f}, allowed {NOTEWORTHY_LOSS_NATS:g})"
        )
    return None


def _phrase(report: ParityReport) -> str:
    from luthier.ml.export.exporters.registry import WHOLE

    loss = report.nll_increase_nats
    quality = f", {loss.value:+.4f} nats a token ({loss.low:+.4f} to {loss.high:+.4f})"
    return (
        f"{report.precision}: {report.num_texts_equal} of {report.num_prompts} greedy texts equal, log-probabilities "
        f"within {report.max_difference_nats:.3g} nats{'' if report.precision in WHOLE else quality}"
    )


def _handed_over(*, thinks: bool) -> tuple[RequestFeature, ...]:
    """What `LlamaCppEngine` does otherwise: see its docstring, and `prepare` for thoughts before a grammar."""
    handed: tuple[RequestFeature, ...] = ("logprobs", "penalties")
    return (*handed, "thought_before_json") if thinks else handed


_NUM_NEW: Final = 32
_ROUNDS: Final = 2


def time_engine(served: Served, adapters: Sequence[str], *, num_threads: int) -> EngineSpeed:
    """How fast a model answers on this machine now. It is loaded in this process, and let go at the end.

    Args:
        served: the model, without an adapter.
        adapters: paths of adapters for its engine, which the requests take in turn; none for the model alone.
        num_threads: of torch.

    Raises:
        LuthierError: the engine does not open, or an answer fails.
    """
    import torch

    from luthier.ml.inference.stream_registry import open_stream_engine

    torch.set_num_threads(num_threads)
    with closing(open_stream_engine(served)) as engine:
        for path in adapters:
            engine.load_adapter(path, path)
        names: list[str | None] = [*adapters] or [None]
        first_numbers = itertools.count(step=NUM_MANY)

        def timed(num_answers: int) -> float:
            asked = [names[number % len(names)] for number in range(num_answers)]
            # The best of the rounds: whatever else runs on the machine can only slow one down.
            return max(_tokens_per_second(engine, asked, _NUM_NEW, next(first_numbers)) for _ in range(_ROUNDS))

        # The first request warms caches up, and proves a decoding path.
        _tokens_per_second(engine, names[:1], 2, next(first_numbers))
        return EngineSpeed(alone=timed(1), crowd=timed(NUM_CROWD), many=timed(NUM_MANY), num_bytes=engine.num_bytes)


def _numbered(question: Conversation, number: int) -> Conversation:
    """The question with its number in front, so that no engine has keys and values of it yet."""
    *before, last = question.messages
    asked = last.model_copy(update={"content": f"Question {number}. {last.content}"})
    return question.model_copy(update={"messages": (*before, asked)})


def _tokens_per_second(engine: StreamEngine, adapters: Sequence[str | None], num_new: int, first: int) -> float:
    """New tokens a second over one request for each of the adapters, all at once; prompts are read in that time.

    Args:
        engine: with its adapters.
        adapters: of each request.
        num_new: tokens of each answer at most.
        first: the number of the first question. No question comes twice: an engine that has its keys and values
            already would seem faster than it is.
    """
    from luthier.ml.export.source_side import built_in_examples

    questions = [example.prompt for example in built_in_examples() if example.prompt is not None]
    greedy = Sampling(temperature=0)
    todo = [
        (
            number,
            TextRequest(
                conversation=_numbered(questions[(first + number) % len(questions)], first + number),
                sampling=greedy,
                max_new_tokens=num_new,
            ),
            adapter,
        )
        for number, adapter in enumerate(adapters)
    ]
    num_tokens, began = 0, time.perf_counter()
    while todo or engine.keys:
        while todo and engine.ask(*todo[0]):
            todo.pop(0)
        for _, event in engine.poll(1.0):
            if isinstance(event, Failed):
                raise error_from(event.error)
            num_tokens += event.num_new_tokens if isinstance(event, Ended) else 0
    return max(num_tokens, 1) / (time.perf_counter() - began)

"""Measure one format in a child process.

It only opens the export in its real runtime, so that its memory is that of the runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.child_process.channel import Channel
from luthier.core.system import process_memory
from luthier.ml.export.format_benchmark.measure import Asked, AskedRow, Quality, RowQuality, Speed

if TYPE_CHECKING:
    from luthier.ml.export.runtimes.protocol import LogProbabilities

Score = Callable[[list[int], int], "LogProbabilities"]
Write = Callable[[list[int], int], list[int]]


def measure(document: dict[str, Any], _channel: Channel) -> dict[str, Any]:
    """Run the measurement of an `Asked` document in a child process; returns a `Quality` or `Speed` document."""
    asked = Asked.model_validate(document)
    answer = _quality(asked) if asked.what == "quality" else _speed(asked)
    return answer.model_dump(mode="json")


def _quality(asked: Asked) -> Quality:
    """Likelihoods; for transformers in float32 arithmetic, as in a parity check."""
    score, write, runtime = _open_exact(asked)
    return Quality(runtime=runtime, rows=tuple(_row(row, score, write, asked.max_new_tokens) for row in asked.rows))


def _row(row: AskedRow, score: Score, write: Write, most: int) -> RowQuality:
    places = np.array(row.learned)
    start = int(places[0]) - 1
    # [positions from start, vocabulary]; row place - 1 - start predicts the token at `place`.
    nats = score(list(row.ids), start)
    targets = np.array(row.ids)[places]
    of_targets = nats[places - 1 - start]
    written = write(list(row.ids[: row.num_prompt]), most) if row.num_prompt else []
    return RowQuality(
        nll_nats=-float(of_targets[np.arange(len(places)), targets].astype(np.float64).sum()),
        num_correct=int((of_targets.argmax(axis=1) == targets).sum()),
        written=tuple(written),
        is_ended=len(written) < most,
    )


def _speed(asked: Asked) -> Speed:
    idle = process_memory.peak_memory_bytes()
    start = time.perf_counter()
    write = _open_as_used(asked)
    loaded = time.perf_counter()
    prompts = [list(row.ids[: row.num_prompt]) for row in asked.rows]
    write(prompts[0], 2)  # initialisation at the first call is not part of the speed
    first = all_tokens = 0.0
    num_new = 0
    for prompt in prompts:
        began = time.perf_counter()
        # Its time is that of the prompt; the additional time of the second call is that of generation.
        write(prompt, 1)
        middle = time.perf_counter()
        written = write(prompt, asked.max_new_tokens)
        first += middle - began
        all_tokens += time.perf_counter() - middle
        # the step of the end token takes as long as the others
        num_new += max(0, min(len(written) + 1, asked.max_new_tokens) - 1)
    return Speed(
        load_seconds=loaded - start,
        first_seconds=first,
        all_seconds=all_tokens,
        num_prompt_tokens=sum(map(len, prompts)),
        num_new_tokens=num_new,
        peak_memory_bytes=process_memory.peak_memory_bytes(),
        idle_memory_bytes=idle,
    )


def _open_exact(asked: Asked) -> tuple[Score, Write, str]:
    if asked.format is None:
        from importlib.metadata import version

        from luthier.ml.export.exporters.companions import source_template
        from luthier.ml.export.runtimes.transformers_runtime import TransformersModel

        source = asked.source
        ends = frozenset(source_template(source).end_of_turn_ids)
        model = TransformersModel(source.base_path, source.adapter_path, source.quantisation, source.precision)
        return (
            model.log_probabilities,
            lambda ids, most: model.greedy(ids, most, ends),
            (f"transformers {version('transformers')}"),
        )
    from luthier.ml.export.exporters.registry import open_export

    runtime = open_export(asked.format, Path(asked.folder), asked.source)
    return runtime.log_probabilities, runtime.greedy, f"{runtime.name} {runtime.version}"


def _open_as_used(asked: Asked) -> Write:
    """The runtime as users run it: transformers in the stored type of the weights, or that of training."""
    from luthier.ml.export.exporters.registry import format_of, open_export

    known = None if asked.format is None else format_of(asked.format)
    if known is not None and not known.runs_as_stored:
        assert asked.format is not None
        return open_export(asked.format, Path(asked.folder), asked.source).greedy
    from luthier.ml.export.format_benchmark.stored_model import open_stored

    source = asked.source
    if known is not None and not known.is_adapter:
        return open_stored(Path(asked.folder), None, None, None)
    adapter = source.adapter_path if known is None else asked.folder
    return open_stored(Path(source.base_path), adapter, source.precision, source.quantisation)

"""The process that measures one format: what it answers, and how it says that it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from luthier.core.child_process.channel import Channel
from luthier.core.errors import LuthierError
from luthier.core.ports import SilentProgress
from luthier.core.records.export import ExportSource
from luthier.ml.export.format_benchmark import worker
from luthier.ml.export.format_benchmark.measure import Asked, AskedRow, Quality, Speed, measure_quality, spread
from luthier.ml.inference.models.loading import load_model

ROW = AskedRow(ids=tuple(range(40, 60)), learned=(12, 13, 14, 18), num_prompt=12)


@pytest.fixture
def source(tiny_model: Path) -> ExportSource:
    return ExportSource(
        name="tiny",
        run_id=None,
        base_name="tiny",
        base_path=str(tiny_model),
        base_sha256="0" * 64,
        precision="float32",
    )


def ask(source: ExportSource, **changes: object) -> dict[str, Any]:
    asked = Asked(what="quality", format=None, folder="", source=source, rows=(ROW,), max_new_tokens=5)
    return worker.measure(asked.model_copy(update=changes).model_dump(mode="json"), cast(Channel, None))


def test_likelihoods_are_of_the_learned_tokens_alone(source: ExportSource, tiny_model: Path) -> None:
    (row,) = Quality.model_validate(ask(source)).rows
    ids = torch.tensor([list(ROW.ids)])
    with torch.inference_mode():
        logits = load_model(tiny_model, dtype="float32", attention="sdpa")(ids).logits[0]
    nats = torch.log_softmax(logits.float(), dim=-1)
    assert row.nll_nats == pytest.approx(
        -sum(float(nats[place - 1, ROW.ids[place]]) for place in ROW.learned), rel=1e-5
    )
    assert row.num_correct == sum(int(logits[place - 1].argmax()) == ROW.ids[place] for place in ROW.learned)
    assert len(row.written) <= 5
    assert row.is_ended is (len(row.written) < 5)


def test_what_is_not_to_be_written_is_not(source: ExportSource) -> None:
    answer = ask(source, rows=(ROW.model_copy(update={"num_prompt": 0}),))
    assert Quality.model_validate(answer).rows[0].written == ()


def test_speed_counts_every_token_once(source: ExportSource) -> None:
    speed = Speed.model_validate(ask(source, what="speed", rows=(ROW, ROW)))
    assert (speed.num_prompt_tokens, speed.num_new_tokens) == (24, 8)
    assert speed.peak_memory_bytes >= speed.idle_memory_bytes > 0
    assert speed.prompt_tokens_per_second > 0


def test_answers_too_short_to_be_timed_have_no_speed() -> None:
    given = {"load_seconds": 1.0, "first_seconds": 1.0, "num_prompt_tokens": 9, "num_new_tokens": 0}
    speed = Speed(**given, all_seconds=2.0, peak_memory_bytes=1, idle_memory_bytes=1)
    assert speed.new_tokens_per_second is None
    assert spread([None, None]) is None
    found = spread([3.0, None, 1.0, 2.0])
    assert found is not None
    assert (found.median, found.low, found.high) == (2.0, 1.0, 3.0)


def test_a_child_that_cannot_says_why(source: ExportSource, tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="no such folder"):
        measure_quality(
            "merged",
            str(tmp_path / "nothing"),
            source,
            [ROW],
            max_new_tokens=4,
            label="merged",
            progress=SilentProgress(),
        )

"""Formats of one model are exported, measured in processes of their own, and shown side by side with the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.child_process.channel import Channel
from luthier.core.errors import ConflictError, LuthierError, ParityError, RequestError
from luthier.core.evaluation import Comparison, Metric, SystemResult
from luthier.core.ports import Progress
from luthier.core.records.export import FormatTable
from luthier.core.system.files import file_lock
from luthier.features.evaluations import service as evaluations
from luthier.features.exports.formats import measurements as format_exports
from luthier.features.exports.formats.measurements import losses_of
from luthier.features.exports.formats.tables import FormatRequest, measure_formats, parse_format
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import train
from luthier.ml.export.format_benchmark import measure, worker
from luthier.platform.home.context import Context


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "held_out.jsonl", [chat_row(n) for n in range(100, 104)])


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure here: what a process of its own is for, its memory, is not what these tests look at."""

    def run(_: str, document: dict[str, Any], *, title: str) -> dict[str, Any]:
        assert title
        return worker.measure(document, cast(Channel, None))

    monkeypatch.setattr(measure, "run_child", run)


def request_for(name: str, rows: Path, folder: Path, *formats: str, **changes: Any) -> FormatRequest:
    small: dict[str, Any] = {"num_rows": 3, "num_timed": 2, "num_rounds": 2, "max_new_tokens": 4}
    return FormatRequest(name, rows, folder, formats or ("merged:float32",), **(small | changes))


def test_the_source_and_its_exports_side_by_side(
    context: Context, make_recipe: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    training = {"max_steps": 2, "learning_rate": 0.01, "precision": "float32", "num_threads": 1}
    method = {"name": "lora", "rank": 4, "dropout": 0.0}
    path = make_recipe(data={"train": "train.jsonl"}, method=method, training=training)
    run_id = train(context, load_recipe(path), base_dir=path.parent).record.run_id
    folder = tmp_path / "table"
    table = measure_formats(context, request_for(run_id, rows, folder, "merged:f32", "gguf:q8_0", num_rounds=1))
    assert [price.label for price in table.prices] == ["source", "merged:float32", "gguf:q8_0"]
    assert [price.status for price in table.prices] == ["measured"] * 3
    source, merged, packed = table.prices
    assert (table.num_rows, table.num_timed, table.num_rounds) == (3, 2, 1)
    for price in table.prices:
        assert price.num_bytes > 0
        assert price.peak_memory_bytes >= price.idle_memory_bytes > 1e6
        assert price.prompt_tokens_per_second is not None
        speed = price.prompt_tokens_per_second
        assert 0 < speed.low <= speed.median <= speed.high
    assert source.quality is not None
    assert merged.quality is not None
    for name in source.quality.metrics:
        ours, theirs = source.quality.metrics[name].value, merged.quality.metrics[name].value
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert {c.metric for c in merged.comparisons} >= {"perplexity", "exact_match"}
    assert merged.is_recommended
    assert packed.runtime.startswith("llama.cpp")
    assert source.is_recommended is not None
    assert not (folder / "exports").exists()
    assert FormatTable.model_validate_json((folder / "formats.json").read_text()) == table
    page = (folder / "formats.html").read_text()
    assert page.count("<svg") == 2
    assert "gguf:q8_0" in page
    # the same likelihoods as `luthier eval` finds for the run
    with_eval = evaluations.evaluate(context, [run_id], data=rows, max_samples=3, metrics=["perplexity"])
    assert with_eval.systems[0].metrics["perplexity"].value == pytest.approx(
        source.quality.metrics["perplexity"].value, rel=1e-4
    )
    with pytest.raises(ConflictError, match="has a table of formats"):
        measure_formats(context, request_for(run_id, rows, folder))


@pytest.mark.usefixtures("in_this_process")
def test_an_export_that_is_not_let_out_is_measured_all_the_same_and_one_that_cannot_be_says_so(
    context: Context, tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = format_exports.export

    def export(context: Context, name: str, **options: Any) -> Any:
        if options["quantise"] == "bfloat16":
            raise ParityError("it is another model", expected="the same", do="nothing")
        if options["to"] == "onnx":
            raise RequestError("no runtime", expected="one", do="pip install luthier[onnx]")
        return real(context, name, **options)

    monkeypatch.setattr(format_exports, "export", export)
    formats = ("merged:bf16", "onnx:int4", "merged:float32")
    folder = tmp_path / "table"
    table = measure_formats(context, request_for(str(tiny_model), rows, folder, *formats, keeps_exports=True))
    assert [price.status for price in table.prices] == ["measured", "measured", "missing", "measured"]
    assert table.prices[2].reason == "no runtime; pip install luthier[onnx]"
    assert [price.is_recommended for price in table.prices] == [True, False, None, True]
    assert table.prices[1].quality is not None
    assert (folder / "exports" / "merged-float32" / "model.safetensors").is_file()
    (folder / "formats.json").rename(folder / "kept.json")
    with pytest.raises(ConflictError, match="or exports of one"):
        measure_formats(context, request_for(str(tiny_model), rows, folder))
    (folder / "kept.json").rename(folder / "formats.json")
    page = (folder / "formats.html").read_text()
    assert "it is another model" in page
    assert json.loads((folder / "formats.json").read_text())["prices"][1]["losses"][0].endswith("it is another model")


@pytest.mark.usefixtures("in_this_process")
def test_what_was_stopped_goes_on_and_comes_to_the_same(
    context: Context, tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported, judged = list[str](), list[str]()
    real_export, real_ask = format_exports.export, measure._ask

    def export(context: Context, name: str, **options: Any) -> Any:
        exported.append(options["quantise"])
        return real_export(context, name, **options)

    def ask(asked: Any, title: str, progress: Progress) -> str:
        judged.append(title)
        if len(judged) == 2:
            raise KeyboardInterrupt
        return real_ask(asked, title, progress)

    monkeypatch.setattr(format_exports, "export", export)
    monkeypatch.setattr(measure, "_ask", ask)
    folder = tmp_path / "table"
    asked = request_for(str(tiny_model), rows, folder, "merged:f32", "merged:bf16", num_rounds=1)
    with pytest.raises(KeyboardInterrupt):
        measure_formats(context, asked)
    assert judged == ["Evaluating source", "Evaluating merged:float32"]
    with pytest.raises(ConflictError, match="the unfinished table of another request: num_rows differ"):
        measure_formats(context, replace(asked, num_rows=2))
    shutil.rmtree(folder / "exports" / "merged-bfloat16")  # as if the kill had come before its end was written down
    (folder / "exports" / "merged-bfloat16").mkdir()
    kept = json.loads((folder / "exports" / "unfinished.json").read_text())
    del kept["prices"]["merged:bfloat16"]
    (folder / "exports" / "unfinished.json").write_text(json.dumps(kept))
    table = measure_formats(context, asked)
    assert exported == ["float32", "bfloat16", "bfloat16"]
    assert [title for title in judged[2:] if title.startswith("Evaluating")] == [
        "Evaluating merged:float32",
        "Evaluating merged:bfloat16",
    ]
    assert not (folder / "exports").exists()
    other = measure_formats(context, replace(asked, folder=tmp_path / "other"))
    made, straight = ([p.quality.metrics for p in t.prices if p.quality] for t in (table, other))
    assert made == straight
    assert len(made) == 3
    assert table.seconds >= kept["seconds"] > 0


def test_two_processes_do_not_make_one_table(context: Context, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "table"
    with (
        file_lock(folder / "exports" / "lock", what="a test", timeout_seconds=1),
        pytest.raises(ConflictError, match=r"the table of formats in .* is in use by another process"),
    ):
        measure_formats(context, request_for(str(tiny_model), rows, folder))


@pytest.mark.usefixtures("in_this_process")
def test_plain_text_is_judged_by_likelihood(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    texts = write_rows(
        tmp_path / "texts.jsonl", [{"text": f"The luthier builds {n} violins of maple."} for n in range(4)]
    )
    table = measure_formats(context, request_for(str(tiny_model), texts, tmp_path / "table", num_rounds=1))
    assert table.metric in ("perplexity", "bits_per_byte")
    assert table.prices[1].quality is not None
    assert "exact_match" not in table.prices[1].quality.metrics


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"formats": ("gguf",)}, "gguf:q8_0"),
        ({"formats": ("zip:f16",)}, "zip:f16"),
        ({"formats": ("adapter:float32",)}, "adapter"),
        ({"formats": ("onnx:q8_0",)}, "onnx:q8_0"),
        ({"formats": ()}, "no formats"),
        ({"num_rounds": 0}, "num_rounds=0"),
        ({"max_new_tokens": 1}, "at least 2"),
        ({"name": "run-20260101-000000-abcdef"}, "run-2026"),
        ({"metrics": ("reward_accuracy",)}, "reward_accuracy"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_exported(
    change: dict[str, Any], match: str, context: Context, tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(LuthierError, match=match):
        measure_formats(context, replace(request_for(str(tiny_model), rows, tmp_path / "table"), **change))
    assert not (tmp_path / "table").exists()


def test_short_names_of_types() -> None:
    assert parse_format(" gguf:f16 ") == ("gguf", "float16")
    assert parse_format("merged:bf16") == ("merged", "bfloat16")
    assert parse_format("gguf:q4_k_m") == ("gguf", "q4_k_m")


def test_a_format_whose_memory_would_not_be_counted_is_refused() -> None:
    with pytest.raises(RequestError, match="'vllm:fp8' in a benchmark of formats") as caught:
        parse_format("vllm:fp8")
    assert "serving_engines.py" in caught.value.do


def found(metric: str, difference: float, word: Any) -> Comparison:
    return Comparison(
        baseline="source",
        candidate="x",
        metric=metric,
        difference=difference,
        low=difference - 0.01,
        high=difference + 0.01,
        p_value=0.01,
        verdict=word,
    )


@pytest.mark.parametrize(
    ("comparisons", "num_losses"),
    [
        ([found("exact_match", -0.1, "worse"), found("perplexity", 0.5, "worse")], 2),
        ([found("exact_match", -0.1, "not distinguishable"), found("perplexity", 0.03, "worse")], 0),
        ([found("exact_match", 0.1, "better"), found("rouge_l", -0.1, "worse")], 0),
    ],
)
def test_a_loss_is_one_beyond_doubt_in_the_metric_that_counts_or_more_than_a_trifle_in_perplexity(
    comparisons: list[Comparison], num_losses: int
) -> None:
    metrics = {
        "exact_match": Metric(value=0.4, low=0.3, high=0.5, unit="fraction", higher_is_better=True),
        "perplexity": Metric(value=2.5, low=2.0, high=3.0, unit="x", higher_is_better=False),
    }
    result = SystemResult(name="x", model="m", num_samples=9, metrics=metrics, seconds=1.0)
    losses = losses_of(result, comparisons, "exact_match")
    assert len(losses) == num_losses
    assert all("instead of" in loss and "95% interval" in loss for loss in losses)


@pytest.mark.usefixtures("in_this_process")
def test_rows_of_one_document_count_together(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    rows = [chat_row(n) | {"provenance": {"file": f"{n // 2}.pdf"}} for n in range(100, 112)]
    folder, file = tmp_path / "table", write_rows(tmp_path / "documents.jsonl", rows)
    table = measure_formats(context, request_for(str(tiny_model), file, folder, num_rows=12, num_rounds=1))
    said = "These 12 held-out rows are of 6 groups: rows of one group count together in intervals and tests."
    assert table.rows_notes == (said,)
    assert said in (folder / "formats.html").read_text()

"""`luthier export`: what it passes on, what it shows, what it says to a wrong request."""

from __future__ import annotations

import pytest

from luthier.core.estimate import Estimate
from luthier.core.records.export import Export, ExportSource, ParityReport
from luthier.features.exports import service as exports


def made(folder, *, to="gguf", precision="q8_0", bound=None) -> Export:
    parity = ParityReport(
        format=to,
        precision=precision,
        runtime="llama.cpp",
        runtime_version="1",
        num_prompts=32,
        num_prompts_same_tokens=32,
        num_texts_equal=30,
        max_difference_nats=0.25,
        mean_difference_nats=0.01,
        bound_nats=bound,
        nll_increase_nats=Estimate(value=0.003, low=-0.001, high=0.007),
        source_perplexity=4.5,
        export_perplexity=4.52,
        passed=True,
    )
    source = ExportSource(
        name="run-1", run_id="run-1", base_name="b", base_path="/b", base_sha256="0", precision="bfloat16"
    )
    return Export(
        source=source,
        format=to,
        precision=precision,
        folder=str(folder),
        num_bytes=3 << 20,
        files={"model.gguf": "0" * 64},
        parity=parity,
        seconds=12.0,
        warnings=("take care",),
    )


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the use case was asked for; it answers at once."""
    seen = {}

    def export(context, name, **values):
        seen.update(values, name=name)
        return made(values["output"])

    monkeypatch.setattr(exports, "export", export)
    return seen


def test_it_shows_size_proof_and_warnings(luthier, asked, tmp_path):
    done = luthier("export", "run-1", "--to", "gguf", "--quantise", "Q8_0", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert asked == {"name": "run-1", "to": "gguf", "output": tmp_path / "out", "quantise": "q8_0", "held_out": None}
    for words in (
        "3 MiB in 1 file",
        "of 32 prompts 32 have the same tokens",
        "30 the same greedy text",
        "take care",
    ):
        assert words in " ".join(done.out.split()), words


def test_the_document_is_the_export(luthier, asked, tmp_path):
    done = luthier("export", "run-1", "--to", "gguf", "-o", tmp_path / "out", "--json")
    assert done.document["parity"]["passed"] is True
    assert done.document["folder"] == str(tmp_path / "out")


@pytest.mark.parametrize(("short", "name"), [("f16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")])
def test_short_names_of_precisions_are_understood(luthier, asked, tmp_path, short, name):
    luthier("export", "run-1", "--to", "gguf", "--quantise", short, "-o", tmp_path / "out")
    assert asked["quantise"] == name


def test_wrong_requests_are_told_what_would_be_right(luthier, tmp_path):
    done = luthier("export", "run-1", "--to", "keras", "-o", tmp_path / "out")
    assert (done.code, "one of adapter, merged, vllm, gguf" in " ".join(done.err.split())) == (2, True)
    done = luthier("export", "run-20261125-093000-bbbbbb", "--to", "merged", "-o", tmp_path / "out", "--json")
    assert (done.code, done.document["error"]["type"]) == (2, "NotFoundError")


def test_an_unfinished_run_is_refused(luthier, home, tmp_path):
    from luthier.platform.home.context import Context
    from luthier.testing.records import RUN_ID, make_plan, make_record

    with Context.open(home) as context:
        context.runs.create(make_record(status="running"), make_plan())
    done = luthier("export", RUN_ID, "--to", "merged", "-o", tmp_path / "out")
    assert done.code == 2
    assert f"luthier train --resume {RUN_ID}" in done.err
    assert not (tmp_path / "out").exists()

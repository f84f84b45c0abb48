"""A bundle of an export that nobody has made, with every document that there can be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.estimate import Estimate
from luthier.core.plan import ObjectivePlan
from luthier.core.records.export import Export, ExportSource, ParityReport
from luthier.core.run import Bill
from luthier.ml.export.bundle import BundleFacts, add_bundle_files
from luthier.ml.export.bundle.facts import BaseFacts, DatasetFacts, PackageFacts, RunFacts
from luthier.testing.records import RUN_ID, make_evaluation, make_plan, make_result

BASE_SHA256 = "3" * 64
MadeBundle = Callable[..., Path]


def make_parity(*, passed: bool = True) -> ParityReport:
    return ParityReport(
        format="gguf",
        precision="q8_0",
        runtime="llama.cpp",
        runtime_version="2026.10",
        num_prompts=32,
        num_prompts_same_tokens=32,
        num_texts_equal=30,
        max_difference_nats=0.031,
        mean_difference_nats=0.002,
        bound_nats=None,
        nll_increase_nats=Estimate(value=0.0011, low=-0.0004, high=0.0026),
        source_perplexity=3.2,
        export_perplexity=3.21,
        passed=passed,
        reasons=() if passed else ("the loss of quality is significant",),
    )


def make_export(*, run_id: str | None = RUN_ID, parity: ParityReport | None = None) -> Export:
    source = ExportSource(
        name=run_id or "tiny",
        run_id=run_id,
        base_name="tiny",
        base_path="/home/somebody/models/tiny",
        base_sha256=BASE_SHA256,
        method="lora" if run_id else None,
        precision="float32",
    )
    return Export(
        source=source,
        format="gguf",
        precision="q8_0",
        folder="/home/somebody/out",
        num_bytes=0,
        files={},
        parity=parity,
        seconds=1.0,
        warnings=("Half of the tensors of /home/somebody/out/model.gguf fell back to another type.",),
    )


def make_run_facts() -> RunFacts:
    plan = make_plan()

    def one(v: float) -> Estimate:
        return Estimate(value=v, low=v / 2, high=v * 2)

    bill = Bill(
        hours=0.5, tokens=1000, usd=one(0.2), energy_kwh=one(0.008), interrupted_hours=0.0,
        final_hours=one(0.5), final_usd=one(0.2), final_energy_kwh=one(0.008),
    )  # fmt: skip
    dataset = DatasetFacts(
        split="train", name="rows.jsonl", sha256="2" * 64, shape="chat",
        num_rows=40, num_examples=40, num_tokens=1000, num_trained_tokens=400,
    )  # fmt: skip
    return RunFacts(
        run_id=RUN_ID,
        created_at="2026-11-25T09:30:00+00:00",
        ended_at="2026-11-25T10:00:00+00:00",
        plan=plan,
        plan_hash=plan.hash,
        datasets=(dataset,),
        result=make_result().model_copy(update={"bill": bill, "adapter_path": None}),
    )


def make_facts(*, title: str = RUN_ID, licence: str | None = "Apache-2.0", run: bool = True) -> BundleFacts:
    return BundleFacts(
        title=title,
        made_at="2026-11-26T09:30:00+00:00",
        base=BaseFacts(
            name="tiny", sha256=BASE_SHA256, hub="org/tiny", revision="abc123", licence=licence,
            architecture="LlamaForCausalLM", num_parameters=100_000, context_length_tokens=512,
            licence_texts={"LICENSE": "Apache License\n"} if licence else {},
        ),
        run=make_run_facts() if run else None,
        evaluation=make_evaluation(run_id=RUN_ID) if run else None,
        packages=(
            PackageFacts(name="luthier", version="0.1.0", licence="Apache-2.0"),
            PackageFacts(name="torch", version="2.13.0+cpu", licence="BSD-3-Clause AND MIT"),
            PackageFacts(name="peft", version="0.21.2", licence="Apache"),
            PackageFacts(name="python", version="3.11.7"),
        ),
        command=f"luthier export {RUN_ID} --to gguf --quantise q8_0",
    )  # fmt: skip


def with_objective(facts: BundleFacts, objective: ObjectivePlan) -> BundleFacts:
    """The facts of a run that had this objective."""
    assert facts.run is not None
    plan = facts.run.plan.model_copy(update={"objective": objective})
    return facts.model_copy(update={"run": facts.run.model_copy(update={"plan": plan})})


def write_model(folder: Path) -> Path:
    """The files of an export, one of them in a folder of its own."""
    (folder / "adapters").mkdir(parents=True)
    (folder / "model.gguf").write_bytes(bytes(range(256)) * 8)
    (folder / "adapters" / "a.bin").write_bytes(b"weights")
    (folder / "Modelfile").write_text("FROM ./model.gguf\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    folder = write_model(tmp_path_factory.mktemp("bundles") / "whole")
    add_bundle_files(folder, make_export(parity=make_parity()), make_facts())
    return folder


@pytest.fixture
def bundle(whole_bundle: Path, tmp_path: Path) -> Path:
    """A copy of its own for a test that changes it."""
    return Path(shutil.copytree(whole_bundle, tmp_path / "bundle"))

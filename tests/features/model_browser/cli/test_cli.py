"""`luthier models`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.task_heads import add_head_run

from luthier.core.access import Caller
from luthier.features.deployments import service as deployments
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import add_run


def test_a_model_comes_and_goes(luthier, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    assert luthier("models", "pull", tiny_model).code == 0
    shown = luthier("models", "show", tiny_model, "--json").document
    assert shown["path"] == str(tiny_model)
    assert shown["licence"]
    assert str(tiny_model) in luthier("models", "list").out
    assert luthier("models", "rm", tiny_model, "--json").document["removed"] == str(tiny_model)
    assert str(tiny_model) not in luthier("models", "list").out
    assert luthier("models", "rm", tiny_model).code == 2


def test_what_is_not_pulled_has_no_path(luthier) -> None:  # type: ignore[no-untyped-def]
    shown = luthier("models", "show", "smollm2-135m-instruct", "--json").document
    assert (shown["path"], shown["licence"]) == (None, "Apache-2.0")
    assert "luthier models pull smollm2-135m-instruct" in luthier("models", "show", "smollm2-135m-instruct").out


def test_the_list_shows_licence_gate_and_what_it_takes_to_train(luthier) -> None:  # type: ignore[no-untyped-def]
    text = luthier("models", "list").out
    line = next(line for line in text.splitlines() if "llama-3.1-8b-instruct " in line)
    assert "Llama 3.1 Community License (gated)" in line
    view = next(v for v in luthier("models", "list", "--json").document if v["name"] == "llama-3.1-8b-instruct")
    in_gb = [view["training_memory"][f"{method}_bytes"] / 1e9 for method in ("lora", "qlora", "full")]
    shown = [float(cell.replace(",", "")) for cell in line.split()[-3:]]
    assert shown == [pytest.approx(value, abs=0.5) for value in in_gb]
    assert "full: GB, peak memory of one accelerator as the planner predicts it" in text
    shown = luthier("models", "show", "gpt-oss-20b").out
    assert 'reasoning_effort: "low" | "medium" | "high"' in shown
    assert "no commit is pinned" in shown
    assert "no public file that was read confirms it" in shown


def test_what_runs_have_made_is_shown_with_its_head(luthier, tiny_model: Path, home: Path) -> None:  # type: ignore[no-untyped-def]
    assert luthier("models", "pull", tiny_model).code == 0
    counted = {"labels": ("bug", "praise"), "label_counts": (9, 5), "temperature": 1.25}
    with Context.open(home) as context:
        run_id, tuned, folder = add_head_run(context, "tiny", "a", kind="classify", **counted)
        _, vectors, _ = add_head_run(context, "tiny", "b", kind="embed", dimensions=(32, 8), pooling="mean")
        writes = add_run(context, "c")
    for name in (run_id, tuned):
        shown = luthier("models", "show", name, "--json").document
        assert (shown["name"], shown["run_id"], shown["path"]) == (tuned, run_id, str(folder))
        assert (shown["task_head"]["kind"], shown["task_head"]["temperature"]) == ("classify", 1.25)
        assert dict(zip(shown["task_head"]["labels"], shown["task_head"]["label_counts"], strict=True)) == {
            "bug": 9,
            "praise": 5,
        }
    text = luthier("models", "show", tuned).out
    for words in ("bug (9), praise (5)", "1.25, fitted on the validation rows", f"luthier predict {tuned} --text TEXT"):
        assert words in text
    assert "32, 8" in luthier("models", "show", vectors).out
    assert luthier("models", "show", writes, "--json").document["task_head"] is None
    assert f"luthier chat {writes}" in luthier("models", "show", writes).out
    assert luthier("models", "show", "run-20260101-000000-ffffff").code == 2
    assert luthier("models", "show", "ft:tiny:default:none:x").code == 2


def test_an_unknown_name(luthier) -> None:  # type: ignore[no-untyped-def]
    done = luthier("models", "pull", "no-such-model", "--json")
    assert done.code == 2
    assert done.document["error"]["type"] == "NotFoundError"


def test_a_table_in_a_pipe_is_not_cut(luthier) -> None:  # type: ignore[no-untyped-def]
    text, views = luthier("models", "list").out, luthier("models", "list", "--json").document
    assert len(views) >= 42
    assert all(view["name"] in text for view in views)


def test_a_model_that_a_deployment_or_a_run_needs_stays_and_a_removal_is_logged(
    luthier, tiny_model: Path, home: Path
) -> None:  # type: ignore[no-untyped-def]
    assert luthier("models", "pull", tiny_model).code == 0
    with Context.open(home) as context:
        deployments.deploy(context, Caller(), "front-desk", "tiny")
    refused = luthier("models", "rm", tiny_model, "--json")
    assert refused.document["error"]["type"] == "ConflictError"
    assert "needed by the deployments front-desk (default)" in refused.document["error"]["came"]
    with Context.open(home) as context:
        deployments.remove(context, Caller(), "front-desk")
        document = {"asked": {"base_model": "tiny"}, "base_model": str(tiny_model)}
        run_id = "run-20261125-093000-abcabc"
        context.jobs.submit(Job(job_id="job-1", kind="train", document=document, run_id=run_id))
    refused = luthier("models", "rm", tiny_model, "--json")
    assert "needed by runs that have not ended" in refused.document["error"]["came"]
    assert str(tiny_model) in luthier("models", "list").out
    with Context.open(home) as context:
        context.jobs.ask("job-1", "cancel")
    assert luthier("models", "rm", tiny_model).code == 0
    with Context.open(home) as context:
        entry = context.audit_log.newest(limit=1)[0]
    assert (entry.action, entry.subject, entry.project_id) == ("base_model.removed", "tiny", "default")

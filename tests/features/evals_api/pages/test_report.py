"""The report of a run on the pages of evaluations: figures with intervals, and every answer that is shown."""

from __future__ import annotations

from typing import Any

from tests.fixtures.echo_engine import answering
from tests.fixtures.pages import Browser

from luthier.core.access import Caller
from luthier.features.evals_api import job as eval_job
from luthier.features.evals_api import service
from luthier.features.evals_api.records import EvalRequest, RunRequest
from luthier.platform.home.context import Context

GRADERS: list[dict[str, Any]] = [
    {
        "type": "string_check",
        "name": "Exactly <right>",
        "input": "{{sample.output_text}}",
        "reference": "{{item.a}}",
        "operation": "eq",
    },
    {
        "type": "text_similarity",
        "name": "alike",
        "input": "{{sample.output_text}}",
        "reference": "{{item.a}}",
        "evaluation_metric": "fuzzy_match",
        "pass_threshold": 0.8,
    },
]


def test_a_run_is_seen_from_its_queue_to_its_report(home: Context, browser: Browser) -> None:
    answering(home)
    config = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    request = {"name": "Tone & facts", "data_source_config": config, "testing_criteria": GRADERS}
    one = service.create(home, Caller(), EvalRequest.model_validate(request))
    source = {
        "type": "completions",
        "model": "tiny",
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "say {{item.q}}"}]},
        "source": {"type": "file_content", "content": [{"item": {"q": q, "a": "four"}} for q in ("four", "for", "x")]},
    }
    view = service.start_run(home, Caller(), one.eval_id, RunRequest.model_validate({"data_source": source}))
    reader = browser("read")
    assert "tiny by Tone &amp; facts" in reader.get("/evaluations").text
    order = f"/evaluations/orders/{view.job.job_id}"
    assert "Waiting for a worker" in reader.get(order).text
    job = home.jobs.claim("here", ("infer",))
    assert job is not None
    assert eval_job.carry_out(home, job).status == "succeeded"
    home.jobs.finish(job.job_id, job.attempt, "succeeded")
    report = f"/evaluations/suites/{view.run.result_id}"
    assert report in reader.get(order).text
    page = reader.get(report).text
    for part in ("Tone &amp; facts", "exactly_right", "alike", "all_graders", "Measured, but not compared"):
        assert part in page
    answers = reader.get(f"{report}/alike")
    assert answers.status_code == 200
    assert "say for" in answers.text
    home.access.add_project("proj-other", "other")
    other = browser("read", project="other")
    assert other.get(report).status_code == 404
    assert other.get(order).status_code == 404

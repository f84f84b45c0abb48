"""The list of runs as a table: filter, order, columns and views in the address; changes of many, and of one."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.homes import fill
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.data_stream import Bounds, StreamPlan
from luthier.core.events import GpuSample, MachineSampled, SampleAnswer, SamplesAnswered
from luthier.core.run import RunStatus
from luthier.core.system.files import file_lock
from luthier.features.models.store import TunedModel
from luthier.features.runs.changes import edit_run
from luthier.features.runs.labels import LabelChanges
from luthier.features.runs.service import list_runs
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.platform.ui import page_work
from luthier.testing.records import (
    RUN_ID,
    add_run,
    events_of,
    make_evaluation,
    make_plan,
    make_record,
    make_result,
    tell,
)

Browser = Callable[..., TestClient]
HTMX = {"HX-Request": "true"}
HOSTILE = '"><script>alert(1)</script>'


def ids_in(text: str) -> list[str]:
    return re.findall(r'<th scope="row"><a href="/runs/run-20261125-093000-(\w)', text)


def several(home: Context) -> list[str]:
    runs = []
    for letter, rate in (("a", 1e-4), ("b", 1e-2), ("c", 1e-3)):
        run_id = f"run-20261125-093000-{letter * 6}"
        record = make_record(run_id, status="succeeded", result=make_result())
        home.runs.create(record, make_plan(learning_rate=rate))
        runs.append(run_id)
    edit_run(home, Caller(), runs[0], LabelChanges(name="Client mails", tags=["sweep"], group="first"))
    return runs


def test_other_pages_call_a_run_by_its_name_and_show_its_id_beside(home: Context, browser: Browser) -> None:
    run_id = fill(home).runs[1]
    edit_run(home, Caller(), run_id, LabelChanges(name=f"Client mails {HOSTILE}"))
    one, evaluation = browser("read", "train"), home.evaluations.newest_of("default", limit=1)[0]
    for place in ("/models", f"/models/{run_id}", "/evaluations", f"/evaluations/{evaluation}", "/evaluations/new"):
        text = one.get(place).text
        assert "Client mails &#34;&gt;" in text, place
        assert "<script>alert" not in text
        assert run_id in text


def test_a_run_has_its_default_name_or_the_one_it_was_given(home: Context, browser: Browser) -> None:
    several(home)
    text = browser("read").get("/runs").text
    assert "Client mails" in text
    assert "Train · tiny · 25 Nov" in text
    assert '<span class="badge quiet">sweep</span>' in text


def test_filter_order_and_columns_are_in_the_address(home: Context, browser: Browser) -> None:
    runs = several(home)
    home.evaluations.save(make_evaluation(run_id=runs[1], value=0.5))
    one = browser("read")
    assert ids_in(one.get("/runs?sort=-lr").text) == ["b", "c", "a"]
    assert ids_in(one.get("/runs?filter=lr%3E%3D1e-3&sort=lr").text) == ["c", "b"]
    text = one.get("/runs?columns=training.learning_rate,metric.exact_match,usd&columns=state").text
    assert [unescape(head) for head in re.findall(r'title="Sort by ([^"]+)"', text)] == [
        "Run", "Learning rate", "Exact match", "Money", "Status",
    ]  # fmt: skip
    assert ">0.01</td>" in text
    assert ">0.5</td>" in text
    sorted_text = one.get("/runs?sort=-training.learning_rate&columns=lr").text
    assert 'aria-sort="descending"' in sorted_text
    assert "/runs?sort=training.learning_rate&amp;columns=training.learning_rate" in sorted_text


def test_a_page_of_an_order_is_followed_by_the_next(home: Context, browser: Browser) -> None:
    for number in range(30):
        run_id = f"run-20261125-093000-0000{number:02}"
        home.runs.create(make_record(run_id, status="succeeded"), make_plan(learning_rate=1e-3 + 1e-5 * (number % 7)))
    one = browser("read")
    first = one.get("/runs?sort=-lr").text
    older = unescape(first.split('rel="next"')[0].rsplit('href="', 1)[1].split('"')[0])
    assert "sort=-lr" in older
    second = one.get(older).text
    found = [re.findall(r'id="pick-([^"]+)"', text) for text in (first, second)]
    assert [len(page) for page in found] == [25, 5]
    assert len(set(found[0]) | set(found[1])) == 30
    assert "30 runs" in first


def test_a_filter_that_cannot_be_read_is_shown_with_its_place(home: Context, browser: Browser) -> None:
    several(home)
    answer = browser("read").get("/runs?filter=tag:a+learnin_rate%3E1")
    assert answer.status_code == 422
    text = unescape(answer.text)
    assert "'learnin_rate', which is not a field" in text
    assert "at character 7" in text
    assert 'value="tag:a learnin_rate>1"' in text, "and stays in the field"
    assert browser("read").get("/runs?sort=colour").status_code == 422


def test_archived_runs_are_hidden_unless_they_are_asked_for(home: Context, browser: Browser) -> None:
    runs = several(home)
    edit_run(home, Caller(), runs[2], LabelChanges(is_archived=True))
    one = browser("read")
    assert ids_in(one.get("/runs").text) == ["b", "a"]
    assert ids_in(one.get("/runs?archived=1").text) == ["c", "b", "a"]
    assert ids_in(one.get("/runs?filter=archived:yes").text) == ["c"]
    for run_id in runs[:2]:
        edit_run(home, Caller(), run_id, LabelChanges(is_archived=True))
    text = one.get("/runs").text
    assert 'All runs are archived. <a href="/runs?archived=1">' in text
    assert "Nothing has been trained yet" not in text


def test_the_reason_of_a_failure_is_in_its_row_without_paths(home: Context, browser: Browser) -> None:
    home.runs.create(make_record(status="failed"), make_plan())
    home.runs.update(RUN_ID, stopped_because=f"{home.home}/files/x: loss is not a number")
    text = browser("read").get("/runs").text
    assert "files/x: loss is not a number" in text
    assert str(home.home) not in text


def test_groups_are_listed_together_under_their_names(home: Context, browser: Browser) -> None:
    several(home)
    text = browser("read").get("/runs?sort=group").text
    assert text.index('class="run-group"><td colspan="8">first') < text.index(">no group<")


def test_the_chosen_are_changed_together_by_who_may(home: Context, browser: Browser) -> None:
    runs = several(home)
    viewer, trainer = browser("read"), browser("read", "train")
    form = {"run": runs[:2], "do": "tag", "word": "Night", "back": "/runs?filter=tag%3Asweep"}
    assert viewer.post("/runs/edit", data=form).status_code == 403
    assert "/runs/edit" not in viewer.get("/runs").text
    answer = trainer.post("/runs/edit", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs?filter=tag%3Asweep")
    assert home.run_labels.of_runs(runs)[runs[1]].tags == ("night",)
    for do, word, name, value in nonempty(
        [("untag", "night", "tags", ()), ("star", "", "is_starred", True), ("unstar", "", "is_starred", False),
         ("group", "g", "group", "g"), ("archive", "", "is_archived", True), ("restore", "", "is_archived", False)]
    ):  # fmt: skip
        assert trainer.post("/runs/edit", data={"run": runs[1], "do": do, "word": word}).status_code == 303
        assert getattr(home.run_labels.of_runs(runs)[runs[1]], name) == value
    assert trainer.post("/runs/edit", data={"do": "archive"}).status_code == 422
    assert trainer.post("/runs/edit", data={"run": runs, "do": "tag"}).status_code == 422
    evil = trainer.post("/runs/edit", data={"run": runs[0], "do": "star", "back": "//evil.example/runs"})
    assert evil.headers["location"] == "/runs"


def test_a_change_of_the_chosen_that_is_refused_keeps_the_choice_the_word_and_the_filter(
    home: Context, browser: Browser
) -> None:
    runs, trainer = several(home), browser("read", "train")
    form = {"run": runs[:2], "do": "tag", "word": "two, words", "back": "/runs?filter=lr%3E5e-5&columns=loss,note"}
    refused = trainer.post("/runs/edit", data=form)
    assert refused.status_code == 422
    assert "what to do" in refused.text
    assert re.findall(r'id="pick-run-20261125-093000-(\w)\w*"[^>]* checked', refused.text) == ["b", "a"]
    assert 'name="word" value="two, words"' in refused.text
    assert 'value="lr&gt;5e-5"' in refused.text
    assert 'value="note" checked' in refused.text
    assert 'name="back" value="/runs?filter=lr%3E5e-5&amp;columns=loss%2Cnote"' in refused.text
    assert {one.tags for one in home.run_labels.of_runs(runs[1:]).values()} == {()}
    gone = trainer.post("/runs/edit", data=form | {"run": [runs[0], "run-20261125-093000-ffffff"], "word": "night"})
    assert gone.status_code == 404
    assert 'name="word" value="night"' in gone.text
    assert home.run_labels.of_runs(runs)[runs[0]].tags == ("sweep",)


def test_an_edit_of_a_run_that_is_refused_keeps_what_was_typed(home: Context, browser: Browser) -> None:
    run_id, trainer = add_run(home, "a"), browser("read", "train")
    lines = 2_500 * "why\r\n"
    form = {"name": f"mails {HOSTILE}", "note": lines, "tags": "fine, not!fine", "group": "first", "archived": "1"}
    refused = trainer.post(f"/runs/{run_id}/edit", data=form)
    assert refused.status_code == 422
    assert "the tag &#39;not!fine&#39;" in refused.text
    assert "<script>alert" not in refused.text
    text = unescape(refused.text)
    assert f'id="run-name" name="name" value="mails {HOSTILE}"' in text
    assert 'name="tags" value="fine, not!fine"' in text
    assert "why\nwhy\nwhy" in text.replace("\r\n", "\n")
    assert 'name="group" value="first"' in text
    assert 'name="archived" value="1" checked' in text
    assert 'name="star" value="1" checked' not in text
    assert home.run_labels.of_runs([run_id])[run_id].name == ""
    assert trainer.post(f"/runs/{run_id}/edit", data=form | {"tags": "fine"}).status_code == 303
    assert home.run_labels.of_runs([run_id])[run_id].note == (2_500 * "why\n").strip()


def test_a_star_that_is_clicked_twice_is_there(home: Context, browser: Browser) -> None:
    run_id, trainer = add_run(home, "a"), browser("read", "train")
    button = re.search(r'<button class="run-star" name="(\w+)" value="(\w)"', trainer.get("/runs").text)
    assert button is not None
    for _ in range(2):
        assert trainer.post(f"/runs/{run_id}/star", data={button[1]: button[2]}).status_code == 303
        assert home.run_labels.of_runs([run_id])[run_id].is_starred
    assert '<button class="run-star" name="star" value="0"' in trainer.get("/runs").text
    assert trainer.post(f"/runs/{run_id}/star", data={"star": "0"}).status_code == 303
    assert not home.run_labels.of_runs([run_id])[run_id].is_starred


def test_one_is_edited_starred_and_deleted_by_who_may(home: Context, browser: Browser) -> None:
    run_id = add_run(home, "a")
    viewer, trainer = browser("read"), browser("read", "train")
    form = {"name": HOSTILE, "note": f"why\n{HOSTILE}", "tags": "a, b", "group": HOSTILE, "star": "1"}
    assert viewer.post(f"/runs/{run_id}/edit", data=form).status_code == 403
    assert trainer.post(f"/runs/{run_id}/edit", data=form).headers["location"] == f"/runs/{run_id}"
    for path in (f"/runs/{run_id}", "/runs", "/runs?sort=group&columns=note,tags,group"):
        text = viewer.get(path).text
        assert "<script>alert" not in text, path
        assert "alert(1)" in text, path
    assert home.run_labels.of_runs([run_id])[run_id].tags == ("a", "b")
    assert trainer.post(f"/runs/{run_id}/star", data={"back": "/runs?sort=lr"}).headers["location"] == "/runs?sort=lr"
    assert not home.run_labels.of_runs([run_id])[run_id].is_starred
    assert viewer.post(f"/runs/{run_id}/delete").status_code == 403
    assert trainer.post(f"/runs/{run_id}/delete").headers["location"] == "/runs"
    assert viewer.get(f"/runs/{run_id}").status_code == 404
    assert not home.settings.run_folder(run_id).exists()
    assert list(home.settings.runs_folder.glob(".removed-*")) == [], "the files are gone after the answer"


def test_other_projects_change_nothing(home: Context, browser: Browser) -> None:
    run_id = add_run(home, "a")
    other = browser("admin", project=create_project(home, "Other").project_id)
    for what in ("edit", "star", "delete"):
        assert other.post(f"/runs/{run_id}/{what}").status_code == 404, what
    assert other.post("/runs/edit", data={"run": run_id, "do": "archive"}).status_code == 404
    for what in ("weights.zip", "metrics.csv", "recipe.yaml", "log"):
        assert other.get(f"/runs/{run_id}/{what}").status_code == 404, what


def test_a_view_is_saved_opened_and_deleted(home: Context, browser: Browser) -> None:
    several(home)
    viewer, trainer = browser("read"), browser("read", "train")
    query = "filter=tag%3Asweep&sort=-lr"
    assert viewer.post("/runs/views", data={"name": "Best", "query": query}).status_code == 403
    assert trainer.post("/runs/views", data={"name": "Best", "query": query}).headers["location"] == f"/runs?{query}"
    text = viewer.get("/runs").text
    assert f'href="/runs?{query.replace("&", "&amp;")}"' in text
    assert "/runs/views/delete" not in text
    assert 'aria-current="page">Best' in viewer.get(f"/runs?{query}").text
    assert trainer.post("/runs/views", data={"name": "Best", "query": ""}).status_code == 409
    assert trainer.post("/runs/views/delete", data={"name": "Best"}).status_code == 303
    assert ">Best<" not in viewer.get("/runs").text


def test_a_view_that_is_refused_keeps_its_name_and_the_list_it_was_for(home: Context, browser: Browser) -> None:
    several(home)
    trainer, query = browser("read", "train"), "filter=tag%3Asweep&sort=-lr"
    trainer.post("/runs/views", data={"name": "Best", "query": "sort=lr"})
    answer = trainer.post("/runs/views", data={"name": "Best", "query": query})
    assert answer.status_code == 409
    assert 'id="view-name" name="name" value="Best"' in answer.text
    assert 'name="filter" type="search" value="tag:sweep"' in answer.text
    assert f'name="query" value="{query.replace("&", "&amp;")}"' in answer.text
    deleted = trainer.post("/runs/views/delete", data={"name": "Best", "query": query})
    assert deleted.headers["location"] == f"/runs?{query}"
    again = trainer.post("/runs/views/delete", data={"name": "Best", "query": query})
    assert (again.status_code, "/runs/compare" in again.text) == (404, True)


def test_the_weights_are_sent_as_an_archive_to_who_may_train_and_that_is_logged(
    home: Context, browser: Browser
) -> None:
    folder = home.settings.run_folder(RUN_ID) / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"w" * 3_000_000)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "link").symlink_to("/etc/passwd")
    result = make_result().model_copy(update={"adapter_path": str(folder)})
    home.runs.create(make_record(status="succeeded", result=result), make_plan())
    viewer, trainer = browser("read"), browser("read", "train")
    assert viewer.get(f"/runs/{RUN_ID}/weights.zip").status_code == 403
    assert "weights.zip" not in viewer.get(f"/runs/{RUN_ID}").text
    assert f"/runs/{RUN_ID}/weights.zip" in trainer.get(f"/runs/{RUN_ID}").text
    answer = trainer.get(f"/runs/{RUN_ID}/weights.zip")
    assert f'filename="{RUN_ID}-adapter.zip"' in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
        assert archive.read("adapter/adapter_model.safetensors") == b"w" * 3_000_000
    assert trainer.get(f"/runs/{RUN_ID}/weights.zip").content == answer.content
    entry = home.audit_log.newest(limit=1)[0]
    assert (entry.action, entry.subject) == ("run.weights_downloaded", RUN_ID)


@pytest.mark.parametrize("place", ["/etc", "outside"])
def test_weights_outside_of_the_runs_folder_are_not_sent(
    home: Context, browser: Browser, tmp_path: Path, place: str
) -> None:
    elsewhere = tmp_path / place if place == "outside" else Path(place)
    if place == "outside":
        elsewhere.mkdir()
        (elsewhere / "secret").write_text("x", encoding="utf-8")
    home.settings.run_folder(RUN_ID).mkdir(parents=True)
    result = make_result().model_copy(update={"adapter_path": str(elsewhere)})
    home.runs.create(make_record(status="succeeded", result=result), make_plan())
    assert browser("train", "read").get(f"/runs/{RUN_ID}/weights.zip").status_code == 404


def machine(step: int, at: float) -> MachineSampled:
    gpu = GpuSample(name="GPU 0", utilisation=0.5, memory_bytes=1 << 30, power_watts=200.0)
    return MachineSampled(step=step, at=at, run_cores=1.0, machine_cores=1.5, num_cores=2, run_memory_bytes=1 << 30,
                          machine_memory_bytes=2 << 30, memory_bytes=4 << 30, gpus=(gpu,))  # fmt: skip


def test_metrics_as_a_table_have_every_step_and_the_machine(home: Context, browser: Browser) -> None:
    home.runs.create(make_record(), make_plan())
    tell(home, RUN_ID, events_of(1, 30, 100, validate_every_steps=10))
    home.runs.append(RUN_ID, machine(7, 1.0))
    lines = browser("read").get(f"/runs/{RUN_ID}/metrics.csv").text.splitlines()
    assert lines[0] == "step,chart,series,value"
    assert sum(line.split(",")[1:3] == ["loss", "training"] for line in lines) == 30
    assert "7,machine_processor,this run,50.0" in lines
    assert "7,machine_gpu_power,GPU 0,200.0" in lines


def test_the_machine_is_drawn_and_gives_the_axis_of_time(home: Context, browser: Browser) -> None:
    home.runs.create(make_record(), make_plan())
    tell(home, RUN_ID, events_of(1, 10, 100))
    began = 1_795_599_000.0  # 2026-11-25T09:30:00+00:00, as the record has it
    for step in (1, 5, 10):
        home.runs.append(RUN_ID, machine(step, began + 60 * step))
    one = browser("read")
    text = one.get(f"/runs/{RUN_ID}").text
    for title in nonempty(["Processor", "Memory", "GPU utilisation", "GPU memory", "GPU power"]):
        assert f"<h3>{title}</h3>" in text
    assert 'data-steps-per-epoch="5"' in text
    document = one.get(f"/runs/{RUN_ID}/series?after=0").json()
    assert document["clock"] == [[1, 60.0], [5, 300.0], [10, 600.0]]
    assert document["points"]["machine_processor"]["this run"] == [[1, 50.0], [5, 50.0], [10, 50.0]]
    assert document["points"]["machine_memory"]["this run"][0] == [1, pytest.approx((1 << 30) / 1e9, abs=0.001)], "GB"
    assert "GiB" not in text
    assert "clock" not in document["points"]
    home.runs.append(RUN_ID, machine(11, began + 660))
    news = one.get(f"/runs/{RUN_ID}/series?after={document['position']}").json()
    assert (news["clock"], news["is_more"]) == ([[11, 660.0]], False)


def test_charts_of_rows_of_unknown_number_have_steps_and_no_epochs(home: Context, browser: Browser) -> None:
    plan = make_plan()
    share = Bounds(0.0, 0.1)
    stream = StreamPlan(
        shuffle_buffer=10,
        num_shards=1,
        num_bytes=None,
        num_sampled=40,
        dropped_fraction=share,
        truncated_fraction=share,
    )
    home.runs.create(make_record(), plan.model_copy(update={"data": plan.data.model_copy(update={"stream": stream})}))
    steps = [one.model_copy(update={"epoch": None}) if one.kind == "step" else one for one in events_of(1, 10, 100)]
    tell(home, RUN_ID, steps)
    text = browser("read").get(f"/runs/{RUN_ID}").text
    assert "data-steps-per-epoch" not in text
    assert "<h3>Loss</h3>" in text
    assert "epoch 0.30" not in text


def test_answers_to_the_fixed_prompts_stand_side_by_side(home: Context, browser: Browser) -> None:
    home.runs.create(make_record(), make_plan())
    for step in range(0, 100, 5):
        answers = (SampleAnswer(prompt=f"Which wood? {HOSTILE}", answer=f"spruce {step}", reference="maple"),)
        home.runs.append(RUN_ID, SamplesAnswered(step=step, answers=answers, seconds=1.0))
    text = browser("read").get(f"/runs/{RUN_ID}").text
    assert "Answers over the steps" in text
    assert [int(step) for step in re.findall(r">Step (\d+)</th>", text)] == [0, 15, 25, 40, 55, 70, 80, 95]
    assert "spruce 95" in text
    assert "<script>alert" not in text


def test_a_run_can_be_copied_as_recipe_command_and_call_without_paths(home: Context, browser: Browser) -> None:
    plan = make_plan()
    data = plan.recipe.data.model_copy(update={"train": f"{home.home}/files/mine.jsonl"})
    plan = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"data": data})})
    home.runs.create(make_record(), plan)
    one = browser("read")
    text = unescape(one.get(f"/runs/{RUN_ID}").text)
    assert "luthier train recipe.yaml" in text
    call = text.split('id="copy-python" tabindex="0">')[1].split("</pre>")[0]
    compile(call, "call", "exec")
    assert "'train': 'files/mine.jsonl'" in call
    recipe = one.get(f"/runs/{RUN_ID}/recipe.yaml")
    assert recipe.text.startswith("base_model: tiny\n")
    assert str(home.home) not in recipe.text + text
    home.jobs.submit(Job(job_id="job-1", kind="train", document={}, run_id="run-20261125-093000-bbbbbb"))
    assert one.get("/runs/run-20261125-093000-bbbbbb/recipe.yaml").status_code == 404


def test_the_end_of_the_log_is_shown_without_paths(home: Context, browser: Browser) -> None:
    run_id = add_run(home, "a")
    one = browser("read")
    assert "No log yet" in one.get(f"/runs/{run_id}").text
    lines = "".join(f"2026-11-25 09:30:00  step {n:,}\n" for n in range(2_000))
    log = home.settings.run_folder(run_id) / "log.txt"
    trace = '  File "/home/ada/venv/lib/python3.12/site-packages/torch/nn/modules.py", line 1, in forward'
    seen = "see https://pytorch.org/docs/stable/notes.html, 3/4 of a/b"
    log.write_text(f"{lines}{trace}\n{seen}\ncheckpoint {home.home}/runs/x {HOSTILE}\n", encoding="utf-8")
    piece = one.get(f"/runs/{run_id}/log", headers=HTMX).text
    assert "<html" not in piece
    assert "step 1,999" in piece
    assert "step 1,000\n" not in piece, "the end alone"
    assert "The last lines" in piece
    assert str(home.home) not in piece
    assert "…/modules.py" in piece
    assert "/home/ada" not in piece
    assert seen in piece, "addresses and fractions are no paths"
    assert "<script>alert" not in piece


def add_model(home: Context, run_id: str, name: str) -> str:
    return home.tuned_models.add(
        TunedModel(model_id=name, project_id="default", job_id="j", run_id=run_id, base_model="tiny", adapter_path="/a")
    ).model_id


def test_a_run_of_the_server_is_deleted_from_its_page_with_its_registered_model(
    home: Context, browser: Browser
) -> None:
    """Each run that a page has started registers its result as a model."""
    run_id, trainer = add_run(home, "a"), browser("read", "train")
    add_model(home, run_id, "ft:tiny:default::a")
    refused = trainer.post(f"/runs/{run_id}/delete")
    assert refused.status_code == 409
    assert "ft:tiny:default::a" in refused.text
    assert f'action="/runs/{run_id}/delete"' in refused.text, "its own page says why"
    fields = re.search(rf'action="/runs/{run_id}/delete".*?name="(with_models)" value="(1)"', refused.text, re.S)
    assert fields is not None
    assert trainer.post(f"/runs/{run_id}/delete", data={fields[1]: fields[2]}).headers["location"] == "/runs"
    assert home.tuned_models.list("default") == []
    assert home.runs.some([run_id]) == {}


def test_the_chosen_runs_are_deleted_and_the_rest_says_why_not(
    home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_work, "WAIT_SECONDS", 60.0)
    runs, trainer = [add_run(home, letter) for letter in "abc"], browser("read", "train")
    add_model(home, runs[0], "ft:tiny:default::a")
    home.jobs.submit(Job(job_id="job-1", kind="train", document={}, run_id=runs[1]))
    form = {"run": runs[:2], "do": "delete", "back": "/runs?sort=lr"}
    assert browser("read").post("/runs/edit", data=form).status_code == 403
    answer = trainer.post("/runs/edit", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs?sort=lr")
    said = trainer.get("/runs?sort=lr").text
    assert f"1 run is deleted. Not deleted: 1 run, the first since run {runs[1]} is queued." in said
    assert set(home.runs.some(runs)) == {runs[1], runs[2]}
    assert trainer.post("/runs/edit", data={"do": "delete"}).status_code == 422


@pytest.mark.parametrize("what", ["pause", "resume", "cancel", "track"])
def test_what_another_tab_has_done_meanwhile_is_said_on_the_page_of_the_run(
    home: Context, browser: Browser, what: str
) -> None:
    run_id = add_run(home, "a")
    home.jobs.submit(Job(job_id="job-1", kind="train", document={}, run_id=run_id))
    job = home.jobs.claim("w")
    assert job is not None
    home.jobs.finish(job.job_id, job.attempt, "succeeded")
    refused = browser("read", "train").post(f"/runs/{run_id}/{what}")
    assert refused.status_code == 409
    assert "what to do" in refused.text
    assert f'data-run="/runs/{run_id}"' in refused.text


def test_runs_taken_out_of_their_group_are_in_no_group(home: Context, browser: Browser) -> None:
    runs, trainer = several(home), browser("read", "train")
    assert trainer.post("/runs/edit", data={"run": runs[:2], "do": "group", "word": "  "}).status_code == 303
    assert home.run_labels.of_runs(runs)[runs[0]].group == ""
    assert "2 runs are in no group now." in trainer.get("/runs").text
    assert trainer.post("/runs/edit", data={"run": runs[0], "do": "group", "word": ""}).status_code == 303
    german = trainer.get("/runs", headers={"Accept-Language": "de"}).text
    assert "1 Lauf ist jetzt in keiner Gruppe." in german


def test_runs_of_killed_commands_are_found_as_interrupted_and_not_as_running(home: Context, browser: Browser) -> None:
    done = several(home)[0][-6]
    begun: tuple[tuple[str, RunStatus], ...] = (("d", "running"), ("e", "planned"), ("f", "running"))
    for letter, status in begun:
        home.runs.create(make_record(f"run-20261125-093000-{letter * 6}", status=status), make_plan())
    reader, lock = browser("read"), home.settings.run_folder("run-20261125-093000-ffffff") / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(lock, what="run", timeout_seconds=1.0):
        for query in ("status=interrupted", "filter=state:interrupted"):
            assert ids_in(reader.get(f"/runs?{query}").text) == ["e", "d"]
        for query in ("status=running", "filter=state:running"):
            assert ids_in(reader.get(f"/runs?{query}").text) == ["f"]
        assert done in ids_in(reader.get("/runs?filter=not state:interrupted").text)
        assert [one.record.run_id[-1] for one in list_runs(home, filter_text="state:interrupted")] == ["e", "d"]
    assert '<option value="interrupted"' in reader.get("/runs").text

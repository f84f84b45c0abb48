"""/api/v1/runs, evaluations and jobs: a project sees its own, and no path of the server."""

from __future__ import annotations

from pathlib import Path

from luthier.core.ports import SilentProgress
from luthier.core.tracking import TrackerPlan, TrackerRecipe
from luthier.features.models.store import TunedModel
from luthier.features.trackers.service import TrackerState, save_state
from luthier.platform.auth.service import create_project
from luthier.platform.files.service import add_file
from luthier.platform.jobs.records import Job
from luthier.testing.records import RUN_ID, make_plan, make_record


def test_a_run_with_all_that_is_known_of_it(visitor, home, run_id: str) -> None:  # type: ignore[no-untyped-def]
    asked = visitor("read")
    page = asked.get("/api/v1/runs").json()
    assert ([run["run_id"] for run in page["data"]], page["has_more"]) == ([run_id], False)
    shown = asked.get(f"/api/v1/runs/{run_id}")
    run = shown.json()
    assert (run["status"], run["last_step"]["step"]) == ("succeeded", 2)
    assert run["evaluation"]["verdict"]
    assert "folder" not in run
    assert str(home.home) not in shown.text
    assert '"/' not in shown.text, "no path of the server"
    verdict = asked.get(f"/api/v1/runs/{run_id}/verdict").json()
    assert verdict["word"] == run["evaluation"]["verdict"]["word"]
    assert verdict["recommendation"]["action"] == run["recommendation"]["action"]
    assert verdict["recommendation"]["reason"]
    evaluation = asked.get(f"/api/v1/evaluations/{verdict['evaluation_id']}").json()
    assert evaluation["run_id"] == run_id
    assert "samples" not in evaluation["systems"][0]
    whole = asked.get(f"/api/v1/evaluations/{verdict['evaluation_id']}?with_samples=true").json()
    assert "samples" in whole["systems"][0]


def test_events_are_followed_by_their_position(visitor, home, run_id: str) -> None:  # type: ignore[no-untyped-def]
    asked = visitor("read")
    first = asked.get(f"/api/v1/runs/{run_id}/events").json()
    assert [event["step"] for event in first["data"]] == [1, 2]
    place = f"/api/v1/runs/{run_id}/events?after={first['next_after']}"
    assert asked.get(place).json() == {
        "object": "list",
        "data": [],
        "next_after": first["next_after"],
        "has_more": False,
    }
    # In pages: the same events, each once.
    paged, after, has_more = [], 0, True
    while has_more:
        page = asked.get(f"/api/v1/runs/{run_id}/events?after={after}&limit=1").json()
        assert len(page["data"]) == 1
        paged, after, has_more = [*paged, *page["data"]], page["next_after"], page["has_more"]
    assert paged == first["data"]
    assert asked.get(f"/api/v1/runs/{run_id}/events?limit=10001").status_code == 400


def test_runs_by_page(visitor, home) -> None:  # type: ignore[no-untyped-def]
    ids = [f"run-20260101-00000{number}-abcdef" for number in range(5)]
    for run_id in ids:
        home.runs.create(make_record().model_copy(update={"run_id": run_id}), make_plan())
    asked, found, after = visitor("read"), [], ""
    while True:
        page = asked.get(f"/api/v1/runs?limit=2{after}").json()
        found += [run["run_id"] for run in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={found[-1]}"
    assert found == ids[::-1]
    assert asked.get("/api/v1/runs?after=run-20260101-000009-abcdef").status_code == 404


def test_a_job_and_its_run_are_their_projects_alone(visitor, home, run_id: str) -> None:  # type: ignore[no-untyped-def]
    project = create_project(home, "b").project_id
    theirs = "run-20260202-000000-abcdef"
    home.jobs.submit(Job(job_id="ftjob-b", kind="train", document={}, run_id=theirs, project_id=project))
    home.runs.create(make_record().model_copy(update={"run_id": theirs}), make_plan())
    ours, other = visitor("read"), visitor("read", project="b")
    evaluation = home.evaluations.list(run_id=run_id)[0].evaluation_id
    assert [run["run_id"] for run in other.get("/api/v1/runs").json()["data"]] == [theirs]
    assert [run["run_id"] for run in ours.get("/api/v1/runs").json()["data"]] == [run_id]
    assert other.get("/api/v1/jobs/ftjob-b").json()["status"] == "queued"
    for asked, hidden, place in (
        (other, run_id, f"runs/{run_id}"),
        (other, run_id, f"runs/{run_id}/events"),
        (other, run_id, f"runs/{run_id}/verdict"),
        (other, run_id, f"runs?after={run_id}"),
        (other, run_id, f"evaluations/{evaluation}"),
        (ours, theirs, f"runs/{theirs[:-1]}e"),
        (ours, theirs, "jobs/ftjob-bb"),
        (ours, theirs, "jobs/ftjob-b"),
    ):
        answer = asked.get(f"/api/v1/{place}")
        assert answer.status_code == 404, place
        assert hidden in place or hidden not in answer.text, "nor a hint at it"


def test_a_run_that_was_not_judged_has_no_verdict(visitor, home) -> None:  # type: ignore[no-untyped-def]
    home.runs.create(make_record(), make_plan())
    answer = visitor("read").get(f"/api/v1/runs/{make_record().run_id}/verdict")
    assert answer.status_code == 404
    assert "has no verdict" in answer.json()["error"]["message"]


def test_a_run_is_started_from_a_recipe_with_files_by_id(visitor, home, tmp_path: Path, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    from luthier.ml.inference.models import sources

    sources.pull(str(tiny_model), home.home, SilentProgress())
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 12)
    file = add_file(home, "default", tmp_path / "mine.jsonl", filename="mine.jsonl", purpose="fine-tune")
    recipe = {"base_model": "tiny", "data": {"train": file.file_id}, "method": {"rank": 4, "name": "lora"}}
    asked = visitor("train")
    answer, same = (
        asked.post("/api/v1/runs", json={"recipe": recipe}, headers={"Idempotency-Key": "k"}) for _ in range(2)
    )
    assert answer.status_code == 201, answer.text
    assert (same.status_code, same.json()) == (201, answer.json()), "a request that is sent again starts nothing more"
    job = answer.json()
    assert (job["status"], job["lane"], job["run_id"][:4]) == ("queued", "validate", "run-")
    assert home.jobs.get(job["id"]).document["asked"] == recipe
    assert visitor("read").get(f"/api/v1/jobs/{job['id']}").json()["run_id"] == job["run_id"]
    create_project(home, "c")
    assert visitor("read").post("/api/v1/runs", json={"recipe": recipe}).status_code == 403
    assert visitor("train", project="c").post("/api/v1/runs", json={"recipe": recipe}).status_code == 400
    for wrong in ({"base_model": str(tiny_model)}, {"data": {"train": "/etc/passwd"}}, {"training": {"epoch": 1}}):
        answer = asked.post("/api/v1/runs", json={"recipe": recipe | wrong})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
    assert len(home.jobs.list()) == 1


def test_runs_are_edited_filtered_sorted_and_deleted(visitor, home) -> None:  # type: ignore[no-untyped-def]
    ids = [f"run-20260101-00000{number}-abcdef" for number in range(3)]
    for number, one in enumerate(ids):
        home.runs.create(make_record(one, status="succeeded"), make_plan(learning_rate=(2e-3, 1e-3, 3e-3)[number]))
    reader, trainer = visitor("read"), visitor("train")
    place = f"/api/v1/runs/{ids[0]}"
    asked = {"name": "Client mails", "tags": ["Sweep"], "is_starred": True}
    assert reader.patch(place, json=asked).status_code == 403
    edited = trainer.patch(place, json=asked).json()
    assert (edited["name"], edited["tags"], edited["is_starred"], edited["note"]) == (
        "Client mails",
        ["sweep"],
        True,
        "",
    )
    assert trainer.patch(place, json={"add_tags": ["b"], "note": "n"}).json()["tags"] == ["b", "sweep"]
    assert trainer.patch(place, json={"colour": "red"}).status_code == 400
    assert trainer.patch(place, json={"tags": ["two words"]}).status_code == 400
    assert reader.get(place).json()["name"] == "Client mails"

    def listed(query: str) -> list[str]:
        answer = reader.get(f"/api/v1/runs?{query}")
        assert answer.status_code == 200, answer.text
        return [run["run_id"] for run in answer.json()["data"]]

    assert listed("sort=-lr") == [ids[2], ids[0], ids[1]]
    assert listed(f"sort=-lr&after={ids[2]}&limit=1") == [ids[0]]
    assert listed("filter=tag:sweep%20lr%3E1e-3") == [ids[0]]
    wrong = reader.get("/api/v1/runs?filter=lr%3E%3E1")
    assert wrong.status_code == 400
    assert "at character 4" in wrong.json()["error"]["message"]
    create_project(home, "c")
    for other in (visitor("train", project="c").patch(place, json={}), visitor("train", project="c").delete(place)):
        assert other.status_code == 404
    assert reader.delete(place).status_code == 403
    assert trainer.delete(place).json() == {"id": ids[0], "object": "run", "deleted": True}
    model = TunedModel(
        model_id="ft:b", project_id="default", job_id="j", run_id=ids[1], base_model="tiny", adapter_path="/a"
    )
    home.tuned_models.add(model)
    assert trainer.delete(f"/api/v1/runs/{ids[1]}").status_code == 409
    assert trainer.delete(f"/api/v1/runs/{ids[1]}?with_models=true").status_code == 200
    assert home.tuned_models.list("default") == []
    assert listed("sort=lr") == [ids[2]]


def test_trackers_are_shown_without_places_and_get_the_rest_by_a_job(visitor, home) -> None:  # type: ignore[no-untyped-def]
    places = {"mlflow": "sqlite:////srv/mlflow.db", "tensorboard": "/srv/curves", "wandb": "https://host"}
    trackers = tuple(TrackerPlan(name=name, project="mails", location=place) for name, place in places.items())
    asked = (TrackerRecipe(name="tensorboard", location="/srv/curves"),)
    recipe = make_plan().recipe.model_copy(update={"tracking": asked})
    plan = make_plan().model_copy(update={"tracking": trackers, "recipe": recipe})
    home.runs.create(make_record(status="succeeded"), plan)
    for name, place in places.items():
        its_id = place if name == "tensorboard" else "1"
        save_state(home.settings.run_folder(RUN_ID), TrackerState(name=name, tracker_run_id=its_id, url=place))
    answer = visitor("read").get(f"/api/v1/runs/{RUN_ID}")
    assert "/srv" not in answer.text
    assert [one["url"] for one in answer.json()["trackers"]] == ["", "", "https://host"]
    create_project(home, "c")
    address = f"/api/v1/runs/{RUN_ID}/track"
    assert visitor("read").post(address).status_code == 403
    assert visitor("train", project="c").post(address).status_code == 404
    made = visitor("train").post(address)
    assert (made.status_code, made.json()["kind"]) == (202, "tracking")
    assert visitor("train").post(address).status_code == 409

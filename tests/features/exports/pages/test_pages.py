"""/exports/ID: state, proof, files, and what may be handed out."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

from fastapi.testclient import TestClient
from tests.fixtures.pages import shown
from tests.homes import add_export, fill

from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
PIECE = {"HX-Request": "true"}


def test_an_export_is_queued_watched_and_cancelled(home: Context, browser: Browser) -> None:
    made = fill(home)
    one = browser("read", "train")
    address = one.post("/exports", data={"source": made.tuned, "form": "merged:float32"}).headers["location"]
    two = browser("read", "train")
    again = two.post("/exports", data={"source": made.tuned, "form": "merged:float32"})
    assert again.headers["location"] == address, "who orders the same gets what waits already"
    assert "The same export was requested before" in shown(two, again).text
    other = two.post("/exports", data={"source": made.tuned, "form": "merged:float16"}).headers["location"]
    assert other != address
    two.post(f"{other}/cancel")
    text = one.get(address).text
    assert "Waiting for a worker" in text
    assert f'hx-get="{address}?after=queued-' in text
    asked = text.partition("hx-get=&#34;")[2] or text.partition('hx-get="')[2]
    look = asked.partition('"')[0]
    assert one.get(look, headers=PIECE).status_code == 204, "nothing has happened since"
    job = home.jobs.claim("w")
    assert job is not None
    home.job_events.append(job.job_id, "progress-1-1", "Running the source: 3 of 32 prompts")
    piece = one.get(look, headers=PIECE)
    assert "Running the source: 3 of 32 prompts" in piece.text
    assert "<html" not in piece.text
    one.post(f"{address}/cancel")
    assert f'action="{address}/cancel"' not in one.get(address).text, "it is being cancelled"
    home.jobs.finish(job.job_id, job.attempt, "cancelled")
    text = one.get(address).text
    assert "It was cancelled" in text
    assert "data-look" not in text
    assert one.post(f"{address}/cancel").status_code == 409
    assert one.post(f"{address}/remove").headers["location"] == f"/models/{made.runs[1]}"
    assert one.get(address).status_code == 404


def test_why_it_failed_without_the_places_of_this_machine(home: Context, browser: Browser) -> None:
    made = fill(home)
    export_id = add_export(home, made.runs[0], "b", is_made=False)
    job = home.jobs.claim("w")
    assert job is not None
    error = {"type": "ParityError", "came": f"not equal in {home.home}/runs", "expected": "equal", "do": "more bits"}
    home.jobs.finish(job.job_id, job.attempt, "failed", error)
    one = browser("read", "train")
    text = one.get(f"/exports/{export_id}").text
    assert "not equal in runs" in text
    assert "more bits" in text
    assert str(home.home) not in text
    assert one.post(f"/exports/{export_id}/retry").status_code == 303
    assert home.jobs.get(job.job_id).status == "queued"


def test_the_proof_and_the_files_are_shown_and_handed_out(home: Context, browser: Browser) -> None:
    made = fill(home)
    one = browser("read")
    address = f"/exports/{made.export_id}"
    text = one.get(address).text
    for words in ("proved equal", "2 of 3", "at most 0.05 allowed", "Loss of quality", "5" * 64, "# Card"):
        assert words in text
    assert str(home.home) not in text
    answer = one.get(f"{address}/files.tar")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["content-disposition"] == f'attachment; filename="{made.export_id}.tar"'
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        assert tar.getnames() == [f"{made.export_id}/README.md", f"{made.export_id}/model.safetensors"]
    file = one.get(f"{address}/files/model.safetensors")
    assert (file.content, file.headers["content-disposition"]) == (
        b"weights",
        'attachment; filename="model.safetensors"',
    )
    for path in ("..%2f..%2fluthier.db", "%2Fetc%2Fpasswd", "nothing"):
        assert one.get(f"{address}/files/{path}").status_code == 404
    assert one.get("/exports/exp-1/files.tar").status_code == 404


def test_what_is_not_whole_says_so(home: Context, browser: Browser) -> None:
    made = fill(home)
    one = browser("read")
    answer = shown(one, one.post(f"/exports/{made.export_id}/verify"))
    assert answer.status_code == 200
    assert "It has changed" in answer.text
    assert "bundle.json is missing" in answer.text
    (home.settings.exports_folder / made.export_id / "README.md").unlink()
    text = one.get(f"/exports/{made.export_id}").text
    assert "no file &#39;README.md&#39;" in text


def test_an_export_that_answers_is_not_removed(home: Context, browser: Browser) -> None:
    made = fill(home)
    current = home.deployments.get("default", "support")
    share = current.revision.shares[0].model_copy(update={"target": f"export:{made.export_id}"})
    revision = current.revision.model_copy(update={"number": 2, "shares": (share,)})
    home.deployments.revise(current, revision)
    answer = browser("read", "train").post(f"/exports/{made.export_id}/remove")
    assert answer.status_code == 409
    assert "answers as support" in answer.text


def test_a_refused_deployment_of_an_export_stays_one_of_the_export(home: Context, browser: Browser) -> None:
    made = fill(home)
    target = f"export:{made.export_id}"
    one = browser("read", "train")
    sent = {"name": "support", "target": target, "source": made.runs[0], "override": "The team has agreed to it."}
    answer = one.post("/deployments", data=sent)
    assert answer.status_code == 409, "a name that is taken"
    page = answer.text
    assert f'name="target" value="{target}"' in page, "the form deploys what it deployed before"
    assert f'<input type="hidden" name="target" value="{made.runs[0]}"' not in page
    assert 'name="name" required maxlength="64"' in page
    assert 'value="support" title=' in page, "the name is there to be corrected"
    gone = one.post("/deployments", data=sent | {"target": "export:exp-20260101-000000-ffffff"})
    assert gone.status_code == 404

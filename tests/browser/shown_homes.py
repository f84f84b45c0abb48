"""Homes whose pages `screenshots.py` draws: the shop, records of long work, and a home in which nothing is yet.

The shop is real: its rows are those of examples/shop, its models are trained, its batch, export and requests are
carried out by a server. What would take hours (a study, workflows, a suite) are records that tests use, in a home of
their own; nothing was trained for them. Each part is made once: a second call continues where the first one ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx

from luthier.core.access import Caller
from luthier.core.records.traffic import TrafficPolicy
from luthier.features.batches import service as batches
from luthier.features.batches.records import BatchRequest
from luthier.features.datasets import annotations as row_annotations
from luthier.features.datasets import imports
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.store import RowDecision
from luthier.features.deployments import service as deployments
from luthier.features.exports import requests as exports
from luthier.features.feedback import service as feedback
from luthier.features.human_eval.items import answers_of
from luthier.features.human_eval.service import create_panel
from luthier.features.inbox import service as inbox
from luthier.features.runs import changes
from luthier.features.runs.labels import LabelChanges
from luthier.features.traffic.policy import set_traffic_policy
from luthier.features.training import recipe_job
from luthier.platform.auth.invitations import invite
from luthier.platform.auth.members import add_member
from luthier.platform.auth.service import create_key
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import RUN_ID, events_of, make_plan, make_record, tell
from tests import assessed, homes

ROOT: Final = Path(__file__).resolve().parents[2]
MODEL: Final = "smollm2-135m-instruct"
QUESTION: Final = "A customer has bought: salt mill, walnut board, bread knife. What comes next? Name one thing."
NOTHING_THERE: Final = "run-20260101-000000-000000"
"""The id of a run that no home has."""
_CHAT: Final = "/v1/chat/completions"
_MOST_SECONDS: Final = 3600.0
_ME: Final = Caller()
_RUNS: Final = ((8, "Next purchase, small"), (27, "Next purchase, larger adapter"))
_DOCUMENTS: Final = {
    "care of knives.md": "# Care of knives\n\nWash a knife by hand and dry it at once. Oil the handle of walnut twice "
    "a year. A blunt edge is sharpened on a stone of grain 1000, then of grain 3000. We sharpen knives for 6 euros.\n",
    "returns.html": "<h1>Returns</h1><p>A customer may return what was bought within 30 days. The goods must be unused "
    "and in their box. We pay the postage where the goods were damaged. The money is paid back within five days.</p>",
    "delivery.txt": "Delivery\n\nOrders before noon leave the shop on the same day. A parcel takes two days in the "
    "country and five days abroad. Rain barrels are delivered by a carrier, who calls the customer first.\n",
    "prices of 2019.doc": "an old file",
}
_REQUESTS: Final = 12

Known = dict[str, str]
Part = Callable[[Context, str, Path, Known], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Shown:
    """Ids of what the pages of the shop are about, by what they are; an empty one where only names are asked for."""

    ids: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.ids.get(name, "none")


def fill_shop(context: Context, url: str, folder: Path, num_rows: int) -> Shown:
    """Make what is missing of the shop.

    Args:
        context: Its home, which a server with a worker serves.
        url: The server.
        folder: Where the ids of what was made are kept, in `shown.json`.
        num_rows: Rows of the dataset.
    """
    notes = folder / "shown.json"
    known: Known = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {"rows": str(num_rows)}
    for made, part in _PARTS.items():
        if made not in known:
            sys.stderr.write(f"\n{made}\n")
            known |= part(context, url, folder, known)
            notes.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return Shown(known)


def _dataset(context: Context, _: str, folder: Path, known: Known) -> Mapping[str, str]:
    """Rows of the shop: a version of which somebody has rejected a row, and the one without it."""
    rows = folder / "orders.jsonl"
    program = ROOT / "examples" / "shop" / "make_data.py"
    subprocess.run([sys.executable, str(program), str(rows), known["rows"]], check=True)
    _shorten(rows)
    file = dataset_versions.keep_rows(context, _ME, [rows.read_bytes()], "orders.jsonl")
    dataset, first = dataset_versions.create_dataset(context, _ME, "Shop orders", file, note="Orders of three years")
    key = dataset.dataset_id
    context.datasets.decide(key, first.number, RowDecision(row=2, decision="reject", author="Ada"))
    queue = row_annotations.open_queue(context, _ME, key, first.number)
    second = row_annotations.make_version(context, _ME, queue, note="Without an order that was cancelled")
    for row, decision in ((1, "accept"), (2, "accept"), (3, "reject")):
        one = RowDecision.model_validate({"row": row, "decision": decision, "author": "Ada"})
        context.datasets.decide(key, second.number, one)
    return {"dataset": key, "file": second.file_id}


def _shorten(rows: Path) -> None:
    """Ask about the last three purchases of a customer alone: whole histories would train for an hour."""
    lines = []
    for row in map(json.loads, rows.read_text(encoding="utf-8").splitlines()):
        bought = row["prompt"].partition("Bought:\n")[2].partition("\nReviews:")[0].splitlines()
        things = ", ".join(line.partition(": ")[2] for line in bought[-3:])
        lines.append(json.dumps(row | {"prompt": f"A customer has bought: {things}. What comes next? Name one thing."}))
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _documents(context: Context, _: str, __: Path, known: Known) -> Mapping[str, str]:
    """Three documents of the shop, and one that cannot be read."""
    incoming = []
    for name, text in _DOCUMENTS.items():
        file = files.incoming_file(context)
        file.write(text.encode())
        incoming.append((file, name))
    job = imports.add(context, _ME, incoming, name="Shop handbook").job
    assert job is not None
    _wait(context, job.job_id)
    made = [dataset.dataset_id for dataset, _ in dataset_versions.list_datasets(context, _ME)]
    return {"import": job.job_id, "passages": next(one for one in made if one != known["dataset"])}


def _runs(context: Context, _: str, __: Path, known: Known) -> Mapping[str, str]:
    """Two runs that differ in one thing."""
    made: Known = {}
    for number, (rank, name) in enumerate(_RUNS, start=1):
        recipe = {
            "base_model": MODEL,
            "data": {"train": known["file"], "validation": 0.1, "held_out": 0.2},
            "method": {"name": "lora", "rank": rank},
            "training": {"epochs": 1, "learning_rate": 2e-3, "global_batch_size": 4},
            "evaluation": {
                "metrics": ["label_accuracy", "exact_match"],
                "few_shot": 4,
                "max_new_tokens": 12,
                "sample_prompts": 3,
            },
            "budget": {"usd": 1.0},
        }
        job = recipe_job.start(context, _ME, recipe)
        _wait(context, job.job_id)
        changes.edit_run(context, _ME, job.run_id, LabelChanges(name=name, tags=("shop",)))
        made[f"run-{number}"] = job.run_id
    evaluation = context.evaluations.list(run_id=made["run-2"], limit=1)[0]
    return made | {"evaluation": evaluation.evaluation_id}


def _deployment(context: Context, _: str, __: Path, known: Known) -> Mapping[str, str]:
    """A name that clients ask, with a canary."""
    deployments.deploy(context, _ME, "shop", known["run-1"])
    deployments.deploy(context, _ME, "shop", known["run-2"], canary=0.1)
    return {"deployment": "shop"}


def _people(context: Context, _: str, __: Path, known: Known) -> Mapping[str, str]:
    """A member who annotates the dataset within three days, and an invitation."""
    add_member(context, _ME, "Ben", "correct horse battery", "trainer")
    due = datetime.now(UTC).date() + timedelta(days=3)
    inbox.ask_to_annotate(context, _ME, known["dataset"], "Ben", due=due)
    return {"invitation": invite(context, _ME, "viewer", recipient="Cleo").token}


def _requests(context: Context, url: str, _: Path, known: Known) -> Mapping[str, str]:
    """Questions to the deployment, with what people said of the answers."""
    set_traffic_policy(context, _ME, TrafficPolicy(keep="full"))
    key = create_key(context, "Web shop", scopes=("infer",))[1]
    # Servers apply a policy within seconds.
    time.sleep(8)
    answered = []
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=_MOST_SECONDS) as client:
        for number in range(_REQUESTS):
            said = [{"role": "user", "content": f"{QUESTION} (order {20_000 + number})"}]
            body = {"model": known["deployment"], "messages": said, "max_tokens": 8, "user": f"client-{number % 5}"}
            answered.append(client.post(_CHAT, json=body).raise_for_status().json()["id"])
    for number, exchange_id in enumerate(answered[:9]):
        correction = {} if number % 3 else {"thumb": "down", "correction": "salt mill"}
        given: dict[str, Any] = {"exchange_id": exchange_id, "thumb": "up", "author": "Ada"} | correction
        feedback.give(context, _ME, feedback.FeedbackInput.model_validate(given))
    return {"exchange": answered[0]}


def _batch(context: Context, _: str, __: Path, ___: Known) -> Mapping[str, str]:
    """A batch of questions to the base model, one of which no route would take."""
    lines = []
    for number in range(_REQUESTS):
        body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": f"{QUESTION} ({number})"}]}
        body |= {"max_tokens": 8, "temperature": 9 if number == 5 else 0}
        lines.append({"custom_id": f"order-{number}", "method": "POST", "url": _CHAT, "body": body})
    with files.incoming_file(context) as incoming:
        incoming.write("".join(f"{json.dumps(line)}\n" for line in lines).encode())
        stored = files.keep_file(context, _ME.project_id, incoming, filename="orders.jsonl", purpose="batch")
    wanted = {"input_file_id": stored.file_id, "endpoint": _CHAT, "completion_window": "24h"}
    made = batches.start(context, _ME, BatchRequest.model_validate(wanted))
    _wait(context, made.job.job_id)
    return {"batch": made.batch.batch_id}


def _export(context: Context, _: str, __: Path, known: Known) -> Mapping[str, str]:
    """The better run as one set of weights, compared with the original."""
    made = exports.start(context, _ME, known["run-2"], "merged")
    _wait(context, made.job_id)
    return {"export": made.export_id}


def _panel(context: Context, _: str, __: Path, known: Known) -> Mapping[str, str]:
    """People who compare the answers of the evaluation; one of them has rated some."""
    answered = answers_of(context.evaluations.get(known["evaluation"]), ("base", "tuned"), most_rows=20)
    made = create_panel(
        context, _ME, answered, kind="pairwise", raters=("Ada", "Ben"), name="Which suggestion is better?"
    )
    assessed.rate_all(context, made, 0, assessed.careful("pairwise", better="tuned"), most=8)
    return {"panel": made.panel.panel_id, "rater": made.links[1].token}


_PARTS: Final[Mapping[str, Part]] = {
    "dataset": _dataset,
    "import": _documents,
    "run-1": _runs,
    "deployment": _deployment,
    "invitation": _people,
    "exchange": _requests,
    "batch": _batch,
    "export": _export,
    "panel": _panel,
}
"""By an id that each of them makes."""


def fill_records(context: Context) -> None:
    """Records of work that takes hours, and of a run in the middle of its training."""
    homes.add_study(context)
    homes.add_model_comparison(context)
    homes.add_auto(context, {"status": "running"})
    reason = "the audit refuses reviewed rows: line 251 holds a key of a service, line 260 another one"
    homes.add_retrain(context, {"status": "refused", "reason": reason})
    suite, safety = assessed.make_suite_result(), assessed.make_safety_result()
    context.assessments.save("suite", suite.result_id, suite, project_id=_ME.project_id, subject=suite.candidate)
    context.assessments.save("safety", safety.result_id, safety, project_id=_ME.project_id, subject=safety.candidate)
    context.jobs.submit(Job(job_id="job-20261125-093000-aaaaaa", kind="train", document={"recipe": {}}, run_id=RUN_ID))
    context.runs.create(make_record().model_copy(update={"num_steps": 400}), make_plan())
    tell(context, RUN_ID, events_of(1, 260, 400, validate_every_steps=20))
    context.jobs.claim("w")


RECORDED: Final = {
    "run": RUN_ID,
    "study": homes.STUDY_ID,
    "comparison": homes.SHOWDOWN_ID,
    "automl": homes.AUTO_ID,
    "retraining": homes.RETRAIN_ID,
    "suite": "suite-20261126-120000-aaaaaa",
    "safety": "safety-20261126-130000-aaaaaa",
}
"""Ids of what `fill_records` makes."""


def _wait(context: Context, job_id: str) -> None:
    deadline = time.monotonic() + _MOST_SECONDS
    while (job := context.jobs.get(job_id)).status not in ("succeeded", "failed", "cancelled"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"job {job_id} has not ended within {_MOST_SECONDS:.0f} s")
        sys.stderr.write(f"\r{job_id}: {job.shown_status}, step {job.step}   ")
        time.sleep(2)
    if job.status != "succeeded":
        raise RuntimeError(f"job {job_id} ended as {job.status}: {job.error}")

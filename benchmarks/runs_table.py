#!/usr/bin/env python3
"""How long the list of runs takes with many runs: the page and its rows alone, with filters, orders and far pages.

    python benchmarks/runs_table.py [--runs 10000] [--rounds 5] [--database postgresql://...]

A home with this many runs of two plans, with values, results, tags, and an evaluation for every fourth run; a job for
every tenth; nothing is trained. Each address is asked `--rounds` times through the ASGI app in this process, without a
network. Prints medians in ms as one JSON document, and ends with 1 where one is over 300 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

from fastapi.testclient import TestClient
from machine import describe
from sqlalchemy import insert

from luthier.features.runs.labels import RunLabels
from luthier.platform.auth.service import create_key
from luthier.platform.db.run_values import of_evaluation, of_plan, of_result, rows_of
from luthier.platform.db.tables import evaluations, jobs, plans, run_tags, run_values, runs
from luthier.platform.home.context import Context
from luthier.server.home import create_home_app
from luthier.testing.records import make_evaluation, make_plan, make_record, make_result

MOST_MS = 300.0
ADDRESSES = (
    "/runs",
    "/runs?sort=-lr&columns=state,training.learning_rate,metric.exact_match,usd",
    "/runs?sort=name",
    "/runs?sort=-exact_match",
    "/runs?filter=lr%3E5e-3+tag:sweep",
    "/runs?filter=verdict:%22not+distinguishable%22+not+state:failed+created%3E2026-01-01",
    "/runs?filter=client+mails",
    "/runs?filter=name~%22client%22&sort=-loss",
    "/runs?status=failed",
    "/api/v1/runs?limit=20&sort=-lr&filter=tag:sweep",
)


def fill(context: Context, number: int) -> None:
    """The rows of a home with so many runs, as its stores would have written them."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    documents = [make_plan(learning_rate=rate).model_dump(mode="json") for rate in (1e-4, 1e-2)]
    texts = [json.dumps(document) for document in documents]
    result = make_result().model_dump(mode="json")
    judged = make_evaluation()
    with context.database.write() as connection:
        for start in range(0, number, 500):
            made, planned, values, tagged, queued, found = [], [], [], [], [], []
            for n in range(start, min(start + 500, number)):
                moment = began + timedelta(minutes=40 * n)
                run_id = f"run-{moment:%Y%m%d-%H%M%S}-{n:06x}"
                row = make_record(run_id, status="failed" if n % 7 == 0 else "succeeded").model_dump(mode="json")
                made.append(row | {"created_at": moment.isoformat(), "result": json.dumps(result)})
                planned.append({"run_id": run_id, "document": texts[n % 2]})
                own = of_plan(documents[n % 2]) | of_result(result) | {"name": f"Client mails {n % 90} · tiny · {n}"}
                own["training.learning_rate"] = 1e-4 * (1 + n % 97)
                if n % 4 == 0:
                    one = judged.model_copy(update={"evaluation_id": f"eval-{run_id[4:]}", "run_id": run_id})
                    found.append(
                        {"evaluation_id": one.evaluation_id, "run_id": run_id, "document": one.model_dump_json()}
                    )
                    own |= of_evaluation(one.model_dump(mode="json")) | {"metric.exact_match": (n % 101) / 101}
                if n % 3 == 0:
                    tagged.append({"run_id": run_id, "tag": "sweep"})
                if n % 10 == 0:
                    queued.append(job_row(run_id, n))
                values += rows_of(run_id, own)
            for table, rows in ((runs, made), (plans, planned), (run_values, values), (run_tags, tagged),
                                (jobs, queued), (evaluations, found)):  # fmt: skip
                if rows:
                    connection.execute(insert(table), rows)
    context.run_labels.put(made[-1]["run_id"], RunLabels(name="The last one"))


def job_row(run_id: str, number: int) -> dict[str, object]:
    """A job that has ended."""
    return {
        "job_id": f"job-{run_id[4:]}", "kind": "train", "document": '{"recipe": {}}', "run_id": run_id,
        "status": "succeeded", "attempt": 1, "num_crashes": 0, "step": 10, "crash_step": 0, "not_before": 0.0,
        "created_at": float(number), "updated_at": float(number), "finished_at": float(number),
    }  # fmt: skip


def main() -> int:
    """Fill a home, ask for each address, and print what came out."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--runs", type=int, default=10_000)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--database", help="postgresql://... of an empty database; SQLite where it is left out")
    args = cli.parse_args()
    if args.database:
        os.environ["LUTHIER_DATABASE"] = args.database
    with tempfile.TemporaryDirectory(prefix="luthier-runs-") as folder, Context.open(Path(folder) / "home") as context:
        began = time.perf_counter()
        fill(context, args.runs)
        filled_seconds = time.perf_counter() - began
        key = create_key(context, "benchmark", scopes=("read",))[1]
        app, address = create_home_app(context), "http://127.0.0.1"
        with TestClient(app, base_url=address, client=("127.0.0.1", 50000)) as client:
            client.headers.update({"Sec-Fetch-Site": "same-origin"})
            client.post("/sign-in", data={"key": key})
            text = client.get("/runs?sort=-lr").text
            following = unescape(re.findall(r'href="([^"]+)" rel="next"', text)[0])
            found = {}
            for place in (*ADDRESSES, following):
                headers = {"Authorization": f"Bearer {key}"} if place.startswith("/api") else {"HX-Request": "false"}
                times = []
                for _ in range(args.rounds + 1):
                    start = time.perf_counter()
                    answer = client.get(place, headers=headers)
                    times.append(1000 * (time.perf_counter() - start))
                    assert answer.status_code == 200, (place, answer.status_code)
                found[place] = {"median_ms": round(statistics.median(times[1:]), 1), "first_ms": round(times[0], 1)}
    is_well = all(one["median_ms"] <= MOST_MS for one in found.values())
    document = {"runs": args.runs, "filled_seconds": round(filled_seconds, 1), "pages": found, "is_well": is_well}
    print(json.dumps(document | {"machine": describe()}, indent=2))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())

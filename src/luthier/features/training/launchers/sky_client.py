"""Run by the Python that has SkyPilot: starts a task by SkyPilot's own API, and writes what came of it as JSON.

Imports nothing of Luthier, which may not be installed there. Names and arguments are those of SkyPilot 0.14.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> int:
    """Read task, name, cluster, idle_minutes and secrets from stdin; write request_id and job_ids, or error."""
    answer, out = dict[str, Any](), sys.stdout
    # SkyPilot prints its progress, and stdout is for the answer.
    sys.stdout = sys.stderr
    try:
        answer = _start(json.load(sys.stdin))
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller reports it
        answer = {"error": f"{type(error).__name__}: {error}"}
    out.write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0


def _start(request: dict[str, Any]) -> dict[str, Any]:
    import sky
    from sky import jobs

    task = sky.Task.from_yaml_config(request["task"], secrets_overrides=list(request["secrets"].items()))
    if request["cluster"] is None:
        request_id = jobs.launch(task, name=request["name"])
    else:
        request_id = sky.launch(
            task, cluster_name=request["cluster"], idle_minutes_to_autostop=request["idle_minutes"], down=True
        )
    sys.stderr.write(f"SkyPilot request {request_id}\n")
    # Blocks until the machines are there and the job is submitted; raises what the request raised.
    job, _handle = sky.stream_and_get(request_id, output_stream=sys.stderr)
    found = job if isinstance(job, list) else [job]
    return {"request_id": str(request_id), "job_ids": [one for one in found if one is not None]}


if __name__ == "__main__":
    sys.exit(main())

"""Walk families through all stages, each in a process of its own; write one JSON and the table of docs/models.md.

python -m tests.zoo                             all of them, as `make zoo`
python -m tests.zoo gpt_oss mamba2              some, shown and not written
python -m tests.zoo --jobs 2 --json build/zoo.json --docs docs/models.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.zoo.families import FAMILIES
from tests.zoo.table import show, write_table

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 900.0
"""Of one family; what takes longer is a fault, too."""


def main(arguments: Sequence[str]) -> int:
    """Walk, show, write; 1 where a stage was wrong, late or ended in an exception that is none of ours."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[], metavar="FAMILY", help="families; all without one")
    parser.add_argument("--stages", default="", help="stages to take, by comma; all without")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--json", type=Path, default=None, help="where all outcomes go")
    parser.add_argument("--docs", type=Path, default=None, help="the page whose table is written")
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    stages = asked.stages.split(",") if asked.stages else None
    if asked.child is not None:
        return _child(asked.names[0], asked.child, stages)
    names = asked.names or list(FAMILIES)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        parser.error(f"no such family: {', '.join(unknown)}; known: {', '.join(FAMILIES)}")
    with ThreadPoolExecutor(asked.jobs) as pool:
        found: dict[str, list[dict[str, Any]]] = {}
        for name, outcomes in zip(names, pool.map(lambda name: _walked(name, stages), names), strict=True):
            found[name] = outcomes
            if asked.json is not None:  # after each, so that a long walk shows how far it is
                asked.json.parent.mkdir(parents=True, exist_ok=True)
                asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if asked.docs is not None:
        write_table(asked.docs, found)
    show(found)
    bad = ("wrong", "raw exception", "refused late")
    return int(any(outcome["status"] in bad for outcomes in found.values() for outcome in outcomes))


def _walked(name: str, stages: Sequence[str] | None) -> list[dict[str, Any]]:
    """The outcomes of one family, from a process of its own."""
    with tempfile.TemporaryDirectory(prefix=f"zoo-{name}-") as scratch:
        file = Path(scratch) / "outcomes.json"
        command = [sys.executable, "-m", "tests.zoo", name, "--child", str(file)]
        command += ["--stages", ",".join(stages)] if stages else []
        try:
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
            why = f"the process ended with {ended.returncode}: {ended.stderr[-300:]}"
        except subprocess.TimeoutExpired:
            why = f"not done after {MOST_SECONDS:.0f} s"
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    if not found or found[-1]["stage"] != "end":
        found.append({"stage": "process", "status": "raw exception", "reason": why, "path": "", "seconds": 0.0})
    print(name, *(o["status"] for o in found if o["status"] != "works"), sep="  ", file=sys.stderr, flush=True)  # noqa: T201
    return [outcome for outcome in found if outcome["stage"] != "end"]


def _child(name: str, file: Path, stages: Sequence[str] | None) -> int:
    from tests.zoo.walk import Outcome, walk

    def keep(outcomes: Sequence[Outcome]) -> None:
        file.write_text(json.dumps([outcome.as_json() for outcome in outcomes]), encoding="utf-8")

    outcomes = walk(name, file.parent / "work", stages, after_stage=keep)
    keep([*outcomes, Outcome("end", "works")])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

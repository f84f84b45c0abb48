"""Walk families through all stages, each in a process of its own; write one JSON and the table of docs/models.md.

python -m tests.zoo                             all of them, shown
python -m tests.zoo gpt_oss mamba2              some
python -m tests.zoo --jobs 2 --kept build/zoo --resume --json build/zoo.json --docs docs/models.md      as `make zoo`
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.zoo.families import FAMILIES
from tests.zoo.kept import KeptOutcomes, this_commit
from tests.zoo.processes import walked
from tests.zoo.table import show, write_table
from tests.zoo.walk import STAGES, walk

MAX_SECONDS: Final = 900.0
"""Of one family; what takes longer is a fault, too."""
_BAD: Final = ("wrong", "raw exception", "refused late", "killed", "not run")


def main(arguments: Sequence[str]) -> int:
    """Walk, show, write; 1 where a stage was wrong, late, killed or ended in an exception that is none of ours."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    names = asked.names or list(FAMILIES)
    stages = asked.stages.split(",") if asked.stages else list(STAGES)
    for given, known, what in ((names, FAMILIES, "family"), (stages, STAGES, "stage")):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"no such {what}: {', '.join(unknown)}; known: {', '.join(known)}")
    if asked.resume and asked.kept is None:
        parser.error("--resume needs --kept FOLDER, where an earlier walk has kept its outcomes")
    if asked.docs is not None and set(names) != set(FAMILIES):
        parser.error("--docs writes the table of all families: name none of them")
    kept = None if asked.kept is None else KeptOutcomes(asked.kept, stages)
    found: dict[str, list[dict[str, Any]]] = {}
    commits = dict.fromkeys(names, this_commit())
    if asked.resume and kept is not None:
        earlier = {name: one for name in names if (one := kept.find(name)) is not None}
        found = {name: outcomes for name, (outcomes, _) in earlier.items()}
        commits |= {name: commit for name, (_, commit) in earlier.items()}
        _say(f"{len(found)} of {len(names)} families are kept of an earlier walk, and nothing has changed since")
    left = [name for name in names if name not in found]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        if left and not asked.cold:
            walk("llama", Path(scratch) / "warm", ["plan", "lora", "stream"])
        for number, (name, outcomes) in enumerate(
            walked(left, stages, asked.jobs, Path(scratch), asked.max_seconds), start=1
        ):
            found[name] = outcomes
            bad = [f"{one['stage']} {one['status']}" for one in outcomes if one["status"] in _BAD]
            _say(f"{progress(number, len(left), time.monotonic() - began)} {name} {', '.join(bad)}".rstrip())
            if kept is not None:
                kept.keep(name, outcomes, commits[name])
            if asked.json is not None:  # after each, so that a long walk shows how far it is
                asked.json.parent.mkdir(parents=True, exist_ok=True)
                asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = {name: found[name] for name in names}
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if asked.docs is not None:
        write_table(asked.docs, found, commits)
    show(found)
    return int(any(outcome["status"] in _BAD for outcomes in found.values() for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", default=[], metavar="FAMILY", help="families; all without one")
    parser.add_argument("--stages", default="", help="stages to take, by comma; all without")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--max-seconds", type=float, default=MAX_SECONDS, help="of one family, which is killed then")
    parser.add_argument("--kept", type=Path, default=None, help="folder in which outcomes are kept, a file a family")
    parser.add_argument("--resume", action="store_true", help="take those that are kept, where nothing has changed")
    parser.add_argument("--cold", action="store_true", help="load no libraries ahead, for a family or two")
    parser.add_argument("--json", type=Path, default=None, help="where all outcomes go")
    parser.add_argument("--docs", type=Path, default=None, help="the page whose table is written")
    return parser


def progress(num_done: int, num_all: int, seconds: float) -> str:
    """How many are done, and about how long the others take, going by those that are."""
    left = seconds / num_done * (num_all - num_done)
    return f"[{num_done}/{num_all}, about {left / 60:.0f} min left]" if num_done < num_all else f"[{num_all}/{num_all}]"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

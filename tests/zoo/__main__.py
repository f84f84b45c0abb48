"""Walk families through all stages, each in a process of its own; write one JSON and the table of docs/models.md.

python -m tests.zoo                             all of them, shown
python -m tests.zoo gpt_oss mamba2              some
python -m tests.zoo --jobs 2 --json build/zoo.json --docs docs/models.md        as `make zoo`
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.zoo.families import FAMILIES
from tests.zoo.makers import make_tokenizer
from tests.zoo.table import show, write_table
from tests.zoo.walk import Outcome, walk

from luthier.core.errors import TemplateError
from luthier.models.template_probe import check_template

MOST_SECONDS: Final = 900.0
"""Of one family; what takes longer is a fault, too."""
_POLL_SECONDS: Final = 0.1


def main(arguments: Sequence[str]) -> int:
    """Walk, show, write; 1 where a stage was wrong, late or ended in an exception that is none of ours."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", default=[], metavar="FAMILY", help="families; all without one")
    parser.add_argument("--stages", default="", help="stages to take, by comma; all without")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--json", type=Path, default=None, help="where all outcomes go")
    parser.add_argument("--docs", type=Path, default=None, help="the page whose table is written")
    asked = parser.parse_args(arguments)
    names = asked.names or list(FAMILIES)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        parser.error(f"no such family: {', '.join(unknown)}; known: {', '.join(FAMILIES)}")
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        _warm_up(Path(scratch) / "warm")
        for name, outcomes in _walked(names, asked.stages.split(",") if asked.stages else None, asked.jobs, scratch):
            found[name] = outcomes
            print(name, *(o["status"] for o in outcomes if o["status"] != "works"), file=sys.stderr, flush=True)  # noqa: T201
            if asked.json is not None:  # after each, so that a long walk shows how far it is
                asked.json.parent.mkdir(parents=True, exist_ok=True)
                asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = {name: found[name] for name in names}
    if asked.docs is not None:
        write_table(asked.docs, found)
    show(found)
    bad = ("wrong", "raw exception", "refused late")
    return int(any(outcome["status"] in bad for outcomes in found.values() for outcome in outcomes))


def _warm_up(work: Path) -> None:
    """Load in this process what every family needs: those that are forked from it need not."""
    walk("llama", work, ["plan", "lora", "stream"])


def _keep_what_families_share(maker: str) -> None:
    """Make the tokenizer of a maker, and try its template, once for all families that are forked from this process."""
    tokenizer = make_tokenizer(maker)
    with contextlib.suppress(TemplateError):  # the family says so by itself
        check_template(tokenizer.chat_template, tokenizer.special_tokens_map)


@dataclass(frozen=True, slots=True)
class _Child:
    """A process that walks a family, and where it writes."""

    name: str
    folder: Path
    ends_by: float

    def outcomes(self, why: str) -> list[dict[str, Any]]:
        """What it has written; with one more where it did not come to its end. why: the reason for that."""
        file = self.folder / "outcomes.json"
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        if not (self.folder / "done").is_file():
            said = self.folder / "stderr"
            text = said.read_text(encoding="utf-8", errors="replace")[-300:] if said.is_file() else ""
            found.append(Outcome("process", "raw exception", reason=f"{why}: {text}").as_json())
        return found


def _walked(
    names: Sequence[str], stages: Sequence[str] | None, jobs: int, scratch: str
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The outcomes of each family as they come, some at once, each from a process of its own."""
    waiting, running = list(reversed(names)), dict[int, _Child]()
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop()
            folder = Path(scratch) / name
            folder.mkdir()
            _keep_what_families_share(FAMILIES[name].maker)
            if (pid := os.fork()) == 0:
                _walk_and_end(name, folder, stages)
            running[pid] = _Child(name, folder, time.monotonic() + MOST_SECONDS)
        for pid, child in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            why = f"the process ended with status {status}"
            if not ended and time.monotonic() > child.ends_by:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                ended, why = pid, f"not done after {MOST_SECONDS:.0f} s"
            if ended:
                del running[pid]
                yield child.name, child.outcomes(why)
        time.sleep(_POLL_SECONDS)


def _walk_and_end(name: str, folder: Path, stages: Sequence[str] | None) -> None:
    """In a process of its own: walk, write, end."""
    said = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)

    def keep(outcomes: Sequence[Outcome]) -> None:
        text = json.dumps([outcome.as_json() for outcome in outcomes])
        (folder / "outcomes.json").write_text(text, encoding="utf-8")

    try:
        keep(walk(name, folder / "work", stages, after_stage=keep))
        (folder / "done").touch()
    except BaseException:  # noqa: BLE001 - this process is a copy of the one that walks all: it must not go on as that
        traceback.print_exc()
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

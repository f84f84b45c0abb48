"""Families walked each in a process of its own, some at once; one that does not come to its end is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.zoo.families import FAMILIES
from tests.zoo.makers import make_tokenizer
from tests.zoo.walk import STAGES, Outcome, Status, walk

from luthier.core.errors import TemplateError
from luthier.core.system.facilities import fork
from luthier.ml.inference.models.templates.probe import check_template

_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Child:
    """A process that walks a family, and where it writes. stages: those that it takes, in their order."""

    name: str
    folder: Path
    stages: Sequence[str]
    ends_by: float

    def outcomes(self, why: str, status: Status) -> list[dict[str, Any]]:
        """What it has written; where it did not come to its end, the stage under way with why, and those not run."""
        file = self.folder / "outcomes.json"
        written = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"found": [], "next": ""}
        found: list[dict[str, Any]] = written["found"]
        if (self.folder / "done").is_file():
            return found
        said = self.folder / "stderr"
        text = said.read_text(encoding="utf-8", errors="replace")[-300:] if said.is_file() else ""
        under_way = written["next"] or self.stages[0]
        found.append(Outcome(under_way, status, reason=f"{why}: {' '.join(text.split())}").as_json())
        left = self.stages[list(self.stages).index(under_way) + 1 :]
        return found + [
            Outcome(stage, "not run", reason=f"{under_way} has ended the process").as_json() for stage in left
        ]


def walked(
    names: Sequence[str], stages: Sequence[str] | None, jobs: int, scratch: Path, max_seconds: float
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The outcomes of each family as they come. max_seconds: of one family; what takes longer is killed."""
    taken = [stage for stage in STAGES if stages is None or stage in stages]
    waiting, running = list(reversed(names)), dict[int, Child]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop()
                folder = scratch / name
                folder.mkdir()
                _keep_what_families_share(FAMILIES[name].maker)
                if (pid := fork()) == 0:
                    _walk_and_end(name, folder, taken)
                running[pid] = Child(name, folder, taken, time.monotonic() + max_seconds)
            for pid, child in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                ends: tuple[str, Status] = f"the process ended with status {status}", "raw exception"
                if not ended and time.monotonic() > child.ends_by:
                    _kill(pid)
                    ended, ends = pid, (f"killed: not done after {max_seconds:.0f} s", "killed")
                if ended:
                    del running[pid]
                    yield child.name, child.outcomes(*ends)
            time.sleep(_POLL_SECONDS)
    finally:
        for pid in running:
            _kill(pid)


def _kill(pid: int) -> None:
    """A child, and what it has started: it leads a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # it may not have got as far as to lead one
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _keep_what_families_share(maker: str) -> None:
    """Make the tokenizer of a maker, and try its template, once for all families that are forked from this process."""
    tokenizer = make_tokenizer(maker)
    with contextlib.suppress(TemplateError):  # the family says so by itself
        check_template(tokenizer.chat_template, tokenizer.special_tokens_map)


def _walk_and_end(name: str, folder: Path, stages: Sequence[str]) -> None:
    """In a process of its own: walk, write, end."""
    os.setpgid(0, 0)
    said = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)

    def keep(outcomes: Sequence[Outcome], under_way: str) -> None:
        text = json.dumps({"found": [outcome.as_json() for outcome in outcomes], "next": under_way})
        part = folder / "outcomes.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / "outcomes.json")  # it may be killed while it writes

    try:
        keep(walk(name, folder / "work", stages, before_stage=keep), "")
        (folder / "done").touch()
    except BaseException:  # noqa: BLE001 - this process is a copy of the one that walks all: it must not go on as that
        traceback.print_exc()
    finally:
        os._exit(0)

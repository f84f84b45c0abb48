"""What was found of families is kept, so that a walk of all that was stopped goes on where it was.

What is kept of a family counts as long as nothing has changed that it rests on: the code here and in the project, the
libraries, the family itself, its template, and the stages that were asked for.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from tests.zoo.families import FAMILIES
from tests.zoo.makers import MAKERS, template_text

_ROOT: Final = Path(__file__).parents[2]
_LIBRARIES: Final = ("torch", "transformers", "peft", "tokenizers", "safetensors")


def family_digest(name: str, stages: Sequence[str]) -> str:
    """The digest of all that the outcomes of a family rest on."""
    family = FAMILIES[name]
    maker = MAKERS[family.maker]
    parts = [_code_digest(), repr(family), repr(maker), template_text(maker), ",".join(stages)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@lru_cache(maxsize=1)
def _code_digest() -> str:
    made = hashlib.sha256()
    for name in _LIBRARIES:
        made.update(f"{name} {importlib.metadata.version(name)}\0".encode())
    files = [file for part in ("src/luthier", "tests/zoo") for file in (_ROOT / part).rglob("*.py")]
    for file in sorted(files):
        made.update(f"{file.relative_to(_ROOT)}\0".encode() + file.read_bytes())
    return made.hexdigest()


def this_commit() -> str:
    """The commit that is checked out, with a mark where files differ from it; of a copy without git, a word for it."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


class KeptOutcomes:
    """A folder with a file of outcomes for each family. stages: those that are asked for."""

    def __init__(self, folder: Path, stages: Sequence[str]) -> None:
        self._folder, self._stages = folder, stages

    def find(self, name: str) -> tuple[list[dict[str, Any]], str] | None:
        """The outcomes of a family, and the commit that they are of.

        None where none are kept, or where something has changed since.
        """
        file = self._folder / f"{name}.json"
        if not file.is_file():
            return None
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:  # the walk was stopped while it was written
            return None
        if document.get("digest") != family_digest(name, self._stages) or "commit" not in document:
            return None
        return document["outcomes"], document["commit"]

    def keep(self, name: str, outcomes: Sequence[dict[str, Any]], commit: str) -> None:
        """Keep the outcomes of a family, and the commit that they are of."""
        self._folder.mkdir(parents=True, exist_ok=True)
        document = {"digest": family_digest(name, self._stages), "commit": commit, "outcomes": list(outcomes)}
        part = self._folder / f"{name}.json.part"
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        part.replace(self._folder / f"{name}.json")

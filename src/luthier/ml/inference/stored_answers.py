"""Answers of long work in a file, stored as they come: killed work continues after them, with the same result.

A line is an answer with the call that it belongs to. A call is named by a digest of what writes the answers and of all
its prompts, in order: answers of one call are of no use to another, whose batches would be others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.ids import sha256_document
from luthier.core.ports import Prompt
from luthier.core.system.files import cut_partial_line, disk_full_explained, sync_file

if TYPE_CHECKING:
    from luthier.ml.inference.decode import Continuation


class AnswerFile:
    """The file of one piece of work; one process appends to it at a time. Memory holds the places of answers alone.

    Args:
        path: The file; its folder must be there. What a kill has left of a line is removed, and what follows on a line
            that cannot be read, as after a power failure.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, dict[int, tuple[int, int]]] = {}
        cut_partial_line(path)
        with path.open("rb+") as file:
            place = 0
            for line in file:
                try:
                    document = json.loads(line)
                    call, number, _ = document["call"], document["prompt"], document["answer"]
                except (ValueError, KeyError, TypeError):
                    # It would end each further attempt. What is behind it is computed again.
                    file.truncate(place)
                    break
                self._places.setdefault(call, {})[number] = (place, len(line))
                place += len(line)

    @property
    def num_answers(self) -> int:
        """Answers that are stored."""
        return sum(map(len, self._places.values()))

    def of_engine(self, key: Hashable) -> StoredAnswers:
        """The answers of one engine.

        Args:
            key: Equal for engines that give equal answers, and equal in every process.
        """
        return partial(self._of_call, repr(key))

    def _of_call(self, engine: str, form: str, prompts: Sequence[Prompt]) -> StoredCall:
        asked = [prompt.model_dump(mode="json", exclude_defaults=True) for prompt in prompts]
        return StoredCall(self, sha256_document([engine, form, asked]))

    def known(self, call: str) -> dict[int, Any]:
        """The answers of a call, by the place of their prompt."""
        places = self._places.get(call, {})
        if not places:
            return {}
        found: dict[int, Any] = {}
        with self._path.open("rb") as file:
            for number, (place, num_bytes) in places.items():
                file.seek(place)
                found[number] = json.loads(file.read(num_bytes))["answer"]
        return found

    def keep(self, call: str, new: Mapping[int, Any]) -> None:
        """Append answers of a call: they are on the disk when this returns.

        Raises:
            StorageFullError: The disk is full.
        """
        with disk_full_explained(self._path), self._path.open("ab") as file:
            place = file.tell()
            for number, answer in new.items():
                document = {"call": call, "prompt": number, "answer": answer}
                line = json.dumps(document, separators=(",", ":")).encode() + b"\n"
                file.write(line)
                self._places.setdefault(call, {})[number] = (place, len(line))
                place += len(line)
            sync_file(file)


class StoredCall:
    """The stored answers of one call.

    Args:
        file: Where they are.
        name: Of the call.

    Attributes:
        known: Answers as JSON values, by the place of their prompt.
    """

    def __init__(self, file: AnswerFile, name: str) -> None:
        self._file, self._name = file, name
        self.known: Mapping[int, Any] = file.known(name)

    def keep(self, new: Mapping[int, Any]) -> None:
        """Store answers: they are on the disk when this returns.

        Raises:
            StorageFullError: The disk is full.
        """
        self._file.keep(self._name, new)


StoredAnswers = Callable[[str, Sequence[Prompt]], StoredCall]
"""The stored answers of a call of one engine: by the form of the answers, and the prompts."""


def continuations_of(
    kept: StoredAnswers | None, prompts: Sequence[Prompt]
) -> tuple[dict[int, Continuation], Callable[[Mapping[int, Continuation]], None]]:
    """What is stored of a call as continuations, and what stores more; None stores nothing."""
    if kept is None:
        return {}, lambda _: None
    from luthier.ml.inference.decode import Continuation

    call = kept("tokens", prompts)

    def keep(new: Mapping[int, Continuation]) -> None:
        call.keep({number: astuple(one) for number, one in new.items()})

    return {number: Continuation(*one) for number, one in call.known.items()}, keep

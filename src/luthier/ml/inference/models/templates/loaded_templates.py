"""What a template is loaded by, and those that are in use: a second request loads no tokenizer and probes nothing.

A command asks for the template of its model many times, for the plan, the rows and each evaluated system, and a
tokenizer of a large vocabulary takes a second. A template is found here as long as something else holds it, so none is
kept in memory for longer. Each thread finds its own.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakValueDictionary

from luthier.core.errors import RequestError

if TYPE_CHECKING:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

LOADED: Final[WeakValueDictionary[Hashable, ChatTemplate]] = WeakValueDictionary()
"""By `template_key`."""
_PAIR_ROLES: Final = tuple(re.compile(f"[\"']{role}[\"']") for role in ("query", "document"))


def template_key(folder: Path, kind: str, options: Mapping[str, Any] | None) -> Hashable:
    """What a loaded template follows from, for this thread: the files of a folder, and how they are read.

    Args:
        folder: of the model; one that does not exist has no files.
        kind: as for `ChatTemplate.load`.
        options: as for `ChatTemplate.load`.
    """
    files = tuple(_stamp(one) for one in sorted(folder.iterdir())) if folder.is_dir() else ()
    # By repr: True and 1 are equal, and a template may write them in two ways.
    named = tuple(sorted((name, repr(value)) for name, value in (options or {}).items()))
    return threading.get_ident(), str(folder.absolute()), files, kind, named


def _stamp(file: Path) -> tuple[str, int, int, int]:
    """What shows that a file was changed or replaced."""
    try:
        its = file.stat()
    except OSError:  # a link to nowhere, which nothing reads
        return file.name, 0, 0, 0
    return file.name, its.st_size, its.st_mtime_ns, its.st_ino


def chosen_kind(
    kind: Literal["auto", "chat", "plain"], path: str | Path, *, has_template: bool
) -> Literal["chat", "plain"]:
    """The kind of a model's template: its own one where it has one and it is not declined.

    Args:
        kind: as for `ChatTemplate.load`.
        path: of the model, for the error.
        has_template: whether the model has a template.

    Raises:
        RequestError: `chat` was requested and the model has no template.
    """
    if kind == "chat" and not has_template:
        raise RequestError(
            f"template kind 'chat' for {path}, which has no chat template",
            expected="'plain' or 'auto' for a base model",
            do="set `template: plain`, or choose the instruction-tuned variant of the model",
        )
    return "plain" if kind == "plain" or not has_template else "chat"


def names_pairs(text: str) -> bool:
    """Whether a template's text names the roles `query` and `document`, as those of rerankers do."""
    return all(role.search(text) for role in _PAIR_ROLES)


def generation_stop_ids(folder: Path) -> tuple[int, ...]:
    """The token ids at which the generation config of a folder ends an answer; none without one."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return ()
    eos = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)

"""A runtime in a child process: a native library that aborts ends only that process, not the export.

llama.cpp checks its assumptions about a model by assertions (GGML_ASSERT), and a failed one ends the process.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import ChildEndedError, ChildProcess
from luthier.core.conversation import Conversation
from luthier.core.errors import LuthierError, WorkError
from luthier.core.import_string import import_string
from luthier.core.recipe import TemplateOption
from luthier.core.records.export import ExportSource
from luthier.core.system import facilities
from luthier.core.system.files import scratch_folder
from luthier.ml.export.runtimes.protocol import LogProbabilities, Runtime

# Without it ggml starts a debugger for a backtrace, and its message is lost.
_ENVIRONMENT: Final = {"GGML_NO_BACKTRACE": "1"}
_REASON: Final = re.compile(r"GGML_ASSERT|GGML_ABORT|what\(\):|^\w*(Error|Exception)\b")
_PLACE: Final = re.compile(r"^\S*/(?=[^/\s]+:\d+: )")


class RuntimeInChild:
    """A `Runtime` that loads and computes in a child process.

    Args:
        title: the name of the library for errors.
        place: "module:function" that opens the export there, with folder and source, and the adapter if given.
        folder: of the export.
        source: of the export.
        adapter: an adapter applied to the model in `folder`.

    Raises:
        LuthierError: an error while opening, of the same class.
        WorkError: the library ends the child process.
    """

    def __init__(self, title: str, place: str, folder: Path, source: ExportSource, adapter: Path | None = None) -> None:
        self._title = title
        self._scratch = ExitStack()
        # Log-probabilities come through a file, as the channel carries JSON: a row has one number per token of the
        # vocabulary.
        self._rows: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        if not facilities.inherits_descriptors():
            self._rows.close()
            made = self._scratch.enter_context(scratch_folder(Path(tempfile.gettempdir()), "luthier-rows-"))
            self._rows = (made / "rows").open("w+b")
        document = {
            "place": place,
            "folder": str(folder),
            "source": source.model_dump(mode="json"),
            "adapter": None if adapter is None else str(adapter),
            # By its name where the child inherits no open files.
            "rows": self._rows.fileno() if facilities.inherits_descriptors() else self._rows.name,
        }
        try:
            self._child = ChildProcess(
                f"{__name__}:serve",
                document,
                title=title,
                environment=_ENVIRONMENT,
                pass_fds=facilities.inheritable(self._rows.fileno()),
            )
        except BaseException:
            self._close_rows()
            raise
        try:
            facts = self._ask("facts")
        except BaseException:
            self.close()
            raise
        self.name: str = facts["name"]
        self.version: str = facts["version"]
        self.has_template: bool = facts["has_template"]
        self.end_ids = frozenset[int](facts["end_ids"])
        self.context_tokens: int | None = facts["context_tokens"]

    def prompt_tokens(
        self, conversation: Conversation, options: Mapping[str, TemplateOption] | None = None
    ) -> list[int]:
        """As `Runtime.prompt_tokens`."""
        tokens: list[int] = self._ask(
            "prompt_tokens", conversation=conversation.model_dump(mode="json"), options=dict(options or {})
        )
        return tokens

    def text_tokens(self, text: str) -> list[int]:
        """As `Runtime.text_tokens`."""
        tokens: list[int] = self._ask("text_tokens", text=text)
        return tokens

    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """As `Runtime.log_probabilities`."""
        num_positions, vocabulary = self._ask("log_probabilities", ids=list(ids), start=start)
        self._rows.seek(0)
        rows: LogProbabilities = np.fromfile(self._rows, dtype=np.float32, count=num_positions * vocabulary)
        return rows.reshape(num_positions, vocabulary)

    def greedy(self, ids: Sequence[int], num_new_tokens: int) -> list[int]:
        """As `Runtime.greedy`."""
        tokens: list[int] = self._ask("greedy", ids=list(ids), num_new_tokens=num_new_tokens)
        return tokens

    def close(self) -> None:
        """As `Runtime.close`: the child ends."""
        self._child.close()
        self._close_rows()

    def _close_rows(self) -> None:
        self._rows.close()
        self._scratch.close()

    def _ask(self, what: str, **arguments: Any) -> Any:
        try:
            return self._child.request({"what": what, **arguments})
        except ChildEndedError as ended:
            raise _stopped(self._title, ended) from ended
        except (LuthierError, OSError, MemoryError):
            raise
        except BaseException:
            # An interrupt: `close` would wait for the computation.
            self._child.kill()
            raise


def _stopped(title: str, ended: ChildEndedError) -> WorkError:
    """The error of a runtime that ended its process, in one line: its last message about the reason."""
    lines = [line.strip() for line in ended.log_lines if line.strip()]
    reason = next((line for line in reversed(lines) if _REASON.search(line)), lines[-1] if lines else "")
    how = ended.how.removeprefix("by ").removeprefix("with ")
    return WorkError(
        f"{title} stops with {how} on this model" + (f": {_PLACE.sub('', reason)[:300]}" if reason else ""),
        expected="enough memory" if ended.is_killed else f"a model that this version of {title} computes",
        do="free memory and try again: the system kills a process when memory runs out"
        if ended.is_killed
        else "export with --to merged, which vLLM and transformers serve, and report the line above",
    )


def serve(document: dict[str, Any], channel: Channel) -> None:
    """Open a runtime in a child process and answer the requests of `RuntimeInChild`.

    Args:
        document: `place`, `folder`, `source`, `adapter` as in `RuntimeInChild`, `rows` (the descriptor or name of the
            file for log-probabilities).
        channel: The channel to the parent.
    """
    more = [] if document["adapter"] is None else [Path(document["adapter"])]
    source = ExportSource.model_validate(document["source"])
    runtime: Runtime = import_string(document["place"])(Path(document["folder"]), source, *more)
    try:
        channel.serve(lambda request: _answer(runtime, document["rows"], request))
    finally:
        runtime.close()


def _answer(runtime: Runtime, rows_file: int | str, request: dict[str, Any]) -> Any:
    match request["what"]:
        case "facts":
            facts = {name: getattr(runtime, name) for name in ("name", "version", "has_template", "context_tokens")}
            return facts | {"end_ids": sorted(runtime.end_ids)}
        case "prompt_tokens":
            return runtime.prompt_tokens(Conversation.model_validate(request["conversation"]), request["options"])
        case "text_tokens":
            return runtime.text_tokens(request["text"])
        case "greedy":
            return runtime.greedy(request["ids"], request["num_new_tokens"])
        case "log_probabilities":
            rows = np.ascontiguousarray(runtime.log_probabilities(request["ids"], request["start"]), dtype=np.float32)
            # Opened for reading, too, which leaves the content of a file with a name.
            with open(rows_file, "r+b", closefd=isinstance(rows_file, str)) as file:
                file.seek(0)
                # Not `tofile`, whose error does not report a full disk as such.
                file.write(rows.data)
            return rows.shape
        case other:
            raise ValueError(f"no such request: {other!r}")

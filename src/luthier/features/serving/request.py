"""One ask, as the process that answers hands it around, and what is reported where its own code fails."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass

from luthier.core.errors import DefectError, WorkError
from luthier.core.stream import EmbeddingRequest, TextRequest


@dataclass(frozen=True, slots=True)
class Ask:
    """One request inside the engine process.

    Attributes:
        key: Its id, by which events and cancellation name it.
        request: The prompt, or the texts.
        adapter: The folder of an adapter over the engine's base; None for the engine's own model.
        owner: The API key, by which turns are taken; None for a local user.
    """

    key: str
    request: TextRequest | EmbeddingRequest
    adapter: str | None
    owner: str | None = None


def unexpected(error: Exception) -> WorkError:
    """What is reported of an engine that failed by our own fault, with all it wrote; its trace goes to the log."""
    sys.stderr.write("".join(traceback.format_exception(error)))
    return WorkError(
        f"the model failed while it wrote: {type(error).__name__}",
        expected="an answer",
        do="ask again; the log of the server says more",
    )


def defect(error: Exception) -> DefectError:
    """What is reported where one ask alone failed by our own fault: it would fail again. Its trace goes to the log."""
    sys.stderr.write("".join(traceback.format_exception(error)))
    return DefectError(
        f"the request could not be made ready: {type(error).__name__}",
        expected="tokens of the model",
        do="report it with what the log of the server says; the same request will fail again",
    )

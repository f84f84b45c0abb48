"""What the processes of a server say of themselves: one line each on stderr, as text or as JSON."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from luthier.core.json_limits import json_text
from luthier.platform.home.log_secrets import SecretFilter

LogFormat = Literal["text", "json"]
FACTS = "facts"
"""The attribute of a log record that holds what a line is about, by name; values are plain."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, logger, process, message, then the facts of the record."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": record.getMessage(),
            **getattr(record, FACTS, {}),
        }
        if trace := _trace(self, record):
            line["trace"] = trace
        return json_text(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:30:01 up-1 message`, for a person. Control characters of unknown origin are shown as escapes."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it the trace of an error."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        message = record.getMessage()
        if not message.isprintable():  # a line break of a stranger's must not look like a line of ours
            message = message.encode("unicode_escape").decode("ascii")
        line = f"{time} {self._process} {message}"
        trace = _trace(self, record)
        return f"{line}\n{trace}" if trace else line


class _Handler(logging.Handler):
    """Writes to whatever stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        stderr: TextIO | None = sys.stderr
        try:
            if stderr is not None:
                stderr.write(f"{self.format(record)}\n")
                stderr.flush()
        except Exception:  # noqa: BLE001 - a log that cannot be written must not end the work
            self.handleError(record)


def set_up_logging(log_format: LogFormat, process: str) -> None:
    """Let this process write its log lines to stderr, without secrets in them."""
    handler = _Handler()
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else TextFormatter(process))
    handler.addFilter(SecretFilter())
    root = logging.getLogger()
    # Set up again, as in tests, without writing every line twice.
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    # Below warnings libraries are noise; our own lines are written from INFO on.
    root.setLevel(logging.WARNING)
    logging.getLogger("luthier").setLevel(logging.INFO)


def teller(log_format: LogFormat, process: str) -> Callable[[str], None]:
    """A `tell` for what works in the background; the process must not have set up logging itself."""
    set_up_logging(log_format, process)
    log = logging.getLogger("luthier.process")
    return log.info


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The trace of an error, as a filter has left it where one has made it text already."""
    return record.exc_text or (formatter.formatException(record.exc_info) if record.exc_info else "")

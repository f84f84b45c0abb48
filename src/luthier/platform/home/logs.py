"""Logs of the server's processes: one line each on stderr, as text or JSON, with secrets masked.

Attach the filter to handlers, not to loggers: a logger's filter does not see what the loggers below it write.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

from luthier.core.json_limits import json_text

_MASK: Final = "***"
# What follows `password`, `api_key` ... and an equals sign or a colon.
_NAMED = (
    r"(?i)\b((?:[a-z0-9]+[_\-])*(?:password|passwd|secret|api[_\-]?key|access[_\-]?key)\b['\"]?[ ]?[=:][ ]?['\"]?)"
    r"(?!\*{3})[^\s'\"&,;}]+"
)
# `Authorization: Bearer x`, also as a mapping is shown, and as the pairs of bytes that servers keep headers in.
_HEADER = (
    r"(?i)((?:authorization|x-api-key)['\"]?[ ]?[:=,][ ]?(?:b?['\"])?+(?:(?:bearer|basic|token)[ ]+)?+)"
    r"(?!\*{3})[^\s'\",]+"
)
_RULES: Final = (
    # Our keys, and those of services that are called with one.
    (re.compile(r"sk-luthier-[A-Za-z0-9_\-]+"), rf"sk-luthier-{_MASK}"),
    (re.compile(r"\bsk-(?!luthier-)[A-Za-z0-9_\-]{16,}"), rf"sk-{_MASK}"),
    # What webhooks are signed with.
    (re.compile(r"whsec_[A-Za-z0-9+/=_\-]+"), rf"whsec_{_MASK}"),
    (re.compile(_HEADER), rf"\1{_MASK}"),
    (re.compile(r"(?i)\b(bearer[ ]+)[A-Za-z0-9._~+/=\-]{8,}"), rf"\1{_MASK}"),
    # Addresses whose token is the permission: of downloads, invitations, raters, and a sign-in by link.
    (re.compile(r"(/(?:tinker/weights|invite|rate|welcome)/)[A-Za-z0-9_\-]{16,}"), rf"\1{_MASK}"),
    # URLs with a password: all up to the last @ before a blank, for who writes a password down forgets to quote it.
    (re.compile(r"([A-Za-z][A-Za-z0-9+.\-]{0,30}://[^\s/@:'\"]{0,200}:)[^\s'\"]{1,500}@"), rf"\1{_MASK}@"),
    (re.compile(_NAMED), rf"\1{_MASK}"),
)
# Every text that a rule can match holds one of these. Most lines hold none, and each rule is expensive.
_SIGNS: Final = (
    "sk-", "whsec_", "authorization", "bearer", "://", "passw", "secret",
    "/tinker/weights/", "/invite/", "/rate/", "/welcome/",
    "apikey", "api_key", "api-key", "accesskey", "access_key", "access-key",
)  # fmt: skip
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_FORMATTER: Final = logging.Formatter()


def masked(text: str) -> str:
    """The text without what has the form of a secret; a second time changes nothing more."""
    # Letters beyond ASCII may be other cases of those here: let the rules decide.
    if text.isascii() and not _has_sign(text.lower()):
        return text
    for pattern, mask in _RULES:
        text = pattern.sub(mask, text)
    return text


def _has_sign(lower: str) -> bool:
    return any(sign in lower for sign in _SIGNS)


class SecretFilter(logging.Filter):
    """Masks message, arguments, traceback and extra fields of every record; lets all of them through.

    A traceback is made text here (`exc_text`), since its last line may show what an exception carries.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask in place; always true."""
        self._mask_message(record)
        # Formatters use exc_text where it is set: what they would format themselves could not be masked.
        if record.exc_info and not record.exc_text:
            record.exc_text = _FORMATTER.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text, record.exc_info = masked(record.exc_text), None
        if record.stack_info:
            record.stack_info = masked(record.stack_info)
        # What `extra=` has put there.
        for name in vars(record).keys() - _STANDARD:
            setattr(record, name, _all_masked(getattr(record, name)))
        return True

    def _mask_message(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit: the raw text is shown, and the work continues
            message = f"{record.msg} {record.args}"
        if (whole := masked(message)) == message:
            return
        # Formatters may look at the arguments (uvicorn's do), so they stay where masking each of them is enough.
        text, arguments = masked(str(record.msg)), _all_masked(record.args)
        try:
            is_enough = bool(arguments) and masked(text % arguments) == text % arguments
        except Exception:  # noqa: BLE001 - as above
            is_enough = False
        record.msg, record.args = (text, arguments) if is_enough else (whole, None)


def _all_masked(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, bytes):
        # latin-1 maps each byte to a character and back, so bytes that hold no secret are unchanged.
        return masked(value.decode("latin-1")).encode("latin-1")
    if isinstance(value, dict):
        return {key: _all_masked(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_all_masked(item) for item in value)
    if isinstance(value, list):
        return [_all_masked(item) for item in value]
    return value


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
    """Writes to the current stderr."""

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
    """A `tell` for background work; the process must not have set up logging itself."""
    set_up_logging(log_format, process)
    log = logging.getLogger("luthier.process")
    return log.info


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The trace of an error, as a filter has left it where one has made it text already."""
    return record.exc_text or (formatter.formatException(record.exc_info) if record.exc_info else "")

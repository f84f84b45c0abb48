"""multipart/form-data as a stream (RFC 7578, 2015): the one file in it goes to the disk as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from luthier.core.errors import RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.platform.files.service import IncomingFile, incoming_file
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES: Final = 4096
MAX_FORM_OVERHEAD_BYTES: Final = 64 * 1024
"""What fields, headers and boundaries may take together, besides the file."""
_PIECE_BYTES: Final = 1 << 20
_OVERHEAD_OF_A_FILE_BYTES: Final = 2048
"""What the headers of one more file may take: its name with its folders."""


class FormError(RequestError):
    """A body that is not the form that is expected.

    Attributes:
        code: As in OpenAI's error object.
        param: The field that is wrong; None if it is none.
        status: The HTTP status.
    """

    def __init__(
        self,
        came: str,
        *,
        expected: str = "one file, with the fields that belong to it",
        do: str = "send the form again, as the page or the API's document has it",
        code: str = "invalid_value",
        param: str | None = None,
        status: int = 400,
    ) -> None:
        super().__init__(came, expected=expected, do=do)
        self.code, self.param, self.status = code, param, status


class Form(FrozenModel):
    """What came besides the bytes of the file.

    Attributes:
        filename: The name of the file as the client gives it.
        fields: The other fields by name.
    """

    filename: str
    fields: dict[str, str]


async def read_form(
    body: AsyncIterable[bytes],
    headers: Mapping[str, str],
    incoming: IncomingFile,
    *,
    file_field: str,
    fields: frozenset[str],
    most_bytes: int,
) -> Form:
    """Write the file of a form to `incoming` and return the rest. What `body` raises passes.

    Args:
        body: The body of the request, in chunks.
        headers: Its headers.
        incoming: Where the file goes.
        file_field: The name of the field with the file.
        fields: The names of the other fields that are allowed.
        most_bytes: The most bytes of the file.

    Raises:
        FormError: 413 for a file of more than `most_bytes`; 400 for another kind of body, one that ends too early, and
            fields that are unknown, missing, repeated or too long.
        StorageFullError: The disk has no room for the file.
    """
    reader = _FormReader(headers, incoming, file_field, fields, most_bytes)
    await _feed(body, reader)
    return reader.form()


async def _feed(body: AsyncIterable[bytes], reader: _FormReader) -> None:
    held = bytearray()
    try:
        async for chunk in body:
            held += chunk
            if len(held) >= _PIECE_BYTES:
                # Parsing, hashing and writing to disk block: a thread takes them, a mebibyte at a time, to amortise the
                # handover.
                await asyncio.to_thread(reader.feed, bytes(held))
                held.clear()
        await asyncio.to_thread(reader.feed, bytes(held))
    except FormParserError as error:
        raise _malformed(str(error)) from error


class FilesForm(FrozenModel):
    """What came besides the bytes of the files.

    Attributes:
        filenames: The names of the files as the client gives them, in their order; of a folder with its path.
        fields: The other fields by name.
    """

    filenames: tuple[str, ...]
    fields: dict[str, str]


async def read_files_form(
    body: AsyncIterable[bytes],
    headers: Mapping[str, str],
    new_file: Callable[[], IncomingFile],
    *,
    file_fields: frozenset[str],
    fields: frozenset[str],
    most_bytes: int,
    most_files: int,
) -> FilesForm:
    """Write the files of a form to what `new_file` gives for each, and return the rest. What `body` raises passes.

    Args:
        body: The body of the request, in chunks.
        headers: Its headers.
        new_file: Called for each file that comes; the caller closes what it gave.
        file_fields: The names of the fields with files. Fields in which no file was chosen are left out.
        fields: The names of the other fields that are allowed.
        most_bytes: The most bytes of all files together.
        most_files: The most files.

    Raises:
        FormError: 413 for more than `most_bytes` or `most_files`; 400 for another kind of body, one that ends too
            early, and fields that are unknown, repeated or too long.
        StorageFullError: The disk has no room for a file.
    """
    reader = _FilesReader(headers, new_file, file_fields, fields, most_bytes, most_files)
    await _feed(body, reader)
    return reader.files_form()


class _FormReader:
    """Takes the body piece by piece; the callbacks of the parser say what the pieces are."""

    def __init__(
        self,
        headers: Mapping[str, str],
        incoming: IncomingFile,
        file_field: str,
        fields: frozenset[str],
        most_bytes: int,
    ) -> None:
        self._incoming, self._file_field, self._known, self._most_bytes = incoming, file_field, fields, most_bytes
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most_bytes + MAX_FORM_OVERHEAD_BYTES:
            raise _too_large(most_bytes)
        try:
            self._parser = MultipartParser(_boundary(headers), callbacks)
        except FormParserError as error:
            raise _malformed(str(error)) from error
        self._num_overhead_bytes = self._num_file_bytes = 0
        self._most_overhead_bytes = MAX_FORM_OVERHEAD_BYTES
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._name = ""
        self._value = bytearray()
        self._headers: dict[str, bytes] = {}
        self._header, self._header_text = bytearray(), bytearray()
        self._is_whole = False

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body.

        Raises:
            FormError: The form has too many bytes besides the file, or is malformed.
        """
        before = self._num_file_bytes
        self._parser.write(data)
        # All that did not go into the file: headers and boundaries could otherwise grow without bound.
        self._num_overhead_bytes += len(data) - (self._num_file_bytes - before)
        if self._num_overhead_bytes > self._most_overhead_bytes:
            raise _malformed(f"the form has more than {self._most_overhead_bytes} bytes besides the file")

    def form(self) -> Form:
        """What came, once all of it has.

        Raises:
            FormError: The body ends before its last boundary, or has no file.
        """
        if not self._is_whole:
            raise _malformed("the body ends before its last boundary")
        if self._filename is None:
            message = f"Missing required parameter: {self._file_field!r}"
            raise FormError(message, param=self._file_field, code="missing_required")
        return Form(filename=self._filename, fields=self._fields)

    def _begin_part(self) -> None:
        self._headers, self._value = {}, bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_text += data[start:end]

    def _end_header(self) -> None:
        # Header names and values may come in several pieces; only here they are whole.
        self._headers[self._header.decode("latin-1").lower()] = bytes(self._header_text)
        self._header, self._header_text = bytearray(), bytearray()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get("content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise _malformed("a part has no `Content-Disposition: form-data; name=...`")
        # It is quoted in errors, so it must not be arbitrarily long.
        self._name = _text(options[b"name"])[:100]
        if self._name in self._fields or (self._name == self._file_field and self._filename is not None):
            raise FormError(f"The field {self._name!r} appears twice", param=self._name)
        if self._name == self._file_field:
            self._filename = _unescaped(_text(options.get(b"filename", b"")))
        elif self._name not in self._known:
            expected = ", ".join(sorted({*self._known, self._file_field}))
            raise FormError(
                f"Unknown parameter: {self._name!r}", expected=expected, param=self._name, code="unknown_parameter"
            )

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._file_field:
            # Before writing: the declared length is the client's word.
            if self._incoming.num_bytes + end - start > self._most_bytes:
                raise _too_large(self._most_bytes)
            self._incoming.write(memoryview(data)[start:end])
            self._num_file_bytes += end - start
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise FormError(f"The field {self._name!r} has more than {MAX_FIELD_BYTES} bytes", param=self._name)

    def _end_part(self) -> None:
        if self._name != self._file_field:
            self._fields[self._name] = _text(bytes(self._value))

    def _end(self) -> None:
        self._is_whole = True


class _FilesReader(_FormReader):
    """Takes any number of files from several fields."""

    def __init__(
        self,
        headers: Mapping[str, str],
        new_file: Callable[[], IncomingFile],
        file_fields: frozenset[str],
        fields: frozenset[str],
        most_bytes: int,
        most_files: int,
    ) -> None:
        # The first file is made here only where there is one: until then the reader has none.
        super().__init__(headers, None, "", fields, most_bytes)  # type: ignore[arg-type]
        self._new_file, self._file_fields, self._most_files = new_file, file_fields, most_files
        self._most_overhead_bytes = MAX_FORM_OVERHEAD_BYTES + most_files * _OVERHEAD_OF_A_FILE_BYTES
        self._filenames: list[str] = []
        self._chosen: str | None = None
        """The name of the file whose bytes come now; None outside of files."""

    def files_form(self) -> FilesForm:
        """What came, once all of it has.

        Raises:
            FormError: The body ends before its last boundary.
        """
        if not self._is_whole:
            raise _malformed("the body ends before its last boundary")
        return FilesForm(filenames=tuple(self._filenames), fields=self._fields)

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get("content-disposition"))
        name = _text(options.get(b"name", b""))[:100]
        self._chosen = None
        if kind != b"form-data" or name not in self._file_fields:
            super()._end_headers()
            return
        self._name, self._chosen = name, _unescaped(_text(options.get(b"filename", b"")))
        # Browsers send one empty part with an empty name for a field in which no file was chosen.
        if self._chosen:
            if len(self._filenames) == self._most_files:
                raise FormError(
                    f"more than {self._most_files:,} files in one form",
                    expected=f"at most {self._most_files:,}",
                    do="put them into one ZIP file, or send them in parts",
                    param=name,
                    code="too_many_files",
                    status=413,
                )
            self._filenames.append(self._chosen)
            self._incoming = self._new_file()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name not in self._file_fields:
            super()._data(data, start, end)
            return
        if not self._chosen:
            raise FormError("a file without a name", param=self._name)
        if self._num_file_bytes + end - start > self._most_bytes:
            raise _too_large(self._most_bytes)
        self._incoming.write(memoryview(data)[start:end])
        self._num_file_bytes += end - start

    def _end_part(self) -> None:
        if self._name not in self._file_fields:
            super()._end_part()
        elif self._chosen:
            # Closed as soon as it is whole: a folder may have more files than a process may hold open.
            self._incoming.finish()


def _boundary(headers: Mapping[str, str]) -> bytes:
    kind, options = parse_options_header(headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise FormError(
            f"The body is {kind.decode('latin-1')[:99] or 'unnamed'!r}",
            expected="multipart/form-data with a boundary",
            code="invalid_content_type",
        )
    return options[b"boundary"]


def _text(data: bytes) -> str:
    """UTF-8, as browsers and clients send it today; latin-1, which takes all, where it is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _unescaped(filename: str) -> str:
    """The name before a browser escaped it (HTML standard, multipart/form-data encoding algorithm)."""
    return filename.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")


def _malformed(how: str) -> FormError:
    return FormError(f"The body is not complete multipart/form-data: {how}", code="invalid_multipart")


def _too_large(most_bytes: int) -> FormError:
    return FormError(
        f"The file has more than {most_bytes} bytes",
        expected="at most that",
        do="send a smaller one, or ask the operator of this server to raise LUTHIER_MAX_FILE_BYTES",
        param="file",
        code="file_too_large",
        status=413,
    )


@asynccontextmanager
async def received_files(
    request: Request, context: Context, *, file_fields: frozenset[str], fields: frozenset[str], most_files: int
) -> AsyncIterator[tuple[list[IncomingFile], FilesForm]]:
    """The files of a form and the rest of it, while the block runs; files that it has not kept are removed behind it.

    Args:
        request: The request of the form.
        context: The home.
        file_fields: The names of the fields with files.
        fields: The names of the other fields that are allowed.
        most_files: The most files.

    Raises:
        FormError: The body is not such a form.
        ClientDisconnect: The client is gone.
    """
    with ExitStack() as stack:
        incoming: list[IncomingFile] = []

        def new_file() -> IncomingFile:
            incoming.append(stack.enter_context(incoming_file(context)))
            return incoming[-1]

        form = await read_files_form(
            request.stream(),
            request.headers,
            new_file,
            file_fields=file_fields,
            fields=fields,
            most_bytes=context.settings.max_file_bytes,
            most_files=most_files,
        )
        yield incoming, form

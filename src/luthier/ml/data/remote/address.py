"""A data file behind an https address. Versions of its content differ in ETag or date of change.

A download is continued with `If-Range` (RFC 9110, section 13.1.5): a server whose file has changed sends all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

import httpx2

from luthier.core.data_sources import LOOPBACK
from luthier.core.errors import DataSourceError, LuthierError, NotFoundError, RequestError
from luthier.core.system.download import Opened, RemoteFile, RemoteSource

_TIMEOUT_SECONDS: Final = 30.0
_MAX_REDIRECTS: Final = 20
_PARTIAL, _BUSY = 206, (408, 429, 500, 502, 503, 504)
# No compression: ranges and sizes refer to the stored file.
_PLAIN: Final = {"Accept-Encoding": "identity"}
Transport = Callable[[], httpx2.BaseTransport]
"""Makes what opens the connections of one download."""


def look_up_address(url: str, transport: Transport | None = None) -> RemoteSource:
    """The file behind an address.

    Args:
        url: the address.
        transport: what opens the connections, those of redirects included, in place of a plain client with the proxies
            of the environment.

    Raises:
        RequestError: the address has a host that cannot be one.
        NotFoundError: there is none.
        DataSourceError: the server does not answer, or refuses.
    """
    explain = partial(_explained, url)
    try:
        # A GET that is closed after its headers: HEAD is refused by some servers, and answered differently by others.
        with _stream(url, {}, transport) as response:
            headers = response.headers
    except httpx2.InvalidURL as error:  # such as a host that no name can be
        raise RequestError(
            f"{url.partition('?')[0][:200]} is not an address: {error}"[:400],
            expected="the address of a data file, such as https://HOST/train.jsonl",
            do="correct the host",
        ) from error
    except httpx2.HTTPError as error:
        explained = explain(error, "")
        if explained is None:
            raise
        raise explained from error
    stated, etag, changed = (headers.get(name, "") for name in ("content-length", "etag", "last-modified"))
    # A weak ETag does not promise equal bytes.
    strong = "" if etag.startswith("W/") else etag
    revision = f"ETag {etag}" if etag else f"changed {changed}" if changed else ""
    name = unquote(PurePosixPath(urlsplit(url).path).name)
    # Of a compressed answer the stated size is that before it is unpacked.
    num_bytes = int(stated) if stated.isdigit() and not headers.get("content-encoding") else None
    file = RemoteFile(name, num_bytes, partial(_open_at, url, strong or changed, transport))
    return RemoteSource(revision, (file,), explain, _may_pass)


@contextmanager
def _open_at(url: str, validator: str, transport: Transport | None, start: int) -> Iterator[Opened]:
    headers = {"Range": f"bytes={start}-", "If-Range": validator} if start and validator else {}
    with _stream(url, headers, transport) as response:
        is_rest = response.status_code == _PARTIAL
        if is_rest and not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
            raise httpx2.RemoteProtocolError(f"the server sends {response.headers.get('content-range')!r}")
        yield Opened(start if is_rest else 0, response.iter_bytes())


@contextmanager
def _stream(url: str, headers: dict[str, str], transport: Transport | None) -> Iterator[httpx2.Response]:
    # Also called for each redirect.
    hooks: dict[str, list[Callable[..., object]]] = {"request": [partial(_refuse_unencrypted, url)]}
    with httpx2.Client(
        timeout=_TIMEOUT_SECONDS,
        event_hooks=hooks,
        transport=None if transport is None else transport(),
        # The environment's proxies and sign-ins (netrc) are for addresses that the operator names.
        trust_env=transport is None,
    ) as client:
        request: httpx2.Request | None = client.build_request("GET", url, headers=_PLAIN | headers)
        # Not by the client, which reads the whole body of each redirect into memory, of whatever size.
        for _ in range(1 + _MAX_REDIRECTS):
            assert request is not None
            with closing(client.send(request, stream=True)) as response:
                request = response.next_request
                if request is None:
                    response.raise_for_status()
                    yield response
                    return
        raise httpx2.TooManyRedirects(f"more than {_MAX_REDIRECTS} redirects", request=request)


def _refuse_unencrypted(url: str, request: httpx2.Request) -> None:
    """Raise DataSourceError for a redirect that leaves encryption, or this machine without it."""
    if request.url.scheme == "https" or (url.startswith("http://") and request.url.host in LOOPBACK):
        return
    raise DataSourceError(
        f"{url.partition('?')[0]} leads to {request.url.scheme}://{request.url.host}, which is not encrypted",
        expected="redirects to addresses that begin with https://",
        do="name the address of the file itself, or download it and name its path",
    )


def _may_pass(error: Exception) -> bool:
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code in _BUSY
    return isinstance(error, httpx2.TransportError)


def _explained(url: str, error: Exception, what: str) -> LuthierError | None:
    """The error for people. The query of an address may hold a signature, and is left out."""
    shown = url.partition("?")[0]
    status = error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else None
    if status in (404, 410):
        return NotFoundError(
            f"there is no file at {shown} (HTTP {status})", expected="a data file", do="check the address"
        )
    if status in (401, 403):
        return DataSourceError(
            f"{shown} may not be read by this machine (HTTP {status})",
            expected="a file that can be read without a sign-in",
            do="download it where you are signed in and name its path, or use hub:, s3://, gs:// or az:// with a key",
        )
    if not isinstance(error, httpx2.HTTPError):
        return None
    return DataSourceError(
        f"{what or shown} could not be fetched from {urlsplit(url).hostname}: {status or type(error).__name__}",
        expected="an answer with the file",
        do="check the address, the network and proxies, then try again: the download continues where it ended",
    )

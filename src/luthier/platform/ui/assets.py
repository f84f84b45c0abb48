"""Style, scripts, typeface and the mark: read once, named by their content, so that browsers may keep them forever.

`static/` holds ours, `vendor/` what `frontend/` has built from others' packages (ECharts, HTMX, the typeface). Where
that was not built, pages work as they do without JavaScript, in the system's typeface: charts are drawings, forms are
sent whole.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from luthier.core.ids import sha256_bytes

_HERE: Final = Path(__file__).parent
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
_COMPRESSED: Final = frozenset({".woff2"})
"""Types whose files are compressed already."""
_FACES: Final = "faces.css"
"""In `vendor/`: the faces of the typeface; each `url()` names a file beside it."""
_FACE_URL: Final = re.compile(r"url\(([\w.-]+)\)")
_FOR_EVER: Final = "public, max-age=31536000, immutable"
STYLE: Final = "app.css"
"""All of `static/css`, in the order of the names."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as sent.

    Attributes:
        address: Its name with a part of its digest.
        media_type: Its content type.
        content: Its bytes.
        packed: The same, compressed with gzip; None where that gains nothing.
    """

    address: str
    media_type: str
    content: bytes
    packed: bytes | None


class Assets:
    """All assets, and the ASGI app that sends them."""

    def __init__(self) -> None:
        found: dict[str, bytes] = {}
        for folder in (_HERE / "static" / "js", _HERE / "static" / "images", _HERE / "vendor"):
            found |= {path.name: path.read_bytes() for path in sorted(folder.glob("*")) if path.suffix in _TYPES}
        faces = found.pop(_FACES, b"").decode()
        self._by_name = {name: _asset(name, content) for name, content in found.items()}
        # The faces know the names of their files, and the addresses only now.
        faces = _FACE_URL.sub(lambda url: f"url({self._by_name[url[1]].address})", faces)
        sheets = [path.read_text(encoding="utf-8") for path in sorted((_HERE / "static" / "css").glob("*.css"))]
        self._by_name[STYLE] = _asset(STYLE, "\n".join([faces, *sheets]).encode())
        self._by_address = {asset.address: asset for asset in self._by_name.values()}

    def address(self, name: str) -> str | None:
        """Where a page finds an asset; None for one of `vendor/` that was not built."""
        asset = self._by_name.get(name)
        return None if asset is None else f"/assets/{asset.address}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for one of them."""
        # By a table of known names: no part of the path ever reaches the file system.
        asset = self._by_address.get(scope["path"].rsplit("/", 1)[-1])
        if asset is None or scope["method"] not in ("GET", "HEAD"):
            await PlainTextResponse("no such asset", status_code=404)(scope, receive, send)
            return
        packed = asset.packed if "gzip" in Headers(scope=scope).get("accept-encoding", "") else None
        # The address changes with the content, so a cached copy can never be outdated.
        headers = {"cache-control": _FOR_EVER, "vary": "accept-encoding"}
        headers |= {} if packed is None else {"content-encoding": "gzip"}
        content = asset.content if packed is None else packed
        await Response(content, headers=headers, media_type=asset.media_type)(scope, receive, send)


@lru_cache(maxsize=128)  # a process may make the app of several homes, and compressing takes a tenth of a second
def _asset(name: str, content: bytes) -> Asset:
    stem, _, suffix = name.rpartition(".")
    address = f"{stem}-{sha256_bytes(content)[:12]}.{suffix}"
    # Compressed once at the start. mtime=0 keeps the bytes the same at each start.
    packed = None if f".{suffix}" in _COMPRESSED else gzip.compress(content, mtime=0)
    return Asset(address, _TYPES[f".{suffix}"], content, packed)

"""Decompression bombs: small files that unpack to a gigabyte, and a process with little memory that reads them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

GIGABYTE: Final = 1 << 30
MEMORY_BYTES: Final = 1 << 30
"""What the reading process may take in all, libraries included: a whole bomb does not fit."""
_READ: Final = """
import json, re, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
from luthier.core.errors import DataError
from luthier.ml.data.rows.formats import load_file
try:
    load_file(Path(sys.argv[1]))
except DataError as error:
    # Not ru_maxrss: Linux counts there what the parent had before it became this process.
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    print(json.dumps([error.came, error.expected, error.do, peak]))
"""


def gzip_bomb(path: Path, begin: bytes, filling: bytes, end: bytes, *, num_bytes: int = GIGABYTE) -> Path:
    """About a megabyte that unpacks to `begin`, so many bytes of `filling`, and `end`."""
    member_bytes = min(num_bytes, 32 << 20)
    member = gzip.compress(filling * (member_bytes // len(filling)), compresslevel=9)
    path.write_bytes(gzip.compress(begin) + member * (num_bytes // member_bytes) + gzip.compress(end))
    return path


def zip_bomb(path: Path, entry: str, others: dict[str, str], *, num_bytes: int = GIGABYTE // 16) -> Path:
    """An archive with one entry of so many blanks beside others."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, text in others.items():
            archive.writestr(name, text)
        with archive.open(entry, "w", force_zip64=True) as file:
            for _ in range(num_bytes >> 20):
                file.write(b" " * (1 << 20))
    return path


def pdf_bomb(path: Path, *, num_bytes: int = GIGABYTE) -> Path:
    """A page whose content unpacks to so many blanks."""
    packer = zlib.compressobj(1)
    content = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(num_bytes >> 20)) + packer.flush()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] /Contents 4 0 R >>",
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(content), content),
    ]
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, one in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    start = len(out)
    out += b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer << /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % start
    path.write_bytes(bytes(out))
    return path


def read_with_little_memory(path: Path) -> list[Any]:
    """What a process of 1 GiB of address space says of a file of rows: came, expected, do, and its peak in bytes."""
    command = [sys.executable, "-c", _READ, str(path), str(MEMORY_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout, "it was read as if nothing were wrong"
    found: list[Any] = json.loads(done.stdout)
    return found

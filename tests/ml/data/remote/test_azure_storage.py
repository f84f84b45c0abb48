"""Rows of Azure's Blob storage, by the driver adlfs against a server of its protocol."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fixtures.azure_server import Container, needs_adlfs, run_with_adlfs, serving
from tests.vacuous import nonempty

_FETCH = """
import json, sys
from pathlib import Path
from luthier.core.errors import LuthierError
from luthier.core.ports import SilentProgress
from luthier.ml.data.remote.cache import fetch

found = []
for source in sys.argv[2:]:
    try:
        got = fetch(source, Path(sys.argv[1]), SilentProgress(), refresh=True)
    except LuthierError as error:
        found.append([type(error).__name__, error.came, error.do])
    else:
        found.append([got.revision, [one.path.read_text() for one in got.files]])
print(json.dumps(found))
"""


@needs_adlfs
@pytest.mark.parametrize("place", ["az://rows", "abfs://rows", "abfss://rows@tests.dfs.core.windows.net"])
def test_blobs_come_with_their_etag_one_or_by_a_pattern(place: str, tmp_path: Path) -> None:
    container = Container({f"faq/{number}.jsonl": b'{"text": "%d"}\n' % number for number in range(3)})
    container.blobs |= {"faq/old/9.jsonl": b"x", "faq/notes.txt": b"x"}
    root = f"{place}/faq"
    with serving(container) as connection:
        one, several, none = run_with_adlfs(
            _FETCH, connection, str(tmp_path), f"{root}/1.jsonl", f"{root}/*.jsonl", f"{root}/7.jsonl"
        )
        before = several[0]
        container.blobs["faq/2.jsonl"] = b'{"text": "other"}\n'
        ((after, contents),) = run_with_adlfs(_FETCH, connection, str(tmp_path), f"{root}/*.jsonl")
    assert one == [f"ETag {container.etag('faq/1.jsonl')}", ['{"text": "1"}\n']]
    assert several[1] == ['{"text": "0"}\n', '{"text": "1"}\n', '{"text": "2"}\n']
    assert none[:2] == ["NotFoundError", f"there is no file {root}/7.jsonl"]
    assert before.startswith("3 objects ")
    assert after != before, "one of them has changed"
    assert contents[2] == '{"text": "other"}\n'
    read = [name for method, name, _ in nonempty(container.requests) if method == "GET"]
    assert not [name for name in nonempty(read) if name.endswith(("9.jsonl", "notes.txt"))], "only what matches is read"


_CONTINUE = """
import json, sys
from pathlib import Path
from luthier.core.ports import SilentTask
from luthier.core.system.download import download
from luthier.ml.data.remote.object_store import look_up_objects

found = look_up_objects("az://rows/big.jsonl")
part = Path(sys.argv[1])
download(found, found.files[0], part, SilentTask())
print(json.dumps(part.stat().st_size))
"""


@needs_adlfs
def test_an_interrupted_download_is_continued(tmp_path: Path) -> None:
    content = b"".join(b'{"text": "%06d"}\n' % number for number in range(1000))
    container, part = Container({"big.jsonl": content}), tmp_path / "part"
    part.write_bytes(content[:12_345])  # left by an earlier attempt
    with serving(container) as connection:
        assert run_with_adlfs(_CONTINUE, connection, str(part)) == len(content)
    assert part.read_bytes() == content
    firsts = [wanted for method, _, wanted in container.requests if method == "GET" and wanted]
    assert [one.partition("-")[0] for one in nonempty(firsts)] == ["bytes=12345"]


@needs_adlfs
def test_an_account_that_is_missing_or_refused_is_named_with_what_sets_it(tmp_path: Path) -> None:
    container = Container({"1.jsonl": b"x"}, is_closed=True)
    with serving(container) as connection:
        ((kind, came, do),) = run_with_adlfs(_FETCH, connection, str(tmp_path), "az://rows/1.jsonl")
    assert kind == "DataSourceError"
    assert came.startswith("az://rows/1.jsonl could not be read: ")
    assert "AZURE_STORAGE_CONNECTION_STRING" in do
    assert "bm90IGEgc2VjcmV0" not in came + do
    ((kind, came, do),) = run_with_adlfs(_FETCH, None, str(tmp_path), "az://rows/1.jsonl")
    assert (kind, came) == ("RequestError", "rows at az:// without an account of Azure Storage")
    assert "AZURE_STORAGE_CONNECTION_STRING" in do

"""Rows of Google Cloud Storage, by the driver gcsfs against a server of its JSON API."""

from __future__ import annotations

from pathlib import Path

from tests.fixtures.gcs_server import Bucket, needs_gcsfs, run_with_gcsfs, serving
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
        found.append([type(error).__name__, error.came])
    else:
        found.append([got.revision, [one.path.read_text() for one in got.files]])
print(json.dumps(found))
"""


@needs_gcsfs
def test_objects_come_with_their_etag_one_or_by_a_pattern(tmp_path: Path) -> None:
    bucket = Bucket({f"faq/{number}.jsonl": b'{"text": "%d"}\n' % number for number in range(3)})
    bucket.objects |= {"faq/old/9.jsonl": b"x", "faq/notes.txt": b"x"}
    with serving(bucket) as address:
        one, several, none = run_with_gcsfs(
            _FETCH, address, str(tmp_path), "gs://rows/faq/1.jsonl", "gs://rows/faq/*.jsonl", "gs://rows/faq/7.jsonl"
        )
        before = several[0]
        bucket.objects["faq/2.jsonl"] = b'{"text": "other"}\n'
        ((after, contents),) = run_with_gcsfs(_FETCH, address, str(tmp_path), "gs://rows/faq/*.jsonl")
    assert one == [f"ETag {bucket.about('faq/1.jsonl')['etag']}", ['{"text": "1"}\n']]
    assert several[1] == ['{"text": "0"}\n', '{"text": "1"}\n', '{"text": "2"}\n']
    assert none == ["NotFoundError", "there is no file gs://rows/faq/7.jsonl"]
    assert before.startswith("3 objects ")
    assert after != before, "one of them has changed"
    assert contents[2] == '{"text": "other"}\n'
    asked = [path for _, path, _ in nonempty(bucket.requests)]
    assert not [path for path in asked if path.endswith(("9.jsonl", "notes.txt"))], "only what matches is read"


_CONTINUE = """
import json, sys
from pathlib import Path
from luthier.core.ports import SilentTask
from luthier.core.system.download import download
from luthier.ml.data.remote.object_store import look_up_objects

found = look_up_objects("gs://rows/big.jsonl")
part = Path(sys.argv[1])
download(found, found.files[0], part, SilentTask())
print(json.dumps(part.stat().st_size))
"""


@needs_gcsfs
def test_an_interrupted_download_is_continued(tmp_path: Path) -> None:
    content = b"".join(b'{"text": "%06d"}\n' % number for number in range(1000))
    bucket, part = Bucket({"big.jsonl": content}), tmp_path / "part"
    part.write_bytes(content[:12_345])  # left by an earlier attempt
    with serving(bucket) as address:
        assert run_with_gcsfs(_CONTINUE, address, str(part)) == len(content)
    assert part.read_bytes() == content
    firsts = [wanted for _, path, wanted in bucket.requests if path.startswith("/download") and wanted]
    assert [one.partition("-")[0] for one in nonempty(firsts)] == ["bytes=12345"]

"""Checkpoints in Google Cloud Storage, by the driver gcsfs against a server of its JSON API."""

from __future__ import annotations

from pathlib import Path

from tests.fixtures.gcs_server import Bucket, needs_gcsfs, run_with_gcsfs, serving

_WRITE = """
import json, sys
from pathlib import Path
from luthier.features.training.checkpoint_uploads.bucket import ObjectStore, RunBucket

store = ObjectStore("gs://rows/runs of machines")
found = {"empty": store.names(), "first": store.create("leases/1.json", b"first")}
# As for a machine that has looked before the other one wrote.
found["second"] = store.create("leases/1.json", b"second")
found["kept"] = store.read("leases/1.json").decode()
bucket, source, copy = RunBucket(store, "run-20261130-120000-00000a"), Path(sys.argv[1]), Path(sys.argv[2])
file = bucket.put(source, "g00000001/step-00000002/weights")
document = bucket.put_json("g00000001/state.json.gz", {"step": 2})
bucket.fetch(file, copy)
found |= {"document": bucket.read_json(document), "names": store.names()}
for name in store.names():
    store.remove(name)
store.remove("leases/1.json")
print(json.dumps(found | {"left": store.names()}))
"""


@needs_gcsfs
def test_an_object_is_made_once_and_files_come_back(tmp_path: Path) -> None:
    source, copy, bucket = tmp_path / "weights", tmp_path / "copy", Bucket()
    source.write_bytes(bytes(range(256)) * 40_000)  # more than is sent at once
    with serving(bucket) as address:
        found = run_with_gcsfs(_WRITE, address, str(source), str(copy))
    assert (found["empty"], found["first"], found["second"], found["kept"]) == ([], True, False, "first")
    # The store decides, and not a look before the writing: two machines may look at the same moment.
    assert bucket.conditions.count("0") == 2
    assert copy.read_bytes() == source.read_bytes()
    assert found["document"] == {"step": 2}
    assert len(found["names"]) == 3
    assert (found["left"], bucket.objects) == ([], {})

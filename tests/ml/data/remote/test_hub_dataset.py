"""Datasets of the hub: found by card and names, at a commit, whole, once, and never by running code."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.hub_server import COMMIT, Hub, serving

from luthier.core.errors import DataSourceError, NotFoundError
from luthier.core.ports import SilentProgress
from luthier.core.system import download
from luthier.ml.data.remote.cache import FetchedSource, fetch, look_up
from luthier.ml.data.remote.hub_dataset import configs_of

CONVERTED = "refs/convert/parquet"


def jsonl(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(*rows: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    pl.DataFrame(list(rows)).write_parquet(stream)
    return stream.getvalue()


def row(number: int) -> dict[str, Any]:
    return {"prompt": f"What is {number}?", "completion": f"It is {number}."}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {"README.md": b"# QA", "train.jsonl": jsonl(row(1), row(2)), "test.jsonl": jsonl(row(3))}
    served = Hub(files, repo="org/qa", kind="dataset")
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(download.time, "sleep", lambda _: None)
        yield served


def fetched(tmp_path: Path, source: str, *, refresh: bool = False) -> FetchedSource:
    return fetch(source, tmp_path / "data", SilentProgress(), refresh=refresh)


def contents(found: FetchedSource) -> list[bytes]:
    return [one.path.read_bytes() for one in found.files]


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["train.jsonl", "test.jsonl"], {"train": ["train.jsonl"], "test": ["test.jsonl"]}),
        (["rows.csv"], {"train": ["rows.csv"]}),
        (
            ["data/dev.json", "data/training_1.json"],
            {"validation": ["data/dev.json"], "train": ["data/training_1.json"]},
        ),
        (["train/a.jsonl", "val/b.jsonl"], {"train": ["train/a.jsonl"], "validation": ["val/b.jsonl"]}),
        (
            ["data/gold-00000-of-00002.parquet", "data/gold-00001-of-00002.parquet", "data/x-00000-of-00001.parquet"],
            {
                "gold": ["data/gold-00000-of-00002.parquet", "data/gold-00001-of-00002.parquet"],
                "x": ["data/x-00000-of-00001.parquet"],
            },
        ),
        (["trainer_notes.jsonl"], {"train": ["trainer_notes.jsonl"]}),
    ],
)
def test_splits_are_found_by_the_names_of_files(paths: list[str], found: dict[str, list[str]]) -> None:
    assert configs_of(paths, ()) == {"default": found}


def test_the_card_says_which_files_are_which_split() -> None:
    paths = ["de/a.jsonl", "de/b.jsonl", "en/a.jsonl", "en/held.jsonl"]
    card = [
        {"config_name": "de", "data_files": "de/*.jsonl"},
        {"config_name": "en", "data_dir": "en", "data_files": [
            {"split": "train", "path": ["a.jsonl"]}, {"split": "held", "path": "**/held.jsonl"},
        ]},
        {"config_name": "gone", "data_files": "gone/*.jsonl"},
    ]  # fmt: skip
    assert configs_of(paths, card) == {
        "de": {"train": ["de/a.jsonl", "de/b.jsonl"]},
        "en": {"train": ["en/a.jsonl"], "held": ["en/held.jsonl"]},
    }


def test_a_pattern_of_the_card_ends_at_a_folder_and_two_stars_do_not() -> None:
    paths = ["a.jsonl", "data/b.jsonl", "data/old/c.jsonl", "data/old/more/d.jsonl", "eval/test.jsonl"]
    patterns = {
        "*.jsonl": ["a.jsonl"],
        "data/*": ["data/b.jsonl"],
        "data/**": ["data/b.jsonl", "data/old/c.jsonl", "data/old/more/d.jsonl"],
        "data/**/*.jsonl": ["data/b.jsonl", "data/old/c.jsonl", "data/old/more/d.jsonl"],
        "**/[bt]*.jsonl": ["data/b.jsonl", "eval/test.jsonl"],
        "data/*/*.jsonl": ["data/old/c.jsonl"],
        "data/?.jsonl": ["data/b.jsonl"],
        "**": paths,
    }
    card = [{"config_name": pattern, "data_files": pattern} for pattern in patterns]
    assert configs_of(paths, card) == {pattern: {"train": found} for pattern, found in patterns.items()}


def test_a_split_comes_at_a_commit_and_again_without_a_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fetched(tmp_path, "hub:org/qa")
    assert (found.revision, found.was_there) == (COMMIT, False)
    assert contents(found) == [hub.files["train.jsonl"]]
    assert contents(fetched(tmp_path, "hub:org/qa[test]")) == [hub.files["test.jsonl"]]
    num_requests = len(hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetched(tmp_path, "hub:org/qa").was_there
    assert contents(fetched(tmp_path, f"hub:org/qa@{COMMIT}")) == contents(found), "also by its commit"
    assert len(hub.requests) == num_requests


def test_a_newer_commit_is_taken_when_asked_for_and_the_older_one_stays(hub: Hub, tmp_path: Path) -> None:
    before = fetched(tmp_path, "hub:org/qa")
    hub.files["train.jsonl"], hub.commit = jsonl(row(7)), "f" * 40
    assert fetched(tmp_path, "hub:org/qa").revision == COMMIT
    after = fetched(tmp_path, "hub:org/qa", refresh=True)
    assert (after.revision, contents(after)) == ("f" * 40, [jsonl(row(7))])
    assert fetched(tmp_path, "hub:org/qa").revision == "f" * 40
    assert contents(fetched(tmp_path, f"hub:org/qa@{COMMIT}")) == contents(before)


def test_one_file_may_be_named(hub: Hub, tmp_path: Path) -> None:
    hub.files["raw/more.csv"] = b"prompt,completion\na,b\n"
    found = fetched(tmp_path, "hub:org/qa/raw/more.csv")
    assert contents(found) == [hub.files["raw/more.csv"]]
    assert found.files[0].path.name == "more.csv"
    with pytest.raises(NotFoundError, match=r"has no file 'raw/none.csv'[\s\S]*one of: raw/more.csv, test.jsonl"):
        fetched(tmp_path, "hub:org/qa/raw/none.csv")


def test_shards_come_in_order_and_what_arrived_of_one_is_continued(hub: Hub, tmp_path: Path) -> None:
    shards = {f"data/train-0000{n}-of-00002.parquet": parquet(*(row(10 * n + k) for k in range(40))) for n in range(2)}
    hub.files = dict(shards)
    second = "data/train-00001-of-00002.parquet"
    hub.cut_after, hub.num_cuts = {second: 300}, -1
    # Each attempt receives 300 bytes, so the download ends in one call; Range headers show where each began.
    found = fetched(tmp_path, "hub:org/qa")
    assert contents(found) == list(shards.values())
    starts = [asked for path, asked in hub.requests if path.endswith(second)]
    assert starts[:3] == [None, "bytes=300-", "bytes=600-"]


def test_an_interrupted_download_is_continued_by_the_next_process(hub: Hub, tmp_path: Path) -> None:
    hub.ignores_ranges = True  # so that no attempt gets further, and the first call gives up
    hub.cut_after, hub.num_cuts = {"train.jsonl": 20}, -1
    with pytest.raises(DataSourceError, match=r"train.jsonl of org/qa \(20 of 102 bytes are kept\)"):
        fetched(tmp_path, "hub:org/qa")
    hub.cut_after, hub.ignores_ranges = {}, False
    assert contents(fetched(tmp_path, "hub:org/qa")) == [hub.files["train.jsonl"]]
    assert hub.requests[-1][1] == "bytes=20-"


def test_a_file_with_a_wrong_bit_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.corrupt.add("train.jsonl")
    with pytest.raises(DataSourceError, match="came with digest"):
        fetched(tmp_path, "hub:org/qa")
    hub.corrupt.clear()
    assert contents(fetched(tmp_path, "hub:org/qa")) == [hub.files["train.jsonl"]]


def test_a_digest_that_is_a_path_reaches_no_file_of_this_machine(hub: Hub, tmp_path: Path) -> None:
    other = tmp_path / "other" / "train.parquet"
    other.parent.mkdir()
    other.write_bytes(b"mine")
    hub.files = {"train.parquet": parquet(row(1))}
    for digest in (str(other.parent), "../../other"):
        hub.stated_digests = {"train.parquet": digest}
        with pytest.raises(DataSourceError, match="states no digest for"):
            fetched(tmp_path, "hub:org/qa")
    assert other.read_bytes() == b"mine"


def test_a_file_that_was_damaged_on_disk_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    found = fetched(tmp_path, "hub:org/qa")
    found.files[0].path.write_bytes(b"{}\n")
    assert contents(fetched(tmp_path, "hub:org/qa")) == [hub.files["train.jsonl"]]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hub:org/qa[dev]", r"has no split 'dev'[\s\S]*one of: test, train[\s\S]*hub:org/qa\[test\]"),
        ("hub:org/qa/de", r"has no configuration 'de'[\s\S]*one of: default"),
        ("hub:org/qa@v9", "has no revision 'v9'"),
        ("hub:org/none", "there is no dataset 'org/none'"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(hub: Hub, tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(NotFoundError, match=words):
        fetched(tmp_path, source)


def test_of_several_configurations_one_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.card = {"configs": [{"config_name": one, "data_files": f"{one}.jsonl"} for one in ("train", "test")]}
    with pytest.raises(NotFoundError, match=r"has several configurations[\s\S]*one of: test, train"):
        fetched(tmp_path, "hub:org/qa")
    assert contents(fetched(tmp_path, "hub:org/qa/test")) == [hub.files["test.jsonl"]]


def test_the_configuration_that_the_card_marks_as_the_default_is_taken_and_pinned(hub: Hub, tmp_path: Path) -> None:
    entries = [{"config_name": one, "data_files": f"{one}.jsonl"} for one in ("train", "test")]
    hub.card = {"configs": [entries[0], {**entries[1], "default": True}]}
    assert contents(fetched(tmp_path, "hub:org/qa")) == [hub.files["test.jsonl"]]
    assert contents(fetched(tmp_path, "hub:org/qa/train")) == [hub.files["train.jsonl"]]
    hub.files = {"qa.py": b""}
    hub.card = {"configs": [{"config_name": "de", "default": True}, {"config_name": "en"}]}
    hub.branches[CONVERTED] = {"de/train/0000.parquet": parquet(row(1)), "en/train/0000.parquet": parquet(row(2))}
    found = fetched(tmp_path / "other", "hub:org/qa")
    assert contents(found) == [parquet(row(1))]
    pinned = look_up("hub:org/qa").pinned
    assert pinned == f"hub:org/qa@{hub.commit_of(CONVERTED)}/de"
    # The branch of the conversion has no card: its commit alone would not say which one it was.
    hub.card = {}
    assert contents(fetched(tmp_path / "third", pinned)) == [parquet(row(1))]


def test_a_gated_dataset_says_how_to_get_it(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated_for = hub.valid = {"hf_right"}
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(DataSourceError, match=r"is gated[\s\S]*accept the terms on \S+/datasets/org/qa[\s\S]*HF_TOKEN"):
        fetched(tmp_path, "hub:org/qa")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert contents(fetched(tmp_path, "hub:org/qa")) == [hub.files["train.jsonl"]]


def test_a_script_is_never_run_and_the_conversion_is_taken_in_its_place(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"qa.py": b"raise SystemExit", "raw/train.csv": b"a,b\n1,2\n"}
    with pytest.raises(DataSourceError, match=r"loaded by its own code, qa.py[\s\S]*is not run on this machine"):
        fetched(tmp_path, "hub:org/qa")
    rows = parquet(row(1))
    hub.branches[CONVERTED] = {"default/train/0000.parquet": rows, "default/partial-test/0000.parquet": rows}
    found = fetched(tmp_path, "hub:org/qa")
    assert contents(found) == [rows]
    assert found.revision == hub.commit_of(CONVERTED)
    with pytest.raises(DataSourceError, match="converted only the first rows of split 'test'"):
        fetched(tmp_path, "hub:org/qa[test]")
    hub.branches.clear()
    assert contents(fetched(tmp_path, f"hub:org/qa@{found.revision}")) == [rows], "pinned, and already here"


def test_a_pinned_conversion_is_found_again_by_its_commit(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"qa.py": b""}
    hub.branches[CONVERTED] = {"de/train/0000.parquet": parquet(row(1)), "en/train/0000.parquet": parquet(row(2))}
    commit = hub.commit_of(CONVERTED)
    assert contents(fetched(tmp_path, f"hub:org/qa@{commit}/en[train]")) == [parquet(row(2))]


def test_a_dataset_without_files_that_can_be_read_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"photos.zip": b"PK"}
    with pytest.raises(DataSourceError, match="no data files in a format that can be read"):
        fetched(tmp_path, "hub:org/qa")


def test_files_about_a_dataset_are_no_rows(hub: Hub, tmp_path: Path) -> None:
    about = ("dataset_infos.json", "dataset_dict.json", "config.json", "rows/state.json", "rows/dataset_info.json")
    hub.files = {"rows/a.jsonl": jsonl(row(1)), **dict.fromkeys(about, b"{}")}
    assert contents(fetched(tmp_path, "hub:org/qa")) == [jsonl(row(1))]
    hub.files = dict.fromkeys(about, b"{}")
    with pytest.raises(DataSourceError, match="no data files in a format that can be read"):
        fetched(tmp_path / "other", "hub:org/qa")


def test_of_a_split_with_a_file_that_cannot_be_read_the_conversion_is_taken(hub: Hub, tmp_path: Path) -> None:
    """Without that file rows of the split would be missing, and nobody would notice."""
    hub.files = {"train-1.jsonl": jsonl(row(1)), "train-2.jsonl.zst": b"\x28\xb5\x2f\xfd", "test.jsonl": jsonl(row(3))}
    with pytest.raises(DataSourceError, match=r"train-2.jsonl.zst of dataset org/qa cannot be read[\s\S]*unpack"):
        fetched(tmp_path, "hub:org/qa")
    assert contents(fetched(tmp_path, "hub:org/qa[test]")) == [hub.files["test.jsonl"]], "the other splits are whole"
    both = parquet(row(1), row(2))
    hub.branches[CONVERTED] = {"default/train/0000.parquet": both, "default/test/0000.parquet": parquet(row(3))}
    found = fetched(tmp_path, "hub:org/qa")
    assert (contents(found), found.revision) == ([both], hub.commit_of(CONVERTED))
    with pytest.raises(DataSourceError, match=r"cannot be read[\s\S]*leave out the revision"):
        fetched(tmp_path, f"hub:org/qa@{COMMIT}")


def test_offline_and_not_there_is_an_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataSourceError, match="HF_HUB_OFFLINE"):
        fetched(tmp_path, "hub:org/qa")

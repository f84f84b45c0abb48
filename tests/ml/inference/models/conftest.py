import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from luthier.core.ids import sha256_file
from luthier.core.ports import SilentProgress
from luthier.core.records.base_model import Wheel
from luthier.ml.inference.models import sources
from luthier.testing.tiny import make_tiny_model, write_tiny_gguf


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A tiny chat model; tests must not change it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "chat")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A tiny base model without a chat template; tests must not change it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "base", chat=False)


@pytest.fixture
def make_gguf(tiny) -> Callable[..., Path]:
    return lambda target, pre="gpt-2": write_tiny_gguf(tiny, target, pre=pre)


@pytest.fixture(scope="session")
def tiny_gguf(tiny, tmp_path_factory) -> Path:
    return write_tiny_gguf(tiny, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


class LocalWheels:
    """Fetches wheels from a folder, and counts; picklable, so that child processes can use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count: Counter[str] = Counter()
        self.log: Path | None = None

    def __call__(self, wheel: Wheel, folder: Path, progress) -> Path:
        self.count[wheel.requirement] += 1
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(wheel.requirement + "\n")
        return Path(shutil.copy(self.folder / wheel_name(wheel.requirement), folder))


def wheel_name(requirement: str) -> str:
    project, version = requirement.split("==")
    return f"{project.replace('-', '_')}-{version}-py3-none-any.whl"


def make_wheel(folder: Path, requirement: str, members: dict[str, bytes], requires: str | None = None) -> Path:
    """A wheel that pip accepts, with the members given."""
    project, version = requirement.split("==")
    info = f"{project.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    parts = {
        **members,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    file = folder / wheel_name(requirement)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content)
    return file


@pytest.fixture
def write_wheel() -> Callable[..., Path]:
    return make_wheel


@pytest.fixture
def local_wheels(tmp_path) -> LocalWheels:
    (tmp_path / "wheels").mkdir()
    return LocalWheels(tmp_path / "wheels")


@pytest.fixture
def tiny_entry(tiny_entry_folder, monkeypatch) -> tuple[str, LocalWheels]:
    """A catalogue entry whose model comes in two wheels, and what fetches them."""
    monkeypatch.setenv("LUTHIER_CATALOG", str(tiny_entry_folder / "catalog.yaml"))
    return "tiny-test", LocalWheels(tiny_entry_folder)


@pytest.fixture
def pulled(tiny_entry, pulled_home, tmp_path) -> tuple[str, LocalWheels, Path]:
    """The same, pulled already, in a home of the test's own."""
    shutil.copytree(pulled_home, tmp_path / "pulled")
    return *tiny_entry, tmp_path / "pulled"


@pytest.fixture(scope="session")
def pulled_home(tiny_entry_folder, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("pulled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CATALOG", str(tiny_entry_folder / "catalog.yaml"))
        sources.pull("tiny-test", home, SilentProgress(), fetch_wheel=LocalWheels(tiny_entry_folder))
    return home


@pytest.fixture(scope="session")
def tiny_entry_folder(tiny_gguf, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    content = tiny_gguf.read_bytes()
    half = len(content) // 2
    licence = {"tiny_part1/LICENSE": b"Do as you like.\n"}
    documents = []
    for number, part in enumerate((content[:half], content[half:]), start=1):
        requirement, member = f"tiny-part{number}==1.0", f"tiny_part{number}/part"
        file = make_wheel(folder, requirement, {member: part, **(licence if number == 1 else {})})
        size = file.stat().st_size
        wheel = {"requirement": requirement, "sha256": sha256_file(file), "num_bytes": size, "member": member}
        documents.append(wheel)
    entry = {
        "name": "tiny-test",
        "title": "Tiny",
        "licence": "CC0-1.0",
        "licence_url": "https://example.org",
        "num_parameters": 1,
        "context_length_tokens": 512,
        "has_chat_template": True,
        "gguf_sha256": sha256_file(tiny_gguf),
        "wheels": documents,
        "terms": [{**documents[0], "member": "tiny_part1/LICENSE"}],
    }
    (folder / "catalog.yaml").write_text(yaml.safe_dump([entry]))
    return folder

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.hub_server import COMMIT, Hub, read_files, serving

from luthier.core.errors import LuthierError, ModelSourceError, NotFoundError, StorageFullError
from luthier.core.ports import SilentProgress
from luthier.core.system import download
from luthier.ml.inference.models import hub as hub_access
from luthier.ml.inference.models import hub as hub_source
from luthier.ml.inference.models import sources
from luthier.ml.inference.models.loading import load_tokenizer

NAME, QUIET = "hub:org/tiny@main", SilentProgress()
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tiny, monkeypatch) -> Iterator[Hub]:
    served = Hub(read_files(tiny))
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        # The hub's client reads this one when it is imported; the tests as a whole run with it on.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(download.time, "sleep", lambda _: None)
        yield served


class Bar:
    """Counts what a download says about itself."""

    def __init__(self) -> None:
        self.total: float | None = None
        self.at = 0.0

    def task(self, title, total, unit, done=0):
        self.total, self.at = total, done
        return self

    def advance(self, amount=1):
        self.at += amount

    def note(self, text):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def ranges(hub: Hub) -> list[str | None]:
    return [asked for path, asked in hub.requests if path.endswith(WEIGHTS)]


def test_a_model_comes_from_the_hub_at_a_commit(hub, tiny, tmp_path):
    bar = Bar()
    model = sources.pull(NAME, tmp_path, bar)
    assert (model.name, model.source, model.licence) == (NAME, "hub", "cc0-1.0")
    assert (Path(model.path) / WEIGHTS).read_bytes() == (tiny / WEIGHTS).read_bytes()
    origin = json.loads((Path(model.path) / "manifest.json").read_text())["origin"]
    assert (origin["commit"], origin["repo"], origin["revision"]) == (COMMIT, "org/tiny", "main")
    assert bar.at == bar.total == sum(len(content) for content in hub.files.values())
    assert [p.name for p in (tmp_path / "models").iterdir() if p.name.startswith((".tmp", ".part"))] == []


def test_the_revision_may_be_left_out(hub, tmp_path):
    assert sources.pull("hub:org/tiny", tmp_path, QUIET) == sources.find(NAME, tmp_path)


def test_what_is_there_needs_no_hub(hub, tmp_path, monkeypatch):
    model = sources.pull(NAME, tmp_path, QUIET)
    num_requests = len(hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert sources.pull(NAME, tmp_path, QUIET) == model
    assert len(hub.requests) == num_requests


def test_only_what_a_model_needs_is_fetched(hub, tmp_path):
    extra = ("pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors", "onnx/model.json", "photo.png")
    hub.files |= dict.fromkeys(extra, b"x") | {"README.md": b"# Tiny", "LICENSE": b"Yours."}
    model = sources.pull(NAME, tmp_path, QUIET)
    have = {path.name for path in Path(model.path).iterdir()}
    assert {"README.md", "LICENSE", WEIGHTS, "tokenizer.json"} <= have
    assert not have & {Path(name).name for name in extra}
    assert not any(path.endswith(extra) for path, _ in hub.requests)


def test_sharded_weights_come_whole(hub, tiny, tmp_path):
    tensors = load_file(tiny / WEIGHTS)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    del hub.files[WEIGHTS]
    for file, inside in parts.items():
        save_file({n: tensors[n] for n in inside}, tmp_path / file, metadata={"format": "pt"})
        hub.files[file] = (tmp_path / file).read_bytes()
    where = {name: file for file, inside in parts.items() for name in inside}
    hub.files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": where}).encode()
    model = sources.pull(NAME, tmp_path / "home", QUIET)
    assert model.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    sources.verify(model)


def test_a_dropped_connection_is_taken_up_where_it_broke(hub, tmp_path):
    hub.cut_after, hub.num_cuts = {WEIGHTS: 50_000}, 2
    bar = Bar()
    model = sources.pull(NAME, tmp_path, bar)
    sources.verify(model)
    assert ranges(hub) == [None, "bytes=50000-", "bytes=100000-"]
    assert bar.at == bar.total


def test_a_server_that_knows_no_ranges_sends_it_all_again(hub, tmp_path):
    hub.cut_after, hub.num_cuts, hub.ignores_ranges = {WEIGHTS: 50_000}, 1, True
    bar = Bar()
    sources.verify(sources.pull(NAME, tmp_path, bar))
    assert bar.at == bar.total


def test_a_connection_that_stays_broken_is_an_error_that_keeps_what_came(hub, tmp_path):
    hub.cut_after, hub.num_cuts = {WEIGHTS: 0}, -1
    with pytest.raises(ModelSourceError, match=r"model.safetensors of org/tiny \(0 of [\d,]+ bytes are kept\)"):
        sources.pull(NAME, tmp_path, QUIET)
    assert sources.find(NAME, tmp_path) is None
    hub.num_cuts = 0
    hub.requests.clear()
    sources.verify(sources.pull(NAME, tmp_path, QUIET))
    assert [path for path, _ in hub.requests if "/resolve/" in path] == [f"/org/tiny/resolve/{COMMIT}/{WEIGHTS}"]


_PULL = """
import sys
from pathlib import Path
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models import sources
from luthier.ml.inference.models.loading import load_tokenizer
sources.pull("hub:org/tiny@main", Path(sys.argv[1]), SilentProgress())
"""


def test_a_pull_that_was_killed_goes_on_in_the_next_process(hub, tmp_path):
    hub.cut_after, hub.num_cuts, hub.stall = {WEIGHTS: 65_536}, 1, True
    child = subprocess.Popen([sys.executable, "-c", _PULL, str(tmp_path)])
    try:
        while not hub.stalled.wait(0.1):
            assert child.poll() is None
        part = next((tmp_path / "models").glob(f".part-*/{COMMIT}/{WEIGHTS}.part"))
        # What was sent must have been written before the process dies.
        while part.stat().st_size < 60_000:
            assert child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        hub.released.set()
    kept = part.stat().st_size
    assert sources.find(NAME, tmp_path) is None
    assert sources.local_models(tmp_path) == []
    sources.verify(sources.pull(NAME, tmp_path, QUIET))
    assert ranges(hub) == [None, f"bytes={kept}-"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [(b"", "keeps ending early"), (b"too short", "keeps ending early"), (None, r"sends more than the [\d,]+ bytes")],
)
def test_a_file_of_the_wrong_size_is_given_up(hub, tmp_path, change, reason):
    """The hub states one size and serves another, ending the connection in good order."""
    hub.served = {WEIGHTS: hub.files[WEIGHTS] + b"too long" if change is None else change}
    with pytest.raises(ModelSourceError, match=f"model.safetensors of org/tiny: the server {reason}"):
        sources.pull(NAME, tmp_path, QUIET)
    assert len(ranges(hub)) < 12
    part = next((tmp_path / "models").rglob(f"{WEIGHTS}.part"))
    assert part.stat().st_size < len(hub.files[WEIGHTS]), "what is too much does not stay on the disk"


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
def test_a_wrong_digest_is_an_error_and_the_file_is_not_kept(hub, tmp_path, file):
    hub.corrupt = {file}
    with pytest.raises(ModelSourceError, match=f"{file} of org/tiny came with digest"):
        sources.pull(NAME, tmp_path, QUIET)
    assert not list(tmp_path.rglob(f"{file}*"))
    hub.corrupt = set()
    sources.verify(sources.pull(NAME, tmp_path, QUIET))


def test_a_part_longer_than_the_file_is_thrown_away(hub, tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / f"{WEIGHTS}.part").write_bytes(b"x" * (len(hub.files[WEIGHTS]) + 1))
    bar = Bar()
    hub_source.download(hub_source.look_up("org/tiny", "main"), folder, bar)
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert bar.at == bar.total


@pytest.mark.parametrize(
    ("name", "reason"),
    [("hub:org/none@main", "no model 'org/none'"), ("hub:org/tiny@v9", "no revision 'v9'")],
)
def test_what_the_hub_does_not_have_is_not_found(hub, tmp_path, name, reason):
    with pytest.raises(NotFoundError, match=reason):
        sources.pull(name, tmp_path, QUIET)


def test_a_repository_with_only_pickles_is_refused_before_anything_is_fetched(hub, tmp_path):
    hub.files["pytorch_model.bin"] = hub.files.pop(WEIGHTS)
    with pytest.raises(ModelSourceError, match=r"only as pickles \(pytorch_model\.bin\)"):
        sources.pull(NAME, tmp_path, QUIET)
    assert not any("/resolve/" in path for path, _ in hub.requests)


def test_a_repository_with_code_of_its_own_is_refused(hub, tmp_path):
    config = json.loads(hub.files["config.json"]) | {"auto_map": {"AutoModelForCausalLM": "m.M"}}
    hub.files["config.json"] = json.dumps(config).encode()
    with pytest.raises(ModelSourceError, match="custom Python code"):
        sources.pull(NAME, tmp_path, QUIET)
    assert sources.local_models(tmp_path) == []
    assert ranges(hub) == [], "weights were fetched before the config was read"
    assert not list(tmp_path.rglob("config.json"))


def test_weights_that_early_tools_packed_are_refused_before_they_are_fetched(hub, tmp_path):
    hub.files["quantize_config.json"] = b'{"bits": 4, "group_size": 128}'
    with pytest.raises(ModelSourceError, match=r"quantised already \(GPTQ, 4 bits in groups of 128\)"):
        sources.pull(NAME, tmp_path, QUIET)
    assert ranges(hub) == [], "weights were fetched before the files about them were read"


def test_code_and_pickles_that_lie_beside_a_model_stay_there_and_are_named(hub, tmp_path):
    hub.files |= {"modeling_evil.py": b"raise SystemExit", "pytorch_model.bin": b"x", "lib/kernel.so": b"x"}
    model = sources.pull(NAME, tmp_path, QUIET)
    origin = json.loads((Path(model.path) / "manifest.json").read_text())["origin"]
    assert origin["never_fetched"] == "lib/kernel.so modeling_evil.py pytorch_model.bin"


@pytest.fixture
def no_token(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-such-token"))


def test_a_gated_model_says_where_to_accept_what_and_comes_with_the_right_token(hub, no_token, tmp_path, monkeypatch):
    hub.gated_for, hub.valid = {"hf_let_in"}, {"hf_let_in", "hf_outside"}
    with pytest.raises(ModelSourceError, match=r"org/tiny on .* is gated") as caught:
        sources.pull(NAME, tmp_path, QUIET)
    address = hub_access.endpoint()
    assert "no token is set" in caught.value.came
    assert f"accept the terms on {address}/org/tiny" in caught.value.do
    assert f"{address}/settings/tokens, set HF_TOKEN" in caught.value.do
    assert ranges(hub) == []
    monkeypatch.setenv("HF_TOKEN", "hf_outside")
    with pytest.raises(ModelSourceError, match="the account of the token in HF_TOKEN may not read it") as caught:
        sources.pull(NAME, tmp_path, QUIET)
    assert f"open {address}/org/tiny with that account" in caught.value.do
    assert "hf_outside" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_let_in")
    sources.verify(sources.pull(NAME, tmp_path, QUIET))


def test_a_token_that_the_hub_does_not_know_is_explained(hub, no_token, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    with pytest.raises(ModelSourceError, match=r"refuses the token in HF_TOKEN for config\.json.*HTTP 401") as caught:
        sources.pull(NAME, tmp_path, QUIET)
    assert "for a public model leave the token out" in caught.value.do
    assert "hf_stale" not in str(caught.value)


def test_a_file_without_a_digest_is_refused(hub, tmp_path):
    hub.no_digest = {"tokenizer.json"}
    with pytest.raises(ModelSourceError, match=r"states no digest for tokenizer\.json of org/tiny"):
        sources.pull(NAME, tmp_path, QUIET)
    assert not any("/resolve/" in path for path, _ in hub.requests)


def test_a_commit_that_was_asked_for_is_the_one_that_comes(hub, tmp_path):
    sources.pull(f"hub:org/tiny@{COMMIT}", tmp_path, QUIET)
    hub.commit = "f" * 40
    with pytest.raises(ModelSourceError, match=f"states {'f' * 40} as the commit of org/tiny@{COMMIT}"):
        sources.pull(f"hub:org/tiny@{COMMIT}", tmp_path / "other", QUIET)


def test_a_model_larger_than_the_disk_is_refused_before_its_weights(hub, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    room = len(hub.files["config.json"]) + 10
    monkeypatch.setattr(hub_source.shutil, "disk_usage", lambda _: usage._replace(free=room))
    with pytest.raises(StorageFullError, match=f"has {room} bytes left"):
        sources.pull(NAME, tmp_path, QUIET)
    assert ranges(hub) == []


@pytest.mark.parametrize("status", [403, 503])
def test_a_refusal_is_explained(hub, tmp_path, status):
    hub.status = {WEIGHTS: status}
    with pytest.raises(ModelSourceError, match=f"{status}"):
        sources.pull(NAME, tmp_path, QUIET)
    assert len(ranges(hub)) == (1 if status == 403 else 5)


def test_no_hub_at_all_is_explained(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelSourceError, match=r"could not be fetched from http://127\.0\.0\.1:9"):
        sources.pull(NAME, tmp_path, QUIET)


def test_offline_mode_is_kept_and_explained(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelSourceError, match="HF_HUB_OFFLINE"):
        sources.pull(NAME, tmp_path, QUIET)
    assert hub.requests == []


def test_a_damaged_model_is_fetched_anew_and_removing_it_clears_everything(hub, tmp_path):
    model = sources.pull(NAME, tmp_path, QUIET)
    (Path(model.path) / WEIGHTS).unlink()
    with pytest.raises(ModelSourceError, match="luthier models rm hub:org/tiny@main"):
        sources.find(NAME, tmp_path)
    assert sources.pull(NAME, tmp_path, QUIET) == model
    hub.status = {WEIGHTS: 403}
    shutil.rmtree(model.path)
    with pytest.raises(LuthierError):
        sources.pull(NAME, tmp_path, QUIET)
    with pytest.raises(NotFoundError):
        sources.remove(NAME, tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir() if not path.name.startswith(".lock")] == []


@pytest.mark.parametrize("commit", ["../../../escaped", "/tmp/escaped", "..", "", None, "0" * 39, "main"])
def test_a_commit_that_is_none_becomes_no_folder(hub, tmp_path, commit):
    hub.commit = commit
    home = tmp_path / "a" / "b" / "home"
    with pytest.raises(ModelSourceError, match="as the commit of org/tiny"):
        sources.pull(NAME, home, QUIET)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "home" not in path.parts] == []
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    "name", ["../escaped.json", "..\\escaped.json", "/tmp/escaped.json", "..json", "a\0.json", ".x.json"]
)
def test_a_name_that_leads_out_is_not_fetched(hub, tmp_path, name):
    hub.files[name] = b"{}"
    home = tmp_path / "a" / "b" / "home"
    model = sources.pull(NAME, home, QUIET)
    assert not [path for path, _ in hub.requests if name in path]
    assert not list(tmp_path.rglob("*escaped*"))
    assert name not in [path.name for path in Path(model.path).iterdir()]


def test_a_folder_with_links_to_elsewhere_is_refused(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    secret = tmp_path / "id_ed25519"
    secret.write_text("a private key")
    sources.pull(str(folder), tmp_path / "home", QUIET)
    for target in (secret, Path("../id_ed25519")):
        (folder / "LICENSE").symlink_to(target)
        with pytest.raises(ModelSourceError, match=r"is a link to .*id_ed25519, outside"):
            sources.pull(str(folder), tmp_path / "home", QUIET)
        (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to("README.md")
    (folder / "README.md").write_text("Words.")
    sources.pull(str(folder), tmp_path / "home", QUIET)


def test_the_cache_of_the_hubs_own_client_is_a_folder_like_others(tiny, tmp_path):
    blobs, folder = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / COMMIT
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (folder / file.name).symlink_to(Path("../../blobs") / str(number))
    assert sources.pull(str(folder), tmp_path / "home", QUIET).source == "folder"


def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_next_file(hub, tmp_path, monkeypatch):
    folder, flushed = tmp_path / "d", []

    def sync(path):
        flushed.append((path.name, (folder / path.name.removesuffix(".part")).is_file()))

    for module in (download, hub_source):
        monkeypatch.setattr(module, "sync", sync)
    model = hub_source.look_up("org/tiny", "main")
    hub_source.download(model, folder, QUIET)
    assert flushed == [step for file in model.files for step in ((f"{file.name}.part", False), ("d", False))]


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
@pytest.mark.parametrize("damage", ["empty", "zeros"])
def test_a_damaged_file_of_an_earlier_pull_is_fetched_again(hub, tmp_path, file, damage):
    folder, bar = tmp_path / "d", Bar()
    folder.mkdir()
    whole = hub.files[file]
    (folder / file).write_bytes(b"" if damage == "empty" else bytes(len(whole)))
    hub_source.download(hub_source.look_up("org/tiny", "main"), folder, bar)
    assert (folder / file).read_bytes() == whole
    assert bar.at == bar.total


def test_files_that_older_tokenizers_are_built_from_are_fetched(hub, tiny, tmp_path):
    extra = ("merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "tekken.json")
    hub.files |= dict.fromkeys(extra, b"x") | {
        "additional_chat_templates/tool_use.jinja": b"{{ messages[0].content }}",
        "additional_chat_templates/evil.py": b"x",
        "1_Pooling/config.json": b"{}",
        "other/tool_use.jinja": b"x",
    }
    folder = Path(sources.pull(NAME, tmp_path, QUIET).path)
    assert {name for name in extra if (folder / name).is_file()} == set(extra)
    assert (folder / "additional_chat_templates/tool_use.jinja").is_file()
    assert (folder / "1_Pooling/config.json").is_file()
    assert not (folder / "additional_chat_templates/evil.py").exists()
    assert not (folder / "other").exists()
    assert isinstance(load_tokenizer(folder).chat_template, dict)

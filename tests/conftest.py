"""What every test may use: a tiny base model, and one thread so that two test processes do not fight."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sys
import threading
import types
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from argon2 import PasswordHasher
    from sqlalchemy.engine import URL, Engine

    from luthier.core.results.cost import MachineLoad
    from luthier.ml.planning.hardware import Benchmark, Rates
    from luthier.platform.db.backend import Backend
    from luthier.testing.servers import PostgresqlServer
    from tests.fixtures.forked_children import SessionForkServer
    from tests.fixtures.postgresql_databases import PostgresqlDatabases

# For all tests; what a folder's own conftest defines comes first.
_FIXTURES = ("api", "native", "pages", "real_vllm", "service", "shared_certificates", "store")
pytest_plugins = tuple(f"tests.fixtures.{name}" for name in _FIXTURES)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is loaded, here and in children: two test processes with two threads each wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As children of one thread have it, so that the fork server of the session can fork them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

# A fork server of its own is dear for a worker that does one job: see `shared_fork_server`.
os.environ.setdefault("LUTHIER_FORK_SERVER", "0")

# What a property takes on a busy machine says nothing about it.
settings.register_profile("luthier", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# `make test` says the same of the same commit each time: its examples follow from the test. Other runs draw new ones.
settings.register_profile("same-examples", settings.get_profile("luthier"), derandomize=True)
settings.load_profile("luthier")

_LONG = (
    *("zoo", "test_tutorials.py", "compat", "e2e", "browser", "ml", "features", "server", "core", "testing"),
    *("test_house_rules.py", "test_example_scripts.py", "test_examples.py", "platform"),
)
_FETCHING = ("e2e", "test_base_models.py")
"""Converts the model that the other files of `e2e` wait for: done before a second process comes to them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: processes take file after file, and the last one keeps the others waiting.

    All processes have them in one order, whatever order they have read them in (`pytest_collection`).
    """
    here = Path(__file__).parent

    def place(item: pytest.Item) -> tuple[int, tuple[str, ...]]:
        parts = item.path.relative_to(here).parts
        if parts == _FETCHING:
            return -1, parts
        return _LONG.index(parts[0]) if parts[0] in _LONG else len(_LONG), parts

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """The garbage collector rests meanwhile: nearly all that is made lives until the end, and it would walk over all
    of it again and again, for a third of the time that a collection of all tests takes.

    Assertions that were rewritten are kept beside the tests, also where PYTHONDONTWRITEBYTECODE is set: that is another
    third. Every second process of a run begins with the last files, so that the processes rewrite each file once
    between them.
    """
    config, here = session.config, Path(__file__).parent
    if settings.get_current_profile_name() == "same-examples":
        _draw_no_constants()
    if int(getattr(config, "workerinput", {}).get("workerid", "gw0")[2:]) % 2 and config.args == [here.name]:
        config.args = [f"{here.name}/{name}" for name in sorted(_with_tests(here), reverse=True)]
    writes_none, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        sys.dont_write_bytecode = writes_none


_TEMPLATE = pytest.StashKey[str]()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist: who shares tests out
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By files, and those with ranks to one process."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.fixtures.scheduling import Scheduling

    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist: called where tests are shared out, before a process starts
def pytest_configure_node(node: Any) -> None:
    """All processes of the run fork their servers from one that has loaded the libraries of forked programs."""
    from tests.fixtures import shared_answers
    from tests.fixtures.forked_children import SessionForkServer

    config = node.config
    if _TEMPLATE not in config.stash:
        folder = config._tmp_path_factory.getbasetemp()
        os.environ[shared_answers.FOLDER] = str(folder / "shared-answers")
        server = SessionForkServer()
        config.add_cleanup(server.close)
        server.start()
        config.stash[_TEMPLATE] = server.address
    node.workerinput["fork_template"] = config.stash[_TEMPLATE]


def pytest_configure(config: pytest.Config) -> None:
    """Where the process is one of several: what the one that has started it has loaded for all."""
    from tests.fixtures.forked_children import TEMPLATE

    if address := getattr(config, "workerinput", {}).get("fork_template"):
        os.environ[TEMPLATE] = address


def _draw_no_constants() -> None:
    """Hypothesis draws no constants of the source code.

    They are those of the modules that are loaded by then, so the examples of a test would follow from the tests before
    it. And each process would parse all of our files, and look through 35,000 constants again and again.
    """
    from hypothesis.internal.conjecture import providers

    providers._get_local_constants = lambda: providers._local_constants


def _with_tests(folder: Path) -> list[str]:
    """The files of tests and the folders in a folder."""
    return [
        one.name
        for one in folder.iterdir()
        if (one.is_dir() and one.name != "__pycache__") or (one.name.startswith("test_") and one.suffix == ".py")
    ]


def pytest_collection_finish() -> None:
    """The garbage collector leaves alone what was collected: a million objects that live until the end.

    Imported modules and test items are most of what a full collection walks over; each one would take half a second.
    What tests make is collected after 20,000 new objects in place of 700: 5% of all processor time was spent on that.
    """
    _leave_out_of_collections()
    gc.set_threshold(20_000)


_NEW_MODULES: Final = 100
_num_left_out = 0
"""How many modules were loaded when the garbage collector last began to leave all alone."""


def _leave_out_of_collections() -> None:
    """Let the garbage collector leave alone what there is now and is used."""
    global _num_left_out
    gc.collect()
    gc.freeze()
    _num_left_out = len(sys.modules)


@pytest.fixture(scope="module", autouse=True)
def libraries_left_out() -> None:
    """What the tests of earlier files have imported lives until the end, too.

    A training with workers collects before it forks them, and would walk over all of that each time.
    """
    if len(sys.modules) >= _num_left_out + _NEW_MODULES:
        _leave_out_of_collections()


@pytest.fixture(scope="session", autouse=True)
def quick_migration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[URL], Backend]]:
    """A new SQLite file is a copy of one that the migrations made in this session; yields what opens databases without.

    The migrations cost a tenth of a second, and most tests open a home of their own. Statements are compiled once a
    session, too, not once a file. `real_migration` undoes both for a test.
    """
    from luthier.platform.db import database

    backend_of = database._backend_of

    @functools.cache
    def migrated() -> tuple[bytes, Engine]:
        file = tmp_path_factory.mktemp("database") / "new.db"
        made = database.Database(backend_of(database._as_url(file)))
        database.bring_up_to_date(made._backend)
        made.close()  # the last connection: what the write-ahead log holds goes into the file
        return file.read_bytes(), made._engine

    def copied(url: URL) -> Backend:
        if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
            return backend_of(url)
        content, first = migrated()
        _begin_with(content, Path(url.database))
        made = backend_of(url)
        # The cache of compiled statements is by dialect.
        made.engine.dialect = made.engine.pool._dialect = first.dialect
        made.engine._compiled_cache = first._compiled_cache
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(database, "_backend_of", copied)
        yield backend_of


def _begin_with(content: bytes, file: Path) -> None:
    """Put a file there whole, for this user alone, where none is; leave it to others where it cannot be."""
    if file.exists() or not file.parent.is_dir():
        return
    part = file.with_name(f".{file.name}-{threading.get_ident()}")
    with suppress(OSError):  # of a folder that may not be written: the database says what is wrong
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                out.write(content)
            # A link, not a rename: of two threads that open the same new home the first one's file stays.
            os.link(part, file)
        finally:
            part.unlink()


@pytest.fixture
def real_migration(quick_migration: Callable[[URL], Backend], monkeypatch: pytest.MonkeyPatch) -> None:
    """New databases are made by the migrations, as users' are."""
    monkeypatch.setattr("luthier.platform.db.database._backend_of", quick_migration)


@pytest.fixture(scope="session", autouse=True)
def quick_disk() -> Iterator[None]:
    """Nothing waits until it is on the disk; `real_sync` undoes it for the databases of a test."""
    from tests.fixtures.quick_disk import REPLACED

    with pytest.MonkeyPatch.context() as patched:
        for where, name, value in REPLACED:
            patched.setattr(where, name, value)
        yield


@pytest.fixture
def real_sync(quick_disk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite databases are opened as users' are."""
    from tests.fixtures.quick_disk import real_connect

    monkeypatch.setattr("luthier.platform.db.sqlite._connect", real_connect)


@pytest.fixture(scope="session", autouse=True)
def quick_password_hash() -> Iterator[PasswordHasher]:
    """The hasher of passwords as users have it; tests get one of the same kind that takes little time and memory."""
    from argon2 import PasswordHasher

    from luthier.platform.auth import password_hashing

    real = password_hashing._hasher
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(password_hashing, "_hasher", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        yield real


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder that all test processes of a run share: the one above their own."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(scope="session")
def fork_server(run_folder: Path) -> Iterator[SessionForkServer]:
    """Forks programs from libraries that are loaded once a session, with the first such program."""
    from tests.fixtures import shared_answers
    from tests.fixtures.forked_children import ADDRESS, SessionForkServer

    os.environ[shared_answers.FOLDER] = str(run_folder / "shared-answers")
    shared_answers.share()
    with SessionForkServer() as server:
        os.environ[ADDRESS] = server.address
        yield server


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """What a test, and libraries that it calls, leave in the environment ends with it."""
    from tests.fixtures.forked_children import environment_kept

    with environment_kept():
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_fork_server(fork_server: SessionForkServer) -> Iterator[None]:
    """Workers in this process start their jobs from it, and `ChildProcess` what loads torch."""
    from luthier.features.training import jobs

    with pytest.MonkeyPatch.context() as patched, fork_server.forking_children():
        patched.setattr(jobs, "_fork_server", lambda *_, **__: contextlib.nullcontext(fork_server))
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_worlds(fork_server: SessionForkServer) -> Iterator[None]:
    """Processes of `in_world` have loaded what a training needs, and their own children are forked, too."""
    with pytest.MonkeyPatch.context() as patched:
        # Imported by the tests that use it alone: it loads torch.
        if (world := sys.modules.get("luthier.testing.world")) is not None:
            patched.setattr(world, "_PRELOADED", ["tests.fixtures.preloaded_world"])
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_load(fork_server: SessionForkServer) -> Iterator[None]:
    """How fast the machine is, is measured once for all processes, and every ten minutes how busy it is.

    Most tests have a home of their own, which would measure both. Where a test says how busy the machine is, it is
    asked twice a minute, as for users.
    """
    from luthier.platform.home import hardware_benchmark
    from tests.fixtures.shared_answers import share_benchmark

    @functools.lru_cache(maxsize=4)
    def load(measure: Callable[[Rates], MachineLoad], rates: Rates, period: int) -> MachineLoad:
        return measure(rates)

    def of_home(rates_folder: Path, half_minute: int) -> MachineLoad:
        from luthier.ml.planning import hardware

        is_real = hardware.present_load.__module__ == hardware.__name__
        rates = hardware_benchmark._benchmark_in(rates_folder).rates
        return load(hardware.present_load, rates, half_minute // 20 if is_real else half_minute)

    measured = hardware_benchmark._measured

    def shared(place: Path, found: Benchmark | None) -> Benchmark:
        share_benchmark()  # only now: it loads torch
        return measured(place, found)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hardware_benchmark, "_load", of_home)
        patched.setattr(hardware_benchmark, "_measured", shared)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_workers() -> Iterator[None]:
    """Workers of this process see ten times sooner that a job has ended."""
    from luthier.platform.jobs import worker

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worker, "_TICK_SECONDS", worker._TICK_SECONDS / 10)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_servers() -> Iterator[None]:
    """HTTP servers of this process see ten times sooner that they are to end, and that their connections are closed."""
    # Loaded by those that collect its tests; to load it takes longer than a server or two take to end.
    if (server := sys.modules.get("uvicorn.server")) is None:
        yield
        return
    import asyncio

    quick = types.ModuleType("asyncio")
    quick.__dict__.update(vars(asyncio), sleep=lambda seconds: asyncio.sleep(seconds / 10))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(server, "asyncio", quick)
        yield


@pytest.fixture
def real_password_hash(quick_password_hash: PasswordHasher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords are hashed as users' are."""
    monkeypatch.setattr("luthier.platform.auth.password_hashing._hasher", quick_password_hash)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A PostgreSQL server of this session's own; tests that ask for it are skipped where none is installed."""
    from luthier.testing.servers import postgresql_server, programs_folder

    if (programs := programs_folder()) is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with postgresql_server(programs) as server:
        yield server


@pytest.fixture(scope="session")
def new_postgresql(postgresql: PostgresqlServer) -> PostgresqlDatabases:
    """Gives the URLs of databases with empty tables, as the migrations make them."""
    from luthier.platform.db.database import Database
    from tests.fixtures.postgresql_databases import PostgresqlDatabases

    migrated = postgresql.new_database()
    Database.open(migrated).close()
    return PostgresqlDatabases(postgresql, migrated)


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    """The address of a server of S3's protocol; tests that ask for it are skipped where it is not installed."""
    pytest.importorskip("s3fs", reason="needs the extra `s3`")
    pytest.importorskip("moto.server", reason="needs moto[server]")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        # moto keeps its buckets in the process, not in the server: those of earlier test files are still there.
        with urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"") as answer:
            assert answer.status == 200
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def empty_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Of a bucket and a secret: a client that sees the bucket, made empty, and the environment as operators set it."""
    import boto3

    def make(bucket: str, secret: str) -> Any:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket=bucket)
        for entry in client.list_objects_v2(Bucket=bucket).get("Contents", []):
            client.delete_object(Bucket=bucket, Key=entry["Key"])
        return client

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with a tiny random Llama and a chat template; shared, never written to."""
    from luthier.testing.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_thinker(run_folder: Path) -> Callable[..., Path]:
    """Of a chat template: a model that thinks before it answers; trained once a test run, shared, never written to."""
    from luthier.core.ids import sha256_document
    from luthier.core.system.files import file_lock
    from luthier.testing.tiny import THINKING_TEMPLATE, make_tiny_thinker

    place = run_folder / "tiny-thinkers"
    place.mkdir(exist_ok=True)

    def of(template: str | None = THINKING_TEMPLATE) -> Path:
        folder = place / sha256_document(template)[:12]
        with file_lock(place / f"{folder.name}.lock", what=f"the thinker {folder.name}", timeout_seconds=120):
            if not (folder / "made").is_file():
                make_tiny_thinker(folder / "model", template)
                (folder / "made").touch()
        return folder / "model"

    return of


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data that lies beside the project in our workshop."""
    folder = Path(os.environ.get("LUTHIER_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public data at {folder}; set LUTHIER_SHARED_DATA")
    return folder

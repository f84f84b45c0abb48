"""The home and what it opens."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from annotated_types import Le
from pydantic import ValidationError

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.stream import EngineSettings, SpeculativeConfig
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.testing.records import make_plan, make_record
from luthier.testing.servers import PostgresqlServer


def test_the_home_asked_for_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "from-environment"))
    with Context.open(tmp_path / "asked") as context:
        assert context.home == tmp_path / "asked"
    with Context.open() as context:
        assert context.home == tmp_path / "from-environment"


def test_without_a_word_the_home_is_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LUTHIER_HOME", "")
    with Context.open() as context:
        assert context.home == tmp_path / ".luthier"
    with Context.open(Path("~/other")) as context:
        assert context.home == tmp_path / "other"


def test_an_argument_comes_before_the_environment_and_no_other_place_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LUTHIER_PUBLIC_URL=https://file.example.org\nLUTHIER_MAX_FILE_BYTES=7\n")
    monkeypatch.setenv("LUTHIER_PUBLIC_URL", "https://environment.example.org")
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "from-environment"))
    read = Settings.read(tmp_path / "asked")
    assert (read.public_url, read.home) == ("https://environment.example.org", tmp_path / "asked")
    assert read.max_file_bytes == 8 << 30
    sources = Settings.settings_customise_sources(Settings, *("init", "env", "dotenv", "secrets"))  # type: ignore[arg-type]
    assert [str(source) for source in sources] == ["init", "env"]


def test_a_relative_home_stays_the_same_wherever_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Context.open(Path("home")) as context:
        assert context.settings.database_path == tmp_path / "home" / "luthier.db"
        assert context.home.is_absolute()


def test_opening_leaves_an_empty_folder_and_makes_the_database_when_it_is_needed(tmp_path: Path) -> None:
    with Context.open(tmp_path / "home") as context:
        assert list((tmp_path / "home").iterdir()) == []
        assert context.runs.list() == []
        assert context.evaluations.list() == []
        assert context.settings.database_path.is_file()


def test_a_database_elsewhere_is_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgresql: PostgresqlServer
) -> None:
    url = postgresql.new_database()
    monkeypatch.setenv("LUTHIER_DATABASE", url)
    with Context.open(tmp_path / "home") as context:
        context.runs.create(make_record("run-20261125-093000-aaaaaa"), make_plan())
        assert "tuning" not in repr(context.settings)
    with Context.open(tmp_path / "another") as context:
        assert [record.run_id for record in context.runs.list()] == ["run-20261125-093000-aaaaaa"]
        assert not context.settings.database_path.exists()


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a folder")
    with pytest.raises(RequestError, match="cannot be written"):
        Context.open(tmp_path / "home")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o500)
    with pytest.raises(RequestError, match="Permission denied"):
        Context.open(tmp_path / "home")


@pytest.mark.parametrize("run_id", ["..", "run-../../etc", "", "eval-20261125-093000-aaaaaa"])
def test_what_is_no_id_never_becomes_a_path(tmp_path: Path, run_id: str) -> None:
    with Context.open(tmp_path) as context, pytest.raises(NotFoundError, match="not the id of a run"):
        context.settings.run_folder(run_id)


def test_opening_a_home_needs_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from luthier.platform.home.context import Context;"
        "Context.open(Path(sys.argv[1])).runs.list();"
        "print({'torch', 'transformers', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LUTHIER_TRUSTED_PROXIES", "10.0.0.1 proxy.example", "'proxy.example' is not an address or a network"),
        ("LUTHIER_TRUSTED_PROXIES", "*", "is not an address"),
        ("LUTHIER_TEACHER", "http://host/v1", "expected http"),
        ("LUTHIER_TEACHER", "https://key@host/v1#m", "expected http"),
        ("LUTHIER_TEACHER_USD_PER_MILLION_NEW_TOKENS", "1", "one price without the other"),
        ("LUTHIER_LEASE_SECONDS", "soon", "valid number"),
        ("LUTHIER_LEASE_SECONDS", "inf", "finite number"),
        ("LUTHIER_SERVING_IDLE_SECONDS", "nan", "finite number"),
        ("LUTHIER_UPLOAD_WAIT_SECONDS", "1e18", "less than or equal to"),
        ("LUTHIER_TEACHER_BATCH_DISCOUNT_PERCENT", "nan", "finite number"),
        ("LUTHIER_MAX_NUM_BATCHED_TOKENS", "8", "it needs 32 or more"),
        ("LUTHIER_SPECULATIVE_CONFIG", "ngram", "JSON"),
        ("LUTHIER_SPECULATIVE_CONFIG", '{"method": "ngram"}', "num_speculative_tokens: Field required"),
        ("LUTHIER_SERVING_ENGINE", "vllm", "'auto' or 'transformers'"),
        ("LUTHIER_SERVING_QUANTIZATION", "q4_0", "'auto', 'float16' or 'q8_0'"),
    ],
)
def test_a_setting_that_cannot_be_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match=words) as caught:
        Context.open(tmp_path)
    assert caught.value.came.startswith(f"the environment variable {name}: ")


def test_engines_are_opened_with_the_settings_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings.read(tmp_path).engine_settings == EngineSettings()
    monkeypatch.setenv("LUTHIER_MAX_NUM_SEQS", "48")
    monkeypatch.setenv("LUTHIER_MAX_NUM_BATCHED_TOKENS", "64")
    monkeypatch.setenv("LUTHIER_ENABLE_PREFIX_CACHING", "false")
    monkeypatch.setenv("LUTHIER_SPECULATIVE_CONFIG", '{"method": "ngram", "num_speculative_tokens": 4}')
    assert Settings.read(tmp_path).engine_settings == EngineSettings(
        max_num_seqs=48,
        max_num_batched_tokens=64,
        enable_prefix_caching=False,
        speculative_config=SpeculativeConfig(method="ngram", num_speculative_tokens=4),
    )
    monkeypatch.setenv("LUTHIER_MAX_NUM_SEQS", "65")
    with pytest.raises(RequestError, match=r"LUTHIER_MAX_NUM_BATCHED_TOKENS: .*it needs 65 or more"):
        Settings.read(tmp_path)


def test_no_setting_is_infinite_and_the_longest_time_is_one_that_can_be_waited_for() -> None:
    numbers = {name for name, field in Settings.model_fields.items() if field.annotation in (float, float | None)}
    seconds = {name for name in numbers if name.endswith("_seconds")}
    assert {"lease_seconds", "upload_wait_seconds", "serving_idle_seconds"} <= seconds
    for name in numbers - {"teacher_usd_per_million_new_tokens", "teacher_usd_per_million_prompt_tokens"}:
        for value in ("inf", "nan"):
            with pytest.raises(ValidationError, match="finite number"):
                Settings.model_validate({name: value})
    for name in seconds:
        (most,) = [rule.le for rule in Settings.model_fields[name].metadata if isinstance(rule, Le)]
        assert isinstance(most, float)
        assert most < threading.TIMEOUT_MAX
        assert timedelta(seconds=most)

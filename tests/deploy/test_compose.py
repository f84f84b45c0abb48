"""compose.yaml: what it names is there, waits for what it needs, and is reached by this machine alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.settings import check_command, unknown_variables
from tests.deploy.test_dockerfile import stages
from tests.vacuous import nonempty

from luthier.server.service import API_GRACE_SECONDS, WORKER_GRACE_SECONDS

ROOT = Path(__file__).parents[2]
OURS = ("prepare", "server", "worker", "worker-gpu")
ELSEWHERE = {"AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HOME"}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return found


def test_commands_settings_and_targets_exist() -> None:
    services = compose()["services"]
    for name in nonempty(OURS):
        one = services[name]
        check_command(one["command"])
        assert unknown_variables(one["environment"], ELSEWHERE) == [], name
        assert one["volumes"] == ["home:/data"]
        assert (one["read_only"], one["cap_drop"]) == (True, ["ALL"])


def test_each_image_is_built_by_one_service_that_all_others_of_it_wait_for() -> None:
    """Compose builds in parallel: two that build the same image end with "already exists"."""
    services = compose()["services"]
    builders = {name: one["image"] for name, one in services.items() if "build" in one}
    assert sorted(builders.values()) == ["luthier:cpu", "luthier:cuda"]
    for name, image in builders.items():
        assert services[name]["build"]["target"] == image.partition(":")[2]
        assert services[name]["build"]["target"] in stages()
    for name in nonempty(OURS):
        assert services[name]["image"] in builders.values(), name
        needed, waits = {name}, list(services[name]["depends_on"])
        while waits:
            needed.add(waits[-1])
            waits += services[waits.pop()].get("depends_on", {})
        assert services[name]["image"] in {builders[one] for one in needed & set(builders)}, name


def test_each_waits_for_what_it_needs() -> None:
    services = compose()["services"]
    waits = [
        (name, other, wanted["condition"])
        for name, one in services.items()
        for other, wanted in one.get("depends_on", {}).items()
    ]
    for name, other, condition in nonempty(waits):
        if condition == "service_healthy":
            assert services[other]["healthcheck"]["test"], f"{name} waits for {other}, which has no check"
        else:
            assert condition == "service_completed_successfully"
            assert services[other]["restart"] == "no", f"{name} waits for the end of {other}, which never ends"
    # While a new database is made, its image has a server at the socket alone, which is stopped again.
    assert "--host 127.0.0.1" in services["database"]["healthcheck"]["test"][1]
    assert set(services["prepare"]["depends_on"]) == {"database", "bucket"}
    for name in nonempty(("server", "worker", "worker-gpu")):
        assert set(services[name]["depends_on"]) == {"prepare"}


def test_the_server_has_no_worker_and_workers_have_no_server() -> None:
    services = compose()["services"]
    command = services["server"]["command"]
    assert command[command.index("--workers") + 1] == "0"
    assert services["worker"]["command"] == services["worker-gpu"]["command"] == ["worker"]
    for name in nonempty(("prepare", "worker", "worker-gpu", "bucket")):
        assert services[name]["healthcheck"] == {"disable": True}, f"{name} answers no HTTP"


def test_the_client_of_the_store_reads_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    session = pytest.importorskip("botocore.session", reason="needs the extra `s3`")
    given = {name: value for name, value in compose()["services"]["server"]["environment"].items() if "AWS_" in name}
    assert len(given) == 4
    for name in [one for one in os.environ if one.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    client = session.Session().create_client("s3")
    assert (client.meta.region_name, client.meta.endpoint_url) == ("us-east-1", "http://store:8333")
    assert client._request_signer._credentials.secret_key == given["AWS_SECRET_ACCESS_KEY"]


def test_a_stop_leaves_time_for_a_checkpoint() -> None:
    services = compose()["services"]
    for name in nonempty(("worker", "worker-gpu")):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > WORKER_GRACE_SECONDS
    # Long answers may take up to 600 s (LUTHIER_DRAIN_SECONDS): the file that may say so is not read by Compose itself.
    assert int(services["server"]["stop_grace_period"].removesuffix("s")) > 600 + API_GRACE_SECONDS


def test_settings_of_a_reverse_proxy_reach_the_server_and_all_others_come_from_a_file() -> None:
    services = compose()["services"]
    for name in nonempty(OURS):
        environment = services[name]["environment"]
        for setting in nonempty(("LUTHIER_TRUSTED_PROXIES", "LUTHIER_PUBLIC_URL")):
            assert environment[setting] == f"${{{setting}:-}}", name
        assert environment["LUTHIER_ALLOWED_HOSTS"].startswith("${LUTHIER_ALLOWED_HOSTS:-")
        assert services[name]["env_file"] == [{"path": "luthier.env", "required": False}]


def test_git_ignores_the_files_with_passwords() -> None:
    ignored = {line.lstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    assert {".env", "luthier.env"} <= ignored


def test_only_the_server_is_reached_and_by_this_machine_alone() -> None:
    published = {name: one["ports"] for name, one in compose()["services"].items() if "ports" in one}
    assert published == {"server": ["127.0.0.1:8520:8520"]}


def test_images_have_a_version_and_secrets_no_default() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    for name, one in nonempty(compose()["services"].items()):
        assert re.fullmatch(r"[a-z/]+:[\w.-]+", one["image"]), name
        assert not one["image"].endswith(":latest")
    for name in nonempty(("POSTGRES_PASSWORD", "LUTHIER_ADMIN_KEY")):
        assert f"${{{name}:?" in text
        assert f"${{{name}:-" not in text


def test_volumes_and_configs_are_declared() -> None:
    found = compose()
    used = {volume.split(":")[0] for one in found["services"].values() for volume in one.get("volumes", [])}
    assert used == set(found["volumes"])
    named = {one["source"] for service in found["services"].values() for one in service.get("configs", [])}
    assert named == set(found["configs"])


def test_the_one_shot_of_the_bucket_is_a_program() -> None:
    bucket = compose()["services"]["bucket"]
    assert bucket["entrypoint"] == ["python", "-c"]
    compile(bucket["command"][0], "bucket", "exec")
    assert compose()["services"]["server"]["environment"]["LUTHIER_ARTIFACTS"].startswith("s3://luthier/")

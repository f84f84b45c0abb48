"""The rule for addresses, and the list of all modules that can open a connection: who names where to."""

from __future__ import annotations

import ast
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import luthier
from luthier.platform.notifications.outgoing import is_own, why_forbidden

SOURCE: Final = Path(luthier.__file__).parent
CLIENTS: Final = {
    "aiohttp", "asyncio.open_connection", "boto3", "botocore", "datasets", "ftplib", "fsspec", "http.client", "httpx",
    "httpx2", "huggingface_hub", "imaplib", "lm_eval", "nntplib", "opentelemetry", "paramiko", "poplib", "psycopg",
    "ray", "requests", "s3fs", "smtplib", "socket", "telnetlib", "urllib.request", "urllib3", "websockets", "xmlrpc",
}  # fmt: skip
"""Packages by which Python opens a connection."""
MAY_IMPORT: Final = re.compile(
    rf"(?:^|;)\s*(?:import|from)\s.*\b(?:{'|'.join({client.partition('.')[0] for client in CLIENTS})})\b", re.MULTILINE
)
"""A statement that imports one of them, or something else with such a name in it."""

REMOTE: Final = {"platform/notifications/outgoing.py"}
"""A remote caller names the address: every one goes through `why_forbidden`, resolved once and pinned."""
CHECKED: Final = {
    "platform/http/vetted_transport.py": "addresses of imports; each request is checked by `vetted_address`",
}
"""A remote caller names the address, and the check is that of `REMOTE`."""
OPERATOR: Final = {
    "ml/export/bundle/push.py": "luthier push hf://..., at the command line; luthier push URL, at the command line",
    "ml/inference/lm_eval_model.py": "tasks of lm-eval, which no server carries out for a caller",
    "ml/inference/openai/messages.py": "reads what openai_http has fetched",
    "ml/inference/openai/chunks.py": "reads what openai_http has fetched",
    "ml/inference/openai/batch_api.py": "teachers by URL with --batch, at the command line",
    "ml/inference/openai/http.py": "teachers and judges by URL, at the command line",
    "ml/inference/openai/stream.py": "luthier serve before another server, at the command line",
    "ml/inference/models/hub.py": "HF_ENDPOINT; hub: names at the command line, its errors, its token",
    "features/suites/lm_eval.py": "tasks of lm-eval, which no server carries out for a caller",
    "platform/notifications/mails.py": "LUTHIER_SMTP",
    "platform/auth/oidc.py": "LUTHIER_OIDC_ISSUER, and the endpoints in that provider's own configuration",
    "features/training/launchers/ray.py": "luthier train --on ray://..., at the command line",
    "features/serving/chat.py": "luthier chat URL, at the command line",
    "features/traffic/log.py": "OTEL_EXPORTER_OTLP_ENDPOINT",
    "core/system/artifact_transfer.py": "LUTHIER_ARTIFACTS; s3://, gs:// and az:// in recipes, at the command line; "
    "imports from places of LUTHIER_IMPORT_SOURCES",
    "platform/files/artifacts.py": "LUTHIER_ARTIFACTS",
    "ml/training/distributed.py": "the launcher: MASTER_ADDR",
    "ml/training/ray_train.py": "luthier train --on ray, at the command line",
    "features/training/checkpoint_uploads/bucket.py": "LUTHIER_CHECKPOINTS; --checkpoints, at the command line",
    "ml/data/files/ray_workers.py": "RAY_ADDRESS; luthier data ... --on ray, at the command line",
    # Recipes of remote callers name files of their project alone (`features/files/references.py`).
    # Imports of remote callers are looked up by `remote_imports.look_up_allowed` alone.
    "ml/data/remote/address.py": "https:// in recipes and luthier data fetch, at the command line; imports hand in a "
    "transport of CHECKED",
    "ml/data/remote/hub_dataset.py": "HF_ENDPOINT; hub: in recipes, luthier data fetch and imports",
}
OWN: Final = {
    "ml/inference/llama_cpp/server.py": "a child process on loopback",
    "ml/inference/vllm/engine.py": "a child process on loopback",
    "ml/inference/vllm/adapters.py": "a child process on loopback",
    "ml/inference/vllm/process.py": "a child process on loopback",
    "ml/export/runtimes/vllm_runtime.py": "a child process on loopback",
    "features/serving/borrowed_engine.py": "a socket in the home, to the server that lends its engine",
    "features/serving/engine_lending.py": "a listening socket in the home",
    "features/training/checkpoint_uploads/lease.py": "the name of this machine",
    "core/system/facility_list.py": "whether there are sockets in the file system",
    "platform/processes/supervisor.py": "its own server on loopback",
    "platform/notifications/outgoing.py": "a datagram socket that sends nothing",
    "platform/http/socket.py": "the listening socket",
    "ml/inference/models/architecture.py": "an error class of huggingface_hub, to catch it",
    "ml/inference/models/smaller_models.py": "an error class of huggingface_hub, to catch it",
    "server/standalone.py": "the listening socket",
    "core/child_process/process.py": "a pair of sockets to its child process",
    "server/service.py": "its own API on loopback",
    "core/child_process/channel.py": "the pair of sockets to its parent",
    "core/child_process/handover.py": "a pair of sockets to its child process, or a connection of the loopback",
    "core/system/facilities.py": "waits for a socket of its caller",
    "core/child_process/forked_workers.py": "a pair of sockets to each of its workers",
    "core/child_process/fork_client.py": "a pair of sockets to its fork server",
    "core/child_process/fork_server.py": "the pair of sockets to its owner",
    "platform/notifications/webhooks.py": "numeric hosts are parsed, nothing is looked up",
    "testing/servers.py": "a database of the tests",
}
NO_REMOTE_CALLER: Final = (
    "find_teacher",
    "open_judge",
    "open_remote_chat_client",
    "find_system",
    "url_to_fs",
    "open_root",
    "fetch_rows",
    "look_up_address",
    "look_up_dataset",
    "look_up_objects",
    "look_up",
    "fetch_found",
)
"""What takes a URL from whoever calls it: no module of the API or the pages may."""


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    text = path.read_text(encoding="utf-8")
    if not MAY_IMPORT.search(text):  # most files, which need not be parsed
        return found
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {client for client in CLIENTS if any(one == client or one.startswith(f"{client}.") for one in found)}


def test_every_module_that_opens_connections_says_who_names_the_address() -> None:
    sources = {path.relative_to(SOURCE).as_posix(): path for path in SOURCE.rglob("*.py")}
    opening = {name for name, path in sources.items() if imported(path)}
    assert len(opening) > 10
    assert opening == REMOTE | CHECKED.keys() | OPERATOR.keys() | OWN.keys(), (
        "put a new one into the right list, and hold it to the rule"
    )


def test_what_a_remote_caller_names_goes_through_the_rule() -> None:
    for name in REMOTE:
        text = (SOURCE / name).read_text(encoding="utf-8")
        assert "why_forbidden(" in text
        assert "getaddrinfo" in text
    for name in CHECKED:
        assert "vetted_address(" in (SOURCE / name).read_text(encoding="utf-8")


def test_only_one_place_looks_up_what_a_remote_caller_names() -> None:
    known = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(r"import .*\blook_up(_address|_dataset|_objects)?\b", path.read_text(encoding="utf-8"))
    }
    assert known == {"ml/data/remote/cache.py", "features/datasets/remote_imports.py"}
    text = (SOURCE / "features/datasets/remote_imports.py").read_text(encoding="utf-8")
    look_up = text.partition("def look_up_allowed")[2].partition("\ndef ")[0]
    assert look_up.index("check_allowed(settings, address)") < look_up.index("look_up(address, partial(VettedTransport")


def test_no_page_and_no_route_hands_a_url_to_what_takes_one() -> None:
    surface = re.compile(r"(^|[/_])(api|pages|http|ui|server)([/_.]|$)")  # routes, pages, and what they share
    checked = [path for path in SOURCE.rglob("*.py") if surface.search(path.relative_to(SOURCE).as_posix())]
    assert len(checked) > 80
    for path in checked:
        text = path.read_text(encoding="utf-8")
        if any(name in text for name in NO_REMOTE_CALLER):  # the others are not parsed
            names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
            assert not names & set(NO_REMOTE_CALLER), path


def test_loopback_is_an_address_of_this_machine() -> None:
    assert is_own(ip_address("127.0.0.1"))
    assert not is_own(ip_address("192.0.2.1"))


def test_the_words_name_the_address() -> None:
    assert (
        why_forbidden(ip_address("fd00:ec2::254"), may_reach_private=True) == "fd00:ec2::254, which no webhook may call"
    )
    scoped = why_forbidden(ip_address("fe80::1%eth0"), may_reach_private=True)
    assert scoped is not None
    assert scoped.startswith("fe80::1%eth0")
    assert why_forbidden(ip_address("::1%lo"), may_reach_private=True) is None

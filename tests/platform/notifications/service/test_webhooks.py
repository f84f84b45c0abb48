"""Webhooks told over real sockets: signed as receivers check it, tried again, and never where they must not go."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from tests.vacuous import nonempty

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.platform.db.tables import webhook_deliveries
from luthier.platform.db.tables import webhooks as webhook_table
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.platform.jobs.records import Job
from luthier.platform.notifications import outgoing, webhooks
from luthier.platform.notifications import webhooks as webhook_sender
from luthier.platform.notifications.outgoing import why_forbidden


class Receiver:
    """Keeps what it is sent, and answers with the statuses that it is given, the last one forever."""

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], str]] = []
        self.statuses = [200]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                outer.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status = outer.statuses.pop(0) if len(outer.statuses) > 1 else outer.statuses[0]
                self.send_response(status)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?a=b"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """A home whose webhooks may reach this machine."""
    (tmp_path / "home").mkdir()
    settings = Settings(home=tmp_path / "home", webhooks_may_reach_private=True)
    with Context.open(settings.home) as plain, Context(settings, plain.progress) as opened:
        yield opened


def end_a_job(context: Context, job_id: str = "ftjob-1") -> None:
    context.jobs.submit(Job(job_id=job_id, kind="train", document={}, run_id=f"run-{job_id}"))
    context.jobs.ask(job_id, "cancel")


def send(context: Context) -> int:
    with ThreadPoolExecutor(2) as pool:
        return webhook_sender.send_due(context, pool)


def be_due(context: Context, **columns: float) -> None:
    with context.database.write() as connection:
        connection.execute(update(webhook_deliveries).values(next_at=1.0, **columns))


def told(context: Context, webhook_id: str) -> tuple[str, int, str | None]:
    (one,) = webhooks.list_deliveries(context, DEFAULT_PROJECT, webhook_id, limit=5)
    return one.status, one.num_attempts, one.last_answer


def test_the_openai_package_accepts_what_is_sent(context: Context, receiver: Receiver) -> None:
    import openai

    _, secret = webhooks.create_webhook(context, Caller(), receiver.url)
    end_a_job(context)
    assert send(context) == 1
    ((headers, body),) = receiver.received
    with openai.OpenAI(api_key="none") as client:
        event = client.webhooks.unwrap(body, headers, secret=secret)
        assert event.type == "fine_tuning.job.cancelled"
        assert event.data.id == "ftjob-1"
        for wrong in (body.replace("ftjob-1", "ftjob-2"), body + " "):
            with pytest.raises(openai.InvalidWebhookSignatureError):
                client.webhooks.unwrap(wrong, headers, secret=secret)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body, headers, secret=webhooks.create_webhook(context, Caller(), receiver.url)[1])


def test_the_example_of_the_specification() -> None:
    """The values that the reference libraries of Standard Webhooks test themselves with."""
    secret, message_id = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    signature = webhooks.sign(secret, message_id, 1614265330, '{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_is_refused_is_tried_again_with_the_same_id_and_body(context: Context, receiver: Receiver) -> None:
    made, _ = webhooks.create_webhook(context, Caller(), receiver.url)
    receiver.statuses = [500, 302, 204]
    end_a_job(context)
    for number, answer in ((1, "HTTP 500"), (2, "HTTP 302")):
        assert send(context) == 1
        assert told(context, made.webhook_id) == ("pending", number, answer)
        assert send(context) == 0, "not before its time"
        be_due(context)
    send(context)
    assert told(context, made.webhook_id) == ("delivered", 3, "HTTP 204")
    assert len({(headers["webhook-id"], body) for headers, body in receiver.received}) == 1
    assert len(receiver.received) == 3, "no redirect was followed"


def test_after_three_days_it_is_given_up(context: Context, receiver: Receiver) -> None:
    made, _ = webhooks.create_webhook(context, Caller(), receiver.url)
    receiver.statuses = [503]
    end_a_job(context)
    context.webhooks.announce()
    be_due(context, created_at=time.time() - webhook_sender.GIVE_UP_SECONDS)
    send(context)
    assert told(context, made.webhook_id) == ("failed", 1, "HTTP 503")
    be_due(context)
    assert send(context) == 0


def test_who_answers_gone_is_asked_no_more(context: Context, receiver: Receiver) -> None:
    webhooks.create_webhook(context, Caller(), receiver.url)
    receiver.statuses = [410]
    end_a_job(context)
    send(context)
    assert webhooks.list_webhooks(context, DEFAULT_PROJECT) == []


def test_waits_grow_to_half_a_day_and_differ_by_chance() -> None:
    waits = [webhook_sender.wait_seconds(number) for number in range(1, 12)]
    assert all(nonempty(4 * 4**number <= wait <= 6 * 4**number for number, wait in enumerate(waits[:5])))
    assert max(waits) <= 12 * 3600 * 1.2
    assert len(set(waits)) == len(waits)


def test_the_thread_tells_by_itself_and_ends(context: Context, receiver: Receiver) -> None:
    made, _ = webhooks.create_webhook(context, Caller(), receiver.url)
    with webhook_sender.WebhookSender(context):
        webhooks.send_test(context, DEFAULT_PROJECT, made.webhook_id)
        deadline = time.monotonic() + 120
        while told(context, made.webhook_id)[0] != "delivered":
            assert time.monotonic() < deadline
            time.sleep(0.02)
    event = json.loads(receiver.received[0][1])
    assert (event["type"], event["data"]) == ("luthier.webhook.test", {"id": made.webhook_id})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("webhook")]


@pytest.mark.parametrize(
    ("address", "is_forbidden", "is_always_forbidden"),
    [
        ("8.8.8.8", False, False),
        ("2606:4700::1111", False, False),
        ("127.0.0.1", True, False),
        ("10.1.2.3", True, False),
        ("192.168.0.1", True, False),
        ("172.16.0.1", True, False),
        ("100.64.0.1", True, False),
        ("::1", True, False),
        ("fd00::1", True, False),
        ("::ffff:127.0.0.1", True, False),
        ("::ffff:8.8.8.8", False, False),
        ("64:ff9b::a00:1", True, False),
        ("2002:7f00:1::", True, False),
        ("169.254.169.254", True, True),
        ("::ffff:169.254.169.254", True, True),
        ("64:ff9b::a9fe:a9fe", True, True),
        ("fe80::1", True, True),
        ("224.0.0.1", True, True),
        ("0.0.0.0", True, True),
        ("::", True, True),
    ],
)
def test_where_no_webhook_may_go(address: str, is_forbidden: bool, is_always_forbidden: bool) -> None:
    found = ip_address(address)
    assert (why_forbidden(found, may_reach_private=False) is not None) == is_forbidden
    assert (why_forbidden(found, may_reach_private=True) is not None) == is_always_forbidden


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]"])
def test_every_name_of_this_machine_is_refused_when_it_is_called(receiver: Receiver, host: str) -> None:
    url = f"http://{host}:{receiver.server.server_port}/"
    with pytest.raises(outgoing.UnreachableError, match="leads to"):
        outgoing.post(url, {}, b"{}", may_reach_private=False)
    assert receiver.received == []


def test_a_name_that_leads_elsewhere_the_second_time_gains_nothing(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["198.51.100.7", "127.0.0.1"]
    asked: list[object] = []

    def look_up(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers[len(asked) - 1], port))]

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        raise ConnectionRefusedError(f"{address[0]} refused")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(outgoing, "why_forbidden", lambda address, **_: "x" if str(address) == "127.0.0.1" else None)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(outgoing.UnreachableError, match=r"198\.51\.100\.7 refused"):
        outgoing.post("http://rebinds.example/", {}, b"{}", may_reach_private=False)
    assert len(asked) == 1, "it was looked up once, and what was looked at was called"


def test_who_answers_a_byte_now_and_then_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(b"H")
                        time.sleep(0.05)
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(outgoing.UnreachableError):
            outgoing.post(url, {}, b"{}", may_reach_private=True, most_seconds=0.4)
        assert time.monotonic() - began < outgoing.MAX_SECONDS
        thread.join()


def test_over_tls_only_who_proves_to_be_that_host(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    receiver.server.socket = tls.wrap_socket(receiver.server.socket, server_side=True)
    url = f"https://localhost:{receiver.server.server_port}/"
    with pytest.raises(outgoing.UnreachableError, match="certificate verify failed"):
        outgoing.post(url, {}, b"{}", may_reach_private=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert outgoing.post(url, {}, b"{}", may_reach_private=True) == 200
    with pytest.raises(outgoing.UnreachableError, match="certificate verify failed"):
        outgoing.post(url.replace("localhost", "127.0.0.1"), {}, b"{}", may_reach_private=True)
    assert receiver.received[0][0]["host"] == f"localhost:{receiver.server.server_port}"


def make_certificate(folder: Path) -> Path:
    """A key and a certificate for `localhost` in one file, signed by itself."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1)
    builder = builder.not_valid_before(datetime.now(UTC) - timedelta(1)).not_valid_after(
        datetime.now(UTC) + timedelta(1)
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
    made = builder.sign(key, hashes.SHA256())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "both.pem"
    path.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize(
    "url",
    ["ftp://a.example/", "file:///etc/passwd", "http://", "http:///x", "http://a b/", "http://a.example:0/", "x",
     "http://a.example:99999/", "http://a.example/\n", "http://[::1", "http://ä.example/", f"http://a/{'x' * 2000}"],
)  # fmt: skip
def test_an_url_that_cannot_be_is_refused(context: Context, url: str) -> None:
    with pytest.raises(RequestError, match="url"):
        webhooks.create_webhook(context, Caller(), url)


@pytest.mark.parametrize("url", ["http://u:p@a.example/", "http://u@a.example/", "http://169.254.169.254/latest"])
def test_an_url_that_may_not_be_is_refused_when_it_is_made(context: Context, url: str) -> None:
    with pytest.raises(RequestError, match="the webhook's url"):
        webhooks.create_webhook(context, Caller(), url)


def test_without_a_word_about_it_no_private_address(tmp_path: Path) -> None:
    with Context.open(tmp_path) as plain, pytest.raises(RequestError, match="not on the public internet"):
        webhooks.create_webhook(plain, Caller(), "http://127.0.0.1/")


def test_a_project_has_so_many_and_no_more(context: Context) -> None:
    for _ in range(webhooks.MOST_OF_A_PROJECT):
        webhooks.create_webhook(context, Caller(), "https://a.example/")
    with pytest.raises(ConflictError, match="20 webhooks already"):
        webhooks.create_webhook(context, Caller(), "https://a.example/")
    with pytest.raises(NotFoundError, match="is not the id"):
        webhooks.remove_webhook(context, Caller(), "\0")


def test_two_requests_at_the_same_time_make_no_more(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(webhooks.MOST_OF_A_PROJECT - 1):
        webhooks.create_webhook(context, Caller(), "https://a.example/")
    new_id = webhooks.new_id

    def meanwhile(kind: str) -> str:
        monkeypatch.setattr(webhooks, "new_id", new_id)
        webhooks.create_webhook(context, Caller(), "https://a.example/other")
        return new_id(kind)

    monkeypatch.setattr(webhooks, "new_id", meanwhile)
    with pytest.raises(ConflictError, match="20 webhooks already"):
        webhooks.create_webhook(context, Caller(), "https://a.example/")
    kept = webhooks.list_webhooks(context, "default")
    assert len(kept) == webhooks.MOST_OF_A_PROJECT
    assert kept[0].url == "https://a.example/other"


@pytest.mark.parametrize(
    "do",
    [
        lambda context, _: webhooks.create_webhook(context, Caller(), "https://example.com/hook"),
        lambda context, webhook_id: webhooks.remove_webhook(context, Caller(), webhook_id),
    ],
    ids=["created", "removed"],
)
def test_a_webhook_changes_with_its_entry_in_the_audit_log_or_not_at_all(
    context: Context, monkeypatch: pytest.MonkeyPatch, do: Callable[[Context, str], object]
) -> None:
    kept = webhooks.create_webhook(context, Caller(), "https://example.com/kept")[0]
    entries = [one.action for one in context.audit_log.newest(limit=9)]
    assert entries == ["webhook.created"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("luthier.platform.audit_log.service.append_audit_event", killed)
        with pytest.raises(KeyboardInterrupt):
            do(context, kept.webhook_id)
    assert webhooks.list_webhooks(context, DEFAULT_PROJECT) == [kept]
    webhooks.remove_webhook(context, Caller(), kept.webhook_id)
    assert [one.action for one in context.audit_log.newest(limit=9)] == ["webhook.removed", "webhook.created"]


def break_secret(context: Context, webhook_id: str, secret: str) -> None:
    with context.database.write() as connection:
        connection.execute(update(webhook_table).where(webhook_table.c.webhook_id == webhook_id).values(secret=secret))


@pytest.mark.parametrize("secret", ["whsec_abc", "whsec_", "", "whsec_ä", "whsec_!!!!AAAA"])
def test_a_secret_that_cannot_be_decoded_fails_its_own_message_alone(
    context: Context, receiver: Receiver, secret: str
) -> None:
    bad, _ = webhooks.create_webhook(context, Caller(), receiver.url)
    good, _ = webhooks.create_webhook(context, Caller(), receiver.url)
    break_secret(context, bad.webhook_id, secret)
    end_a_job(context)
    assert send(context) == 2
    assert told(context, good.webhook_id) == ("delivered", 1, "HTTP 200")
    status, num_attempts, answer = told(context, bad.webhook_id)
    assert (status, num_attempts) == ("failed", 1)
    assert answer is not None
    assert "the stored secret of the webhook cannot be decoded" in answer
    assert "create it again" in answer
    assert len(receiver.received) == 1
    be_due(context)
    assert send(context) == 0, "no later attempt can sign it"


def test_a_secret_that_cannot_be_decoded_is_shown_where_webhooks_are_listed(context: Context) -> None:
    bad, secret = webhooks.create_webhook(context, Caller(), "https://a.example/")
    good, _ = webhooks.create_webhook(context, Caller(), "https://b.example/")
    break_secret(context, bad.webhook_id, secret[:-2])
    problems = {one.webhook_id: one.problem for one in webhooks.list_webhooks(context, DEFAULT_PROJECT)}
    assert problems[good.webhook_id] is None
    problem = problems[bad.webhook_id]
    assert problem is not None
    assert "cannot be decoded" in problem
    assert secret[:-2] not in problem
    assert webhooks.show_webhook(context, DEFAULT_PROJECT, bad.webhook_id).problem == problem


def test_an_unexpected_error_counts_as_an_attempt_of_its_message_alone(
    context: Context, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, _ = webhooks.create_webhook(context, Caller(), "https://odd.example/")
    good, _ = webhooks.create_webhook(context, Caller(), receiver.url)

    def post(url: str, *args: Any, **options: Any) -> int:
        if "odd.example" in url:
            raise RuntimeError("something odd")
        return outgoing.post(url, *args, **options)

    monkeypatch.setattr(webhook_sender, "post", post)
    end_a_job(context)
    assert send(context) == 2
    assert told(context, good.webhook_id) == ("delivered", 1, "HTTP 200")
    assert told(context, bad.webhook_id) == ("pending", 1, "unexpected error: RuntimeError: something odd")
    assert send(context) == 0, "not before its time"
    be_due(context, created_at=time.time() - webhook_sender.GIVE_UP_SECONDS)
    send(context)
    assert told(context, bad.webhook_id)[:2] == ("failed", 2)

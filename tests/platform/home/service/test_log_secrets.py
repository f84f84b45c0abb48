"""No secret gets through to a log."""

from __future__ import annotations

import io
import logging
import secrets
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.platform.home.logs import SecretFilter, masked

TOKEN = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", min_size=20, max_size=60)
AROUND = st.text(st.characters(codec="utf-8"), max_size=15)  # shorter than a token
FORMS = st.sampled_from(
    [
        "sk-luthier-{}",
        "sk-{}",
        "whsec_{}",
        "Authorization: Bearer {}",
        "authorization: {}",
        "{{'Authorization': 'Bearer {}'}}",
        '{{"authorization": "Bearer {}"}}',
        "(b'authorization', b'Bearer {}')",
        "(b'x-api-key', b'{}')",
        "GET /tinker/weights/{}/adapter_config.json 200",
        "GET /rate/{} 200",
        "POST /rate/{}/undo 303",
        "GET /invite/{} 200",
        "GET /welcome/{} 303",
        "bearer {}",
        "postgresql://user:{}@host:5432/name",
        "postgresql+pg8000://:{}@host/name",
        "redis://user:{}@[::1]/0",
        "password={} host=x",
        "api_key: '{}'",
        "AWS_SECRET_ACCESS_KEY={}",
        "https://host/path?api_key={}&x=1",
    ]
)


def logged(message: object, *arguments: object, error: BaseException | None = None) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(SecretFilter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.error(message, *arguments, exc_info=error)
    return stream.getvalue()


@settings(deadline=None)
@given(TOKEN, FORMS, AROUND, AROUND)
def test_whatever_stands_around_it_a_secret_is_masked(token: str, form: str, before: str, after: str) -> None:
    text = f"{before} {form.format(token)} {after}"
    assert token not in masked(text)
    assert masked(masked(text)) == masked(text)
    assert token not in logged("%s", text)
    assert token not in logged(text)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40).filter(lambda text: text not in "***"))
def test_any_password_of_an_url(password: str) -> None:
    shown = masked(f"cannot reach postgresql://luthier:{quote(password, safe='')}@db.example:5432/luthier")
    assert shown == "cannot reach postgresql://luthier:***@db.example:5432/luthier"


@settings(deadline=None)
@given(st.text(max_size=200))
def test_masking_twice_changes_nothing_more(text: str) -> None:
    assert masked(masked(text)) == masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "GET /v1/files?limit=10 200",
        "GET /rate/limits 404",
        "http://localhost:8520/v1/models",
        "basic training of 5 epochs, tokens: 12",
        "job-20261125-093000-1f2e3d at step 4: loss=0.5",
        "a task-force of sk-learn users",
        "write to someone@example.com",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text
    assert logged("%s", text) == f"{text}\n"


def test_arguments_tracebacks_and_fields_are_masked_too() -> None:
    key = f"sk-luthier-{secrets.token_urlsafe(32)}"
    assert key not in logged("a %s b %d", key, 5)
    assert "b 5" in logged("a %s b %d", key, 5)
    assert logged("%(key)s", {"key": key}) == "sk-luthier-***\n"
    assert "***" in logged("Bearer %s", "abcdefghijkl"), "half of it in the message, half in the arguments"
    assert key not in logged("%s", ValueError(key))
    assert key not in logged(f"{key} %s %s", "one argument too few"), "what cannot be formatted is masked as well"
    try:
        raise ValueError(key)
    except ValueError as error:
        told = logged("failed", error=error)
    assert key not in told
    assert "ValueError: sk-luthier-***" in told
    record = logging.makeLogRecord({"msg": "x", "headers": [(b"authorization", b"Bearer abcdefghijkl")], "key": key})
    assert SecretFilter().filter(record)
    assert key not in str(vars(record))
    assert "abcdefghijkl" not in str(vars(record))


def test_uvicorns_access_log_keeps_its_form() -> None:
    from uvicorn.logging import AccessFormatter

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(AccessFormatter("%(client_addr)s %(request_line)s %(status_code)s", use_colors=False))
    handler.addFilter(SecretFilter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/v1/models?api_key=abcdefgh", "1.1", 200)
    assert stream.getvalue() == "127.0.0.1:1 GET /v1/models?api_key=*** HTTP/1.1 200 OK\n"

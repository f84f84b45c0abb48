"""Clients of one test process share the certificates that they trust, as long as the environment names the same."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpcore2
import httpx2
import pytest
from tests.fixtures.shared_certificates import once


def trusted_by(client: httpx2.Client) -> ssl.SSLContext:
    found: ssl.SSLContext = client._transport._pool._ssl_context  # type: ignore[attr-defined]
    return found


def test_clients_share_what_they_trust_unless_they_are_given_something_else() -> None:
    own = ssl.create_default_context()
    with httpx2.Client() as one, httpx2.Client() as other, httpx2.Client(verify=own) as third:
        assert trusted_by(one) is trusted_by(other) is httpcore2.default_ssl_context()
        assert trusted_by(third) is own


def test_another_file_of_certificates_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bool] = []

    def make(*, _trust_env: bool) -> ssl.SSLContext:
        read.append(_trust_env)
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    context = once(make)
    usual = context()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
    named = context()
    assert context() is named
    assert named is not usual
    assert context(_trust_env=False) is not named
    monkeypatch.delenv("SSL_CERT_FILE")
    assert context() is usual
    assert read == [True, True, False]

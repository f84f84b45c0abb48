"""`luthier up` where it does not come so far as to serve; that it does is seen in
tests/server/service/test_service.py.
"""

from __future__ import annotations

import socket


def test_what_it_takes_is_in_its_help(luthier) -> None:  # type: ignore[no-untyped-def]
    shown = luthier("up", "--help").out
    for option in ("--host", "--port", "--workers", "--database", "--artifacts", "--log-format", "--json", "--home"):
        assert option in shown


def test_a_port_that_is_taken(luthier) -> None:  # type: ignore[no-untyped-def]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = luthier("up", "--port", port)
        assert done.code == 2
        assert f"port {port} of 127.0.0.1 is in use by another program" in done.err
        assert luthier("up", "--port", port, "--json").document["error"]["type"] == "ConflictError"


def test_a_stranger_needs_a_key(luthier) -> None:  # type: ignore[no-untyped-def]
    done = luthier("up", "--host", "0.0.0.0", "--port", 0)
    assert done.code == 2
    assert "luthier keys create" in done.err

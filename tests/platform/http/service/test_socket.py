"""The socket of a server is lent to the process that serves; where nothing is inherited, that process opens its own."""

from __future__ import annotations

import socket

import pytest

from luthier.core.errors import ConflictError
from luthier.core.system import facilities
from luthier.platform.http.socket import lend, lent, listen


def test_the_process_gets_the_open_socket() -> None:
    with listen("127.0.0.1", 0) as listener:
        argument, descriptors = lend(listener)
        assert (argument, descriptors) == (str(listener.socket.fileno()), (listener.socket.fileno(),))
        copy = listener.socket.dup()
        with lent(str(copy.detach())) as opened:
            assert opened.getsockname() == listener.socket.getsockname()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_process_listens_on_the_same_address_where_it_can_inherit_none(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facilities, "inherits_descriptors", lambda: False)
    try:
        listening = listen(host, 0)
        listener = listening.__enter__()
    except Exception as error:  # noqa: BLE001 - this machine has no IPv6
        pytest.skip(str(error))
    argument, descriptors = lend(listener)
    assert descriptors == ()
    with lent(argument) as opened:
        assert opened.getsockname()[:2] == (host, listener.port)
        with socket.create_connection((host, listener.port)):
            pass
        with pytest.raises(ConflictError), listen(host, listener.port):
            pass
    listening.__exit__(None, None, None)


def test_windows_keeps_the_port_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_KEEPALIVE, raising=False)
    with listen("127.0.0.1", 0) as listener:
        assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert not listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)

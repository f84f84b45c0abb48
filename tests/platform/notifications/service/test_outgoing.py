"""Where a POST to a caller's URL may go: literals in every form, names by a fake resolver, names that change."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from luthier.platform.notifications import outgoing

NEVER = [
    # cloud metadata, in every form
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd00:c1::a9fe:a9fe",
    "fd20:ce::254",
    "fe80::a9fe:a9fe",
    "::ffff:169.254.169.254",
    "::ffff:100.100.100.200",
    "::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::6464:64c8",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b:1:a9fe:a9:fe00::",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "2001:0:808:808::5601:5601",  # Teredo: the client is 169.254.169.254, every bit inverted
    "2606:4700::5efe:a9fe:a9fe",
    "2606:4700::200:5efe:a9fe:a9fe",
    "fd00::5efe:a9fe:a9fe",
    # what is no unicast, or special
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "fe80::1",
    "fec0::1",
    "fec0:0:0:ffff::1",
    "ff02::1",
    "100::1",
    "2001:db8::1",
    "2001:10::1",
    "3fff::1",
    "5f00::1",
    "4000::1",
    "::7f00:1",
    "::10.0.0.1",
    "::8.8.8.8",
    "::ffff:0:10.0.0.1",
    "::ffff:0:8.8.8.8",
    "64:ff9b:1::7f00:1",
    "64:ff9b:1::808:808",
]
BY_SETTING = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "::1",
    "fc00::1",
    "fd12:3456::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::c0a8:101",
    "2002:7f00:1::1",
    "2606:4700::5efe:127.0.0.1",
    "fd00::200:5efe:10.0.0.1",
]
GLOBAL = [
    "1.1.1.1",
    "8.8.8.8",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700:4700::1111",
    "2a00:1450:4001::64",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
    "2606:4700::5efe:8.8.8.8",
]


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a connection was made to; none is really made."""
    made: list[str] = []

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        if self.type == socket.SOCK_STREAM:
            made.append(address[0])
        raise ConnectionRefusedError(f"{address[0]} refused")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return made


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Have names lead to these addresses, the last ones forever; returns the names that were looked up."""
    asked: list[str] = []

    def look_up(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        families = [socket.AF_INET6 if ":" in one else socket.AF_INET for one in found]
        return [
            (family, socket.SOCK_STREAM, 6, "", (one, port, 0, 0) if family == socket.AF_INET6 else (one, port))
            for family, one in zip(families, found, strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def was_called(host: str, *, may_reach_private: bool) -> bool:
    """Whether the rule let a connection to a host be tried."""
    with pytest.raises(outgoing.UnreachableError) as caught:
        outgoing.post(f"http://{host}:9/", {}, b"{}", may_reach_private=may_reach_private)
    return "leads to" not in str(caught.value)


def test_the_list_is_long_enough() -> None:
    assert len({*NEVER, *BY_SETTING, *GLOBAL}) >= 40


@pytest.mark.parametrize("address", NEVER)
def test_never_called_whatever_is_set(address: str, connected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, [address])
    for host in (f"[{address}]" if ":" in address else address, "name.example"):
        assert not was_called(host, may_reach_private=False)
        assert not was_called(host, may_reach_private=True)
    assert connected == []


@pytest.mark.parametrize("address", BY_SETTING)
def test_called_by_the_setting_alone(address: str, connected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, [address])
    for host in (f"[{address}]" if ":" in address else address, "name.example"):
        assert not was_called(host, may_reach_private=False)
        assert connected == []
        assert was_called(host, may_reach_private=True)
        assert [ip_address(one) for one in connected] == [ip_address(address)]
        connected.clear()


@pytest.mark.parametrize("address", GLOBAL)
def test_the_public_internet_is_called(address: str, connected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, [address])
    assert was_called("name.example", may_reach_private=False)
    assert [ip_address(one) for one in connected] == [ip_address(address)]


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.1",
        "127.0.1",
        "2852039166",
        "0xa9fea9fe",
        "0xA9.0xFE.0xA9.0xFE",
        "0251.0376.0251.0376",
        "169.254.43518",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:169.254.169.254]",
        "localhost",
        "LOCALHOST",
    ],
)
def test_every_form_that_the_resolver_takes(host: str, connected: list[str]) -> None:
    assert not was_called(host, may_reach_private=False)
    assert connected == []


def test_one_forbidden_address_among_others_forbids_the_name(
    connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, ["8.8.8.8", "2606:4700::1111", "10.0.0.1"])
    assert not was_called("mixed.example", may_reach_private=False)
    assert connected == []


def test_a_name_is_resolved_once_and_pinned(connected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve_to(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    assert was_called("rebinds.example", may_reach_private=False)
    assert (asked, connected) == (["rebinds.example"], ["8.8.8.8"])


def test_a_name_of_a_private_network_is_not_read_out(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, ["10.20.30.40"])
    with pytest.raises(outgoing.UnreachableError, match="not on the public internet") as caught:
        outgoing.post("http://db.internal/", {}, b"{}", may_reach_private=False)
    assert "10.20.30.40" not in str(caught.value)


def test_a_public_address_of_this_machine_itself_is_not_called(
    connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, ["8.8.8.8"])
    monkeypatch.setattr(outgoing, "is_own", lambda address: str(address) == "8.8.8.8")
    with pytest.raises(outgoing.UnreachableError, match="this machine itself"):
        outgoing.post("http://own.example/", {}, b"{}", may_reach_private=False)
    assert connected == []
    assert was_called("own.example", may_reach_private=True)

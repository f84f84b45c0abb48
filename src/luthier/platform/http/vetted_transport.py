"""Connections of a download whose address a user has named: each goes to an address that was checked (no SSRF).

The name of every request, those of redirects included, is resolved here, all of its addresses are checked by the rule
of webhooks (`notifications.outgoing`), and the connection goes to the very address that was checked: a name that leads
elsewhere a moment later gains nothing (DNS rebinding). The certificate is checked for the name. No proxy is used.
"""

from __future__ import annotations

import httpx2

from luthier.core.errors import DataSourceError
from luthier.platform.notifications.outgoing import ForbiddenAddressError, UnreachableError, vetted_address


class VettedTransport(httpx2.BaseTransport):
    """Opens connections to addresses of the public internet.

    Args:
        may_reach_private: whether this machine and private networks may be reached, too. Link-local addresses and
            metadata services of clouds stay closed.
    """

    def __init__(self, *, may_reach_private: bool) -> None:
        self._may_reach_private = may_reach_private
        # No connection is kept: two names may share an address, and each has to show its own certificate.
        self._inner = httpx2.HTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request.

        Raises:
            DataSourceError: its host leads to an address that may not be reached.
            ConnectError: its host is not known, or does not answer.
        """
        # As it is on the wire: a name with other letters than ASCII in its encoded form.
        host = request.url.raw_host.decode("ascii")
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        try:
            _, address = vetted_address(host, port, may_reach_private=self._may_reach_private)
        except ForbiddenAddressError as error:
            raise forbidden(host) from error
        except UnreachableError as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        pinned = httpx2.Request(
            request.method,
            request.url.copy_with(host=str(address[0])),
            # The header Host among them, which names the host as the address does.
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": host},
        )
        return self._inner.handle_request(pinned)

    def close(self) -> None:
        """Close what is open."""
        self._inner.close()


def forbidden(host: str) -> DataSourceError:
    """The error for a host that must not be connected to. The address behind a name is not shown."""
    return DataSourceError(
        f"{host[:200]} leads to an address that is not on the public internet",
        expected="a host that every machine on the internet reaches",
        do="upload the file; the operator of the server may open private networks "
        "(LUTHIER_IMPORTS_MAY_REACH_PRIVATE=true)",
    )

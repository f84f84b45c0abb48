"""The address that links to this server begin with: of the setting LUTHIER_PUBLIC_URL, else of the project.

Links of raters and invitations, and messages about the inbox, are opened on other machines. The address of the request
that makes a link may be one that only this machine reaches, so that it is asked for once, and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal
from urllib.parse import urlsplit

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context

_KIND: Final = "public_url"
_RATERS: Final = "raters"
"""The name of the address that somebody else than an admin has given: for links of raters alone."""
_MAX_CHARACTERS: Final = 500


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """What links of a project begin with.

    Attributes:
        url: Without a slash at its end; empty where none is known yet.
        source: Where it comes from; None where none is known.
    """

    url: str = ""
    source: Literal["setting", "project"] | None = None

    @property
    def is_known(self) -> bool:
        """Whether it has to be asked for no more."""
        return self.source is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.url)


def public_address(context: Context, project_id: str, *, for_raters: bool = False) -> PublicAddress:
    """The address of a project's links.

    Args:
        context: The home.
        project_id: The project.
        for_raters: The one that a trainer gave, where no admin has given another.
    """
    if context.settings.public_url:
        return PublicAddress(context.settings.public_url, "setting")
    kept = context.watches.get(project_id, _KIND)
    if kept is None and for_raters:
        kept = context.watches.get(project_id, _KIND, _RATERS)
    return PublicAddress() if kept is None else PublicAddress(kept, "project")


def link_root(context: Context, project_id: str, root: str = "", *, for_raters: bool = False) -> str:
    """What a link begins with.

    Args:
        context: The home.
        project_id: The project.
        root: Of the request that makes it, for a project without an address.
        for_raters: As of `public_address`.
    """
    return public_address(context, project_id, for_raters=for_raters).url or root.rstrip("/")


def set_public_address(context: Context, caller: Caller, url: str) -> PublicAddress:
    """Keep the address of the links of the caller's project.

    Raises:
        RequestError: The text is no address of a server, or the setting names one already.
    """
    if context.settings.public_url:
        raise RequestError(
            f"an address of links, where LUTHIER_PUBLIC_URL is {context.settings.public_url}",
            expected="one address for all links of this server",
            do="change the variable where the server is started, or unset it",
        )
    checked = checked_address(url)
    with context.database.transaction():
        context.watches.put(caller.project_id, _KIND, "", checked)
        record(context, caller, "project.address_changed", caller.project_id, {"url": checked})
    return PublicAddress(checked, "project")


def learn_public_address(context: Context, caller: Caller, url: str) -> None:
    """Keep the address that a form has asked for, where none is known yet; else nothing happens.

    What a trainer gives is used for links of raters alone: the address of invitations is the place to which invited
    people, admins among them, take the secrets of their links.

    Raises:
        RequestError: None is known, and the text is no address of a server.
    """
    is_admin = caller.may("admin")
    if public_address(context, caller.project_id, for_raters=not is_admin).is_known:
        return
    if is_admin:
        set_public_address(context, caller, url)
        return
    checked = checked_address(url)
    with context.database.transaction():
        context.watches.put(caller.project_id, _KIND, _RATERS, checked)
        record(context, caller, "project.address_changed", caller.project_id, {"url": checked, "for": _RATERS})


def checked_address(url: str) -> str:
    """The address of a server, without a slash at its end.

    Raises:
        RequestError: The text is none.
    """
    text = url.strip().rstrip("/")
    try:
        parts = urlsplit(text)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_good = False
    if not is_good or parts.query or parts.fragment or parts.username or len(text) > _MAX_CHARACTERS or " " in text:
        raise RequestError(
            f"the address of links {url[:100]!r}",
            expected="https://HOST, http://HOST:PORT, or one of these with a path",
            do="give the address at which the people who get a link open these pages",
        )
    return text


def is_loopback(url: str) -> bool:
    """Whether an address is one of this machine alone."""
    host = (urlsplit(url).hostname or "").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:
        return False

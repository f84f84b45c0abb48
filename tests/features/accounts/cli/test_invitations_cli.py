"""`luthier users invite`: a link, a list, a withdrawal."""

from __future__ import annotations

from pathlib import Path

from luthier.platform.auth.invitations import accept_invitation
from luthier.platform.home.context import Context


def test_an_invitation_is_made_listed_and_withdrawn(luthier, home: Path) -> None:  # type: ignore[no-untyped-def]
    assert "luthier users invite" in luthier("users", "invitations").out
    words = luthier("users", "invite", "--role", "viewer").out
    assert "only this machine reaches http://127.0.0.1:8520" in words
    made = luthier(
        *("users", "invite", "--role", "trainer", "--for", "Ben", "--expires", "2d"),
        *("--url", "https://luthier.example/", "--json"),
    ).document
    assert made["url"].startswith("https://luthier.example/invite/")
    assert (made["role"], made["recipient"], made["status"]) == ("trainer", "Ben", "open")
    with Context.open(home) as context:
        accept_invitation(context, made["url"].rpartition("/")[2], "Ben", "correct horse battery")
    listed = luthier("users", "invitations", "--json").document
    assert [(one["status"], one["accepted_by"]) for one in listed] == [("accepted", "Ben"), ("open", None)]
    assert "accepted by Ben" in luthier("users", "invitations").out
    assert luthier("users", "revoke-invitation", listed[1]["id"], "--json").document["status"] == "revoked"
    refused = luthier("users", "revoke-invitation", listed[0]["id"])
    assert (refused.code, "was accepted by Ben" in refused.err) == (2, True)
    assert luthier("users", "invite", "--role", "viewer", "--expires", "365d").code == 2

"""Passkeys of members: record and store. Of each only the public half is here: the authenticator keeps the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import delete, select, update

from luthier.core.errors import ConflictError
from luthier.core.frozen_model import FrozenModel
from luthier.platform.auth.members_store import MEMBERS, Member
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import passkeys, web_sessions


class Passkey(FrozenModel):
    """A credential with which a member signs in. Times are seconds since 1970.

    Attributes:
        passkey_id: Its id here.
        member_id: Whose it is.
        name: What the member calls it.
        credential_id: Its id at the authenticator, base64url.
        rp_id: The id of the relying party: the host that it signs in at.
        public_key: In COSE's format, base64url.
        sign_count: The authenticator's count of signatures at the last sign-in; 0 of those that do not count.
        created_at: When it was added.
        used_at: When it last signed in; None for never.
    """

    passkey_id: str
    member_id: str
    name: str
    credential_id: str
    rp_id: str
    public_key: str
    sign_count: int
    created_at: float = 0.0
    used_at: float | None = None


_PASSKEYS: Final = RecordTable(
    passkeys,
    Passkey,
    key="passkey_id",
    clock="created_at",
    missing=Missing("no passkey {key!r}", "the id of one of your passkeys", "see the list of your passkeys"),
)


class PasskeyStore(Store):
    """Every method is one short transaction."""

    def list(self, member_id: str) -> Sequence[Passkey]:
        """The passkeys of a member, oldest first."""
        return self._list(_PASSKEYS, order=[passkeys.c.number], member_id=member_id)

    def by_credential(self, credential_id: str) -> tuple[Passkey, Member] | None:
        """A passkey by its id at the authenticator, and whose it is; None where there is none.

        Args:
            credential_id: The id, base64url without padding.
        """
        with self._database.read() as connection:
            found = _PASSKEYS.first(connection, credential_id=credential_id)
            return None if found is None else (found, MEMBERS.get(connection, found.member_id))

    def has_any(self, rp_id: str) -> bool:
        """Whether anybody has a passkey for a host."""
        return self._scalar(select(passkeys.c.number).where(passkeys.c.rp_id == rp_id).limit(1)) is not None

    def add(self, passkey: Passkey) -> Passkey:
        """Store a passkey; its time is set here, by the database's clock.

        Raises:
            ConflictError: There is one of this credential already.
        """
        conflict = ConflictError(
            "this passkey exists already", expected="a new one", do="choose another device, or keep the one you have"
        )
        with self._write(conflict) as connection:
            return _PASSKEYS.insert(connection, passkey, self._database.clock(connection))

    def record_use(self, passkey_id: str, sign_count: int) -> bool:
        """Note a sign-in; whether the passkey is still there, with a count below this one.

        Args:
            passkey_id: The passkey.
            sign_count: The authenticator's count of signatures; 0 of those that do not count.
        """
        columns = passkeys.c
        # The check is part of the write: of two sign-ins with the same count only one passes.
        is_newer = (columns.sign_count < sign_count) | ((columns.sign_count == 0) & (sign_count == 0))
        with self._write() as connection:
            values = {"sign_count": sign_count, "used_at": self._database.clock(connection)}
            used = update(passkeys).where(columns.passkey_id == passkey_id, is_newer).values(**values)
            return connection.execute(used).rowcount > 0

    def remove(self, member_id: str, passkey_id: str) -> Passkey:
        """Remove a passkey of a member with the sessions that were begun with it.

        Returns:
            The removed one.

        Raises:
            NotFoundError: The member has no such passkey.
        """
        with self._write() as connection:
            found = _PASSKEYS.get(connection, passkey_id, member_id=member_id)
            _PASSKEYS.remove(connection, passkey_id, member_id=member_id)
            connection.execute(delete(web_sessions).where(web_sessions.c.passkey_id == passkey_id))
            return found

    def remove_all(self, member_id: str) -> int:
        """Remove all passkeys of a member; returns how many. The caller ends the sessions."""
        with self._write() as connection:
            return connection.execute(delete(passkeys).where(passkeys.c.member_id == member_id)).rowcount

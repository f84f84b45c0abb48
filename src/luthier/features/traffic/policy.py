"""Use cases: what is kept of a project's traffic, and under what name its users are in it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from luthier.core.access import Caller
from luthier.core.records.traffic import TrafficPolicy
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context

_POLICY: Final = "traffic_policy"
_KEY: Final = "traffic_key"
_NUM_KEY_BYTES: Final = 32
_NUM_DIGEST_CHARACTERS: Final = 32


def traffic_policy(context: Context, project_id: str) -> TrafficPolicy:
    """What is stored; the default where it is not set."""
    document = context.watches.get(project_id, _POLICY)
    return TrafficPolicy() if document is None else TrafficPolicy.model_validate_json(document)


def set_traffic_policy(context: Context, caller: Caller, policy: TrafficPolicy) -> TrafficPolicy:
    """Change what is stored from now on: servers apply it within seconds. Older data stays for its own time."""
    with context.database.transaction():
        context.watches.put(caller.project_id, _POLICY, "", policy.model_dump_json())
        record(context, caller, "traffic.policy_set", caller.project_id, policy.model_dump(mode="json"))
    return policy


def user_key(context: Context, project_id: str) -> bytes:
    """The key that users of a project are hashed with; made when it is first needed."""
    document = context.watches.get(project_id, _KEY)
    if document is None:
        made = secrets.token_hex(_NUM_KEY_BYTES)
        # Two servers may make a key together: the transaction keeps the first, and both use it.
        document = context.watches.change(project_id, _KEY, "", lambda kept: kept or made)
    assert document is not None
    return bytes.fromhex(document)


def user_digest(key: bytes, user: str) -> str:
    """A user as in the log: HMAC-SHA256 (RFC 2104), cut to 128 bits; empty for no user.

    Without the key, which is in the database and never in a file of exchanges, no list of users can be tried out.
    """
    if not user:
        return ""
    # Keyed, not a plain hash: user names are few and guessable, so a plain hash could be reversed by trying them.
    return hmac.new(key, user.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:_NUM_DIGEST_CHARACTERS]

"""Use cases: exports of the server are signed with the operator's key, and pushed where the operator allows it.

Keys and credentials come from the settings and the environment of the server alone: nothing that comes over the network
names a key, and a target is a place that the operator has named, with a name below it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, RequestError, StoppedError
from luthier.core.ids import sha256_file
from luthier.features.exports import bundles
from luthier.features.serving.targets import made_export
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redacted_errors

if TYPE_CHECKING:
    from luthier.core.ports import StopCheck
    from luthier.ml.export.bundle.push import Pushed

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
"""One part of a path that cannot lead out of its folder."""


def push_targets(context: Context) -> tuple[str, ...]:
    """The places that exports may be pushed to from the pages."""
    return tuple(word.rstrip("/") for word in context.settings.push_targets.split())


def may_sign(context: Context) -> bool:
    """Whether the operator has named a key for signatures."""
    return context.settings.signing_key is not None


def sign_export(context: Context, caller: Caller, export_id: str) -> str:
    """Sign an export with the operator's key, and list the signature among its files.

    Args:
        context: The home.
        caller: Whose project it is.
        export_id: The export.

    Returns:
        The key, as `luthier verify` names it.

    Raises:
        RequestError: There is no key, the key cannot be used, or the bundle is not whole.
        NotFoundError: The project has no such export, or the file of the key does not exist.
        ConflictError: The export is not made, or another key has signed it.
    """
    from luthier.ml.export.bundle.manifest import SIGNATURES

    found, folder = made_export(context, caller, export_id)
    key = context.settings.signing_key
    if key is None or found.document is None:
        raise RequestError(
            "this server has no key for signatures",
            expected="a key that the operator has named",
            do="ask the operator to set LUTHIER_SIGNING_KEY, or sign a download with: luthier sign DIR --key FILE",
        )
    key = key.expanduser()
    with redacted_errors(home_paths(context) | {str(key): key.name}):
        signer = bundles.sign_bundle(context, folder, key)
    signatures = [name for name in SIGNATURES if (folder / name).is_file() and name not in found.document.files]
    files = found.document.files | {name: sha256_file(folder / name) for name in signatures}
    num_bytes = found.document.num_bytes + sum((folder / name).stat().st_size for name in signatures)
    with context.database.transaction():
        # Downloads have the files that the export lists.
        context.exports.finish(export_id, found.document.model_copy(update={"files": files, "num_bytes": num_bytes}))
        record(context, caller, "export.signed", export_id, {"signed_by": signer})
    return signer


def push_export(
    context: Context,
    caller: Caller,
    export_id: str,
    target: str,
    name: str,
    *,
    stop_requested: StopCheck = lambda: None,
) -> Pushed:
    """Push an export to a place that the operator allows; a repository that is made is private.

    Args:
        context: The home.
        caller: Whose project it is.
        export_id: The export.
        target: One of `push_targets`.
        name: Of the repository or folder there.
        stop_requested: Called between the parts of the push.

    Raises:
        RequestError: Another target, a name that is none, or a bundle that is not whole.
        NotFoundError: The project has no such export.
        ConflictError: The export is not made, something else is there, or the push was stopped.
        WorkError: The target refused or failed.
    """
    _, folder = made_export(context, caller, export_id)
    known = push_targets(context)
    if target not in known:
        raise RequestError(
            f"the target {target[:80]!r}",
            expected=f"one of {', '.join(known)}" if known else "a target that the operator has named",
            do="ask the operator to add it to LUTHIER_PUSH_TARGETS, or push a download with: luthier push DIR URL",
        )
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"the name {name[:80]!r}",
            expected="letters, digits, dots, dashes and underscores, a letter or a digit first, at most 96",
            do="choose another name",
        )
    url = f"{target}/{name}"
    try:
        with redacted_errors(home_paths(context)):
            pushed = bundles.push(context, folder, url, stop_requested=stop_requested)
    except StoppedError as error:
        with context.database.transaction():
            record(context, caller, "export.push_cancelled", export_id, {"url": url})
        raise ConflictError(
            f"the push to {url} was cancelled",
            expected="all files of the export there",
            do="push it again: what has arrived is not sent again",
        ) from error
    with context.database.transaction():
        facts = {"url": pushed.url, "bundle_sha256": pushed.bundle_sha256}
        record(context, caller, "export.pushed", export_id, facts)
    return pushed

"""`luthier verify`: is a bundle what it was when it was made?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.ml.export.bundle.verify import VerifyReport


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `luthier export` has made.")],
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="The public key (PEM, ECDSA or Ed25519) that must have signed."),
    ] = None,
    digest: Annotated[
        str | None, typer.Option("--digest", metavar="SHA256", help="The name that the bundle must have.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="The base model that it must have been made from.")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Compare every file of a bundle with its manifest, and its documents with each other. Exit code 1: it has faults.

    Files alone prove that nothing was damaged. That nobody has made another bundle of it is proved by --key, or by
    --digest with a digest that came another way.
    """
    from luthier.features.exports import bundles

    with open_context(home) as context:
        report = bundles.verify_bundle(context, folder, key=key, bundle_sha256=digest, base=base)
    document = report.model_dump(mode="json") | {"is_whole": report.is_whole}
    return Answer(as_json, document, lambda console: _show(console, report), exit_code=0 if report.is_whole else 1)


def _show(console: Console, report: VerifyReport) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    for fault in report.faults:
        console.print(f"{fault.kind}: {visible(fault.path)} {visible(fault.what)}", soft_wrap=True)
    if report.bundle_sha256 is None:
        return
    # Three states: nobody signed, somebody signed without a key to check, or a checked signer.
    signer = report.signed_by or ("nobody" if report.unchecked_signer is None else "")
    if report.signed_by is not None and not report.is_signer_proved:
        signer += "  (whose key that is was not proved: pass --key)"
    if report.unchecked_signer is not None:
        also = f"{signer}, and by " if signer else ""
        signer = f"{also}{report.unchecked_signer}, as model.sig says  (not checked: pass --key)"
    rows = [
        ("bundle", report.bundle_sha256),
        ("files", f"{report.num_files:,}, {figures.size(report.num_bytes)}"),
        ("base model", f"{report.base_name or 'not stated'}  {report.base_sha256 or ''}".rstrip()),
        ("signed by", signer),
        ("result", "whole" if report.is_whole else f"{len(report.faults):,} fault{'s' * (len(report.faults) > 1)}"),
    ]
    if report.left_aside:
        rows.insert(2, ("not looked at", f"{', '.join(report.left_aside)} (of the hub or git)"))
    facts(console, rows)

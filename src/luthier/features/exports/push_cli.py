"""`luthier push` and `luthier sign`: a bundle on its way to others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `luthier export` has made.")]


def push(
    folder: FolderArgument,
    url: Annotated[str, typer.Argument(metavar="URL", help="hf://org/name, s3://bucket/folder, file:///folder ...")],
    public: Annotated[
        bool, typer.Option("--public", help="A repository that is made on the hub may be read by everybody.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Send a bundle to a hub's repository or to object storage; it is proved whole before it goes and where it arrives.

    A push that was interrupted goes on where it stopped. What is there is never overwritten by another bundle. Keys
    come from the environment: HF_TOKEN, AWS_ACCESS_KEY_ID and the like.
    """
    from luthier.features.exports import bundles

    with open_context(home) as context:
        pushed = bundles.push(context, folder, url, is_public=public)

    def show(console: Console) -> None:
        from luthier.platform.cli import figures
        from luthier.platform.cli.console import visible

        sent = f"{pushed.num_sent:,} of {pushed.num_files:,} files sent, {figures.size(pushed.num_bytes_sent)}"
        console.print(f"{visible(pushed.url)}: {pushed.bundle_sha256} is whole there ({sent})", soft_wrap=True)

    return Answer(as_json, pushed.model_dump(mode="json"), show)


def sign(
    folder: FolderArgument,
    key: Annotated[
        Path, typer.Option("--key", metavar="FILE", help="Your private key: ECDSA or Ed25519, PEM, no password.")
    ],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Sign a bundle with your own key; no key is ever made for you.

    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem makes one, and openssl pkey -in key.pem
    -pubout -out key.pub takes its public half, which `luthier verify --key` asks for. Such a key writes model.sig,
    which `model_signing verify key` of OpenSSF reads, too; an Ed25519 key writes bundle.dsse.json.
    """
    from luthier.features.exports import bundles

    with open_context(home) as context:
        signer = bundles.sign_bundle(context, folder, key)

    def show(console: Console) -> None:
        console.print(f"signed by {signer}", soft_wrap=True)

    return Answer(as_json, {"folder": str(folder), "signed_by": signer}, show)

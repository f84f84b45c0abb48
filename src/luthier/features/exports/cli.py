"""`luthier export`, `push`, `sign` and `verify`: write a model for another runtime, send, sign and check bundles.

An export is proved equal to its source before it is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from luthier.core.text.counted import counted
from luthier.platform.cli.command import ANY_MODEL, Answer, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.export import Export, ParityReport
    from luthier.ml.export.bundle.verify import VerifyReport


class ExportCommand(typer.core.TyperCommand):
    """A command whose help names the export formats of this installation, read only when this command is called."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, with names in their help in place of `{formats}`, `{precisions}` and `{usual}`."""
        from luthier.core.registry import EXPORTERS
        from luthier.ml.export.exporters.head_formats import HEAD_FORMATS
        from luthier.ml.export.exporters.registry import usual_formats

        found = EXPORTERS.declarations()
        precisions = dict.fromkeys(name for one in found.values() for name in one.precisions)
        named = {
            "formats": found,
            "precisions": precisions,
            "usual": usual_formats(),
            "head_formats": HEAD_FORMATS,
        }
        names = {key: ", ".join(some) for key, some in named.items()}
        for parameter in self.params:
            if isinstance(parameter, typer.core.TyperOption) and parameter.help:
                parameter.help = parameter.help.format_map(names)
        return super().get_params(ctx)


def export(
    name: Annotated[str, typer.Argument(metavar="RUN", help=f"What to export: {ANY_MODEL}.")],
    to: Annotated[
        str,
        typer.Option("--to", metavar="FORMAT", help="{formats}; for a task head: {head_formats}.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write to: a new or an empty one.")
    ],
    quantise: Annotated[
        str | None,
        typer.Option(
            "--quantise",
            metavar="PRECISION",
            help="A precision that the format has, of {precisions} "
            "[default: the format's own, or what the model was trained in].",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Rows for the parity proof [default: the run's held-out rows]."),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Convert a model to another format, load it in its real runtime, and keep it only if it is proved equal."""
    from luthier.features.exports import service as exports
    from luthier.ml.export.exporters.head_formats import HEAD_FORMATS
    from luthier.ml.export.exporters.registry import format_of, full_precision

    # Short names of PyTorch and llama.cpp are accepted; the record has the long ones.
    precision = None if quantise is None else full_precision(quantise)
    if to.lower() not in HEAD_FORMATS:
        format_of(to.lower())
    with open_context(home) as context:
        made = exports.export(context, name, to=to.lower(), output=output, quantise=precision, held_out=data)
    return Answer(as_json, made.model_dump(mode="json"), lambda console: _show_export(console, made))


def _show_export(console: Console, made: Export) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    rows = [
        ("model", visible(made.source.name)),
        ("format", f"{made.format}, {made.precision}"),
        ("folder", visible(made.folder)),
        ("size", f"{figures.size(made.num_bytes)} in {counted(len(made.files), 'file')}"),
    ]
    if made.parity is not None:
        rows.append(("proof", _proof(made.parity)))
    if (proof := made.head_parity) is not None:
        rows.append(
            (
                "proof",
                f"passed in {proof.runtime} {proof.runtime_version}: {proof.num_inputs_same_tokens} of "
                f"{proof.num_inputs} texts have the same tokens; largest difference of an output "
                f"{proof.max_difference:.3g} of at most {proof.bound:g}",
            )
        )
    if made.gguf_parity is not None:
        rows.append(("adapter.gguf", _proof(made.gguf_parity)))
    if made.bundle_sha256 is not None:
        rows.append(("bundle", made.bundle_sha256))
    rows.append(("took", figures.duration(made.seconds)))
    rows += [("warning", visible(warning)) for warning in made.warnings]
    facts(console, rows)


def _proof(report: ParityReport) -> str:
    """What the comparison has found, in one line."""
    increase = report.nll_increase_nats
    bound = "" if report.bound_nats is None else f" of at most {report.bound_nats:.3g}"
    return (
        f"passed in {report.runtime} {report.runtime_version}: of {report.num_prompts} prompts "
        f"{report.num_prompts_same_tokens} have the same tokens and {report.num_texts_equal} the same greedy text; "
        f"largest difference {report.max_difference_nats:.3g} nats{bound}; perplexity {report.source_perplexity:.4g} "
        f"before, {report.export_perplexity:.4g} after ({increase.value:+.3g} nats a token, {increase.low:+.3g} to "
        f"{increase.high:+.3g})"
    )


FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `luthier export` wrote.")]


def push(
    folder: FolderArgument,
    url: Annotated[str, typer.Argument(metavar="URL", help="hf://org/name, s3://bucket/folder, file:///folder ...")],
    public: Annotated[bool, typer.Option("--public", help="Create the hub's repository as a public one.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Upload a bundle to a hub's repository or to object storage, and verify it before and after the upload.

    An interrupted push resumes where it stopped. Existing files are never overwritten by another bundle. Keys
    come from the environment: HF_TOKEN, AWS_ACCESS_KEY_ID and the like.
    """
    from luthier.features.exports import bundles

    with open_context(home) as context:
        pushed = bundles.push(context, folder, url, is_public=public)

    def show(console: Console) -> None:
        from luthier.platform.cli import figures
        from luthier.platform.cli.console import visible

        sent = f"{pushed.num_sent:,} of {pushed.num_files:,} files sent, {figures.size(pushed.num_bytes_sent)}"
        console.print(f"{visible(pushed.url)}: {pushed.bundle_sha256} is complete there ({sent})", soft_wrap=True)

    return Answer(as_json, pushed.model_dump(mode="json"), show)


def sign(
    folder: FolderArgument,
    key: Annotated[
        Path, typer.Option("--key", metavar="FILE", help="Your private key: ECDSA or Ed25519, PEM, no password.")
    ],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Sign a bundle with your own key; Luthier never creates one.

    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem makes one, and openssl pkey -in key.pem
    -pubout -out key.pub extracts its public half, which `luthier verify --key` needs. Such a key writes model.sig,
    which `model_signing verify key` of OpenSSF reads, too; an Ed25519 key writes bundle.dsse.json.
    """
    from luthier.features.exports import bundles

    with open_context(home) as context:
        signer = bundles.sign_bundle(context, folder, key)

    def show(console: Console) -> None:
        console.print(f"signed by {signer}", soft_wrap=True)

    return Answer(as_json, {"folder": str(folder), "signed_by": signer}, show)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `luthier export` wrote.")],
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="The public key (PEM, ECDSA or Ed25519) that the signature must match."
        ),
    ] = None,
    digest: Annotated[
        str | None, typer.Option("--digest", metavar="SHA256", help="The digest that the bundle must have.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="The base model that the bundle must come from.")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Check every file of a bundle against its manifest, and its documents against each other. Exit code 1 if one is
    wrong.

    The files alone prove that nothing was damaged. To prove that nobody has replaced the bundle, use --key, or --digest
    with a digest from another source.
    """
    from luthier.features.exports import bundles

    with open_context(home) as context:
        report = bundles.verify_bundle(context, folder, key=key, bundle_sha256=digest, base=base)
    document = report.model_dump(mode="json") | {"is_whole": report.is_whole}
    return Answer(
        as_json, document, lambda console: _show_verified(console, report), exit_code=0 if report.is_whole else 1
    )


def _show_verified(console: Console, report: VerifyReport) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    for fault in report.faults:
        console.print(f"{fault.kind}: {visible(fault.path)} {visible(fault.what)}", soft_wrap=True)
    if report.bundle_sha256 is None:
        return
    # Three states: unsigned, signed without a key to check, or a checked signer.
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
        ("result", "complete" if report.is_whole else f"{len(report.faults):,} fault{'s' * (len(report.faults) > 1)}"),
    ]
    if report.left_aside:
        rows.insert(2, ("not checked", f"{', '.join(report.left_aside)} (of the hub or git)"))
    facts(console, rows)

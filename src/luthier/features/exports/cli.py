"""`luthier export`: write a model for another runtime, proved equal to its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.export import Export, ParityReport


class ExportCommand(typer.core.TyperCommand):
    """A command whose help names the export formats of this installation, read only when this command is called."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, with names in their help in place of `{formats}`, `{precisions}` and `{usual}`."""
        from luthier.core.registry import EXPORTERS
        from luthier.ml.export.exporters.registry import usual_formats

        found = EXPORTERS.declarations()
        precisions = dict.fromkeys(name for one in found.values() for name in one.precisions)
        named = {"formats": found, "precisions": precisions, "usual": usual_formats()}
        names = {key: ", ".join(some) for key, some in named.items()}
        for parameter in self.params:
            if isinstance(parameter, typer.core.TyperOption) and parameter.help:
                parameter.help = parameter.help.format_map(names)
        return super().get_params(ctx)


def export(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="What to export: a run, a model of the API (ft:...), or a base model.")
    ],
    to: Annotated[
        str,
        typer.Option("--to", metavar="FORMAT", help="One of {formats}.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="A folder that does not exist yet, or an empty one.")
    ],
    quantise: Annotated[
        str | None,
        typer.Option(
            "--quantise",
            metavar="PRECISION",
            help="One that the format has, of {precisions} "
            "[default: the format's own, or what the model was trained in].",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Rows to prove it on [default: the run's held-out rows]."),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Write a model in another format, load it in its real runtime, and let it out only if it is proved equal."""
    from luthier.features.exports import service as exports
    from luthier.ml.export.exporters.registry import format_of, full_precision

    # Short names of PyTorch and llama.cpp are accepted; the record has the long ones.
    precision = None if quantise is None else full_precision(quantise)
    format_of(to.lower())
    with open_context(home) as context:
        made = exports.export(context, name, to=to.lower(), output=output, quantise=precision, held_out=data)
    return Answer(as_json, made.model_dump(mode="json"), lambda console: _show(console, made))


def _show(console: Console, made: Export) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    rows = [
        ("model", visible(made.source.name)),
        ("format", f"{made.format}, {made.precision}"),
        ("folder", visible(made.folder)),
        ("size", f"{figures.size(made.num_bytes)} in {len(made.files)} files"),
    ]
    if made.parity is not None:
        rows.append(("proof", _proof(made.parity)))
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

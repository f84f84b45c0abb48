"""An export: a model written for another runtime, the proof of it, and the comparison of formats.

A format table has the size, the speed and the loss of quality of each export of one model, side by side with the
model.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from luthier.core.conversation import AS_THEY_ARE, OptedTurns
from luthier.core.estimate import Estimate
from luthier.core.evaluation import Comparison, SystemResult
from luthier.core.frozen_model import FrozenModel, SparseModel
from luthier.core.plan import Quantisation
from luthier.core.recipe import TemplateOption
from luthier.core.task_head import TaskHeadKind

# Any name, and not those of `luthier.core.registry.EXPORTERS` alone: a stored export is shown when the package that
# brought its format is gone. Requests for an export check the name there.
NAME_PATTERN: Final = "^[a-z][a-z0-9_]{0,39}$"
ExportFormat = Annotated[str, Field(pattern=NAME_PATTERN)]
ExportPrecision = Annotated[str, Field(pattern=NAME_PATTERN)]
"""How weights are stored: 32 and 16 bits by the name of the type, fewer by the name of the packing in that format."""


class ExportSource(SparseModel):
    """The exported model, as trained.

    Attributes:
        name: what people call it.
        run_id: None for a base model.
        base_name: of the base model that it began with.
        base_path: of the base, or of the whole model that training made.
        base_sha256: digest of that base's weights.
        base_licence: its licence; None where it is unknown.
        adapter_path: None for a base model and one trained whole.
        adapter_sha256: digest of the adapter; None without one.
        method: the method that trained it; None for a base model.
        template: how it reads prompts.
        precision: what its matrices are multiplied in when it runs.
        quantisation: how the base was packed while an adapter was trained over it.
        template_options: what the chat template was given with each conversation.
        opted_turns: what of each conversation was written in another way.
        context_tokens: the most that an export may say it has room for; None for what the model has.
        trained_tokens: of the longest rows that trained it; None for a base model, and in earlier exports.
        task_head: what it gives in place of text; None where it writes text.
    """

    name: str
    run_id: str | None
    base_name: str
    base_path: str
    base_sha256: str
    base_licence: str | None = None
    adapter_path: str | None = None
    adapter_sha256: str | None = None
    method: str | None = None
    template: Literal["auto", "chat", "plain"] = "auto"
    precision: Literal["float32", "bfloat16"]
    quantisation: Quantisation | None = None
    template_options: dict[str, TemplateOption] = Field(default_factory=dict)
    opted_turns: OptedTurns = AS_THEY_ARE
    context_tokens: int | None = None
    trained_tokens: int | None = None
    task_head: TaskHeadKind | None = None
    # Manifests of older exports are hashed.
    later_fields = ("template_options", "opted_turns", "context_tokens", "trained_tokens", "task_head")

    @property
    def folder(self) -> str:
        """Where the result of training is: the adapter, or the whole model."""
        return self.adapter_path or self.base_path


class ParityReport(FrozenModel):
    """What comparing an export with its source has shown, both run on the same prompts, the export in its own runtime.

    Attributes:
        format: the format of the export.
        precision: how its weights are held.
        runtime: what ran it.
        runtime_version: the version of that.
        num_prompts: prompts that both sides answered.
        num_prompts_same_tokens: prompts whose tokens, template included, are the same on both sides.
        num_texts_equal: prompts whose greedy text is the same on both sides.
        max_difference_nats: the largest difference of log-probabilities, in nats, over the tokens of prompts and
            references, of each position's likeliest tokens.
        mean_difference_nats: the mean of these differences.
        bound_nats: the most that max_difference_nats may be; None where only the loss of quality is evaluated.
        nll_increase_nats: a token of the references, export minus source, by prompt paired; with a 95% interval.
        source_perplexity: of the source on the references.
        export_perplexity: of the export on the references.
        passed: whether the export may be used.
        reasons: why not, one sentence each.
        given_options: of the template, which the runtime had to be given, since it sets them itself otherwise.
        earlier_ends: tokens at which the runtime ends an answer and the source, in a prompt of the proof, did not.
        unrounded_difference_nats: the largest difference to the source as it is, where rounding the weights takes the
            source itself beyond the bound and differences and texts are those to the rounded source; None elsewhere.
    """

    format: ExportFormat
    precision: ExportPrecision
    runtime: str
    runtime_version: str
    num_prompts: int
    num_prompts_same_tokens: int
    num_texts_equal: int
    max_difference_nats: float
    mean_difference_nats: float
    bound_nats: float | None
    nll_increase_nats: Estimate
    source_perplexity: float
    export_perplexity: float
    passed: bool
    reasons: tuple[str, ...] = ()
    given_options: dict[str, TemplateOption] = Field(default_factory=dict)
    earlier_ends: tuple[int, ...] = ()
    unrounded_difference_nats: float | None = None


class HeadParityReport(FrozenModel):
    """What comparing an export of a model with a task head with its source has shown, both on the same texts.

    Attributes:
        format: the format of the export.
        precision: how its weights are held.
        runtime: what ran it.
        runtime_version: the version of that.
        kind: what the head gives.
        num_inputs: texts that both sides have read.
        num_inputs_same_tokens: texts whose tokens are the same on both sides.
        max_difference: the largest difference of a probability or relevance, of a number in standard deviations of the
            training rows, or the largest distance of a vector; None where outputs could not be compared.
        bound: the most that it may be.
        passed: whether the export may be used.
        reasons: why not, one sentence each.
    """

    format: ExportFormat
    precision: ExportPrecision
    runtime: str
    runtime_version: str
    kind: TaskHeadKind
    num_inputs: int
    num_inputs_same_tokens: int
    max_difference: float | None
    bound: float
    passed: bool
    reasons: tuple[str, ...] = ()


class Export(SparseModel):
    """What `luthier export` has made.

    Attributes:
        source: the model that was exported.
        format: the format.
        precision: how weights are held.
        folder: its folder.
        num_bytes: of all its files.
        files: path below the folder to sha256.
        parity: the comparison with the source; None where none was made.
        seconds: wall time of the export.
        warnings: what a user must know before it is used.
        bundle_sha256: the name of its bundle, the digest of `bundle.json`; None where it has none.
        gguf_parity: of an adapter's `adapter.gguf`, run over its base by llama.cpp; None where there is no such file,
            or a warning says why it was not proved.
        head_parity: of a model with a task head, in the place of `parity`; None for all others.
    """

    source: ExportSource
    format: ExportFormat
    precision: ExportPrecision
    folder: str
    num_bytes: int
    files: dict[str, str]
    parity: ParityReport | None
    seconds: float
    warnings: tuple[str, ...] = Field(default=())
    bundle_sha256: str | None = None
    gguf_parity: ParityReport | None = None
    head_parity: HeadParityReport | None = None
    later_fields = ("head_parity",)

    @property
    def is_proved(self) -> bool:
        """Whether it was compared with its source, and is equal to it."""
        report = self.parity or self.head_parity
        return report is not None and report.passed


class ServerExport(FrozenModel):
    """An export that was requested of the server.

    Attributes:
        export_id: its id.
        project_id: the project.
        job_id: the job that makes it.
        source: a run id, or the name of a base model in the API.
        document: what was made; None while it is not done.
        created_at: seconds since 1970.
    """

    export_id: str
    project_id: str
    job_id: str
    source: str
    document: Export | None = None
    created_at: float = 0.0


class ExportAsked(FrozenModel):
    """What the job of an export is to do.

    Attributes:
        export_id: the id of the export.
        source: as `find_source` takes it.
        to: the format.
        quantise: None takes the format's own.
        file_id: the rows that it is proved on; None takes those of the run.
    """

    export_id: str
    source: str
    to: ExportFormat
    quantise: str | None = None
    file_id: str | None = None


SOURCE_LABEL = "source"
"""What the model itself is called in a table of formats: as trained, in transformers."""


class Spread(FrozenModel):
    """A figure measured several times.

    Attributes:
        median: the middle one.
        low: the least.
        high: the most.
    """

    median: float
    low: float
    high: float


class FormatPrice(FrozenModel):
    """One format of a model.

    Attributes:
        label: `gguf:q4_k_m`, or "source".
        format: the format; None for the source.
        precision: how weights are held.
        status: `missing` where the format cannot hold the model or its runtime is not installed.
        reason: why it is missing, or why the proof of a measured export failed.
        runtime: what ran it.
        num_bytes: of the files that the runtime reads (weights, tokenizer, config).
        peak_memory_bytes: of the process that runs it, median over the rounds, mapped files among it.
        idle_memory_bytes: of the same process before the model was loaded.
        load_seconds: loading the model.
        prompt_tokens_per_second: tokens of the prompt up to the first new one, of one request at a time.
        new_tokens_per_second: new tokens after the first one, of one request at a time.
        quality: its figures on the held-out rows.
        comparisons: format minus source on the same rows, paired.
        parity: the proof of the export; None where none was made.
        is_recommended: false where quality was lost beyond doubt (`losses` says what); None where it was not measured.
        losses: what was lost beyond doubt, a sentence each.
        is_on_front_size: whether no other format is as good and smaller.
        is_on_front_speed: whether no other format is as good and faster.
    """

    label: str
    format: ExportFormat | None
    precision: ExportPrecision
    status: Literal["measured", "missing"] = "measured"
    reason: str = ""
    runtime: str = ""
    num_bytes: int = 0
    peak_memory_bytes: int = 0
    idle_memory_bytes: int = 0
    load_seconds: Spread | None = None
    prompt_tokens_per_second: Spread | None = None
    new_tokens_per_second: Spread | None = None
    quality: SystemResult | None = None
    comparisons: tuple[Comparison, ...] = ()
    parity: ParityReport | None = None
    is_recommended: bool | None = None
    losses: tuple[str, ...] = ()
    is_on_front_size: bool = False
    is_on_front_speed: bool = False


class FormatTable(FrozenModel):
    """All formats that were requested, the source first.

    Attributes:
        name: the model that was exported.
        base_name: its base model.
        data_file: the file of held-out rows.
        data_sha256: its digest.
        num_rows: held-out rows that quality is measured on.
        num_timed: prompts that speed is measured on.
        num_rounds: rounds; each format runs once a round, each time in a new process.
        num_threads: CPU threads of each runtime.
        max_new_tokens: most tokens of an answer.
        metric: what quality is evaluated by, fixed by rule beforehand.
        prices: each format.
        rows_notes: how rows of one group count.
        created_at: UTC, ISO 8601.
        machine: what it was measured on, by name.
        seconds: wall time of everything.
        report_path: its report; None before.
    """

    name: str
    base_name: str
    data_file: str
    data_sha256: str
    num_rows: int
    num_timed: int
    num_rounds: int
    num_threads: int
    max_new_tokens: int
    metric: str
    prices: tuple[FormatPrice, ...]
    rows_notes: tuple[str, ...] = ()
    created_at: str
    machine: dict[str, str]
    seconds: float
    report_path: str | None = None

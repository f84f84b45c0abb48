"""`luthier data ingest`, `conversations`, `synthesise` and `answer`: make rows of what people have.

`ingest` converts documents, `conversations` exports of mails, tickets and chats. `synthesise` writes pairs from
passages and checks them against these. `answer` has a teacher answer prompts for a student to learn from.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.defaults import SYNTHESIS_TOKENS, TEACHER_TOKENS
from luthier.core.text.counted import counted
from luthier.platform.cli.command import (
    Answer,
    ForceOption,
    HomeOption,
    JsonOption,
    MappingOption,
    open_context,
    parse_mapping,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.datasets.answers import Answering
    from luthier.features.datasets.conversations import Conversations
    from luthier.features.datasets.documents import IngestOutcome
    from luthier.features.datasets.syntheses import Synthesis
    from luthier.ml.inference.engine_wrappers import Usage

_NUM_SHOWN = 20
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget-usd", min=0, metavar="USD", help="Stop before passages that could exceed this budget."),
]
BatchOption = Annotated[
    bool,
    typer.Option(
        "--batch", help="Use the Batch API of a teacher on a server: within a day, and cheaper at some providers."
    ),
]


JudgeOption = Annotated[
    str | None,
    typer.Option("--judge", metavar="ENGINE", help="A model that checks that the passage entails each answer."),
]
MaxRowsOption = Annotated[int | None, typer.Option("--max-rows", min=1, metavar="N", help="Use only the first N rows.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", min=0, help="0 always takes the most likely token.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of sampling at a temperature above 0.")]
PromptPriceOption = Annotated[
    float | None, typer.Option("--price-input", min=0, metavar="USD", help="Price of a million prompt tokens.")
]
ReplyPriceOption = Annotated[
    float | None, typer.Option("--price-output", min=0, metavar="USD", help="Price of a million reply tokens.")
]


def ingest(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR_OR_FILES...",
            help="PDF, Word, PowerPoint, Excel, OpenDocument, RTF, HTML, EPUB, Markdown, text, mail, transcripts.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write the rows to (.jsonl).")
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The base model whose tokens are counted.")
    ] = None,
    chunk_tokens: Annotated[int, typer.Option("--chunk-tokens", min=16, help="Maximum tokens of a row.")] = 512,
    overlap_tokens: Annotated[
        int,
        typer.Option(
            "--overlap-tokens", min=0, help="Maximum tokens that a row repeats from the end of the one before."
        ),
    ] = 64,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="TEXT", help="The licence to note on every row.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Number of reading processes [default: one per CPU].")
    ] = None,
    timeout_seconds: Annotated[
        float, typer.Option("--timeout-seconds", min=0.1, help="Time limit for one document.")
    ] = 120.0,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Continue where an interrupted ingest stopped, or start over.")
    ] = True,
    fail_on_error: Annotated[
        bool, typer.Option("--fail-on-error", help="Exit code 1 if a document could not be read.")
    ] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Read documents into rows of text, each with its file, page or section, and digest."""
    from luthier.features.datasets import documents

    with open_context(home) as context:
        done = documents.ingest(
            context,
            places,
            output,
            model=model,
            chunk_tokens=chunk_tokens,
            overlap_tokens=overlap_tokens,
            licence=licence,
            num_workers=workers,
            timeout_seconds=timeout_seconds,
            is_fresh=not resume,
            force=force,
        )
    code = 1 if fail_on_error and done.ingestion.failed else 0
    return Answer(as_json, done.as_json(), lambda console: show_ingestion(console, done), code)


def conversations(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES_OR_DIR...",
            help="Mail archives (.mbox), exports of Zendesk and Intercom (JSON, JSONL) and of Slack (ZIP or folder).",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write the rows to (.jsonl).")
    ],
    assistant: Annotated[
        list[str] | None,
        typer.Option(
            "--assistant",
            metavar="WHO",
            help="Who answers: an address, @domain, a name or an id; repeatable [default: found in the export].",
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Turn mails, tickets and chats into rows of conversations; whoever answers is the assistant."""
    from luthier.features.datasets.conversations import convert_exports

    with open_context(home) as context:
        done = convert_exports(context, places, output, assistants=assistant or (), force=force)
    return Answer(as_json, done.as_json(), lambda console: _show_conversations(console, done))


def _show_conversations(console: Console, done: Conversations) -> None:
    from luthier.ml.data.conversations.exports import KIND_NAMES
    from luthier.platform.cli.console import facts, visible

    console.print(visible(f"{done.output}: {counted(done.num_rows, 'conversation')}"), soft_wrap=True)
    for one in done.converted:
        console.print(visible(f"\n{one.name}"), style="bold", soft_wrap=True)
        rows = [
            ("read as", KIND_NAMES[one.kind]),
            ("conversations", f"{one.tally.num_rows:,}"),
            ("who answers", ", ".join(one.chosen) if one.chosen else "by the roles in the export"),
            *([("wrote nothing", ", ".join(one.unmatched))] if one.unmatched else []),
            ("roles", one.tally.roles_summary()),
            ("left out", one.tally.left_out_summary() or "nothing"),
        ]
        facts(console, rows)
    _list(console, "not read", [(one.file, one.reason) for one in done.failed])
    _list(console, "left out of ZIP files", [(one.name, one.reason) for one in done.skipped])
    if done.num_other_files:
        console.print(f"\n{counted(done.num_other_files, 'other file')} left out: no export of conversations")


def show_ingestion(console: Console, done: IngestOutcome) -> None:
    """The counts, then what was not read and what to know, each with its file."""
    from luthier.ml.data.documents.ingest import by_kind
    from luthier.platform.cli.console import facts, visible

    found = done.ingestion
    reused = f" ({found.num_reused:,} by an earlier, interrupted ingest)" if found.num_reused else ""
    rows = [
        ("rows", f"{found.num_rows:,} in {done.output}"),
        ("documents", f"{len(found.documents) - len(found.failed):,} of {len(found.documents):,} read{reused}"),
        ("length", f"{found.num_tokens:,} {done.unit}"),
        ("each document", str(done.outcome)),
    ]
    facts(console, rows)
    _list(console, "not read", [(one.file, one.reason or "") for one in found.failed])
    warned = [(one.file, "; ".join(one.warnings)) for one in found.documents if one.warnings]
    _list(console, "read, with notes", warned)
    kinds = list(by_kind(found.skipped))
    if kinds:
        console.print("\nleft out", style="bold")
    for kind, num, names in kinds:
        more = " ..." if num > len(names) else ""
        console.print(visible(f"  {kind}: {num:,} ({', '.join(names)}{more})"), soft_wrap=True)


def _list(console: Console, title: str, entries: list[tuple[str, str]]) -> None:
    from luthier.platform.cli.console import visible

    if not entries:
        return
    console.print(f"\n{title} ({len(entries):,})", style="bold")
    for file, said in entries[:_NUM_SHOWN]:
        console.print(visible(f"  {file}: {said}"), soft_wrap=True)
    if len(entries) > _NUM_SHOWN:
        console.print(f"  ... and {len(entries) - _NUM_SHOWN:,} more, in the outcome file", soft_wrap=True)


class KindChoice(StrEnum):
    """What a pair is."""

    QA = "qa"
    INSTRUCTION = "instruction"


def synthesise(
    file: Annotated[
        Path, typer.Argument(metavar="ROWS", help="Rows with passages in `text`, as `luthier data ingest` writes them.")
    ],
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher",
            metavar="ENGINE",
            help="The model that writes: a base model, a folder, a run, or http(s)://host:port/v1#MODEL "
            "(key: LUTHIER_TEACHER_API_KEY or OPENAI_API_KEY).",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write the pairs to (.jsonl).")
    ],
    kind: Annotated[
        KindChoice, typer.Option("--kind", help="Questions with answers, or instructions.")
    ] = KindChoice.QA,
    pairs_per_passage: Annotated[
        int, typer.Option("--pairs-per-passage", min=1, max=20, help="Number of pairs to write from each passage.")
    ] = 1,
    judge: JudgeOption = None,
    min_support: Annotated[
        float,
        typer.Option("--min-support", min=0, max=1, help="Share of an answer's words that must be in the passage."),
    ] = 0.6,
    max_rows: MaxRowsOption = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Maximum tokens of a reply.")
    ] = SYNTHESIS_TOKENS,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    price_input: PromptPriceOption = None,
    price_output: ReplyPriceOption = None,
    budget_usd: BudgetOption = None,
    batch: BatchOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Have a teacher write pairs from passages; answers that their passage does not support are refused and listed."""
    from luthier.features.datasets import syntheses
    from luthier.features.datasets.prices import Prices

    with open_context(home) as context:
        found = syntheses.synthesise(
            context,
            file,
            teacher=teacher,
            output=output,
            kind=kind.value,
            pairs_per_passage=pairs_per_passage,
            judge=judge,
            min_support=min_support,
            max_rows=max_rows,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            force=force,
            prices=Prices(price_input, price_output),
            run=syntheses.SynthesisRun(budget_usd=budget_usd, uses_batch_api=batch),
        )
    return Answer(as_json, found.as_json(), lambda console: _show_pairs(console, found))


def _left_out(num_rows: int, by: str) -> str:
    """Behind the rows that were taken: how many were not, and which option left them out; empty for none."""
    return f" ({counted(num_rows, 'more row was', 'more rows were')} left out by {by})" if num_rows else ""


def _show_pairs(console: Console, found: Synthesis) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    by = "--budget-usd" if found.stopped_by_budget else "--max-rows"
    left = _left_out(found.num_rows_left, by)
    pairs = counted(found.num_pairs, "pair")
    console.print(
        visible(f"{found.output}: {pairs} from {counted(found.num_rows, 'row')} of {found.file}{left}"), soft_wrap=True
    )
    rows = [
        ("kind", found.kind),
        ("teacher", found.teacher),
        ("judge", found.judge or "none: overlap of words alone decides"),
        ("support", f"{found.mean_support:.2f} on average, at least {found.min_support:g}"),
        ("refused", f"{found.num_refused:,}, listed in {found.refused_file}" if found.num_refused else "none"),
    ]
    rows += [(f"  {reason}", f"{number:,}") for reason, number in found.refused.items()]
    rows.append(("tokens", tokens_text(found.teacher_usage)))
    if found.judge_usage is not None:
        rows.append(("  of the judge", tokens_text(found.judge_usage)))
    cost = "" if found.cost_usd is None else f"{found.cost_usd:.4f} USD: "
    rows += [("cost", cost + found.cost_note), ("time", figures.duration(found.seconds))]
    facts(console, rows)


def tokens_text(usage: Usage) -> str:
    """What was requested now, and what came from the cache."""
    new = (
        f"{usage.num_prompt_tokens:,} prompt + {usage.num_new_tokens:,} new in {counted(usage.num_requests, 'request')}"
    )
    cached = f"{usage.num_cached_prompt_tokens:,} + {usage.num_cached_new_tokens:,} in {usage.num_cached_requests:,}"
    return f"{new}; from the cache {cached}"


def answer(
    file: Annotated[
        Path, typer.Argument(metavar="ROWS", help="Rows with prompts, in any shape, with or without answers.")
    ],
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher",
            metavar="ENGINE",
            help="The model that answers: a base model, a folder, a run, or http(s)://host:port/v1#MODEL "
            "(key: LUTHIER_TEACHER_API_KEY or OPENAI_API_KEY).",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write the answers to (.jsonl).")
    ],
    mapping: MappingOption = None,
    max_rows: MaxRowsOption = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Longer answers are refused.")
    ] = TEACHER_TOKENS,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    price_input: PromptPriceOption = None,
    price_output: ReplyPriceOption = None,
    keep_thoughts: Annotated[
        bool,
        typer.Option(
            "--keep-thoughts", help="Also write the teacher's thoughts into the rows, for a student to learn."
        ),
    ] = False,
    batch: BatchOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Have a teacher answer every prompt, for a student to learn; empty and cut answers are refused and listed."""
    from luthier.features.datasets import answers as answerings
    from luthier.features.datasets.prices import Prices

    fields = parse_mapping(mapping or ())
    with open_context(home) as context:
        found = answerings.answer(
            context,
            file,
            teacher=teacher,
            output=output,
            mapping=fields or None,
            max_rows=max_rows,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            force=force,
            keeps_thoughts=keep_thoughts,
            uses_batch_api=batch,
            prices=Prices(price_input, price_output),
        )
    return Answer(as_json, found.as_json(), lambda console: _show_answers(console, found))


def _thoughts(found: Answering) -> str:
    what = (
        "kept as reasoning_content" if found.has_kept_thoughts else "left out of the rows (--keep-thoughts keeps them)"
    )
    return f"the teacher thought before {counted(found.num_thoughts, 'answer')}; {what}"


def _show_answers(console: Console, found: Answering) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    left = _left_out(found.num_rows_left, "--max-rows")
    count = counted(found.num_answers, "answer")
    console.print(
        visible(f"{found.output}: {count} to {counted(found.num_rows, 'row')} of {found.file}{left}"), soft_wrap=True
    )
    rows = [
        ("teacher", found.teacher),
        ("refused", f"{found.num_refused:,}, listed in {found.refused_file}" if found.num_refused else "none"),
        *((f"  {reason}", f"{number:,}") for reason, number in found.refused.items()),
        *((("thoughts", _thoughts(found)),) if found.num_thoughts else ()),
        ("tokens", tokens_text(found.teacher_usage)),
        (
            "cost",
            "no prices were given, so no cost is claimed"
            if found.cost_usd is None
            else f"{found.cost_usd:.4f} USD: the teacher's new tokens at the prices given",
        ),
        ("time", figures.duration(found.seconds)),
    ]
    facts(console, rows)

"""The HTML page of an audit: first what it says (headline, key figures, findings gravest first), then the template.

The views are plain text; everything is escaped where it is put into the template.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.results.audit import SEVERITIES, Audit, Finding, FindingExample, Grade
from luthier.core.system.files import replace_text
from luthier.core.text.names import shortened
from luthier.ml.charts import figures
from luthier.ml.charts.figures import Fact
from luthier.ml.charts.page import page_environment
from luthier.ml.data.audit.report.charts import audit_charts
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.evaluation.statistics.intervals import TAIL
from luthier.ml.evaluation.statistics.resampling import share_ends

GRADE_TONES: Final[dict[Grade, str]] = {"A": "good", "B": "good", "C": "open", "D": "bad", "F": "bad"}
GRADE_WORDS: Final[dict[Grade, str]] = {
    "A": "Nothing blocks training on this file.",
    "B": "Fit to train on; a few rows deserve a look.",
    "C": "Usable, but look at the warnings first.",
    "D": "Repair it before training: some rows are wrong.",
    "F": "Must not be trained on as it is.",
}
SEVERITY_TONES: Final = {"error": "bad", "warning": "open", "info": "quiet"}
NUM_OPEN_EXAMPLES: Final = 2
_NUM_DETAILS: Final = 16
_REPAIR: Final = "luthier data repair"


@dataclass(frozen=True, slots=True)
class FindingView:
    """One finding as a card.

    Attributes:
        anchor: id of the card on the page.
        finding: the finding itself.
        title: name of the check, with its kind.
        tone: colour by severity.
        rows: how many rows it is about.
        share: of all rows; empty where it is about the whole file.
        interval: 95% interval of a share that was estimated; else empty.
        pieces: of the fix, as (text, is code).
        command: repairs its rows; empty where `data repair` would change none.
        examples: shown at once.
        more_examples: shown on request.
        details: further figures, (name, value).
    """

    anchor: str
    finding: Finding
    title: str
    tone: str
    rows: str
    share: str
    interval: str
    pieces: tuple[tuple[str, bool], ...]
    command: str
    examples: tuple[FindingExample, ...]
    more_examples: tuple[FindingExample, ...]
    details: tuple[tuple[str, str], ...]


def headline(audit: Audit) -> str:
    """The grade as text, with what it rests on."""
    return f"{GRADE_WORDS[audit.grade]} {counted(audit)}"


def counted(audit: Audit) -> str:
    """`2 errors, 5 warnings and 3 notes in 1,204 rows.`"""
    names = {"error": ("error", "errors"), "warning": ("warning", "warnings"), "info": ("note", "notes")}
    parts = []
    for severity in SEVERITIES:
        num = sum(finding.severity == severity for finding in audit.findings)
        if num:
            parts.append(f"{num} {names[severity][num > 1]}")
    found = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "No finding"
    return f"{found} in {audit.num_rows:,} {'row' if audit.num_rows == 1 else 'rows'}."


def key_figures(audit: Audit, table: AuditTable) -> list[Fact]:
    """The four to six figures at the top."""
    # The frame holds only what could be read.
    unreadable = audit.num_rows - table.height
    facts = [
        Fact("Rows", figures.count(audit.num_rows), f"{unreadable:,} could not be read" if unreadable else "all read"),
        Fact("Size", figures.size(audit.num_bytes), f"sha256 {figures.short_digest(audit.sha256)}…"),
        Fact("Shape", (audit.shape or "none").replace("_", " "), "of the rows"),
        _length_fact(audit),
    ]
    if "num_tokens" in audit.profile:
        facts.append(Fact("Tokens", figures.short_count(audit.profile["num_tokens"]), f"of {audit.model}"))
    if audit.profile.get("num_labels"):
        facts.append(Fact("Labels", figures.count(audit.profile["num_labels"])))
    if audit.profile.get("num_sources"):
        facts.append(Fact("Sources", figures.count(audit.profile["num_sources"]), "documents that rows name"))
    return facts


def _length_fact(audit: Audit) -> Fact:
    tokens = audit.profile.get("text_tokens")
    found = tokens or audit.profile.get("text_characters")
    if not found:
        return Fact("Median length", "unknown", "no row could be read")
    unit = "tokens" if tokens else "characters"
    note = f"5% to 95%: {found['q05']:,.0f} to {found['q95']:,.0f}"
    return Fact("Median length", f"{found['q50']:,.0f} {unit}", note)


def finding_views(audit: Audit) -> list[FindingView]:
    """One card a finding, gravest first, and within one severity those about most rows first."""
    indexed = sorted(
        enumerate(audit.findings),
        key=lambda pair: (
            SEVERITIES.index(pair[1].severity),
            # A finding without rows is about the whole file.
            -(pair[1].fraction if pair[1].count else 1.0),
            pair[0],
        ),
    )
    return [_view(f"finding-{place}", finding, audit) for place, (_, finding) in enumerate(indexed, start=1)]


def _view(anchor: str, finding: Finding, audit: Audit) -> FindingView:
    kind = finding.details.get("kind", finding.details.get("sort"))
    title = finding.check.replace("_", " ") + (f": {str(kind).replace('_', ' ')}" if isinstance(kind, str) else "")
    return FindingView(
        anchor=anchor,
        finding=finding,
        title=title,
        tone=SEVERITY_TONES[finding.severity],
        rows=f"{finding.count:,}" if finding.count else "the whole file",
        share=figures.percent(finding.fraction) if finding.count else "",
        interval=estimate_interval(finding),
        pieces=_pieces(finding.fix),
        # Only where the fix itself names the command: not every check can be repaired.
        command=repair_command(audit, finding.check) if _REPAIR in finding.fix and finding.lines else "",
        examples=finding.examples[:NUM_OPEN_EXAMPLES],
        more_examples=finding.examples[NUM_OPEN_EXAMPLES:],
        details=_details(finding),
    )


def estimate_interval(finding: Finding) -> str:
    """`[1.2 %, 3.4 %]` where the fraction was estimated from a sample (`details.sample_size` rows); else empty."""
    size = finding.details.get("sample_size")
    # bool is an int in Python.
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        return ""
    low, high = share_ends(finding.fraction * size, size, TAIL)
    return f"[{figures.percent(low)}, {figures.percent(high)}]"


def _pieces(fix: str) -> tuple[tuple[str, bool], ...]:
    parts = fix.split("`")
    if len(parts) % 2 == 0:  # a backtick without its partner is text
        return ((fix, False),)
    return tuple((part, index % 2 == 1) for index, part in enumerate(parts) if part)


def repair_command(audit: Audit, check: str | None = None) -> str:
    """The command line that repairs the file: what one check found, or all that can be repaired."""
    clean = f"{Path(audit.file).name.split('.', 1)[0] or 'rows'}.clean.jsonl"
    words = [*_REPAIR.split(), audit.file, "-o", clean, *(["--only", check] if check else [])]
    # No other check reads the held-out file.
    if audit.against and check in (None, "contamination"):
        words += ["--against", audit.against]
    return shlex.join(words)


def _details(finding: Finding) -> tuple[tuple[str, str], ...]:
    """Further figures that fit on a line; lists and nested values are drawn or are in the JSON."""
    found = []
    for name, value in finding.details.items():
        if name in ("kind", "sort") or not isinstance(value, str | int | float):
            continue
        text = value if isinstance(value, str) else figures.plain(value)
        found.append((name.replace("_", " "), shortened(text, 200)))
    return tuple(found[:_NUM_DETAILS])


def file_facts(audit: Audit, held_out: AuditTable | None) -> list[Fact]:
    """The file, how it was read, and against what it was held."""
    facts = [
        Fact("File", audit.file),
        Fact("SHA-256", audit.sha256),
        Fact("Bytes", figures.count(audit.num_bytes)),
        Fact("Shape", (audit.shape or "none").replace("_", " "), audit.shape_reason),
        Fact("Model", audit.model or "none given", "" if audit.model else "lengths are in characters"),
        Fact("Held-out file", audit.against or "none given", f"sha256 {held_out.sha256}" if held_out else ""),
    ]
    if held_out is not None:
        facts.append(Fact("Rows of it", figures.count(held_out.num_rows)))
    return facts


def clean_checks(audit: Audit) -> list[str]:
    """Checks that were run and found nothing."""
    # A check that was skipped is not clean.
    noisy = {finding.check for finding in audit.findings} | audit.skipped.keys()
    return [check for check in audit.checks if check not in noisy]


def again(audit: Audit, html: str = "report.html") -> Sequence[tuple[str, str]]:
    """Commands for what comes next: (note, command line)."""
    words = ["luthier", "data", "audit", audit.file]
    words += ["--against", audit.against] if audit.against else []
    words += ["--model", audit.model] if audit.model else []
    return (
        ("Repair what can be repaired, every row listed with its reason", repair_command(audit)),
        ("Make this page again", shlex.join([*words, "--html", html])),
    )


TEMPLATES: Final = Path(__file__).parent / "templates"


def render_audit(
    audit: Audit, table: AuditTable, *, versions: Mapping[str, str], held_out: AuditTable | None = None
) -> str:
    """The page as one HTML document that refers to nothing outside itself. The same arguments give the same bytes.

    Args:
        audit: its findings and figures.
        table: the file that was audited.
        versions: name of a program -> its version.
        held_out: the file that it was compared with; None for none.
    """
    environment = page_environment(TEMPLATES)
    return environment.get_template("audit.html.j2").render(
        audit=audit,
        name=Path(audit.file).name,
        tone=GRADE_TONES[audit.grade],
        headline=headline(audit),
        key_figures=key_figures(audit, table),
        findings=finding_views(audit),
        clean=clean_checks(audit),
        charts=audit_charts(audit, table),
        facts=file_facts(audit, held_out),
        commands=again(audit),
        versions=dict(versions),
    )


def write_audit_report(
    path: Path,
    audit: Audit,
    table: AuditTable,
    *,
    versions: Mapping[str, str],
    held_out: AuditTable | None = None,
) -> Path:
    """Write the page to `path`, whole or not at all, and return it. Makes missing folders.

    Args:
        path: of the page.
        audit: the findings.
        table: the file that they are about.
        versions: names and versions of the libraries that found them.
        held_out: the held-out file that the audit compared with; None where it had none.

    Raises:
        StorageFullError: the disk is full.
    """
    page = render_audit(audit, table, versions=versions, held_out=held_out)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page)
    return path

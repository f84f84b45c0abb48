"""Use case: check a deployed model: its traffic against earlier traffic and against its training rows.

luthier monitor, the server's periodic check -> watch -> traffic.exchanges, training profiles, text checks
                                                      -> ml/drift (decides what has changed)

A training profile holds the prompts and answers that the model was trained on. Text checks are put together here from
several libraries, since none of these imports another.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.access import Caller
from luthier.core.dataset import Example
from luthier.core.errors import ConflictError, DataError, NotFoundError, RequestError
from luthier.core.records.deployment import Share
from luthier.core.records.monitoring import WatchReport, WatchSettings
from luthier.core.system.bounded_regex import BoundedPattern
from luthier.features.evaluation_orders.service import check_suite
from luthier.features.judges.service import judge_name
from luthier.features.monitoring.scheduled_suites import SETTINGS, check_suite_file, model_settings
from luthier.features.recipes.checks import column_map
from luthier.features.serving.targets import EXPORT
from luthier.features.traffic import service as traffic
from luthier.platform.files import service as files
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    import polars as pl

    from luthier.ml.drift.signals.columns import Checks
    from luthier.ml.drift.signals.signal_report import Watched
    from luthier.ml.drift.signals.training import Profile
    from luthier.ml.drift.topics import TextWords

MAX_CHARACTERS: Final = 4_000
"""Of a text that is looked at: what comes later counts in no signal."""
_MAX_CHECKED: Final = 500_000
_CHECKED: Final[dict[bytes, bool]] = {}


def text_checks(context: Context, corpus: Path | None = None) -> Checks:
    """The checks of texts that the signals need.

    Args:
        context: The home.
        corpus: Documents that answers may cite; None checks no citations.

    Raises:
        NotFoundError: No such path.
        DataError: A document that cannot be read, or no text at all.
    """
    from luthier.ml.data.personal_data.find import find_personal_data
    from luthier.ml.data.text.toxicity import THRESHOLD, english, toxicity_of
    from luthier.ml.drift.signals.columns import Checks
    from luthier.ml.evaluation.safety.refusal import is_refusal
    from luthier.ml.evaluation.statistics.resampling import share_ends

    listed = english()
    return Checks(
        words=text_words,
        languages=_languages,
        is_refusal=is_refusal,
        is_toxic=_remembered("toxic", lambda text: toxicity_of(text, listed).probability >= THRESHOLD),
        has_personal_data=_remembered("personal data", lambda text: bool(find_personal_data(text))),
        share_ends=share_ends,
        citations=None if corpus is None else _citations(context, corpus),
    )


def _remembered(name: str, check: Callable[[str], bool]) -> Callable[[str], bool]:
    """The check, which looks at a text once in the life of a process: the next look sees most answers again."""

    def remembered(text: str) -> bool:
        # The key is of the cut text, so answers that differ only behind the limit share one entry.
        cut = text[:MAX_CHARACTERS]
        # 16 bytes a text instead of up to 4,000 characters. surrogatepass: JSON may contain unpaired surrogates.
        key = blake2b(f"{name}\0{cut}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in _CHECKED:
            # Cleared as a whole: an LRU order would cost more than checking the texts again.
            if len(_CHECKED) >= _MAX_CHECKED:
                _CHECKED.clear()
            _CHECKED[key] = check(cut)
        return _CHECKED[key]

    return remembered


def text_words(texts: Sequence[str]) -> TextWords:
    """The words of texts as hashes."""
    import numpy as np
    import polars as pl

    from luthier.ml.data.text.words import word_blocks
    from luthier.ml.drift.topics import TextWords

    cut = pl.Series([text[:MAX_CHARACTERS] for text in texts], dtype=pl.String)
    # hashes: uint64 [words of all texts]; counts: int64 [texts], how many words each text has.
    blocks = list(word_blocks(cut))
    if not blocks:
        return TextWords(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))
    return TextWords(np.concatenate([one.hashes for one in blocks]), np.concatenate([one.counts for one in blocks]))


def _languages(texts: Sequence[str]) -> list[str | None]:
    import polars as pl

    from luthier.ml.data.text.languages import UNDETERMINED, languages

    found = languages(pl.Series(list(texts), dtype=pl.String))["language"].to_list()
    return [None if one == UNDETERMINED else one for one in found]


def _citations(context: Context, path: Path) -> Callable[[str], tuple[int, int]]:
    from luthier.core.results.suite import CitationsTask
    from luthier.features.datasets.documents import read_corpus
    from luthier.ml.evaluation.grounding.corpus import Corpus, findings

    forms = CitationsTask.model_fields["forms"].get_default(call_default_factory=True)
    corpus = Corpus(read_corpus(path, context.progress), forms=forms, progress=context.progress)

    def counted(text: str) -> tuple[int, int]:
        found = findings(text, corpus)
        return len(found), sum(one.status == "unknown" for one in found)

    return counted


MOST_ROWS: Final = 4_000
"""Rows that are drawn by lot: more would not make a PSI surer than the traffic lets it be."""
_MAX_PROFILES: Final = 4
_PROFILES: Final[dict[str, Profile]] = {}


def training_profile(context: Context, project_id: str, target: str, settings: WatchSettings) -> Profile | None:
    """The profile of what answers; None for a base model, or where its training rows are unknown.

    Args:
        context: The home.
        project_id: The project.
        target: A run id or the name of a model; empty for none.
        settings: `data` names rows in place of those of the run.

    Raises:
        DataError: The rows cannot be read.
        ConflictError: The rows are missing, or are not those that it was trained on.
    """
    from luthier.core.ids import sha256_file

    if settings.data is not None:
        path = Path(settings.data)
        if not path.is_file():
            raise ConflictError(
                f"the rows {path} are missing", expected="the file that was named with --data", do="put it back"
            )
        run = _run_behind(context, project_id, target)
        # The run's own column map: without it the rows would be read in another shape than they were trained in.
        mapping = column_map(context, () if run is None else (run,), path, None).mapping
        # Digest and sorted mapping make the arguments hashable and stale entries unreachable for lru_cache.
        return _of_file(settings.data, sha256_file(path), tuple(sorted((mapping or {}).items())))
    run_id = _run_behind(context, project_id, target)
    if run_id is None:
        return None
    if run_id not in _PROFILES:
        from luthier.features.planning.evaluation_plan import sample_of_run

        if len(_PROFILES) >= _MAX_PROFILES:
            _PROFILES.clear()
        _PROFILES[run_id] = _profile(sample_of_run(context, run_id))
    return _PROFILES[run_id]


def _run_behind(context: Context, project_id: str, target: str) -> str | None:
    from luthier.features.release_gates.service import own_run_behind

    # An export has no run to read rows from; `--data` names them then.
    if not target or target.startswith(EXPORT):
        return None
    try:
        return own_run_behind(context, Caller(project_id=project_id), Share(target=target, fraction=1)).run_id
    except NotFoundError:
        return None


@lru_cache(maxsize=4)
def _of_file(
    path: str,
    sha256: str,  # noqa: ARG001 - a file that has changed is read again
    mapping: tuple[tuple[str, str], ...],
) -> Profile:
    from luthier.ml.data.rows.formats import load_file

    return _profile(tuple(load_file(Path(path), mapping=dict(mapping)).examples))


def _profile(examples: Sequence[Example]) -> Profile:
    from luthier.ml.drift.signals.training import Profile

    # The same rows at each check: a new draw would move the reference and look like drift.
    drawn = random.Random(0).sample(examples, min(MOST_ROWS, len(examples)))  # noqa: S311 - a sample, no secret
    pairs = [(pair, one.has_answer) for one in drawn if (pair := _pair(one)) is not None]
    # What a row that ends with a prompt was given as its answer is nothing that the model has learned.
    return Profile([prompt for (prompt, _), _ in pairs], [answer for (_, answer), is_own in pairs if is_own])


def _pair(example: Example) -> tuple[str, str] | None:
    """The user's message before the last answer, and that answer; None for a plain text."""
    conversation = example.conversation
    if conversation is None or (place := conversation.last_answer) is None:
        return None
    # The last user turn before the answer, as traffic is compared: earlier turns are context.
    asked = [turn.content for turn in conversation.messages[:place] if turn.role == "user" and turn.content]
    answer = conversation.messages[place].content
    return (asked[-1], answer) if asked and answer else None


_MAX_GROUPS: Final = 12
_GROUP_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class MonitorResult:
    """What `luthier monitor` has found.

    Attributes:
        report: The signals of the window.
        page: The file of the page; None where none was requested.
    """

    report: WatchReport
    page: Path | None


def watch(context: Context, project_id: str, model: str, *, since: float, until: float | None = None) -> WatchReport:
    """The report of a model's traffic in [since, until).

    Args:
        context: The home.
        project_id: The project.
        model: The name that clients ask for.
        since: Seconds since 1970.
        until: Seconds since 1970; None for now.

    Raises:
        RequestError: The window has no length.
    """
    return _watched(context, project_id, model, since, until).report


def look(context: Context, project_id: str, model: str, *, since: float, html: Path | None = None) -> MonitorResult:
    """The report up to now, and a page of it.

    Args:
        context: The home.
        project_id: The project.
        model: The name that clients ask for.
        since: Seconds since 1970.
        html: The file of the page; None for no page.

    Raises:
        NotFoundError: The project has neither traffic nor a deployment of this name.
        RequestError: The window has no length.
    """
    found = _watched(context, project_id, model, since, None)
    if not len(found.rows.at):
        _refuse_unknown(context, project_id, model)
    if html is not None:
        from luthier.ml.drift.report.page import write_watch_page

        html = html.absolute()
        write_watch_page(html, found)
    return MonitorResult(found.report, html)


def set_model_settings(context: Context, project_id: str, model: str, settings: WatchSettings) -> WatchSettings:
    """Store an operator's settings for a model, in place of earlier ones.

    Raises:
        RequestError: Too many groups, a group's name or pattern, a judge's name, or a suite that no job can run.
        NotFoundError: A path or a file of the project that does not exist.
    """
    if len(settings.groups) > _MAX_GROUPS:
        raise RequestError(
            f"{len(settings.groups)} groups", expected=f"at most {_MAX_GROUPS}", do="name the most important ones"
        )
    for name, pattern in settings.groups.items():
        if not _GROUP_NAME.fullmatch(name):
            raise RequestError(
                f"a group named {name[:40]!r}",
                expected="1 to 32 small letters, digits, dashes and underscores",
                do="write for example --group women='she|her|madam'",
            )
        # Compiled here only to refuse it now: patterns of users are run over all traffic at each check.
        BoundedPattern(f"group {name}", pattern, ignore_case=True)
    if settings.judge is not None:
        judge_name(settings.judge)
    if settings.suite is not None:
        check_suite_file(Path(settings.suite))
    if settings.suite_file_id is not None:
        check_suite(context, project_id, files.get_file(context, project_id, settings.suite_file_id))
    for path in (settings.corpus, settings.data):
        if path is not None and not Path(path).exists():
            raise NotFoundError(f"no {path}", expected="a folder or a file", do="correct --corpus or --data")
    context.watches.put(project_id, SETTINGS, model, settings.model_dump_json())
    return settings


def _watched(context: Context, project_id: str, model: str, since: float, until: float | None) -> Watched:
    from luthier.features.judges.service import judged_by
    from luthier.features.monitoring.scheduled_suites import suite_signals
    from luthier.ml.drift.signals.signal_report import Compared, number_of_signals, watch_rows
    from luthier.ml.drift.thresholds import stretch_begins

    until = context.access.now() if until is None else until
    if not since < until:
        raise RequestError(
            f"a window from {since:.0f} to {until:.0f}", expected="a beginning before its end", do="correct --since"
        )
    settings = model_settings(context, project_id, model)
    # The comparison needs traffic from before the window, so it is read in one query with the window itself.
    begins = min(since, stretch_begins(until, settings.normal_since))
    frame = traffic.exchanges(context, project_id, model=model, since=begins, until=until, with_text=True)
    # The name may route to several targets; training data and suites belong to the one that answers most.
    target = _answering(frame, since)
    cautions = []
    try:
        profile = training_profile(context, project_id, target, settings)
    # Without training data the comparison over time still works, so this is a caution and not a failure.
    except (DataError, ConflictError, NotFoundError) as error:
        profile = None
        cautions.append(f"The training data could not be read: {error.came}.")
    # The deployment says who answers now: an alert of its suites must not end because nobody asks, and that of a
    # promoted model must not wait until most of the window is its own.
    suites = suite_signals(context, project_id, _deployed(context, project_id, model) or target, model)
    compared = Compared(profile, settings.groups, suites)
    # The number of signals goes in because the confidence level is divided among all of them.
    judged, said = judged_by(context, project_id, settings, frame, since, number_of_signals(compared))
    cautions += said
    found = watch_rows(
        frame,
        project_id=project_id,
        model=model,
        since=since,
        until=until,
        checks=text_checks(context, None if settings.corpus is None else Path(settings.corpus)),
        compared=replace(compared, quality=(*compared.quality, *judged)),
        num_dropped=traffic.num_dropped(context, project_id, since, until),
        normal_since=settings.normal_since,
    )
    if not cautions:
        return found
    report = found.report.model_copy(update={"cautions": (*found.report.cautions, *cautions)})
    return replace(found, report=report)


def _answering(frame: pl.DataFrame, since: float) -> str:
    """The target with most answers in the window, without canaries; empty where there is none."""
    import polars as pl

    own = frame.filter((pl.col("at") >= since) & ~pl.col("is_canary") & (pl.col("target") != ""))
    # Ties by name, else the order of a hash table would choose the target.
    counted = own["target"].value_counts().sort("count", "target", descending=[True, False])
    return str(counted["target"][0]) if counted.height else ""


def _deployed(context: Context, project_id: str, model: str) -> str:
    """The target with the largest share of a deployment, without canaries; empty where there is none of this name."""
    deployment = context.deployments.find(project_id, model)
    return "" if deployment is None else deployment.revision.main_share.target


def _refuse_unknown(context: Context, project_id: str, model: str) -> None:
    seen = traffic.exchanges(context, project_id)["model"].unique().sort().to_list()
    if model in seen or context.deployments.find(project_id, model) is not None:
        return
    known = ", ".join(repr(name) for name in seen[:5]) or "none"
    raise NotFoundError(
        f"model {model[:100]!r} is not known; models with requests: {known}",
        expected="a name that clients use, and a policy that stores traffic",
        do="see `luthier usage` for the names, `luthier traffic policy` for what is stored",
    )

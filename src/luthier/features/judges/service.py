"""Use cases: models as judges: opened by name, calibrated against people, and run on samples of traffic.

A judge is a base model, a run, a GGUF file, or a model behind an OpenAI-compatible server. A traffic sample is chosen
by a hash of the ids, and verdicts are kept. So overlapping checks judge the same answers, and an hour later only those
that are new in the sample cost anything.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final

from luthier.core.errors import DataError, LuthierError, NotFoundError, RequestError
from luthier.core.ids import new_id
from luthier.core.ports import Engine
from luthier.core.records.calibration import Calibration, Target
from luthier.core.records.monitoring import Signal, WatchSettings
from luthier.core.records.traffic import said_in
from luthier.core.results.suite import CRITERIA
from luthier.core.text.counted import counted
from luthier.features.generation.configured_teacher import check_is_configured
from luthier.features.generation.engines import find_teacher, is_address, parse_address
from luthier.features.models.names import find_model
from luthier.platform.db.stored_texts import FORGOTTEN
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    import polars as pl

    from luthier.core.results.human_eval import RatingsTable
    from luthier.core.results.suite import Criterion
    from luthier.ml.drift.signals.training import Scored
    from luthier.ml.evaluation.judge.verdicts import NoVerdict
    from luthier.ml.inference.engine_wrappers import CachedEngine


def open_judge(context: Context, name: str) -> Engine:
    """The engine behind a judge's name, with the project's generations in front of it: no question is paid for twice.

    The weights are loaded with the first new question. Close the engine after use.

    Args:
        context: The home.
        name: A base model, a run, a GGUF file (ends in .gguf), or `http(s)://host:port/v1#MODEL`.

    Raises:
        RequestError: An address without a model, or with a key in it.
        NotFoundError: No such file, base model or run.
    """
    name = lasting_name(context, name)  # of the weights that are opened, whatever a deployment routes to tomorrow
    from luthier.ml.inference.engine_wrappers import CachedJudge

    return CachedJudge(_find_file(context, Path(name)) if _is_file(name) else find_teacher(context, name), name)


def judge_name(name: str) -> str:
    """The name of a judge in one form, by which calibrations are looked for.

    Raises:
        RequestError: An address without a model.
    """
    # Normalised (no slash at the end, lower-case scheme), so that calibrations are found again.
    return "#".join(parse_address(name)) if is_address(name) else name


def lasting_name(context: Context, name: str) -> str:
    """The name that results and calibrations know a judge by; of a deployment that of the model behind it.

    A deployment may route to another model tomorrow, of which nobody knows how far it agrees with people.

    Raises:
        RequestError: An address without a model, or a deployment of an export.
    """
    if is_address(name) or _is_file(name):
        return judge_name(name)
    try:
        found = find_model(context, name, takes_exports=False)
    except NotFoundError:  # of another home: results may come from there
        return name
    return name if found.deployment is None else found.name


def same_base(context: Context, judge: str, systems: Mapping[str, str]) -> tuple[str, ...]:
    """A caution for each system that shares its base model with the judge, since judges prefer what they would write.

    Panickssery et al., 2024, "LLM Evaluators Recognize and Favor Their Own Generations", arXiv:2404.13076.

    Args:
        context: The home.
        judge: As `open_judge` takes it.
        systems: By the name that is shown, what each was made of: a base model, a run, or an address.
    """
    own = _base_of(context, judge)
    return tuple(
        f"{judge} judges {shown}, and both are {own}: models prefer answers in their own style. Choose "
        "another model as judge, or people."
        for shown, made_of in systems.items()
        # Compared by the last part of the name: quantised copies and re-uploads are the same model.
        if _plain(_base_of(context, made_of)) == _plain(own)
    )


def _base_of(context: Context, name: str) -> str:
    """The base model that something was made of; the name itself where nothing more is known."""
    if is_address(name):
        return parse_address(name)[1]
    try:
        run_id = find_model(context, name).run_id
        return name if run_id is None else context.runs.plan(run_id).base_model.name
    except NotFoundError:  # of another home: ratings may come from there
        return name


def _plain(name: str) -> str:
    """`Org/Model-7B`, `model-7b` and `/models/model-7b.gguf` are one name."""
    return PurePath(name).name.casefold().removesuffix(".gguf")


def _is_file(name: str) -> bool:
    return not is_address(name) and name.lower().endswith(".gguf")


def _find_file(context: Context, path: Path) -> CachedEngine:
    from luthier.core.ids import sha256_file
    from luthier.ml.inference.engine_wrappers import CachedEngine

    if not path.is_file():
        raise NotFoundError(f"no file {path}", expected="a GGUF file", do="correct the path")

    def open_file() -> Engine:
        from luthier.ml.inference.llama_cpp.cpp import LlamaCppEngine

        return LlamaCppEngine(path)

    return CachedEngine(
        lambda _: open_file(),
        context.generations.of_project(context.cache_project_id),
        name=str(path),
        # By content: a file that is replaced under its name must not get the answers of the old one.
        identity={"engine": "llama_cpp", "sha256": sha256_file(path)},
    )


_MIN = 2


def calibrate(
    context: Context, project_id: str, judge: str, *, ratings: Path | None = None, panel: str | None = None
) -> tuple[Calibration, ...]:
    """Have a judge rate what people rated, measure how far they agree, and store that; one calibration a target.

    Raters who fail their attention checks are left out, and named.

    Args:
        context: The home.
        project_id: The project.
        judge: As `open_judge` takes it.
        ratings: A file that `luthier human-eval export` has written. Exactly one of this and `panel`.
        panel: The id of a panel of the project.

    Raises:
        RequestError: Not exactly one source, a wrong file, or an unusable name of the judge.
        NotFoundError: No such panel, judge or file.
        DataError: Fewer than two items with ratings.
    """
    from luthier.ml.evaluation.judge.against_people import Occasion, targets_of
    from luthier.ml.evaluation.judge.against_people import calibrate as hold_against

    table, source, cautions = people_ratings(context, project_id, ratings=ratings, panel=panel)
    name = lasting_name(context, judge)
    occasion = Occasion(
        calibration_ids={target: new_id("calibration") for target in targets_of(table)},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        judge=name,
        source=source,
        cautions=(*cautions, *same_base(context, judge, {system: system for system in table.systems})),
    )
    with closing(open_judge(context, judge)) as engine:
        found = hold_against(engine, table, occasion, context.progress)
    # All targets or none: a job that is tried again knows by one of them that it is done.
    with context.database.transaction():
        for one in found:
            context.assessments.save(
                "calibration", one.calibration_id, one, project_id=project_id, subject=name, run_id=None
            )
    return found


def people_ratings(
    context: Context, project_id: str, *, ratings: Path | None = None, panel: str | None = None
) -> tuple[RatingsTable, str, tuple[str, ...]]:
    """The ratings that a judge is compared with, where they are from, and cautions on raters and items left out.

    Args:
        context: The home.
        project_id: The project.
        ratings: A file that `luthier human-eval export` has written. Exactly one of this and `panel`.
        panel: The id of a panel of the project.

    Raises:
        RequestError: Not exactly one source, or a wrong file.
        NotFoundError: No such panel or file.
        DataError: Fewer than two items with ratings.
    """
    table, source = _ratings(context, project_id, ratings, panel)
    # Raters who do not read would make a good judge look bad: agreement is measured with the others only.
    table, cautions = _who_read(table)
    table, gone = _with_texts(table)
    num_items = len(table.real.by_item())
    if num_items < _MIN:
        raise DataError(
            f"ratings of {counted(num_items, 'item')} by people who read, in {source}",
            expected=f"at least {_MIN}, attention checks aside",
            do="wait until people have rated more",
        )
    return table, source, (*cautions, *gone)


def is_calibrated(context: Context, project_id: str, judge: str, target: Target) -> Calibration | None:
    """The newest calibration of a judge in a target, if it says that its figures may enter a gate; else None.

    One that was made with another form of the questions counts for nothing.
    """
    from luthier.ml.evaluation.judge.verdicts import form_digest

    # The digest of the questions: another wording is another instrument, and its calibration does not carry over.
    form = form_digest()
    # The newest alone decides: an older good calibration must not hide a later bad one.
    newest = next((one for one in calibrations(context, project_id, judge) if one.target == target), None)
    return newest if newest is not None and newest.form == form and newest.may_enter_gate else None


def calibrations(context: Context, project_id: str, judge: str | None = None) -> list[Calibration]:
    """A project's calibrations, newest first; of one judge where it is named."""
    subject = None if judge is None else judge_name(judge)
    return context.assessments.list("calibration", Calibration, project_id, subject=subject)


def _ratings(context: Context, project_id: str, ratings: Path | None, panel: str | None) -> tuple[RatingsTable, str]:
    from luthier.core.results.human_eval import RatingsTable

    if (ratings is None) == (panel is None):
        raise RequestError(
            "both --ratings and --panel" if ratings is not None else "neither --ratings nor --panel",
            expected="exactly one of the two",
            do="name a file of ratings, or a panel: luthier human-eval list shows them",
        )
    if ratings is not None:
        return RatingsTable.read(ratings), str(ratings)
    from luthier.features.human_eval.service import ratings_table

    assert panel is not None
    return ratings_table(context, project_id, panel), panel


def _with_texts(table: RatingsTable) -> tuple[RatingsTable, tuple[str, ...]]:
    """The ratings of items that a judge can read as people did, and a caution where others are left out."""
    gone = {row.item for row in table.real.rows if FORGOTTEN in (row.prompt, row.answer_a, row.answer_b)}
    if not gone:
        return table, ()
    num_gone = len(gone)
    caution = f"Items that are left out, because their texts were forgotten: {num_gone:,}."
    return table.where(lambda row: row.item not in gone), (caution,)


def _who_read(table: RatingsTable) -> tuple[RatingsTable, tuple[str, ...]]:
    """The ratings without those of raters who fail their attention checks, and a sentence for each of these."""
    from luthier.ml.evaluation.panel import FAILED_SHARE, MIN_FAILED

    left_out, sentences = [], []
    for rater in table.raters:
        checks = [row.passed for row in table.rows if row.rater == rater and row.is_check]
        num_failed = checks.count(False)
        # A number and a share: one slip in two checks is no evidence, nor are two slips in fifty.
        if num_failed >= MIN_FAILED and num_failed >= FAILED_SHARE * len(checks):
            left_out.append(rater)
            sentences.append(f"{rater} failed {num_failed} of {len(checks)} attention checks, and is left out.")
    return table.without(left_out), tuple(sentences)


_MAX_CHARACTERS = 8_000
_MOST_SECONDS: Final = 60.0
"""For which a check asks a judge behind a server, on each side of a comparison: its process has ten minutes in all."""
_ASKED_AT_ONCE: Final = 16
"""Of a prompt, and of an answer: longer ones are not asked about, so that a judge's window holds them."""


def judged_by(
    context: Context, project_id: str, settings: WatchSettings, frame: pl.DataFrame, since: float, num_others: int
) -> tuple[tuple[Signal, ...], tuple[str, ...]]:
    """The signals of the judge that the settings name, and cautions; nothing where they name none.

    An unavailable judge is a caution, not a failed check: its signals are unknown.

    Args:
        context: of the home.
        project_id: whose model is monitored.
        settings: of the monitored model.
        frame: exchanges with their texts, columns of `Exchange`.
        since: where the window begins, in seconds since 1970.
        num_others: the number of other signals, among which the bound on false alarms is divided.
    """
    from luthier.ml.drift.signals.training import judged_signals, unjudged_signals

    if settings.judge is None:
        return (), ()
    try:
        _check_may_be_asked(context, settings)
        name = lasting_name(context, settings.judge)
        with context.caching_for(project_id), closing(open_judge(context, settings.judge)) as judge:
            # The same number on both sides; with unequal samples the smaller one would limit the test anyway.
            limit = _limit_of(settings.judge)
            before, num_later = _scored(context, judge, _sample(frame, None, since, settings.num_judged), limit)
            now, num_more = _scored(context, judge, _sample(frame, since, None, settings.num_judged), limit)
    except LuthierError as error:
        said = f"The judge {settings.judge} could not be asked: {error.came}."
        return unjudged_signals(settings.judge, CRITERIA), (said,)
    # The error is shared among all signals of the check, those of the judge included.
    signals = judged_signals(name, before, now, num_others + len(CRITERIA))
    slow = _slow(name, num_later + num_more)
    # Scores of an uncalibrated judge are shown, with the caution that they were not compared with people.
    alone = [criterion for criterion in CRITERIA if is_calibrated(context, project_id, name, criterion) is None]
    if not alone:
        return signals, slow
    said = f"Scores are the opinion of {name}, which is not known to agree with people in {', '.join(alone)}"
    return signals, (*slow, f"{said}: luthier judge calibrate.")


def scores_of_sides(
    context: Context, settings: WatchSettings, frame: pl.DataFrame
) -> tuple[dict[str, float], tuple[str, ...]]:
    """The mean score of sampled answers on both sides of a canary, 0 to 1, by exchange, and cautions.

    An unavailable judge is a caution, not an error. Raises nothing where the settings name no judge: then there are no
    scores.

    Args:
        context: The home.
        settings: Names the judge, and how many answers it gets.
        frame: Exchanges with their words, columns of `Exchange`.
    """
    if settings.judge is None:
        return {}, ()
    scores: dict[str, float] = {}
    num_later = 0
    try:
        _check_may_be_asked(context, settings)
        with closing(open_judge(context, settings.judge)) as judge:
            for side in (frame["is_canary"], ~frame["is_canary"]):
                sample = _sample(frame.filter(side), None, None, settings.num_judged)
                found, num_left = _scored(context, judge, sample, _limit_of(settings.judge))
                num_later += num_left
                for place, exchange_id in enumerate(found.ids):
                    given = [found.scores[criterion][place] for criterion in CRITERIA]
                    # From 1 to 5, as judges give them.
                    scores[exchange_id] = (sum(given) / len(given) - 1) / 4
    except LuthierError as error:
        return {}, (f"The judge {settings.judge} could not be asked: {error.came}.",)
    return scores, _slow(settings.judge, num_later)


def _check_may_be_asked(context: Context, settings: WatchSettings) -> None:
    """Raise ConflictError where the judge was chosen on a page, and the operator has configured another one since."""
    if settings.judge is not None and settings.judge_is_configured:
        check_is_configured(context, settings.judge)


def _limit_of(judge: str) -> float | None:
    """For how many seconds one side of a comparison may ask; None for a judge of this machine, which is not waited for
    but computes."""
    return _MOST_SECONDS if is_address(judge) else None


def _slow(judge: str, num_later: int) -> tuple[str, ...]:
    """A caution on the answers that there was no time to ask about; nothing where all were asked about."""
    if not num_later:
        return ()
    answers = counted(num_later, "sampled answer was", "sampled answers were")
    return (
        f"{judge} is slow: {answers} not scored within {2 * _MOST_SECONDS:.0f} s. The next check asks about the rest.",
    )


def _sample(frame: pl.DataFrame, since: float | None, until: float | None, num_wanted: int) -> pl.DataFrame:
    """Answered exchanges of a time whose text was stored: those with the lowest hashes, in that order."""
    import polars as pl

    is_it = (pl.col("status") < HTTPStatus.BAD_REQUEST) & pl.col("messages").is_not_null() & (pl.col("answer") != "")
    if since is not None:
        is_it &= pl.col("at") >= since
    if until is not None:
        is_it &= pl.col("at") < until
    found = frame.filter(is_it).unique("exchange_id", keep="last", maintain_order=True)
    # The lowest hashes of any window are a random sample, and overlapping windows share most of it.
    drawn = [hashlib.sha256(one.encode("utf-8", "replace")).hexdigest() for one in found["exchange_id"].to_list()]
    return found.with_columns(pl.Series("drawn", drawn, dtype=pl.String)).sort("drawn").head(num_wanted)


def _scored(context: Context, judge: Engine, sample: pl.DataFrame, limit_seconds: float | None) -> tuple[Scored, int]:
    """The scores of a sample, and how many of its answers were not asked about for want of time.

    They are asked about in the order of their hashes, so that those that come in time are a random sample, too.
    """
    from luthier.ml.drift.signals.training import Scored
    from luthier.ml.evaluation.judge.verdicts import NoVerdict, judge_answers

    asked = []
    for exchange_id, messages, answer in sample.select("exchange_id", "messages", "answer").iter_rows():
        prompt, said = _prompt(messages), said_in(answer)
        # Skipped, not cut: a judge would score the cut as a fault of the answer. Calls of tools are no answer to read.
        if prompt is not None and said is not None and max(len(prompt), len(said)) <= _MAX_CHARACTERS:
            asked.append((exchange_id, prompt, said))
    verdicts: list[dict[Criterion, int] | NoVerdict] = []
    began, size = time.monotonic(), len(asked) if limit_seconds is None else _ASKED_AT_ONCE
    while len(verdicts) < len(asked) and (limit_seconds is None or time.monotonic() - began < limit_seconds):
        group = [(prompt, answer) for _, prompt, answer in asked[len(verdicts) : len(verdicts) + size]]
        verdicts += judge_answers(judge, CRITERIA, group, context.progress)
    num_left, asked = len(asked) - len(verdicts), asked[: len(verdicts)]
    judged = [
        (exchange_id, one)
        for (exchange_id, _, _), one in zip(asked, verdicts, strict=True)
        if not isinstance(one, NoVerdict)
    ]
    scored = Scored(
        ids=[exchange_id for exchange_id, _ in judged],
        scores={criterion: [one[criterion] for _, one in judged] for criterion in CRITERIA},
        num_asked=len(asked),
    )
    return scored, num_left


def _prompt(messages: str) -> str | None:
    """The text of the user's last message; None where there is none."""
    of_users = [one for one in json.loads(messages) if one.get("role") == "user"]
    content = of_users[-1].get("content") if of_users else None
    return content if isinstance(content, str) and content.strip() else None

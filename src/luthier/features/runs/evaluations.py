"""Use cases: the evaluations of one project, as a list and one by one, without places of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import NotFoundError
from luthier.core.evaluation import Evaluation, EvaluationOverview
from luthier.features.runs import service as runs
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths

_MAX_LOOKED_THROUGH: Final = 2000


@dataclass(frozen=True, slots=True)
class EvaluationPage:
    """Some evaluations, newest first, and whether there are older ones."""

    evaluations: Sequence[EvaluationOverview]
    has_more: bool


def list_evaluations(
    context: Context, project_id: str, *, words: str = "", word: str = "", after: str | None = None, limit: int = 50
) -> EvaluationPage:
    """Evaluations, newest first.

    Args:
        context: The home.
        project_id: Of the project.
        words: All of them must occur in the run's id, the file's name, or the name of a system or model.
        word: Of the verdict, or `none` for evaluations without one.
        after: Only those older than this evaluation.
        limit: At most this many. With `words` or `word` the newest 2,000 are searched.
    """
    most = _MAX_LOOKED_THROUGH if words or word else limit + 1
    found, places = [], home_paths(context)
    for one in context.evaluations.overviews(project_id, limit=most, after=after):
        shown = EvaluationOverview.model_validate(redact_paths(one.model_dump(mode="json"), places))
        if (not word or word == (one.word or "none")) and _has(shown, words.casefold().split()):
            found.append(shown)
    return EvaluationPage(found[:limit], len(found) > limit)


def read_evaluation(context: Context, project_id: str, evaluation_id: str) -> Evaluation:
    """An evaluation with its samples; what a model or a row says stays as it is. Raises NotFoundError."""
    wrong = NotFoundError(
        f"no evaluation {evaluation_id!r}",
        expected="the id of an evaluation of this project",
        do="take the evaluation_id of a run, or see the list of evaluations",
    )
    try:
        found = context.evaluations.read(evaluation_id)
    # The same error as for another project's evaluation, so that ids cannot be probed.
    except NotFoundError:
        raise wrong from None
    owner = DEFAULT_PROJECT if found.run_id is None else context.runs.project_of(found.run_id)
    if owner != project_id:
        raise wrong
    return without_paths(context, found)


def without_paths(context: Context, evaluation: Evaluation) -> Evaluation:
    """The same without paths of this machine; samples, which say what rows and models say, stay as they are."""
    # Without samples: a text that a model wrote must not be changed because it looks like a path.
    plain = Evaluation.model_validate(redact_paths(runs.without_samples(evaluation), home_paths(context)))
    systems = tuple(
        shown.model_copy(update={"samples": own.samples})
        for shown, own in zip(plain.systems, evaluation.systems, strict=True)
    )
    return plain.model_copy(update={"systems": systems})


def _has(one: EvaluationOverview, words: Sequence[str]) -> bool:
    told = [one.evaluation_id, one.run_id or "", one.held_out_file, one.headline, *one.systems, *one.models]
    text = "\n".join(told).casefold()
    return all(word in text for word in words)

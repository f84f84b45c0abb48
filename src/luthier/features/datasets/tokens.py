"""Use cases: a version as the tokens of a base model of this machine, found out in the background and kept."""

from __future__ import annotations

from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.features.datasets.records import DatasetVersion
from luthier.features.files.references import answer_about
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import check_is_local, model_digest
from luthier.platform.processes.result_cache import CachedResult, Subject, cached_result, start_computation

TEMPLATES: Final = ("auto", "chat", "plain")


def tokens_state(context: Context, version: DatasetVersion, model: str, template: str) -> CachedResult:
    """How it stands with the tokens of a version."""
    return cached_result(context, _subject(context, version, model, template))


def begin_tokens(context: Context, caller: Caller, version: DatasetVersion, model: str, template: str) -> CachedResult:
    """Find out the tokens of a version. Raises RequestError for a model that is not on this machine, or a template."""
    check_is_local(context, model)
    if template not in TEMPLATES:
        raise RequestError(
            f"the template {template[:100]!r}", expected=f"one of {', '.join(TEMPLATES)}", do="choose one of these"
        )

    def answer() -> dict[str, object]:
        given = {"template": template}
        return answer_about(context, caller.project_id, "tokens", version.file_id, given, model=model)

    return start_computation(context, _subject(context, version, model, template), answer)


def _subject(context: Context, version: DatasetVersion, model: str, template: str) -> Subject:
    # The digest, not the name: a model that was pulled again under its name may have another tokenizer.
    given = {"suffix": files.suffix_of(version.filename), "model": model_digest(context, model), "template": template}
    return Subject(version.sha256, "tokens", given)

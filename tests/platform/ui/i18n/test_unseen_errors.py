"""No error that a page may show is missed by the extraction of texts (`sentences.cfg`).

The extraction recognises errors by their name, and reads services, stores, requests and pages of every feature without
an entry of their own. Modules whose errors are shown in English, and marked as English, are listed with the reason.
"""

from __future__ import annotations

import ast
import re
from io import BytesIO
from pathlib import Path

from tests.platform.ui.i18n.test_catalogs import forms
from tests.platform.ui.i18n.test_unseen_sentences import NO_PAGES
from tests.vacuous import nonempty

import luthier
from luthier.platform.ui.i18n.extract import sentences

SOURCE = Path(luthier.__file__).parent
READ = ("features/**/*.py", "platform/auth/*.py", "platform/files/*.py", "platform/jobs/*.py", "platform/ui/**/*.py")
JOB = "kept with the job that failed; pages show it as English"
PLAN = "a recipe or a plan is refused in the words of the command"
API = "the answer to a request of the API"
COMMAND = "printed by a command"
ENGLISH_ERRORS = {
    "features/batches/job.py": JOB,
    "features/datasets/": "the command and the job share the module; pages show it as English",
    "features/evals_api/": API,
    "features/evaluations/": JOB,
    "features/exports/": JOB,
    "features/files/uploads_api.py": API,
    "features/generation/": JOB,
    "features/human_eval/files.py": COMMAND,
    "features/model_checks/trials.py": JOB,
    "features/monitoring/alerts.py": COMMAND,
    "features/planning/": PLAN,
    "features/recipes/file.py": PLAN,
    "features/roi/three_questions.py": COMMAND,
    "features/serving/": API,
    "features/studies/": JOB,
    "features/suites/": JOB,
    "features/traffic/": API,
    "features/training/": JOB,
    "features/workflows/": JOB,
}
"""Folders and modules with errors that are not translated, and where these are shown."""
TRANSLATED = re.compile(r"/(?:\w*service|store|requests|views|\w*pages)\.py$|/pages/")
"""Modules whose errors are answers to a form; none of these is English, whatever its folder."""
EXCEPTIONS = re.compile(r"features/(?:evals_api|training)/")


def english_errors(name: str) -> list[str]:
    """The texts of errors of a module that have no German."""
    known = {*forms("de", "sentences"), *forms("de", "pages")}
    with (SOURCE / name).open("rb") as file:
        found = [str(text) for _, _, text, _ in sentences(file, (), (), {"within": "Error"})]
    return [text for text in found if text not in known]


def modules() -> list[str]:
    found = {path.relative_to(SOURCE).as_posix() for pattern in READ for path in SOURCE.glob(pattern)}
    return sorted(name for name in nonempty(sorted(found)) if not NO_PAGES.search(f"/{name}"))


def reason_of(name: str) -> str | None:
    """The listed folder or module that a module belongs to; None for one whose errors are translated."""
    if TRANSLATED.search(name) and not EXCEPTIONS.match(name):
        return None
    return next((one for one in ENGLISH_ERRORS if name.startswith(one)), None)


def test_no_error_of_a_form_is_missed_by_the_extraction() -> None:
    missed = [f"{name}: {text}" for name in modules() if reason_of(name) is None for text in english_errors(name)]
    assert missed == [], "name the module in sentences.cfg and translate its errors"


def test_each_listed_folder_has_an_error_in_english() -> None:
    needed = {reason_of(name) for name in modules() if english_errors(name)}
    assert sorted(set(nonempty(sorted(ENGLISH_ERRORS))) - needed) == []


def test_every_class_of_error_is_named_as_the_extraction_expects() -> None:
    """The extraction takes the arguments of what ends in `Error`."""
    classes = [
        (
            f"{path.relative_to(SOURCE)}: {node.name}",
            [getattr(base, "attr", getattr(base, "id", "")) for base in node.bases],
        )
        for path in sorted(SOURCE.glob("**/*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    errors = [name for name, bases in classes if any(base.endswith("Error") for base in bases)]
    assert len(errors) > 30
    assert [name for name in errors if not name.endswith("Error")] == []


def test_texts_of_notices_and_of_work_are_taken_without_an_option() -> None:
    source = b"""
def of(request):
    notice = "It waits for review."
    notice += f" {request.number} are left out."
    with track("Reading rows"):
        return redirect(request, "/", "The price is changed.")
    return "not this one"
"""
    assert [text for _, _, text, _ in sentences(BytesIO(source), (), (), {"within": "Error"})] == [
        "It waits for review.",
        " {number} are left out.",
        "Reading rows",
        "The price is changed.",
    ]

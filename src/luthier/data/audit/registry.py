"""Which checks there are, in the order in which they are run and shown: a table of "module:function" strings.

Entry points in the group `luthier.checks` add to it; built-ins use the same door.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points

from luthier.core.errors import NotFoundError
from luthier.data.audit.request import Check

BUILT_IN = {
    "schema": "luthier.data.audit.schema:check",
    "encoding": "luthier.data.audit.encoding:check",
    "exact_duplicate": "luthier.data.audit.exact_duplicate:check",
    "near_duplicate": "luthier.data.audit.near_duplicate:check",
    "conflicting_completion": "luthier.data.audit.conflicting_completion:check",
    "contamination": "luthier.data.audit.contamination:check",
    "personal_data": "luthier.data.audit.personal_data:check",
    "secret": "luthier.data.audit.secret:check",
    "toxicity": "luthier.data.audit.toxicity:check",
    "language": "luthier.data.audit.language:check",
    "length": "luthier.data.audit.length:check",
    "over_context": "luthier.data.audit.over_context:check",
    "empty_completion": "luthier.data.audit.empty_completion:check",
    "truncated_completion": "luthier.data.audit.truncated_completion:check",
    "repeated_completion": "luthier.data.audit.repeated_completion:check",
    "refusal": "luthier.data.audit.refusal:check",
    "label_imbalance": "luthier.data.audit.label_imbalance:check",
    "prompt_injection": "luthier.data.audit.prompt_injection:check",
    "constant_prompt": "luthier.data.audit.constant_prompt:check",
    "few_examples": "luthier.data.audit.few_examples:check",
}


def check_names() -> list[str]:
    """The ids that `load_checks` knows: built-ins in their order, then plug-ins by name."""
    return list(_table())


def load_checks(names: Sequence[str] | None = None) -> dict[str, Check]:
    """The checks of these ids (all where None), in the order of the table. Raises NotFoundError for an unknown id."""
    table = _table()
    for name in names or ():
        if name not in table:
            raise NotFoundError(
                f"check {name!r}",
                expected=f"one of {', '.join(table)}",
                do="correct the id, or install the package that brings this check (entry point group luthier.checks)",
            )
    wanted = table if names is None else {name: where for name, where in table.items() if name in names}
    return {name: _load(where) for name, where in wanted.items()}


def _load(where: str) -> Check:
    module, _, attribute = where.partition(":")
    found: Check = getattr(import_module(module), attribute)
    return found


def _table() -> dict[str, str]:
    plug_ins = {entry.name: entry.value for entry in entry_points(group="luthier.checks")}
    return BUILT_IN | {name: plug_ins[name] for name in sorted(plug_ins) if name not in BUILT_IN}

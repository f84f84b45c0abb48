"""Which checks there are, in the order in which they are run and shown: a table of "module:function" strings.

Entry points in the group `luthier.checks` add to it; built-ins use the same door.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.import_string import import_string
from luthier.core.registry import CHECKS
from luthier.ml.data.audit.request import Check

BUILT_IN = {
    "schema": "luthier.ml.data.audit.schema:check",
    "encoding": "luthier.ml.data.audit.encoding:check",
    "exact_duplicate": "luthier.ml.data.audit.exact_duplicate:check",
    "near_duplicate": "luthier.ml.data.audit.near_duplicate:check",
    "conflicting_completion": "luthier.ml.data.audit.conflicting_completion:check",
    "contamination": "luthier.ml.data.audit.contamination:check",
    "personal_data": "luthier.ml.data.audit.personal_data:check",
    "secret": "luthier.ml.data.audit.secret:check",
    "toxicity": "luthier.ml.data.audit.toxicity:check",
    "language": "luthier.ml.data.audit.language:check",
    "length": "luthier.ml.data.audit.length:check",
    "over_context": "luthier.ml.data.audit.over_context:check",
    "empty_completion": "luthier.ml.data.audit.empty_completion:check",
    "truncated_completion": "luthier.ml.data.audit.truncated_completion:check",
    "repeated_completion": "luthier.ml.data.audit.repeated_completion:check",
    "refusal": "luthier.ml.data.audit.refusal:check",
    "label_imbalance": "luthier.ml.data.audit.label_imbalance:check",
    "prompt_injection": "luthier.ml.data.audit.prompt_injection:check",
    "constant_prompt": "luthier.ml.data.audit.constant_prompt:check",
    "few_examples": "luthier.ml.data.audit.few_examples:check",
}


def check_names() -> list[str]:
    """The ids that `load_checks` knows: built-ins in their order, then plug-ins by name."""
    return list(CHECKS.names())


def load_checks(names: Sequence[str] | None = None) -> dict[str, Check]:
    """The checks of these ids, in the order of the table.

    Args:
        names: Ids; None for all.

    Raises:
        NotFoundError: No table knows an id, or a plug-in cannot be loaded.
    """
    for name in names or ():
        if name not in BUILT_IN:
            CHECKS.plug_in(name)
    wanted = CHECKS.names() if names is None else [name for name in CHECKS.names() if name in names]
    return {name: import_string(BUILT_IN[name]) if name in BUILT_IN else CHECKS.load(name) for name in wanted}

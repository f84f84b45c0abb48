"""Which methods there are. A table of "module:Class" strings names them, built-ins and plug-ins alike.

Entry points in the group `luthier.methods` add to it.
"""

from __future__ import annotations

from luthier.core.entry_points import entry_points
from luthier.core.errors import NotFoundError
from luthier.core.import_string import import_string
from luthier.core.plan import MethodPlan
from luthier.core.recipe import METHOD_ENTRY_POINTS
from luthier.ml.training.methods.protocol import Method

BUILT_IN = {
    "full": "luthier.ml.training.methods.full:Full",
    "lora": "luthier.ml.training.methods.lora:Lora",
    "rslora": "luthier.ml.training.methods.rslora:RsLora",
    "dora": "luthier.ml.training.methods.dora:Dora",
    "loraplus": "luthier.ml.training.methods.loraplus:LoraPlus",
    "pissa": "luthier.ml.training.methods.pissa:Pissa",
    "olora": "luthier.ml.training.methods.olora:OLora",
    "adalora": "luthier.ml.training.methods.adalora:AdaLora",
    "qlora": "luthier.ml.training.methods.qlora:QLora",
    "ia3": "luthier.ml.training.methods.ia3:Ia3",
    "prompt_tuning": "luthier.ml.training.methods.prompt_tuning:PromptTuning",
}


def load_method(plan: MethodPlan) -> Method:
    """The method that a plan names.

    Raises:
        NotFoundError: a name that no table knows.
    """
    known = {entry.name: entry.value for entry in entry_points(group=METHOD_ENTRY_POINTS)} | BUILT_IN
    if plan.name not in known:
        raise NotFoundError(
            f"method {plan.name!r}",
            expected=f"one of {', '.join(sorted(known))}",
            do="correct method.name, or install the package that brings it (entry point group luthier.methods)",
        )
    method: Method = import_string(known[plan.name])(plan)
    return method

"""Which methods there are. A table of "module:Class" strings is the door: built-ins and plug-ins use the same one.

Entry points in the group `luthier.methods` add to it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from luthier.core.errors import NotFoundError
from luthier.core.plan import MethodPlan
from luthier.core.recipe import METHOD_ENTRY_POINTS
from luthier.train.methods.protocol import Method

BUILT_IN = {
    "full": "luthier.train.methods.full:Full",
    "lora": "luthier.train.methods.lora:Lora",
    "rslora": "luthier.train.methods.rslora:RsLora",
    "dora": "luthier.train.methods.dora:Dora",
    "loraplus": "luthier.train.methods.loraplus:LoraPlus",
    "pissa": "luthier.train.methods.pissa:Pissa",
    "olora": "luthier.train.methods.olora:OLora",
    "adalora": "luthier.train.methods.adalora:AdaLora",
    "qlora": "luthier.train.methods.qlora:QLora",
    "ia3": "luthier.train.methods.ia3:Ia3",
    "prompt_tuning": "luthier.train.methods.prompt_tuning:PromptTuning",
}


def load_method(plan: MethodPlan) -> Method:
    """The method that a plan names. Raises NotFoundError for a name that no table knows."""
    known = {entry.name: entry.value for entry in entry_points(group=METHOD_ENTRY_POINTS)} | BUILT_IN
    if plan.name not in known:
        raise NotFoundError(
            f"method {plan.name!r}",
            expected=f"one of {', '.join(sorted(known))}",
            do="correct method.name, or install the package that brings it (entry point group luthier.methods)",
        )
    module, _, name = known[plan.name].partition(":")
    method: Method = getattr(import_module(module), name)(plan)
    return method

"""Plans of recipes that are still being drafted: one at a time, the newest of each draft, cached for a while.

requests (newest of each draft) --> one thread --> one warm process (`WarmChild`), which answers by the functions below

A recipe that no one waits for any more is dropped from the queue, and a process that has planned it for long is ended.
Thread and process end after some minutes without requests. A server has one planner, since it has one process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import BusyError, LuthierError
from luthier.core.ids import sha256_document
from luthier.core.system.process_setup import start_daemon
from luthier.features.files.references import plan_of
from luthier.platform.home.context import Context
from luthier.platform.processes.analysis import WarmChild

if TYPE_CHECKING:
    from starlette.datastructures import State

    from luthier.features.planning.service import Prepared

log = logging.getLogger("luthier.plans")

IDLE_SECONDS: Final = 300.0
_MAX_WAITING: Final = 32
_MAX_KEPT: Final = 128
_KEEP_SECONDS: Final = 600.0
_KEEP_ERROR_SECONDS: Final = 15.0
"""What was wrong may be repaired elsewhere: a model that was fetched, a process that found memory."""
_ABANDONED_SECONDS: Final = 8.0
"""How long a plan that no one waits for may continue: restarting the process takes as long."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The result of planning a recipe: the plan as `files.references.plan_of` gives it, or an error."""

    plan: dict[str, Any] | None = None
    error: LuthierError | None = None
    at: float = field(default_factory=time.monotonic)

    @property
    def is_fresh(self) -> bool:
        """Whether it may still be returned for the same request."""
        return time.monotonic() - self.at < (_KEEP_SECONDS if self.error is None else _KEEP_ERROR_SECONDS)


@dataclass(slots=True)
class _PlanRequest:
    digest: str
    project_id: str
    recipe: Mapping[str, Any] | None
    drafts: set[str] = field(default_factory=set)
    began: float | None = None


@dataclass(slots=True)
class Started:
    """What a draft has become. run_id: of its run; None before it was started."""

    run_id: str | None = None


class DraftPlanner:
    """Plans recipes of drafts. All methods may be called by any thread."""

    def __init__(self, context: Context) -> None:
        self._context, self._child = context, WarmChild()
        self._changed = threading.Condition()
        self._requests: OrderedDict[str, _PlanRequest] = OrderedDict()
        self._planned: OrderedDict[str, Planned] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._start_lock = threading.Lock()
        self._started: OrderedDict[tuple[str, str, str], Started] = OrderedDict()

    def plan(self, project_id: str, draft: str, recipe: Mapping[str, Any], *, wait_seconds: float) -> Planned | None:
        """The plan of a recipe, waited for so long; None while it is not done, or where the draft has changed since.

        Args:
            project_id: The project, whose drafts nobody else sees.
            draft: Names what is being drafted; of one draft only the newest recipe is planned.
            recipe: The recipe as plain keys.
            wait_seconds: How long at most.

        Raises:
            BusyError: Too many wait already.
        """
        digest = sha256_document({"project": project_id, "recipe": dict(recipe)})
        deadline = time.monotonic() + wait_seconds
        with self._changed:
            if (known := self._known(digest)) is not None:
                self._forget_others(draft, digest)
                return known
            self._want(_PlanRequest(digest, project_id, recipe), draft)
            # Conditions may wake without a reason, and one wake-up may be for another recipe: everything is checked
            # again.
            while (known := self._known(digest)) is None:
                left = deadline - time.monotonic()
                ask = self._requests.get(digest)
                if left <= 0 or ask is None or draft not in ask.drafts:
                    return None
                self._changed.wait(left)
            return known

    def wake(self) -> None:
        """Start the process, so that it is ready for the first request."""
        with self._changed:
            if self._thread is None and not self._requests:
                self._want(_PlanRequest("wake", "", None), "wake")

    @contextmanager
    def starting(self, project_id: str, draft: str, recipe: Mapping[str, Any]) -> Iterator[Started]:
        """What became of this recipe of this draft, to be set once it is started: a second click starts no other."""
        key = (project_id, draft, sha256_document(dict(recipe)))
        # Held while the caller starts the run: a second click waits here and then finds the id of the first.
        with self._start_lock:
            if draft and key in self._started:
                yield self._started[key]
                return
            started = self._started[key] = Started()
            while len(self._started) > _MAX_KEPT:
                self._started.popitem(last=False)
            yield started

    def close(self) -> None:
        """Drop the requests, and end thread and process."""
        with self._changed:
            self._is_closed = True
            self._requests.clear()
            self._child.kill()
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _known(self, digest: str) -> Planned | None:
        found = self._planned.get(digest)
        return found if found is not None and found.is_fresh else None

    def _want(self, ask: _PlanRequest, draft: str) -> None:
        self._forget_others(draft, ask.digest)
        if ask.digest not in self._requests and len(self._requests) >= _MAX_WAITING:
            raise BusyError(
                f"{_MAX_WAITING} recipes are waiting to be planned",
                expected="some of them to be done soon",
                do="try again in a moment",
            )
        if self._thread is None:
            # Before the recipe is stored: where no thread can be started, nothing waits for one.
            self._thread = start_daemon(self._work, "draft-planner")
        self._requests.setdefault(ask.digest, ask).drafts.add(draft)
        self._changed.notify_all()

    def _forget_others(self, draft: str, digest: str) -> None:
        """A draft needs only its newest recipe."""
        for ask in list(self._requests.values()):
            if ask.digest == digest:
                continue
            ask.drafts.discard(draft)
            if not ask.drafts and ask.began is None:
                del self._requests[ask.digest]
            elif not ask.drafts and ask.began is not None and time.monotonic() - ask.began > _ABANDONED_SECONDS:
                self._child.kill()
        self._changed.notify_all()

    def _work(self) -> None:
        while (ask := self._next()) is not None:
            planned = self._answered(ask)
            with self._changed:
                if planned.error is not None and self._child.was_killed and ask.drafts and not self._is_closed:
                    ask.began = None  # somebody has come back to it meanwhile
                    continue
                self._requests.pop(ask.digest, None)
                # The error of a process that was killed on purpose says nothing of the recipe, so it is not kept.
                if ask.recipe is not None and (planned.error is None or not self._child.was_killed):
                    self._planned[ask.digest] = planned
                    self._planned.move_to_end(ask.digest)
                while len(self._planned) > _MAX_KEPT:
                    self._planned.popitem(last=False)
                self._changed.notify_all()

    def _next(self) -> _PlanRequest | None:
        """The oldest ask; None, and the thread ends, where none has come for long."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._is_closed, IDLE_SECONDS)
            if self._requests and not self._is_closed:
                ask = next(iter(self._requests.values()))
                ask.began = time.monotonic()
                return ask
            self._thread = None  # from here on another may be started: that has its own process
            child, self._child = self._child, WarmChild()
        # Outside the lock: ending a process takes a while, and no one should wait for it.
        child.close()
        return None

    def _answered(self, ask: _PlanRequest) -> Planned:
        try:
            if ask.recipe is None:
                self._child.answer_to(self._context, "wake", {})
                return Planned()
            plan = plan_of(self._context, ask.project_id, ask.recipe, ask=self._child.answer_to, compares=True)
            return Planned(plan)
        except LuthierError as error:
            return Planned(error=error)
        except Exception as error:  # noqa: BLE001 - the thread continues after any error of a recipe
            return Planned(error=_bug(error))


def _bug(error: Exception) -> LuthierError:
    log.error("a recipe could not be planned", exc_info=error)
    return LuthierError("internal server error", expected="no bug in Luthier", do="see the server's log, and report it")


def wake(context: Context, _asked: dict[str, Any]) -> dict[str, Any]:
    """Load what a plan needs and measure the machine, so that the first plan need not wait for that."""
    from luthier.features.planning import quotes
    from luthier.features.planning import service as plans
    from luthier.ml.planning import quote as options
    from luthier.ml.planning import resolve

    device = quotes.device_for(context, None)
    return {"device": device.name, "ready": [m.__name__ for m in (quotes, options, plans, resolve)]}


def plan_answer(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """What `luthier plan --json` prints; compares: with advice, and what it takes on each device of the table."""
    from luthier.features.planning import quotes
    from luthier.features.planning.service import prepare
    from luthier.features.recipes.service import recipe_from
    from luthier.ml.planning.devices import load_prices

    recipe, prices = recipe_from(asked["recipe"], base_dir=Path("/")), load_prices(None)
    prepared = prepare(context, recipe, base_dir=Path("/"))
    quote = quotes.quote_of(context, prepared, on=None, prices=prices, market="on_demand", is_probed=False)
    plan = prepared.plan
    shown = {"hash": plan.hash, "values": plan.values(), "predicted": quote.as_json()}
    if asked["compares"]:
        shown |= _compared(context, prepared)
    return shown | {"plan": plan.model_dump(mode="json")}


def _compared(context: Context, prepared: Prepared) -> dict[str, Any]:
    """Advice on the method, and the run on one of each accelerator of the table, cheap ones that fit first."""
    from luthier.features.planning.quotes import advise, compare_options
    from luthier.ml.planning.devices import accelerators
    from luthier.ml.planning.fit import METHOD_TITLES
    from luthier.ml.planning.workload import work_method

    method = METHOD_TITLES[work_method(prepared.plan.method.name)]
    options = compare_options(context, prepared, on=[device.name for device in accelerators()])
    devices = [
        option.as_json()
        | {"title": option.prediction.device.title, "memory_bytes": option.prediction.device.memory_bytes}
        for option in options
        if option.method == method
    ]
    return {"advice": advise(context, prepared).as_json(), "devices": devices}


_making: Final = threading.Lock()


def draft_planner(state: State, context: Context) -> DraftPlanner:
    """The planner of an app, made when the first recipe is drafted."""
    # Two concurrent requests must not make two planners: each has its own process.
    with _making:
        if getattr(state, "draft_planner", None) is None:
            state.draft_planner = DraftPlanner(context)
        planner: DraftPlanner = state.draft_planner
    return planner

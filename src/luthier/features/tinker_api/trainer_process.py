"""The process that trains for clients of the Tinker API; `trainer_client` starts it and reads its answers.

It holds base models, each once, and the adapters of all clients around them. Requests are {"id": ID, "op": OP,
"project": PROJECT, ...}. Those of a project are carried out one at a time, in the order in which they arrive; samples
that wait for the same weights are drawn together. Projects take turns: a pass or a sample that is larger than a turn is
carried out in parts, between which the others have theirs. Answers are events: {"id": ID, "result": ...} or {"id": ID,
"error": LuthierError.as_json}.

    create    model, base, options, load, optimizer -> {"plan"}   a new adapter, of a saved state with `load`
    pass      model, body -> {"proto"}                   log-probabilities and loss, and unless forward only gradients
    step      model, adam -> {"metrics"}                 one optimizer step
    save      model, folder, with_state -> {...}         adapter and state as files
    load      model, folder, optimizer -> {}             continue from a saved state
    snapshot  model, sampler -> {}                       weights to sample from, in memory
    sample    sampler, source, order -> {"proto"}        source: {"snapshot"}, {"folder", "plan"} or {"base", "plan"}
    drop      models, samplers                           forget them; no answer
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import signal
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.child_process.channel import Channel
from luthier.core.errors import DefectError, LuthierError, NotFoundError, WorkError
from luthier.core.plan import Plan
from luthier.core.records.base_model import LocalModel
from luthier.core.system.libraries import import_libraries, keep_import_structure
from luthier.core.system.process_setup import start_daemon
from luthier.core.text.byte_sizes import size
from luthier.features.tinker_api import wire
from luthier.features.tinker_api.planning import adapter_plan
from luthier.features.tinker_api.records import AdapterOptions
from luthier.platform.processes.fair_queue import FairQueue

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.planning.hardware import Hardware
    from luthier.ml.training.adapter_sampler import AdapterSampler, SampleOrder, SampleResult
    from luthier.ml.training.adapter_session import AdapterSession, SharedBase

SNAPSHOTS_A_MODEL: Final = 8
"""Weights to sample from that are kept in memory for each training client: the newest."""
TURN_TOKENS: Final = 8_192
"""Tokens of a turn of a project; at least a micro-batch of a pass or one answer, and all of any other request."""
_SAMPLED_TOKENS: Final = 16_384
"""Tokens of samples that are drawn together while no other project waits."""
_SHAPES: Final = 4
_ADAPTER_BYTES: Final = 20
"""Of a trained parameter: weight, master, gradient and two moments in float32."""
_COPY_BYTES: Final = 4

Request = dict[str, Any]
Parts = Generator[int, None, Any]
"""Work with places between its parts where that of others may be done: yields the tokens of the part before it."""


@dataclass(slots=True)
class _Base:
    shared: SharedBase
    template: ChatTemplate


class Trainer:
    """All bases and adapters of this process, and what is asked of them.

    Args:
        answer: sends an event.
        hardware: returns this machine, which decides the precision of a base.
        memory_bytes: returns how much memory is free.
    """

    def __init__(
        self,
        answer: Callable[[Mapping[str, Any]], None],
        *,
        hardware: Callable[[], Hardware],
        memory_bytes: Callable[[], int],
    ) -> None:
        self._answer, self._hardware, self._memory_bytes = answer, hardware, memory_bytes
        self._inbox: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._waiting = FairQueue[Request]()
        """By project. The first request of each is carried out, and stays until it is done."""
        self._begun: dict[str | None, Parts] = {}
        """What a project's turns carry out, by project."""
        self._templates: dict[str, ChatTemplate] = {}
        self._bases: dict[tuple[str, str], _Base] = {}
        self._sessions: dict[str, AdapterSession] = {}
        self._samplers: OrderedDict[str, AdapterSampler] = OrderedDict()
        """By the shape of the adapter, least recently used first."""
        self._snapshots: dict[str, tuple[str, Plan, dict[str, Tensor]]] = {}
        """By sampler: model, plan and weights, oldest first."""
        self._ended: set[str] = set()
        """Samplers of sessions that have ended: what is sampled for them now ends, so that the others continue."""
        self._operations: Mapping[str, Callable[[Request], dict[str, Any]]] = {
            "create": self._create,
            "step": self._step,
            "save": self._save,
            "load": self._load,
            "snapshot": self._snapshot,
        }

    def hear(self, request: Request) -> None:
        """Accept a request, from any thread."""
        if request["op"] == "drop":
            self._ended.update(request["samplers"])
        self._inbox.put(request)

    def work(self) -> None:
        """Carry out requests forever."""
        while True:
            self.work_once()

    def work_once(self) -> None:
        """Carry out one turn of the project whose turn it is; waits for a request where there is none."""
        if not self._waiting:
            self._take(self._inbox.get())
        while not self._inbox.empty():
            self._take(self._inbox.get())
        project, first = self._waiting.heads()[0]
        if project not in self._begun:
            self._begun[project] = self._work(first)
        num_tokens = 0
        try:
            while num_tokens < TURN_TOKENS:
                num_tokens += next(self._begun[project])
        except StopIteration:
            del self._begun[project]
            self._waiting.pop(project)
        else:
            self._waiting.postpone(project)

    def _take(self, request: Request) -> None:
        self._waiting.push(request.get("project"), request)

    def _work(self, first: Request) -> Parts:
        """Carry out a request, with the samples of the same weights that wait behind it."""
        if first["op"] == "drop":
            self._drop(first["models"], first["samplers"])
            return
        if first["op"] == "sample":
            yield from self._sample(self._samples_like(first))
            return
        try:
            if first["op"] == "pass":
                result = yield from self._pass(first)
            else:
                result = self._operations[first["op"]](first)
            self._answer({"id": first["id"], "result": result})
        except Exception as error:  # noqa: BLE001 - a request that fails must not end those of other clients
            self._fail(first["id"], error)

    def _samples_like(self, first: Request) -> list[Request]:
        """A request and those that wait for samples of the same weights, which are taken out of the queue."""
        # Weights of a sampler do not change, so its later requests may be answered before others.
        same = [first]

        def joins(one: Request) -> bool:
            is_same = one is not first and one["op"] == "sample" and one["sampler"] == first["sampler"]
            if is_same:
                same.append(one)
            return is_same

        self._waiting.remove(joins)
        return same

    def _fail(self, key: str, error: Exception) -> None:
        self._answer({"id": key, "error": _as_ours(error).as_json()})

    def _create(self, request: Request) -> dict[str, Any]:
        from luthier.ml.training.adapter_session import AdapterSession

        model = LocalModel.model_validate(request["base"])
        plan, base = self._planned(model, AdapterOptions.model_validate(request["options"]))
        num = plan.method.num_trainable_parameters
        # Refused before it is made: a process that the kernel ends loses the weights of all clients.
        self._check_room(f"an adapter of {num:,} parameters with its optimizer", num * _ADAPTER_BYTES)
        session = AdapterSession(base.shared, plan)
        if request.get("load") is not None:
            session.load(Path(request["load"]), with_optimizer=request["optimizer"])
        self._sessions[request["model"]] = session
        return {"plan": plan.model_dump(mode="json"), "step": session.state.step}

    def _planned(self, model: LocalModel, options: AdapterOptions) -> tuple[Plan, _Base]:
        from luthier.ml.inference.models.templates.chat_template import ChatTemplate

        if model.path not in self._templates:
            self._templates[model.path] = ChatTemplate.load(model.path)
        plan = adapter_plan(options, model, self._templates[model.path], self._hardware())
        return plan, self._base(plan)

    def _base(self, plan: Plan) -> _Base:
        """The base of a plan, loaded where it is not."""
        from luthier.ml.inference.models.templates.chat_template import ChatTemplate
        from luthier.ml.training.adapter_session import SharedBase

        path, precision = plan.base_model.path, plan.training.precision
        if (path, precision) not in self._bases:
            num_bytes = plan.base_model.num_parameters * (2 if precision == "bfloat16" else 4)
            if self._memory_bytes() < 2 * num_bytes:
                self._drop_unused()
            if (free := self._memory_bytes()) < 2 * num_bytes:
                raise WorkError(
                    f"{plan.base_model.name} takes {size(num_bytes)}, and {size(free, num_bytes)} are free",
                    expected="twice the size of the model, for weights and gradients",
                    do="close other clients or programs of this machine, or choose a smaller base model",
                )
            if path not in self._templates:
                self._templates[path] = ChatTemplate.load(path, plan.base_model.template)
            shared = SharedBase(path, precision, plan.training.device)
            self._bases[path, precision] = _Base(shared, self._templates[path])
        return self._bases[path, precision]

    def _check_room(self, what: str, num_bytes: int) -> None:
        """Raise WorkError where memory is not enough for something."""
        if (free := self._memory_bytes()) < num_bytes:
            raise WorkError(
                f"{what} takes {size(num_bytes)}, and {size(free, num_bytes)} are free",
                expected="as much free memory",
                do="unload clients that are done, choose a smaller rank, or train fewer kinds of matrices",
            )

    def _session(self, model_id: str) -> AdapterSession:
        if model_id not in self._sessions:
            raise NotFoundError(
                f"the training client {model_id} is not in memory",
                expected="a client whose session is alive",
                do="make a client from its last saved state",
            )
        return self._sessions[model_id]

    def _pass(self, request: Request) -> Generator[int, None, dict[str, Any]]:
        session, body = self._session(request["model"]), base64.b64decode(request["body"])
        head = wire.read_head(body)
        backward = not head.is_forward_only
        result = yield from session.parts(wire.read_data(body), head.loss, head.settings, backward=backward)
        return {"proto": _text(wire.pass_message(result, {"loss:sum": result.loss}))}

    def _step(self, request: Request) -> dict[str, Any]:
        from luthier.ml.training.adapter_session import AdamSettings

        done = self._session(request["model"]).step(AdamSettings(**request["adam"]))
        metrics = {
            "step": float(done.step),
            "grad_norm": done.gradient_norm,
            "learning_rate": done.learning_rate,
            "num_tokens": float(done.num_tokens),
        }
        return {"metrics": metrics}

    def _save(self, request: Request) -> dict[str, Any]:
        session, folder = self._session(request["model"]), Path(request["folder"])
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        digest = session.save(partial, with_state=request["with_state"])
        # Complete or not there at all: a kill leaves a hidden folder, which nothing reads.
        partial.rename(folder)
        events, state = [event.model_dump(mode="json") for event in session.events], session.state
        session.events.clear()
        return {
            "step": state.step,
            "num_bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            "sha256": digest,
            "events": events,
            "state": state.model_dump(mode="json"),
            "num_trainable": session.model.num_trainable_parameters,
            "num_parameters": session.model.num_parameters,
        }

    def _load(self, request: Request) -> dict[str, Any]:
        session = self._session(request["model"])
        session.load(Path(request["folder"]), with_optimizer=request["optimizer"])
        return {"step": session.state.step}

    def _snapshot(self, request: Request) -> dict[str, Any]:
        model_id, session = request["model"], self._session(request["model"])
        num = session.plan.method.num_trainable_parameters
        self._check_room(f"a copy of {num:,} weights to sample from", num * _COPY_BYTES)
        self._snapshots[request["sampler"]] = (model_id, session.plan, session.weights())
        own = [key for key, (owner, _, _) in self._snapshots.items() if owner == model_id]
        for key in own[:-SNAPSHOTS_A_MODEL]:
            del self._snapshots[key]
        return {}

    def _sample(self, requests: Sequence[Request]) -> Parts:
        """Answer requests for samples of the same weights, as many together as memory and turns allow."""
        from luthier.ml.training.adapter_sampler import batches_of

        ready: list[tuple[Request, SampleOrder]] = []
        context_tokens = 0
        for request in requests:
            try:
                sampler, order = self._sampler(request), order_of(request["order"])
                sampler.check(order)
                context_tokens = sampler.model.context_length_tokens
                ready.append((request, order))
            except Exception as error:  # noqa: BLE001 - as in `_work`
                self._fail(request["id"], error)
        if not ready:
            return
        most = _SAMPLED_TOKENS if len(self._waiting.heads()) == 1 else TURN_TOKENS
        parts = [(one, part) for one, order in ready for part in order.parts(most, context_tokens)]
        left = Counter(one["id"] for one, _ in parts)
        found: dict[str, list[SampleResult]] = {one["id"]: [] for one, _ in parts}
        num_tokens = 0
        for places in batches_of([part for _, part in parts], most, context_tokens):
            batch = [parts[place] for place in places if parts[place][0]["id"] in found]
            if not batch:
                continue
            if num_tokens:
                yield num_tokens
            num_tokens = sum(part.num_tokens(context_tokens) for _, part in batch)
            try:
                for (request, _), result in zip(batch, self._sampled(batch), strict=True):
                    own = found[request["id"]]
                    own.append(result)
                    if len(own) == left[request["id"]]:
                        document = _sampled_document(own)
                        del found[request["id"]]
                        self._answer({"id": request["id"], "result": document})
            except Exception as error:  # noqa: BLE001 - as in `_work`
                for key in {request["id"] for request, _ in batch} & found.keys():
                    del found[key]
                    self._fail(key, error)

    def _sampled(self, batch: Sequence[tuple[Request, SampleOrder]]) -> list[SampleResult]:
        """Samples of the same weights. The sampler is fetched for each batch: others may use it in between."""
        first = batch[0][0]
        return self._sampler(first).sample([order for _, order in batch], lambda: first["sampler"] not in self._ended)

    def _sampler(self, request: Request) -> AdapterSampler:
        """The sampler of a request, with its weights."""
        from luthier.ml.training.adapter_sampler import AdapterSampler

        key, source = request["sampler"], request["source"]
        if "snapshot" in source and key not in self._snapshots:
            raise NotFoundError(
                f"the weights of the sampling client {key} are no longer in memory",
                expected=f"one of the {SNAPSHOTS_A_MODEL} newest of its training client, whose session is alive",
                do="make a newer one, or save weights under a name: save_weights_for_sampler(name=...)",
            )
        if "base" in source:
            # The smallest adapter, as it is before its first step: it adds nothing.
            options = AdapterOptions(rank=1, train_mlp=False, train_unembed=False)
            plan, _ = self._planned(LocalModel.model_validate(source["base"]), options)
        elif "snapshot" in source:
            plan = self._snapshots[key][1]
        else:
            plan = Plan.model_validate(source["plan"])
        shape = json.dumps([plan.base_model.path, plan.training.precision, plan.method.rank, plan.method.targets])
        if shape not in self._samplers:
            base = self._base(plan)
            self._samplers[shape] = AdapterSampler(base.shared, plan, base.template)
            while len(self._samplers) > _SHAPES:
                self._samplers.popitem(last=False)
        self._samplers.move_to_end(shape)
        found = self._samplers[shape]
        found.use(key, lambda: self._weights(key, source, found))
        return found

    def _weights(self, key: str, source: Mapping[str, Any], sampler: AdapterSampler) -> Mapping[str, Tensor] | None:
        from luthier.ml.training.adapter_sampler import read_adapter

        if "base" in source:
            return None
        if "snapshot" in source:
            return self._snapshots[key][2]
        return read_adapter(Path(source["folder"]), sampler.model)

    def _drop(self, models: list[str], samplers: list[str]) -> None:
        self._ended.difference_update(samplers)
        for model_id in models:
            self._sessions.pop(model_id, None)
        for key, (owner, _, _) in list(self._snapshots.items()):
            if owner in models or key in samplers:
                del self._snapshots[key]
        if not self._sessions and not self._snapshots:
            self._samplers.clear()
            self._bases.clear()

    def _drop_unused(self) -> None:
        """Free the bases that no training client and no weights in memory are on; samplers load them again."""
        plans = [one.plan for one in self._sessions.values()] + [plan for _, plan, _ in self._snapshots.values()]
        used = {(plan.base_model.path, plan.training.precision) for plan in plans}
        for key in [one for one in self._bases if one not in used]:
            del self._bases[key]
        # Each holds the weights of its base.
        self._samplers.clear()


def order_of(document: Mapping[str, Any]) -> SampleOrder:
    """What is to be sampled, from the document of a request."""
    from luthier.ml.training.adapter_sampler import SampleOrder

    stop_ids = document.get("stop_ids")
    return SampleOrder(
        **{
            **document,
            "prompt": tuple(document["prompt"]),
            "stop_ids": None if stop_ids is None else frozenset(stop_ids),
            "stop_texts": tuple(document.get("stop_texts", ())),
        }
    )


def _sampled_document(parts: Sequence[SampleResult]) -> dict[str, Any]:
    from luthier.ml.training.adapter_sampler import joined

    result = joined(parts)
    num_new_tokens = sum(len(one.tokens) for one in result.answers)
    return {"proto": _text(wire.sample_message(result)), "num_new_tokens": num_new_tokens}


def _text(message: bytes) -> str:
    return base64.b64encode(message).decode()


def _as_ours(error: Exception) -> LuthierError:
    """The error as one of ours; a defect leaves its trace in the log of the server."""
    if isinstance(error, LuthierError):
        return error
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return WorkError(
            "there was not enough memory for a request",
            expected="a machine with more memory, or smaller requests",
            do="send less data at once, shorten the sequences, or choose a smaller base model",
        )
    if isinstance(error, OSError):
        return WorkError(
            f"files could not be read or written: {error.strerror or type(error).__name__}",
            expected="a disk with space left",
            do="free some disk space on the machine of the server, and try again",
        )
    import traceback

    traceback.print_exception(error)
    return DefectError(
        f"a {type(error).__name__} while a request was carried out",
        expected="a result",
        do="see the log of the server, and report this",
    )


def serve(document: dict[str, Any], channel: Channel) -> None:
    """Train in a child process until the parent exits.

    Args:
        document: `num_threads`; `rates_folder`, where the home keeps how fast this machine is; `imports_folder`, as
            `keep_import_structure` takes it.
        channel: of the child process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the channel

    def hardware() -> Hardware:
        from luthier.platform.home.hardware_benchmark import hardware_in

        return hardware_in(Path(document["rates_folder"]))

    def memory_bytes() -> int:
        from luthier.core.system.machine_memory import memory_bytes

        return memory_bytes()[1]

    trainer = Trainer(channel.emit, hardware=hardware, memory_bytes=memory_bytes)

    def listen() -> None:
        for request in channel.requests():
            trainer.hear(request)
        # Not sys.exit: that would end only this thread, while the main thread may be inside a native kernel.
        os._exit(0)

    start_daemon(listen, "parent")
    keep_import_structure(Path(document["imports_folder"]))
    import_libraries()
    import torch

    torch.set_num_threads(document["num_threads"])
    trainer.work()

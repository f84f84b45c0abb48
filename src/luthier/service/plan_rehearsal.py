"""One tiny step of a plan before it is given out: no refusal and no crash is to come after its yes.

    config of the base -> a small copy of the architecture -> the plan's method on it -> forward, backward, optimizer,
    saved, loaded, answers generated -> by which path the loss is computed, or the reason why not

The weights of the copy are random; what it costs is a second or so, once for an architecture and a method: the answer
is kept in the home, a refusal is not: a full disk may have caused it. The names and shapes of the base's own tensors
are held against its architecture as well.
"""

from __future__ import annotations

import json
import math
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.digest import sha256_document, sha256_file
from luthier.core.errors import LuthierError, RequestError
from luthier.core.plan import ForwardPath, Plan, ValueSource
from luthier.core.scratch_folders import scratch_folder
from luthier.reporting.page import replace_text
from luthier.service.context import Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.train.model import TrainableModel

_FORMAT: Final = 1
_RANK: Final = 2
_VIRTUAL_TOKENS: Final = 2
_LIBRARIES: Final = ("luthier", "torch", "transformers", "peft")
_FAILURES: Final = (
    LuthierError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    ImportError,
    AssertionError,
)
_known: dict[str, dict[str, Any]] = {}


def rehearsed(context: Context, plan: Plan) -> Plan:
    """The plan with the path by which its loss is computed, once a small copy of it has run.

    Raises:
        ModelSourceError: a tensor of the base is missing, superfluous or of another shape than its config says.
        RequestError: the method cannot be trained on this architecture, or what it saves cannot be loaded again.
    """
    key = _key(plan)
    answer = _known.get(key) or _read(context, key)
    if answer is None:
        answer = _answer(plan)
        _keep(context, key, answer)
    _known[key] = answer
    if answer["path"] is None:
        return plan
    path = ForwardPath.model_validate(answer["path"])
    why = f"the same loss by {path.words}, slower (docs/benchmarks.md): {'; '.join(path.reasons)}"
    sources = plan.sources | {"training.forward": ValueSource(source="measured", why=why)}
    training = plan.training.model_copy(update={"forward": path})
    return plan.model_copy(update={"training": training, "sources": sources})


def _key(plan: Plan) -> str:
    """Whatever decides how a rehearsal ends."""
    answers = plan.objective.draws or plan.data.held_out is not None
    training = plan.training.model_dump(
        mode="json", include={"optimizer", "gradient_checkpointing", "precision", "neftune_alpha"}
    )
    return sha256_document(
        {
            "format": _FORMAT,
            "libraries": [version(name) for name in _LIBRARIES],
            "base": plan.base_model.sha256,
            "config": sha256_file(Path(plan.base_model.path) / "config.json"),
            "method": plan.method.model_dump(mode="json"),
            "objective": {"name": plan.objective.name, "answers": answers} | _router(plan),
            "training": training,
        }
    )


def _router(plan: Plan) -> dict[str, bool]:
    """Whether the routers have a loss of their own; nothing where not, as in the keys of before there was one."""
    return {} if plan.objective.router_aux_loss is None else {"router_aux_loss": True}


def _file(context: Context, key: str) -> Path:
    return context.home / "cache" / "rehearsals" / f"{key}.json"


def _read(context: Context, key: str) -> dict[str, Any] | None:
    try:
        found = json.loads(_file(context, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "path" in found else None


def _keep(context: Context, key: str, answer: dict[str, Any]) -> None:
    file = _file(context, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(answer))


def _answer(plan: Plan) -> dict[str, Any]:
    from luthier.models.loading import check_weights

    check_weights(plan.base_model.path)
    path = rehearse(plan)
    return {"path": None if path is None or path.is_fast else path.model_dump(mode="json")}


def rehearse(plan: Plan) -> ForwardPath | None:
    """Take the step; returns the path that was proved, or None where no small copy of the architecture runs.

    Raises:
        RequestError: as `rehearsed`.
    """
    import torch

    from luthier.models.quiet import quiet_transformers

    generator = torch.get_rng_state()
    try:
        with scratch_folder(Path(tempfile.gettempdir()), "luthier-rehearsal-") as folder, quiet_transformers():
            small = _small_copy(plan.base_model.path)
            if small is None:
                _refuse_unproved(plan)
                return None
            small.save_pretrained(str(folder / "base"))
            del small
            with _failures_explained(plan):
                return _one_step(_small_plan(plan, folder / "base"), folder)
    finally:
        torch.set_rng_state(generator)


def _refuse_unproved(plan: Plan) -> None:
    if plan.objective.router_aux_loss is not None:
        raise RequestError(
            f"objective.router_aux_loss with {plan.base_model.name}, of which no small copy runs to prove it on",
            expected="a mixture of experts that transformers can build small",
            do="set objective.router_aux_loss: off",
        )


@contextmanager
def _failures_explained(plan: Plan) -> Iterator[None]:
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:  # of a library, whatever it is: it would come in the middle of the run
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RequestError(
            f"one step of method {plan.method.name} on a small copy of {plan.base_model.name} fails: {reason}",
            expected="an architecture on which transformers and PEFT can run the method, save it and load it again",
            do="choose another method or other method.targets, or another base model",
        ) from error


def _small_copy(path: str) -> PreTrainedModel | None:
    """The first small copy of the architecture that runs at all, with random weights in float32."""
    import torch

    from luthier.models.architecture import causal_model, empty_model, load_config
    from luthier.models.forward_arguments import text_inputs
    from luthier.models.scaled_down import MAX_PARAMETERS, scaled_down

    ids = torch.arange(3, 23)[None]
    for config in scaled_down(load_config(path)):
        try:
            if sum(p.numel() for p in empty_model(config).parameters()) > MAX_PARAMETERS:
                continue
            torch.manual_seed(0)
            model = empty_model(config, device="cpu", dtype=torch.float32).eval()
            causal = causal_model(model)
            with torch.no_grad():
                _make_distinct(model)
                logits = causal(input_ids=ids, **text_inputs(causal, ids)).logits
        except _FAILURES:  # a cut that the architecture does not allow: the next one is wider
            continue
        if bool(logits.isfinite().all()):
            return model
    return None


def _make_distinct(model: PreTrainedModel) -> None:
    """Weights so large that scales, caps and what attention looks at show in the results."""
    import torch

    for parameter in model.parameters():
        noise = torch.randn(parameter.shape)
        if parameter.dim() >= 2:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(noise * 0.05)


def _small_plan(plan: Plan, base: Path) -> Plan:
    from luthier.models.structure import read_structure
    from luthier.plan.adapter import place_adapters, resolve_targets, targeted

    method, structure = plan.method, read_structure(str(base))
    changes: dict[str, Any] = {"rank": min(method.rank, _RANK)}
    if method.target_rank is not None:
        changes["target_rank"] = min(method.target_rank, 1)
    if method.num_virtual_tokens is not None:
        changes["num_virtual_tokens"] = min(method.num_virtual_tokens, _VIRTUAL_TOKENS)
    if method.expert_rank is not None:
        changes["expert_rank"] = 1
    if method.quantisation is not None:
        changes["quantisation"] = "int8"  # packed alike, on any machine
    if method.targets:
        kept = tuple(target for target in method.targets if targeted(structure, (target,)))
        changes["targets"] = kept or resolve_targets(structure, "all-linear")
    if method.expert_targets:
        found = tuple(target for target in method.expert_targets if targeted(structure, (), (target,)))
        changes["expert_targets"] = found or place_adapters(structure, "experts").expert_targets
    training = {"device": "cpu", "num_threads": 1, "micro_batch_tokens": 64}
    return plan.model_copy(
        update={
            "base_model": plan.base_model.model_copy(update={"path": str(base)}),
            "method": method.model_copy(update=changes),
            "training": plan.training.model_copy(update=training),
        }
    )


def _one_step(plan: Plan, folder: Path) -> ForwardPath:
    """Forward, backward, optimizer, save, load, and answers where the run will ask for some."""
    import torch

    from luthier.core.dataset import TokenisedExample
    from luthier.train.model import TrainableModel, collate
    from luthier.train.optimizer import MasterOptimizer
    from luthier.train.outcome import save_outcome

    model = TrainableModel.load(plan)
    rows = [
        TokenisedExample(str(n), array("i", range(3 + n, 3 + n + size)), b"\0" * 2 + b"\1" * (size - 2))
        for n, size in enumerate((12, 9))
    ]
    batch = collate(rows, model.pad_id, "cpu")
    optimizer = MasterOptimizer(model.module, plan.training, model.method.rate_factor)
    model.module.train()
    with nullcontext() if model.router_loss is None else model.router_loss.recording():
        loss = model.loss_sum(batch)[0] / batch.num_trained_tokens
    if model.router_loss is not None:
        loss = loss + model.router_loss.coefficient * model.router_loss.of(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.collect()
    model.method.before_step(optimizer.weight_state(), optimizer.gradient_state())
    norm = optimizer.gradient_norm()
    if not (math.isfinite(float(loss.detach())) and math.isfinite(norm)):
        raise RequestError(
            f"loss {float(loss.detach())} and gradient norm {norm} of one step on a small copy of the architecture",
            expected="numbers",
            do="choose another method or another base model",
        )
    optimizer.step(norm, 1.0, lambda weights, gradients: model.method.after_step(1, weights, gradients))
    model.module.eval()
    if plan.objective.draws or plan.data.held_out is not None:
        _write_answer(model)
    run = folder / "run"
    run.mkdir()
    path, _ = save_outcome(model, Path(plan.base_model.path), run)
    _load_again(plan, path, torch.arange(3, 12)[None])
    return model.path


def _write_answer(model: TrainableModel) -> None:
    from luthier.engines.continue_all import continue_all
    from luthier.engines.decode import Decoder, Request

    with model.as_decoder() as base:
        decoder = Decoder(base, end_ids=(), pad_id=model.pad_id)
        continue_all(decoder, [Request([3, 4, 5], 2, 0.0, 0)], lambda: None)


def _load_again(plan: Plan, path: Path, ids: Any) -> None:
    """What was saved loads by the ways that judging and serving take."""
    import torch

    from luthier.models.architecture import causal_model
    from luthier.models.forward_arguments import text_inputs
    from luthier.models.loading import attach_adapter, load_model

    is_adapter = path.name == "adapter"
    base = load_model(plan.base_model.path if is_adapter else path, dtype=plan.training.precision, attention="sdpa")
    whole = attach_adapter(base, path) if is_adapter else base
    causal = causal_model(base)
    with torch.no_grad():
        also = text_inputs(causal, ids)
        (whole if causal is base else causal)(input_ids=ids, **also)

"""The parts of a check of a base model, in the child process that they are run in.

What Luthier computes is compared with the model's own forward pass in transformers, with eager attention, in float32.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.child_process.channel import Channel
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import LuthierError, TemplateError
from luthier.core.text.target_modules import target_summary
from luthier.core.workflows.trial_rows import TRIAL_ROWS, made_rows
from luthier.features.model_checks.service import Check

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from luthier.core.ports import Generation, Prompt
    from luthier.features.planning.service import Prepared
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.inference.transformers_engine import TransformersEngine
    from luthier.ml.training.model import TrainableModel
    from luthier.platform.home.context import Context

MOST_ROWS: Final = 500
"""This many of the first rows of a file are tried."""
_MAX_REASONS: Final = 10
_LOSS_SHARE: Final = 1e-5
_NATS_SHARE: Final = 1e-4
_NUM_PROMPTS: Final = 3
_NUM_NEW: Final = 16
_FAR: Final = 1 << 40


class WrongError(Exception):
    """Luthier computes something else than the model by itself."""


class _NotRunError(Exception):
    """A part that an earlier one leaves out."""


@dataclass(slots=True)
class Trial:
    """A model on trial, and what its parts share.

    Attributes:
        path: The folder of the model.
        rows: A file of the user's, or None.
        work: A folder for files that are made.
        template: The chat template, once it is loaded.
        ready: The prepared run, once it is planned.
        measures: Figures of the part that is running.
        path_of_refused: The setting that a refused row would pass with.
    """

    path: Path
    rows: Path | None
    work: Path
    template: ChatTemplate | None = None
    ready: Prepared | None = None
    measures: dict[str, float] = field(default_factory=dict)
    path_of_refused: str = ""


def try_model(
    path: Path, rows: Path | None, work: Path, begins: Callable[[str], None], *, computes: bool = True
) -> Iterator[Check]:
    """Take a model through all parts, one after another.

    An error of any kind ends its part alone.

    Args:
        path: The folder of the model.
        rows: A file of rows; None takes one of each kind.
        work: A folder for what the parts write.
        begins: Called with the name of each.
        computes: Whether the parts that load the weights are among them.
    """
    from luthier.platform.home.context import Context

    trial = Trial(path, rows, work)
    yield _taken("template", lambda: _template(trial), trial, begins)
    yield from _rows(trial, begins)
    if not computes:
        return
    # A separate home: the trial run must not appear among the user's runs.
    with Context.open(work / "home") as context:
        for name, part in _PARTS.items():
            yield _taken(name, partial(part, trial, context), trial, begins)


def _taken(name: str, part: Callable[[], str], trial: Trial, begins: Callable[[str], None]) -> Check:
    begins(name)
    # Reset for each part, since parts write their figures into the shared trial.
    began, trial.measures, trial.path_of_refused = time.perf_counter(), {}, ""
    status, path, reason, remedy = "works", "", "", ""
    try:
        path = part()
    # Before LuthierError: a wrong result is worse than a refusal and has to be reported as such.
    except WrongError as error:
        status, reason, remedy = (
            "wrong",
            str(error),
            "report it with this table: nothing that Luthier trains may be wrong",
        )
    except _NotRunError as error:
        status, reason = "not_run", str(error)
    except LuthierError as error:
        status, path, reason, remedy = "refused", trial.path_of_refused, error.came, error.do
    except Exception as error:  # noqa: BLE001 - a model may break any library in any way: that is tested here
        status, reason = "fault", f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        remedy = "report it with this table"
    seconds = round(time.perf_counter() - began, 3)
    document = {"name": name, "status": status, "path": path, "reason": reason, "remedy": remedy}
    return Check.model_validate({**document, "seconds": seconds, "measures": trial.measures})


def _template(trial: Trial) -> str:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    trial.template = ChatTemplate.load(trial.path, is_new=True)
    return "its own chat template" if trial.template.kind == "chat" else "plain layout: a base model"


def _rows(trial: Trial, begins: Callable[[str], None]) -> Iterator[Check]:
    """One of each kind; or the user's, all rows that end alike as one part."""
    if trial.rows is None:
        for kind, row in TRIAL_ROWS.items():
            yield _taken(f"rows: {kind}", partial(_trial_row, trial, row), trial, begins)
        return
    examples: list[Example] = []
    read = _taken("rows: read", lambda: _read(trial, examples), trial, begins)
    yield read
    ends: dict[tuple[str, str, str], list[Check]] = {}
    for example in examples[:MOST_ROWS]:
        check = _taken(example.id, partial(_marked, trial, [example]), trial, begins)
        # Ids differ in every row, so the id is cut out of the reason and only its start compared: rows that fail
        # for one cause become one line.
        ends.setdefault((check.status, check.path, check.reason.replace(example.id, "")[:60]), []).append(check)
    for alike in list(ends.values())[:_MAX_REASONS]:
        seconds = round(sum(check.seconds for check in alike), 3)
        yield alike[0].model_copy(update={"name": f"rows: {len(alike):,} as {alike[0].name}", "seconds": seconds})


def _read(trial: Trial, examples: list[Example]) -> str:
    from luthier.ml.data.rows.formats import load_file

    loaded = load_file(_needed(trial.rows))
    examples += loaded.examples
    left = f", the first {MOST_ROWS} are tried" if len(examples) > MOST_ROWS else ""
    return f"{loaded.num_rows:,} rows of shape {loaded.shape}{left}"


def _trial_row(trial: Trial, row: dict[str, Any]) -> str:
    from luthier.ml.data.rows.formats import load_file

    return _marked(trial, load_file(_written(trial.work / "row.jsonl", [row])).examples)


def _marked(trial: Trial, examples: Sequence[Example]) -> str:
    """What becomes of examples: tokens, and marks of what is learned of them."""
    from luthier.core.ports import SilentProgress
    from luthier.ml.data.tokenise.tokenised_rows import tokenise_all

    if trial.template is None:
        raise _NotRunError("the template does not load")
    try:
        # Length is not on trial here: no row reaches the limit, so `overlong` cannot hide a fault of the template.
        made = tokenise_all(
            examples, trial.template, max_length_tokens=_FAR, overlong="error", progress=SilentProgress()
        ).examples
    except TemplateError:
        trial.path_of_refused = opt_in(examples, trial.template)
        raise
    # loss_mask is bytes of 0 and 1, one a token, so its sum counts learned tokens.
    trial.measures["learned_tokens"] = sum(sum(one.loss_mask) for one in made)
    trial.measures["tokens"] = sum(one.num_tokens for one in made)
    return "one sequence" if len(made) == len(examples) else f"{len(made)} examples, one an answer"


def opt_in(examples: Sequence[Example], template: ChatTemplate) -> str:
    """The setting of a recipe that makes rows pass that a template cannot write unchanged; empty where none does."""
    from luthier.core.conversation import OptedTurns
    from luthier.core.ports import SilentProgress
    from luthier.ml.data.tokenise.tokenised_rows import tokenise_all
    from luthier.ml.inference.engine_prompts import rewritten_examples

    # Tried in order, least intrusive first; `drop` is last because it loses content.
    ways = {
        "data.system: fold": OptedTurns(folds_system=True),
        "data.tools: as_text": OptedTurns(tools_as_text=True),
        "data.reasoning: as_text": OptedTurns(reasoning="as_text"),
        "data.system: fold, data.tools: as_text": OptedTurns(folds_system=True, tools_as_text=True),
        "data.reasoning: drop": OptedTurns(reasoning="drop"),
    }
    for name, way in ways.items():
        with contextlib.suppress(LuthierError):
            opted = rewritten_examples(way, examples, template)
            # A way that changes nothing cannot be the remedy, even if the rows pass now for another reason.
            if opted != tuple(examples):
                tokenise_all(opted, template, max_length_tokens=_FAR, overlong="error", progress=SilentProgress())
                return f"passes with {name}"
    return ""


def _plan(trial: Trial, context: Context) -> str:
    """What the plan of a small LoRA run says; its yes is what all that follows rests on."""
    from luthier.features.planning.service import prepare
    from luthier.features.recipes.service import recipe_from

    _written(trial.work / "train.jsonl", made_rows(8))
    document = {
        "base_model": str(trial.path),
        "data": {"train": "train.jsonl"},
        # Dropout 0, one thread and float32: the losses below are compared to 1e-5 of the reference.
        "method": {"name": "lora", "dropout": 0.0},
        "training": {"max_steps": 1, "global_batch_size": 4, "precision": "float32", "num_threads": 1},
    }
    trial.ready = prepare(context, recipe_from(document, base_dir=trial.work), base_dir=trial.work)
    plan = trial.ready.plan
    trial.measures["trainable_parameters"] = plan.method.num_trainable_parameters
    return f"LoRA of rank {plan.method.rank} on {target_summary(plan.method)}"


def _reach(trial: Trial, context: Context) -> str:
    """The share of the model with adapters of the plan."""
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.adapter import reach

    del context
    method = _planned(trial).plan.method
    found = reach(read_structure(str(trial.path)), method.targets, method.expert_targets)
    trial.measures |= {"share_of_matrices": found.share, "share_of_active_matrices": found.active_share}
    return f"{found.num:,} of {found.num_all:,} matrices"


def _loss(trial: Trial, context: Context) -> str:
    """The loss of a run's own rows: padded, end to end, with shared prefixes, where the model supports these."""
    import torch

    from luthier.ml.training.equivalence import why_not_packed
    from luthier.ml.training.model import TrainableModel, collate

    del context
    ready = _planned(trial)
    rows = ready.train.tokenised
    # Reference: nats summed over learned tokens of each row by itself (no padding, no packing), divided by the
    # number of learned tokens, which is what a training step divides by.
    own = _own_model(trial)
    expected = sum(_own_nats(own, row) for row in rows) / sum(sum(row.loss_mask) for row in rows)
    # Before the next is loaded: two models together may not fit into the memory.
    del own
    model = TrainableModel.load(ready.plan)
    # prefix_lengths of collate: () pads to [rows, longest], (0,) packs end to end in one row of
    # [1, all tokens], (n,) packs with the first n tokens stored once.
    layouts: dict[str, tuple[int, ...]] = {"padded": ()}
    # Layouts that this architecture refuses are not tried; the returned text names those that were.
    if why_not_packed(model) is None:
        layouts["packed"] = (0,)
    if model.can_share_prefix():
        layouts["shared beginnings"] = (_num_shared(rows),)
    # Dropout and other training-only randomness off, else no two forward passes agree.
    model.module.eval()
    for name, prefix_lengths in layouts.items():
        # Token ids: [rows, longest] padded, or [1, T] with each prefix once and all suffixes behind.
        batch = collate(rows, model.pad_id, model.device, prefix_lengths=prefix_lengths)
        with torch.no_grad():
            # loss_sum returns the sum over learned tokens, not the mean.
            found = float(model.loss_sum(batch)[0]) / batch.num_trained_tokens
        _held(trial, f"loss_difference_{name.replace(' ', '_')}", found, expected, _LOSS_SHARE)
    return f"{_way(model)}; rows {', '.join(layouts)}"


def _way(model: TrainableModel) -> str:
    """The path for hidden states and logits, and why it is not the fast one."""
    path = model.path
    if path.is_fast:
        return "the fast path"
    why = f" ({'; '.join(path.reasons)})" if path.reasons else ""
    return f"attention: {path.attention}, logits: {path.logits}{why}"


def _step(trial: Trial, context: Context) -> str:
    """One step of training, to the adapter on disk."""
    from luthier.features.training.service import train_prepared

    # The real training path with its store and checkpoint, not a bare optimizer step.
    outcome = train_prepared(context, _planned(trial), began=time.perf_counter(), draws_page=False)
    result = outcome.record.result
    if outcome.record.status != "succeeded" or result is None or not math.isfinite(result.train_loss):
        raise WrongError(f"the run ended as {outcome.record.status}")
    trial.measures["loss"] = result.train_loss
    return "1 step"


def _text(trial: Trial, context: Context) -> str:
    """Greedy text of the engine that judges, against `generate` of transformers."""
    from luthier.core.ports import SilentProgress

    del context
    engine = _engine(trial)
    _same_tokens(trial, engine.generate(_prompts(), SilentProgress(), returns_token_ids=True))
    return engine.open_decoder().path.describe()


def _stream(trial: Trial, context: Context) -> str:
    """The same of the engine that serves."""
    from luthier.core.ports import SilentProgress
    from luthier.ml.inference.engine_wrappers import generate_by_streaming
    from luthier.ml.inference.streaming import StreamingEngine

    del context
    engine = StreamingEngine(_engine(trial))
    _same_tokens(trial, generate_by_streaming(engine, _prompts(), SilentProgress(), returns_token_ids=True))
    return "as `generate` writes it"


def _score(trial: Trial, context: Context) -> str:
    """Likelihoods, against the model's own forward pass."""
    from luthier.core.ports import SilentProgress

    del context
    rows = _planned(trial).train.tokenised
    model = _own_model(trial)
    for row, score in zip(rows, _engine(trial).score(rows, SilentProgress()), strict=True):
        _held(trial, "nats_difference", score.nll_nats, _own_nats(model, row), _NATS_SHARE)
    return f"{len(rows)} rows"


_PARTS: Final = {
    "plan": _plan,
    "reach": _reach,
    "loss": _loss,
    "step": _step,
    "text": _text,
    "stream": _stream,
    "score": _score,
}


def _planned(trial: Trial) -> Prepared:
    if trial.ready is None:
        raise _NotRunError("the plan says no")
    return trial.ready


def _needed(rows: Path | None) -> Path:
    assert rows is not None
    return rows


def _written(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _own_model(trial: Trial) -> PreTrainedModel:
    from luthier.ml.inference.models.loading import load_model

    return load_model(trial.path, dtype="float32", attention="eager")


def _own_logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """[tokens, vocabulary] by the model's own forward pass, without a cache."""
    import torch

    from luthier.ml.inference.models.architecture import causal_model
    from luthier.ml.inference.models.forward import text_inputs

    causal, given = causal_model(model), torch.tensor([list(ids)])
    with torch.no_grad():
        logits: Tensor = causal(input_ids=given, **text_inputs(causal, given)).logits[0].float()
    return logits


def _own_nats(model: PreTrainedModel, row: TokenisedExample) -> float:
    import torch
    import torch.nn.functional as F

    # ids: [tokens]. The logits of token t predict token t+1, so the mask loses its first entry, the logits their
    # last, and the targets start at 1.
    ids, learned = torch.tensor(list(row.input_ids)), torch.tensor(list(row.loss_mask), dtype=torch.bool)[1:]
    logits = _own_logits(model, row.input_ids)[:-1][learned]
    return float(F.cross_entropy(logits, ids[1:][learned], reduction="sum"))


def _held(trial: Trial, name: str, found: float, expected: float, most: float) -> None:
    """Keep the difference as a share of what is expected. Raises WrongError where it is above the most."""
    # The floor avoids dividing by 0 where the reference loss is exactly 0.
    share = abs(found - expected) / max(abs(expected), 1e-30)
    trial.measures[name] = max(share, trial.measures.get(name, 0.0))
    # Written so that NaN fails, too: every comparison with NaN is false.
    if not share <= most:
        raise WrongError(f"{found:.7g} where the model by itself gives {expected:.7g}: {share:.2g} of it")


def _num_shared(rows: Sequence[TokenisedExample]) -> int:
    """Tokens that all rows begin with and none of them learns."""
    # zip ends with the shortest row, and a shared prefix cannot be longer than that one.
    same = enumerate(zip(*(row.input_ids for row in rows), strict=False))
    shared = next((place for place, ids in same if len(set(ids)) > 1), min(row.num_tokens for row in rows))
    # A shared prefix is stored once, so it may not hold tokens that each row learns by itself.
    return min(shared, *(row.loss_mask.index(1) for row in rows))


def _prompts() -> list[Prompt]:
    from luthier.core.conversation import Conversation, Message
    from luthier.core.ports import Prompt

    questions = [str(row["messages"][0]["content"]) for row in made_rows(_NUM_PROMPTS)]
    talks = [Conversation(messages=(Message(role="user", content=text),)) for text in questions]
    # thought and answer share the limit, as they do in `generate`
    return [Prompt(conversation=talk, max_new_tokens=_NUM_NEW, max_thinking_tokens=0) for talk in talks]


def _engine(trial: Trial) -> TransformersEngine:
    from luthier.ml.inference.transformers_engine import TransformersEngine

    return TransformersEngine.open(str(trial.path), dtype="float32")


def _same_tokens(trial: Trial, made: Sequence[Generation]) -> None:
    """Raise WrongError where tokens are not those of transformers' own `generate`, or a text not that of its tokens."""
    import torch

    from luthier.ml.inference.models.architecture import causal_model
    from luthier.ml.inference.models.quiet import quiet_transformers

    model, template = causal_model(_own_model(trial)), trial.template
    assert template is not None
    ends = set(template.end_of_turn_ids)
    for number, (prompt, one) in enumerate(zip(_prompts(), made, strict=True)):
        assert prompt.conversation is not None
        ids = template.ids(template.render(prompt.conversation, add_generation_prompt=True))
        given = torch.tensor([ids])
        with torch.no_grad(), quiet_transformers():
            whole = model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=_NUM_NEW,
                do_sample=False,
                use_cache=False,  # of some models the cache gives other logits than their own forward pass
                eos_token_id=sorted(ends),
            )
        # generate returns the prompt and the end token as well; the engines return neither.
        new = list(takewhile(lambda token: token not in ends, whole[0, len(ids) :].tolist()))
        if list(one.token_ids or ()) != new:
            raise WrongError(f"prompt {number + 1}: tokens {one.token_ids} where transformers writes {new}")
        if (wrong := wrong_text(one, ids, template)) is not None:
            raise WrongError(f"prompt {number + 1}: {wrong}")


def wrong_text(made: Generation, prompt_ids: Sequence[int], template: ChatTemplate) -> str | None:
    """Why thought and answer are not the text of the generated tokens, decoded together; None where they are.

    Text that holds broken characters is left out: SentencePiece decodes such bytes by what follows them, which a stream
    has sent already.
    """
    from luthier.ml.inference.thoughts import Thoughts

    thoughts, ids = Thoughts(template), list(made.token_ids or ())
    if "\ufffd" in thoughts.decode(ids):
        return None
    expected, _ = thoughts.split(ids, is_open=thoughts.is_open(prompt_ids))
    if (made.reasoning, made.text) == (expected.reasoning, expected.content):
        return None
    return (
        f"{(made.reasoning, made.text)!r} as text of tokens that decode to {(expected.reasoning, expected.content)!r}"
    )


def check(document: dict[str, Any], channel: Channel) -> None:
    """Take a model through all parts in a child process: an event {"begins": name} before each, and its `Check` after.

    Args:
        document: `path` (the model's folder), `rows` (a file, or None), `work` (a folder for what is made), and
            `computes` as of `try_model`.
        channel: of the child process.
    """
    from luthier.ml.inference.models.quiet import quiet_transformers

    path, work, computes = Path(document["path"]), Path(document["work"]), document["computes"]
    rows = Path(document["rows"]) if document["rows"] else None
    with quiet_transformers():
        for found in try_model(path, rows, work, lambda name: channel.emit({"begins": name}), computes=computes):
            channel.emit(found.model_dump(mode="json"))

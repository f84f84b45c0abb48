"""The stages of a walk: what each asks of Luthier, and what plain transformers and PEFT must say of the answer."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file
from tests.zoo import plain
from tests.zoo.gradients import compared, stir
from tests.zoo.rows import ROWS, closes_thought, is_said, write_rows, wrong_marks
from transformers import AutoTokenizer

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import LuthierError, RequestError, TemplateError
from luthier.core.events import Event, StepDone
from luthier.core.ids import new_id
from luthier.core.ports import Generation, Prompt, SilentProgress
from luthier.core.recipe import Recipe
from luthier.core.system.facilities import fork
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import recipe_from
from luthier.features.training.service import TrainOutcome, train_prepared
from luthier.features.training.service import resume as go_on
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from tests.zoo.walk import Stage, Walk

    from luthier.ml.training.model import TrainableModel

_WOODS: Final = ("spruce", "maple", "ebony", "cedar", "willow", "rosewood", "pine", "ash")
_MAX_NEW_TOKENS: Final = 24
_TRAINING: Final[dict[str, Any]] = {
    "max_steps": 4,
    "global_batch_size": 4,
    "learning_rate": 1e-3,
    "precision": "float32",
    "num_threads": 1,
    "checkpoint_every_steps": 2,
}
_LORA: Final[dict[str, Any]] = {"name": "lora", "rank": 2, "dropout": 0.0}


def _question(number: int) -> str:
    # rows of unlike length, some of which begin alike, most longer than a window of 16 tokens
    return f"Which wood is part {number // 2} of the lute made of?" + " Say it in one word." * (number % 2)


def _chat(number: int) -> dict[str, Any]:
    answer = f"Part {number // 2} is made of {_WOODS[number % 8]}."
    return {"messages": [{"role": "user", "content": _question(number)}, {"role": "assistant", "content": answer}]}


def _pair(number: int) -> dict[str, Any]:
    wood = _WOODS[number % 8]
    return {
        "prompt": _question(number),
        "chosen": f"Of {wood}.",
        "rejected": f"Of {_WOODS[(number + 1) % 8]}, I guess.",
    }


def _recipe(going: Walk, method: dict[str, Any], *, is_pairs: bool = False, is_judged: bool = False) -> Recipe:
    rows = [(_pair if is_pairs else _chat)(number) for number in range(8)]
    write_rows(going.work / ("pairs.jsonl" if is_pairs else "train.jsonl"), rows)
    data = {"train": "pairs.jsonl" if is_pairs else "train.jsonl"}
    document: dict[str, Any] = {"base_model": str(going.folder), "method": method, "training": _TRAINING, "data": data}
    if is_pairs:
        document["objective"] = {"name": "dpo"}
    if is_judged:
        write_rows(going.work / "test.jsonl", [_chat(number) for number in range(20, 22)])
        data["held_out"] = "test.jsonl"
        # One prompt with an example; further ones would be chosen by what they cost.
        prompts = {"few_shot": 1, "few_shot_draws": 1, "few_shot_nearest": False, "instruction": False}
        document["evaluation"] = prompts | {"max_new_tokens": 8}
    return recipe_from(document, base_dir=going.work)


def _prepared(going: Walk, context: Context, stage: Stage, method: dict[str, Any], **more: bool) -> Prepared:
    """The plan of a run, made once for all stages that take the same; so is the refusal of one."""
    key = str((method, sorted(more.items())))
    if key not in going.plans:
        try:
            going.plans[key] = prepare(context, _recipe(going, method, **more), base_dir=going.work)
        except LuthierError as refused:
            going.plans[key] = refused
    ready = going.plans[key]
    if isinstance(ready, LuthierError):
        raise ready
    stage.planned()
    return ready


def row(going: Walk, kind: str) -> None:
    """One row through the real way from its fields to marks.

    One that is refused must be one that the template cannot say, and pass with the setting that the refusal names.
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.tokenise.tokenised_rows import tokenise_all
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    with going.stage(f"row_{kind}") as stage:
        file = write_rows(going.work / f"{kind}.jsonl", [ROWS[kind]])
        template = ChatTemplate.load(going.folder)
        examples = load_file(file).examples
        try:
            made = tokenise_all(
                examples, template, max_length_tokens=4096, overlong="error", progress=SilentProgress()
            ).examples
        except TemplateError as refused:
            options = _named_options(refused)
            cannot = bool(options) and closes_thought(ROWS[kind], options, template.tokenizer)
            cannot = cannot or not is_said(ROWS[kind], template.tokenizer)
            stage.outcome.path = _opt_in(examples, going, refused) if cannot else ""
            raise
        wrong = wrong_marks(ROWS[kind], made, template.tokenizer, set(template.end_of_turn_ids))
        if wrong is not None:
            stage.wrong(wrong)
        stage.outcome.path = "one sequence" if len(made) == 1 else f"{len(made)} examples, one an answer"


def _opt_in(examples: Any, going: Walk, refused: TemplateError) -> str:
    """The settings by which a refused row passes, if the refusal names one of them; empty otherwise."""
    from luthier.features.model_checks.trials import opt_in
    from luthier.ml.data.tokenise.tokenised_rows import tokenise_all
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    if options := _named_options(refused):
        template = ChatTemplate.load(going.folder).with_options(options)
        with contextlib.suppress(LuthierError):
            tokenise_all(examples, template, max_length_tokens=4096, overlong="error", progress=SilentProgress())
            return "passes with " + re.findall(r"data\.template_options: \{.*?\}", refused.do)[0]
    found = opt_in(examples, ChatTemplate.load(going.folder))
    return found if any(setting in refused.do for setting in re.findall(r"data\.\w+: \w+", found)) else ""


def _named_options(refused: TemplateError) -> dict[str, bool]:
    """The option of the template that a refusal names, and its value; empty where it names none."""
    found = re.findall(r"data\.template_options: \{(\w+): (true|false)\}", refused.do)
    return {name: value == "true" for name, value in found}


def plan(going: Walk, context: Context) -> None:
    """The plan of the plainest run."""
    with going.stage("plan") as stage:
        ready = _prepared(going, context, stage, _LORA)
        stage.outcome.path = f"{ready.plan.method.num_trainable_parameters:,} parameters"


def reach(going: Walk, context: Context) -> None:
    """What share of the matrices of the language model an adapter on all-linear reaches."""
    with going.stage("reach") as stage:
        ready = _prepared(going, context, stage, _LORA)
        share, num = plain.reach(going.folder, _adapted(ready), ready.plan.method.expert_targets)
        stage.outcome.measures["share_of_matrices"] = round(share, 4)
        stage.outcome.path = f"{share:.0%} of {num:,} matrix parameters"


def _adapted(ready: Prepared) -> list[str]:
    """Names of what is trained, as PEFT names it."""
    model = _trainable(ready)
    return [name for name, p in model.module.named_parameters() if p.requires_grad]


def _trainable(ready: Prepared) -> TrainableModel:
    from luthier.ml.training.model import TrainableModel

    return TrainableModel.load(ready.plan)


def loss(going: Walk, context: Context) -> None:
    """Loss and gradients of a LoRA whose update is not zero: padded, packed and with shared prefixes."""
    from luthier.ml.training.checkpoint import save_model

    with going.stage("loss") as stage:
        ready = _prepared(going, context, stage, _LORA)
        model = _trainable(ready)
        stir(model)
        adapter, _ = save_model(model, Path(ready.plan.base_model.path), going.work / "stirred")
        stage.outcome.path = compared(stage, model, ready.train.tokenised, plain.with_adapter(going.folder, adapter))


def full_loss(going: Walk, context: Context) -> None:
    """Loss and gradients of full fine-tuning, every weight of the language model among them."""
    with going.stage("full_loss") as stage:
        ready = _prepared(going, context, stage, {"name": "full"})
        model = _trainable(ready)
        stage.outcome.path = compared(stage, model, ready.train.tokenised, plain.plain_model(going.folder))


def _trained(
    going: Walk, context: Context, name: str, method: dict[str, Any], **more: bool
) -> tuple[Stage, TrainOutcome | None]:
    """A run to its end, and what it said of its first step."""
    found: list[TrainOutcome] = []
    with going.stage(name) as stage:
        ready = _prepared(going, context, stage, method, **more)
        outcome = train_prepared(context, ready, began=time.perf_counter(), draws_page=False)
        steps = [event for event in context.runs.events(outcome.record.run_id) if isinstance(event, StepDone)]
        result = outcome.record.result
        if outcome.record.status != "succeeded" or result is None or len(steps) != ready.plan.training.num_steps:
            stage.wrong(f"the run ended as {outcome.record.status} after {len(steps)} steps")
        stage.outcome.measures["first_step_loss"] = steps[0].loss
        stage.outcome.path = f"{steps[-1].step} steps"
        found.append(outcome)
        going.runs[name] = outcome
    return stage, found[0] if found else None


def lora(going: Walk, context: Context) -> None:
    """LoRA from plan to verdict: trained, judged."""
    stage, outcome = _trained(going, context, "lora", _LORA, is_judged=True)
    if outcome is None:
        return
    with going.held(stage):
        assert outcome.evaluation is not None
        models = [system for system in outcome.evaluation.systems if system.kind == "model"]
        base, tuned = (system.metrics["perplexity"].value for system in models[-2:])
        if not (math.isfinite(base) and math.isfinite(tuned)) or base == tuned:
            stage.wrong(f"judged perplexities {base} and {tuned}")


def full(going: Walk, context: Context) -> None:
    """Full fine-tuning: what it saved loads in plain transformers."""
    stage, outcome = _trained(going, context, "full", {"name": "full"})
    if outcome is not None and outcome.record.result is not None:
        with going.held(stage):
            folder = Path(str(outcome.record.result.adapter_path))
            ids = list(range(5, 40))
            before, after = (plain.logits(plain.plain_model(path), ids) for path in (going.folder, folder))
            if before.shape != after.shape or torch.equal(before, after):
                stage.wrong("the saved model is not a trained one")


def adalora(going: Walk, context: Context) -> None:
    """AdaLoRA."""
    _trained(going, context, "adalora", {"name": "adalora", "initial_rank": 3, "target_rank": 2, "dropout": 0.0,
                                         "warmup_steps": 1, "final_steps": 1, "reallocate_every_steps": 1})  # fmt: skip


def qlora(going: Walk, context: Context) -> None:
    """QLoRA in int8: the loss of its first step against the base as packing has rounded it."""
    from luthier.ml.inference.models.merging import wide_model

    method = {**_LORA, "name": "qlora", "quantisation": "int8"}
    stage, outcome = _trained(going, context, "qlora", method)
    if outcome is None or plain.has_dropout(going.folder):
        return
    with going.held(stage):
        ready = _prepared(going, context, stage, method)
        rows = ready.train.tokenised
        wide = wide_model(going.folder, outcome.plan.method.quantisation, outcome.plan.training.precision)
        step = _first_step(ready)
        theirs, _ = plain.loss_and_gradients(wide, [rows[i] for i in step], wants_gradients=False)
        stage.measured("loss", plain.relative(stage.outcome.measures["first_step_loss"], theirs), 1e-2)


def _first_step(ready: Prepared) -> list[int]:
    from luthier.features.planning.batch_schedules import of_training

    return [index for batch in of_training(ready, shares_prefix=False).step(0) for index in batch]


def dpo(going: Walk, context: Context) -> None:
    """DPO: before the first update policy and reference are the same, so that the loss is ln 2."""
    stage, outcome = _trained(going, context, "dpo", _LORA, is_pairs=True)
    if outcome is not None and not plain.has_dropout(going.folder):
        with going.held(stage):
            stage.measured("loss", plain.relative(stage.outcome.measures["first_step_loss"], math.log(2)), 1e-5)


def resume(going: Walk, context: Context) -> None:
    """Kill -9 after a checkpoint, and go on: the same bytes as a run that was never stopped."""
    with going.stage("resume") as stage:
        ready = _prepared(going, context, stage, {**_LORA, "dropout": 0.1})
        expected = train_prepared(context, ready, began=time.perf_counter(), draws_page=False).as_json()
        run_id = new_id("run")
        # SQLite must not carry a connection over a fork: the child would take locks of this process for its own.
        context.database.close()
        if (pid := fork()) == 0:
            _die_at_checkpoint(going, run_id, ready)
        os.waitpid(pid, 0)
        if context.runs.get(run_id).step < 2:
            stage.wrong(f"the run was killed at step {context.runs.get(run_id).step}, before its checkpoint")
        document = go_on(context, run_id, draws_page=False).as_json()
        if document["adapter_sha256"] != expected["adapter_sha256"]:
            stage.wrong("the resumed run has other weights than one that was never stopped")
        stage.outcome.path = "equal bytes"


def _die_at_checkpoint(going: Walk, run_id: str, ready: Prepared) -> None:
    """In a process of its own: train up to the first checkpoint, then kill -9."""

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        with Context.open(going.work / "home") as context:
            train_prepared(context, ready, began=time.perf_counter(), draws_page=False, run_id=run_id, listener=listen)
    except BaseException:  # noqa: BLE001 - this process is a copy of the one that walks: it must not go on as that
        traceback.print_exc()
    finally:
        os._exit(1)


def _adapter_of(going: Walk, context: Context, stage: Stage) -> Path:
    """A folder with a stirred adapter; of the stage `loss` where that has left one."""
    from luthier.ml.training.checkpoint import save_model

    ready = _prepared(going, context, stage, _LORA)
    folder = going.work / "stirred" / "adapter"
    if not folder.is_dir():
        model = _trainable(ready)
        stir(model)
        save_model(model, Path(ready.plan.base_model.path), going.work / "stirred")
    return folder


def _conversation(number: int) -> Conversation:
    return Conversation(messages=(Message(role="user", content=_question(number)),))


def _prompts() -> list[Prompt]:
    # thought and answer share the limit, as they do in `generate` of transformers
    most = {"max_new_tokens": _MAX_NEW_TOKENS, "max_thinking_tokens": 0}
    return [Prompt.model_validate({"conversation": _conversation(number), **most}) for number in range(3)]


def generate(going: Walk, context: Context) -> None:
    """Greedy text of several prompts in one call, with an adapter, against `generate` of each by itself."""
    from luthier.ml.inference.transformers_engine import TransformersEngine

    with going.stage("generate") as stage:
        adapter = _adapter_of(going, context, stage)
        engine = TransformersEngine.open(str(going.folder), adapter_path=str(adapter), dtype="float32")
        prompts = _prompts()
        made = engine.generate(prompts, SilentProgress(), returns_token_ids=True)
        _same_tokens(going, stage, engine.template, made, adapter)
        stage.outcome.path = engine.open_decoder().path.describe()


def stream(going: Walk, context: Context) -> None:
    """The same of the engine that serves, which writes all answers at once with the adapter beside the base."""
    from luthier.core.stream import Served
    from luthier.ml.inference.engine_wrappers import generate_by_streaming
    from luthier.ml.inference.low_rank import why_not_shared
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.inference.streaming import open_stream_engine

    with going.stage("stream") as stage:
        adapter = _adapter_of(going, context, stage)
        why_not = why_not_shared(str(adapter))
        served = Served(engine="transformers", path=str(going.folder), sha256="0" * 64, precision="float32")
        if why_not is not None:
            served = served.model_copy(update={"adapter_path": str(adapter)})
        template = ChatTemplate.load(going.folder)
        engine = open_stream_engine(served)
        if why_not is None:
            engine.load_adapter("tuned", str(adapter))
        prompts = _prompts()
        tuned = "tuned" if why_not is None else None
        made = generate_by_streaming(engine, prompts, SilentProgress(), adapter=tuned, returns_token_ids=True)
        _same_tokens(going, stage, template, made, adapter)
        stage.outcome.path += ", adapter shares the base" if why_not is None else ", adapter by itself"


def _same_tokens(going: Walk, stage: Stage, template: Any, made: list[Generation], adapter: Path) -> None:
    """The ids are those of transformers' own `generate`, and the text is what its tokenizer makes of them."""
    ends, tokenizer = set(template.end_of_turn_ids), AutoTokenizer.from_pretrained(going.folder)
    asked = [
        tuple(template.ids(template.render(_conversation(number), add_generation_prompt=True)))
        for number in range(len(made))
    ]
    if missing := set(asked) - going.written.keys():
        model = plain.with_adapter(going.folder, adapter)
        going.written |= {ids: plain.greedy(model, ids, _MAX_NEW_TOKENS, ends) for ids in missing}
    for number, (one, ids) in enumerate(zip(made, asked, strict=True)):
        new = going.written[ids]
        if list(one.token_ids or ()) != new:
            stage.wrong(f"prompt {number + 1}: wrote {list(one.token_ids or ())}, transformers {new}")
        wrong = plain.wrong_text(tokenizer, new, one.reasoning, one.text)
        if wrong is not None:
            stage.wrong(f"prompt {number + 1}: {wrong}")
    stage.outcome.path = f"{len(made)} answers"


def score(going: Walk, context: Context) -> None:
    """Likelihoods of rows that begin alike, with an adapter."""
    from luthier.ml.inference.transformers_engine import TransformersEngine

    with going.stage("score") as stage:
        ready = _prepared(going, context, stage, _LORA)
        adapter = _adapter_of(going, context, stage)
        engine = TransformersEngine.open(str(going.folder), adapter_path=str(adapter), dtype="float32")
        scores = engine.score(ready.train.tokenised, SilentProgress())
        model = plain.with_adapter(going.folder, adapter)
        with torch.no_grad():
            for row_, found in zip(ready.train.tokenised, scores, strict=True):
                stage.measured("nats", plain.relative(found.nll_nats, float(plain.loss_sum(model, row_))), 1e-5)
        stage.outcome.path = f"{len(scores)} rows"


def merge(going: Walk, context: Context) -> None:
    """The merged model, saved and loaded by transformers, computes what the base with the adapter does."""
    from luthier.ml.inference.models.merging import merged_model

    with going.stage("merge") as stage:
        adapter = _adapter_of(going, context, stage)
        merged = merged_model(going.folder, adapter, dtype="float32")
        merged.save_pretrained(going.work / "merged")
        ids = list(range(5, 60))
        with torch.no_grad():
            ours = plain.logits(plain.plain_model(going.work / "merged"), ids)
            adapted = plain.with_adapter(going.folder, adapter)
            theirs = plain.logits(adapted, ids)
            with adapted.disable_adapter():
                base = plain.logits(adapted, ids)
        stage.measured("logits", float((ours - theirs).norm() / theirs.norm()), 1e-5)
        if float((theirs - base).norm() / base.norm()) < 1e-4:
            stage.wrong("the adapter changes nothing")


def adapter(going: Walk, context: Context) -> None:
    """The adapter of a run loads in plain PEFT, every tensor of it in its place."""
    with going.stage("adapter") as stage:
        folder = _adapter_of(going, context, stage)
        model = plain.with_adapter(going.folder, folder)
        saved = load_file(folder / "adapter_model.safetensors")
        from peft import get_peft_model_state_dict
        from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

        # By the names that PEFT loads them under, of which a published checkpoint may have others.
        read = convert_peft_adapter_state_dict_for_transformers(model, model.peft_config["default"], dict(saved))
        held = get_peft_model_state_dict(model)
        is_whole = len(read) == len(saved) and set(held) == set(read)
        if not is_whole or not all(torch.equal(held[name], read[name]) for name in read):
            stage.wrong(f"PEFT holds {len(held)} tensors of {len(saved)}, or other values")
        stage.outcome.path = f"{len(saved)} tensors"


def gguf(going: Walk, context: Context) -> None:
    """The run as a GGUF file, proved in llama.cpp; a family that the converter does not take is refused."""
    from luthier.features.exports.service import export

    with going.stage("gguf") as stage:
        if "lora" not in going.runs:
            raise RequestError("no run to export", expected="a LoRA run that has ended well", do="see the stage lora")
        run_id = going.runs["lora"].record.run_id
        made = export(context, run_id, to="gguf", output=going.work / "gguf", num_prompts=4)
        parity = made.parity
        stage.outcome.path = f"{parity.num_prompts_same_tokens} of {parity.num_prompts} prompts, same tokens"

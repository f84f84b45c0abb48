"""GGUF, for llama.cpp and Ollama: one file with weights, tokenizer and template, plus a Modelfile.

Ollama writes turns with its own Go template and does not run the one in the GGUF file. The Modelfile's template is
found by probing the prompts that the real one writes: it is written if every turn is a fixed text, the content and a
fixed text. Otherwise (turns depend on each other) the Modelfile has no template, and Ollama takes one of its own if it
recognises that in the file, else none at all, of which the export warns.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from luthier.core.child_process.process import run_child
from luthier.core.conversation import AS_THEY_ARE, Conversation, Message
from luthier.core.errors import TemplateError
from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.core.system.extras import missing_extra
from luthier.core.system.process_setup import usable_threads
from luthier.ml.export.exporters.companions import Turns, what_to_do
from luthier.ml.export.exporters.converter import architecture_of, converter, keys_of, known_name, refuse_unknown
from luthier.ml.export.exporters.merged import write_model
from luthier.ml.inference.models.architecture import context_tokens, load_config
from luthier.ml.inference.models.templates.chat_template import ChatTemplate

_MARK: Final = "\u2063content\u2063"
_ROLES: Final = ("system", "user", "assistant")
_REPEAT_PENALTY: Final = "repeat_penalty"
_PARAMETERS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": _REPEAT_PENALTY,
}
_SAMPLING_DEFAULTS: Final = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
"""What transformers samples with where a generation config does not say it."""
_OLLAMA_CONTEXT: Final = 4096
"""Context of Ollama where a Modelfile does not say it; earlier versions have half of it."""
_CONTEXT_STEP: Final = 1024


def context_in_ollama(source: ExportSource) -> int | None:
    """The context in tokens that a Modelfile asks for; None leaves that to Ollama.

    Ollama silently cuts the beginning of longer conversations off: there is room for the longest rows of training, if
    the model has it. Keys and values of a whole context of 128k would take more memory than most models.
    """
    if source.trained_tokens is None:
        return source.context_tokens
    room = (
        context_tokens(load_config(Path(source.base_path))) if source.context_tokens is None else source.context_tokens
    )
    return min(room, max(_OLLAMA_CONTEXT, -(-source.trained_tokens // _CONTEXT_STEP) * _CONTEXT_STEP))


def modelfile(weights: str, turns: Turns, *, adapter: str = "", context_tokens: int | None = None) -> str:
    """The text of a Modelfile.

    The sampling settings are those of the generation config. Where it has no penalty of repetition there is none, where
    it does not sample, neither does Ollama, and what a config that samples does not say is as in transformers: the own
    settings of Ollama would write other answers than those that were evaluated. The beginning-of-text token is left
    out: Ollama adds it itself.

    Args:
        weights: name of the GGUF file in the same folder.
        turns: the way the export writes and ends turns.
        adapter: name of the GGUF file of an adapter to apply to it; empty for none.
        context_tokens: the context to open it with; None leaves that to Ollama.
    """
    lines = [f"FROM ./{weights}", *([f"ADAPTER ./{adapter}"] if adapter else [])]
    if (written := _turns(turns.template, turns.beginning)) is not None:
        go, system = written
        lines.append(f'TEMPLATE """{go}"""')
        if system:
            lines.append(f'SYSTEM """{system}"""')
    else:
        lines.append("# The chat template in the file cannot be written in Ollama's language: see chat_template.jinja.")
    lines += [f"# {note[:1].upper()}{note[1:]}." for note in by_hand_in_ollama(turns)]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in turns.stops]
    if context_tokens is not None:
        lines.append(f"PARAMETER num_ctx {context_tokens}")
    sampling = {own: turns.settings.get(name) for name, own in _PARAMETERS.items()}
    does_sample = turns.settings.get("do_sample")
    # As transformers reads it: without `do_sample` the likeliest token is taken. Some configs forget it.
    if does_sample is False or (does_sample is None and not _is_number(sampling["temperature"])):
        sampling["temperature"] = 0
    else:
        # Ollama's own are 0.8, 40 and 0.9.
        unsaid = [(name, value) for name, value in _SAMPLING_DEFAULTS.items() if not _is_number(sampling[name])]
        lines += [f"PARAMETER {name} {value}" for name, value in unsaid]
    if not _is_number(sampling[_REPEAT_PENALTY]):
        lines.append(f"PARAMETER {_REPEAT_PENALTY} 1.0")
    lines += [f"PARAMETER {name} {value}" for name, value in sampling.items() if _is_number(value)]
    return "\n".join(lines) + "\n"


def by_hand_in_ollama(turns: Turns) -> list[str]:
    """What users of Ollama must do, as it does not run the chat template in the file."""
    notes = []
    if turns.opted != AS_THEY_ARE:
        notes.append(
            "Ollama does not run the chat template in the file, so its users must do what it does: "
            + what_to_do(turns.template, turns.opted)
        )
    if _turns(turns.template, turns.beginning) is None:
        notes.append(
            "the turns of this chat template cannot be written in Ollama's language: Ollama takes a template that it "
            "has for a similar one, or none, and may answer worse; llama-server and LM Studio run the template in "
            "the file"
        )
    elif turns.template.thoughts is not None:
        notes.append(
            "Ollama writes earlier answers into prompts as it gets them: its users must leave thoughts out of answers "
            "that they send back"
        )
    return notes


def _turns(template: ChatTemplate, beginning: str) -> tuple[str, str] | None:
    """The Go template, and the default system text; None if the template cannot be expressed."""
    try:
        around = _around_each_role(template)
        if around is None:
            return None
        frames, opening = around
        alone = _without_system(template, frames, opening, beginning)
        if alone is None:
            return None
    except TemplateError:
        return None
    system, head = alone
    texts = [opening, system, head, *(text for frame in frames.values() for text in frame)]
    # Go would parse these as its own syntax, so the template in the file is used for such texts.
    if any(word in text for text in texts for word in ("{{", "}}", '"""')):
        return None
    tests = {role: f'eq .Role "{role}"' for role in _ROLES}
    if head:
        tests["system"] = f"and ({tests['system']}) .Content"  # an empty one is what the head writes
    go = "".join(
        f"{{{{ if {tests[role]} }}}}" + before.removeprefix(beginning) + "{{ .Content }}" + after + "{{ end }}"
        for role, (before, after) in frames.items()
    )
    first = "{{ if not .System }}" + head + "{{ end }}" if head else ""
    return first + "{{ range .Messages }}" + go + "{{ end }}" + opening, system


def _around_each_role(template: ChatTemplate) -> tuple[dict[str, tuple[str, str]], str] | None:
    """The text before and after the content of each role, and the start of the answer; None if they are not fixed.

    As prompts have them, which never end with an answer: some templates write the last answer in another way.
    """
    written, frames = "", {}
    for role, roles in (("system", _ROLES[:1]), ("user", _ROLES[:2])):
        now = _render(template, roles)
        # Each turn must append exactly its frame and content, and change nothing before it.
        if not now.startswith(written) or now.count(_MARK) != len(roles):
            return None
        before, _, after = now.removeprefix(written).partition(_MARK)
        frames[role], written = (before, after), now
    opening = _render(template, _ROLES[:2], opens=True).removeprefix(written)
    longer, user = _render(template, (*_ROLES, "user")), _MARK.join(frames["user"])
    between = longer.removeprefix(written).removesuffix(user)
    if written + between + user != longer or between.count(_MARK) != 1:
        return None
    before, _, after = between.partition(_MARK)
    frames["assistant"] = (before, after)
    # A second round finds templates that write later turns differently from the first.
    again = (*_ROLES, "user", "assistant", "user")
    return None if _render(template, again, opens=True) != _joined(frames, again) + opening else (frames, opening)


def _without_system(
    template: ChatTemplate, frames: Mapping[str, tuple[str, str]], opening: str, beginning: str
) -> tuple[str, str] | None:
    """How a conversation without a system text begins; None if its turns are not those of one with such a text.

    Returns:
        The default system text of the template, and what it writes in place of such a turn; both may be empty.
    """
    alone, user = _render(template, ("user",)).removeprefix(beginning), _MARK.join(frames["user"])
    own = alone.removesuffix(user)
    again = ("user", "assistant", "user")
    if own + user != alone or (
        _render(template, again, opens=True).removeprefix(beginning) != own + _joined(frames, again) + opening
    ):
        return None
    before, after = frames["system"]
    before = before.removeprefix(beginning)
    if own and not (own.startswith(before) and own.endswith(after) and len(own) >= len(before) + len(after)):
        return None
    text = own[len(before) : len(own) - len(after)]
    return (text, "") if text else ("", own)


def _joined(frames: Mapping[str, tuple[str, str]], roles: Sequence[str]) -> str:
    return "".join(_MARK.join(frames[role]) for role in roles)


def _render(template: ChatTemplate, roles: Sequence[str], *, opens: bool = False) -> str:
    messages = tuple(Message.model_validate({"role": role, "content": _MARK}) for role in roles)
    return template.render(Conversation(messages=messages), add_generation_prompt=opens)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


FILE: Final = "model.gguf"
MODELFILE: Final = "Modelfile"
CONVERT: Final = "luthier.ml.export.exporters.gguf_worker:convert"
_QUANTISE: Final = "luthier.ml.export.exporters.gguf_worker:quantise"
_OUTTYPES: Final = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}
_SAME: Final = {
    "MinistralForCausalLM": "MistralForCausalLM",
    "CwmForCausalLM": "LlamaForCausalLM",
    "HeliumForCausalLM": "LlamaForCausalLM",
}
"""Classes that the converter does not know, and those that compute the same, but for windows and the order in which a
rotary embedding pairs rows. The small copy decides whether that is so, and within how many tokens."""


def check(source: ExportSource, progress: Progress, tools: Path) -> None:
    """Reject an architecture that is not on the converter's own list.

    Raises:
        RequestError: it is not.
        WorkError: the converter is not available.
    """
    known = _known(converter(tools, progress))
    refuse_unknown(
        known_name(Path(source.base_path), known, _SAME),
        known,
        "llama.cpp's converter",
        "export with --to merged, which vLLM and transformers serve",
    )


def _known(program: Path) -> frozenset[str]:
    """The architectures on the list of the converter in that folder."""
    return keys_of(program / "conversion" / "__init__.py", "TEXT_MODEL_MAP")


def write(source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path) -> list[str]:
    """Write `model.gguf` in that precision, and a Modelfile for Ollama.

    The model is first merged in float32, and mixtures of kinds (q6_k and below) are made from float16. Next to the
    file there are the tokenizer and the generation config, for checks of tokens.

    Raises:
        RequestError: GGUF or llama.cpp cannot represent the model, or a package is missing.
        WorkError: the converter fails or is not available.
        OSError: the disk is full.
    """
    if precision not in _OUTTYPES:
        _need_llama_cpp(precision)
    program = converter(tools, progress)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".gguf-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        turns = write_model(source, folder, "float32", progress)
        # The converter writes wide types and q8_0 itself; llama.cpp makes mixed types from 16 bits.
        direct = target / FILE if precision in _OUTTYPES else Path(scratch) / "wide.gguf"
        _convert(program, folder, direct, _OUTTYPES.get(precision, "f16"), source, turns, progress)
        _keep_companions(folder, target)
        if precision not in _OUTTYPES:
            # The merged folder (4 bytes per weight) is deleted before the quantised file is made, to halve the disk
            # space.
            shutil.rmtree(folder)
            document = {"source": str(direct), "target": str(target / FILE), "kind": precision}
            with progress.task(title := f"Quantising to {precision}", None, ""):
                run_child(_QUANTISE, document | {"num_threads": usable_threads()}, title=title)
    text = modelfile(FILE, turns, context_tokens=context_in_ollama(source))
    (target / MODELFILE).write_text(text, encoding="utf-8", newline="\n")
    return [*turns.notes, *by_hand_in_ollama(turns)]


def _convert(
    program: Path,
    folder: Path,
    file: Path,
    outtype: str,
    source: ExportSource,
    turns: Turns,
    progress: Progress,
) -> None:
    document = {
        "converter": str(program),
        "architecture": known_name(folder, _known(program), _SAME),
        "class": architecture_of(folder),
        "model": str(folder),
        "file": str(file),
        "outtype": outtype,
        "name": source.name,
        "end_of_turn": turns.stop_ids[0],
        "begins": bool(turns.beginning),
        "context_tokens": source.context_tokens,
    }
    with progress.task(title := f"Writing GGUF ({outtype})", None, ""):
        run_child(CONVERT, document, title=title)


def _keep_companions(folder: Path, target: Path) -> None:
    for name in ("chat_template.jinja", "generation_config.json"):
        shutil.copyfile(folder / name, target / name)


def _need_llama_cpp(precision: str) -> None:
    if importlib.util.find_spec("llama_cpp_py_sync") is None:
        instead = "or take --quantise q8_0, which needs nothing more"
        raise missing_extra("gguf", f"--quantise {precision}", "llama-cpp-py-sync", instead)

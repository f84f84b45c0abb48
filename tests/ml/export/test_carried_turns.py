"""What a run was trained with goes with every export: proved in the export's own runtime, which is given nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.conversation import Conversation, Message, OptedTurns
from luthier.core.dataset import Example
from luthier.core.ports import SilentProgress
from luthier.core.records.export import ExportFormat, ExportSource, ParityReport
from luthier.ml.export.exporters import registry
from luthier.ml.export.parity import parity_warnings, prove
from luthier.ml.export.source_side import observe_source
from luthier.testing.tiny import OPENING_TEMPLATE, make_tiny_model

# Knows neither system turns, tools nor thoughts; writes a tone that it is given.
_NARROW = """\
{%- for message in messages -%}
{%- if message.role not in ['user', 'assistant'] -%}{{- raise_exception('no ' + message.role) -}}{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}{%- if tone is defined -%}{{- '(' + tone + ') ' -}}{%- endif -%}
{%- endif -%}
"""
_OPTED = OptedTurns(folds_system=True, tools_as_text=True, reasoning="as_text")
_CALL = {"id": "callAB123", "type": "function", "function": {"name": "price", "arguments": '{"wood":"ash","n":1}'}}
_TOOL = {"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}


def _examples(*, has_tools: bool = True) -> list[Example]:
    user, system = Message(role="user", content="Which wood?"), Message(role="system", content="Be short.")
    thought = Message(role="assistant", content="Spruce.", reasoning="It is light.")
    tagged = Message(role="assistant", content="<think>\nIt is light.\n</think>\n\nSpruce.")
    ends = (Message(role="user", content="And the back?"), Message(role="assistant", content="Maple."))
    called = (
        user,
        Message(role="assistant", content="", tool_calls=(_CALL,)),
        Message(role="tool", name="price", tool_call_id="callAB123", content="12"),
        Message(role="assistant", content="12."),
    )
    rows = [(system, user, ends[1]), (user, thought, *ends), (user, tagged, *ends), (user, thought)]
    made = [Conversation(messages=row) for row in rows]
    made += [Conversation(messages=(system, *called), tools=(_TOOL,))] if has_tools else []
    return [Example(id=f"rows:{number}", conversation=one) for number, one in enumerate(made, start=1)]


def _source(folder: Path, template: str, **trained: object) -> ExportSource:
    make_tiny_model(folder, context_length_tokens=1024)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return ExportSource.model_validate(
        {"name": "tiny", "run_id": None, "base_name": "tiny", "base_path": str(folder), "base_sha256": "0" * 64}
        | {"precision": "float32"}
        | trained
    )


def _prove(
    source: ExportSource, to: ExportFormat, folder: Path, tools: Path, examples: list[Example]
) -> tuple[list[str], ParityReport]:
    folder.mkdir()
    warnings = registry.write(to, source, folder, "float32", SilentProgress(), tools)
    report = prove(source, folder, to, "float32", examples, SilentProgress())
    assert report.passed, report.reasons
    assert report.num_prompts == report.num_prompts_same_tokens == len(examples)
    return warnings, report


@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_rewritten_turns_and_options_are_in_the_export(
    to: ExportFormat, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tools = request.getfixturevalue("tools") if to == "gguf" else tmp_path
    source = _source(tmp_path / "base", _NARROW, template_options={"tone": "dry"}, opted_turns=_OPTED)
    seen = observe_source(source, _examples(), SilentProgress())
    assert all("(dry)" in answer.text for answer in seen.answers)
    assert "Be short.\n\nWhich wood?" in seen.answers[0].text
    assert "<think>\nIt is light.\n</think>" in seen.answers[1].text
    assert '<tool_call>{"name": "price", "arguments": {"wood": "ash", "n": 1}}</tool_call>' in seen.answers[4].text
    warnings, report = _prove(source, to, tmp_path / "export", tools, _examples())
    assert parity_warnings(report) == ()
    assert [one for one in warnings if "chat template cannot write turns" in one] == []
    if to == "gguf":
        assert "put the system text and a blank line before the first user turn" in warnings[0]
        assert f"# {warnings[0]}." in (tmp_path / "export" / "Modelfile").read_text()


@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_a_model_trained_not_to_think_is_exported_so(
    to: ExportFormat, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """And thoughts of earlier turns, in a field or in tags, are where training had them."""
    tools = request.getfixturevalue("tools") if to == "gguf" else tmp_path
    source = _source(tmp_path / "base", OPENING_TEMPLATE, template_options={"enable_thinking": False})
    seen = observe_source(source, _examples(has_tools=False), SilentProgress())
    assert all(answer.text.endswith("<think>\n\n</think>\n\n") for answer in seen.answers)
    assert "It is light." in seen.answers[1].text
    assert seen.answers[1].text == seen.answers[2].text
    warnings, report = _prove(source, to, tmp_path / "export", tools, _examples(has_tools=False))
    # Ollama alone writes what it is sent; the template drops thoughts of earlier answers everywhere else.
    assert [one for one in warnings if "leave thoughts out" not in one] == []
    assert len(warnings) == (to == "gguf")
    # llama.cpp gives enable_thinking of its own
    assert ("--chat-template-kwargs" in "".join(parity_warnings(report))) == (to == "gguf")


def test_an_adapter_says_that_its_own_template_counts(make_source, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    source = make_source(opted_turns=OptedTurns(folds_system=True))
    warnings = registry.write("adapter", source, folder, "float32", SilentProgress(), tmp_path)
    assert any("--chat-template chat_template.jinja" in one for one in warnings)

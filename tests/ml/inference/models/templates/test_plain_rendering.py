"""Plain messages are rendered as transformers renders them, and others by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
from tests.ml.data.tokenise.other_tokenizers import make_tokenizer
from tests.vacuous import nonempty
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from luthier.ml.inference.models.templates.jinja_sandbox import use_bounded_sandbox
from luthier.ml.inference.models.templates.plain_rendering import PlainRenderer, is_plain

USER: dict[str, Any] = {"role": "user", "content": " Q <&> </think> ß\n"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "<think>\nT\n</think>\n\nA"}
SYSTEM: dict[str, Any] = {"role": "system", "content": "S /no_think"}
PLAIN: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER, ANSWER],
    [USER, ANSWER, USER, ANSWER, {**USER, "name": "N"}],
    [ANSWER, USER],
    [{"role": "tool", "content": "1", "tool_call_id": "call12345"}],
    [{"role": "nobody", "content": ""}, USER],
]
OPTIONS: list[dict[str, Any]] = [{}, {"enable_thinking": False, "bos_token": "<other>", "reasoning_effort": "low"}]


def outcome(render: Any, *given: Any, **values: Any) -> Any:
    """What is rendered, or the error."""
    try:
        return render(*given, **values)
    except Exception as error:  # noqa: BLE001 - templates raise anything
        return type(error), str(error)


def test_plain_messages_give_the_text_or_error_of_transformers(shared_data: Path) -> None:
    use_bounded_sandbox()
    num_texts, different = 0, []
    for file in nonempty(sorted((shared_data / "chat_templates").glob("*.jinja"))):
        tokenizer = make_tokenizer("bytes", file.read_text(encoding="utf-8"))
        renderer = PlainRenderer(tokenizer)
        for number, messages in enumerate(PLAIN):
            for options in OPTIONS:
                assert is_plain(messages, options)
                begins = number % 2 == 0
                ours = outcome(renderer.render, messages, None, options, add_generation_prompt=begins)
                theirs = outcome(
                    tokenizer.apply_chat_template, messages, tokenize=False, add_generation_prompt=begins, **options
                )
                num_texts += isinstance(ours, str)
                if ours != theirs:
                    different.append((file.name, number, options))
    assert different == []
    assert num_texts > 100


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([], {}),
        ([{**ANSWER, "reasoning_content": "T"}], {}),
        ([{"role": "user", "content": [{"type": "text", "text": "Q"}]}], {}),
        ([{"role": "user", "content": None}], {}),
        ([USER], {"names": ["a"]}),
        ([USER], {"padding": True}),
    ],
)
def test_what_transformers_converts_is_not_plain(messages: list[dict[str, Any]], options: dict[str, Any]) -> None:
    assert not is_plain(messages, options)


def test_what_is_not_plain_is_rendered_by_transformers() -> None:
    use_bounded_sandbox()
    tokenizer = make_tokenizer("bytes", "{{ messages[0].thinking }}|{{ tools is none }}|{{ names | length }}")
    given = [{"role": "user", "content": "Q", "reasoning": "T"}]
    assert (
        PlainRenderer(tokenizer).render(given, None, {"names": ["a", "b"]}, add_generation_prompt=False) == "T|True|2"
    )
    tool = {"type": "function", "function": {"name": "f"}}
    assert PlainRenderer(tokenizer).render([USER], [tool], {"names": ""}, add_generation_prompt=False) == "|False|0"


def test_messages_are_not_changed_by_a_template() -> None:
    use_bounded_sandbox()
    tokenizer = make_tokenizer("bytes", "{% set m = messages[0] %}{{ m.update({'content': 'other'}) }}")
    given = [dict(USER)]
    assert outcome(PlainRenderer(tokenizer).render, given, None, {}, add_generation_prompt=False) == outcome(
        tokenizer.apply_chat_template, given, tokenize=False
    )
    assert given == [USER]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def slow_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The conversations that `apply_chat_template` renders from now on."""
    seen: list[Any] = []
    usual = PreTrainedTokenizerFast.apply_chat_template

    def counted(tokenizer: Any, messages: Any, **values: Any) -> Any:
        seen.append(messages)
        return usual(tokenizer, messages, **values)

    monkeypatch.setattr(PreTrainedTokenizerFast, "apply_chat_template", counted)
    return seen


def test_published_templates_are_proved_once(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_bounded_sandbox()
    seen, slow = slow_calls(monkeypatch), []
    for file in nonempty(sorted((shared_data / "chat_templates").glob("*.jinja"))):
        renderer = PlainRenderer(make_tokenizer("bytes", file.read_text(encoding="utf-8")))
        outcome(renderer.render, [USER], None, {}, add_generation_prompt=True)
        assert seen, "nothing was compared"
        seen.clear()
        outcome(renderer.render, [USER, ANSWER], None, {"enable_thinking": True}, add_generation_prompt=False)
        if seen:
            slow.append(file.name)
            seen.clear()
    # The one that writes nothing without a list of tools.
    assert slow == ["NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja"]


class _Wrong:
    """A compiled template of another version, which writes something else or takes other arguments."""

    def __init__(self, template: Any, way: str) -> None:
        self._template, self._way = template, way

    def render(self, **values: Any) -> str:
        """The text, one that is wrong for some conversations, or an error."""
        if self._way == "other arguments":
            raise TypeError("render() got an unexpected keyword argument 'documents'")
        if self._way == "no prompt":
            values["add_generation_prompt"] = False
        return str(self._template.render(**values)) + ("\n" if self._way == "one more line" else "")


def test_without_the_private_function_transformers_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(chat_template_utils, "_compile_jinja_template")
    # transformers calls its own function by the same name: what this one would do without it is left out.
    monkeypatch.setattr(
        PreTrainedTokenizerFast, "apply_chat_template", lambda _, messages, **values: f"slow {len(messages)}"
    )
    renderer = PlainRenderer(make_tokenizer("bytes", CHATML))
    assert renderer.render([USER, ANSWER], None, {}, add_generation_prompt=True) == "slow 2"


@pytest.mark.parametrize("way", ["one more line", "no prompt", "other arguments"])
def test_where_the_private_function_gives_another_text_transformers_renders(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_bounded_sandbox()
    tokenizer = make_tokenizer("bytes", CHATML)
    right = tokenizer.apply_chat_template([USER, ANSWER], tokenize=False, add_generation_prompt=True)
    compiled = chat_template_utils._compile_jinja_template
    seen = slow_calls(monkeypatch)
    render = PreTrainedTokenizerFast.apply_chat_template

    def by_usual_function(*given: Any, **values: Any) -> Any:
        # transformers calls its own function by the same name.
        with pytest.MonkeyPatch.context() as usual:
            usual.setattr(chat_template_utils, "_compile_jinja_template", compiled)
            return render(*given, **values)

    monkeypatch.setattr(PreTrainedTokenizerFast, "apply_chat_template", by_usual_function)
    monkeypatch.setattr(chat_template_utils, "_compile_jinja_template", lambda text: _Wrong(compiled(text), way))
    renderer = PlainRenderer(tokenizer)
    for _ in range(2):
        assert renderer.render([USER, ANSWER], None, {}, add_generation_prompt=True) == right
    assert seen[-1] == [USER, ANSWER]


def test_a_template_that_rejects_every_probe_is_rendered_by_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    use_bounded_sandbox()
    seen = slow_calls(monkeypatch)
    text = "{% if messages[0].content != 'Q' %}{{ raise_exception('only Q') }}{% endif %}{{ messages[0].content }}"
    renderer = PlainRenderer(make_tokenizer("bytes", text))
    for _ in range(2):
        assert renderer.render([{"role": "user", "content": "Q"}], None, {}, add_generation_prompt=False) == "Q"
        assert seen[-1] == [{"role": "user", "content": "Q"}]
    with pytest.raises(jinja2.TemplateError, match="only Q"):
        renderer.render([USER], None, {}, add_generation_prompt=False)


def test_a_template_that_writes_the_time_is_proved_on_the_fixed_date(monkeypatch: pytest.MonkeyPatch) -> None:
    use_bounded_sandbox()
    seen = slow_calls(monkeypatch)
    text = "{{ strftime_now('%d %b %Y %H:%M:%S.%f') }} {{ messages[0].content }}"
    renderer = PlainRenderer(make_tokenizer("bytes", text))
    renderer.render([USER], None, {}, add_generation_prompt=False)
    seen.clear()
    found = renderer.render([{"role": "user", "content": "Q"}], None, {}, add_generation_prompt=False)
    assert (found, seen) == ("01 Jan 2025 00:00:00.000000 Q", [])

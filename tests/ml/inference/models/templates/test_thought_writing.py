from typing import Any

import jinja2
import pytest

from luthier.ml.inference.models.templates.thought_writing import ThoughtWriting, measure_writing, split_thought

TAGGED = ThoughtWriting("content", "<think>\n", "\n</think>\n\n")
CALLS = [{"type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}]
HEADER = "{% for m in messages %}[{{ m.role }}]"
PROMPT = "{% if add_generation_prompt %}[assistant]{% endif %}"


def measured(text: str, *fields: str) -> ThoughtWriting | None:
    template = jinja2.Environment().from_string(text)

    def render(messages: list[dict[str, Any]], begins: bool) -> str | None:
        try:
            return template.render(messages=messages, add_generation_prompt=begins)
        except jinja2.TemplateError:
            return None

    return measure_writing(render, fields, CALLS)


def test_a_field_that_reaches_the_text_is_the_way():
    text = HEADER + "{% if m.mull %}<m>{{ m.mull }}</m>{% endif %}{{ m.content }};{% endfor %}" + PROMPT
    assert measured(text, "mull", "content") is None  # no name that speaks of thoughts
    text = text.replace("m.mull", "m.my_thought")
    assert measured(text, "my_thought") == ThoughtWriting("field", "<m>", "</m>", "my_thought")


def test_a_thought_that_only_a_call_shows():
    text = (
        HEADER + "{% if m.tool_calls %}{% if m.thinking %}<t>{{ m.thinking }}\n</t> {% endif %}call{% endif %}"
        "{{ m.content }};{% endfor %}" + PROMPT
    )
    assert measured(text, "thinking") == ThoughtWriting("field", "<t>", "\n</t> ", "thinking")


def test_blocks_of_the_content():
    text = (
        HEADER + "{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}"
        "{% if b.type == 'thinking' %}[T]{{ b.thinking }}[/T]{% else %}{{ b.text }}{% endif %}{% endfor %}{% endif %};"
        "{% endfor %}" + PROMPT
    )
    assert measured(text) == ThoughtWriting("blocks", "[T]", "[/T]")


def test_text_of_the_content_where_prompts_open_it_or_earlier_turns_lose_it():
    plain = HEADER + "{{ m.content }};{% endfor %}" + PROMPT
    assert measured(plain) is None
    assert measured(plain.replace("[assistant]{% endif", "[assistant]<think>\n{% endif")) == TAGGED
    assert measured(plain.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")) == TAGGED


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ("a<think>\n", ("open", 1)),
        ("a<think>\n\n</think>\n\n", ("closed", 1)),
        ("a<think>b</think>", ("none", 17)),
        ("a", ("none", 1)),
    ],
)
def test_what_a_prompt_does_to_a_thought(prompt, state):
    assert TAGGED.state_of(prompt) == state


def test_an_empty_thought_is_measured_with_the_space_behind_it():
    assert TAGGED.length_of_empty("<think>\n\n</think>\n\nSpruce", "none") == 19
    assert TAGGED.length_of_empty("\n</think>\n\nSpruce", "open") == 11
    assert TAGGED.length_of_empty("<think>\nhm</think>Spruce", "none") == 0
    assert TAGGED.length_of_empty("Spruce", "open") == 0


def test_a_tagged_thought_is_taken_apart():
    assert split_thought("<think>\nhm\n</think>\n\nSpruce", TAGGED) == ("hm", "Spruce")
    assert split_thought("[THINK]hm[/THINK]Spruce", TAGGED) == ("hm", "Spruce")
    assert split_thought("<think></think>Spruce", TAGGED) == (None, "Spruce")
    for whole in ("Spruce <think>hm</think>", "<think>hm", "Spruce"):
        assert split_thought(whole, TAGGED) == (None, whole)

"""What a template renders is the same on every day, however it asks for the date, here and in other engines."""

import datetime

import jinja2
import pytest

from luthier.ml.inference.models.templates.jinja_sandbox import (
    filled_names,
    fixed_strftime,
    own_name,
    reads_clock,
    without_clock,
)


def rendered(text, **given):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = datetime.datetime(2031, 5, 6).strftime
    return environment.from_string(text).render(**given)


@pytest.mark.parametrize(
    "template",
    [
        "On {{ strftime_now('%d %b %Y') }}.",
        'On {{ strftime_now( "%d %b %Y" ) }}.',
        "{%- set day = '%d %b %Y' -%}On {{ strftime_now(day) }}.",
        "{% if strftime_now is defined %}On {{ strftime_now('%d %b %Y') }}{% endif %}.",
    ],
)
def test_no_call_reads_the_clock(template):
    assert reads_clock(template)
    assert rendered(template) == "On 06 May 2031."
    assert rendered(without_clock(template)) == "On 01 Jan 2025."


def test_what_llama_cpp_fills_is_left_to_the_template():
    template = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
    assert not reads_clock(template)
    assert filled_names(template) == ("date_string",)
    assert rendered(template, date_string="06 May 2031") == "06 May 2031"
    assert rendered(without_clock(template), date_string="06 May 2031") == "26 Jul 2024"
    assert rendered(without_clock(template), **{own_name("date_string"): "asked for"}) == "asked for"
    assert own_name("enable_thinking") == "enable_thinking"


def test_text_and_fields_of_that_name_are_no_variables():
    template = "The datetime {# date_string #} of {{ messages.datetime }} {{ 'datetime' }}\n"
    assert filled_names(template) == ()
    both = template + "{{- datetime -}}\n"
    found = rendered(without_clock(both), messages={"datetime": 1}, luthier_datetime=2)
    assert found == rendered(both, messages={"datetime": 1}, datetime=2)


def test_a_template_that_never_asks_stays_as_it_is():
    template = "{{ messages }} at strftime"
    assert not reads_clock(template)
    assert not reads_clock(None)
    assert filled_names(template) == ()
    assert without_clock(template) == template
    assert reads_clock({"default": template, "tool_use": "{{ strftime_now('%Y') }}"})
    assert fixed_strftime("%Y-%m-%d %H:%M") == "2025-01-01 00:00"

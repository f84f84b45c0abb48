from luthier.ml.inference.models.templates.jinja_sandbox import names_of


def test_options_are_what_comes_from_outside():
    text = (
        "{% set own = 1 %}{% for m in messages %}{{ bos_token }}{{ m.content }}{{ own }}{% endfor %}"
        "{% if effort == 'low' %}x{% endif %}{% if thinks is defined and not thinks %}y{% endif %}"
        "{% set keeps = keeps | default(false) %}{% if tools and add_generation_prompt %}z{% endif %}"
        "{% if effort %}{% set sometimes = 1 %}{% endif %}{{ sometimes }}"
    )
    assert names_of(text).options == {"effort", "thinks", "keeps"}


def test_fields_are_attributes_items_and_keys():
    text = "{% generation %}{{ m.alpha }}{{ m['beta'] }}{{ m.get('gamma') }}{{ 'delta' in m }}{% endgeneration %}"
    assert {"alpha", "beta", "gamma", "delta"} <= names_of(text).fields


def test_a_template_that_does_not_parse_has_no_names():
    found = names_of("{% if %}")
    assert (found.options, found.fields) == (frozenset(), frozenset())

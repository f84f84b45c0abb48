"""Templates of strangers: what they render is the same, and what would fill memory or never end is refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

from luthier.core.child_process.process import ChildEndedError
from luthier.core.errors import TemplateError, WorkError
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models import sources
from luthier.ml.inference.models.templates import jinja_sandbox, probe
from luthier.ml.inference.models.templates.jinja_sandbox import BoundedEnvironment, use_bounded_sandbox

ENVIRONMENT = {"trim_blocks": True, "lstrip_blocks": True, "extensions": [loopcontrols]}
MESSAGES = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}] * 3
HARMLESS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content ~ '-' * 3 }}{{ ',' if not loop.last }}{% endfor %}",
    "{% for m in messages %}{{ loop.index }}{{ loop.length }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "{% for c in messages[0].content %}{{ c }},{% endfor %}{% for x in [] %}{% else %}none{% endfor %}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ range(3) | list }}",
    "{{ 7 % 3 }}{{ 2 ** 8 }}{{ 3 * 4 }}{{ '%s %03d' % ('x', 7) }}{{ 'a'.center(9) }}|{{ [1] * 2 }}",
    "{% for m in messages if m.role == 'user' %}{{ m.content.upper() | trim }}{% endfor %}",
    "{{ 'a' | center(5) }}|{{ 'b\\nc' | indent(2) }}|{{ '%s' | format('q') }}|{{ '{} {:>4}'.format(1, 'z') }}",
    "{% for m in messages|map(attribute='role') %}{{ loop.index }}/{{ loop.length }}{{ m }}{{ loop.last }}{% endfor %}",
    "{% for m in messages | selectattr('role', 'eq', 'user') %}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}",
    "{% for x in messages[0]|map('upper') %}{{ x }}{% break %}{% endfor %}{% for x in no %}{% else %}none{% endfor %}",
    "{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
)
HOSTILE = {
    "repeated": "{{ 'a' * 9999999999 }}",
    "repeated in a loop": "{% set ns = ['a'] %}{% for i in range(99999) %}{% set x = 'abc' * 999999 * 9 %}{% endfor %}",
    "list": "{{ [0] * 9999999999 }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% set t = 'a' * 99999 %}{% for i in t %}{% for j in t %}{% endfor %}{% endfor %}",
    "loops over filters": "{% for i in range(99999)|map('string') %}{% for j in range(99999)|map('string') %}"
    "{% endfor %}{% endfor %}",
    "loops over selections": "{% for i in range(99999)|select %}{% for j in range(99999)|reject('none') %}"
    "{% endfor %}{% endfor %}",
    "loops over batches": "{% for i in range(99999)|batch(1) %}{% for j in range(99999)|batch(1) %}{{ loop.index }}"
    "{% endfor %}{% endfor %}",
    "loops over views": "{% set d = dict(range(9998)|map('string')|batch(2)) %}{% for i in d.items() %}"
    "{% for j in d.values() %}{% for k in d.keys() %}{% endfor %}{% endfor %}{% endfor %}",
    "recursive loops": "{% for i in range(99999) recursive %}{% if loop.depth < 3 %}{{ loop(range(99999)) }}{% endif %}"
    "{% endfor %}",
    "recursive loops over filters": "{% for i in [1] recursive %}{% if loop.depth < 9 %}"
    "{{ loop(range(99999)|map('string')) }}{% endif %}{% endfor %}",
    "power": "{{ 9 ** 999999999 }}",
    "tower": "{{ 2 ** 9999 * 2 ** 9999 }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (9999999999, 1) }}",
    "precision": "{{ '%.9999999999f' % 1 }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "nested format": "{{ '{:{w}}'.format(1, w=9999999999) }}",
    "centre": "{{ 'a' | center(9999999999) }}",
    "method": "{{ 'a'.ljust(9999999999) }}",
    "zeros": "{{ '1'.zfill(9999999999) }}",
    "indent": "{{ 'a\\nb' | indent(9999999999) }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
}


@pytest.mark.parametrize("template", HARMLESS)
def test_what_is_rendered_is_the_same(template: str) -> None:
    plain, bounded = ImmutableSandboxedEnvironment(**ENVIRONMENT), BoundedEnvironment(**ENVIRONMENT)
    expected = plain.from_string(template).render(messages=MESSAGES)
    assert expected
    assert bounded.from_string(template).render(messages=MESSAGES) == expected
    assert "".join(bounded.from_string(template).generate(messages=MESSAGES)) == expected


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_what_would_be_huge_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of the loops is a thousand times as long as the real bound, which `loops over filters` is refused at.
    if template != HOSTILE["loops over filters"]:
        monkeypatch.setattr(jinja_sandbox, "MAX_ITERATIONS", jinja_sandbox.MAX_ITERATIONS // 20)
    with pytest.raises(SecurityError, match="it asks for"):
        BoundedEnvironment(**ENVIRONMENT).from_string(template).render(messages=MESSAGES)


def test_each_rendering_counts_its_own_loops() -> None:
    half, loop = jinja_sandbox.MAX_ITERATIONS // 2 + 1, "{% for a in many %}{% break %}{% endfor %}"
    template = BoundedEnvironment(**ENVIRONMENT).from_string(loop)
    assert [template.render(many=range(half)) for _ in range(3)] == ["", "", ""]
    with pytest.raises(SecurityError):
        BoundedEnvironment(**ENVIRONMENT).from_string(loop * 2).render(many=range(half))


def test_transformers_renders_in_it() -> None:
    use_bounded_sandbox()
    compiled = chat_template_utils._compile_jinja_template("{{ messages[0].content }} by this test alone")
    assert isinstance(compiled.environment, BoundedEnvironment)


DOUBLED = "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
ENDLESS = (
    "{% macro f(n) %}{% for i in [1, 2] %}{% if n %}{{ f(n - 1) }}{% endif %}{% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ f(18) }}{% endfor %}{{ f(18) }}" + "{{ f(18) }}" * 300
)


def test_what_the_sandbox_lets_through_ends_in_the_process_of_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    probe.check_template(plain, {"eos_token": "</s>"})
    for template, words in (
        (DOUBLED, "MiB"),
        ("{% for i in range(3000) %}{{ 'a' * 999 }}{% endfor %}", "characters of a short conversation"),
    ):
        with pytest.raises(TemplateError, match=words):
            probe.check_template(template, {})
    monkeypatch.setattr(probe, "CPU_SECONDS", 1)  # else five, all of which it takes
    with pytest.raises(TemplateError, match="more than 1 s for"):
        probe.check_template(ENDLESS, {})


@pytest.mark.parametrize(
    ("returncode", "log_lines", "words"),
    [
        (-signal.SIGKILL, [], r"ended by SIGKILL[\s\S]*free some memory"),
        (1, ["ModuleNotFoundError: No module named 'jinja2'"], r"No module named 'jinja2'[\s\S]*luthier doctor"),
    ],
)
def test_an_end_that_is_not_the_templates_fault_does_not_condemn_the_model(
    returncode: int, log_lines: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: object, **__: object) -> None:
        raise ChildEndedError("render", returncode, log_lines)

    monkeypatch.setattr(probe, "run_child", ended)
    with pytest.raises(WorkError, match=words) as caught:
        probe.check_template("{{ messages }} of the machine", {})
    assert not isinstance(caught.value, TemplateError)
    assert "do not use this model" not in str(caught.value)


def test_a_template_that_crashes_its_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object, **__: object) -> None:
        raise ChildEndedError("render", -signal.SIGSEGV, [])

    monkeypatch.setattr(probe, "run_child", ended)
    with pytest.raises(TemplateError, match="ends the process that renders it, by SIGSEGV"):
        probe.check_template("{{ messages }} of a crash", {})


def test_a_model_with_such_a_template_is_not_pulled(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_model, folder)
    for file in folder.glob("chat_template*"):
        file.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": DOUBLED}))
    with pytest.raises(TemplateError, match="MiB for a short conversation"):
        sources.pull(str(folder), tmp_path / "home", SilentProgress())

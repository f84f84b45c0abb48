"""Prompts of a GGUF file are the same on every day, whatever its template asks of llama.cpp."""

import datetime
from contextlib import closing

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.stream import TextRequest
from luthier.ml.inference.llama_cpp.cpp import LlamaCppEngine
from luthier.ml.inference.llama_cpp.prompts import dayless_template
from luthier.ml.inference.llama_cpp.server import LlamaServer
from luthier.ml.inference.models.gguf.files import read_gguf_header
from luthier.ml.inference.models.templates.jinja_sandbox import FILLED_BY_LLAMA_CPP
from luthier.testing.tiny import make_tiny_model, write_tiny_gguf

pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
END = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>\n{% endfor %}"
DATED = "On {{ strftime_now('%d %b %Y') }}.\n"
LLAMA = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}On {{ date_string }}.\n"
ASKED = TextRequest(conversation=Conversation(messages=(Message(role="user", content="Which wood?"),)))


def today_here():
    """The day as llama.cpp writes it, in small letters."""
    return datetime.datetime.now().astimezone().strftime("%d %b %Y").lower()


def file_with(template, folder):
    """The tiny model as a GGUF file with that template, without its tokenizer beside it."""
    make_tiny_model(folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(template + END)
    (folder / "gguf").mkdir()
    return write_tiny_gguf(folder / "model", folder / "gguf" / "model.gguf")


@pytest.mark.parametrize(("template", "day"), [(DATED, "01 Jan 2025"), (LLAMA, "26 Jul 2024")])
def test_a_prompt_does_not_depend_on_the_day(template, day, tmp_path):
    with closing(LlamaCppEngine(file_with(template, tmp_path), num_threads=1)) as engine:
        text = engine._reader._render(ASKED)
        assert text.startswith(f"On {day}.")
        if template == LLAMA:
            options = ASKED.model_copy(update={"template_options": {"date_string": "1 May 1715"}})
            assert engine._reader._render(options).startswith("On 1 May 1715.")


def test_what_llama_cpp_fills_with_the_date_is_known_here(tmp_path):
    """Of a new build that fills other names, or writes them otherwise, this tells."""
    names = ("date_string", "datetime", "date", "today", "now", "current_date", "current_time", "time", "year")
    probe = "".join(f"{name}={{{{ {name} is defined }}}} " for name in names) + "day={{ date_string }}\n"
    file = file_with(probe, tmp_path)
    assert dayless_template(read_gguf_header(file)) is not None
    with closing(LlamaServer(file, [], num_slots=1, pool_tokens=256, num_threads=1)) as server:
        body = {"messages": [{"role": "user", "content": "x"}]}
        before = today_here()
        text = server.ask("apply-template", body)["prompt"].splitlines()[0].lower()
        days = {before, today_here()}  # midnight may have passed
    found = tuple(name for name in names if f"{name}=true" in text.split())
    assert found == FILLED_BY_LLAMA_CPP
    assert text.split("day=")[-1] in days

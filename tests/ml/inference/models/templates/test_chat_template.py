import json
import pickle
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError, TemplateError
from luthier.ml.inference.models.templates.chat_template import ChatTemplate, template_digest

BARE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def chat(*turns: tuple[str, str | None], **extra) -> Conversation:
    return Conversation(messages=tuple(Message(role=role, content=text) for role, text in turns), **extra)


def with_template(folder: Path, target: Path, template: str | None) -> Path:
    shutil.copytree(folder, target)
    (target / "chat_template.jinja").unlink(missing_ok=True)
    if template is not None:
        (target / "chat_template.jinja").write_text(template)
    return target


def with_beginning(folder: Path) -> Path:
    """Make the tokenizer put <|endoftext|> before every text, as Gemma's and Llama 3's put theirs."""
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(file))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<|endoftext|>"}))
    return folder


def test_auto_takes_the_models_template_or_the_plain_layout(tiny, tiny_base):
    own, plain = ChatTemplate.load(tiny), ChatTemplate.load(tiny_base)
    assert (own.kind, plain.kind) == ("chat", "plain")
    assert own.sha256 == template_digest(own.tokenizer.chat_template) != plain.sha256
    assert ChatTemplate.load(tiny, "plain").sha256 == plain.sha256


def test_asking_for_chat_where_there_is_no_template_is_refused(tiny_base):
    with pytest.raises(RequestError, match="no chat template"):
        ChatTemplate.load(tiny_base, "chat")


def test_what_ends_a_turn(tiny, tiny_base):
    own, plain = ChatTemplate.load(tiny), ChatTemplate.load(tiny_base)
    assert (own.end_of_turn, own.end_of_turn_ids) == ("<|im_end|>", (2,))
    assert (plain.end_of_turn, plain.end_of_turn_ids) == ("<|endoftext|>", (0,))


def test_stop_ids_gather_template_tokenizer_and_generation_config(tiny, tmp_path):
    folder = with_template(tiny, tmp_path / "m", BARE.replace("<|im_end|>", "<|im_start|>"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert ChatTemplate.load(folder).end_of_turn_ids == (1, 2, 0)


def test_rendering_equals_transformers(tiny):
    template = ChatTemplate.load(tiny)
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
    reference = template.tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in turns], tokenize=False, add_generation_prompt=True
    )
    assert template.render(chat(*turns), add_generation_prompt=True) == reference


def test_messages_reach_the_template_in_the_form_it_expects(tiny):
    call = {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}
    tool = {"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}
    conversation = Conversation(
        messages=(
            Message(role="user", content="1?"),
            Message(role="assistant", content=None, tool_calls=(call,), weight=0),
            Message(role="tool", content="1", tool_call_id="c1"),
        ),
        tools=(tool,),
    )
    text = ChatTemplate.load(tiny).render(conversation)
    assert '<call>{"name": "sum", "arguments": {"a": 1}}</call>' in text
    assert '{"name": "sum", "parameters": {"type": "object"}}' in text
    assert "None" not in text
    assert "weight" not in text
    assert conversation.messages[1].tool_calls[0]["function"]["arguments"] == '{"a": 1}'


def test_developer_becomes_system_where_the_template_does_not_know_it(tiny, tmp_path):
    unknowing = ChatTemplate.load(with_template(tiny, tmp_path / "a", BARE))
    knowing = ChatTemplate.load(with_template(tiny, tmp_path / "b", "{# system, developer #}" + BARE))
    conversation = chat(("developer", "D"), ("user", "U"))
    assert unknowing.render(conversation).startswith("<|im_start|>system\nD")
    assert knowing.render(conversation).startswith("<|im_start|>developer\nD")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% if messages[-1].role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}" + BARE,
            "no tools here",
        ),
        ("{% if messages[-1].role == 'tool' %}{{ messages[0].absent.field }}{% endif %}" + BARE, "absent"),
        ("{% if messages[-1].role == 'tool' %}{{ 1 + 'a' }}{% endif %}" + BARE, "unsupported operand"),
    ],
)
def test_a_failing_template_names_the_message_and_the_reason(tiny, tmp_path, template, reason):
    loaded = ChatTemplate.load(with_template(tiny, tmp_path / "m", template))
    with pytest.raises(TemplateError, match=reason) as caught:
        loaded.render(chat(("user", "a"), ("assistant", "b"), ("tool", "c")))
    assert "message 3 of 3 (tool)" in caught.value.came


def test_a_template_that_reaches_for_the_system_is_stopped_by_the_sandbox(tiny, tmp_path):
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}" + BARE
    with pytest.raises(TemplateError):
        ChatTemplate.load(with_template(tiny, tmp_path / "m", evil))


def test_a_template_that_never_ends_a_turn_ends_it_with_what_stops_a_generation(tiny, tmp_path):
    folder = with_template(tiny, tmp_path / "m", BARE.replace("<|im_end|>", ""))
    template = ChatTemplate.load(folder)
    assert template.end_of_turn == "<|im_end|>"
    assert template.closing(Message(role="assistant", content="a")) == "<|im_end|>"
    assert ChatTemplate.load(tiny).closing(Message(role="assistant", content="a")) == ""
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": None}))
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(TemplateError, match="no token that ends the turn"):
        ChatTemplate.load(folder)


def test_the_token_of_the_next_role_ends_a_turn_where_it_stops_a_generation(tiny, tmp_path):
    roles = (
        "{% for m in messages %}{{ '<|im_start|>' if m.role == 'assistant' else '<|endoftext|>' }}{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    folder = with_template(tiny, tmp_path / "m", roles)
    assert ChatTemplate.load(folder).end_of_turn == "<|im_end|>"
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0]}))
    template = ChatTemplate.load(folder)
    assert template.end_of_turn == "<|endoftext|>"
    assert template.end_of_turn_ids == (0, 2)


def test_bad_tool_arguments_are_a_template_error_with_the_value(tiny):
    call = {"type": "function", "function": {"name": "sum", "arguments": "{oops"}}
    bad = Conversation(messages=(Message(role="assistant", tool_calls=(call,)),))
    with pytest.raises(TemplateError, match="oops"):
        ChatTemplate.load(tiny).render(bad)


def test_a_template_that_writes_the_date_writes_the_same_one_for_ever(tiny, tmp_path):
    loaded = ChatTemplate.load(with_template(tiny, tmp_path / "m", "Today: {{ strftime_now('%d %b %Y') }}\n" + BARE))
    assert loaded.render(chat(("user", "x"))).startswith("Today: 01 Jan 2025\n")


def test_the_plain_layout_is_one_for_any_number_of_turns(tiny_base):
    template = ChatTemplate.load(tiny_base)
    end = "<|endoftext|>"
    conversation = chat(("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V"), ("assistant", "B"))
    assert template.render(conversation) == f"S\nU\nA{end}V\nB{end}"
    assert template.render(conversation.up_to(4), add_generation_prompt=True) == f"S\nU\nA{end}V\n"


@pytest.mark.parametrize(
    "conversation",
    [
        chat(("user", "x"), tools=({"type": "function"},)),
        chat(("user", "x"), ("tool", "y")),
        Conversation(messages=(Message(role="assistant", tool_calls=({"function": {"name": "f"}},)),)),
    ],
)
def test_the_plain_layout_refuses_what_it_cannot_write(tiny_base, conversation):
    with pytest.raises(TemplateError, match="plain layout"):
        ChatTemplate.load(tiny_base).render(conversation)


def test_encoding_equals_transformers_and_offsets_cover_the_text(tiny):
    template = ChatTemplate.load(tiny)
    text = template.render(chat(("user", "Grüße 日本 🎻"), ("assistant", "x  y\n\n")))
    ids, offsets = template.encode(text)
    reference = AutoTokenizer.from_pretrained(tiny)(text, add_special_tokens=False, return_offsets_mapping=True)
    assert ids == reference["input_ids"]
    assert offsets == [tuple(pair) for pair in reference["offset_mapping"]]


@pytest.fixture(scope="module")
def tiny_template(tiny):
    return ChatTemplate.load(tiny)


@given(text=st.text(max_size=60))
@settings(max_examples=50, deadline=None)
def test_every_text_survives_encoding(tiny_template, text):
    ids, offsets = tiny_template.encode(text)
    assert tiny_template.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(ids) == len(offsets)
    assert all(one[0] <= two[0] for one, two in pairwise(offsets))


def test_truncation_and_padding_in_the_tokenizer_file_change_nothing(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "m")
    file = tmp_path / "m" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(file))
    text = "A luthier builds and repairs stringed instruments"
    assert ChatTemplate.load(tmp_path / "m").encode(text) == ChatTemplate.load(tiny).encode(text)


class Reading:
    """A tokenizer that another thread is reading, as it does while it encodes a long text: changes are refused."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        if name.startswith(("no_", "enable_")):
            raise RuntimeError("Already borrowed")
        return getattr(self._tokenizer, name)


def test_other_options_leave_the_tokenizer_alone_that_all_threads_use(tiny_template, monkeypatch):
    kind = type(tiny_template.tokenizer)
    monkeypatch.setattr(kind, "backend_tokenizer", property(lambda self: Reading(self._tokenizer)))
    made = tiny_template.with_options({"enable_thinking": True})
    assert made.options == {"enable_thinking": True}
    assert made.ids("spruce") == tiny_template.ids("spruce")


def test_a_beginning_is_added_once_where_the_tokenizer_puts_one(tiny, tiny_base, tmp_path):
    plain = ChatTemplate.load(with_beginning(with_template(tiny_base, tmp_path / "plain", None)))
    ids, offsets = plain.encode("abc")
    assert (ids[0], offsets[0]) == (0, (0, 0))
    assert ids[1] != 0
    assert plain.encode("<|endoftext|>abc")[0] == ids
    writing = ChatTemplate.load(with_beginning(with_template(tiny, tmp_path / "writing", "{{ bos_token }}" + BARE)))
    rendered = writing.render(chat(("user", "x")))
    assert writing.encode(rendered)[0].count(0) == 1
    assert writing.encode("plain text")[0].count(0) == 1
    leaving_out = ChatTemplate.load(with_beginning(with_template(tiny, tmp_path / "out", BARE)))
    assert leaving_out.encode(leaving_out.render(chat(("user", "x"))))[0].count(0) == 0


def test_where_a_long_conversation_breaks_is_found_in_few_renderings(tiny_model, monkeypatch):
    template = ChatTemplate.load(tiny_model)
    real, counts = ChatTemplate._render_chat, []

    def render(self, messages, *given):
        counts.append(len(messages))
        if len(messages) > 700:
            raise ValueError("broken here")
        return real(self, messages, *given)

    monkeypatch.setattr(ChatTemplate, "_render_chat", render)
    talk = Conversation(messages=tuple(Message(role="user", content="a") for _ in range(2048)))
    with pytest.raises(TemplateError, match="message 701 of 2048"):
        template.render(talk)
    assert len(counts) < 20


_OPTION = BARE + "{% if add_generation_prompt and voice is defined %}[{{ voice }}]{% endif %}"


def test_options_reach_the_template_and_make_another_one(tiny, tmp_path):
    folder = with_template(tiny, tmp_path / "m", _OPTION)
    asked = chat(("user", "hi"))
    plain = ChatTemplate.load(folder)
    low = ChatTemplate.load(folder, options={"voice": "low"})
    assert plain.options == {}
    assert low.options == {"voice": "low"}
    assert low.render(asked, add_generation_prompt=True) == plain.render(asked, add_generation_prompt=True) + "[low]"
    high = low.with_options({"voice": "high"})
    assert high.render(asked, add_generation_prompt=True).endswith("[high]")
    assert low.with_options({"voice": "low"}) is low


def test_the_end_of_a_turn_is_what_stops_a_generation_after_every_answer(tiny, tmp_path):
    closes = BARE.replace("{{ m.content }}", "{{ m.content }}<|endoftext|>")
    template = ChatTemplate.load(with_template(tiny, tmp_path / "m", closes))
    assert template.end_of_turn == "<|im_end|>"
    once = "{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}"
    once += "{% if not add_generation_prompt %}<|im_end|>{% endif %}"
    assert ChatTemplate.load(with_template(tiny, tmp_path / "n", once)).end_of_turn == "<|im_start|>"


def test_tags_that_a_prompt_has_under_an_option_alone_are_known(tiny, tmp_path):
    text = BARE + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    text += "{% if quick %}<think>\n\n</think>\n{% endif %}{% endif %}"
    template = ChatTemplate.load(with_template(tiny, tmp_path / "m", text))
    thoughtful = Message(role="assistant", content="spruce", reasoning="It is light.")
    asked = Message(role="user", content="wood?")
    assert template.render(Conversation(messages=(asked, thoughtful))).endswith(
        "<|im_start|>assistant\n<think>\nIt is light.\n</think>\n\nspruce<|im_end|>\n"
    )
    assert ChatTemplate.load(tiny).thoughts is None


def test_a_template_goes_to_other_processes_with_its_options(tiny):
    template = ChatTemplate.load(tiny, options={"voice": "low"})
    assert template.thoughts is None
    again = pickle.loads(pickle.dumps(template))
    assert again.options == {"voice": "low"}
    assert again.render(chat(("user", "hi"))) == template.render(chat(("user", "hi")))

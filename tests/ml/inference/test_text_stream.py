from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ml.inference.tool_calls.reading import ASK
from tokenizers import Tokenizer, decoders, models

from luthier.core.stream import Piece, Sampling, TextRequest, joined_calls
from luthier.ml.inference.answer_row import AnswerRow, Sampler
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.stop_texts import StopsBesideCalls, StopTexts
from luthier.ml.inference.thoughts import NO_THINKING, AnswerText, TextStream
from luthier.ml.inference.tool_calls.forms import form_of
from luthier.testing.tiny import make_tiny_model

_TOKENIZERS = {}


def decode(ids):
    return bytes(ids).decode("utf-8", "replace")


@given(st.lists(st.integers(0, 255), max_size=40) | st.text(max_size=12).map(lambda text: list(text.encode())))
def test_the_pieces_of_any_bytes_are_their_text(ids):
    stream = TextStream(decode)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.end() == decode(ids)


@given(st.text(max_size=20).filter(lambda text: "\ufffd" not in text))
def test_no_piece_of_a_text_has_half_a_character(text):
    stream = TextStream(decode)
    so_far = ""
    for token in text.encode():
        so_far += stream.add(token)
        assert text.startswith(so_far)
    assert so_far + stream.end() == text


@given(st.lists(st.integers(0, 383), max_size=30))
def test_it_is_the_text_that_the_tokenizer_writes(tmp_path_factory, ids):
    if not _TOKENIZERS:
        _TOKENIZERS["tiny"] = ChatTemplate.load(make_tiny_model(tmp_path_factory.mktemp("m") / "tiny")).tokenizer

    def write(tokens):
        return _TOKENIZERS["tiny"].decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    stream = TextStream(write)
    assert "".join([stream.add(token) for token in ids]) + stream.end() == write(ids)


def test_a_tokenizer_that_writes_the_beginning_differently_is_asked_with_context():
    def write(tokens):
        return "".join(f" w{token}" for token in tokens).removeprefix(" ")

    stream = TextStream(write)
    assert [stream.add(token) for token in (1, 2, 3)] == ["w1", " w2", " w3"]


def cut(text, stops):
    """What stands before the stop text that is complete first."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(ends)[1]], True) if ends else (text, False)


few = st.text("ab", max_size=12)


@given(few, st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.lists(st.integers(0, 12), max_size=6))
def test_a_stop_text_is_found_in_whatever_pieces_it_comes(text, stops, cuts):
    edges = [0, *sorted(min(place, len(text)) for place in cuts), len(text)]
    finder = StopTexts(stops)
    told = "".join(finder.add(text[start:end]) for start, end in pairwise(edges)) + finder.end()
    assert (told, finder.found) == cut(text, stops)
    assert finder.found_text is None or text.startswith(told + finder.found_text)
    assert (finder.found_text in stops) == finder.found


def test_only_what_may_become_a_stop_text_is_held_back():
    finder = StopTexts(["###"])
    assert [finder.add(piece) for piece in ("one #", "# two", "##", "#", "more")] == ["one ", "## two", "", "", ""]
    assert finder.found


def test_tokens_of_an_answer_have_the_blanks_that_its_text_has():
    """As in the vocabularies of Llama 2 and Mistral, whose decoder drops the blank at the beginning of a text."""
    vocabulary = {"<unk>": 0, "▁The": 1, "▁front": 2, "s": 3, "<0xC3>": 4, "<0xA9>": 5, "▁of": 6}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    row = AnswerRow(
        key="a",
        choice=0,
        adapter=None,
        asked=TextRequest(text="?", num_top=2),
        max_new_tokens=6,
        num_tokens=7,
        sampler=Sampler(Sampling(temperature=0), 0, torch.device("cpu")),
        decode=lambda ids: backend.decode(list(ids), skip_special_tokens=True),
        end_ids=frozenset(),
    )
    written = [1, 2, 3, 4, 5, 6]
    # The next token is the likeliest; "▁of" comes behind it, and "s" behind "▁of".
    rows = [[float(one == token) * 2 + float(one == (3 if token == 6 else 6)) for one in range(7)] for token in written]
    events = [row.write(torch.tensor(logits), token)[1] for token, logits in zip(written, rows, strict=True)]
    pieces = [event for some in events for event in some if isinstance(event, Piece)]
    tokens = [token for piece in pieces for token in piece.tokens]
    text = "".join(piece.text for piece in pieces)
    assert text == "The fronts\u00e9 of"
    assert [token.chosen.token for token in tokens] == ["The", " front", "s", "\ufffd", "\ufffd", " of"]
    assert [token.offset for token in tokens] == [0, 3, 9, 10, 10, 11]
    assert [token.top[1].token for token in tokens] == ["of", " of", " of", " of", " of", "s"]


def test_a_continuation_begins_as_it_does_behind_its_text():
    """Llama 2 and Mistral write ' of' behind 'front', and 'of' where a text begins."""
    words = {1: " front", 2: " of", 3: "\ufffd"}

    def write(tokens):
        return "".join(words[token] for token in tokens).removeprefix(" ")

    assert [TextStream(write, before).add(2) for before in ((), (1,), (1, 1), (1, 3))] == ["of", " of", " of", "of"]
    behind = TextStream(write, [1])
    assert behind.texts_of([2, 1]) == [" of", " front"]
    assert [behind.add(1), behind.add(3), behind.add(2), behind.end()] == [" front", "", "\ufffd of", ""]


@given(few, st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.lists(st.integers(0, 12), max_size=6))
def test_a_stop_text_is_found_where_tools_may_be_called_as_where_none_may(text, stops, cuts):
    edges = [0, *sorted(min(place, len(text)) for place in cuts), len(text)]
    finder = StopsBesideCalls(stops, form_of("<tool_call>").reader(TextRequest(conversation=ASK)))
    told = "".join(finder.add(text[start:end]) for start, end in pairwise(edges)) + finder.end()
    assert (told, finder.found_text is not None) == cut(text, stops)


def answered(text, template, stops, width):
    """An answer in pieces of `width` characters: its text, its calls as (name, arguments), and its stop text."""
    asked = TextRequest(conversation=ASK, stop=stops)
    form = form_of(template)
    answer, reader = AnswerText(asked, NO_THINKING, form.reader(asked)), form.reader(asked)
    written = "".join(answer.add(text[place : place + width], 0)[1] for place in range(0, len(text), width))
    said, pieces = reader.add(written + answer.end(0)[1])
    rest, more = reader.end()
    functions = [call["function"] for call in joined_calls([*pieces, *more])]
    return said + rest, [(one["name"], one["arguments"]) for one in functions], answer.stop_text


DEEPSEEK, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"


@pytest.mark.parametrize("width", [1, 3, 1000])
@pytest.mark.parametrize(
    ("template", "text", "stops", "expected"),
    [
        ("<tool_call>", 'I look.\n<tool_call>\n{"name": "clock", "arguments": {"a": "x"}}\n</tool_call>', ("\n",),
         ("I look.", [("clock", '{"a": "x"}')], None)),
        ("<tool_call>", 'One. <tool_call>{"name": "clock", "arguments": {"a": "End"}}</tool_call> Two. End. Three',
         ("End",), ("One. Two.", [("clock", '{"a": "End"}')], "End")),
        ("<tool_call>", 'One. End <tool_call>{"name": "clock", "arguments": {}}</tool_call>', ("End",),
         ("One. ", [], "End")),
        ("<tool_call>", 'ab<tool_call>{"name": "clock", "arguments": {}}</tool_call>cd', ("bc",),
         ("abcd", [("clock", "{}")], None)),
        ("<tool_call>", 'It is <tool_call>{"name": "rm", "arguments": {"a": "End"}}</tool_call>', ("End",),
         ('It is <tool_call>{"name": "rm", "arguments": {"a": "', [], "End")),
        (DEEPSEEK, f'{DEEPSEEK}function{SEP}clock\n```json\n{{"a": 1}}\n```<｜tool▁call▁end｜>', ("```", "\n"),
         ("", [("clock", '{"a": 1}')], None)),
        ("python_tag", '{"name": "clock", "parameters": {"a": "}"}}', ("}",), ("", [("clock", '{"a": "}"}')], None)),
        ("python_tag", '{"a": 1} End', ("End",), ('{"a": 1} ', [], "End")),
        ("<|channel|>commentary", '<|channel|>commentary to=functions.clock<|message|>{"a": "End"}', ("End",),
         ("", [("clock", '{"a": "End"}')], None)),
    ],
)  # fmt: skip
def test_a_stop_text_ends_the_text_of_an_answer_and_cuts_no_call(template, text, stops, expected, width):
    assert answered(text, template, stops, width) == expected


@pytest.mark.parametrize("top_p", [1e-300, 1e-40, 1e-7, 0.05])
def test_a_small_nucleus_has_the_likeliest_token(top_p: float) -> None:
    """In fp32 1e-300 is 0. Nothing could be drawn from an empty nucleus, which would end all answers of the model."""
    sampler = Sampler(Sampling(temperature=1.0, top_p=top_p, seed=3), 0, torch.device("cpu"))
    logits = torch.tensor([0.5, 3.0, 2.9, -1.0])
    assert [sampler.draw(logits) for _ in range(8)] == [1] * 8

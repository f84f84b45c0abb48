from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.thoughts import StopTexts, TextStream
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

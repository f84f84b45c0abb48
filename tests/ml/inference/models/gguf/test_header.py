import struct

import pytest

from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.ml.inference.models.gguf.files import read_gguf_header

ONE_VALUE = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
LIST = ONE_VALUE + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)


def test_keys_and_shapes_are_read_and_lists_are_counted(tiny_gguf):
    header = read_gguf_header(tiny_gguf)
    assert header.architecture == "llama"
    assert header.values["tokenizer.ggml.model"] == "gpt2"
    assert header.number("context_length", 0) == 512
    assert header.number("no_such_key", 7) == 7
    assert header.num_in_list["tokenizer.ggml.tokens"] == 384
    assert header.shapes["token_embd.weight"] == (32, 384)
    assert len(header.shapes) == 2 + 2 * 9


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "begins with b''"),
        (b"PK\x03\x04", "begins with"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1), "unpack requires"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 60), "a text of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 9) + b"abc", "middle of a text"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 99), "KeyError"),
        (LIST + struct.pack("<IQ", 9, 1) * 5_000, "lists in lists, more than 8 deep"),
        (LIST + struct.pack("<IQQ", 8, 1, (1 << 64) - 1), "a value of"),
        (LIST + struct.pack("<IQ", 10, (1 << 64) - 1), "a value of"),
        (
            ONE_VALUE + struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<If", 6, float("inf")),
            "OverflowError",
        ),
    ],
)
def test_what_is_no_gguf_is_said_so(tmp_path, content, words):
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ModelSourceError, match=words):
        read_gguf_header(tmp_path / "a.gguf")


def test_a_list_of_lists_is_skipped(tmp_path):
    inner = struct.pack("<IQ", 4, 2) + struct.pack("<II", 1, 2)
    (tmp_path / "a.gguf").write_bytes(LIST + struct.pack("<IQ", 9, 3) + inner * 3)
    assert read_gguf_header(tmp_path / "a.gguf").num_in_list == {"a": 3}


@pytest.mark.parametrize(("stated", "number"), [(512.0, 512), (float("inf"), 7), (float("nan"), 7)])
def test_a_number_that_is_not_whole_is_none(tmp_path, stated, number):
    key = b".context_length"
    (tmp_path / "a.gguf").write_bytes(ONE_VALUE + struct.pack("<Q", len(key)) + key + struct.pack("<If", 6, stated))
    assert read_gguf_header(tmp_path / "a.gguf").number("context_length", 7) == number


def test_a_file_that_is_cut_off_anywhere_is_refused(tiny_gguf, tmp_path):
    whole = tiny_gguf.read_bytes()
    for length in range(0, 4000, 97):
        (tmp_path / "a.gguf").write_bytes(whole[:length])
        with pytest.raises(ModelSourceError):
            read_gguf_header(tmp_path / "a.gguf")


@pytest.mark.parametrize("num_bytes", [1, 64, 9000])
def test_a_file_without_its_last_weights_is_refused(tiny_gguf, tmp_path, num_bytes):
    (tmp_path / "a.gguf").write_bytes(tiny_gguf.read_bytes()[:-num_bytes])
    with pytest.raises(ModelSourceError, match="it is cut off"):
        read_gguf_header(tmp_path / "a.gguf")


def test_a_missing_file_is_said_so(tmp_path):
    with pytest.raises(NotFoundError, match=r"a\.gguf"):
        read_gguf_header(tmp_path / "a.gguf")

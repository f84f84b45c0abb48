"""The messages of the Tinker SDK that are Protocol Buffers, read and written field by field.

Passes arrive as `ForwardBackwardRequest`; passes and samples are answered with `ForwardBackwardOutput` and
`SampleResponse` (`tinker_public.proto` of the package tinker 0.38). A codec of our own for these three: the generated
module may be loaded once in a process only, and belongs to the SDK.

    varint   7 bits a byte, the lowest first, the highest bit set where more follow
    field    varint of (number << 3 | kind), then its value: kind 0 a varint, 1 eight bytes, 2 length and bytes, 5 four
    map      repeated messages of key (field 1) and value (field 2)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from luthier.core.errors import RequestError

if TYPE_CHECKING:
    from luthier.ml.training.adapter_sampler import SampleResult, Top
    from luthier.ml.training.adapter_session import PassResult
    from luthier.ml.training.losses.token_losses import Array, Datum

PROTO: Final = "application/x-protobuf"
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_FLOAT32, _INT64, _INT32 = 1, 2, 3
_NUMBER_BYTES: Final = {_FLOAT32: 4, _INT64: 8, _INT32: 4}
_MAX_ELEMENTS: Final = 1 << 24
"""Of all tensors of a request: a sparse one of a few bytes may represent any number of zeros."""
_MAX_DIMENSIONS: Final = 2
_MAX_DATA: Final = 1 << 16
_STOPPED, _LENGTH = 0, 1


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message in order: number, and value as an integer or as bytes.

    Raises:
        RequestError: it is no such message.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        size = {_EIGHT: 8, _FOUR: 4}.get(kind, -1)
        if kind == _BYTES:
            size, place = _varint(message, place)
        # Groups (kinds 3 and 4) are refused, and so is a length that leads out of the message.
        if size < 0 or place + size > len(message):
            raise _unreadable()
        # A slice of a memoryview: tokens of a large request are not copied until numpy reads them.
        yield number, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    # Ten bytes at most hold 64 bits: a longer one is refused before it becomes a very large integer.
    while place < len(message) and shift < 70:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
    raise _unreadable()


def _unreadable() -> RequestError:
    return RequestError(
        "a body that is not a ForwardBackwardRequest",
        expected="the message as the package tinker writes it",
        do="use tinker 0.38 or a later version with the same messages",
    )


def _unsupported(what: str, expected: str) -> RequestError:
    return RequestError(what, expected=expected, do="leave it out: this server does not support it")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _unreadable()
    return value


def _text(value: int | memoryview) -> str:
    try:
        return bytes(_bytes(value)).decode()
    except UnicodeDecodeError as error:
        raise _unreadable() from error


@dataclass(frozen=True, slots=True)
class PassHead:
    """What a request for a pass says besides its data.

    Attributes:
        model_id: whose adapter.
        seq_id: the place among the requests of this client, from 1 on.
        loss: the name of the loss.
        settings: of the loss.
        is_forward_only: whether no gradients are wanted.
        num_data: sequences.
        num_tokens: tokens of all of them.
        fault: what is wrong with the data or the settings; None for nothing. Client and place are known all the same,
            so that the request takes its turn and those behind it do not wait forever.
    """

    model_id: str
    seq_id: int
    loss: str
    settings: dict[str, float | str]
    is_forward_only: bool
    num_data: int
    num_tokens: int
    fault: RequestError | None = None


def read_head(body: bytes) -> PassHead:
    """All of a `ForwardBackwardRequest` but its data, of which only the size is read.

    Raises:
        RequestError: the body is no such message.
    """
    model_id = loss = ""
    seq_id = num_data = num_tokens = 0
    is_forward_only = False
    fault: RequestError | None = None
    old: dict[str, float | str] = {}
    new: dict[str, float | str] = {}
    for number, value in fields(memoryview(body)):
        try:
            if number == 1:
                model_id = _text(value)
            elif number == 2 and isinstance(value, int):
                seq_id = value
            elif number == 3:
                num_data += 1
                num_tokens += _num_tokens(_bytes(value))
            elif number == 4:
                loss = _text(value)
            elif number == 5:
                old.update([_setting(_bytes(value), is_old=True)])
            elif number == 6:
                is_forward_only = bool(value)
            elif number == 7:
                new.update([_setting(_bytes(value), is_old=False)])
        except RequestError as error:
            fault = fault or error
    if num_data > _MAX_DATA:
        came = f"a request with {num_data:,} data"
        fault = fault or RequestError(came, expected=f"at most {_MAX_DATA:,}", do="send them in several requests")
    # Where both forms are sent the newer one counts, which also has settings that are texts.
    return PassHead(model_id, seq_id, loss, new or old, is_forward_only, num_data, num_tokens, fault)


def _num_tokens(datum: memoryview) -> int:
    return sum(len(tokens) // 4 for number, chunk in fields(datum) if number == 1 for tokens in _chunks(_bytes(chunk)))


def _setting(entry: memoryview, *, is_old: bool) -> tuple[str, float | str]:
    """A setting of the loss: a number, or in the newer of both forms a number or a text."""
    key, value = "", memoryview(b"")
    for number, found in fields(entry):
        if number == 1:
            key = _text(found)
        elif number == 2:
            value = _bytes(found)
    if is_old:
        return key, _number(value)
    for number, found in fields(value):
        return key, _number(_bytes(found)) if number == 1 else _text(found)
    return key, 0.0


def _number(value: memoryview) -> float:
    if len(value) not in (0, 8):  # a zero is left out
        raise _unreadable()
    return float(struct.unpack("<d", value)[0]) if len(value) else 0.0


def _chunks(chunk: memoryview) -> Iterator[memoryview]:
    """The token ids of a part of the model's input, as bytes of int32."""
    for number, value in fields(chunk):
        if number != 1:
            kind = {2: "an image", 3: "audio"}.get(number, "a part of another kind")
            raise _unsupported(f"{kind} in model_input", "tokens")
        for own, tokens in fields(_bytes(value)):
            if own == 1:
                yield _bytes(tokens)


def read_data(body: bytes) -> list[Datum]:
    """The data of a `ForwardBackwardRequest`.

    Raises:
        RequestError: the body is no such message, or holds what is not supported.
    """
    found: list[Datum] = []
    num_left = _MAX_ELEMENTS
    for number, value in fields(memoryview(body)):
        if number == 3:
            found.append(_datum(_bytes(value), num_left))
            # The limit is one for the whole request: very many small sparse tensors would otherwise pass it.
            num_left -= sum(array.size for array in found[-1].inputs.values())
    return found


def _datum(message: memoryview, num_left: int) -> Datum:
    """A datum. num_left: elements that its tensors may have together."""
    import numpy as np

    from luthier.ml.training.losses.token_losses import Datum

    tokens: list[Array] = []
    inputs: dict[str, Array] = {}
    for number, value in fields(message):
        if number == 1:
            tokens += [_array(part, _INT32) for part in _chunks(_bytes(value))]
        elif number == 2:
            name, tensor = "", memoryview(b"")
            for own, found in fields(_bytes(value)):
                if own == 1:
                    name = _text(found)
                elif own == 2:
                    tensor = _bytes(found)
            inputs[name] = _tensor(name, tensor, num_left)
            num_left -= inputs[name].size
        # Fields 3 and 4 say which sampled sequence a token comes from; only `stable_reinforce`, refused, reads them.
    return Datum(np.concatenate(tokens) if tokens else np.zeros(0, dtype=np.int32), inputs)


def _array(values: memoryview, kind: int) -> Array:
    import numpy as np

    dtypes = {_FLOAT32: np.float32, _INT64: np.int64, _INT32: np.int32}
    if kind not in dtypes or len(values) % _NUMBER_BYTES[kind]:
        raise _unreadable()
    # little-endian on the wire, as on every machine that torch runs on
    return np.frombuffer(values, dtype=dtypes[kind]) if len(values) else np.zeros(0, dtype=dtypes[kind])


def _tensor(name: str, message: memoryview, num_left: int) -> Array:
    """A tensor, dense; entries that a sparse one does not list are 0. num_left: elements that it may have."""
    import numpy as np

    kind, shape, dense, sparse = 0, list[int](), memoryview(b""), None
    for number, value in fields(message):
        if number == 1:
            dense = _bytes(value)
        elif number == 2:
            sparse = _bytes(value)
        elif number == 3 and isinstance(value, int):
            kind = value
        elif number == 4:
            shape += [value] if isinstance(value, int) else _packed(value)
    # First of all: the product of very many sides takes minutes.
    if len(shape) > _MAX_DIMENSIONS:
        raise RequestError(
            f"{name[:100]} of {len(shape):,} dimensions", expected="one or two", do="correct the shape of the tensor"
        )
    size = math.prod(shape)
    if max(size, *shape, 0) > num_left:
        raise RequestError(
            f"{name[:100]} of shape {shape}",
            expected=f"at most {_MAX_ELEMENTS:,} elements in all tensors of a request",
            do="send smaller data, in several requests",
        )
    found = _array(dense, kind) if sparse is None else _from_rows(name, sparse, kind, shape)
    if shape and size != found.size:
        raise RequestError(
            f"{name[:100]} of shape {shape} with {found.size:,} elements",
            expected=f"{size:,} elements",
            do="correct the shape of the tensor",
        )
    # astype copies, so that the datum keeps no view of the body alive.
    wide = np.float32 if kind == _FLOAT32 else np.int64
    return found.astype(wide).reshape(shape or (found.size,))


def _from_rows(name: str, message: memoryview, kind: int, shape: Sequence[int]) -> Array:
    """A tensor of compressed sparse rows: values, the first value of each row, and the column of each value."""
    import numpy as np

    parts = {number: _bytes(value) for number, value in fields(message)}
    values = _array(parts.get(1, memoryview(b"")), kind)
    starts, columns = (_array(parts.get(number, memoryview(b"")), _INT64) for number in (2, 3))
    is_sound = len(shape) == 2 and len(starts) == shape[0] + 1 and len(columns) == len(values)
    is_sound = is_sound and starts[0] == 0 and starts[-1] == len(values) and bool((np.diff(starts) >= 0).all())
    if not (is_sound and (not len(columns) or (columns.min() >= 0 and columns.max() < shape[1]))):
        raise RequestError(
            f"{name[:100]} is not a valid sparse tensor of shape {list(shape)}",
            expected="compressed sparse rows of two dimensions",
            do="send it dense: TensorData.from_torch",
        )
    found = np.zeros(tuple(shape), dtype=values.dtype)
    # [rows]: the number of values in each row is the difference of two starts.
    found[np.repeat(np.arange(shape[0]), np.diff(starts)), columns] = values
    return found.reshape(-1)


def _packed(values: memoryview) -> list[int]:
    found, place = [], 0
    while place < len(values):
        value, place = _varint(values, place)
        found.append(value)
    return found


def _encoded(value: int) -> bytes:
    made = bytearray()
    # Negative numbers are written in two's complement of 64 bits, as Protocol Buffers have it.
    value &= (1 << 64) - 1
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _field(number: int, value: int | bytes | float) -> bytes:
    if isinstance(value, float):
        return _encoded(number << 3 | _EIGHT) + struct.pack("<d", value)
    if isinstance(value, int):
        return _encoded(number << 3 | _VARINT) + _encoded(value)
    return _encoded(number << 3 | _BYTES) + _encoded(len(value)) + value


def pass_message(result: PassResult, metrics: Mapping[str, float]) -> bytes:
    """A `ForwardBackwardOutput` with the log-probabilities of each datum.

    Args:
        result: of the pass.
        metrics: by name; how they are reduced over several passes comes behind a colon, such as `loss:sum`.
    """
    # Data of one record have the same trailing shape: one record for each run of equal ones.
    groups: list[list[Array]] = []
    for array in result.log_probabilities:
        if not groups or groups[-1][0].shape[1:] != array.shape[1:]:
            groups.append([])
        groups[-1].append(array)
    message = _field(1, b"ArrayRecord") + b"".join(_field(2, _record(group)) for group in groups)
    entries = (_field(1, name.encode()) + _field(2, float(value)) for name, value in metrics.items())
    return message + b"".join(_field(3, entry) for entry in entries)


def _record(arrays: Sequence[Array]) -> bytes:
    import numpy as np

    offsets = np.cumsum([0, *(array.nbytes for array in arrays)]).astype(np.int64)
    tensor = _field(1, b"".join(array.tobytes() for array in arrays)) + _field(2, offsets.tobytes())
    tensor += _field(3, _FLOAT32) + b"".join(_field(4, int(side)) for side in arrays[0].shape[1:])
    return _field(2, _field(1, b"logprobs") + _field(2, tensor)) + _field(3, len(arrays))


def sample_message(result: SampleResult) -> bytes:
    """A `SampleResponse`."""
    import numpy as np

    message = b""
    for one in result.answers:
        sequence = _field(1, _STOPPED if one.has_stopped else _LENGTH)
        sequence += _field(2, np.asarray(one.tokens, dtype=np.int32).tobytes())
        sequence += _field(3, np.asarray(one.log_probabilities, dtype=np.float32).tobytes())
        if one.top is not None:
            sequence += _field(4, _top(one.top))
        message += _field(1, sequence)
    if result.prompt_log_probabilities is not None:
        message += _field(2, result.prompt_log_probabilities.tobytes())
    if result.top_of_prompt is not None:
        message += _field(3, _top(result.top_of_prompt))
    return message


def _top(top: Top) -> bytes:
    num_places, num = top.ids.shape
    message = _field(1, top.ids.tobytes()) + _field(2, top.log_probabilities.tobytes())
    return message + _field(3, num) + _field(4, num_places)

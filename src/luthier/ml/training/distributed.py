"""Distributed training: the collectives that the loop uses, and their equivalents for a single process.

The launcher (`luthier train --devices`, torchrun, Slurm, Ray) sets torch's environment variables: RANK, WORLD_SIZE,
LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. A process without them runs alone, and every collective then
returns its input, so that the loop has one code path.

Small values (sums of losses, stop requests) are exchanged as text, gathered in rank order, so that sums are identical
to the bit on every rank. Gradients are reduced as flat fp32 buckets.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeGuard

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from luthier.core.errors import PeerLostError, RequestError
from luthier.core.run import StopReason, cause_of
from luthier.ml.inference import accelerator

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_FRAME_BYTES: Final = 4096
_PIECE_BYTES: Final = 32 << 20
DEFAULT_TIMEOUT_SECONDS: Final = 1800.0
"""How long a process waits for the others: as long as the slowest one may take to read its rows."""


@dataclass(frozen=True, slots=True)
class World:
    """One process among `size`, as it sees itself.

    All methods are collectives: every rank calls them at the same point of the same step and waits for the others. If a
    rank is lost, torch's own error is raised.

    Attributes:
        device: torch's name of the device that this process works on.
        local_size: processes on this machine, which share its cores.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that emits events and writes checkpoints and the result."""
        return self.rank == 0

    def gather(self, text: str) -> list[str]:
        """The texts of all ranks, in rank order; at most 4,092 bytes of UTF-8 each.

        Raises:
            ValueError: the text is longer.
        """
        if self.size == 1:
            return [text]
        content = text.encode()
        if len(content) > _FRAME_BYTES - 4:
            raise ValueError(f"{len(content):,} bytes to gather; at most {_FRAME_BYTES - 4:,}")
        # A fixed size, so that a single collective is enough: no lengths have to be exchanged first.
        frame = torch.zeros(_FRAME_BYTES, dtype=torch.uint8)
        frame[: 4 + len(content)] = _bytes(len(content).to_bytes(4, "big") + content)
        frames = [torch.empty_like(frame) for _ in range(self.size)]
        dist.all_gather(frames, frame)
        found = [frame.numpy().tobytes() for frame in frames]
        return [raw[4 : 4 + int.from_bytes(raw[:4], "big")].decode() for raw in found]

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum over all ranks of each value, by name; a rank without a name contributes 0 to it."""
        if self.size == 1:
            return dict(values)
        total: dict[str, float] = {}
        for text in self.gather(json.dumps(dict(values))):  # JSON keeps every bit of a double, NaN included
            for name, value in json.loads(text).items():
                total[name] = total.get(name, 0.0) + value
        return total

    def sum(self, value: float) -> float:
        """The sum of one value over all ranks."""
        return self.sums({"": value})[""]

    def agreed(self, wish: str | None) -> str | None:
        """The stop request of the lowest rank that has one, the same on all ranks; None if no rank has one."""
        if self.size == 1:
            return wish
        line = "" if wish is None else StopReason(wish[:1000], cause_of(wish)).to_line()
        return next((StopReason.from_line(text) for text in self.gather(line) if text), None)

    def all_true(self, own: bool) -> bool:
        """Whether something holds on every rank; what ranks decide by themselves could differ between machines."""
        return "0" not in self.gather(str(int(own)))

    def max(self, count: int) -> int:
        """The largest of all ranks' counts."""
        return max(map(int, self.gather(str(count))))

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text, of any length, on all ranks."""
        if self.size == 1:
            return text
        content = _bytes(text.encode()) if self.is_first else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor([content.numel()])
        dist.broadcast(size, 0)
        if not self.is_first:
            content = torch.empty(int(size), dtype=torch.uint8)
        if int(size):
            dist.broadcast(content, 0)
        return content.numpy().tobytes().decode()

    @torch.no_grad()
    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in buckets of about 32 MB, one in flight at a time.

        Sharded tensors are already reduced and are skipped, here and in the methods below.
        """
        if self.size == 1:
            return
        gradients = _whole(gradients)
        on_its_way: tuple[list[Tensor], Tensor, dist.Work] | None = None
        # The next bucket is flattened while the previous one is reduced; the empty one collects the last result.
        for piece in [*_pieces(gradients), []]:
            flat = torch.cat([gradient.reshape(-1) for gradient in piece]) if piece else None
            if on_its_way is not None:
                _take_back(*on_its_way)
            if flat is not None:
                on_its_way = (piece, flat, dist.all_reduce(flat, async_op=True))

    @torch.no_grad()
    def broadcast_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite each tensor with that of rank 0."""
        for tensor in _whole(tensors) if self.size > 1 else ():
            whole = tensor.contiguous()  # a broadcast writes into storage, which a view does not own
            dist.broadcast(whole, 0)
            tensor.copy_(whole)

    def are_same(self, tensors: Sequence[Tensor]) -> bool:
        """Whether all ranks hold the same bits, compared by a checksum."""
        if self.size == 1:
            return True
        total = sum(_fingerprint(tensor) for tensor in _whole(tensors))
        return len(set(self.gather(str(total)))) == 1


ALONE: Final = World()


@contextmanager
def joined(device: str, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Iterator[World]:
    """Join the process group that the environment describes, for the duration of the block.

    Args:
        device: `cpu`, `cuda`, `xpu` or `mps`; with several processes per machine each takes the GPU of its local rank.
            An existing process group (Ray Train creates one) is used and left open.
        timeout_seconds: how long a collective call waits for the other processes before they count as lost.

    Raises:
        RequestError: the environment variables are incomplete, or such devices cannot train together.
        PeerLostError: other processes are lost or never joined.
    """
    if dist.is_initialized():
        if device in ("xpu", "mps"):
            raise _not_together(f"{dist.get_world_size()} processes of Ray on {device}", "train under torchrun instead")
        yield _seen(device, dist.get_rank(), dist.get_world_size())
        return
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if size == 1:
        yield World(device=device)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RequestError(
            f"WORLD_SIZE is {size}, but {' and '.join(missing)} not set",
            expected="the variables that torchrun sets: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT",
            do="start the processes by `luthier train RECIPE --devices N`, or by torchrun (docs/devices.md)",
        )
    if device == "mps":
        raise _not_together(f"{size} processes on mps", "train with one process: a Mac has one GPU")
    _choose_interface(os.environ["MASTER_ADDR"])
    world = _seen(device, rank, size)
    if accelerator.is_accelerator(world.device):
        accelerator.use_device(world.device)
    backend = accelerator.collective_backend(device)
    try:
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_seconds))
        yield world
    except RuntimeError as error:
        if not _is_about_peers(error):
            raise
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise PeerLostError(
            f"rank {rank} of {size} lost the others: {first_line}",
            expected=f"all processes to live, and to answer within {timeout_seconds:g} s",
            do="continue the run: nothing before its newest checkpoint is lost",
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def refuse_unequal_shares(global_batch_size: int, num_processes: int) -> None:
    """Raise RequestError if the examples of a step cannot be divided evenly among the processes."""
    if global_batch_size % num_processes == 0:
        return
    less = global_batch_size // num_processes * num_processes
    near = " or ".join(str(size) for size in (less, less + num_processes) if size)
    divisors = [n for n in range(1, global_batch_size + 1) if global_batch_size % n == 0]
    fitting = max(n for n in divisors if n < num_processes)
    more = next((n for n in divisors if n > num_processes), None)
    raise RequestError(
        f"training.global_batch_size {global_batch_size} on {num_processes} devices",
        expected="a multiple of the number of devices: every step is shared out evenly",
        do=f"train on {fitting}{f' or {more}' if more else ''} devices, or set training.global_batch_size to {near} "
        "(which is another run)",
    )


def _seen(device: str, rank: int, size: int) -> World:
    local_rank, local_size = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
    return World(rank, size, local_size, accelerator.numbered(device, local_rank))


def _not_together(came: str, do: str) -> RequestError:
    return RequestError(came, expected="devices whose gradients torch can add up: cpu, cuda (ROCm too), xpu", do=do)


def _number(name: str, usual: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else usual


def _choose_interface(master: str) -> None:
    """Set gloo's network interface where the machine's own name resolves to the loopback address.

    Gloo looks up the host's name. Many machines answer 127.0.0.1, which no other machine can reach.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master, 9))  # a datagram socket sends nothing here: it only selects the route
        except OSError:
            return  # init_process_group will say what is wrong with the address
        address = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == address for found in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return


def _is_about_peers(error: RuntimeError) -> bool:
    """Whether a torch error reports the loss of another process; gloo's errors have no separate class."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Socket Timeout")
    return any(word in str(error) for word in words)


def _bytes(content: bytes) -> Tensor:
    # frombuffer needs writable memory, and refuses an empty buffer.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def is_sharded(tensor: Tensor | None) -> TypeGuard[DTensor]:
    """Whether several processes hold parts of it. Where its class was never loaded, none is."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _whole(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if not is_sharded(tensor)]


def _fingerprint(tensor: Tensor) -> int:
    # The raw bits as integers: an exact sum in any order that distinguishes -0.0 and NaN by their bits.
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
    whole = raw if raw.numel() % 4 else raw.view(torch.int32)
    return int(whole.sum(dtype=torch.int64))


def _pieces(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in order, grouped into buckets of one dtype and about 32 MB."""
    pieces: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        # One dtype per bucket: torch.cat would promote. A tensor larger than a bucket gets one to itself.
        if not pieces or room < tensor.nbytes or pieces[-1][0].dtype != tensor.dtype:
            pieces.append([])
            room = _PIECE_BYTES
        pieces[-1].append(tensor)
        room -= tensor.nbytes
    return pieces


def _take_back(piece: list[Tensor], flat: Tensor, work: dist.Work) -> None:
    work.wait()
    parts = flat.split([tensor.numel() for tensor in piece])
    torch._foreach_copy_(piece, [part.view_as(tensor) for part, tensor in zip(parts, piece, strict=True)])

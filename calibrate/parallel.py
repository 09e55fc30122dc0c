"""Several processes as one: the ranks of a `torchrun`, their shares of the windows, and what they agree on.

Every rank runs the whole program and takes the same steps: a loss is the same number, to the last bit, on each of them,
because each adds up the same parts in the same order. Only what differs between processes goes through the first rank
or through all: a journal, a clock, a signal. A process that nobody launched with others is `ALONE`, and costs nothing.

This is the one file that knows torch.distributed. Sums go over gloo, whatever the device: they are a few numbers for
each window. With tensor parallelism, consecutive ranks hold one copy of the model together, and are the whole world of
transformers.
"""

import hashlib
import json
import os
import pickle
import signal
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ropecli import errors
from ropecli.errors import BadData, BadUsage, NoResource, RopeError

R = TypeVar("R")
Floats = npt.NDArray[np.float64]

TIMEOUT = timedelta(minutes=30)
"""The longest that a rank waits for another: for its part of a sum, and before that for it to load its model."""

GRACE = 2.0
"""Seconds in which a rank that ended may say why."""

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process that it starts."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the others.

    rank, size       its number and how many there are
    local            its number on its own machine, which is that of its GPU
    on_this_machine  ranks that share the machine
    tensor           ranks that hold one copy of the model together; they score the same windows
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    on_this_machine: int = 1
    tensor: int = 1
    _group: Any = None
    _store: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the rank that speaks and writes."""
        return self.rank == 0

    @property
    def copies(self) -> int:
        """Copies of the model, each of which scores windows of its own."""
        return self.size // self.tensor

    def mine(self, count: int) -> range:
        """This rank's part of 0 … count − 1: neighbours, as many as any other rank has or one less or more."""
        copy = self.rank // self.tensor
        return range(copy * count // self.copies, (copy + 1) * count // self.copies)

    def total(self, values: Floats) -> Floats:
        """The sum over the copies of the model, float64, of the same shape everywhere; the same bits on every rank.

        A rank puts zeros where another one has the value, and the sum is that value exactly.
        """
        if self.size == 1:
            return values
        # added in the order of the ranks, not in that of their arrival
        parts = self._gathered(np.ascontiguousarray(values, dtype=np.float64))[:: self.tensor]
        return np.asarray(sum(parts[1:], parts[0]), dtype=np.float64)

    def any(self, flag: bool) -> bool:
        """Whether any rank says so: a signal reaches one of them, and a clock strikes on one first."""
        return self.most(float(flag)) > 0

    def most(self, value: float) -> float:
        """The greatest over all ranks."""
        if self.size == 1:
            return value
        return max(float(part[0]) for part in self._gathered(np.array([value], dtype=np.float64)))

    def check_same(self, value: object, what: str) -> None:
        """Raises BadData where a rank has another value than the first one, as another copy of a file gives."""
        if self.size == 1:
            return
        digest = hashlib.sha256(repr(value).encode()).hexdigest()
        if self.from_first(digest) != digest:
            raise BadData(f"{what} differ from those of rank 0", hint="every machine needs the same files")

    def from_first(self, value: R) -> R:
        """What the first rank gives, on every rank."""
        if self.size == 1:
            return value
        content = bytearray(pickle.dumps(value)) if self.leads else bytearray()
        size = int(self.most(float(len(content))))
        buffer = torch.zeros(size, dtype=torch.uint8, device="cpu")
        if self.leads:
            buffer = torch.frombuffer(content, dtype=torch.uint8)
        self._waited(lambda: self._group.broadcast(buffer, 0))
        given: R = pickle.loads(buffer.numpy().tobytes())  # noqa: S301 - from the first rank of this very run
        return given

    def _gathered(self, values: Floats) -> list[Floats]:
        own = torch.from_numpy(values)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        self._waited(lambda: self._group.allgather([parts], [own]))
        return [part.numpy() for part in parts]

    def _waited(self, start: Callable[[], Any]) -> None:
        try:
            start().wait()
        except RuntimeError as error:  # gloo knows no kinds: a closed connection and a timeout are this
            raise _Cut from error

    def tell(self, error: Exception) -> None:
        """Leave the reason of this rank's end where the first one can read it."""
        if isinstance(error, RopeError):
            reason = [type(error).__name__, error.problem, error.where, error.hint]
        else:
            reason = [NoResource.__name__, f"{type(error).__name__}: {error}", "", "--debug shows where"]
        if self._store is not None:
            with suppress(RuntimeError):  # the first rank, which has the store, may be gone already
                self._store.set(f"end {self.rank}", json.dumps(reason))

    def told(self, hint: str) -> RopeError:
        """Why the others are gone: what one of them said about its end, or that nobody said anything."""
        until = time.monotonic() + GRACE
        while self.leads and self._store is not None and time.monotonic() < until:
            for rank in range(1, self.size):
                if self._store.check([f"end {rank}"]):
                    kind, problem, where, own_hint = json.loads(self._store.get(f"end {rank}"))
                    place = f"rank {rank}: {where}" if where else f"rank {rank}"
                    found: RopeError = getattr(errors, kind)(problem, where=place, hint=own_hint)
                    return found
            time.sleep(0.05)
        minutes = TIMEOUT.total_seconds() / 60
        return NoResource(
            f"one of the {self.size} ranks ended or was ended, or gave no answer for {minutes:g} minutes", hint=hint
        )


class _Cut(BaseException):
    """The run cannot go on, for a reason that lies in another rank.

    Not an Exception, so that nobody between a sum and `joined` takes it for an error of his own.
    """


ALONE = Ranks()
_HERE: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)


def here() -> Ranks:
    """The ranks of this run: `ALONE` outside of `joined`."""
    return _HERE.get()


def _launched(environment: Mapping[str, str]) -> Ranks:
    """The ranks, not yet connected, where torchrun started this process with others; else `ALONE`."""
    if not all(name in environment for name in LAUNCHED):
        return ALONE
    rank, size, local = (int(environment[name]) for name in LAUNCHED[:3])
    return Ranks(rank, size, local, int(environment.get("LOCAL_WORLD_SIZE", size))) if size > 1 else ALONE


def _connected(launched: Ranks, tensor: int) -> Ranks:
    rank, size = launched.rank, launched.size
    if size % tensor:
        raise BadUsage(
            f"{size} ranks cannot be dealt into groups of {tensor}",
            where="--tensor-parallel",
            hint=f"start a multiple of {tensor} processes",
        )
    try:
        store, *_ = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        if tensor > 1:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            copy = PrefixStore(f"copy {rank // tensor}", store)
            dist.init_process_group(backend, store=copy, rank=rank % tensor, world_size=tensor, timeout=TIMEOUT)
        group = dist.ProcessGroupGloo(PrefixStore("windows", store), rank, size, TIMEOUT)
    except (RuntimeError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise NoResource(
            f"the {size} ranks of torchrun cannot reach each other ({line})", where=f"rank {rank}"
        ) from error
    connected = replace(launched, tensor=tensor, _group=group, _store=store)
    # none may end, and take its store away, while another one is still connecting
    connected.any(flag=False)
    return connected


def _is_of_a_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(name in str(error).lower() for name in ("gloo", "nccl"))


@contextmanager
def joined(tensor: int = 1, *, hint: str = "") -> Iterator[Ranks]:
    """Inside the block this process is one of the ranks that torchrun started; without a torchrun it is alone.

    tensor  ranks that hold one copy of the model together
    hint    what to do when a rank is lost

    The first rank raises what went wrong on any of them, where that did not reach it in another way.
    Raises BadUsage for a tensor parallelism that the number of ranks does not allow, NoResource when a rank is lost.
    """
    launched = _launched(os.environ)
    if launched is ALONE:
        if tensor > 1:
            raise BadUsage(
                f"one process cannot hold a model in {tensor} parts",
                where="--tensor-parallel",
                hint=f"torchrun --nproc-per-node {tensor} -m ropecli ...",
            )
        yield ALONE
        return
    ranks, token = launched, None
    had = signal.signal(signal.SIGTERM, _cut)
    try:
        ranks = _connected(launched, tensor)
        token = _HERE.set(ranks)
        yield ranks
    except BaseException as error:
        # the reason is on its way out: the signal that torchrun sends because another rank has ended comes too late
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, _Cut) or (isinstance(error, RuntimeError) and _is_of_a_connection(error)):
            raise ranks.told(hint) from error
        if isinstance(error, Exception):
            ranks.tell(error)
        raise
    else:
        signal.signal(signal.SIGTERM, had)
    finally:
        if token is not None:
            _HERE.reset(token)
        if dist.is_initialized():
            dist.destroy_process_group()


def _cut(number: int, frame: types.FrameType | None) -> None:
    """torchrun ends a rank when another one has ended."""
    del number, frame
    raise _Cut

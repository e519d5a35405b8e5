"""One measure on several processes: each takes whole batches in turn, and what they sum is added up at the end.

Every measure here sums something over batches of images, by jackknife group, before it divides. So a run of
``torchrun --nproc-per-node R`` lets process r of R measure the batches r, r + R, … of the order that one process has
(``Share``), and adds up the sums: the numbers are those of one process but for the order in which floats
are added. Without torchrun there is one process, and nothing is exchanged.

What is exchanged is small and lies on the CPU, so it goes by gloo whatever the devices are. Before it is, the processes
wait for each other, and one that has died or stands still is named (``LostProcess``).
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, reduce
from itertools import count as counting
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = 5.0  # seconds for those that are on their way, when one is lost
_alone = ContextVar("alone", default=False)
_meetings = counting()


class LostProcess(Exception):
    """Another process of the run has died, or did not come in time; the message names it."""


def process() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are: (0, 1) outside of distributed runs."""
    if not _alone.get() and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def joined() -> Iterator[tuple[int, int]]:
    """Within the context this process works with the others that torchrun has started; gives ``process()``.

    Without torchrun, or where the processes know each other already, nothing is done.
    """
    if process()[1] > 1 or int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        yield process()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield process()
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Within the context this process measures by itself, as where something is tried that may well be refused."""
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


def own_device(device: torch.device) -> torch.device:
    """Of several GPUs the one of this process, ``LOCAL_RANK``; any other device as it is."""
    if device.type != "cuda" or device.index is not None or process()[1] == 1:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def meet() -> None:
    """Wait until all processes are here. Raises ``LostProcess`` where one does not come."""
    rank, count = process()
    if count == 1:
        return
    group, number = _group(dist.group.WORLD), next(_meetings)
    store = dist.distributed_c10d._get_default_store()
    store.set(f"meeting {number} of {rank}", "here")
    try:
        dist.monitored_barrier(group, wait_all_ranks=True)
    except RuntimeError as error:
        late = [str(other) for other in _missing(store, number, count)]
        raise LostProcess(
            f"process {', '.join(late) or 0} of {count} (counted from 0) has died or stands still, so process {rank} "
            "stops; look at what it said last"
        ) from error


def _missing(store: Any, number: int, count: int) -> list[int]:
    """Which processes have not come to a meeting, after a while for those that are only slow."""
    missing, until = list(range(count)), time.monotonic() + PATIENCE
    try:
        while missing and time.monotonic() < until:
            missing = [other for other in missing if not store.check([f"meeting {number} of {other}"])]
            time.sleep(0.2)
    except RuntimeError:
        return [0]  # which kept the store
    return missing


def gathered(found: T) -> list[T]:
    """What each process has, in the order of their numbers; tensors should lie on the CPU. Raises as ``meet``."""
    _, count = process()
    if count == 1:
        return [found]
    meet()
    every: list[Any] = [None] * count
    dist.all_gather_object(every, found, _group(dist.group.WORLD))
    return every


class Share:
    """The share of one process in a measure: the batches that it is dealt, and what all have summed in the end::

        share = Share()
        for number, batch in share.dealt(batches):
            sums[number % groups] += …
        sums = share.summed(sums)

    A process for which there is no batch measures the first one too, so that it knows shapes and grids as the others
    do; what it sums is dropped.
    """

    def __init__(self) -> None:
        self.rank, self.count = process()
        self.idle = True

    def dealt(self, batches: Iterable[T], stand_in: bool = True) -> Iterator[tuple[int, T]]:
        """The batches that this process measures, each with its number among all of them, from 0.

        ``stand_in``: whether a process for which there is none measures the first.
        """
        first: list[T] = []
        for number, batch in enumerate(batches):
            first = first or [batch]
            if number % self.count == self.rank:
                self.idle = False
                yield number, batch
        if self.idle and self.count > 1 and stand_in:
            yield from enumerate(first)

    def summed(self, found: T) -> T:
        """The sums of all processes: numbers, arrays and tensors, in lists, tuples and dicts of any depth.

        Of dicts whose keys differ the union is taken. Each process gets the same, added in the order of their numbers.
        Raises as ``meet``, and ValueError for lists that differ in length.
        """
        parts = [part for idle, part in gathered((self.idle, found)) if not idle]
        return reduce(_plus, parts) if parts else found

    def in_order(self, parts: dict[int, list[T]]) -> list[T]:
        """Number of a batch → its parts, of this process, to those of all processes in the order of the batches."""
        every = self.summed(parts)
        return [part for number in sorted(every) for part in every[number]]


def _plus(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        shared = {key: _plus(value, other[key]) if key in other else value for key, value in one.items()}
        return shared | {key: value for key, value in other.items() if key not in shared}
    if isinstance(one, list | tuple):
        return type(one)(_plus(a, b) for a, b in zip(one, other, strict=True))
    return one + other


@cache
def _group(world: Any) -> Any:
    """A group of all processes that talks by gloo; ``world``: the one there is, for which it is made once."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")

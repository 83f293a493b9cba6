"""Shuffle buffers: what an engine computes, mixed into batches."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from ctypes import byref, c_int64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from . import _abi
from ._arrays import borrow, empty, ints, optional, shape
from ._library import Owner, call, lib
from ._options import fspath, struct

if TYPE_CHECKING:
    from typing_extensions import Unpack

SLICE_MS = 200  # C waits so long at a time, so that Ctrl-C is heard


class BufferOptions(TypedDict, total=False):
    """How a buffer is made; `d` must be given. sae.h says more at `sae_buffer_options`."""

    d: int
    layers: int  # rows are [layers, d]
    memory_bytes: int  # 1 GiB
    spill_bytes: int
    spill_folder: str | os.PathLike[str]
    seed: int
    documents: bool  # rows come with their document's number
    min_documents: int
    keep_not_finite: bool
    sink_multiple: float
    max_norm: float
    dtype: Any  # in which rows are held; float32


@dataclass(frozen=True)
class BufferSize:
    """What a buffer takes: rows that can be held, and bytes."""

    capacity: int
    memory_bytes: int
    spill_bytes: int


@dataclass(frozen=True)
class BufferState:
    """How a buffer fares: `pushed` = `masked` + `not_finite` + `sinks` + `taken` + `held`."""

    pushed: int
    masked: int
    not_finite: int
    sinks: int
    taken: int
    held: int
    capacity: int
    unmixed: int
    median_norm: float
    closed: int


class Buffer(Owner):
    """Takes activations in any order and number, and gives batches drawn uniformly at random, without replacement, from all
    that it holds. For any number of threads at once. `finish` ends the stream, which C calls closing; `close` frees the buffer."""

    def __init__(self, **options: Unpack[BufferOptions]) -> None:
        self._make(dict(options), lib.sae_buffer_create)

    @classmethod
    def restore(cls, path: str | os.PathLike[str], **options: Unpack[BufferOptions]) -> Buffer:
        """One that goes on where another was saved. `d`, and `layers` if there are any, must be given; all that is given must agree
        with what was saved, but for where rows are held."""
        buffer = object.__new__(cls)
        buffer._make(dict(options), lib.sae_buffer_restore, fspath(path))
        return buffer

    def _make(self, options: dict[str, Any], make: Any, *arguments: Any) -> None:
        if "d" not in options:
            raise TypeError("d, the width of a vector of activations, must be given")
        layers = options.get("layers", 0)
        self._row = (layers, options["d"]) if layers else (options["d"],)
        self._documents = bool(options.get("documents", False))
        self._own("buffer", make, *arguments, byref(_buffer_options(options)))

    @staticmethod
    def memory(**options: Unpack[BufferOptions]) -> BufferSize:
        """What a buffer of these options will take."""
        out = struct(_abi.sae_buffer_size)
        call(lib.sae_buffer_memory, byref(_buffer_options(dict(options))), byref(out))
        return BufferSize(out.capacity, out.memory_bytes, out.spill_bytes)

    def push(
        self, x: Any, addend: Any = None, *, row_mask: Any = None, documents: Any = None, wait: float | None = None, round_sum: bool = False
    ) -> int:
        """Takes in rows `[T, d]`, or `[T, layers, d]`, and returns how many: all, unless there is no room for them within `wait`
        seconds (by default as long as it takes; 0: not at all). Those that are left out count as taken. `BadState` if the
        buffer was finished before any row was taken."""
        views = [borrow("x", x), optional("addend", addend), optional("row_mask", None if row_mask is None else ints(x, row_mask))]
        rows = struct(_abi.sae_buffer_rows, dict(zip(("x", "addend", "row_mask"), (address or None for address, _ in views))))
        rows.flags = _abi.SAE_RUN_ROUND_SUM * round_sum
        total = shape(x)[0]
        if documents is not None:
            numbers = np.ascontiguousarray(documents, np.int64)
            if numbers.shape != (total,):
                raise ValueError(f"documents: expected {total} numbers, found {numbers.shape}")
            rows.documents = ctypes.cast(numbers.ctypes.data, ctypes.POINTER(c_int64))
        taken = c_int64()

        def attempt(wait_ms: int) -> bool:
            call(lib.sae_buffer_push, self._handle, byref(rows), wait_ms, byref(taken))
            rows.first += taken.value
            return bool(rows.first >= total) or self.state.closed == 1

        _until(attempt, wait)
        return int(rows.first)

    def take(self, rows: int, *, out: Any = None, wait: float | None = None, like: Any = None) -> Any:
        """Gives a batch of so many rows, fewer only at the end, and `None` once everything has been given. If too few are held
        yet, it waits for `wait` seconds (by default as long as it takes), then gives none. A buffer that keeps documents gives a
        pair: the rows, and the number of each one's document."""
        if out is None:
            out = empty(like, (rows, *self._row), "float32")
        numbers = np.empty(rows, np.int64) if self._documents else None
        address, _keep = borrow("out", out, write=True)
        taken = c_int64()

        def attempt(wait_ms: int) -> bool:
            where = None if numbers is None else numbers.ctypes.data
            call(lib.sae_buffer_take, self._handle, address, where, wait_ms, byref(taken))
            return taken.value != 0

        _until(attempt, wait)
        if taken.value == _abi.SAE_BUFFER_END:
            return None
        batch = out[: taken.value]
        return batch if numbers is None else (batch, numbers[: taken.value])

    def finish(self) -> None:
        """Takes in no more rows, and ends all waiting; what is left can be taken, to the last row."""
        call(lib.sae_buffer_close, self._handle)

    @property
    def state(self) -> BufferState:
        """How it fares."""
        out = struct(_abi.sae_buffer_state)
        call(lib.sae_buffer_stats, self._handle, byref(out))
        return BufferState(*(getattr(out, name) for name in BufferState.__dataclass_fields__))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves all that decides what comes next, the rows included, into a file that appears whole or not at all."""
        call(lib.sae_buffer_save, self._handle, fspath(path))


def _until(attempt: Callable[[int], bool], wait: float | None) -> None:
    """Attempts until it succeeds or `wait` seconds are over, each time waiting a little in C."""
    end = None if wait is None else time.monotonic() + wait
    while True:
        left = SLICE_MS if end is None else max(0, min(SLICE_MS, round((end - time.monotonic()) * 1000)))
        if attempt(left) or (end is not None and time.monotonic() >= end):
            return


def _buffer_options(options: dict[str, Any]) -> Any:
    flags = _abi.SAE_BUFFER_DOCUMENTS * options.pop("documents", False)
    flags |= _abi.SAE_BUFFER_KEEP_NOT_FINITE * options.pop("keep_not_finite", False)
    return struct(_abi.sae_buffer_options, {**options, "flags": flags})

"""Sessions: encode, decode and steer. A stream of work over one model, with all its working memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Sequence
from ctypes import addressof, byref
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Any, TypedDict

from . import _abi
from ._arrays import borrow, empty, ints, is_torch, like, optional, shape
from ._library import Owner, ask, call, lib
from ._options import struct, whole
from .errors import InvalidArgument
from .features import Features, check
from .model import Memory, Model, read_memory

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Run(IntFlag):
    """How calls run; 0 is the default."""

    NONE = 0
    FAST = _abi.SAE_RUN_FAST
    """Allow scores that are repeatable on one device but not bit for bit the same on all."""
    ORDER_INDEX = _abi.SAE_RUN_ORDER_INDEX
    """List features by index instead of strongest first."""
    ROUND_SUM = _abi.SAE_RUN_ROUND_SUM
    """Round `x + addend` to x's type, as engines do that write the sum back before they read it."""


@dataclass(frozen=True)
class Edit:
    """A change to one latent: `Edit.add(7, 4.0)`, `Edit.ablate(9)`. Strengths are in units of the latent's activation."""

    feature: int
    op: int = _abi.SAE_EDIT_ADD
    strength: float = 0.0
    limit: float = 0.0
    """The change of the activation is clamped to ±`limit`; 0: no limit."""
    only_active: bool = False
    """Leave tokens alone on which the latent is not active."""

    @classmethod
    def add(cls, feature: int, strength: float, *, limit: float = 0.0, only_active: bool = False) -> Edit:
        """Adds to the activation, active or not."""
        return cls(feature, _abi.SAE_EDIT_ADD, strength, limit, only_active)

    @classmethod
    def set(cls, feature: int, strength: float, *, limit: float = 0.0, only_active: bool = False) -> Edit:
        """Makes the activation `strength`."""
        return cls(feature, _abi.SAE_EDIT_SET, strength, limit, only_active)

    @classmethod
    def scale(cls, feature: int, strength: float, *, limit: float = 0.0, only_active: bool = False) -> Edit:
        """Multiplies the activation."""
        return cls(feature, _abi.SAE_EDIT_SCALE, strength, limit, only_active)

    @classmethod
    def ablate(cls, feature: int, *, limit: float = 0.0) -> Edit:
        """Makes the activation 0."""
        return cls(feature, _abi.SAE_EDIT_ABLATE, 0.0, limit)


class SessionOptions(TypedDict, total=False):
    """What a session is made for; what is left out has its default."""

    max_tokens: int  # the most tokens per call; 512
    max_width: int  # the most slots per token in features; k for TopK, else 1024
    slots: int  # lists of edits; 1
    edits_per_slot: int  # 16
    flags: int  # SAE_SESSION_…
    run_flags: Run  # for every call
    kernels: str  # the instruction set, one of `kernels()`


class Pool(Owner):
    """Threads of the library's own that sessions and trainers may share; results do not depend on how many. 0: one per core. A
    process made by fork needs a pool of its own."""

    def __init__(self, threads: int = 0) -> None:
        self._own("pool", lib.sae_pool_create, threads)

    @property
    def threads(self) -> int:
        """How many run at once, the calling one included."""
        return int(ask(lib.sae_pool_threads, self._handle))


class Session(Owner):
    """One stream of work over one model. Calls of several threads take turns; for work at the same time, give each thread a
    session of its own over the same model.

    `x` is `[T, d_in]` (of a crosscoder `[T, layers, d]`), float32, float16 or bfloat16, of numpy, torch, or anything that has
    `__dlpack__`; it is used where it lies. Where `addend` is given, `x + addend` is meant, as engines keep a residual in two
    parts. Results are made beside `x` (torch's for torch, else numpy's) or written into `out`. All raise `libsae.Error`, and
    then leave outputs as they were.

    On a GPU, calls go on `stream`: a CUDA stream's handle or object; by default torch's current one for torch tensors, else
    the legacy default stream. They wait for nothing, so they can be captured into graphs if `out` is given."""

    def __init__(self, model: Model, *, threads: int = 1, pool: Pool | None = None, **options: Unpack[SessionOptions]) -> None:
        self.model = model
        self.info = info = model.info
        self.width = options.get("max_width") or min(info.k or 1024, info.n_latents)
        """Slots per token in features that are made here, unless a call says otherwise."""
        self.max_tokens = options.get("max_tokens") or 512
        fields = dict(options, max_width=self.width, max_tokens=self.max_tokens)
        given, _pool = _session_options(fields, threads, pool)
        self._own("session", lib.sae_session_create, model._handle, byref(given))
        self._lock = threading.Lock()
        self._on_gpu = info.device != "cpu"
        self._run = struct(_abi.sae_run)
        self._run_address = addressof(self._run)
        self._steering = struct(_abi.sae_steering)

    @staticmethod
    def memory(model: Model, *, threads: int = 1, pool: Pool | None = None, **options: Unpack[SessionOptions]) -> Memory:
        """What such a session would need."""
        given, _pool = _session_options(dict(options), threads, pool)
        return read_memory(lib.sae_session_memory, model._handle, byref(given))

    def encode(
        self, x: Any, addend: Any = None, *, width: int | None = None, out: Features | None = None, flags: int = 0, stream: Any = None
    ) -> Features:
        """The features of each token. A token that is not finite has none, and count -1."""
        with self._lock:
            run, order = self._prepare(x, flags, stream)
            given, _x = borrow("x", x, stream=order)
            added, _addend = optional("addend", addend, stream=order)
            if out is None:
                out = self._features(x, width)
            view = check("out", out)._struct("out", write=True, stream=order)
            call(lib.sae_encode, self._handle, run, given, added, view.address)
            return out

    def encode_selected(
        self, x: Any, latents: Any, addend: Any = None, *, out: Any = None, dtype: str = "float32", flags: int = 0, stream: Any = None
    ) -> Any:
        """Activations of the `latents` `[m]` alone, `[T, m]`. With TopK, one that is not among a token's k largest has 0."""
        with self._lock:
            run, order = self._prepare(x, flags, stream)
            given, _x = borrow("x", x, stream=order)
            added, _addend = optional("addend", addend, stream=order)
            latents = ints(x, latents)
            ids, _ids = borrow("latents", latents, stream=order)
            if out is None:
                out = empty(x, (shape(x)[0], shape(latents)[0]), dtype)
            into, _out = borrow("out", out, write=True, stream=order)
            call(lib.sae_encode_selected, self._handle, run, given, added, ids, into)
            return out

    def encode_dense(
        self, x: Any, *, pre_activations: bool = False, out: Any = None, dtype: str = "float32", flags: int = 0, stream: Any = None
    ) -> Any:
        """All activations, or pre-activations, `[T, n_latents]`. A token that is not finite gives NaN."""
        with self._lock:
            run, order = self._prepare(x, flags, stream)
            given, _x = borrow("x", x, stream=order)
            if out is None:
                out = empty(x, (shape(x)[0], self.info.n_latents), dtype)
            into, _out = borrow("out", out, write=True, stream=order)
            what = _abi.SAE_DENSE_PRE_ACTIVATIONS if pre_activations else _abi.SAE_DENSE_ACTIVATIONS
            call(lib.sae_encode_dense, self._handle, run, given, what, into)
            return out

    def decode(self, features: Features, x: Any = None, *, out: Any = None, dtype: str = "float32", flags: int = 0, stream: Any = None) -> Any:
        """Activation vectors `[T, d_out]` of features. `x` is the raw input, which models with a skip path need."""
        with self._lock:
            values = check("features", features).values
            run, order = self._prepare(values, flags, stream)
            view = features._struct("features", write=False, stream=order)
            given, _x = optional("x", x, stream=order)
            if out is None:
                out = empty(values, self._rows_out(len(features)), dtype)
            into, _out = borrow("out", out, write=True, stream=order)
            call(lib.sae_decode, self._handle, run, view.address, given, into)
            return out

    def reconstruct(
        self, x: Any, addend: Any = None, *, features: Features | None = None, out: Any = None, flags: int = 0, stream: Any = None
    ) -> Any:
        """Encodes and decodes at once, from all active latents, in x's dtype; `out` may be `x`. `features`, if given, gets them."""
        with self._lock:
            run, order = self._prepare(x, flags, stream)
            given, _x = borrow("x", x, stream=order)
            added, _addend = optional("addend", addend, stream=order)
            view = None if features is None else check("features", features)._struct("features", write=True, stream=order)
            if out is None:
                out = empty(x, self._rows_out(shape(x)[0]), like(x))
            into, _out = borrow("out", out, write=True, stream=order)
            call(lib.sae_reconstruct, self._handle, run, given, added, view and view.address, into)
            return out

    def set_edits(self, slot: int, edits: Iterable[Edit]) -> None:
        """Replaces the list of edits in a slot; none: the slot steers nothing. On a GPU, later calls and launches of graphs steer
        by it."""
        edits = list(edits)
        given = (_abi.sae_edit * len(edits))()
        for place, edit in zip(given, edits):
            place.feature, place.op, place.strength, place.limit = whole("feature", edit.feature), edit.op, edit.strength, edit.limit
            place.flags = _abi.SAE_EDIT_ONLY_ACTIVE * edit.only_active
        with self._lock:
            call(lib.sae_set_edits, self._handle, whole("slot", slot), given, len(edits))

    def steer(
        self, x: Any, addend: Any = None, *, row_slot: Any = None, known: Features | None = None, y: Any = None, out: Any = None,
        flags: int = 0, stream: Any = None,
    ) -> Any:
        """`y` (by default `x`) changed by the edits: row i by those of slot `row_slot[i]` (int32; -1: left alone), by default
        all by slot 0. What the SAE does not reconstruct is kept. `out` may be `y` itself: `steer_` is short for `x` in place.
        `known`: features of these rows, if they are encoded already."""
        with self._lock:
            run, order = self._prepare(x, flags, stream)
            given, _x = borrow("x", x, write=y is None and out is x, stream=order)
            added, _addend = optional("addend", addend, stream=order)
            edited = x if y is None else y
            if out is None:
                out = empty(edited, shape(edited), like(edited))
            steering = self._steering
            slots, _slots = (0, None) if row_slot is None else borrow("row_slot", ints(x, row_slot), stream=order)
            view = None if known is None else check("known", known)._struct("known", write=False, stream=order)
            changed, _y = optional("y", y, stream=order)
            into, _out = (0, None) if out is edited else borrow("out", out, write=True, stream=order)
            if out is y:
                _ = borrow("y", y, write=True, stream=order)
            steering.row_slot, steering.y, steering.out, steering.known = slots, changed, into, view and view.address
            call(lib.sae_steer, self._handle, run, given, added, addressof(steering))
            return out

    def steer_(self, x: Any, addend: Any = None, **options: Any) -> Any:
        """`steer` of `x` in place."""
        return self.steer(x, addend, out=x, **options)

    def merge(self, parts: Sequence[Features], *, width: int | None = None, out: Features | None = None, flags: int = 0, stream: Any = None) -> Features:
        """The features of a whole model from those of its latent shards."""
        if not parts:
            raise InvalidArgument("parts: there are none")
        with self._lock:
            run, order = self._prepare(check("parts[0]", parts[0]).values, flags, stream)
            views = [check(f"parts[{i}]", part)._struct(f"parts[{i}]", write=False, stream=order) for i, part in enumerate(parts)]
            given = (_abi.sae_features * len(views))(*views)
            if out is None:
                out = self._features(parts[0].values, width)
            view = check("out", out)._struct("out", write=True, stream=order)
            call(lib.sae_features_merge, self._handle, run, given, len(views), view.address)
            return out

    def check(self) -> None:
        """Raises if the device faulted, or indices or slots were out of range and taken for -1, since the session was made.
        Never waits for a device."""
        with self._lock:
            call(lib.sae_session_status, self._handle)

    def wait(self) -> None:
        """Waits until everything that the session was asked for is done; on the CPU it is."""
        with self._lock:
            call(lib.sae_session_wait, self._handle)

    @property
    def kernels(self) -> str | None:
        """The instruction set it uses on the CPU."""
        name = ask(lib.sae_session_kernels, self._handle)
        return name.decode() if name else None

    def _features(self, beside: Any, width: int | None) -> Features:
        return Features.empty(shape(beside)[0], width or self.width, self.info.row_state_width, like=beside)

    def _rows_out(self, tokens: int) -> tuple[int, ...]:
        layers = self.info.layers_out
        return (tokens, self.info.d_out) if layers == 1 else (tokens, layers, self.info.d_out // layers)

    def _prepare(self, x: Any, flags: int, stream: Any) -> tuple[int | None, int | None]:
        """How a call runs (NULL: as the session was made), and the stream that DLPack's producers are told."""
        if not self._on_gpu and not flags and stream is None:
            return None, None
        run = self._run
        run.flags = flags
        if not self._on_gpu and stream is None:
            run.stream_kind = _abi.SAE_STREAM_SESSION
            return self._run_address, None
        handle = _stream(x, stream)
        run.stream_kind, run.stream = _abi.SAE_STREAM_HOST, handle
        return self._run_address, handle or 1


def _stream(x: Any, stream: Any) -> int:
    """A CUDA stream's handle, in which 0 is the legacy default one."""
    if stream is None:
        if not is_torch(x) or not x.is_cuda:
            return 0
        stream = sys.modules["torch"].cuda.current_stream(x.device)
    for name in ("cuda_stream", "ptr"):  # torch's, cupy's
        stream = getattr(stream, name, stream)
    if hasattr(stream, "__cuda_stream__"):
        stream = stream.__cuda_stream__()[1]
    if not isinstance(stream, int) or isinstance(stream, bool) or stream < 0:
        raise InvalidArgument(f"stream: expected a CUDA stream or its handle, found {stream!r}")
    return 0 if stream == 1 else stream  # DLPack's number of the legacy default stream


def _session_options(fields: dict[str, Any], threads: int, pool: Pool | None) -> tuple[Any, Any]:
    if pool is None and threads != 1:
        pool = Pool(threads)
    given = struct(_abi.sae_session_options, fields)
    held = None if pool is None else pool._handle  # lives on in the caller's hands, even where the pool is closed meanwhile
    if held is not None:
        given.pool = held._as_parameter_
    return given, held


def kernels() -> list[str]:
    """The instruction sets that this machine runs, slowest first."""
    found: list[str] = []
    while name := lib.sae_kernels_name(len(found)):
        found.append(name.decode())
    return found

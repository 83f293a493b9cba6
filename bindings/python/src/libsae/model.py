"""Models: an SAE's weights, and what it is. Immutable; any number of threads may use one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from ctypes import byref, c_int32
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, TypedDict

from . import _abi
from ._arrays import borrow, empty, ints
from ._library import Owner, call, lib
from ._options import device_name, dtype_name, fspath, struct, text
from .errors import InvalidArgument

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .session import Pool, Session, SessionOptions


class Architecture(IntEnum):
    """Which pre-activations stay."""

    TOP_K = _abi.SAE_ARCHITECTURE_TOP_K
    RELU = _abi.SAE_ARCHITECTURE_RELU
    JUMP_RELU = _abi.SAE_ARCHITECTURE_JUMP_RELU
    ABS_TOP_K = _abi.SAE_ARCHITECTURE_ABS_TOP_K
    GROUP_MAX = _abi.SAE_ARCHITECTURE_GROUP_MAX
    GATED = _abi.SAE_ARCHITECTURE_GATED


class Normalization(IntEnum):
    """What is done to each token before encoding, which decoding undoes."""

    NONE = _abi.SAE_NORMALIZATION_NONE
    LAYER_NORM = _abi.SAE_NORMALIZATION_LAYER_NORM
    CONSTANT_NORM = _abi.SAE_NORMALIZATION_CONSTANT_NORM


class ModelFlags(IntFlag):
    """How a model differs from the plain ones; sae.h says it at each `SAE_MODEL_…`."""

    NONE = 0
    KEEPS_B_DEC = _abi.SAE_MODEL_KEEPS_B_DEC
    STAYS_NORMALIZED = _abi.SAE_MODEL_STAYS_NORMALIZED
    RESCALES = _abi.SAE_MODEL_RESCALES
    HAS_SKIP = _abi.SAE_MODEL_HAS_SKIP
    CENTERS = _abi.SAE_MODEL_CENTERS
    SELECTS = _abi.SAE_MODEL_SELECTS
    HAS_GLU = _abi.SAE_MODEL_HAS_GLU


WEIGHTS = {
    "W_enc": _abi.SAE_WEIGHT_W_ENC, "W_dec": _abi.SAE_WEIGHT_W_DEC, "b_enc": _abi.SAE_WEIGHT_B_ENC, "b_dec": _abi.SAE_WEIGHT_B_DEC,
    "threshold": _abi.SAE_WEIGHT_THRESHOLD, "W_skip": _abi.SAE_WEIGHT_W_SKIP, "W_glu": _abi.SAE_WEIGHT_W_GLU,
    "b_glu": _abi.SAE_WEIGHT_B_GLU, "r_mag": _abi.SAE_WEIGHT_R_MAG, "b_gate": _abi.SAE_WEIGHT_B_GATE,
}
"""The weights that `Model.read` knows, and `Model.from_weights` takes."""


class Convention(TypedDict, total=False):
    """What a model's inputs must look like; what is left out is not known. Answers are `True` or `False`."""

    model_name: str
    hook_point: str
    hook_point_out: str
    excluded_positions: Sequence[int]
    context_size: int
    prepend_bos: bool
    centered_writing_weights: bool
    folded_layer_norm: bool
    reference_fvu: float
    reference_l0: float
    reference_norm: float
    reference_norm_spread: float


class LoadOptions(TypedDict, total=False):
    """How to load; what is left out is as the file has it. sae.h says more at `sae_load_options`."""

    format: str  # to skip recognition: one of `formats()`
    member: str  # which model, where the path holds several
    convention: Convention  # what the file does not say, or says wrongly
    first_latent: int  # a shard: these of the stored latents alone, under their indices
    n_latents: int
    prefix: int  # so many of the first latents, as a model of their own (Matryoshka)
    k: int  # latents kept per token
    device: Any  # "cpu", "cuda", "cuda:1", a torch.device
    dtype: Any  # to keep matrices in: "f32", "f16", "bf16"
    map: bool  # leave matrices in the file, and page them in as they are read
    center: bool  # subtract each token's mean, and add it back
    activation_scale: float
    selection: int  # SAE_SELECTION_…: 1 top-k, 2 threshold
    subtract_b_dec: bool
    normalization: int


@dataclass(frozen=True)
class Memory:
    """Bytes that something needs; sae.h says what is counted where."""

    resident: int
    mapped: int
    peak: int
    workspace: int
    device: int


@dataclass(frozen=True)
class Info:
    """What a model is. `None` stands for what is not known."""

    architecture: Architecture
    normalization: Normalization
    flags: ModelFlags
    dtype: str
    device: str
    d_in: int
    d_out: int
    layers_in: int
    layers_out: int
    n_latents: int
    first_latent: int
    shard_of: int
    k: int
    prefixes: tuple[int, ...]
    row_state_width: int
    bytes: int
    format: str | None
    notes: str | None
    model_name: str | None
    hook_point: str | None
    hook_point_transformer_lens: str | None
    hook_point_hugging_face: str | None
    hook_point_ggml: str | None
    hook_point_out: str | None
    hook_point_out_transformer_lens: str | None
    hook_point_out_hugging_face: str | None
    hook_point_out_ggml: str | None
    excluded_positions: tuple[int, ...]
    context_size: int
    prepend_bos: bool | None
    centered_writing_weights: bool | None
    folded_layer_norm: bool | None


class Model(Owner):
    """An SAE: what it is, and its weights. Sessions keep what they need of it, so it may be closed before them."""

    def __init__(self) -> None:
        raise TypeError("models are made by Model.load, Model.from_weights or a trainer's export")

    @classmethod
    def _made(cls, make: Any, *arguments: Any) -> Model:
        model = object.__new__(cls)
        model._own("model", make, *arguments)
        model._info = None
        return model

    _info: Info | None

    @classmethod
    def load(cls, path: str | bytes | os.PathLike[str], **options: Unpack[LoadOptions]) -> Model:
        """Loads a file, or a folder that holds a model; its format is recognised. `FormatError` if it is not sound."""
        given, _keep = _load_options(dict(options))
        return cls._made(lib.sae_model_load, fspath(path), byref(given))

    @staticmethod
    def memory(path: str | bytes | os.PathLike[str], **options: Unpack[LoadOptions]) -> Memory:
        """What loading would need; no weight is read."""
        given, _keep = _load_options(dict(options))
        return read_memory(lib.sae_model_memory, fspath(path), byref(given))

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Any],
        *,
        architecture: Architecture | int,
        k: int = 0,
        normalization: Normalization | int = Normalization.NONE,
        flags: ModelFlags | int = ModelFlags.NONE,
        layers_in: int = 0,
        layers_out: int = 0,
        first_latent: int = 0,
        shard_of: int = 0,
        prefixes: Sequence[int] = (),
        convention: Convention | None = None,
        device: Any = None,
        dtype: Any = None,
        borrow_matrices: bool = False,
    ) -> Model:
        """A model of weights in memory: "W_enc" `[n_latents, d_in]` and "W_dec" `[n_latents, d_out]` at least, a latent being a
        row of both (SAELens keeps W_enc the other way round: hand in `W_enc.T.contiguous()`). They are copied; with
        `borrow_matrices` matrices are used where they are, on the CPU, and must stay as they are while the model lives."""
        for name in ("W_enc", "W_dec"):
            if name not in weights:
                raise InvalidArgument(f"weights: {name} is missing; there are {', '.join(weights) or 'none'}")
        views = {name: borrow(f"weights[{name!r}]", array) for name, array in weights.items()}
        given = (_abi.sae_named_tensor * len(views))()
        for slot, (name, (address, _)) in zip(given, views.items()):
            slot.name = name.encode()
            ctypes.memmove(ctypes.addressof(slot) + _abi.sae_named_tensor.tensor.offset, address, ctypes.sizeof(_abi.sae_tensor))
        sizes = {name: next(s for s in given if s.name == name.encode()).tensor for name in ("W_enc", "W_dec")}
        for name, tensor in sizes.items():
            if tensor.ndim != 2:
                raise InvalidArgument(f"weights[{name!r}]: expected 2 dimensions, [n_latents, d], found {tensor.ndim}")
        n_latents, d_in = sizes["W_enc"].shape[:2]
        desc = struct(_abi.sae_model_desc, dict(
            d_in=d_in, d_out=sizes["W_dec"].shape[1], layers_in=layers_in, layers_out=layers_out, n_latents=n_latents,
            first_latent=first_latent, shard_of=shard_of, k=k, prefixes=prefixes or None,
            convention=_convention(convention) if convention else None,
            architecture=architecture, normalization=normalization, flags=flags,
        ))
        options = struct(_abi.sae_load_options, dict(device=device, dtype=dtype))
        if borrow_matrices:
            options.flags |= _abi.SAE_LOAD_BORROW
        # The weights' owner is told by its capsules going, when C lets go: no Python runs on a thread of C's but for that.
        if borrow_matrices:
            key = id(views)
            _borrowed[key] = views
            options.release, options.release_context = _release, key
            try:
                return cls._made(lib.sae_model_from_weights, byref(desc), given, len(views), byref(options))
            except BaseException:
                _borrowed.pop(key, None)
                raise
        return cls._made(lib.sae_model_from_weights, byref(desc), given, len(views), byref(options))

    def save(self, path: str | os.PathLike[str], *, format: str | None = None, dtype: Any = None) -> None:
        """Saves it, in the library's own format unless another is named. Files appear whole or not at all."""
        options = struct(_abi.sae_save_options, dict(format=format, dtype=dtype))
        call(lib.sae_model_save, self._handle, fspath(path), byref(options))

    @property
    def info(self) -> Info:
        """What it is."""
        if self._info is None:
            self._info = _read_info(self._handle)
        return self._info

    def read(self, weight: str, first: int = 0, rows: int | None = None, *, like: Any = None, dtype: str = "float32", out: Any = None) -> Any:
        """Copies weights: rows of a matrix, or numbers of a vector, from `first` on; by default all. Into numpy's memory, or
        torch's if `like` is a torch tensor, or `out`."""
        if weight not in WEIGHTS:
            raise InvalidArgument(f"weight: expected one of {', '.join(WEIGHTS)}, found {weight!r}")
        info = self.info
        per_latent = weight not in ("b_dec", "W_skip")
        if rows is None:
            end = info.first_latent + info.n_latents if per_latent else info.d_out
            first = max(first, info.first_latent) if per_latent else first
            rows = end - first
        columns = {"W_enc": info.d_in, "W_glu": info.d_in, "W_skip": info.d_in, "W_dec": info.d_out}.get(weight)
        if out is None:
            out = empty(like, (max(rows, 0),) if columns is None else (max(rows, 0), columns), dtype)
        address, _keep = borrow("out", out, write=True)
        call(lib.sae_model_read, self._handle, WEIGHTS[weight], first, rows, address)
        return out

    def session(self, *, threads: int = 1, pool: Pool | None = None, **options: Unpack[SessionOptions]) -> Session:
        """A session over it, see `Session`."""
        from .session import Session

        return Session(self, threads=threads, pool=pool, **options)

    def fold_decoder_norms(self) -> Model:
        """One whose decoder rows have norm 1, the norms moved into the encoder."""
        return Model._made(lib.sae_model_fold_decoder_norms, self._handle)

    def fold_activation_scale(self, scale: float) -> Model:
        """One that takes x as this one takes `x * scale`."""
        return Model._made(lib.sae_model_fold_activation_scale, self._handle, scale)

    def with_k(self, k: int) -> Model:
        """One that keeps another number of latents per token."""
        return Model._made(lib.sae_model_with_k, self._handle, k)

    def with_threshold(self, sample: Any, pool: Pool | None = None) -> Model:
        """A JumpReLU of a TopK: its one threshold lets as many latents by on average of the `sample` `[T, d_in]`."""
        address, _keep = borrow("sample", sample)
        return Model._made(lib.sae_model_with_threshold, self._handle, address, pool._handle if pool else None)

    def subset(self, latents: Any) -> Model:
        """One of these latents alone, numbered from 0 in that order."""
        ids = [int(i) for i in ints(None, latents)]
        return Model._made(lib.sae_model_subset, self._handle, (c_int32 * len(ids))(*ids), len(ids))

    def prefix(self, n_latents: int) -> Model:
        """One of the first latents: for Matryoshka SAEs one of `info.prefixes`."""
        return Model._made(lib.sae_model_prefix, self._handle, n_latents)

    def __repr__(self) -> str:
        try:
            info = self.info
        except Exception:
            return "<libsae.Model, closed>"
        return f"<libsae.Model {info.architecture.name}, {info.n_latents} latents over {info.d_in}, {info.dtype} on {info.device}>"


def formats() -> dict[str, bool]:
    """The formats that are read, by name, and whether models are saved in them too."""
    found: dict[str, bool] = {}
    writes = c_int32()
    while name := lib.sae_format_name(len(found), byref(writes)):
        found[name.decode()] = bool(writes.value)
    return found


_borrowed: dict[int, Any] = {}


@_abi.sae_release  # type: ignore[untyped-decorator]
def _release(context: int) -> None:
    _borrowed.pop(context, None)


def _answer(value: bool | None) -> int:
    return _abi.SAE_UNKNOWN if value is None else _abi.SAE_YES if value else _abi.SAE_NO


def _convention(fields: Mapping[str, Any]) -> Any:
    answers = ("prepend_bos", "centered_writing_weights", "folded_layer_norm")
    return struct(_abi.sae_convention, {n: _answer(v) if n in answers else v for n, v in fields.items()})


def convention_struct(fields: Mapping[str, Any] | None) -> Any:
    """C's form of a convention, or `None`."""
    return _convention(fields) if fields is not None else None


def _load_options(options: dict[str, Any]) -> tuple[Any, Any]:
    flags = _abi.SAE_LOAD_MAP * bool(options.pop("map", False)) | _abi.SAE_LOAD_CENTER * bool(options.pop("center", False))
    options["convention"] = keep = convention_struct(options.pop("convention", None))
    if "subtract_b_dec" in options:
        options["subtract_b_dec"] = _answer(options["subtract_b_dec"])
    return struct(_abi.sae_load_options, {**options, "flags": flags}), keep


def read_memory(function: Any, *arguments: Any) -> Memory:
    """What a function that fills a `sae_memory` says."""
    out = struct(_abi.sae_memory)
    call(function, *arguments, byref(out))
    return Memory(*(getattr(out, name) for name in Memory.__dataclass_fields__))


def _read_info(handle: Any) -> Info:
    raw = struct(_abi.sae_info)
    call(lib.sae_model_info, handle, byref(raw))
    fields: dict[str, Any] = {}
    for name in Info.__dataclass_fields__:
        value = getattr(raw, name)
        fields[name] = text(value) if value is None or isinstance(value, bytes) else value
    for name in ("prepend_bos", "centered_writing_weights", "folded_layer_norm"):
        fields[name] = {_abi.SAE_YES: True, _abi.SAE_NO: False}.get(fields[name])
    fields.update(
        architecture=Architecture(raw.architecture), normalization=Normalization(raw.normalization), flags=ModelFlags(raw.flags),
        dtype=dtype_name(raw.dtype), device=device_name(raw.device), prefixes=tuple(raw.prefixes[: raw.n_prefixes]),
        excluded_positions=tuple(raw.excluded_positions[: raw.n_excluded_positions]),
    )
    return Info(**fields)

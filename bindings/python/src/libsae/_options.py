"""C's options from Python's keywords: a sized struct whose fields are set by name, all others zero, which is the default."""

from __future__ import annotations

import ctypes
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from . import _abi
from .errors import InvalidArgument

DTYPES = {
    "float32": (_abi.SAE_DTYPE_FLOAT, 32), "f32": (_abi.SAE_DTYPE_FLOAT, 32),
    "float16": (_abi.SAE_DTYPE_FLOAT, 16), "f16": (_abi.SAE_DTYPE_FLOAT, 16),
    "bfloat16": (_abi.SAE_DTYPE_BFLOAT, 16), "bf16": (_abi.SAE_DTYPE_BFLOAT, 16),
}
NAMES = {code: name for name, code in DTYPES.items() if not name.startswith(("f1", "f3", "bf1"))}


def dtype(value: Any) -> Any:
    """C's element type, of "bf16", "float32", `numpy.float16`, `torch.bfloat16` and the like."""
    name = getattr(value, "__name__", None) or str(value)
    code = DTYPES.get(name.rpartition(".")[2])
    if code is None:
        raise InvalidArgument(f"dtype: expected f32, f16 or bf16, found {value!r}")
    return _abi.sae_dtype(*code, 1)


def dtype_name(value: Any) -> str:
    """"float32", "float16" or "bfloat16"."""
    return NAMES.get((value.code, value.bits), "unknown")


def device(value: Any) -> Any:
    """C's device, of "cpu", "cuda", "cuda:1", or a `torch.device`."""
    kind, _, number = str(value).partition(":")
    kinds = {"cpu": _abi.SAE_DEVICE_CPU, "cuda": _abi.SAE_DEVICE_CUDA}
    if kind not in kinds or not (number or "0").isdecimal():
        raise InvalidArgument(f"device: expected cpu, cuda or cuda:N, found {value!r}")
    return _abi.sae_device(kinds[kind], int(number or 0))


def device_name(value: Any) -> str:
    """"cpu" or "cuda:N"."""
    return "cpu" if value.device_type == _abi.SAE_DEVICE_CPU else f"cuda:{value.device_id}"


def struct(kind: Any, fields: Mapping[str, Any] | None = None) -> Any:
    """A sized struct of a kind. What its pointers point to lives as long as it does. `None` stands for the default."""
    out = kind()
    out.struct_size = ctypes.sizeof(kind)
    types = dict(kind._fields_)
    for name, value in (fields or {}).items():
        if name not in types or name in ("struct_size", "reserved"):
            raise TypeError(f"{kind.__name__} has no option {name!r}; there are: "
                            + ", ".join(n for n in types if n not in ("struct_size", "reserved")))
        if value is not None:
            try:
                _set(out, name, types[name], value, types)
            except (TypeError, OverflowError, ctypes.ArgumentError) as e:
                raise InvalidArgument(f"{kind.__name__}.{name}: {value!r} does not fit: {e}") from None
    return out


def _set(out: Any, name: str, kind: Any, value: Any, types: Mapping[str, Any]) -> None:
    if kind is ctypes.c_char_p:
        setattr(out, name, fspath(value))
    elif kind is _abi.sae_dtype:
        setattr(out, name, dtype(value))
    elif kind is _abi.sae_device:
        setattr(out, name, device(value))
    elif isinstance(value, Sequence):
        setattr(out, name, (kind._type_ * len(value))(*value))
        if f"n_{name}" in types:
            setattr(out, f"n_{name}", len(value))
    elif isinstance(value, ctypes.Structure):
        setattr(out, name, ctypes.pointer(value))
    else:
        setattr(out, name, value)
        kept = getattr(out, name)
        if isinstance(value, int) and isinstance(kept, int) and kept != value:
            raise OverflowError("out of range")  # ctypes keeps what is left of it


def whole(name: str, value: SupportsIndex) -> int:
    """A number as an i32 of C's, of which ctypes would keep the lower bits alone."""
    made = operator.index(value)
    if not -(2**31) <= made < 2**31:
        raise InvalidArgument(f"{name}: {made} is out of range")
    return made


def fspath(value: str | bytes | os.PathLike[str]) -> bytes:
    """A path, or another text, as C takes it: in UTF-8, and ended by the only NUL."""
    made = os.fsdecode(value).encode()
    if b"\0" in made:
        raise InvalidArgument(f"{value!r}: has a NUL inside, where it would end for C")
    return made


def text(value: bytes | None) -> str | None:
    """A text of C's; `None` where nothing is known."""
    return None if value is None else value.decode("utf-8", "replace")

"""Arrays of numpy, torch and whoever else speaks DLPack, handed to C where they lie, and made for what C writes.

A `sae_tensor` is DLPack's `DLTensor`, so what an exporter puts into its capsule is what C gets: nothing is converted, and
nothing copied. The capsule keeps the memory while a call uses it, and goes unconsumed: its producer cleans up.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import _abi
from .errors import InvalidTensor

_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))

_PLAIN, _VERSIONED = b"dltensor", b"dltensor_versioned"
# A versioned one begins with its version (two u32), two pointers, and the flags, before the DLTensor itself.
_FLAGS, _TENSOR = 24, 32
_READ_ONLY, _IS_COPIED = 1, 2
_LEGACY_DEFAULT_STREAM = 1

Borrowed = tuple[int, Any]
"""The address of a `sae_tensor`, and what must live while it is used."""


def is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def borrow(name: str, array: Any, *, write: bool = False, stream: int | None = None, within: str = "") -> Borrowed:
    """An array as C sees it; `within` is what it is a part of, for messages. `stream` is the CUDA stream on which the call will
    use it, by DLPack's numbers; the producer has it wait for what is still being written. Torch's tensors are taken as they
    are on its current stream, which is the one used."""
    if type(array) is np.ndarray and array.flags.writeable:
        try:
            capsule = array.__dlpack__()
            return _pointer(capsule, _PLAIN), capsule
        except (BufferError, TypeError):  # what DLPack cannot say
            pass
    name = f"{within}.{name}" if within else name
    if isinstance(array, np.ndarray):
        return _numpy(name, array, write)
    if is_torch(array):
        return _torch(name, array)
    if not hasattr(array, "__dlpack__"):
        raise TypeError(f"{name}: expected an array that has __dlpack__, such as numpy's or torch's, found {type(array).__name__}")
    try:
        return _unwrap(name, _export(array, stream), write)
    except BufferError as e:
        raise InvalidTensor(f"{name}: its owner does not export it: {e}") from None


def optional(name: str, array: Any, *, stream: int | None = None) -> Borrowed:
    """The same of an array that may be `None`."""
    return (0, None) if array is None else borrow(name, array, stream=stream)


def _numpy(name: str, array: Any, write: bool) -> Borrowed:
    if write and not array.flags.writeable:
        raise InvalidTensor(f"{name}: is read-only, but is to be written")
    return _describe(name, array)


def _torch(name: str, array: Any) -> Borrowed:
    torch = sys.modules["torch"]
    if array.requires_grad and torch.is_grad_enabled():
        raise InvalidTensor(f"{name}: requires a gradient, which this call does not have; detach() it, or use libsae.torch")
    try:
        capsule = torch.to_dlpack(array)
    except (BufferError, RuntimeError) as e:
        raise InvalidTensor(f"{name}: torch does not export it: {e}") from None
    return _pointer(capsule, _PLAIN), capsule


def _export(array: Any, stream: int | None) -> Any:
    on_cpu = array.__dlpack_device__()[0] == _abi.SAE_DEVICE_CPU
    options = {} if on_cpu else {"stream": _LEGACY_DEFAULT_STREAM if stream is None else stream}
    try:
        return array.__dlpack__(max_version=(1, 0), **options)
    except TypeError:  # older exporters know no versions
        return array.__dlpack__(**options)


def _unwrap(name: str, capsule: Any, write: bool) -> Borrowed:
    if _valid(capsule, _PLAIN):
        return _pointer(capsule, _PLAIN), capsule
    if not _valid(capsule, _VERSIONED):
        raise InvalidTensor(f"{name}: what its __dlpack__ gave is no unused DLPack capsule")
    address = _pointer(capsule, _VERSIONED)
    major, minor = (ctypes.c_uint32 * 2).from_address(address)
    if major != 1:
        raise InvalidTensor(f"{name}: is exported by DLPack {major}.{minor}; 1.x is understood")
    flags = ctypes.c_uint64.from_address(address + _FLAGS).value
    if write and flags & (_READ_ONLY | _IS_COPIED):
        raise InvalidTensor(f"{name}: is {'read-only' if flags & _READ_ONLY else 'exported as a copy'}, but is to be written")
    return address + _TENSOR, capsule


def _describe(name: str, array: Any) -> Borrowed:
    """A numpy array that DLPack cannot say: one that is read-only, ml_dtypes' bfloat16, or no type of ours."""
    code = {"f": _abi.SAE_DTYPE_FLOAT, "i": _abi.SAE_DTYPE_INT}.get(array.dtype.kind)
    if array.dtype.name == "bfloat16":
        code = _abi.SAE_DTYPE_BFLOAT
    if code is None or not array.dtype.isnative or any(stride % array.itemsize for stride in array.strides):
        raise InvalidTensor(f"{name}: expected float32, float16, bfloat16 or int32 of this machine's byte order, with strides of "
                            f"whole elements, found {array.dtype} with strides of {array.strides} bytes")
    tensor = _abi.sae_tensor()
    tensor.data = array.__array_interface__["data"][0]
    tensor.device.device_type = _abi.SAE_DEVICE_CPU
    tensor.ndim = array.ndim
    tensor.dtype = _abi.sae_dtype(code, array.itemsize * 8, 1)
    dims = ctypes.c_int64 * array.ndim
    tensor.shape = dims(*array.shape)
    tensor.strides = dims(*(stride // array.itemsize for stride in array.strides))
    return ctypes.addressof(tensor), (tensor, array)


def shape(array: Any) -> tuple[int, ...]:
    """The lengths of an array of whatever kind."""
    found = getattr(array, "shape", None)
    if found is None:
        address, _keep = borrow("array", array)
        tensor = _abi.sae_tensor.from_address(address)
        found = tensor.shape[: tensor.ndim]
    return tuple(found)


def empty(like: Any, shape: Sequence[int], dtype: Any) -> Any:
    """Memory for results beside `like`: a torch tensor on its device, else a numpy array. `dtype` is a name, or `like`'s own."""
    if type(like) is np.ndarray and dtype != "bfloat16":
        return np.empty(shape, dtype)
    if is_torch(like):
        torch = sys.modules["torch"]
        return torch.empty(tuple(shape), dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype, device=like.device)
    if not isinstance(like, np.ndarray) and hasattr(like, "__dlpack_device__") and like.__dlpack_device__()[0] != _abi.SAE_DEVICE_CPU:
        raise TypeError(f"out: memory on the device of a {type(like).__name__} must be given; only torch's is made here")
    return np.empty(shape, _numpy_dtype(dtype))


def _numpy_dtype(dtype: Any) -> Any:
    if dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise InvalidTensor("dtype: numpy has bfloat16 with the package ml-dtypes alone") from None
        return ml_dtypes.bfloat16
    return np.dtype(dtype)


def like(array: Any) -> Any:
    """The dtype of an array, for another of its kind."""
    if isinstance(array, np.ndarray) or is_torch(array):
        return array.dtype
    address, _keep = borrow("array", array)
    code = _abi.sae_tensor.from_address(address).dtype
    return {(2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16"}.get((code.code, code.bits), "float32")


def ints(like: Any, values: Any) -> Any:
    """Whole numbers as an i32 array beside `like`; arrays stay what they are."""
    if hasattr(values, "__dlpack__"):
        return values
    if not isinstance(values, Iterable):
        raise TypeError(f"expected whole numbers, found {type(values).__name__}")
    made = np.fromiter(values, np.int32)
    return sys.modules["torch"].from_numpy(made).to(like.device) if is_torch(like) else made

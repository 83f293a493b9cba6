"""What can go wrong: one exception for each status of the C library, with its message."""

from __future__ import annotations

from typing import ClassVar

from . import _abi


class Error(Exception):
    """A call of libsae was refused or failed. Outputs are as they were before it. `status` is C's `SAE_ERROR_…`."""

    status: ClassVar[int] = _abi.SAE_ERROR_INTERNAL


class InvalidArgument(Error, ValueError):
    """An option, flag or count is not acceptable."""

    status = _abi.SAE_ERROR_INVALID_ARGUMENT


class InvalidTensor(Error, ValueError):
    """An array's dtype, shape, strides, device or overlap is not acceptable."""

    status = _abi.SAE_ERROR_INVALID_TENSOR


class Unsupported(Error, NotImplementedError):
    """What was asked for is understood, but this build, model or device does not do it."""

    status = _abi.SAE_ERROR_UNSUPPORTED


class FileError(Error, OSError):
    """A file could not be opened, read or written."""

    status = _abi.SAE_ERROR_IO


class FormatError(Error, ValueError):
    """A file was read, but its content is not what its format promises."""

    status = _abi.SAE_ERROR_FORMAT


class OutOfMemory(Error, MemoryError):
    """Memory could not be had."""

    status = _abi.SAE_ERROR_OUT_OF_MEMORY


class NoDevice(Error, RuntimeError):
    """The device asked for is not there."""

    status = _abi.SAE_ERROR_NO_DEVICE


class DeviceFault(Error, RuntimeError):
    """The device reported a fault, in this call or an earlier one."""

    status = _abi.SAE_ERROR_DEVICE_FAULT


class NotFinite(Error, ArithmeticError):
    """A number that must be finite is not: a weight, a statistic, a loss."""

    status = _abi.SAE_ERROR_NOT_FINITE


class BadState(Error, RuntimeError):
    """The call does not fit the state the object is in: it is closed, or not started."""

    status = _abi.SAE_ERROR_BAD_STATE


class InternalError(Error, RuntimeError):
    """A fault of the library itself; please report it."""


class CollectiveError(Error, RuntimeError):
    """Other processes of the run could not be reached: one was lost, or the communicator failed."""

    status = _abi.SAE_ERROR_COLLECTIVE


KINDS: dict[int, type[Error]] = {
    kind.status: kind
    for kind in (
        InvalidArgument, InvalidTensor, Unsupported, FileError, FormatError, OutOfMemory, NoDevice, DeviceFault, NotFinite,
        BadState, InternalError, CollectiveError,
    )
}

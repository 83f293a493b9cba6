"""The shared library: where it is, its functions, how their errors become exceptions, and who owns what it makes."""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any, NoReturn

from . import _abi
from .errors import KINDS, BadState, InternalError, InvalidArgument


def path() -> Path:
    """The library that is used: the one beside this file, or what the environment variable LIBSAE names."""
    name = {"darwin": "libsae.dylib", "win32": "sae.dll"}.get(sys.platform, "libsae.so")
    return Path(os.environ.get("LIBSAE") or Path(__file__).with_name(name))


def _load() -> Any:
    try:
        library = ctypes.CDLL(str(path()))
    except OSError as e:
        raise ImportError(f"libsae: the shared library {path()} cannot be loaded: {e}. It comes with the wheel; "
                          "the environment variable LIBSAE names another") from e
    library.sae_abi_version.restype = ctypes.c_uint32
    found = library.sae_abi_version()
    if found != _abi.SAE_ABI_VERSION:
        raise ImportError(f"libsae: {path()} has ABI {found}, this package is made for {_abi.SAE_ABI_VERSION}")
    for name, (result, arguments) in _abi.FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise ImportError(f"libsae: {path()} lacks {name}; this package is made for another release of it") from None
        function.restype, function.argtypes = result, arguments
    return library


lib: Any = _load()


def call(function: Any, *arguments: Any) -> None:
    """Calls a function that can fail; C's error becomes an exception. The interpreter's lock is let go meanwhile."""
    error = c_void_p()
    if ask(function, *arguments, byref(error)):
        fail(error)


def ask(function: Any, *arguments: Any) -> Any:
    """Calls a function; what ctypes has against its arguments becomes our exceptions."""
    try:
        return function(*arguments)
    except ctypes.ArgumentError as e:
        if any(isinstance(argument, Closed) for argument in arguments):
            raise BadState("it was closed, or given up") from None
        raise InvalidArgument(f"{function.__name__}: {e}") from None


def fail(error: c_void_p) -> NoReturn:
    """Raises what C reported, and frees it."""
    try:
        status, message = lib.sae_error_status(error), lib.sae_error_message(error)
    finally:
        lib.sae_error_free(error)
    raise KINDS.get(status, InternalError)(message.decode("utf-8", "replace"))


def version() -> str:
    """The release of the library that is loaded, such as "0.1.0"."""
    return str(lib.sae_version().decode())


class Handle:
    """An object of C's, freed with the last reference: a call that another thread is in holds one too, so nothing is
    freed under it."""

    __slots__ = ("_as_parameter_", "_free")

    def __init__(self, address: int | None, free: Any) -> None:
        self._as_parameter_ = address
        self._free = free

    def __del__(self) -> None:
        self._free(self._as_parameter_)


class Closed:
    """In a handle's place after `close`."""

    @property
    def _as_parameter_(self) -> NoReturn:
        raise BadState("it was closed, or given up")


class Owner:
    """What has an object of C's. `close` gives it up at once, else the last reference does; use it in a `with` block, above
    all on a GPU, where freeing waits for the device."""

    _handle: Handle | Closed

    def _own(self, name: str, make: Any, *arguments: Any) -> None:
        """Has C make the object, a `sae_name *` that becomes this one's."""
        out = c_void_p()
        call(make, *arguments, byref(out))
        self._handle = Handle(out.value, getattr(lib, f"sae_{name}_free"))

    def close(self) -> None:
        """Frees it, or has the last call that is under way in another thread do so. Closing twice is nothing."""
        self._handle = Closed()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
